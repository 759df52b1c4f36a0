//! What can be in the way of a checkpoint, and how it is told. Pure.
//!
//! [`Problem::texts`] is the table; `docs/checkpointability.md` has the same rows, which a test
//! here checks.

use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// CRIU refuses the dump.
    CannotDump,
    /// The dump works, but no restore of it does.
    CannotRestore,
    /// Both work, and the restored process is not what it was.
    LosesState,
    /// What is lost is something that its user has to be ready to lose at any time.
    Tolerable,
}

impl Severity {
    /// Its name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CannotDump => "cannot-dump",
            Self::CannotRestore => "cannot-restore",
            Self::LosesState => "loses-state",
            Self::Tolerable => "tolerable",
        }
    }
}

/// A kind of obstacle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Problem {
    /// `io_uring`, open or mapped.
    IoUring,
    /// A `userfaultfd`.
    Userfaultfd,
    /// A performance counter.
    PerfEvent,
    /// A BPF map, program or link.
    Bpf,
    /// The listening end of a seccomp filter.
    SeccompNotify,
    /// A Landlock ruleset that is still open.
    LandlockRuleset,
    /// Another anonymous kernel object.
    KernelObject,
    /// A character or block device.
    Device,
    /// `memfd_secret` memory.
    SecretMemory,
    /// Huge pages, of a `memfd` or mapped, on a node that has none.
    HugePages,
    /// A file on a mount that the container does not have.
    OutsideFile,
    /// A deleted file larger than the limit.
    GhostTooBig,
    /// A deleted file that has another name.
    LinkRemap,
    /// A file lock or lease.
    FileLock,
    /// A datagram socket connected to a unix socket outside, in the same network namespace.
    OutsideDatagram,
    /// Any other connection to a unix socket outside.
    OutsideUnix,
    /// A socket of another network namespace.
    ForeignSocket,
    /// A connected TCP socket.
    TcpConnected,
    /// A TCP connection that is to be accepted yet.
    TcpInFlight,
    /// An MPTCP socket.
    Mptcp,
    /// A socket of a kind that CRIU does not know.
    UnknownSocket,
    /// A UDP socket that holds back what is sent.
    CorkedUdp,
    /// A netlink socket with something to read.
    NetlinkQueue,
    /// A pidfd of a process that is not in the container's tree.
    OutsidePidfd,
    /// A process that is traced.
    Traced,
    /// A namespace of its own inside the container.
    NestedNamespace,
    /// A network namespace of its own inside the container.
    NestedNetns,
    /// An open namespace that no process of the container is in.
    EmptyNamespace,
    /// System V shared memory in the host's IPC namespace.
    SharedIpc,
    /// A tun device in the host's network namespace.
    TunWithoutNetns,
    /// A process of another user, whose limits CRIU may not read.
    OtherUser,
    /// A process whose session was made outside.
    OutsideSession,
    /// The first process shares its session with the outside.
    SharedSession,
    /// A uprobe's mapping.
    Uprobe,
    /// Deadline or extensible scheduling.
    Scheduling,
    /// A thread with open files of its own.
    ThreadFiles,
    /// A thread with a working directory of its own.
    ThreadDirectory,
    /// A thread with a namespace of its own.
    ThreadNamespace,
    /// An eventfd that counts down by one.
    SemaphoreEventfd,
    /// Datagrams that are not read yet.
    UdpQueue,
}

/// A row of the table.
struct Texts {
    name: &'static str,
    severity: Severity,
    reason: &'static str,
    remedy: &'static str,
    option: Option<&'static str>,
}

impl Problem {
    /// All there are.
    pub const ALL: [Self; 40] = [
        Self::IoUring,
        Self::Userfaultfd,
        Self::PerfEvent,
        Self::Bpf,
        Self::SeccompNotify,
        Self::LandlockRuleset,
        Self::KernelObject,
        Self::Device,
        Self::SecretMemory,
        Self::HugePages,
        Self::OutsideFile,
        Self::GhostTooBig,
        Self::LinkRemap,
        Self::FileLock,
        Self::OutsideDatagram,
        Self::OutsideUnix,
        Self::ForeignSocket,
        Self::TcpConnected,
        Self::TcpInFlight,
        Self::Mptcp,
        Self::UnknownSocket,
        Self::CorkedUdp,
        Self::NetlinkQueue,
        Self::OutsidePidfd,
        Self::Traced,
        Self::NestedNamespace,
        Self::NestedNetns,
        Self::EmptyNamespace,
        Self::SharedIpc,
        Self::TunWithoutNetns,
        Self::OtherUser,
        Self::OutsideSession,
        Self::SharedSession,
        Self::Uprobe,
        Self::Scheduling,
        Self::ThreadFiles,
        Self::ThreadDirectory,
        Self::ThreadNamespace,
        Self::SemaphoreEventfd,
        Self::UdpQueue,
    ];

    /// Its name for programs, as `io-uring`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.texts().name
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(self) -> Severity {
        self.texts().severity
    }

    /// What is the matter, as a part of a sentence.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.texts().reason
    }

    /// What to do about it, as a part of a sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        self.texts().remedy
    }

    /// The option of a checkpoint that allows it, if one does.
    #[must_use]
    pub fn option(self) -> Option<&'static str> {
        self.texts().option
    }

    #[expect(clippy::too_many_lines, reason = "a table")]
    fn texts(self) -> Texts {
        use Severity::{CannotDump, CannotRestore, LosesState, Tolerable};
        let row = |name, severity, reason, remedy| Texts {
            name,
            severity,
            reason,
            remedy,
            option: None,
        };
        let optional = |option, name, reason, remedy| Texts {
            option: Some(option),
            ..row(name, CannotDump, reason, remedy)
        };
        let lossy = |name, reason, remedy| Texts {
            option: Some("lossy"),
            ..row(name, LosesState, reason, remedy)
        };
        let thread = |name, reason| {
            lossy(
                name,
                reason,
                "end the thread first, or accept the loss with lossy",
            )
        };
        match self {
            Self::IoUring => row(
                "io-uring",
                CannotDump,
                "io_uring, which CRIU cannot save",
                "turn io_uring off in the program, or deny its system calls by seccomp",
            ),
            Self::Userfaultfd => row(
                "userfaultfd",
                CannotDump,
                "a userfaultfd, which CRIU cannot save",
                "close it first",
            ),
            Self::PerfEvent => row(
                "perf-event",
                CannotDump,
                "a performance counter, which CRIU cannot save",
                "end the profiling first",
            ),
            Self::Bpf => row(
                "bpf",
                CannotDump,
                "a BPF object, which CRIU cannot save",
                "close it first, or pin it and let its loader run outside of the container",
            ),
            Self::SeccompNotify => row(
                "seccomp-notify",
                CannotDump,
                "the listener of a seccomp filter, which CRIU cannot save",
                "end the process that supervises system calls first",
            ),
            Self::LandlockRuleset => row(
                "landlock-ruleset",
                CannotDump,
                "an open Landlock ruleset, which CRIU cannot save, and a sandbox made of it would be lost",
                "run the program without Landlock",
            ),
            Self::KernelObject => row(
                "kernel-object",
                CannotDump,
                "a kernel object that CRIU cannot save",
                "close it first",
            ),
            Self::Device => row(
                "device",
                CannotDump,
                "a device that CRIU cannot save",
                "close the device first",
            ),
            Self::SecretMemory => row(
                "secret-memory",
                CannotDump,
                "memfd_secret memory, which nobody else can read",
                "turn secret memory off in the program",
            ),
            Self::HugePages => row(
                "huge-pages",
                CannotDump,
                "huge pages on a node that has none, which CRIU cannot save",
                "close it first",
            ),
            Self::OutsideFile => row(
                "outside-file",
                CannotDump,
                "a file on a mount that the container does not have",
                "close it first; a POSIX message queue is one as well",
            ),
            Self::GhostTooBig => optional(
                "ghost-limit",
                "ghost-too-big",
                "a deleted file that is larger than what goes into a checkpoint",
                "raise ghost-limit, or close the file first",
            ),
            Self::LinkRemap => optional(
                "link-remap",
                "link-remap",
                "a deleted file that has another name still",
                "allow it with link-remap, or close the file first",
            ),
            Self::FileLock => optional(
                "file-locks",
                "file-lock",
                "a file lock",
                "allow it with file-locks, or release the lock first",
            ),
            Self::OutsideDatagram => optional(
                "ext-unix-sk",
                "outside-datagram",
                "a connection to a unix socket outside of the container",
                "allow it with ext-unix-sk, or close it first",
            ),
            Self::OutsideUnix => row(
                "outside-unix",
                CannotDump,
                "a connection to a unix socket outside of the container, which a restore cannot make again",
                "close it first, and let the program connect again",
            ),
            Self::ForeignSocket => row(
                "foreign-socket",
                CannotDump,
                "a socket of another network namespace",
                "close it first",
            ),
            Self::TcpConnected => optional(
                "tcp-established",
                "tcp-connected",
                "an open TCP connection",
                "allow it with tcp-established, or close the connection first",
            ),
            Self::TcpInFlight => optional(
                "tcp-skip-in-flight",
                "tcp-in-flight",
                "a TCP connection that is not accepted yet",
                "try again, or allow it with tcp-skip-in-flight",
            ),
            Self::Mptcp => row(
                "mptcp",
                CannotDump,
                "an MPTCP socket, which CRIU cannot save",
                "let the program use TCP; for a Go program set GODEBUG=multipathtcp=0",
            ),
            Self::UnknownSocket => row(
                "unknown-socket",
                CannotDump,
                "a socket of a kind that CRIU cannot save",
                "close it first",
            ),
            Self::CorkedUdp => row(
                "corked-udp",
                CannotDump,
                "a corked UDP socket, whose data CRIU cannot save",
                "uncork or close it first",
            ),
            Self::NetlinkQueue => row(
                "netlink-queue",
                CannotDump,
                "a netlink socket with messages that are not read yet, which CRIU cannot save",
                "let the program read them, or close the socket first",
            ),
            Self::OutsidePidfd => row(
                "outside-pidfd",
                CannotDump,
                "a pidfd of a process that is not in the checkpoint",
                "close it first",
            ),
            Self::Traced => row(
                "traced",
                CannotDump,
                "it is traced, so that CRIU cannot stop it",
                "detach the debugger or tracer first",
            ),
            Self::NestedNamespace => row(
                "nested-namespace",
                CannotDump,
                "a namespace of its own inside the container, which CRIU cannot save",
                "end the process first",
            ),
            Self::NestedNetns => row(
                "nested-netns",
                CannotRestore,
                "a network namespace of its own inside the container, which CRIU cannot restore",
                "end the process first",
            ),
            Self::EmptyNamespace => row(
                "empty-namespace",
                CannotDump,
                "an open namespace that no process of the container is in",
                "close it first",
            ),
            Self::SharedIpc => row(
                "shared-ipc",
                CannotDump,
                "System V shared memory in the host's IPC namespace",
                "run the container with an IPC namespace of its own",
            ),
            Self::TunWithoutNetns => row(
                "tun-without-netns",
                CannotDump,
                "a tun device in the host's network namespace",
                "run the container with a network namespace of its own",
            ),
            Self::OtherUser => row(
                "other-user",
                CannotDump,
                "it runs as another user, and CRIU may not read its limits without CAP_SYS_RESOURCE",
                "give the runtime CAP_SYS_RESOURCE",
            ),
            Self::OutsideSession => row(
                "outside-session",
                CannotDump,
                "its session was made outside of the container, as by an exec",
                "end the process first",
            ),
            Self::SharedSession => optional(
                "shell-job",
                "shared-session",
                "its session is shared with the outside",
                "allow it with shell-job, or start the program in a session of its own",
            ),
            Self::Uprobe => row(
                "uprobe",
                CannotDump,
                "a uprobe, which CRIU cannot save",
                "end the tracing first",
            ),
            Self::Scheduling => row(
                "scheduling",
                CannotRestore,
                "deadline or extensible scheduling, which CRIU cannot restore",
                "give it another scheduling policy first",
            ),
            Self::ThreadFiles => thread(
                "thread-files",
                "it has open files of its own, which a restored thread would not",
            ),
            Self::ThreadDirectory => thread(
                "thread-directory",
                "it has a working directory and umask of its own, which a restored thread would not",
            ),
            Self::ThreadNamespace => thread(
                "thread-namespace",
                "it is in another namespace than its process, which a restored thread would not be",
            ),
            Self::SemaphoreEventfd => lossy(
                "semaphore-eventfd",
                "an eventfd that counts down by one, which a restored one would not",
                "close it first, or accept the loss with lossy",
            ),
            Self::UdpQueue => row(
                "udp-queue",
                Tolerable,
                "datagrams that are not read yet: a restored socket does not have them",
                "none is needed: a program has to expect the loss of datagrams",
            ),
        }
    }
}

/// A process as its container and its host know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its id inside the container.
    pub pid: u32,
    /// Its id here.
    pub host_pid: u32,
    /// Its command's name, made printable.
    pub command: String,
}

/// What of the process is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Object {
    /// The process itself.
    Process,
    /// A thread, by its id inside the container.
    Thread(u32),
    /// An open file.
    Fd {
        /// Its number.
        number: u32,
        /// What it is, made printable.
        name: String,
    },
    /// Mapped memory.
    Mapping {
        /// Its addresses, as `7f0000000000-7f0000001000`.
        range: String,
        /// What is mapped, made printable.
        name: String,
    },
    /// A namespace, as `net:[4026532177]`.
    Namespace(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => Ok(()),
            Self::Thread(tid) => write!(f, ", thread {tid}"),
            Self::Fd { number, name } => write!(f, ", fd {number} ({name})"),
            Self::Mapping { range, name } => write!(f, ", mapping {range} ({name})"),
            Self::Namespace(name) => write!(f, ", {name}"),
        }
    }
}

/// One thing in the way. As text: who, what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finding {
    /// What it is.
    pub problem: Problem,
    /// Whose.
    pub process: Process,
    /// Which.
    pub object: Object,
    /// Tells two sockets apart that have a number and a name in common, one after the other.
    pub(super) inode: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} ({}){}: {}; {}",
            self.process.pid,
            self.process.command,
            self.object,
            self.problem.reason(),
            self.problem.remedy()
        )
    }
}

/// Longest text of the container's in a message, in characters.
const MAX_NAME: usize = 120;

/// A text from the container, short and without what steers a terminal or breaks a line.
#[must_use]
pub(super) fn printable(text: &str) -> String {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut safe = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == MAX_NAME {
            safe.push_str("...");
            break;
        }
        if hostile(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_row() {
        let page = include_str!("../../../../docs/checkpointability.md");
        for problem in Problem::ALL {
            let texts = problem.texts();
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| `{}` |", texts.name)))
                .unwrap_or_else(|| panic!("no row for {}", texts.name));
            let option = texts.option.map_or("".to_owned(), |o| format!("`{o}`"));
            for cell in [texts.severity.name(), &option] {
                assert!(row.contains(cell), "{cell:?} is not in {row}");
            }
            if let Some(option) = texts.option {
                assert!(texts.remedy.contains(option), "{}", texts.name);
            }
        }
    }

    #[test]
    fn a_finding_is_a_sentence() {
        let finding = Finding {
            problem: Problem::IoUring,
            process: Process {
                pid: 7,
                host_pid: 4711,
                command: printable("a\nb"),
            },
            object: Object::Fd {
                number: 3,
                name: printable("anon_inode:[io_uring]"),
            },
            inode: 0,
        };
        assert_eq!(
            finding.to_string(),
            "process 7 (a\\nb), fd 3 (anon_inode:[io_uring]): io_uring, which CRIU cannot save; \
             turn io_uring off in the program, or deny its system calls by seccomp"
        );
        let long = printable(&"x\u{1b}".repeat(10_000));
        assert!(long.len() < 2000, "{}", long.len());
        assert!(!long.contains('\u{1b}'));
    }
}
