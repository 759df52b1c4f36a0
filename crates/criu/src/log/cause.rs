//! The causes of a failure, and what is said of each.

use std::fmt;

/// Why CRIU failed, as far as its log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// A TCP connection is open.
    TcpEstablished,
    /// A TCP connection is half open.
    TcpInFlight,
    /// A file lock is held.
    FileLocks,
    /// A deleted file is larger than the limit.
    GhostTooBig,
    /// A deleted file has another name.
    LinkRemap,
    /// The checkpoint has connections without their state.
    TcpClosed,
    /// A unix socket's peer is outside.
    ExternalUnix,
    /// A unix socket's peer is in another network namespace, where CRIU does not see it.
    UnixElsewhere,
    /// A network device of a kind that CRIU cannot save.
    NetworkDevice,
    /// A file system that CRIU saves only when it is empty is not.
    NotEmpty,
    /// An image names a mount that the request does not.
    MissingMount,
    /// A mount or file is not visible inside the container.
    OutsideFile,
    /// Tasks of another user, without the right to read their limits.
    OtherUser,
    /// A process id that the image needs is in use.
    PidTaken,
    /// A file that a process had open is not in the root filesystem.
    MissingFile,
    /// A file that a process had open has changed.
    ChangedFile,
    /// No space left.
    DiskFull,
    /// `io_uring` is in use.
    IoUring,
    /// A device that CRIU cannot save is open or mapped.
    Device,
    /// A kernel object that CRIU cannot save is open or mapped.
    UnsupportedFile,
    /// A kind of socket that CRIU cannot save is open.
    UnsupportedSocket,
    /// A process has a namespace of its own inside the container.
    NestedNamespace,
    /// System V shared memory without an IPC namespace.
    SharedIpc,
    /// Something else already traces a task.
    Traced,
    /// The tasks could not be frozen in time.
    FreezeTimeout,
    /// The network could not be held still.
    NetworkLock,
    /// An image is missing or damaged.
    BadImage,
    /// The images are of a CRIU that is newer than this one.
    NewerImages,
    /// The processor lacks what the tasks use.
    CpuMismatch,
    /// The tree shares a terminal or session with the outside.
    ShellJob,
    /// A process had a terminal of the outside when it was dumped.
    LostTerminal,
    /// A process belongs to a session that was made outside the container.
    OutsideSession,
    /// Memory tracking is not in this kernel.
    NoMemTrack,
    /// A terminal's other end is outside.
    OrphanTerminal,
    /// The page server connection broke.
    PageServer,
    /// A security profile or label could not be set.
    SecurityLabel,
    /// A cgroup of the images could not be handled.
    Cgroup,
    /// The process to dump does not exist.
    NoProcess,
    /// A right is missing.
    NotPermitted,
    /// CRIU itself was ended by a signal, whatever it had written before.
    Killed,
    /// A callback refused.
    Refused,
    /// The request was not understood.
    BadRequest,
    /// The log says why in words that are not known here.
    Unknown,
}

impl Cause {
    /// What is the matter, as a part of a sentence.
    #[must_use]
    pub fn what(self) -> &'static str {
        self.texts().0
    }

    /// What to do about it, as a part of a sentence.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        self.texts().1
    }

    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::TcpEstablished => (
                "a process has an open TCP connection",
                "allow it with tcp-established, or close the connection first",
            ),
            Self::TcpInFlight => (
                "a TCP connection is just being opened",
                "try again, or allow it with tcp-skip-in-flight",
            ),
            Self::TcpClosed => (
                "the checkpoint has TCP connections without their state",
                "restore them as closed, with tcp-close",
            ),
            Self::FileLocks => (
                "a process holds a file lock",
                "allow it with file-locks, or release the lock first",
            ),
            Self::GhostTooBig => (
                "a process has a deleted file open that is larger than the limit",
                "raise ghost-limit, or close the file first",
            ),
            Self::LinkRemap => (
                "a process has a file open whose name is gone but which has another",
                "allow it with link-remap",
            ),
            Self::ExternalUnix => (
                "a process is connected to a unix socket outside the container",
                "allow it with ext-unix-sk if it is a datagram socket, else close it first",
            ),
            Self::UnixElsewhere => (
                "a process is connected to a unix socket of another network namespace",
                "close it first: criu cannot save it",
            ),
            Self::NetworkDevice => (
                "the container's network has a device that criu cannot save",
                "remove the device, or leave the network out with empty-ns",
            ),
            Self::NotEmpty => (
                "a mounted file system has something in it that criu cannot save, as /dev/mqueue with a message queue",
                "remove that first",
            ),
            Self::MissingMount => (
                "the checkpoint has a mount that this container does not",
                "restore with the same mounts as the container had",
            ),
            Self::OutsideFile => (
                "a process uses a file that is not in the container's mounts",
                "close it first, or declare what it is on as external",
            ),
            Self::OtherUser => (
                "a process runs as another user, and criu may not read its limits",
                "give the runtime CAP_SYS_RESOURCE",
            ),
            Self::PidTaken => (
                "a process id that the checkpoint needs is in use",
                "restore into a new pid namespace, or end what uses it",
            ),
            Self::MissingFile => (
                "a file that a process had open does not exist here",
                "restore with the root filesystem and the volumes of the checkpoint",
            ),
            Self::ChangedFile => (
                "a file that a process had open has changed since",
                "restore with the root filesystem and the volumes of the checkpoint",
            ),
            Self::DiskFull => (
                "no space is left where the checkpoint is written",
                "free some, or choose another directory",
            ),
            Self::IoUring => (
                "a process uses io_uring, which criu cannot save",
                "turn io_uring off in the program",
            ),
            Self::Device => (
                "a process uses a device that criu cannot save",
                "close the device first",
            ),
            Self::UnsupportedFile => (
                "a process uses a kernel object that criu cannot save",
                "close it first",
            ),
            Self::UnsupportedSocket => (
                "a process has a socket that criu cannot save",
                "close it first, or let its queue be read",
            ),
            Self::NestedNamespace => (
                "a process has made a namespace of its own inside the container",
                "end that process first",
            ),
            Self::SharedIpc => (
                "a process has System V shared memory but the container has no IPC namespace",
                "run the container with an IPC namespace of its own",
            ),
            Self::Traced => (
                "a process cannot be stopped, perhaps since a debugger traces it",
                "detach the debugger",
            ),
            Self::FreezeTimeout => (
                "the processes could not be frozen in time",
                "try again; a process may hang in the kernel",
            ),
            Self::NetworkLock => (
                "the network could not be held still",
                "install nftables or iptables, or choose another network lock",
            ),
            Self::BadImage => (
                "an image of the checkpoint is missing or damaged",
                "use a complete copy of the checkpoint",
            ),
            Self::NewerImages => (
                "the checkpoint was made by a newer criu",
                "upgrade criu here to at least the version that made it",
            ),
            Self::CpuMismatch => (
                "this processor lacks what the processes use",
                "restore on a processor of the same kind",
            ),
            Self::ShellJob => (
                "the processes share a terminal or session with the outside",
                "allow it with shell-job",
            ),
            Self::LostTerminal => (
                "a process had a terminal of the outside, which is not there any more",
                "close it before the checkpoint: it cannot be restored",
            ),
            Self::OutsideSession => (
                "a process in the container was started from outside it, as by an exec",
                "end that process first",
            ),
            Self::NoMemTrack => (
                "this kernel cannot track memory changes",
                "checkpoint without a pre-dump, or use a kernel with CONFIG_MEM_SOFT_DIRTY",
            ),
            Self::OrphanTerminal => (
                "a process has a terminal whose other end is outside",
                "allow it with orphan-pts-master, or with shell-job if it is your own",
            ),
            Self::PageServer => (
                "the connection that takes the memory pages broke",
                "look for why its other end stopped",
            ),
            Self::SecurityLabel => (
                "the security profile or label of a process could not be set",
                "load the profile on this machine, or restore with another",
            ),
            Self::Cgroup => (
                "criu could not handle a cgroup",
                "let the runtime place the processes (cgroup mode ignore)",
            ),
            Self::NoProcess => (
                "the process to checkpoint does not exist any more",
                "check that the container still runs",
            ),
            Self::NotPermitted => (
                "the kernel does not permit criu what it needs",
                "run the runtime as root with all capabilities",
            ),
            Self::Killed => (
                "criu was killed",
                "try again; if it is killed again, look for what does it, as a lack of memory",
            ),
            Self::Refused => ("the runtime refused to go on", "see its message"),
            Self::BadRequest => (
                "criu did not accept the request",
                "use the criu version that the documentation names",
            ),
            Self::Unknown => ("criu failed for a reason not known here", "see its log"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}
