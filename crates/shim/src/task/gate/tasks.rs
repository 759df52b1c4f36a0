//! What the kernel says of the tasks of a tree: `/proc`, read and parsed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// Names of the namespaces in `/proc/PID/ns` that are looked at, in [`Task::namespaces`]' order.
pub(super) const NAMESPACES: [&str; 7] = ["mnt", "net", "ipc", "uts", "pid", "user", "cgroup"];

/// One thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// Its process, in our pid namespace.
    pub(super) pid: u32,
    /// How errors name it: its number in the container, and what it is called.
    pub(super) name: String,
    pub(super) status: Status,
    /// The namespaces' inode numbers.
    pub(super) namespaces: [u64; NAMESPACES.len()],
    pub(super) cgroups: Vec<Membership>,
    /// The label of the security module, if there is one.
    pub(super) label: Option<String>,
    /// The capabilities that its program's file gives to whoever executes it.
    pub(super) file_capabilities: CapabilitySet,
}

/// A line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    /// Its controllers; empty for cgroup v2.
    pub(super) hierarchy: String,
    pub(super) path: PathBuf,
}

/// What is read of `/proc/PID/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) name: String,
    /// Its number in its own pid namespace.
    pub(super) inner_id: u32,
    /// Ended, and not waited for: nothing of it can run again.
    pub(super) dead: bool,
    /// Real, effective, saved and file system's.
    pub(super) uids: [u32; 4],
    pub(super) gids: [u32; 4],
    pub(super) groups: BTreeSet<u32>,
    pub(super) capabilities: Capabilities,
    pub(super) no_new_privs: bool,
    /// 0: none, 1: strict, 2: filters.
    pub(super) seccomp: u32,
}

/// The five sets of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) inheritable: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) bounding: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

impl Status {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let set = |name| {
            u64::from_str_radix(field(name)?, 16)
                .ok()
                .map(CapabilitySet::from_bits_retain)
        };
        Some(Self {
            name: field("Name")?.to_owned(),
            inner_id: field("NSpid")?
                .split_whitespace()
                .next_back()?
                .parse()
                .ok()?,
            dead: field("State")?.starts_with(['Z', 'X']),
            uids: numbers(field("Uid")?)?.try_into().ok()?,
            gids: numbers(field("Gid")?)?.try_into().ok()?,
            groups: numbers(field("Groups")?)?.into_iter().collect(),
            capabilities: Capabilities {
                inheritable: set("CapInh")?,
                permitted: set("CapPrm")?,
                effective: set("CapEff")?,
                bounding: set("CapBnd")?,
                ambient: set("CapAmb")?,
            },
            no_new_privs: field("NoNewPrivs")? == "1",
            seccomp: field("Seccomp")?.parse().ok()?,
        })
    }
}

fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split_whitespace().map(|n| n.parse().ok()).collect()
}

/// Every living thread of `root` and its descendants, and of the processes `others`; `root`'s
/// own first.
///
/// # Errors
///
/// When something of a living one cannot be read.
pub(super) fn read_tree(root: u32, others: &[u32]) -> io::Result<Vec<Task>> {
    let mut seen = BTreeSet::new();
    let mut queue: Vec<u32> = others.iter().copied().chain([root]).collect();
    let mut tasks = Vec::new();
    while let Some(pid) = queue.pop() {
        if seen.insert(pid) {
            match read_process(pid, &mut tasks) {
                Ok(children) => queue.extend(children),
                // Ended since it was listed.
                Err(e) if is_gone(&e) && !lives(pid) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(tasks)
}

fn lives(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/status")).is_ok_and(|text| {
        Status::parse(&String::from_utf8_lossy(&text)).is_none_or(|status| !status.dead)
    })
}

/// Adds the threads of a process; its children.
fn read_process(pid: u32, tasks: &mut Vec<Task>) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    let dir = PathBuf::from(format!("/proc/{pid}"));
    for thread in fs::read_dir(dir.join("task"))? {
        let thread = thread?.path();
        let list = read(&thread.join("children"))?;
        children.extend(
            list.split_whitespace()
                .filter_map(|n| n.parse::<u32>().ok()),
        );
        let path = thread.join("status");
        let status = Status::parse(&read(&path)?).ok_or_else(|| {
            io::Error::other(format!("{} has not what it should", path.display()))
        })?;
        if !status.dead {
            tasks.push(read_task(pid, &thread, status)?);
        }
    }
    Ok(children)
}

fn read_task(pid: u32, dir: &Path, status: Status) -> io::Result<Task> {
    let number = dir.file_name().and_then(|n| n.to_str());
    let kind = if number == Some(pid.to_string().as_str()) {
        "process"
    } else {
        "thread"
    };
    Ok(Task {
        pid,
        name: format!(
            "{kind} {} ({})",
            status.inner_id,
            status.name.escape_debug()
        ),
        status,
        namespaces: read_namespaces(dir)?,
        cgroups: read_cgroups(dir)?,
        label: read_label(dir)?,
        file_capabilities: read_file_capabilities(&dir.join("exe"))?,
    })
}

/// The namespaces of the task of which `dir` is the folder in `/proc`.
pub(super) fn read_namespaces(dir: &Path) -> io::Result<[u64; NAMESPACES.len()]> {
    let mut found = [0; NAMESPACES.len()];
    for (inode, name) in found.iter_mut().zip(NAMESPACES) {
        let path = dir.join("ns").join(name);
        match fs::read_link(&path) {
            Ok(link) => {
                *inode = namespace_number(&link)
                    .ok_or_else(|| io::Error::other(format!("{} is {link:?}", path.display())))?;
            }
            // A kernel without this kind: all tasks are alike.
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir.exists() => {}
            Err(e) => return Err(named(&path, &e)),
        }
    }
    Ok(found)
}

/// The number in `net:[4026531840]`.
fn namespace_number(link: &Path) -> Option<u64> {
    let (_, number) = link.to_str()?.split_once(":[")?;
    number.strip_suffix(']')?.parse().ok()
}

/// The cgroups of the task of which `dir` is the folder in `/proc`.
pub(super) fn read_cgroups(dir: &Path) -> io::Result<Vec<Membership>> {
    Ok(parse_cgroups(&read(&dir.join("cgroup"))?))
}

fn parse_cgroups(text: &str) -> Vec<Membership> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some(Membership {
                hierarchy: parts.next()?.to_owned(),
                path: parts.next()?.into(),
            })
        })
        .collect()
}

fn read_label(dir: &Path) -> io::Result<Option<String>> {
    for name in ["attr/apparmor/current", "attr/current"] {
        match fs::read_to_string(dir.join(name)) {
            Ok(text) => {
                let label = text.trim_end_matches(['\0', '\n']);
                return Ok((!label.is_empty()).then(|| label.to_owned()));
            }
            Err(e) if no_label(&e) => {}
            Err(e) => return Err(named(&dir.join(name), &e)),
        }
    }
    Ok(None)
}

/// No such security module, or one that has no labels.
fn no_label(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::INVAL | Errno::OPNOTSUPP)
    )
}

fn read_file_capabilities(exe: &Path) -> io::Result<CapabilitySet> {
    let mut bytes = [0; 32];
    match rustix::fs::getxattr(exe, "security.capability", &mut bytes) {
        Ok(length) => Ok(file_capabilities(bytes.get(..length).unwrap_or_default())),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT) => Ok(CapabilitySet::empty()),
        Err(e) => Err(named(exe, &e.into())),
    }
}

/// The permitted set of a `vfs_cap_data`: a word of version, then words of permitted and
/// inheritable bits by turns.
fn file_capabilities(bytes: &[u8]) -> CapabilitySet {
    let word = |n: usize| {
        let word = bytes.get(4 * n..4 * n + 4)?;
        Some(u64::from(u32::from_le_bytes(word.try_into().ok()?)))
    };
    let bits = word(1).unwrap_or(0) | word(3).unwrap_or(0) << 32;
    CapabilitySet::from_bits_retain(bits)
}

/// The id maps of a user namespace as numbers: inside, outside, how many.
pub(super) fn read_id_map(pid: u32, file: &str) -> io::Result<Vec<[u32; 3]>> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    let lines: Option<Vec<_>> = read(&path)?
        .lines()
        .map(|line| numbers(line)?.try_into().ok())
        .collect();
    lines.ok_or_else(|| io::Error::other(format!("{} has not what it should", path.display())))
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path).map_err(|e| named(path, &e))?;
    // A process may call itself anything.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The same error, with the file that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    if is_gone(error) {
        return io::ErrorKind::NotFound.into();
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_kernels_word_is_understood() {
        let status = Status::parse(
            "Name:\tsh\\n\nUmask:\t0022\nState:\tt (tracing stop)\nNSpid:\t4711\t7\nUid:\t0\t1\t2\t3\n\
             Gid:\t4\t5\t6\t7\nGroups:\t10 20 \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000020\n\
             CapEff:\t0000000000000020\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n\
             NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n",
        )
        .unwrap();
        assert_eq!(status.inner_id, 7);
        assert!(!status.dead && status.no_new_privs);
        assert_eq!(status.uids, [0, 1, 2, 3]);
        assert_eq!(status.groups, BTreeSet::from([10, 20]));
        assert_eq!(status.capabilities.permitted, CapabilitySet::KILL);
        assert!(
            status
                .capabilities
                .bounding
                .contains(CapabilitySet::SYS_ADMIN)
        );
        assert_eq!(Status::parse("Name:\tsh\n"), None);
    }

    #[test]
    fn links_maps_and_cgroups_are_understood() {
        assert_eq!(namespace_number(Path::new("net:[42]")), Some(42));
        assert_eq!(namespace_number(Path::new("net:42")), None);
        let cgroups = parse_cgroups("9:name=systemd:/a:b\n0::/c\n");
        assert_eq!(cgroups[0].hierarchy, "name=systemd");
        assert_eq!(cgroups[0].path, Path::new("/a:b"));
        assert_eq!(cgroups[1].hierarchy, "");
        // Version 2: NET_BIND_SERVICE, with its inheritable words empty.
        let mut data = vec![1, 0, 0, 2, 0, 4, 0, 0];
        data.resize(20, 0);
        assert_eq!(file_capabilities(&data), CapabilitySet::NET_BIND_SERVICE);
        assert_eq!(file_capabilities(&[1]), CapabilitySet::empty());
    }

    #[test]
    fn a_tree_is_read_with_its_children_and_without_the_dead() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 100 & wait"])
            .spawn()
            .unwrap();
        let mut names: Vec<String> = Vec::new();
        for _ in 0..500 {
            names = read_tree(shell.id(), &[])
                .unwrap()
                .into_iter()
                .map(|t| t.status.name)
                .collect();
            if names == ["sh", "sleep"] {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(names, ["sh", "sleep"]);
        let own = read_tree(std::process::id(), &[]).unwrap();
        let ours = read_namespaces(Path::new("/proc/self")).unwrap();
        assert!(own.iter().all(|t| t.namespaces == ours), "{own:?}");
        for task in read_tree(shell.id(), &[]).unwrap() {
            let pid = rustix::process::Pid::from_raw(task.pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        // Not waited for yet: dead.
        while !read_tree(shell.id(), &[]).unwrap().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        shell.wait().unwrap();
        assert!(read_tree(shell.id(), &[]).unwrap().is_empty());
    }
}
