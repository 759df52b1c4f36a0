//! The `criu` that works for a container: found, held up and killed in the middle of its work.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Container;
use cryo_e2e::lab::Node;
use cryo_e2e::patience::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};

/// How often an operation is begun anew that was over before its criu was met.
pub(crate) const TRIES: usize = 20;

/// What became of an operation that was to be met in the middle.
pub(crate) enum Met<T> {
    /// Its criu got the signal while it worked; this is the operation's answer.
    InTime(T, Pid),
    /// It was over before.
    TooLate(T),
}

/// Sends KILL or STOP to the criu of the operation that `work` does for the container, once it is
/// `far` enough, and waits for the operation's end.
pub(crate) async fn meet<T>(
    signal: Signal,
    container: &Container,
    far: impl Fn() -> bool,
    work: impl Future<Output = T>,
) -> anyhow::Result<Met<T>> {
    let mut work = pin!(work);
    let shims = container.node.shims_of(&container.id);
    ensure!(!shims.is_empty(), "no shim of {}", container.id);
    let sent = |criu: &Pid| match signal {
        Signal::STOP => stop(*criu),
        other => kill_process(*criu, other).is_ok(),
    };
    loop {
        tokio::select! {
            biased;
            answer = &mut work => return Ok(Met::TooLate(answer)),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        if far()
            && let Some(criu) = of_shims(&shims).into_iter().find(sent)
        {
            return Ok(Met::InTime(work.await, criu));
        }
    }
}

/// Holds the criu up that dumps the container into this folder of its node, as soon as it is there.
pub(crate) async fn hold_dump(container: &Container, folder: &str) -> anyhow::Result<Pid> {
    let folder = container.node.host(folder);
    // Before there is something in the folder, it is one that is asked for its version.
    hold(container, |_| {
        std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some())
    })
    .await
}

/// The same with a folder that containerd makes.
pub(crate) async fn hold_dump_somewhere(container: &Container) -> anyhow::Result<Pid> {
    hold(container, |criu| {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", criu.as_raw_nonzero()));
        fds.into_iter().flatten().flatten().any(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|to| to.to_string_lossy().contains("ctrd-checkpoint"))
        })
    })
    .await
}

async fn hold(container: &Container, begun: impl Fn(Pid) -> bool) -> anyhow::Result<Pid> {
    let shims = container.node.shims_of(&container.id);
    let end = Instant::now() + PATIENCE;
    loop {
        let mut criu = of_shims(&shims).into_iter();
        if let Some(criu) = criu.find(|criu| begun(*criu) && stop(*criu)) {
            return Ok(criu);
        }
        ensure!(Instant::now() < end, "criu does not run");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether it stands still: one that had already ended does not.
fn stop(criu: Pid) -> bool {
    let state = || {
        let pid = criu.as_raw_nonzero();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    if kill_process(criu, Signal::STOP).is_err() {
        return false;
    }
    loop {
        match state() {
            Some('T') => return true,
            None | Some('Z' | 'X') => return false,
            Some(_) => std::thread::yield_now(),
        }
    }
}

/// The children of these shims that are criu.
fn of_shims(shims: &[u32]) -> Vec<Pid> {
    let mut found = Vec::new();
    for shim in shims {
        let threads = std::fs::read_dir(format!("/proc/{shim}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children =
                std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| {
                let comm = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
                let criu = comm.trim_end() == "criu";
                criu.then(|| Pid::from_raw(child.parse().ok()?))?
            }));
        }
    }
    found
}

/// Whether memory has been written into the folder of a checkpoint.
pub(crate) fn has_pages(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder);
    entries.into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_string_lossy().starts_with("pages-")
            && entry.metadata().is_ok_and(|file| file.len() > 0)
    })
}

/// Whether a process is in a cgroup of this name.
pub(crate) fn has_processes(node: &Node, name: &str) -> bool {
    let pids = std::fs::read_dir(node.host("/proc"));
    pids.into_iter().flatten().flatten().any(|entry| {
        std::fs::read_to_string(entry.path().join("cgroup"))
            .is_ok_and(|cgroups| cgroups.lines().any(|line| line.ends_with(name)))
    })
}

/// Lets a criu go on that is held up.
pub(crate) fn let_go(criu: Pid) -> anyhow::Result<()> {
    kill_process(criu, Signal::CONT).context("let criu go")
}
