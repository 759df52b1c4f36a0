//! The gate of a restore: what CRIU made of a checkpoint, against the specification.
//!
//! CRIU restores what its images say: credentials, filters, namespaces, mounts. When it asks
//! `pre-resume` all of that is final and no task has run an instruction. Then the kernel's word on
//! every task ([`tasks`]) and mount namespace ([`view`]) is compared with what the new container's
//! specification allows ([`policy`], [`mounts`]). CRIU does not take no for an answer there: who
//! refuses kills the tree, which [`Gate::check`] does.

mod mounts;
mod policy;
mod seccomp;
mod tasks;
mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cryo_checkpoint::image_dir::Seccomp;
use cryo_engine::cgroup::Cgroups;
use cryo_engine::mountpoint;
use cryo_engine::spec::{self, Namespace};
use cryo_sys::mntns;
use oci_spec::runtime::Spec;

use self::mounts::{Expected, MountPolicy, What};
use self::policy::{Here, Policy};
use self::tasks::{Membership, Task};
use self::view::{Flags, View};
use super::kill;

/// The gate for one restore.
#[derive(Debug)]
pub(super) struct Gate {
    policy: Policy,
    mounts: MountPolicy,
    /// Mounts of our own namespace that no root in it leads to.
    hidden_here: u64,
    first: Option<First>,
}

/// The first process, when it was alone.
#[derive(Debug)]
struct First {
    pid: u32,
    cgroups: Vec<Membership>,
}

/// What is not as the specification has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    who: String,
    property: String,
    found: String,
    allowed: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            who,
            property,
            found,
            allowed,
        } = self;
        write!(f, "{who}: {property}: found {found}, allowed {allowed}")
    }
}

/// Why the gate stays shut.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The checkpoint asks for more than the specification.
    #[error(
        "the checkpoint was refused before it ran: {0}; if you trust it, restore it with a specification that allows this"
    )]
    Violation(String),
    /// It brings other filters than the specification's.
    #[error(
        "the checkpoint was refused before it ran: {0}; restore it with the seccomp profile that it was started with, under the same runtime and libseccomp, or, if you trust it, have the node's owner set `seccomp = \"any\"` under [restore] in /etc/cryo/config.toml"
    )]
    Filters(String),
    /// That could not be told.
    #[error("the restored processes cannot be checked, so they were ended")]
    Unknown(#[source] io::Error),
}

impl From<Violation> for Refused {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation.to_string())
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Unknown(error)
    }
}

/// Judges the seccomp filters of a checkpoint, which only who traces the tasks could read later;
/// `wanted` is the specification's.
///
/// # Errors
///
/// [`Refused::Filters`].
pub(super) fn check_filters(found: &Seccomp, wanted: &[u8]) -> Result<(), Refused> {
    seccomp::judge(found, wanted).map_err(|violation| Refused::Filters(violation.to_string()))
}

impl Gate {
    /// Reads what is to be compared with. `rootfs` has to be mounted; `cgroup_namespace` is the
    /// one that was made for the container.
    ///
    /// # Errors
    ///
    /// When something of this node, or a namespace or mount source of the spec, cannot be read.
    pub(super) fn new(
        spec: &Spec,
        rootfs: &Path,
        cgroup_namespace: Option<&OwnedFd>,
    ) -> io::Result<Self> {
        let own = File::open("/proc/self/ns/mnt")?;
        let ours = View::read(&own, &[])?.mounts;
        let here = Here {
            namespaces: tasks::read_namespaces(Path::new("/proc/self"))?,
            given: given_namespaces(spec, cgroup_namespace)?,
            groups: rustix::process::getgroups()?
                .into_iter()
                .map(rustix::process::Gid::as_raw)
                .collect(),
        };
        let policy = Policy::new(spec, &here);
        let hidden_here = hidden(&own, ours.len())?.unwrap_or(0);
        let expected = expected_mounts(spec, rootfs)?;
        Ok(Self {
            mounts: MountPolicy::new(spec, expected, policy.mounts_itself(), ours),
            policy,
            hidden_here,
            first: None,
        })
    }

    /// The first process is there, alone, and in the cgroups that we chose.
    ///
    /// # Errors
    ///
    /// When these cannot be read.
    pub(super) fn placed(&mut self, pid: i32) -> io::Result<()> {
        let pid = pid.unsigned_abs();
        self.first = Some(First {
            pid,
            cgroups: tasks::read_cgroups(&PathBuf::from(format!("/proc/{pid}")))?,
        });
        Ok(())
    }

    /// Looks at all there is, and kills it unless it is as it should be.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub(super) fn check(&self, cgroups: &Cgroups) -> Result<(), Refused> {
        let start = std::time::Instant::now();
        let mut seen = BTreeSet::new();
        let judged = self.judge(cgroups, &mut seen);
        tracing::debug!(tasks = seen.len(), took = ?start.elapsed(), "the gate");
        if judged.is_err() {
            // None of them runs, so none forks.
            seen.extend(cgroups.pids().unwrap_or_default());
            seen.extend(self.first.as_ref().map(|f| f.pid));
            for pid in seen {
                kill::one(pid);
            }
        }
        judged
    }

    fn judge(&self, cgroups: &Cgroups, seen: &mut BTreeSet<u32>) -> Result<(), Refused> {
        let First {
            pid,
            cgroups: placed,
        } = self
            .first
            .as_ref()
            .ok_or_else(|| io::Error::other("CRIU never told of a first process"))?;
        let inside = cgroups.pids().map_err(io::Error::other)?;
        let tasks = tasks::read_tree(*pid, &inside)?;
        seen.extend(tasks.iter().map(|t| t.pid));
        let first = tasks
            .iter()
            .find(|t| t.pid == *pid)
            .ok_or_else(|| io::Error::other("the first process has ended"))?;
        for task in &tasks {
            self.policy.judge(task, first, placed)?;
        }
        self.judge_id_maps(first)?;
        let mut namespaces = BTreeSet::new();
        for task in &tasks {
            if namespaces.insert(task.namespaces[0]) {
                self.judge_mounts(task, placed)?;
            }
        }
        Ok(())
    }

    fn judge_id_maps(&self, first: &Task) -> Result<(), Refused> {
        let Some(wanted) = self.policy.id_maps() else {
            return Ok(());
        };
        for (file, wanted) in ["uid_map", "gid_map"].into_iter().zip(wanted) {
            let mut found = tasks::read_id_map(first.pid, file)?;
            found.sort_unstable();
            if found != *wanted {
                return Err(Violation {
                    who: first.name.clone(),
                    property: file.to_owned(),
                    found: format!("{found:?}"),
                    allowed: format!("{wanted:?}"),
                }
                .into());
            }
        }
        Ok(())
    }

    fn judge_mounts(&self, task: &Task, placed: &[Membership]) -> Result<(), Refused> {
        let namespace = File::open(format!("/proc/{}/ns/mnt", task.pid))?;
        let view = View::read(&namespace, &self.mounts.places())?;
        self.mounts.judge(&view, placed)?;
        match hidden(&namespace, view.mounts.len())? {
            Some(found) if found > self.hidden_here => Err(Violation {
                who: task.name.clone(),
                property: "mounts that its root does not lead to".to_owned(),
                found: found.to_string(),
                allowed: self.hidden_here.to_string(),
            }
            .into()),
            _ => Ok(()),
        }
    }
}

/// How many more mounts a namespace has than are listed; `None` when the kernel does not tell.
fn hidden(namespace: &File, listed: usize) -> io::Result<Option<u64>> {
    let all = mntns::count(namespace.as_fd())?;
    Ok(all.map(|all| u64::from(all).saturating_sub(listed as u64)))
}

fn given_namespaces(
    spec: &Spec,
    cgroup_namespace: Option<&OwnedFd>,
) -> io::Result<[u64; policy::KINDS.len()]> {
    let mut given = [0; policy::KINDS.len()];
    for (inode, kind) in given.iter_mut().zip(policy::KINDS) {
        if let Namespace::Path(path) = spec::namespace(spec, kind) {
            *inode = mountpoint::open_namespace(&path)?.1;
        }
    }
    if let Some(made) = cgroup_namespace {
        given[policy::CGROUP] = rustix::fs::fstat(made)?.st_ino;
    }
    Ok(given)
}

/// What the spec mounts, the root file system first.
fn expected_mounts(spec: &Spec, rootfs: &Path) -> io::Result<Vec<Expected>> {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let read_only = spec
        .root()
        .as_ref()
        .and_then(oci_spec::runtime::Root::readonly);
    let mut expected = vec![Expected {
        at: "/".into(),
        what: What::Bind {
            source: rootfs.to_owned(),
            identity: Some(identity(rootfs)?),
            recursive: false,
        },
        flags: Flags {
            read_only: read_only.unwrap_or(false),
            ..Flags::default()
        },
    }];
    for mount in spec.mounts().iter().flatten() {
        let options = || mount.options().iter().flatten();
        let kind = mount.typ().clone().unwrap_or_default();
        let recursive = options().any(|o| o == "rbind");
        let what = match mount.source() {
            Some(source) if recursive || kind == "bind" || options().any(|o| o == "bind") => {
                What::Bind {
                    source: source.clone(),
                    identity: identity(source).ok(),
                    recursive,
                }
            }
            _ if matches!(kind.as_str(), "cgroup" | "cgroup2") => What::Cgroups,
            _ => What::FileSystem(kind),
        };
        expected.push(Expected {
            at: mountpoint::resolve(rootfs, mount.destination())?,
            what,
            flags: Flags::of_options(options()),
        });
    }
    Ok(expected)
}
