//! What a task may be, by the container's specification. Pure.
//!
//! | property | rule |
//! |---|---|
//! | namespaces | where the spec names none: ours; a path: that one; a new one: not ours, and one for all |
//! | cgroup namespace | a new one: the one that was made for the container |
//! | user namespace | its id maps are the spec's |
//! | cgroups | in every hierarchy where the first process was put, or below |
//! | capabilities | each set within what a process of this spec could come to hold |
//! | users and groups | the spec's, unless a process of this spec could change them |
//! | `no_new_privs` | set if the spec sets it |
//! | seccomp | filtered if the spec filters; by what, is judged [before](super::check_filters) |
//! | AppArmor | the spec's profile, if it names one |
//!
//! What a process *could come to hold* is the kernel's rule of `execve` (capabilities(7)):
//! without `no_new_privs` a set-uid program or a file's capabilities give anything up to the
//! bounding set, and make anybody of anybody. So such a spec draws no other line. With it nothing
//! is gained after the start, and who starts as another user than root begins with the ambient
//! set, and with what the file of its own program gives.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use cryo_engine::spec::{self, Namespace};
use oci_spec::runtime::{Capability, LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::thread::CapabilitySet;

use super::Violation;
use super::tasks::{Membership, NAMESPACES, Task};

/// The kinds of [`NAMESPACES`], in that order, as the spec has them.
pub(super) const KINDS: [LinuxNamespaceType; NAMESPACES.len()] = [
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::User,
    LinuxNamespaceType::Cgroup,
];

/// Index of the mount namespace in [`NAMESPACES`]: a process may have made one of its own.
const MOUNT: usize = 0;
/// Index of the user namespace in [`NAMESPACES`].
const USER: usize = 5;
/// Index of the cgroup namespace in [`NAMESPACES`].
pub(super) const CGROUP: usize = 6;

/// What the policy has to know of the node.
#[derive(Debug)]
pub(super) struct Here {
    /// Our own namespaces.
    pub(super) namespaces: [u64; NAMESPACES.len()],
    /// Those that the spec names by a path, and the cgroup namespace that was made for the
    /// container; 0 for the others.
    pub(super) given: [u64; NAMESPACES.len()],
    /// Our own supplementary groups: who starts without any keeps these.
    pub(super) groups: Vec<u32>,
}

/// The rules for one container.
#[derive(Debug)]
pub(super) struct Policy {
    namespaces: [Wanted; NAMESPACES.len()],
    id_maps: [Vec<[u32; 3]>; 2],
    bounding: CapabilitySet,
    reachable: Reachable,
    uid: u32,
    gid: u32,
    groups: BTreeSet<u32>,
    no_new_privs: bool,
    filtered: bool,
    profile: Option<String>,
}

/// Which namespace a task has to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    This(u64),
    AnyBut(u64),
}

/// What a process could come to hold.
#[derive(Debug, Clone, Copy)]
struct Reachable {
    /// In any case.
    always: CapabilitySet,
    /// If the file of its program gives it.
    by_file: CapabilitySet,
    inheritable: CapabilitySet,
    /// Set-uid programs work.
    set_uid: bool,
}

impl Policy {
    pub(super) fn new(spec: &Spec, here: &Here) -> Self {
        let process = spec.process().as_ref();
        let linux = spec.linux().as_ref();
        let no_new_privs = process.and_then(|p| p.no_new_privileges()).unwrap_or(false);
        let (uid, gid) = spec::user(spec);
        let more = process
            .and_then(|p| p.user().additional_gids().clone())
            .unwrap_or_default();
        let groups = if more.is_empty() {
            here.groups.iter().copied().collect()
        } else {
            more.iter()
                .map(|g| spec::outside(spec, (0, *g)).1)
                .collect()
        };
        let (outer_uid, outer_gid) = spec::outside(spec, (uid, gid));

        let mut namespaces = [Wanted::This(0); NAMESPACES.len()];
        for (i, (wanted, kind)) in namespaces.iter_mut().zip(KINDS).enumerate() {
            let ours = here.namespaces[i];
            *wanted = match spec::namespace(spec, kind) {
                Namespace::Host => Wanted::This(ours),
                Namespace::Path(_) => Wanted::This(here.given[i]),
                // A kernel that lacks it gives none to anybody.
                Namespace::New if ours == 0 => Wanted::This(0),
                Namespace::New if i == CGROUP => Wanted::This(here.given[i]),
                Namespace::New => Wanted::AnyBut(ours),
            };
        }
        let map = |maps: Option<&Vec<LinuxIdMapping>>| {
            let mut map: Vec<_> = maps
                .into_iter()
                .flatten()
                .map(|m| [m.container_id(), m.host_id(), m.size()])
                .collect();
            map.sort_unstable();
            map
        };
        Self {
            namespaces,
            id_maps: [
                map(linux.and_then(|l| l.uid_mappings().as_ref())),
                map(linux.and_then(|l| l.gid_mappings().as_ref())),
            ],
            bounding: sets(spec).bounding,
            reachable: Reachable::new(&sets(spec), uid == 0, no_new_privs),
            uid: outer_uid,
            gid: outer_gid,
            groups,
            no_new_privs,
            filtered: spec::filtered(spec),
            profile: process
                .and_then(|p| p.apparmor_profile().clone())
                .filter(|p| !p.is_empty() && p != "unconfined"),
        }
    }

    /// Whether a process could mount by itself.
    pub(super) fn mounts_itself(&self) -> bool {
        let any = self.reachable.always | self.reachable.by_file;
        any.contains(CapabilitySet::SYS_ADMIN)
    }

    /// The spec's maps of a new user namespace, users' and groups'; `None` where it has none.
    pub(super) fn id_maps(&self) -> Option<&[Vec<[u32; 3]>; 2]> {
        matches!(self.namespaces[USER], Wanted::AnyBut(_)).then_some(&self.id_maps)
    }

    /// Judges a task by itself, and beside the first one of its tree. `placed` is where we put
    /// that one.
    pub(super) fn judge(
        &self,
        task: &Task,
        first: &Task,
        placed: &[Membership],
    ) -> Result<(), Violation> {
        self.judge_namespaces(task, first)?;
        judge_cgroups(task, placed)?;
        self.judge_ids(task)?;
        self.judge_capabilities(task)?;
        let status = &task.status;
        if self.no_new_privs && !status.no_new_privs {
            return Err(violation(task, "no_new_privs", "0", "1"));
        }
        if self.filtered && status.seccomp != 2 {
            let found = format!("mode {}", status.seccomp);
            return Err(violation(task, "seccomp", found, "mode 2 (filters)"));
        }
        if let Some(profile) = &self.profile {
            // The kernel adds the mode: `name (enforce)`.
            let found = task.label.as_deref().unwrap_or("none");
            if found.split(" (").next() != Some(profile) {
                return Err(violation(task, "AppArmor profile", found, profile));
            }
        }
        Ok(())
    }

    fn judge_namespaces(&self, task: &Task, first: &Task) -> Result<(), Violation> {
        for (i, name) in NAMESPACES.into_iter().enumerate() {
            let found = task.namespaces[i];
            let bad = |allowed: String| {
                let property = format!("{name} namespace");
                Err(violation(task, property, found, allowed))
            };
            match self.namespaces[i] {
                Wanted::This(one) if found != one => return bad(one.to_string()),
                Wanted::AnyBut(ours) if found == ours => {
                    return bad("one of its own, not the node's".to_owned());
                }
                Wanted::AnyBut(_) if i != MOUNT && found != first.namespaces[i] => {
                    return bad(format!("{}, as the first process", first.namespaces[i]));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn judge_capabilities(&self, task: &Task) -> Result<(), Violation> {
        let found = &task.status.capabilities;
        let limit = self.reachable.limit(task.file_capabilities);
        for (name, found, allowed) in [
            ("bounding", found.bounding, self.bounding),
            ("permitted", found.permitted, limit),
            ("effective", found.effective, limit),
            ("ambient", found.ambient, limit),
            (
                "inheritable",
                found.inheritable,
                limit | self.reachable.inheritable,
            ),
        ] {
            let more = found - allowed;
            if !more.is_empty() {
                let property = format!("{name} capabilities");
                return Err(violation(task, property, Names(more), Names(allowed)));
            }
        }
        Ok(())
    }

    fn judge_ids(&self, task: &Task) -> Result<(), Violation> {
        let limit = self.reachable.limit(task.file_capabilities);
        let status = &task.status;
        if self.reachable.set_uid {
            return Ok(());
        }
        if !limit.contains(CapabilitySet::SETUID)
            && let Some(found) = status.uids.iter().find(|u| **u != self.uid)
        {
            return Err(violation(task, "user id", found, self.uid));
        }
        if limit.contains(CapabilitySet::SETGID) {
            return Ok(());
        }
        if let Some(found) = status.gids.iter().find(|g| **g != self.gid) {
            return Err(violation(task, "group id", found, self.gid));
        }
        let known = |group: &&u32| !self.groups.contains(group) && **group != self.gid;
        match status.groups.iter().find(known) {
            Some(found) => {
                let allowed = format!("{:?}", self.groups);
                Err(violation(task, "supplementary group", found, allowed))
            }
            None => Ok(()),
        }
    }
}

impl Reachable {
    fn new(sets: &Sets, root: bool, no_new_privs: bool) -> Self {
        let all = sets.bounding | sets.permitted | sets.inheritable | sets.ambient;
        let (always, by_file) = match (no_new_privs, root) {
            (false, _) => (all, all),
            (true, true) => (sets.permitted | sets.ambient, sets.permitted),
            (true, false) => (sets.ambient, sets.permitted),
        };
        Self {
            always,
            by_file,
            inheritable: sets.inheritable,
            set_uid: !no_new_privs,
        }
    }

    fn limit(&self, file: CapabilitySet) -> CapabilitySet {
        self.always | (self.by_file & file)
    }
}

fn judge_cgroups(task: &Task, placed: &[Membership]) -> Result<(), Violation> {
    for found in &task.cgroups {
        let name = if found.hierarchy.is_empty() {
            "cgroup".to_owned()
        } else {
            format!("cgroup ({})", found.hierarchy)
        };
        let allowed = placed
            .iter()
            .find(|p| p.hierarchy == found.hierarchy)
            .map_or(Path::new("none"), |p| p.path.as_path());
        if !found.path.starts_with(allowed) {
            return Err(violation(
                task,
                name,
                found.path.display(),
                allowed.display(),
            ));
        }
    }
    Ok(())
}

fn violation(
    task: &Task,
    property: impl Into<String>,
    found: impl fmt::Display,
    allowed: impl fmt::Display,
) -> Violation {
    Violation {
        who: task.name.clone(),
        property: property.into(),
        found: found.to_string(),
        allowed: allowed.to_string(),
    }
}

/// The sets of the spec; one that says nothing of capabilities leaves all of them.
struct Sets {
    bounding: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

fn sets(spec: &Spec) -> Sets {
    let set = |names: &Option<std::collections::HashSet<Capability>>| {
        names
            .iter()
            .flatten()
            .filter_map(|name| CapabilitySet::from_name(&name.to_string()))
            .fold(CapabilitySet::empty(), CapabilitySet::union)
    };
    let process = spec.process().as_ref();
    match process.and_then(|p| p.capabilities().as_ref()) {
        Some(sets) => Sets {
            bounding: set(sets.bounding()),
            permitted: set(sets.permitted()),
            inheritable: set(sets.inheritable()),
            ambient: set(sets.ambient()),
        },
        None => Sets {
            bounding: CapabilitySet::all(),
            permitted: CapabilitySet::all(),
            inheritable: CapabilitySet::all(),
            ambient: CapabilitySet::empty(),
        },
    }
}

/// Capabilities by their names, in the order of their numbers.
struct Names(CapabilitySet);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, (name, _)) in self.0.iter_names().enumerate() {
            let blank = if i == 0 { "" } else { " " };
            write!(f, "{blank}CAP_{name}")?;
        }
        let unnamed = self.0.bits() & !CapabilitySet::from_iter(self.0.iter()).bits();
        if unnamed != 0 {
            write!(f, " and others")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::task::gate::tasks::{Capabilities, Status};

    const OURS: [u64; NAMESPACES.len()] = [1, 2, 3, 4, 5, 6, 7];
    /// A container's: of its own, but for the network by a path and the node's IPC and users.
    const ITS: [u64; NAMESPACES.len()] = [11, 22, 3, 14, 15, 6, 17];

    fn here() -> Here {
        Here {
            namespaces: OURS,
            given: [0, 22, 0, 0, 0, 0, 17],
            groups: vec![0],
        }
    }

    fn spec(process: &str, linux: &str) -> Spec {
        let json = format!(
            r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","args":["x"],{process}}},
                "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}},{{"type":"uts"}},
                {{"type":"cgroup"}},{{"type":"network","path":"/n"}}]{linux}}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn root(no_new_privs: bool) -> String {
        format!(
            r#""user":{{"uid":0,"gid":0}},"noNewPrivileges":{no_new_privs},"capabilities":{{
                "bounding":["CAP_KILL","CAP_SETUID","CAP_SETGID"],"permitted":["CAP_KILL","CAP_SETUID","CAP_SETGID"],
                "effective":["CAP_KILL","CAP_SETUID","CAP_SETGID"]}}"#
        )
    }

    fn user(no_new_privs: bool, ambient: &str) -> String {
        format!(
            r#""user":{{"uid":1000,"gid":100,"additionalGids":[7]}},"noNewPrivileges":{no_new_privs},"capabilities":{{
                "bounding":["CAP_KILL","CAP_SETUID"],"permitted":["CAP_KILL","CAP_SETUID"],"ambient":[{ambient}]}}"#
        )
    }

    fn task() -> Task {
        let none = CapabilitySet::empty();
        Task {
            pid: 4711,
            name: "process 1 (sh)".to_owned(),
            status: Status {
                name: "sh".to_owned(),
                inner_id: 1,
                dead: false,
                uids: [0; 4],
                gids: [0; 4],
                groups: BTreeSet::from([0]),
                capabilities: Capabilities {
                    inheritable: none,
                    permitted: CapabilitySet::KILL,
                    effective: CapabilitySet::KILL,
                    bounding: CapabilitySet::KILL | CapabilitySet::SETUID,
                    ambient: none,
                },
                no_new_privs: true,
                seccomp: 2,
            },
            namespaces: ITS,
            cgroups: vec![membership("memory", "/c"), membership("", "/c/below")],
            label: Some("good (enforce)".to_owned()),
            file_capabilities: none,
        }
    }

    fn of_user() -> Task {
        let mut task = task();
        task.status.uids = [1000; 4];
        task.status.gids = [100; 4];
        task.status.groups = BTreeSet::from([7, 100]);
        task.status.capabilities.permitted = CapabilitySet::empty();
        task.status.capabilities.effective = CapabilitySet::empty();
        task
    }

    fn membership(hierarchy: &str, path: &str) -> Membership {
        Membership {
            hierarchy: hierarchy.to_owned(),
            path: path.into(),
        }
    }

    fn judge(spec: &Spec, task: &Task) -> Result<(), String> {
        let mut first = task.clone();
        first.namespaces = ITS;
        let placed = [membership("memory", "/c"), membership("", "/c")];
        let judged = Policy::new(spec, &here()).judge(task, &first, &placed);
        judged.map_err(|v| v.to_string())
    }

    const SECURED: &str = r#","seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}"#;

    fn secured() -> Spec {
        spec(
            &format!(r#"{},"apparmorProfile":"good""#, root(true)),
            SECURED,
        )
    }

    #[test]
    fn what_the_spec_allows_passes() {
        assert_eq!(judge(&secured(), &task()), Ok(()));
        // Less is fine, and so is who it became by its right to.
        let mut less = task();
        less.status.uids = [33; 4];
        less.status.gids = [33; 4];
        less.status.groups = BTreeSet::from([33]);
        less.status.capabilities.permitted = CapabilitySet::empty();
        less.status.capabilities.effective = CapabilitySet::empty();
        less.status.capabilities.bounding = CapabilitySet::empty();
        less.namespaces[0] = 99;
        assert_eq!(judge(&secured(), &less), Ok(()));
        assert_eq!(judge(&spec(&user(true, ""), ""), &of_user()), Ok(()));
    }

    type Forge = fn(&mut Task);

    #[test]
    fn what_it_does_not_is_named() {
        let cases: [(Forge, &str); 15] = [
            (
                |t| t.namespaces[6] = OURS[6],
                "cgroup namespace: found 7, allowed 17",
            ),
            (
                |t| t.namespaces[0] = 1,
                "mnt namespace: found 1, allowed one of its own, not the node's",
            ),
            (
                |t| t.namespaces[1] = 2,
                "net namespace: found 2, allowed 22",
            ),
            (
                |t| t.namespaces[2] = 13,
                "ipc namespace: found 13, allowed 3",
            ),
            (
                |t| t.namespaces[3] = 4,
                "uts namespace: found 4, allowed one of its own, not the node's",
            ),
            (
                |t| t.namespaces[4] = 99,
                "pid namespace: found 99, allowed 15, as the first process",
            ),
            (
                |t| t.namespaces[5] = 16,
                "user namespace: found 16, allowed 6",
            ),
            (
                |t| t.cgroups[0].path = "/container".into(),
                "cgroup (memory): found /container, allowed /c",
            ),
            (
                |t| t.cgroups[1].path = "/".into(),
                "cgroup: found /, allowed /c",
            ),
            (
                |t| t.cgroups.push(membership("cpu", "/c")),
                "cgroup (cpu): found /c, allowed none",
            ),
            (
                |t| t.status.capabilities.effective |= CapabilitySet::SYS_ADMIN,
                "effective capabilities: found CAP_SYS_ADMIN, allowed CAP_KILL CAP_SETGID CAP_SETUID",
            ),
            (
                |t| t.status.capabilities.bounding = CapabilitySet::all(),
                "bounding capabilities: found CAP_CHOWN",
            ),
            (
                |t| t.status.no_new_privs = false,
                "no_new_privs: found 0, allowed 1",
            ),
            (
                |t| t.status.seccomp = 0,
                "seccomp: found mode 0, allowed mode 2 (filters)",
            ),
            (
                |t| t.label = Some("good2 (enforce)".to_owned()),
                "AppArmor profile: found good2 (enforce), allowed good",
            ),
        ];
        for (forge, wanted) in cases {
            let mut task = task();
            forge(&mut task);
            let said = judge(&secured(), &task).unwrap_err();
            let said = said.strip_prefix("process 1 (sh): ").unwrap();
            assert!(said.starts_with(wanted), "{said}\n{wanted}");
        }
        let mut unlabelled = task();
        unlabelled.label = None;
        assert!(judge(&secured(), &unlabelled).is_err());
    }

    #[test]
    fn a_user_stays_that_user_if_nothing_is_gained() {
        let strict = spec(&user(true, ""), "");
        let cases: [(Forge, &str); 6] = [
            (|t| t.status.uids[2] = 0, "user id: found 0, allowed 1000"),
            (|t| t.status.gids[0] = 0, "group id: found 0, allowed 100"),
            (
                |t| t.status.groups = BTreeSet::from([6]),
                "supplementary group: found 6, allowed {7}",
            ),
            (
                |t| t.status.capabilities.permitted = CapabilitySet::SETUID,
                "permitted capabilities: found CAP_SETUID, allowed none",
            ),
            (
                |t| t.status.capabilities.inheritable = CapabilitySet::KILL,
                "inheritable capabilities: found CAP_KILL, allowed none",
            ),
            (
                |t| {
                    t.file_capabilities = CapabilitySet::all();
                    t.status.capabilities.permitted = CapabilitySet::SYS_ADMIN;
                },
                "permitted capabilities: found CAP_SYS_ADMIN, allowed CAP_KILL CAP_SETUID",
            ),
        ];
        for (forge, wanted) in cases {
            let mut task = of_user();
            forge(&mut task);
            assert_eq!(
                judge(&strict, &task),
                Err(format!("process 1 (sh): {wanted}"))
            );
        }
        // The file of its program gives it, or it had it from the start.
        let mut by_file = of_user();
        by_file.file_capabilities = CapabilitySet::KILL;
        by_file.status.capabilities.permitted = CapabilitySet::KILL;
        assert_eq!(judge(&strict, &by_file), Ok(()));
        let mut ambient = of_user();
        ambient.status.capabilities.permitted = CapabilitySet::SETUID;
        ambient.status.uids = [5; 4];
        assert_eq!(
            judge(&spec(&user(true, r#""CAP_SETUID""#), ""), &ambient),
            Ok(())
        );
    }

    #[test]
    fn without_no_new_privs_the_bounding_set_is_the_line() {
        let open = spec(&user(false, ""), "");
        let mut task = of_user();
        task.status.no_new_privs = false;
        task.status.uids = [0; 4];
        task.status.capabilities.permitted = CapabilitySet::SETUID;
        assert_eq!(judge(&open, &task), Ok(()));
        task.status.capabilities.permitted |= CapabilitySet::SYS_ADMIN;
        assert!(judge(&open, &task).is_err());
    }

    #[test]
    fn a_spec_without_capabilities_limits_none() {
        let mut task = task();
        task.status.capabilities.bounding = CapabilitySet::all();
        let silent = spec(r#""user":{"uid":0,"gid":0}"#, "");
        assert_eq!(judge(&silent, &task), Ok(()));
        assert!(Policy::new(&silent, &here()).mounts_itself());
        assert!(!Policy::new(&secured(), &here()).mounts_itself());
    }

    #[test]
    fn ids_are_compared_as_the_node_sees_them() {
        let json = r#"{"ociVersion":"1.1.0","process":{"cwd":"/","args":["x"],"user":{"uid":5,"gid":6},
            "noNewPrivileges":true,"capabilities":{}},"linux":{"namespaces":[{"type":"user"}],
            "uidMappings":[{"containerID":0,"hostID":1000,"size":10}],
            "gidMappings":[{"containerID":0,"hostID":2000,"size":10}]}}"#;
        let policy = Policy::new(&serde_json::from_str(json).unwrap(), &here());
        assert_eq!((policy.uid, policy.gid), (1005, 2006));
        assert_eq!(policy.id_maps().unwrap()[0], [[0, 1000, 10]]);
        assert_eq!(Policy::new(&secured(), &here()).id_maps(), None);
    }
}
