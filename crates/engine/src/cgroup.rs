//! A container's control groups: one in every hierarchy of the machine.
//!
//! libcontainer places a container into the cgroup v1 controllers it knows,
//! or into cgroup v2. It leaves out `name=systemd` and, on a hybrid machine,
//! the unified hierarchy. A container that sits at `/` of any hierarchy makes
//! CRIU walk that whole tree on each dump, so here every hierarchy is joined.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a freeze in the middle of a vfork is tried again, after pauses of
/// 1, 2, 3 ... ms.
const VFORK_TRIES: u64 = 20;

/// One hierarchy of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What it is.
    pub kind: Kind,
}

/// The kinds of hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// cgroup v1 with its controllers, or `name=...`.
    V1(Vec<String>),
    /// cgroup v2, alone or beside v1 controllers.
    V2,
}

impl Hierarchy {
    /// Whether it is the v1 hierarchy of that controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        matches!(&self.kind, Kind::V1(names) if names.iter().any(|n| n == controller))
    }
}

/// Reads the hierarchies out of a `mountinfo` text. Of several mounts of one
/// hierarchy the first counts.
#[must_use]
pub fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(mountpoint), mut right) = (left.split(' ').nth(4), right.split(' ')) else {
            continue;
        };
        let kind = match right.next() {
            Some("cgroup2") => Kind::V2,
            Some("cgroup") => Kind::V1(
                right
                    .nth(1)
                    .unwrap_or_default()
                    .split(',')
                    .filter(|o| {
                        !matches!(*o, "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                    })
                    .filter(|o| !o.starts_with("release_agent="))
                    .map(str::to_owned)
                    .collect(),
            ),
            _ => continue,
        };
        if found.iter().all(|h| h.kind != kind) {
            found.push(Hierarchy {
                mountpoint: PathBuf::from(unescape(mountpoint)),
                kind,
            });
        }
    }
    found
}

/// Undoes the escapes of a `mountinfo` field: it writes blanks, tabs, newlines and backslashes as octal.
#[must_use]
pub fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path cannot be used.
    #[error("cgroup path {path:?} is not usable: {reason}")]
    BadPath {
        /// The path as given.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// A file or folder of the cgroup file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No hierarchy of this machine can freeze.
    #[error("no cgroup hierarchy here can freeze: mount the v1 freezer controller or cgroup v2")]
    NoFreezer,
    /// Freezing or thawing did not happen in time.
    #[error(
        "{path} is still not {wanted} after {waited_ms} ms: a task may be in an uninterruptible sleep; try again"
    )]
    Timeout {
        /// The freezer's folder.
        path: PathBuf,
        /// `frozen` or `thawed`.
        wanted: &'static str,
        /// How long was waited.
        waited_ms: u128,
    },
}

impl Error {
    /// Whether the cgroup is not there any more: systemd takes one away as soon
    /// as it is empty.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_gone(source))
    }
}

/// A file that was opened before its cgroup went has no device.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// The cgroups of one container.
#[derive(Debug, Clone)]
pub struct Cgroups {
    path: PathBuf,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// The cgroups at `path` (as in the OCI spec's `cgroupsPath`) in every
    /// hierarchy of this machine. Nothing is made yet.
    ///
    /// # Errors
    ///
    /// When the path climbs or is the root itself, or `/proc` cannot be read.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
        Self::within(path, parse_hierarchies(&mountinfo))
    }

    pub(crate) fn within(path: &Path, hierarchies: Vec<Hierarchy>) -> Result<Self, Error> {
        let bad = |reason| Error::BadPath {
            path: path.to_owned(),
            reason,
        };
        let inside = path.strip_prefix("/").unwrap_or(path);
        if inside.as_os_str().is_empty() {
            return Err(bad(
                "it names the root of the hierarchies; give the container a cgroup of its own",
            ));
        }
        if inside
            .components()
            .any(|c| !matches!(c, Component::Normal(_)))
        {
            return Err(bad("it holds '.' or '..'"));
        }
        Ok(Self {
            path: inside.to_owned(),
            hierarchies,
        })
    }

    /// The path below each hierarchy's mount point, with a leading slash.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// The hierarchies with this container's folder in each.
    pub fn dirs(&self) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        self.hierarchies
            .iter()
            .map(|h| (h, h.mountpoint.join(&self.path)))
    }

    /// Whether the machine has cgroup v2 and nothing beside it.
    #[must_use]
    pub fn only_v2(&self) -> bool {
        self.hierarchies.iter().all(|h| h.kind == Kind::V2)
    }

    /// Makes the cgroup in every hierarchy.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one. Those made so far stay: call [`Self::remove`].
    pub fn create(&self) -> Result<(), Error> {
        let only_v2 = self.only_v2();
        for (hierarchy, dir) in self.dirs() {
            fs::create_dir_all(&dir).map_err(|e| io_error("make", &dir, e))?;
            if only_v2 {
                self.enable_controllers(hierarchy);
            }
            if hierarchy.has("cpuset") {
                self.fill_cpuset(hierarchy)?;
            }
        }
        Ok(())
    }

    /// A v2 cgroup has the controllers that all above it hand down; a limit whose
    /// controller cannot be had is refused when it is written.
    fn enable_controllers(&self, hierarchy: &Hierarchy) {
        let mut dir = hierarchy.mountpoint.clone();
        let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        for part in self.path.components() {
            for controller in controllers.split_whitespace() {
                // One at a time: one that is refused takes the others with it.
                let enabled =
                    fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
                if let Err(error) = enabled {
                    tracing::debug!(%error, controller, dir = %dir.display(), "not handed down");
                }
            }
            dir.push(part);
        }
    }

    /// A new v1 cpuset is empty and takes no task; it inherits from above.
    fn fill_cpuset(&self, hierarchy: &Hierarchy) -> Result<(), Error> {
        let mut dir = hierarchy.mountpoint.clone();
        for part in self.path.components() {
            let parent = dir.clone();
            dir.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if read(&dir.join(file))?.trim().is_empty() {
                    let value = read(&parent.join(file))?;
                    write(&dir.join(file), value.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Moves a process into the cgroup of every hierarchy.
    ///
    /// # Errors
    ///
    /// When one refuses, as it does when the process is gone.
    pub fn join(&self, pid: u32) -> Result<(), Error> {
        for (_, dir) in self.dirs() {
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Moves a process in, as [`Self::join`] does, for company to another one
    /// of the container. A container that has cgroups of its own below may not
    /// have processes above them: then the process goes where the other is.
    ///
    /// # Errors
    ///
    /// As [`Self::join`].
    pub fn join_beside(&self, pid: u32, other: u32) -> Result<(), Error> {
        for (hierarchy, dir) in self.dirs() {
            let own = write(&dir.join("cgroup.procs"), &pid.to_string());
            match own {
                Err(Error::Io { ref source, .. })
                    if hierarchy.kind == Kind::V2
                        && source.kind() == io::ErrorKind::ResourceBusy =>
                {
                    let text = read(Path::new(&format!("/proc/{other}/cgroup")))?;
                    let theirs = unified_path(&text).ok_or_else(|| Error::BadPath {
                        path: dir.clone(),
                        reason: "the container's first process is in no cgroup v2",
                    })?;
                    let dir = hierarchy.mountpoint.join(theirs);
                    write(&dir.join("cgroup.procs"), &pid.to_string())?;
                }
                own => own?,
            }
        }
        Ok(())
    }

    /// The freezer's folder, as CRIU wants it too.
    ///
    /// # Errors
    ///
    /// [`Error::NoFreezer`].
    pub fn freezer_dir(&self) -> Result<PathBuf, Error> {
        self.freezer().map(|(dir, _)| dir)
    }

    fn freezer(&self) -> Result<(PathBuf, bool), Error> {
        let v1 = self.hierarchies.iter().find(|h| h.has("freezer"));
        let v2 = || self.hierarchies.iter().find(|h| h.kind == Kind::V2);
        v1.map(|h| (h, true))
            .or_else(|| v2().map(|h| (h, false)))
            .map(|(h, is_v1)| (h.mountpoint.join(&self.path), is_v1))
            .ok_or(Error::NoFreezer)
    }

    /// Whether the container was asked to be frozen.
    ///
    /// # Errors
    ///
    /// When the state cannot be read.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        let (dir, v1) = self.freezer()?;
        Ok(if v1 {
            read(&dir.join("freezer.state"))?.trim() != "THAWED"
        } else {
            read(&dir.join("cgroup.freeze"))?.trim() == "1"
        })
    }

    /// Freezes every task and waits until all are, and none in the middle of a
    /// vfork: its parent cannot be traced before the child goes on, which is
    /// frozen, so CRIU would wait for it in vain.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] after `limit`; then the freeze is taken back.
    pub fn freeze(&self, limit: Duration) -> Result<(), Error> {
        for pause in (0..VFORK_TRIES).map(|n| Duration::from_millis(1 + n)) {
            self.switch(true, limit).inspect_err(|_| {
                if let Err(error) = self.thaw(limit) {
                    tracing::error!(%error, "cannot take an incomplete freeze back");
                }
            })?;
            if !self.pids()?.into_iter().any(waits_for_vfork) {
                return Ok(());
            }
            self.thaw(limit)?;
            std::thread::sleep(pause);
        }
        // A child that does not get to its exec: it is frozen at least.
        self.switch(true, limit)
    }

    /// Lets the tasks run again and waits until they do.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] after `limit`.
    pub fn thaw(&self, limit: Duration) -> Result<(), Error> {
        self.switch(false, limit)
    }

    fn switch(&self, frozen: bool, limit: Duration) -> Result<(), Error> {
        let (dir, v1) = self.freezer()?;
        let (file, value) = match (v1, frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        let start = Instant::now();
        write(&dir.join(file), value)?;
        let mut round = 0u32;
        loop {
            let done = if v1 {
                read(&dir.join("freezer.state"))?.trim() == value
            } else {
                let want = if frozen { "frozen 1" } else { "frozen 0" };
                read(&dir.join("cgroup.events"))?.lines().any(|l| l == want)
            };
            if done {
                return Ok(());
            }
            if start.elapsed() >= limit {
                return Err(Error::Timeout {
                    path: dir,
                    wanted: if frozen { "frozen" } else { "thawed" },
                    waited_ms: start.elapsed().as_millis(),
                });
            }
            round += 1;
            std::thread::sleep(Duration::from_micros(if round < 20 { 100 } else { 1000 }));
            // The v1 freezer can miss a task that forks just then: ask again.
            if v1 && round.is_multiple_of(50) {
                write(&dir.join(file), value)?;
            }
        }
    }

    /// The ids of all processes in the container, nested cgroups included.
    ///
    /// # Errors
    ///
    /// When a folder cannot be read; a missing one counts as empty.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let mut pids = Vec::new();
        // Any one hierarchy knows them all; the freezer's is always there.
        collect_pids(&self.freezer_dir()?, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process, frozen ones too, until none is left.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when some survive `limit`.
    pub fn kill(&self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let mut any = false;
            for (_, dir) in self.dirs() {
                let mut pids = Vec::new();
                collect_pids(&dir, &mut pids)?;
                for pid in pids {
                    any = true;
                    if let Some(pid) = i32::try_from(pid)
                        .ok()
                        .and_then(rustix::process::Pid::from_raw)
                    {
                        // Gone in the meantime is what we want.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            if !any {
                return Ok(());
            }
            if start.elapsed() >= limit {
                return Err(Error::Timeout {
                    path: self.path(),
                    wanted: "empty",
                    waited_ms: start.elapsed().as_millis(),
                });
            }
            // A frozen v1 task acts on its signal only after the thaw.
            let thawed = match self.is_frozen() {
                Ok(true) => self.switch(false, limit),
                other => other.map(drop),
            };
            match thawed {
                Err(error) if !error.is_gone() && !matches!(error, Error::NoFreezer) => {
                    return Err(error);
                }
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes the cgroups below them, which processes in there have made.
    ///
    /// # Errors
    ///
    /// The first folder that stays in spite of repeated tries.
    pub fn remove_below(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(2);
        for (_, dir) in self.dirs() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path(), deadline)?;
                }
            }
        }
        Ok(())
    }

    /// Removes the cgroups, and those below them. Missing ones are fine.
    ///
    /// # Errors
    ///
    /// The first folder that stays in spite of repeated tries.
    pub fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut first = None;
        for (_, dir) in self.dirs() {
            if let Err(error) = remove_tree(&dir, deadline) {
                tracing::warn!(%error, dir = %dir.display(), "cgroup stays");
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// Whether a thread of the process waits for its vforked child.
fn waits_for_vfork(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        fs::read_to_string(thread.path().join("wchan"))
            .is_ok_and(|at| matches!(at.as_str(), "kernel_clone" | "wait_for_vfork_done"))
    })
}

/// Where `/proc/PID/cgroup` says that a process is in cgroup v2.
pub(crate) fn unified_path(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .filter(|p| !p.split('/').any(|c| c == ".."))
}

fn remove_tree(dir: &Path, deadline: Instant) -> Result<(), Error> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("read", dir, e)),
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    remove_tree(&entry.path(), deadline)?;
                }
            }
        }
    }
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A task that has just ended still counts for a moment.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(io_error("remove", dir, e)),
        }
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) -> Result<(), Error> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok())),
        Err(e) if is_gone(&e) => return Ok(()),
        Err(e) => return Err(io_error("read", dir, e)),
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(()),
        Err(e) => return Err(io_error("read", dir, e)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|e| io_error("read", path, e))
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(|e| io_error("write", path, e))
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
23 28 0:22 / /sys rw,relatime - sysfs sysfs rw
24 23 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:25 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
27 24 0:26 /a /elsewhere/freezer rw - cgroup cgroup rw,freezer
28 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 24 0:28 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw,nsdelegate
garbage
";

    #[test]
    fn every_hierarchy_is_found_once() {
        let found = parse_hierarchies(HYBRID);
        let names: Vec<_> = found
            .iter()
            .map(|h| (h.mountpoint.to_str().unwrap(), h.kind.clone()))
            .collect();
        assert_eq!(
            names,
            [
                (
                    "/sys/fs/cgroup/cpu,cpuacct",
                    Kind::V1(vec!["cpu".into(), "cpuacct".into()])
                ),
                ("/sys/fs/cgroup/freezer", Kind::V1(vec!["freezer".into()])),
                (
                    "/sys/fs/cgroup/systemd",
                    Kind::V1(vec!["name=systemd".into()])
                ),
                ("/sys/fs/cgroup/uni fied", Kind::V2),
            ]
        );
    }

    #[test]
    fn the_v1_freezer_goes_before_the_unified_one() {
        let all = parse_hierarchies(HYBRID);
        let hybrid = Cgroups::within(Path::new("/k8s.io/a"), all.clone()).unwrap();
        assert_eq!(
            hybrid.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/freezer/k8s.io/a")
        );
        let v2 = Cgroups::within(Path::new("a"), all[3..].to_vec()).unwrap();
        assert_eq!(
            v2.freezer_dir().unwrap(),
            Path::new("/sys/fs/cgroup/uni fied/a")
        );
        let none = Cgroups::within(Path::new("a"), Vec::new()).unwrap();
        assert!(matches!(none.freezer_dir(), Err(Error::NoFreezer)));
    }

    #[test]
    fn v2_hands_its_controllers_down_to_the_last_but_one() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path).join("cgroup.subtree_control");
        fs::write(root.path().join("cgroup.controllers"), "memory\n").unwrap();
        let hierarchy = Hierarchy {
            mountpoint: root.path().to_owned(),
            kind: Kind::V2,
        };
        let cgroups = Cgroups::within(Path::new("/pods/a"), vec![hierarchy]).unwrap();
        cgroups.create().unwrap();
        assert_eq!(fs::read_to_string(at("")).unwrap(), "+memory");
        assert_eq!(fs::read_to_string(at("pods")).unwrap(), "+memory");
        // With that in its own, it could not have processes.
        assert!(!at("pods/a").exists());
    }

    #[test]
    fn paths_that_climb_or_name_the_root_are_refused() {
        for path in ["/", "", "/a/../b", ".."] {
            assert!(
                matches!(
                    Cgroups::within(Path::new(path), Vec::new()),
                    Err(Error::BadPath { .. })
                ),
                "{path:?}"
            );
        }
    }
}
