//! Connections, and the network of the container.

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::CheckpointOptions;
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::Node;
use cryo_e2e::workload::{COUNTER, PYTHON, goes_on, numbers};

use super::{Client, Thing, freeze, is_refused, program, refuses_to_start, says, there};
use crate::checkpoint::flat_names;

/// What the client of a connection does: a byte goes there and has to come back.
fn pings(port: &str) -> String {
    format!(
        "s = socket.create_connection(('127.0.0.1', {port}))\n\
         s.settimeout(0.2)\n\
         s.send(b'x')\n\
         while os.path.exists('{{go}}'):\n\
         \x20   try: got = s.recv(1)\n\
         \x20   except TimeoutError: continue\n\
         \x20   if got != b'x': sys.exit('the connection was closed')\n\
         \x20   time.sleep(0.02)\n\
         \x20   while os.path.exists('{{go}}-not'): time.sleep(0.02)\n\
         \x20   s.send(b'x')\n"
    )
}

/// One connection, whose bytes go back.
const ECHO: &str = "\
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
print('port', server.getsockname()[1], flush=True)
peer = server.accept()[0]
peer.setblocking(False)
def status():
    try:
        data = peer.recv(100)
        if not data: return 'ended'
        peer.send(data)
        return 'echo'
    except BlockingIOError: return 'quiet'
    except OSError: return 'ended'
";

/// A container in the node's network with a connection to a client in the node.
async fn connected(
    cx: &Context,
    node: &Node,
    annotations: &[&str],
) -> anyhow::Result<(Container, Output, Client)> {
    let program = program(ECHO);
    let mut flags = vec!["--net-host"];
    for annotation in annotations {
        flags.extend(["--annotation", annotation]);
    }
    let container = cx
        .container_with(node, &flags, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    let port = output
        .until(|t| Some(t.lines().next()?.strip_prefix("port ")?.to_owned()))
        .await?;
    let client = Client::run(cx, node, &pings(&port))?;
    says(&output, "echo").await?;
    Ok((container, output, client))
}

pub(crate) async fn tcp_established(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output, client) = connected(&cx, node, &[]).await?;
    is_refused(&cx, &container, &output, &["tcp-established"]).await?;
    client.stop().await?;
    container.kill_and_delete().await?;

    for lock in ["auto", "nftables", "iptables", "skip"] {
        survives(&cx, node, lock)
            .await
            .with_context(|| format!("network-lock {lock}"))?;
    }
    Ok(())
}

/// A connection outlives its server's checkpoint and restore, held still by `lock`.
async fn survives(cx: &Context, node: &Node, lock: &str) -> anyhow::Result<()> {
    let checkpoint = format!("checkpoint.cryo/network-lock={lock}");
    let restore = format!("restore.cryo/network-lock={lock}");
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        &checkpoint,
        &restore,
    ];
    let (container, output, client) = connected(cx, node, &annotations).await?;
    // Without a lock, a packet that finds no socket ends the connection.
    let unlocked = lock == "skip";
    if unlocked {
        client.hold(true)?;
        output
            .until(|t| {
                let said = t.lines().filter(|l| l.parse::<u64>().is_err());
                (said.rev().take(5).all(|l| l == "quiet")).then_some(())
            })
            .await
            .context("the client is quiet")?;
    }
    let (image, before) = freeze(cx, &container, &output).await?;
    let (nft, iptables) = locks(node).await?;
    match lock {
        "skip" => ensure!(!nft && !iptables, "locked"),
        "iptables" => ensure!(iptables && !nft, "nft {nft}, iptables {iptables}"),
        _ => ensure!(nft && !iptables, "nft {nft}, iptables {iptables}"),
    }
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    if unlocked {
        client.hold(false)?;
    }
    says(&output, "echo").await?;
    client.stop().await?;
    let (nft, iptables) = locks(node).await?;
    ensure!(!nft && !iptables, "left: nft {nft}, iptables {iptables}");
    container.kill_and_delete().await?;
    Ok(())
}

/// Whether CRIU holds packets back on the node by nftables, and by iptables.
async fn locks(node: &Node) -> anyhow::Result<(bool, bool)> {
    let nft = node.exec(&["nft", "list", "tables"]).await?.success()?;
    let iptables = node.exec(&["iptables-save"]).await?.success()?;
    // The mark of CRIU's own packets.
    Ok((nft.contains("CRIU"), iptables.contains("0xc114")))
}

pub(crate) async fn tcp_close(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // Closed by the checkpoint: nothing of the connection is in it.
    let annotations = ["checkpoint.cryo/tcp-close=true"];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let names = flat_names(&node.host(&image))?;
    ensure!(
        !names.iter().any(|n| n.starts_with("tcp-stream-")),
        "{names:?}"
    );
    refuses_to_start(&cx, &container, &image, &["tcp-close"]).await?;
    let flags = ["--net-host", "--annotation", "restore.cryo/tcp-close=true"];
    let container = cx.container_with(node, &flags, PYTHON, &["true"]).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "ended").await?;
    container.kill_and_delete().await?;

    // Closed by the restore.
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        "restore.cryo/tcp-close=true",
    ];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "ended").await?;
    let (nft, iptables) = locks(node).await?;
    ensure!(!nft && !iptables, "left: nft {nft}, iptables {iptables}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn tcp_established_can_be_refused_by_a_restore(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        "checkpoint.cryo/network-lock=skip",
        "restore.cryo/tcp-established=false",
    ];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, _) = freeze(&cx, &container, &output).await?;
    refuses_to_start(&cx, &container, &image, &["tcp-established"]).await
}

pub(crate) async fn tcp_skip_in_flight(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "server = socket.socket()\n\
                server.bind(('127.0.0.1', 0))\n\
                server.listen()\n\
                print('port', server.getsockname()[1], flush=True)\n\
                def status(): return 'listening' if server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else 'not'",
        whole: "listening",
        flags: &["--net-host"],
    };
    for (annotations, works) in [
        (&[][..], false),
        (&["checkpoint.cryo/tcp-skip-in-flight=true"], true),
    ] {
        let (container, output) = thing.run(&cx, node, annotations).await?;
        let port = output
            .until(|t| Some(t.lines().next()?.strip_prefix("port ")?.to_owned()))
            .await?;
        // Nobody accepts it.
        let marker = cx.folder(node, "connected")?;
        let client = Client::run(
            &cx,
            node,
            &format!(
                "s = socket.create_connection(('127.0.0.1', {port}))\n\
                 open('{marker}/yes', 'w')\n\
                 while os.path.exists('{{go}}'): time.sleep(0.02)\n"
            ),
        )?;
        there(&node.host(&marker).join("yes")).await?;
        if works {
            let (image, before) = freeze(&cx, &container, &output).await?;
            let output = container.create_from(Some(&image)).await?;
            container.start().await?;
            goes_on(&before, &output.count_to(3).await?)?;
            says(&output, "listening").await?;
        } else {
            is_refused(&cx, &container, &output, &["tcp-skip-in-flight"]).await?;
        }
        client.stop().await?;
        container.kill_and_delete().await?;
    }
    Ok(())
}

pub(crate) async fn empty_ns(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "def status(): return ' '.join(sorted(name for _, name in socket.if_nameindex()))",
        whole: "lo",
        flags: &[],
    };
    // A device of a kind that CRIU does not know.
    let add = async |container: &Container| {
        let pid = container.api.get(&container.id).await?.pid.to_string();
        node.exec(&[
            "nsenter", "-t", &pid, "-n", "ip", "link", "add", "odd0", "type", "ifb",
        ])
        .await?
        .success()
    };
    let (container, output) = thing.run(&cx, node, &[]).await?;
    add(&container).await?;
    is_refused(&cx, &container, &output, &["empty-ns"]).await?;
    let image = cx.folder(node, "image")?;
    let options = CheckpointOptions {
        exit: true,
        image_path: image.clone(),
        empty_namespaces: vec!["network".into()],
        ..Default::default()
    };
    container.api.checkpoint(&container.id, options).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    let names = flat_names(&node.host(&image))?;
    ensure!(!names.iter().any(|n| n.starts_with("netdev-")), "{names:?}");
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "lo").await?;
    container.kill_and_delete().await?;

    // As annotations.
    let annotations = [
        "checkpoint.cryo/empty-ns=network",
        "restore.cryo/empty-ns=network",
    ];
    let (container, output) = thing.run(&cx, node, &annotations).await?;
    add(&container).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;

    // The node's network is not the container's to leave out.
    let flags = ["--net-host", "--annotation", annotations[0]];
    let container = cx
        .container_with(node, &flags, PYTHON, &["sh", "-c", COUNTER])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    is_refused(&cx, &container, &output, &["empty-ns", "of its own"]).await?;
    container.kill_and_delete().await?;
    Ok(())
}
