//! What `/proc` tells of a container's processes.

use std::fs;
use std::path::PathBuf;

/// A process and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// Its parent.
    pub(crate) parent: u32,
    /// Memory that a checkpoint has to take: what is of no file.
    pub(crate) memory_bytes: u64,
}

/// What the kernel tells of a process; nothing once it is gone.
pub(crate) fn status(pid: u32) -> Option<Status> {
    parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse(text: &str) -> Option<Status> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let kib = |name| field(name).unwrap_or_default();
    Some(Status {
        parent: field("PPid:").and_then(|n| u32::try_from(n).ok())?,
        memory_bytes: (kib("RssAnon:") + kib("RssShmem:") + kib("VmSwap:")) * 1024,
    })
}

/// The shim of a container: the parent of its first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shim {
    pub(crate) pid: u32,
    /// The program, as it was started.
    pub(crate) program: PathBuf,
}

impl Shim {
    /// That of the container whose first process is this.
    pub(crate) fn of(first: u32) -> Option<Self> {
        let pid = status(first)?.parent;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let program = line.split(|byte| *byte == 0).next()?;
        Some(Self {
            pid,
            program: String::from_utf8_lossy(program).into_owned().into(),
        })
    }

    /// Whether it is ours.
    pub(crate) fn is_cryo(&self) -> bool {
        self.program.file_name().is_some_and(|name| name == NAME)
    }
}

/// The file name of our shim.
pub(crate) const NAME: &str = "containerd-shim-cryo-v2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ourselves() {
        let own = status(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.memory_bytes > 0);
        let shim = Shim::of(std::process::id()).unwrap();
        assert!(!shim.is_cryo(), "{shim:?}");
        assert_eq!(status(u32::MAX), None);
    }

    #[test]
    fn kernel_threads_have_no_memory() {
        let text = "Name:\tkthreadd\nPPid:\t0\n";
        assert_eq!(parse(text).unwrap().memory_bytes, 0);
        assert_eq!(parse("Name:\tx\n"), None);
    }
}
