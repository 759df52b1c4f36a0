//! One look at a process tree.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use cryo_sys::process::Common;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::diag::{Diag, State, Unix};
use super::file::{self, Link, Mapped, Surroundings};
use super::parse::{self, FdInfo, Status};
use super::problem::{Finding, Object, Problem, Process, Severity, printable};
use super::procfs::Folder;
use super::socket::{self, Neighbours, Protocol};
use super::{Allowed, Connections, MAX_SEEN, Report};

/// All kinds of namespace, and what children will be in.
const NAMESPACES: [&str; 9] = [
    "cgroup",
    "ipc",
    "mnt",
    "net",
    "pid",
    "time",
    "user",
    "uts",
    "time_for_children",
];
/// Those that a thread can leave its process's of.
const THREAD_NAMESPACES: [&str; 4] = ["cgroup", "ipc", "net", "uts"];

const CAP_SYS_RESOURCE: u32 = 24;

/// A process of the tree.
struct Task {
    folder: Folder,
    who: Process,
    status: Status,
    threads: Vec<u32>,
    namespaces: HashMap<&'static str, u64>,
}

impl Task {
    /// `level` is the container's among the pid namespaces; the process's own if that is above.
    fn read(pid: u32, level: usize) -> io::Result<Self> {
        let folder = Folder::of(pid)?;
        let status = parse::status(&folder.text("status")?);
        let known = status.pids.get(level).or(status.pids.last());
        Ok(Self {
            who: Process {
                pid: known.copied().unwrap_or(pid),
                host_pid: pid,
                command: printable(&status.name),
            },
            threads: folder.below("task")?.numbers()?,
            namespaces: namespaces(&folder),
            folder,
            status,
        })
    }
}

/// Who has a socket open, the first that was seen.
struct Holder {
    task: usize,
    fd: u32,
    protocol: Protocol,
}

/// Looks at the tree of `root`, and at what is `beside` it, until `end`.
pub(super) fn look(
    root: Pid,
    beside: &[u32],
    allowed: &Allowed,
    end: Instant,
) -> io::Result<Report> {
    let begin = Instant::now();
    let own = Folder::own()?;
    let own_namespaces = namespaces(&own);
    let own_status = parse::status(&own.text("status")?);
    let mut look = Look {
        allowed,
        end,
        report: Report::default(),
    };
    let tasks = look.tree(root)?;
    let Some(first) = tasks.first() else {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    };
    // Root, but not our right to: everything below would look empty.
    first.folder.below("fd")?;
    look.report.processes = tasks.len();

    let mut around = Surroundings {
        pids: tasks.iter().map(|t| t.who.host_pid).collect(),
        namespaces: own_namespaces.values().copied().collect(),
        host_net: first.namespaces.get("net") == own_namespaces.get("net"),
        host_ipc: first.namespaces.get("ipc") == own_namespaces.get("ipc"),
        huge_pages: has_huge_pages(),
        ..Surroundings::default()
    };
    let mut seen = HashSet::new();
    for task in &tasks {
        around.namespaces.extend(task.namespaces.values());
        if seen.insert(task.namespaces.get("mnt")) {
            look.mounts(task, &mut around);
        }
    }

    let v1_freezer = first
        .folder
        .text("cgroup")
        .is_ok_and(|text| parse::v1_freezer(&text));
    let level = first.status.pids.len().saturating_sub(1);
    let mut sockets = HashMap::new();
    for (number, task) in tasks.iter().enumerate() {
        look.namespaces(task, first);
        look.session(task, number == 0, level);
        look.limits(task, &own_status, &own_namespaces);
        look.stopped(task, v1_freezer);
        look.threads(task);
        look.files(number, task, &around, &mut sockets);
        look.mappings(task, &around);
        if look.is_over() {
            break;
        }
    }
    for &pid in beside.iter().filter(|&pid| !around.pids.contains(pid)) {
        if look.is_over() {
            break;
        }
        // Not dumped; but CRIU holds on to all that are frozen together.
        if let Ok(task) = Task::read(pid, level) {
            look.stopped(&task, v1_freezer);
            if task.status.tracer != 0 {
                look.add(Problem::Traced, &task, Object::Process, 0);
            }
        }
    }
    look.sockets(&tasks, &sockets)?;
    look.report.took = begin.elapsed();
    Ok(look.report)
}

struct Look<'a> {
    allowed: &'a Allowed,
    end: Instant,
    report: Report,
}

impl Look<'_> {
    /// Whether the time is up; then the report says that it is not all.
    fn is_over(&mut self) -> bool {
        let over = Instant::now() >= self.end;
        self.report.incomplete |= over;
        over
    }

    fn add(&mut self, problem: Problem, task: &Task, object: Object, inode: u64) {
        let list = match problem.severity() {
            Severity::Tolerable => &mut self.report.warnings,
            Severity::LosesState if self.allowed.lossy => &mut self.report.warnings,
            _ => &mut self.report.obstacles,
        };
        if list.len() < MAX_SEEN {
            list.push(Finding {
                problem,
                process: task.who.clone(),
                object,
                inode,
            });
        } else {
            self.report.more += 1;
        }
    }

    /// The process and all that descend from it, parents first.
    fn tree(&mut self, root: Pid) -> io::Result<Vec<Task>> {
        let mut tasks = Vec::new();
        // The first is in the container's pid namespace, others may be in ones below.
        let mut level = usize::MAX;
        let mut todo = vec![root.as_raw_nonzero().get().cast_unsigned()];
        while let Some(pid) = todo.pop() {
            if self.is_over() {
                break;
            }
            let task = match Task::read(pid, level) {
                Ok(task) => task,
                Err(error) if tasks.is_empty() => return Err(error),
                // It has ended since.
                Err(_) => continue,
            };
            for thread in &task.threads {
                let children = task.folder.text(&format!("task/{thread}/children"));
                let children = children.unwrap_or_default();
                todo.extend(
                    children
                        .split_whitespace()
                        .filter_map(|n| n.parse::<u32>().ok()),
                );
            }
            level = level.min(task.status.pids.len().saturating_sub(1));
            tasks.push(task);
        }
        Ok(tasks)
    }

    fn mounts(&mut self, task: &Task, around: &mut Surroundings) {
        let mut count = 0u32;
        // A process that has ended has no mounts, and no files either.
        let _ = task.folder.lines("mountinfo", |line| {
            around.mounts.extend(parse::mount_id(line));
            count = count.wrapping_add(1);
            !count.is_multiple_of(256) || !self.is_over()
        });
    }

    fn namespaces(&mut self, task: &Task, first: &Task) {
        for kind in NAMESPACES {
            let Some(&inode) = task.namespaces.get(kind) else {
                continue;
            };
            let (against, name) = match kind {
                "time_for_children" => (&task.namespaces, "time"),
                kind => (&first.namespaces, kind),
            };
            // Each may have its own mounts.
            if kind == "mnt" || against.get(name).is_none_or(|&other| other == inode) {
                continue;
            }
            let problem = match kind {
                "net" => Problem::NestedNetns,
                _ => Problem::NestedNamespace,
            };
            let object = Object::Namespace(format!("{name}:[{inode}]"));
            self.add(problem, task, object, 0);
        }
    }

    fn session(&mut self, task: &Task, first: bool, level: usize) {
        match task.status.sessions.get(level) {
            Some(0) => self.add(Problem::OutsideSession, task, Object::Process, 0),
            Some(&session) if first && session != task.who.pid && !self.allowed.shell_job => {
                self.add(Problem::SharedSession, task, Object::Process, 0);
            }
            _ => {}
        }
    }

    fn stopped(&mut self, task: &Task, v1_freezer: bool) {
        // Frozen or not, this is where it waits.
        let waits_at = task.folder.text("wchan");
        if v1_freezer && waits_at.is_ok_and(|at| at == "do_signal_stop") {
            self.report.stopped = true;
        }
    }

    /// prlimit(2)'s rule: the same user and group throughout, or CAP_SYS_RESOURCE in the other's
    /// user namespace, which root has in all those it made.
    fn limits(&mut self, task: &Task, own: &Status, own_namespaces: &HashMap<&str, u64>) {
        let entitled = own.capabilities & (1 << CAP_SYS_RESOURCE) != 0
            || task.namespaces.get("user") != own_namespaces.get("user");
        let [user, ..] = own.users;
        let [group, ..] = own.groups;
        let same = task.status.users == [user; 3] && task.status.groups == [group; 3];
        // A process that has ended has no namespaces, and no limits either.
        if !entitled && !same && !task.namespaces.is_empty() {
            self.add(Problem::OtherUser, task, Object::Process, 0);
        }
    }

    fn threads(&mut self, task: &Task) {
        for &thread in &task.threads {
            if self.is_over() {
                return;
            }
            let Ok(folder) = task.folder.below(&format!("task/{thread}")) else {
                continue;
            };
            let leader = thread == task.who.host_pid;
            let status = folder.text("status").map(|text| parse::status(&text));
            let status = status.unwrap_or_default();
            let object = || match status.pids.last() {
                Some(&tid) if !leader => Object::Thread(tid),
                _ => Object::Process,
            };
            if status.tracer != 0 {
                self.add(Problem::Traced, task, object(), 0);
            }
            // SCHED_DEADLINE is 6, SCHED_EXT 7.
            let policy = folder.text("stat").ok().and_then(|s| parse::policy(&s));
            if policy.is_some_and(|policy| policy >= 6) {
                self.add(Problem::Scheduling, task, object(), 0);
            }
            if leader {
                continue;
            }
            let differs = |what| {
                let pid = |n: u32| Pid::from_raw(n.cast_signed());
                match (pid(task.who.host_pid), pid(thread)) {
                    // A thread that has just ended differs in nothing.
                    (Some(pid), Some(thread)) => {
                        cryo_sys::process::share(pid, thread, what).is_ok_and(|same| !same)
                    }
                    _ => false,
                }
            };
            if differs(Common::Files) {
                self.add(Problem::ThreadFiles, task, object(), 0);
            }
            if differs(Common::Fs) {
                self.add(Problem::ThreadDirectory, task, object(), 0);
            }
            for kind in THREAD_NAMESPACES {
                let inode = namespace(&folder, kind);
                if inode.is_some() && inode.as_ref() != task.namespaces.get(kind) {
                    self.add(Problem::ThreadNamespace, task, object(), 0);
                    break;
                }
            }
        }
    }

    fn files(
        &mut self,
        number: usize,
        task: &Task,
        around: &Surroundings,
        sockets: &mut HashMap<u64, Holder>,
    ) {
        let (Ok(fds), Ok(infos)) = (task.folder.below("fd"), task.folder.below("fdinfo")) else {
            return;
        };
        for fd in fds.numbers().unwrap_or_default() {
            if self.is_over() {
                return;
            }
            let name = fd.to_string();
            let Ok(link) = fds.link(&name) else {
                // Closed since.
                continue;
            };
            let info = || -> FdInfo {
                infos
                    .text(&name)
                    .map(|text| parse::fdinfo(&text))
                    .unwrap_or_default()
            };
            let problem = match Link::parse(&link) {
                Link::Pipe => None,
                Link::Anonymous("[eventfd]") => file::eventfd(info()),
                Link::Anonymous(object) => file::anonymous(object),
                Link::Pidfd => file::pidfd(info(), around),
                Link::Namespace(inode) => {
                    (!around.namespaces.contains(&inode)).then_some(Problem::EmptyNamespace)
                }
                Link::Path(path) => fds
                    .stat(&name)
                    .ok()
                    .and_then(|stat| file::path(path, stat, info(), around, self.allowed)),
                Link::Socket(inode) => {
                    if sockets.contains_key(&inode) {
                        continue;
                    }
                    let Ok(protocol) = fds.protocol(&name) else {
                        continue;
                    };
                    let holder = Holder {
                        task: number,
                        fd,
                        protocol: Protocol::of(&protocol),
                    };
                    let problem = self.socket(task, &holder);
                    sockets.insert(inode, holder);
                    if let Some(problem) = problem {
                        self.add(problem, task, open_file(fd, &protocol), inode);
                    }
                    continue;
                }
            };
            if let Some(problem) = problem {
                self.add(problem, task, open_file(fd, &link), 0);
            }
        }
    }

    /// What can be told of a socket without the other sockets.
    fn socket(&mut self, task: &Task, holder: &Holder) -> Option<Problem> {
        match holder.protocol {
            Protocol::Mptcp => Some(Problem::Mptcp),
            Protocol::Unknown => Some(Problem::UnknownSocket),
            Protocol::Udp => is_corked(task, holder.fd).then_some(Problem::CorkedUdp),
            _ => None,
        }
    }

    fn mappings(&mut self, task: &Task, around: &Surroundings) {
        let mut last = String::new();
        let mut count = 0u32;
        // Gone, or a zombie: it maps nothing.
        let _ = task.folder.lines("maps", |line| {
            count = count.wrapping_add(1);
            if count.is_multiple_of(256) && self.is_over() {
                return false;
            }
            let Some(mapping) = parse::mapping(line) else {
                return true;
            };
            // The parts of one file follow one another.
            if mapping.name == last {
                return true;
            }
            mapping.name.clone_into(&mut last);
            let problem = match file::mapped(mapping.name, around) {
                Mapped::Fine => None,
                Mapped::Bad(problem) => Some(problem),
                Mapped::Ask => task
                    .folder
                    .stat(&format!("map_files/{}", mapping.range))
                    .ok()
                    .and_then(|stat| file::mapped_file(mapping.name, stat, self.allowed)),
            };
            if let Some(problem) = problem {
                let object = Object::Mapping {
                    range: mapping.range.to_owned(),
                    name: printable(mapping.name),
                };
                self.add(problem, task, object, 0);
            }
            true
        });
    }

    fn sockets(&mut self, tasks: &[Task], ours: &HashMap<u64, Holder>) -> io::Result<()> {
        let Some(first) = tasks.first() else {
            return Ok(());
        };
        let has = |wanted| ours.values().any(|h| h.protocol == wanted);
        // Else the other end of a socket may be one that was not seen.
        let all_seen = !self.report.incomplete;
        let diag = Diag::open(first.folder.open("ns/net")?)?;
        let allowed = self.allowed;
        let mut found = |problem, holder: &Holder, name: String, inode| {
            if let (Some(problem), Some(task)) = (problem, tasks.get(holder.task)) {
                self.add(problem, task, open_file(holder.fd, &name), inode);
            }
        };

        let mut others = HashSet::new();
        if allowed.tcp_established || has(Protocol::Tcp) {
            for socket in diag.tcp()? {
                match ours.get(&socket.inode) {
                    Some(holder) => {
                        let name = socket::inet_name("TCP", &socket);
                        found(socket::tcp(&socket, allowed), holder, name, socket.inode);
                    }
                    None if socket.state == State::Connected => {
                        others.insert(socket.inode);
                    }
                    None => {}
                }
            }
        }
        if has(Protocol::Udp) {
            for socket in diag.udp()? {
                if let Some(holder) = ours.get(&socket.inode) {
                    let problem = (socket.queued > 0).then_some(Problem::UdpQueue);
                    let name = socket::inet_name("UDP", &socket);
                    found(problem, holder, name, socket.inode);
                }
            }
        }
        if has(Protocol::Netlink) {
            for socket in diag.netlink()? {
                if let Some(holder) = ours.get(&socket.inode) {
                    let name = "netlink".to_owned();
                    found(socket::netlink(&socket), holder, name, socket.inode);
                }
            }
        }
        if has(Protocol::Unix) && all_seen {
            let near = by_inode(diag.unix()?);
            let neighbours = Neighbours::new(ours, &near);
            let (mut here, mut queued) = (None, None);
            let mut unix: Vec<_> = ours
                .iter()
                .filter(|(_, h)| h.protocol == Protocol::Unix)
                .collect();
            unix.sort_by_key(|(_, holder)| (holder.task, holder.fd));
            for (&inode, holder) in unix {
                let Some(socket) = near.get(&inode) else {
                    let problem = Some(Problem::ForeignSocket);
                    found(problem, holder, "unix".to_owned(), inode);
                    continue;
                };
                let Some(problem) = neighbours.judge(socket, allowed) else {
                    continue;
                };
                let mut other = near.values().find(|s| match socket.peer {
                    Some(peer) => s.inode == peer,
                    None => s.waiting.contains(&inode),
                });
                if let Some(peer) = socket.peer {
                    // It may be among those on their way.
                    if *queued.get_or_insert_with(|| descriptors_queued(tasks, ours)) {
                        continue;
                    }
                    let here = here.get_or_insert_with(|| unix_here().unwrap_or_default());
                    other = other.or_else(|| here.get(&peer));
                }
                let name = socket::unix_name(socket, other);
                found(Some(problem), holder, name, inode);
            }
        }
        self.report.connections = Some(Connections { diag, others });
        Ok(())
    }
}

fn by_inode(sockets: Vec<Unix>) -> HashMap<u64, Unix> {
    sockets.into_iter().map(|s| (s.inode, s)).collect()
}

/// The unix sockets of this process's network namespace, to name those outside.
fn unix_here() -> io::Result<HashMap<u64, Unix>> {
    Ok(by_inode(
        Diag::open(Folder::own()?.open("ns/net")?)?.unix()?,
    ))
}

fn open_file(number: u32, name: &str) -> Object {
    Object::Fd {
        number,
        name: printable(name),
    }
}

fn namespaces(folder: &Folder) -> HashMap<&'static str, u64> {
    NAMESPACES
        .into_iter()
        .filter_map(|kind| Some((kind, namespace(folder, kind)?)))
        .collect()
}

fn namespace(folder: &Folder, kind: &str) -> Option<u64> {
    let link = folder.link(&format!("ns/{kind}")).ok()?;
    parse::namespace(&link).map(|(_, inode)| inode)
}

fn has_huge_pages() -> bool {
    std::fs::read_to_string("/proc/sys/vm/nr_hugepages").is_ok_and(|n| n.trim() != "0")
}

/// Nothing but the socket itself tells; so it is borrowed for a moment.
fn is_corked(task: &Task, fd: u32) -> bool {
    let ask = || -> io::Result<bool> {
        let pid = Pid::from_raw(task.who.host_pid.cast_signed());
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let socket = pidfd_getfd(process, fd.cast_signed(), PidfdGetfdFlags::empty())?;
        cryo_sys::socket::is_corked(socket.as_fd())
    };
    // Closed since, or it has ended.
    ask().unwrap_or(false)
}

/// Whether descriptors are on their way in a unix socket of ours.
fn descriptors_queued(tasks: &[Task], ours: &HashMap<u64, Holder>) -> bool {
    ours.values()
        .filter(|holder| holder.protocol == Protocol::Unix)
        .any(|holder| {
            tasks.get(holder.task).is_some_and(|task| {
                let info = task.folder.text(&format!("fdinfo/{}", holder.fd));
                info.is_ok_and(|text| parse::fdinfo(&text).queued_fds > 0)
            })
        })
}
