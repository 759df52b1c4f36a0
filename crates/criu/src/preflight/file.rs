//! Whether an open file or a mapping is in the way. Pure: what is known of it is given.

use std::collections::HashSet;

use super::Allowed;
use super::parse::{self, FdInfo};
use super::problem::Problem;

/// CRIU's own limit for deleted files.
const GHOST_LIMIT_BYTES: u32 = 1 << 20;

/// What surrounds a file.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// All mounts of the container's mount namespaces.
    pub(super) mounts: HashSet<u32>,
    /// All processes that will be dumped, by their ids here.
    pub(super) pids: HashSet<u32>,
    /// All namespaces that they or CRIU are in.
    pub(super) namespaces: HashSet<u64>,
    /// The container has no network namespace of its own.
    pub(super) host_net: bool,
    /// The container has no IPC namespace of its own.
    pub(super) host_ipc: bool,
    /// The node has huge pages.
    pub(super) huge_pages: bool,
}

/// What stat(2) tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    pub(super) links: u32,
    /// On disk.
    pub(super) bytes: u64,
    /// Preferred size for input and output: of huge pages, theirs.
    pub(super) block_bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    /// Major and minor number.
    Character(u32, u32),
    Block,
    Other,
}

/// What the link in `/proc/PID/fd` says that a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link<'a> {
    Socket(u64),
    Pipe,
    /// An object without a file system.
    Anonymous(&'a str),
    Pidfd,
    /// A namespace's inode number.
    Namespace(u64),
    Path(&'a str),
}

impl<'a> Link<'a> {
    pub(super) fn parse(link: &'a str) -> Self {
        if let Some(name) = link.strip_prefix("anon_inode:") {
            return match name {
                "[pidfd]" => Self::Pidfd,
                _ => Self::Anonymous(name),
            };
        }
        match parse::namespace(link) {
            Some(("socket", inode)) => Self::Socket(inode),
            Some(("pipe", _)) => Self::Pipe,
            Some(("pidfd", _)) => Self::Pidfd,
            Some((_, inode)) => Self::Namespace(inode),
            None => Self::Path(link),
        }
    }
}

/// Judges an anonymous kernel object by its name.
pub(super) fn anonymous(name: &str) -> Option<Problem> {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    Some(match name {
        "eventfd" | "eventpoll" | "inotify" | "fanotify" | "signalfd" | "timerfd" => return None,
        "io_uring" => Problem::IoUring,
        "userfaultfd" => Problem::Userfaultfd,
        "perf_event" => Problem::PerfEvent,
        "seccomp notify" => Problem::SeccompNotify,
        "landlock-ruleset" => Problem::LandlockRuleset,
        bpf if bpf.starts_with("bpf") || bpf == "btf" => Problem::Bpf,
        _ => Problem::KernelObject,
    })
}

/// Judges an eventfd.
pub(super) fn eventfd(info: FdInfo) -> Option<Problem> {
    info.semaphore.then_some(Problem::SemaphoreEventfd)
}

/// Judges a pidfd.
pub(super) fn pidfd(info: FdInfo, around: &Surroundings) -> Option<Problem> {
    match info.pid {
        // It has ended, which CRIU can make again.
        Some(-1) | None => None,
        Some(pid) if around.pids.contains(&pid.cast_unsigned()) => None,
        Some(_) => Some(Problem::OutsidePidfd),
    }
}

/// Judges a file that has a path.
pub(super) fn path(
    path: &str,
    stat: Stat,
    info: FdInfo,
    around: &Surroundings,
    allowed: &Allowed,
) -> Option<Problem> {
    if info.locked && !allowed.file_locks {
        return Some(Problem::FileLock);
    }
    match stat.kind {
        Kind::Block => return Some(Problem::Device),
        Kind::Character(major, minor) => match device(major, minor) {
            Device::Memory => {}
            Device::Terminal => return None,
            Device::Tun => return around.host_net.then_some(Problem::TunWithoutNetns),
            Device::Unknown => return Some(Problem::Device),
        },
        Kind::Regular | Kind::Other => {}
    }
    if !info.mount.is_none_or(|id| around.mounts.contains(&id)) {
        return match path {
            "/secretmem (deleted)" => Some(Problem::SecretMemory),
            memfd if memfd.starts_with("/memfd:") => {
                // Of pages larger than any ordinary one's.
                let huge = stat.block_bytes >= 1 << 20;
                (huge && !around.huge_pages).then_some(Problem::HugePages)
            }
            _ => Some(Problem::OutsideFile),
        };
    }
    deleted(path, stat, allowed)
}

/// Judges a file that may have been deleted.
fn deleted(path: &str, stat: Stat, allowed: &Allowed) -> Option<Problem> {
    if !path.ends_with(" (deleted)") || stat.kind != Kind::Regular {
        return None;
    }
    if stat.links > 0 {
        return (!allowed.link_remap).then_some(Problem::LinkRemap);
    }
    let limit = allowed.ghost_limit_bytes.unwrap_or(GHOST_LIMIT_BYTES);
    (stat.bytes > u64::from(limit)).then_some(Problem::GhostTooBig)
}

enum Device {
    /// `/dev/null` and its like.
    Memory,
    Terminal,
    Tun,
    Unknown,
}

fn device(major: u32, minor: u32) -> Device {
    match (major, minor) {
        (1, _) | (10, 235) => Device::Memory,
        // Virtual and serial terminals, /dev/tty and /dev/ptmx, both ends of a pty.
        (4 | 5 | 128..=143, _) => Device::Terminal,
        (10, 200) => Device::Tun,
        _ => Device::Unknown,
    }
}

/// What a mapping's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapped {
    Fine,
    Bad(Problem),
    /// It depends on the file.
    Ask,
}

/// Judges a mapping by its name.
pub(super) fn mapped(name: &str, around: &Surroundings) -> Mapped {
    if let Some(object) = name.strip_prefix("anon_inode:") {
        return Mapped::Bad(anonymous(object).unwrap_or(Problem::KernelObject));
    }
    match name {
        "[uprobes]" => Mapped::Bad(Problem::Uprobe),
        "/secretmem (deleted)" => Mapped::Bad(Problem::SecretMemory),
        "/dev/zero (deleted)" | "/[aio] (deleted)" => Mapped::Fine,
        // CRIU knows them by a mapping of its own.
        "/anon_hugepage (deleted)" if around.huge_pages => Mapped::Fine,
        "/anon_hugepage (deleted)" => Mapped::Bad(Problem::HugePages),
        _ if name.starts_with("/SYSV") => {
            if around.host_ipc {
                Mapped::Bad(Problem::SharedIpc)
            } else {
                Mapped::Fine
            }
        }
        _ if name.starts_with("/memfd:") => Mapped::Fine,
        _ if name.starts_with("/dev/") || name.ends_with(" (deleted)") => Mapped::Ask,
        _ => Mapped::Fine,
    }
}

/// Judges a mapped file.
pub(super) fn mapped_file(name: &str, stat: Stat, allowed: &Allowed) -> Option<Problem> {
    match stat.kind {
        Kind::Character(1, 5) | Kind::Other => None,
        Kind::Character(..) | Kind::Block => Some(Problem::Device),
        Kind::Regular => deleted(name, stat, allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Stat = Stat {
        kind: Kind::Regular,
        links: 1,
        bytes: 4096,
        block_bytes: 4096,
    };
    const INSIDE: FdInfo = FdInfo {
        mount: Some(7),
        locked: false,
        pid: None,
        queued_fds: 0,
        semaphore: false,
    };

    fn around() -> Surroundings {
        Surroundings {
            mounts: [7].into(),
            pids: [12].into(),
            ..Surroundings::default()
        }
    }

    fn judge(name: &str, stat: Stat, info: FdInfo) -> Option<Problem> {
        path(name, stat, info, &around(), &Allowed::default())
    }

    #[test]
    fn links() {
        for (link, wanted) in [
            ("socket:[12]", Link::Socket(12)),
            ("pipe:[12]", Link::Pipe),
            ("anon_inode:[eventfd]", Link::Anonymous("[eventfd]")),
            ("anon_inode:inotify", Link::Anonymous("inotify")),
            ("anon_inode:[pidfd]", Link::Pidfd),
            ("pidfd:[7]", Link::Pidfd),
            ("net:[4026531840]", Link::Namespace(4_026_531_840)),
            ("/socket:[12]", Link::Path("/socket:[12]")),
            ("", Link::Path("")),
        ] {
            assert_eq!(Link::parse(link), wanted);
        }
    }

    #[test]
    fn anonymous_objects() {
        for fine in [
            "[eventfd]",
            "[eventpoll]",
            "inotify",
            "[fanotify]",
            "[signalfd]",
            "[timerfd]",
        ] {
            assert_eq!(anonymous(fine), None, "{fine}");
        }
        for (name, problem) in [
            ("[io_uring]", Problem::IoUring),
            ("[userfaultfd]", Problem::Userfaultfd),
            ("[perf_event]", Problem::PerfEvent),
            ("bpf-map", Problem::Bpf),
            ("bpf-prog", Problem::Bpf),
            ("bpf_link", Problem::Bpf),
            ("btf", Problem::Bpf),
            ("seccomp notify", Problem::SeccompNotify),
            ("[landlock-ruleset]", Problem::LandlockRuleset),
            ("[fscontext]", Problem::KernelObject),
            ("kvm-vm", Problem::KernelObject),
        ] {
            assert_eq!(anonymous(name), Some(problem), "{name}");
        }
    }

    #[test]
    fn files_inside_and_outside() {
        assert_eq!(judge("/a", FILE, INSIDE), None);
        let outside = FdInfo {
            mount: Some(8),
            ..INSIDE
        };
        assert_eq!(judge("/a", FILE, outside), Some(Problem::OutsideFile));
        assert_eq!(judge("/memfd:x (deleted)", FILE, outside), None);
        let huge = Stat {
            block_bytes: 2 << 20,
            ..FILE
        };
        assert_eq!(
            judge("/memfd:x (deleted)", huge, outside),
            Some(Problem::HugePages)
        );
        assert_eq!(
            judge("/secretmem (deleted)", FILE, outside),
            Some(Problem::SecretMemory)
        );
        // Not what it is called, but a file of that name.
        assert_eq!(judge("/memfd:x", FILE, INSIDE), None);
        let locked = FdInfo {
            locked: true,
            ..INSIDE
        };
        assert_eq!(judge("/a", FILE, locked), Some(Problem::FileLock));
        let allowed = Allowed {
            file_locks: true,
            ..Allowed::default()
        };
        assert_eq!(path("/a", FILE, locked, &around(), &allowed), None);
    }

    #[test]
    fn deleted_files() {
        let gone = Stat {
            links: 0,
            bytes: 1 << 20,
            ..FILE
        };
        assert_eq!(judge("/a (deleted)", gone, INSIDE), None);
        let big = Stat {
            bytes: (1 << 20) + 512,
            ..gone
        };
        assert_eq!(
            judge("/a (deleted)", big, INSIDE),
            Some(Problem::GhostTooBig)
        );
        assert_eq!(judge("/a", big, INSIDE), None);
        assert_eq!(
            judge("/a (deleted)", FILE, INSIDE),
            Some(Problem::LinkRemap)
        );
        let allowed = Allowed {
            link_remap: true,
            ghost_limit_bytes: Some(2 << 20),
            ..Allowed::default()
        };
        for stat in [big, FILE] {
            assert_eq!(
                path("/a (deleted)", stat, INSIDE, &around(), &allowed),
                None
            );
        }
        let directory = Stat {
            kind: Kind::Other,
            links: 1,
            ..gone
        };
        assert_eq!(judge("/a (deleted)", directory, INSIDE), None);
    }

    #[test]
    fn devices() {
        let of = |major, minor| Stat {
            kind: Kind::Character(major, minor),
            ..FILE
        };
        for fine in [of(1, 3), of(1, 9), of(5, 2), of(136, 0), of(10, 200)] {
            assert_eq!(judge("/dev/x", fine, INSIDE), None, "{fine:?}");
        }
        for bad in [
            of(10, 229),
            of(10, 232),
            of(226, 128),
            Stat {
                kind: Kind::Block,
                ..FILE
            },
        ] {
            assert_eq!(
                judge("/dev/x", bad, INSIDE),
                Some(Problem::Device),
                "{bad:?}"
            );
        }
        let host = Surroundings {
            host_net: true,
            ..around()
        };
        assert_eq!(
            path(
                "/dev/net/tun",
                of(10, 200),
                INSIDE,
                &host,
                &Allowed::default()
            ),
            Some(Problem::TunWithoutNetns)
        );
    }

    #[test]
    fn mappings() {
        let around = around();
        for fine in [
            "[heap]",
            "[anon:x]",
            "/lib/libc.so.6",
            "/dev/zero (deleted)",
            "/[aio] (deleted)",
            "/memfd:x (deleted)",
            "/SYSV00000001 (deleted)",
            "socket:[12]",
        ] {
            assert_eq!(mapped(fine, &around), Mapped::Fine, "{fine}");
        }
        let bad = |name| match mapped(name, &around) {
            Mapped::Bad(problem) => problem,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(bad("anon_inode:[io_uring]"), Problem::IoUring);
        assert_eq!(bad("anon_inode:[perf_event]"), Problem::PerfEvent);
        assert_eq!(bad("anon_inode:kvm-vcpu:0"), Problem::KernelObject);
        assert_eq!(bad("/secretmem (deleted)"), Problem::SecretMemory);
        assert_eq!(bad("[uprobes]"), Problem::Uprobe);
        assert_eq!(bad("/anon_hugepage (deleted)"), Problem::HugePages);
        let huge = Surroundings {
            huge_pages: true,
            ..Surroundings::default()
        };
        assert_eq!(mapped("/anon_hugepage (deleted)", &huge), Mapped::Fine);
        let host = Surroundings {
            host_ipc: true,
            ..Surroundings::default()
        };
        assert_eq!(
            mapped("/SYSV0 (deleted)", &host),
            Mapped::Bad(Problem::SharedIpc)
        );
        for name in ["/dev/fb0", "/lib/libc.so.6 (deleted)"] {
            assert_eq!(mapped(name, &around), Mapped::Ask, "{name}");
        }
        let allowed = Allowed::default();
        let fb = Stat {
            kind: Kind::Character(29, 0),
            ..FILE
        };
        assert_eq!(mapped_file("/dev/fb0", fb, &allowed), Some(Problem::Device));
        let zero = Stat {
            kind: Kind::Character(1, 5),
            ..FILE
        };
        assert_eq!(mapped_file("/dev/zero", zero, &allowed), None);
        assert_eq!(mapped_file("/dev/shm/x", FILE, &allowed), None);
        let upgraded = Stat {
            links: 0,
            bytes: 2 << 20,
            ..FILE
        };
        assert_eq!(
            mapped_file("/lib/libc.so.6 (deleted)", upgraded, &allowed),
            Some(Problem::GhostTooBig)
        );
    }

    #[test]
    fn pidfds() {
        let of = |pid| pidfd(FdInfo { pid, ..INSIDE }, &around());
        assert_eq!(of(Some(12)), None);
        assert_eq!(of(Some(-1)), None);
        assert_eq!(of(Some(13)), Some(Problem::OutsidePidfd));
        assert_eq!(of(Some(0)), Some(Problem::OutsidePidfd));
    }
}
