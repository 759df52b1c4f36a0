//! A network of containers over the lab's nodes: a bridge on each, joined by VXLAN, and network
//! namespaces with an address in it, as a cluster's network plugin makes them.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context as _;

use crate::context::Context;
use crate::lab::Node;

static NEXT: AtomicU8 = AtomicU8::new(1);

/// One network, which has its nodes and one container's address in it.
#[derive(Debug)]
pub struct Network {
    /// The bridge's name, and of all else that it has on a node.
    name: String,
    prefix: String,
}

impl Network {
    /// Makes it on one node, or on two that it joins.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub async fn over(cx: &Context, nodes: &[&Node]) -> anyhow::Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("net{number}"),
            prefix: format!("10.99.{number}"),
        };
        let (name, prefix) = (&network.name, &network.prefix);
        for (index, node) in nodes.iter().enumerate() {
            cx.undo(node, format!("ip link del {name}"));
            let own = index + 1;
            let make = format!(
                "ip link add {name} type bridge && ip link set {name} up &&
                 ip addr add {prefix}.{own}/24 dev {name}"
            );
            sh(node, &make).await?;
            let Some(other) = nodes.iter().find(|other| other.name() != node.name()) else {
                continue;
            };
            cx.undo(node, format!("ip link del {name}x"));
            // hack/lab names the link to a node after it, and gives both ends their address.
            let join = format!(
                "set -- $(ip -4 -o addr show dev to-{}) &&
                 ip link add {name}x type vxlan id {number} local $4 remote ${{6%/*}} dstport 4789 &&
                 ip link set {name}x master {name} up",
                other.name()
            );
            sh(node, &join).await?;
        }
        Ok(network)
    }

    /// The container's address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}.9", self.prefix)
    }

    /// Makes a network namespace on a node that has the container's address, and is not
    /// connected yet: nothing that is sent to the address comes there. Its path.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn namespace(&self, cx: &Context, node: &Node) -> anyhow::Result<String> {
        let (name, address) = (&self.name, self.address());
        let path = format!("/run/netns/{name}");
        let undo = format!("ip link del {name}p; umount {path} && rm {path}");
        cx.undo(node, undo);
        let make = format!(
            "mkdir -p /run/netns && touch {path} && unshare --net={path} ip link set lo up &&
             ip link add {name}p type veth peer name eth0 netns {name} && ip link set {name}p up &&
             nsenter --net={path} sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify' &&
             ip -n {name} link set eth0 up && ip -n {name} addr add {address}/24 dev eth0"
        );
        sh(node, &make).await?;
        Ok(path)
    }

    /// Connects the container's namespace on this node; it tells all neighbours that the address
    /// is there now.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub async fn connect(&self, node: &Node) -> anyhow::Result<()> {
        let name = &self.name;
        // With a new hardware address and arp_notify the kernel sends a gratuitous ARP.
        let connect = format!(
            "ip link set {name}p master {name} &&
             ip -n {name} link set eth0 address 02:$(od -An -N5 -tx1 /dev/urandom | tr -s ' ' : | cut -c2-)"
        );
        sh(node, &connect).await
    }

    /// Takes the container's namespace off the network.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub async fn disconnect(&self, node: &Node) -> anyhow::Result<()> {
        sh(node, &format!("ip link set {}p nomaster", self.name)).await
    }
}

async fn sh(node: &Node, script: &str) -> anyhow::Result<()> {
    let done = node.exec(&["sh", "-c", script]).await?;
    done.success().context("the network of a test")?;
    Ok(())
}
