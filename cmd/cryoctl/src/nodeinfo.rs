//! What a node is, as far as a restore there depends on it: `cryoctl node-info` prints it,
//! `cryoctl verify` reads it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cryo_criu::Criu;
use cryo_criu::config::{self, Config};
use serde::{Deserialize, Serialize};

use crate::containerd::cri::Runtime;
use crate::containerd::{Client, Socket, block_on};

/// The version of this form. A change that a reader would misunderstand counts it up.
pub(crate) const FORM: u32 = 1;

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) node_info_version: u32,
    pub(crate) cryo_version: String,
    pub(crate) hostname: String,
    /// As in Rust and `uname -m`.
    pub(crate) architecture: String,
    pub(crate) kernel: Kernel,
    pub(crate) os: Os,
    pub(crate) cpu: Cpu,
    /// `v1`, `hybrid` or `v2`.
    pub(crate) cgroup: String,
    /// Security modules in use.
    pub(crate) lsms: Vec<String>,
    /// Nothing where there is none that can be used; `criu_problem` says why.
    pub(crate) criu: Option<CriuInfo>,
    pub(crate) criu_problem: Option<String>,
    /// Nothing where it cannot be asked.
    pub(crate) containerd: Option<Containerd>,
}

/// Its kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) version: String,
    pub(crate) userfaultfd: bool,
    pub(crate) time_namespace: bool,
    /// File systems that it can mount.
    pub(crate) filesystems: Vec<String>,
}

/// Its distribution, from os-release.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Os {
    pub(crate) id: String,
    pub(crate) version: String,
}

/// Its processors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cpu {
    pub(crate) vendor: String,
    pub(crate) model: String,
    pub(crate) count: usize,
    /// What the kernel says that they have, by its names.
    pub(crate) features: Vec<String>,
}

/// Its CRIU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CriuInfo {
    pub(crate) path: PathBuf,
    pub(crate) version: String,
    pub(crate) memory_tracking: bool,
    pub(crate) lazy_pages: bool,
    pub(crate) pidfd_store: bool,
}

/// Its containerd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Containerd {
    pub(crate) version: String,
    /// By the names of their handlers.
    pub(crate) runtimes: BTreeMap<String, Runtime>,
}

impl Node {
    /// This one. What cannot be asked is left out.
    pub(crate) fn here(socket: Option<&Socket>) -> Self {
        let uname = rustix::system::uname();
        let (criu, criu_problem) = match criu() {
            Ok(criu) => (Some(criu), None),
            Err(why) => (None, Some(why)),
        };
        let text = |c: &std::ffi::CStr| c.to_string_lossy().into_owned();
        Self {
            node_info_version: FORM,
            cryo_version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: text(uname.nodename()),
            architecture: text(uname.machine()),
            kernel: Kernel {
                release: text(uname.release()),
                version: text(uname.version()),
                userfaultfd: has_userfaultfd(),
                time_namespace: Path::new("/proc/self/ns/time").exists(),
                filesystems: filesystems(&read("/proc/filesystems")),
            },
            os: os(&read("/etc/os-release")),
            cpu: cpu(&read("/proc/cpuinfo")),
            cgroup: cgroup_mode().to_owned(),
            lsms: lsms(),
            criu,
            criu_problem,
            containerd: socket.and_then(containerd),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether memory can be filled on demand.
pub(crate) fn has_userfaultfd() -> bool {
    Path::new("/dev/userfaultfd").exists()
        || Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists()
}

/// How control groups are mounted.
pub(crate) fn cgroup_mode() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "v2"
    } else if Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        "hybrid"
    } else {
        "v1"
    }
}

/// Security modules that are in use, of those that label processes.
pub(crate) fn lsms() -> Vec<String> {
    let apparmor = read("/sys/module/apparmor/parameters/enabled").starts_with('Y');
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let all = [("apparmor", apparmor), ("selinux", selinux)];
    all.into_iter()
        .filter(|(_, used)| *used)
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn criu() -> Result<CriuInfo, String> {
    let config = Config::load(config::PATH.as_ref()).map_err(|e| e.to_string())?;
    let criu = Criu::find(config.criu.path.as_deref()).map_err(|e| e.to_string())?;
    let probe = criu.probe().map_err(|e| e.to_string())?;
    Ok(CriuInfo {
        path: criu.binary().to_owned(),
        version: probe.version.to_string(),
        memory_tracking: probe.mem_track,
        lazy_pages: probe.lazy_pages,
        pidfd_store: probe.pidfd_store,
    })
}

fn containerd(socket: &Socket) -> Option<Containerd> {
    let asked = block_on(async {
        let client = Client::connect(&socket.address, "default").await?;
        let version = client.version().await?;
        let cri = client.cri().await?;
        Ok(Containerd {
            version,
            runtimes: cri.unwrap_or_default().containerd.runtimes,
        })
    });
    asked.ok()
}

fn filesystems(text: &str) -> Vec<String> {
    let mut all: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next_back())
        .map(str::to_owned)
        .collect();
    all.sort();
    all
}

fn os(text: &str) -> Os {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    Os {
        id: field("ID="),
        version: field("VERSION_ID="),
    }
}

fn cpu(text: &str) -> Cpu {
    let field = |names: &[&str]| {
        let line = text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            names.contains(&key.trim()).then(|| value.trim())
        });
        line.unwrap_or_default().to_owned()
    };
    let mut features: Vec<_> = field(&["flags", "Features", "features"])
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    features.sort();
    Cpu {
        vendor: field(&["vendor_id", "CPU implementer"]),
        model: field(&["model name", "CPU part"]),
        count: text
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
        features,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel() {
        let info = cpu(
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: sse2 avx\n\nprocessor\t: 1\nflags : x\n",
        );
        assert_eq!((info.vendor.as_str(), info.count), ("AuthenticAMD", 2));
        assert_eq!(info.features, ["avx", "sse2"]);
        let info = cpu("processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n");
        assert_eq!(info.features, ["asimd", "fp"]);
        assert_eq!(filesystems("nodev\tsysfs\n\text4\n"), ["ext4", "sysfs"]);
        let os = os("NAME=\"Debian\"\nID=debian\nVERSION_ID=\"13\"\n");
        assert_eq!((os.id.as_str(), os.version.as_str()), ("debian", "13"));
    }

    #[test]
    fn a_node_is_read_as_it_was_written() {
        let here = Node::here(None);
        let text = serde_json::to_string(&here).unwrap();
        let again: Node = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert!(!here.kernel.release.is_empty() && !here.cpu.features.is_empty());
    }
}
