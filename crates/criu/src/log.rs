//! From CRIU's log to the cause of a failure. Pure.
//!
//! CRIU's own error message is the first error line of a run, and that is often a harmless
//! one; its error number is mostly 0. So the log is read: its error lines, less those that are
//! harmless and those that only repeat that something failed, and the first that says
//! something known decides the [`Cause`].

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

/// What a log says about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kind of failure.
    pub cause: Cause,
    /// CRIU's words for it, if it left any.
    pub line: Option<String>,
    /// All error lines that say something, in order; bounded.
    pub lines: Vec<String>,
}

impl Diagnosis {
    /// The same of a CRIU that was ended by a signal. What it wrote before need not be the
    /// reason, so that is told beside the cause and does not decide it.
    #[must_use]
    pub fn of_killed(self) -> Self {
        Self {
            cause: Cause::Killed,
            ..self
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.what())?;
        if let Some(line) = &self.line {
            write!(f, " ({line})")?;
        }
        write!(f, "; {}", self.cause.remedy())
    }
}

/// The most lines and bytes of a line that are kept.
const MAX_LINES: usize = 32;
const MAX_LINE_LEN: usize = 400;

/// Reads a log and decides.
#[must_use]
pub fn diagnose(log: &str) -> Diagnosis {
    let mut lines = Vec::new();
    let mut known: Option<(Cause, String)> = None;
    let mut follows: Option<(Cause, String)> = None;
    for raw in log.lines() {
        let Some(message) = error_message(raw) else {
            continue;
        };
        if BENIGN.iter().any(|b| message.contains(b)) {
            continue;
        }
        if lines.len() < MAX_LINES {
            lines.push(shorten(message));
        }
        let Some((cause, secondary)) = classify(message) else {
            continue;
        };
        let slot = if secondary { &mut follows } else { &mut known };
        if slot.is_none() {
            *slot = Some((cause, shorten(message)));
        }
    }
    let informative = |m: &&String| !GENERIC.iter().any(|g| m.starts_with(g));
    let (cause, line) = match known.or(follows) {
        Some((cause, line)) => (cause, Some(line)),
        None => {
            let line = lines.iter().find(informative).or(lines.first());
            (Cause::Unknown, line.cloned())
        }
    };
    Diagnosis { cause, line, lines }
}

/// The message of an error line; `None` for any other line.
///
/// A line is `(00.004711)     12: Error (criu/file.c:123): message`, where the process number
/// is not always there.
#[must_use]
pub fn error_message(line: &str) -> Option<&str> {
    let (head, rest) = line.split_once("Error (")?;
    // Not in the middle of another line's text.
    if head
        .chars()
        .any(|c| !(c.is_ascii_digit() || "(). :".contains(c)))
    {
        return None;
    }
    let (_, message) = rest.split_once("): ")?;
    let message = message.trim();
    (!message.is_empty()).then_some(message)
}

fn shorten(message: &str) -> String {
    let clean: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if clean.len() <= MAX_LINE_LEN {
        return clean;
    }
    let mut end = MAX_LINE_LEN;
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", clean.get(..end).unwrap_or_default())
}

/// The cause that a message names, and whether a message before or after it may name a
/// better one.
fn classify(message: &str) -> Option<(Cause, bool)> {
    let entry = TABLE
        .iter()
        .find(|(parts, ..)| parts.iter().all(|p| message.contains(p)));
    entry.map(|&(_, cause, secondary)| (cause, secondary))
}

/// Errors of every run, whatever its outcome.
const BENIGN: &[&str] = &[
    "RLIMIT_NOFILE",
    "Can't setup RLIMIT",
    // CRIU's probing of what the kernel has.
    "kerndat: ",
    "Couldn't get the number of",
    // Its helper for cgroups, when the restore that it was for ends.
    "cgroupd: recv req error",
];

/// Lines that only say that something before failed.
const GENERIC: &[&str] = &[
    "Dumping FAILED",
    "Restoring FAILED",
    "Pre-dumping FAILED",
    "Dump files (",
    "Killing processes because of failure",
    "One of more action scripts failed",
    "cg-prop",
];

const FIRST: bool = false;
const SECOND: bool = true;

/// All parts must be in the message; the first entry that fits decides.
#[rustfmt::skip]
const TABLE: &[(&[&str], Cause, bool)] = &[
    (&["No space left on device"], Cause::DiskFull, FIRST),
    (&["Disk quota exceeded"], Cause::DiskFull, FIRST),
    (&["RPC client reported script error"], Cause::Refused, FIRST),

    (&["Connected TCP socket"], Cause::TcpEstablished, FIRST),
    (&["Need to set the --tcp-close"], Cause::TcpClosed, FIRST),
    (&["In-flight connection"], Cause::TcpInFlight, FIRST),
    (&["skip-in-flight"], Cause::TcpInFlight, FIRST),
    (&["Some file locks are hold"], Cause::FileLocks, FIRST),
    (&["Can't dump ghost file", "increase limit"], Cause::GhostTooBig, FIRST),
    (&["Can't create link remap"], Cause::LinkRemap, FIRST),
    (&["link-remap"], Cause::LinkRemap, FIRST),
    (&["External socket is used"], Cause::ExternalUnix, FIRST),
    (&["Can't dump half of stream unix connection"], Cause::ExternalUnix, FIRST),
    (&["unix: Can't connect"], Cause::ExternalUnix, FIRST),
    (&["FATAL: Peer", "unresolved"], Cause::ExternalUnix, FIRST),
    (&["Unix socket", "without peer"], Cause::UnixElsewhere, FIRST),
    (&["Unsupported link"], Cause::NetworkDevice, FIRST),
    (&["isn't empty"], Cause::NotEmpty, FIRST),
    (&["No mapping for", "mountpoint"], Cause::MissingMount, FIRST),
    (&["doesn't have a proper root mount"], Cause::MissingMount, FIRST),
    (&["unreachable sharing"], Cause::MissingMount, FIRST),
    (&["Can't lookup mount=", "path=/dev/pts/"], Cause::ShellJob, FIRST),
    (&["Can't lookup mount="], Cause::OutsideFile, FIRST),
    (&["Can't get rlimit"], Cause::OtherUser, FIRST),
    (&["do not match expected"], Cause::PidTaken, FIRST),
    (&["Can't fork for", "File exists"], Cause::PidTaken, FIRST),
    (&["File exists", "pid"], Cause::PidTaken, SECOND),
    (&["has bad size"], Cause::ChangedFile, FIRST),
    (&["has bad mode"], Cause::ChangedFile, FIRST),
    (&["has bad build-ID"], Cause::ChangedFile, FIRST),
    (&["Can't open file", "No such file or directory"], Cause::MissingFile, FIRST),
    (&["Can't open file", "on restore"], Cause::MissingFile, SECOND),

    (&["io_uring"], Cause::IoUring, FIRST),
    (&["Can't retrieve FDs from socket"], Cause::UnsupportedFile, SECOND),
    (&["Message reply from daemon is trimmed"], Cause::UnsupportedFile, SECOND),
    (&["Can't dump file", "of that type", "(chr "], Cause::Device, FIRST),
    (&["Can't dump file", "of that type", "(blk "], Cause::Device, FIRST),
    (&["Can't dump file", "of that type"], Cause::UnsupportedFile, FIRST),
    (&["Unknown shit"], Cause::UnsupportedFile, FIRST),
    (&["secretmem"], Cause::UnsupportedFile, FIRST),
    (&["pidfd pid", "not a part of process tree"], Cause::UnsupportedFile, FIRST),
    (&["Unknown socket collected"], Cause::UnsupportedSocket, FIRST),
    (&["Unsupported proto"], Cause::UnsupportedSocket, FIRST),
    (&["Can't dump corked dgram socket"], Cause::UnsupportedSocket, FIRST),
    (&["The socket has data to read"], Cause::UnsupportedSocket, FIRST),
    (&["Net namespace is required"], Cause::NestedNamespace, FIRST),
    (&["Can't dump nested"], Cause::NestedNamespace, FIRST),
    (&["Can't restore sub-task in NS"], Cause::NestedNamespace, FIRST),
    (&["doesn't live in IPC ns"], Cause::SharedIpc, FIRST),
    (&["Unseizable non-zombie"], Cause::Traced, FIRST),
    (&["Unable to freeze cgroup"], Cause::FreezeTimeout, FIRST),
    (&["Timeout reached"], Cause::FreezeTimeout, FIRST),
    (&["Locking network failed"], Cause::NetworkLock, FIRST),
    (&["Locking connection failed"], Cause::NetworkLock, FIRST),
    (&["iptables-restore"], Cause::NetworkLock, SECOND),
    (&["Not supported images version"], Cause::NewerImages, FIRST),
    (&["cpu: FPU feature required by image"], Cause::CpuMismatch, FIRST),
    (&["cpu: CPU xfeatures has unsupported"], Cause::CpuMismatch, FIRST),
    (&["CPU", "do not match run time"], Cause::CpuMismatch, FIRST),
    (&["CPU xsave"], Cause::CpuMismatch, FIRST),
    (&["CPU", "features are not"], Cause::CpuMismatch, FIRST),
    (&["shell-job"], Cause::ShellJob, FIRST),
    (&["tty: No task found with sid"], Cause::LostTerminal, FIRST),
    (&["A session leader of"], Cause::OutsideSession, FIRST),
    (&["orphan-pts-master"], Cause::OrphanTerminal, FIRST),
    (&["Found dangling tty"], Cause::OrphanTerminal, FIRST),
    (&["Tracking memory is not available"], Cause::NoMemTrack, FIRST),
    (&["page-xfer:"], Cause::PageServer, SECOND),
    (&["page server"], Cause::PageServer, SECOND),
    (&["pparmor"], Cause::SecurityLabel, SECOND),
    (&["selinux"], Cause::SecurityLabel, SECOND),
    (&["lsm"], Cause::SecurityLabel, SECOND),
    (&["cg: "], Cause::Cgroup, SECOND),
    (&["agic doesn't match"], Cause::BadImage, FIRST),
    (&["Unable to open", ".img"], Cause::BadImage, FIRST),
    (&["Can't open", ".img"], Cause::BadImage, FIRST),
    (&["No ", ".img image"], Cause::BadImage, FIRST),
    (&["Image file corrupted"], Cause::BadImage, FIRST),
    (&["Corrupted"], Cause::BadImage, SECOND),
    (&["Unexpected EOF"], Cause::BadImage, FIRST),
    (&["Failed to unpack"], Cause::BadImage, FIRST),
    (&["Failed unpacking"], Cause::BadImage, FIRST),
    (&["Unable to read img"], Cause::BadImage, FIRST),
    (&["Can't open images directory"], Cause::BadImage, FIRST),
    (&["No such process"], Cause::NoProcess, SECOND),
    (&["Operation not permitted"], Cause::NotPermitted, SECOND),
    (&["Permission denied"], Cause::NotPermitted, SECOND),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> String {
        format!("(00.012345)     12: Error (criu/some-file.c:123): {message}\n")
    }

    #[test]
    fn known_lines_have_their_cause() {
        let cases: &[(&str, Cause)] = &[
            (
                "inet: Connected TCP socket, consider using --tcp-established option.",
                Cause::TcpEstablished,
            ),
            (
                "inet: In-flight connection (r) for 1f, use --skip-in-flight",
                Cause::TcpInFlight,
            ),
            (
                "Some file locks are hold by dumping tasks! You can try --file-locks to dump them.",
                Cause::FileLocks,
            ),
            (
                "Can't dump ghost file /tmp/x of 2097152 size, increase limit",
                Cause::GhostTooBig,
            ),
            (
                "Can't create link remap for /tmp/x. Use link-remap option.",
                Cause::LinkRemap,
            ),
            (
                "unix: External socket is used. Consider using --ext-unix-sk option.",
                Cause::ExternalUnix,
            ),
            (
                "unix: FATAL: Peer 123 unresolved for 124",
                Cause::ExternalUnix,
            ),
            (
                "unix: Can't connect 4656919 socket: No such file or directory",
                Cause::ExternalUnix,
            ),
            (
                "unix: Unix socket 4535946 without peer 4534188",
                Cause::UnixElsewhere,
            ),
            (
                "net: Unsupported link 2 (type 1 kind ifb)",
                Cause::NetworkDevice,
            ),
            ("mqueue isn't empty", Cause::NotEmpty),
            (
                "mnt: No mapping for 360:(null) mountpoint",
                Cause::MissingMount,
            ),
            (
                "mnt: 12:./dev/random doesn't have a proper root mount",
                Cause::MissingMount,
            ),
            ("Can't lookup mount=30 for fd=1 path=/x", Cause::OutsideFile),
            ("Need to set the --tcp-close options.", Cause::TcpClosed),
            ("tty: No task found with sid 0", Cause::LostTerminal),
            (
                "Can't lookup mount=140 for fd=4 path=/dev/pts/0",
                Cause::ShellJob,
            ),
            (
                "Can't get rlimit 0: Operation not permitted",
                Cause::OtherUser,
            ),
            ("Pid 30 do not match expected 12", Cause::PidTaken),
            ("Can't fork for 12: File exists", Cause::PidTaken),
            (
                "File app/data has bad size 3 (expect 4)",
                Cause::ChangedFile,
            ),
            (
                "Can't open file app/data on restore: No such file or directory",
                Cause::MissingFile,
            ),
            (
                "Can't write 4096 bytes: No space left on device",
                Cause::DiskFull,
            ),
            ("Unknown shit 600 (anon_inode:[io_uring])", Cause::IoUring),
            ("Can't retrieve FDs from socket", Cause::UnsupportedFile),
            (
                "Can't dump file 4 of that type [600] (anon anon_inode:[userfaultfd])",
                Cause::UnsupportedFile,
            ),
            (
                "Can't dump file 4 of that type [20666] (chr 10:229)",
                Cause::Device,
            ),
            (
                "Unknown shit 100600 (/secretmem (deleted))",
                Cause::UnsupportedFile,
            ),
            (
                "pidfd: pidfd pid 12 is not a part of process tree..",
                Cause::UnsupportedFile,
            ),
            (
                "BUG! Unknown socket collected (family 40)",
                Cause::UnsupportedSocket,
            ),
            (
                "inet: Unsupported proto 262 for socket",
                Cause::UnsupportedSocket,
            ),
            (
                "inet: Can't dump corked dgram socket 12",
                Cause::UnsupportedSocket,
            ),
            (
                "netlink: The socket has data to read",
                Cause::UnsupportedSocket,
            ),
            (
                "Can't dump nested pid namespace for 12",
                Cause::NestedNamespace,
            ),
            ("Can't restore sub-task in NS", Cause::NestedNamespace),
            (
                "tun: Net namespace is required to dump tun link",
                Cause::NestedNamespace,
            ),
            (
                "Task 1 with SysVIPC shmem map @7f doesn't live in IPC ns",
                Cause::SharedIpc,
            ),
            (
                "Unseizable non-zombie 12 found, state S, err -1/3",
                Cause::Traced,
            ),
            (
                "Unable to freeze cgroup /sys/fs/cgroup/x (100 x 100lums attempts, timeout: 10s)",
                Cause::FreezeTimeout,
            ),
            (
                "net: Locking network failed using nftables",
                Cause::NetworkLock,
            ),
            (
                "cpu: CPU instruction capabilities do not match run time",
                Cause::CpuMismatch,
            ),
            (
                "Tracking memory is not available. Consider omitting --track-mem option.",
                Cause::NoMemTrack,
            ),
            (
                "image: Head magic doesn't match for core-1.img",
                Cause::BadImage,
            ),
            (
                "Unable to open inventory.img: No such file or directory",
                Cause::BadImage,
            ),
            ("RPC client reported script error", Cause::Refused),
            (
                "A session leader of 633(1) is outside of its pid namespace",
                Cause::OutsideSession,
            ),
            (
                "tty: Found dangling tty with sid 1 pgid 1 (pts) on peer fd 0.",
                Cause::OrphanTerminal,
            ),
            (
                "Message reply from daemon is trimmed (8/56)",
                Cause::UnsupportedFile,
            ),
            (
                "page-xfer: Remote side closed connection",
                Cause::PageServer,
            ),
            (
                "apparmor LSM specified but apparmor not supported by kernel",
                Cause::SecurityLabel,
            ),
            (
                "selinux LSM specified but selinux not supported by kernel",
                Cause::SecurityLabel,
            ),
            (
                "mismatched lsm types and lsm profile specified",
                Cause::SecurityLabel,
            ),
            ("Not supported images version 3", Cause::NewerImages),
            (
                "cpu: FPU feature required by image is not supported on host (fpu:1 fxsr:1 osxsave:1 xsaves:0)",
                Cause::CpuMismatch,
            ),
            (
                "cpu: CPU xsave size mismatch (2696/2440)",
                Cause::CpuMismatch,
            ),
            (
                "Locking connection failed using nftables",
                Cause::NetworkLock,
            ),
            (
                "net: Locking network failed: iptables-restore returned 1. This may be connected to disabled CONFIG_NETFILTER_XT_MARK kernel build config option.",
                Cause::NetworkLock,
            ),
            (
                "cg: Can't mount controller dir .criu.cgyard.x/cpu: Device or resource busy",
                Cause::Cgroup,
            ),
            (
                "Can't open /proc/12/stat on procfs: No such process",
                Cause::NoProcess,
            ),
            (
                "Can't set exe link: Operation not permitted",
                Cause::NotPermitted,
            ),
            ("something quite new", Cause::Unknown),
        ];
        for (_, cause, _) in TABLE {
            let tested = cases.iter().any(|(_, tested)| tested == cause);
            assert!(tested, "no line of {cause:?} is tested");
        }
        for (message, cause) in cases {
            let found = diagnose(&line(message));
            assert_eq!(found.cause, *cause, "{message}");
            assert_eq!(found.line.as_deref(), Some(*message));
            let text = found.to_string();
            assert!(
                text.contains(message) && text.contains(cause.remedy()),
                "{text}"
            );
        }
    }

    #[test]
    fn harmless_lines_are_never_the_cause() {
        let rlimit = line("rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted");
        assert_eq!(diagnose(&rlimit).lines, Vec::<String>::new());
        let log = format!("{rlimit}{}", line("Can't dump nested pid namespace for 7"));
        let found = diagnose(&log);
        assert_eq!(found.cause, Cause::NestedNamespace);
        assert!(!found.to_string().contains("RLIMIT"));
    }

    #[test]
    fn the_cause_is_before_its_consequences() {
        let log = [
            "Unknown shit 600 (anon_inode:[io_uring])",
            "Can't open 12's mapfile link 7f-80: No such file or directory",
            "Dumping FAILED.",
        ]
        .map(line)
        .concat();
        assert_eq!(diagnose(&log).cause, Cause::IoUring);
        // A vague line first, the telling one after it.
        let log = [
            "Something: Operation not permitted",
            "Can't dump ghost file x, increase limit",
        ];
        assert_eq!(diagnose(&log.map(line).concat()).cause, Cause::GhostTooBig);
        // Nothing known: the first line that is not a mere "failed".
        let log = ["Dumping FAILED.", "the real thing"].map(line).concat();
        assert_eq!(diagnose(&log).line.as_deref(), Some("the real thing"));
    }

    #[test]
    fn a_death_by_signal_is_the_cause_whatever_was_written() {
        let log = line("Some file locks are hold by dumping tasks!");
        let found = diagnose(&log).of_killed();
        assert_eq!(found.cause, Cause::Killed);
        let text = found.to_string();
        assert!(
            text.starts_with("criu was killed (Some file locks"),
            "{text}"
        );
        // What its helper says of the death is no reason at all.
        let found = diagnose(&line("cg: cgroupd: recv req error: Invalid argument")).of_killed();
        assert_eq!((found.cause, found.line), (Cause::Killed, None));
    }

    #[test]
    fn only_error_lines_count() {
        for other in [
            "(00.000001) Warn  (criu/kerndat.c:1): No space left on device",
            "(00.000001) text with Error (criu/x.c:1): No space left on device",
            "Error without a place: No space left on device",
            "",
        ] {
            assert_eq!(error_message(other), None, "{other}");
        }
        assert_eq!(error_message("Error (criu/x.c:1): short"), Some("short"));
        let empty = diagnose("");
        assert_eq!((empty.cause, empty.line), (Cause::Unknown, None));
    }

    #[test]
    fn hostile_logs_are_bounded_and_clean() {
        let log = line(&format!("\u{1b}[31m{}", "ä".repeat(5000))).repeat(1000);
        let found = diagnose(&log);
        assert_eq!(found.lines.len(), MAX_LINES);
        let one = &found.lines[0];
        assert!(one.len() <= MAX_LINE_LEN + 3 && !one.contains('\u{1b}'));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(log in "(\\PC|\n){0,400}") {
            let _ = diagnose(&log).to_string();
        }

        #[test]
        fn no_text_shows_errno_zero_or_rlimit(message in "[a-zA-Z ]{1,40}") {
            let text = diagnose(&line(&message)).to_string();
            proptest::prop_assert!(!text.contains("errno 0"));
            proptest::prop_assert!(!text.contains("RLIMIT"));
        }
    }
}
