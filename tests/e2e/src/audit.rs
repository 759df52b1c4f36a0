//! What a node has of everything a shim could leave behind, before and after.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::lab::{FIFOS, Node, SCRATCH};
use crate::patience::PATIENCE;

/// Folders of a node whose entries are counted, with how deep.
const FOLDERS: [(&str, usize); 11] = [
    ("/run/cryo", 4),
    ("/run/containerd/s", 1),
    (GO_SHIM, 2),
    ("/run/containerd/io.containerd.runtime.v2.task", 2),
    ("/run/netns", 1),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 2),
    (
        "/var/lib/containerd/io.containerd.grpc.v1.cri/containers",
        1,
    ),
    ("/tmp", 1),
    ("/var/tmp", 1),
    (FIFOS, 1),
    (SCRATCH, 1),
];

/// Where the Go shim has its containers, by namespaces.
const GO_SHIM: &str = "/run/containerd/runc";

/// Processes, mounts, cgroups and files of a node, each with how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

impl Census {
    /// Takes the census now.
    ///
    /// # Errors
    /// When the node cannot be looked at.
    pub async fn take(node: &Node) -> anyhow::Result<Self> {
        let mut census = Self::default();
        for process in std::fs::read_dir(node.host("/proc"))?.flatten() {
            let is_pid = process
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok());
            if is_pid && let Ok(comm) = std::fs::read_to_string(process.path().join("comm")) {
                census.count(format!("process {}", comm.trim()));
            }
        }
        // Mounted by the lab's own commands while they run.
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", node.pid()))
            .context("the node's mounts")?;
        for line in mounts.lines() {
            if let Some(point) = line.split(' ').nth(4) {
                census.count(format!("mount {point}"));
            }
        }
        let cgroups = node
            .exec(&["find", "/sys/fs/cgroup", "-type", "d"])
            .await?
            .stdout;
        for cgroup in cgroups.lines() {
            census.count(format!("cgroup {cgroup}"));
        }
        for (folder, depth) in FOLDERS {
            census.files(&node.host(folder), folder, depth);
        }
        Ok(census)
    }

    fn files(&mut self, folder: &Path, name: &str, depth: usize) {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            if file.starts_with("ctrd-checkpoint") {
                // containerd's own, of every `ctr` restore (containerd#10166).
                continue;
            }
            let path = format!("{name}/{file}");
            if depth > 1 {
                self.files(&entry.path(), &path, depth - 1);
            }
            // The Go shim's folder of a namespace stays; what is in it does not.
            if name != GO_SHIM {
                self.count(format!("file {path}"));
            }
        }
    }

    fn count(&mut self, what: String) {
        *self.0.entry(what).or_insert(0) += 1;
    }

    /// What is there now and was not before, a line each.
    pub fn more_than(&self, before: &Self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|(what, now)| {
                let then = before.0.get(what).copied().unwrap_or(0);
                (*now > then).then(|| format!("{what} (before {then}, now {now})"))
            })
            .collect()
    }
}

/// What is left behind on the node since `before`; waits a little for what is just going.
///
/// # Errors
/// When the node cannot be looked at.
pub async fn left_behind(node: &Node, before: &Census) -> anyhow::Result<Vec<String>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = Census::take(node).await?.more_than(before);
        if left.is_empty() || Instant::now() > end {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
