//! The texts of `/proc`, as far as they matter here. Pure; what is not understood is left out.

/// What `/proc/PID/status` tells of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The command's name, escaped by the kernel.
    pub(super) name: String,
    /// Who traces it; 0 for nobody.
    pub(super) tracer: u32,
    /// Real, effective and saved user.
    pub(super) users: [u32; 3],
    /// Real, effective and saved group.
    pub(super) groups: [u32; 3],
    /// Effective capabilities, a bit each.
    pub(super) capabilities: u64,
    /// Its id in each pid namespace, the reader's first, its own last.
    pub(super) pids: Vec<u32>,
    /// Its session likewise; 0 where the session is not known.
    pub(super) sessions: Vec<u32>,
}

pub(super) fn status(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key {
            "Name" => value.clone_into(&mut status.name),
            "TracerPid" => status.tracer = value.parse().unwrap_or_default(),
            "Uid" => status.users = first_three(value),
            "Gid" => status.groups = first_three(value),
            "CapEff" => status.capabilities = u64::from_str_radix(value, 16).unwrap_or_default(),
            "NSpid" => status.pids = numbers(value).collect(),
            "NSsid" => status.sessions = numbers(value).collect(),
            _ => {}
        }
    }
    status
}

fn numbers(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.split_whitespace().filter_map(|n| n.parse().ok())
}

fn first_three(text: &str) -> [u32; 3] {
    let mut all = numbers(text);
    [(); 3].map(|()| all.next().unwrap_or_default())
}

/// The scheduling policy in `/proc/PID/stat`.
pub(super) fn policy(stat: &str) -> Option<u32> {
    // The name in parentheses may have any character; after it comes field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(41 - 3)?.parse().ok()
}

/// What `/proc/PID/fdinfo/N` tells of an open file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FdInfo {
    /// The mount that it was opened on.
    pub(super) mount: Option<u32>,
    /// A lock or a lease is held through it.
    pub(super) locked: bool,
    /// Of a pidfd: the process in the reader's namespace, 0 outside of it, -1 if it has ended.
    pub(super) pid: Option<i32>,
    /// Of a unix socket: how many descriptors are on their way in its queue.
    pub(super) queued_fds: u32,
    /// Of an eventfd: a read takes one from it. Kernels before 6.5 do not tell.
    pub(super) semaphore: bool,
}

pub(super) fn fdinfo(text: &str) -> FdInfo {
    let mut info = FdInfo::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        match key {
            "mnt_id" => info.mount = value.parse().ok(),
            "lock" => info.locked = true,
            "Pid" => info.pid = value.parse().ok(),
            "eventfd-semaphore" => info.semaphore = value == "1",
            "scm_fds" => info.queued_fds = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    info
}

/// The id of a line's mount in `/proc/PID/mountinfo`.
pub(super) fn mount_id(line: &str) -> Option<u32> {
    line.split(' ').next()?.parse().ok()
}

/// A namespace as its link names it: `net:[4026531840]`.
pub(super) fn namespace(link: &str) -> Option<(&str, u64)> {
    let (kind, rest) = link.split_once(":[")?;
    let inode = rest.strip_suffix(']')?.parse().ok()?;
    kind.bytes()
        .all(|b| b.is_ascii_lowercase() || b == b'_')
        .then_some((kind, inode))
}

/// A line of `/proc/PID/maps` that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping<'a> {
    /// `7f0000000000-7f0000001000`, which is also its name in `map_files`.
    pub(super) range: &'a str,
    /// The kernel writes a newline in it as `\012`.
    pub(super) name: &'a str,
}

pub(super) fn mapping(line: &str) -> Option<Mapping<'_>> {
    // Range, rights, offset, device, inode, then spaces and the name.
    let mut rest = line;
    let mut range = "";
    for field in 0..5 {
        let (word, after) = rest.split_once(' ')?;
        if field == 0 {
            range = word;
        }
        rest = after;
    }
    let name = rest.trim_start_matches(' ');
    (!name.is_empty()).then_some(Mapping { range, name })
}

/// Whether the cgroup that freezes a task is version 1's, by its `/proc/PID/cgroup`.
pub(super) fn v1_freezer(cgroup: &str) -> bool {
    cgroup.lines().any(|line| {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        controllers.split(',').any(|c| c == "freezer")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tpy\\nthon3\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4711\n\
        Ngid:\t0\nPid:\t4711\nPPid:\t4700\nTracerPid:\t12\nUid:\t1000\t1001\t1002\t1003\n\
        Gid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t \nNStgid:\t4711\t12\t1\nNSpid:\t4711\t12\t1\n\
        NSpgid:\t4711\t12\t1\nNSsid:\t4000\t7\t0\nKthread:\t0\nCapInh:\t0000000000000000\n\
        CapEff:\t00000000a80425fb\nSeccomp:\t0\n";

    #[test]
    fn a_status() {
        let status = status(STATUS);
        assert_eq!(status.name, "py\\nthon3");
        assert_eq!(status.tracer, 12);
        assert_eq!(status.users, [1000, 1001, 1002]);
        assert_eq!(status.groups, [5, 6, 7]);
        assert_eq!(status.capabilities, 0xa804_25fb);
        assert_eq!(status.pids, [4711, 12, 1]);
        assert_eq!(status.sessions, [4000, 7, 0]);
        assert_eq!(super::status("nonsense\n: :\n"), Status::default());
    }

    #[test]
    fn a_policy_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 90 0 0 0 0 0 0 0 20 0 1 0 1364 2379776 \
            221 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 6 0 0 0 0 0";
        assert_eq!(policy(stat), Some(6));
        assert_eq!(policy("7 (a) S 1"), None);
        assert_eq!(policy(""), None);
    }

    #[test]
    fn a_descriptor() {
        let text = "pos:\t0\nflags:\t02100002\nmnt_id:\t93\nino:\t17\n\
            lock:\t1: FLOCK  ADVISORY  WRITE 4711 00:2f:17 0 EOF\n";
        assert_eq!(
            fdinfo(text),
            FdInfo {
                mount: Some(93),
                locked: true,
                ..FdInfo::default()
            }
        );
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t9\nPid:\t-1\nNSpid:\t-1\n";
        assert_eq!(fdinfo(text).pid, Some(-1));
        assert_eq!(fdinfo("mnt_id:\t9\nscm_fds: 2\n").queued_fds, 2);
        assert!(fdinfo("eventfd-count:                3\neventfd-semaphore: 1\n").semaphore);
        assert!(!fdinfo("eventfd-count:                3\neventfd-semaphore: 0\n").semaphore);
    }

    #[test]
    fn lines_and_links() {
        assert_eq!(
            mount_id("93 55 0:47 / / rw,relatime - overlay overlay rw"),
            Some(93)
        );
        assert_eq!(namespace("net:[4026532177]"), Some(("net", 4_026_532_177)));
        assert_eq!(
            namespace("pid_for_children:[1]"),
            Some(("pid_for_children", 1))
        );
        for not in [
            "/net:[1]",
            "socket:[x]",
            "net:[1",
            "",
            "anon_inode:[eventfd]",
        ] {
            assert_eq!(namespace(not), None, "{not}");
        }
        let line =
            "7f1c0-7f1d0 rw-s 00000000 00:0e 2057                       anon_inode:[io_uring]";
        let found = mapping(line).unwrap();
        assert_eq!(
            (found.range, found.name),
            ("7f1c0-7f1d0", "anon_inode:[io_uring]")
        );
        let named = mapping("1-2 r-xp 0 08:01 12    /a b  (deleted)").unwrap();
        assert_eq!(named.name, "/a b  (deleted)");
        assert_eq!(mapping("1-2 rw-p 00000000 00:00 0 "), None);
        assert_eq!(mapping("1-2 rw-p 00000000 00:00 0"), None);
    }

    #[test]
    fn who_freezes() {
        assert!(v1_freezer("9:freezer:/a\n1:name=systemd:/a\n0::/a\n"));
        assert!(v1_freezer("9:cpu,freezer:/a:b\n0::/a\n"));
        assert!(!v1_freezer("2:cpu:/freezer\n0::/a\n"));
    }
}
