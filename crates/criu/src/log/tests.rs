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
