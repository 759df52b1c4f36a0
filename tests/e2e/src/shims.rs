//! What a pod's shim takes of the machine: the shim, and its helpers, which are its children
//! outside of the containers' pid namespaces.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::lab::{Node, parent, pids};
use crate::patience::PATIENCE;

/// Longer than the shim keeps a thread that has nothing to do.
const REST: Duration = Duration::from_secs(2);

/// Descriptors, threads and memory, summed over the processes that serve one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processes.
    pub processes: usize,
    /// What each open descriptor is, sorted, without the numbers of inodes.
    pub fds: Vec<String>,
    /// Threads.
    pub threads: usize,
    /// Resident memory.
    pub rss_kib: u64,
    /// Resident memory, what is shared counted in shares.
    pub pss_kib: u64,
    /// Resident memory that nobody else has.
    pub private_kib: u64,
}

impl Usage {
    /// Of the shim of this pod.
    ///
    /// # Errors
    /// When there is no such shim, or one of its processes ends meanwhile.
    pub fn of(node: &Node, pod: &str) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for pid in serving(node, pod)? {
            usage.add(pid).with_context(|| format!("process {pid}"))?;
        }
        usage.fds.sort();
        Ok(usage)
    }

    /// Of the shim of this pod, once it has nothing to do: the number of its threads has stayed the
    /// same for some time.
    ///
    /// # Errors
    /// When there is no such shim, or it does not come to rest.
    pub async fn at_rest(node: &Node, pod: &str) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut since = Instant::now();
        let mut usage = Self::of(node, pod);
        while usage.is_err() || since.elapsed() < REST {
            ensure!(Instant::now() < deadline, "{usage:?} changes for ever");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = Self::of(node, pod);
            let same = |was: &Self, is: &Self| was.threads == is.threads;
            // A helper that ended while it was looked at is a change, too.
            if !matches!((&usage, &now), (Ok(was), Ok(is)) if same(was, is)) {
                since = Instant::now();
            }
            usage = now;
        }
        usage
    }

    fn add(&mut self, pid: u32) -> anyhow::Result<()> {
        self.processes += 1;
        self.threads += std::fs::read_dir(format!("/proc/{pid}/task"))?.count();
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            if let Ok(target) = std::fs::read_link(fd.path()) {
                let target = target.to_string_lossy();
                let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
                self.fds.push(kind.to_owned());
            }
        }
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        for line in rollup.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            let kib: u64 = value.parse().unwrap_or(0);
            match key {
                "Rss:" => self.rss_kib += kib,
                "Pss:" => self.pss_kib += kib,
                "Private_Clean:" | "Private_Dirty:" => self.private_kib += kib,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The host's pids of the processes that serve this pod.
fn serving(node: &Node, pod: &str) -> anyhow::Result<Vec<u32>> {
    let mut all = node.shims_of(pod);
    ensure!(!all.is_empty(), "there is no shim of the pod {pod}");
    let shims = all.clone();
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    let own = namespace(node.pid())?;
    for pid in pids() {
        let helper = parent(pid).is_some_and(|p| shims.contains(&p))
            && namespace(pid).is_ok_and(|ns| ns == own);
        if helper && !all.contains(&pid) {
            all.push(pid);
        }
    }
    Ok(all)
}

/// The threads of the shim of this pod and of its zygote, without the programs that it runs for the
/// moment.
///
/// # Errors
/// When there is no such shim.
pub fn threads(node: &Node, pod: &str) -> anyhow::Result<usize> {
    let shims = node.shims_of(pod);
    let own = |pid: &u32| {
        shims.contains(pid)
            || std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"cryo-zygote"))
    };
    // A worker of the zygote may have ended by now.
    let of = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    Ok(serving(node, pod)?.into_iter().filter(own).map(of).sum())
}
