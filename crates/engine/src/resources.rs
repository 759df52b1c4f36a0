//! Limits: the spec's `linux.resources` written into a container's cgroups by
//! libcgroups, and what it needs help with.

use std::fs;
use std::io;
use std::path::PathBuf;

use libcgroups::common::{
    AnyManagerError, CgroupConfig, CgroupManager as _, ControllerOpt, CreateCgroupSetupError,
};
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use crate::cgroup::{Cgroups, Kind};
use crate::protocol::FailureKind;

/// A limit that was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot find the machine's cgroups")]
    Setup(#[from] CreateCgroupSetupError),
    #[error("a limit is refused")]
    Refused(#[from] AnyManagerError),
    #[error("cannot write {file}")]
    Swap {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("of a refused update, the kernel would not take back {files}")]
    Half {
        files: String,
        #[source]
        source: Box<Self>,
    },
}

impl Error {
    /// What the caller can do about it.
    pub(crate) fn kind(&self) -> FailureKind {
        match self {
            Self::Setup(_) | Self::Half { .. } => FailureKind::Other,
            Self::Refused(_) | Self::Swap { .. } => FailureKind::Spec,
        }
    }
}

/// Writes all limits of a spec.
pub(crate) fn limit(cgroups: &Cgroups, resources: &LinuxResources) -> Result<(), Error> {
    write(cgroups, resources)
}

/// Writes the limits that are named, and leaves the others as they are; all of
/// them, or none.
pub(crate) fn update(cgroups: &Cgroups, wanted: LinuxResources) -> Result<(), Error> {
    let unified = wanted.unified().iter().flatten().map(|(file, _)| file);
    let before = Before::read(cgroups, unified);
    change(cgroups, wanted).map_err(|source| match before.write_back() {
        files if files.is_empty() => source,
        files => Error::Half {
            files: files.join(", "),
            source: Box::new(source),
        },
    })
}

fn change(cgroups: &Cgroups, wanted: LinuxResources) -> Result<(), Error> {
    let memory = cgroups.dirs().find(|(h, _)| h.has("memory"));
    let wanted = changes(wanted, &V1Memory::read(memory.map(|(_, dir)| dir)));
    let first = match write(cgroups, &wanted) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    // A new period may be out of bounds with the old quota only.
    let Some(quota) = quota_alone(&wanted) else {
        return Err(first);
    };
    write(cgroups, &quota)
        .and_then(|()| write(cgroups, &wanted))
        .map_err(|_| first)
}

/// libcgroups orders memory and swap by what is there, so that neither is ever
/// above the other.
fn write(cgroups: &Cgroups, resources: &LinuxResources) -> Result<(), Error> {
    let manager = libcgroups::common::create_cgroup_manager(CgroupConfig {
        cgroup_path: cgroups.path(),
        systemd_cgroup: false,
        container_name: String::new(),
    })?;
    let memory = resources.memory().as_ref();
    manager.apply(&ControllerOpt {
        resources,
        disable_oom_killer: memory.and_then(|m| m.disable_oom_killer()).unwrap_or(false),
        oom_score_adj: None,
        freezer_state: None,
    })?;
    if let Some(file) = no_swap(cgroups, resources)
        && file.exists()
    {
        fs::write(&file, "0").map_err(|source| Error::Swap { file, source })?;
    }
    Ok(())
}

/// v2 limits swap apart from memory. libcgroups takes the difference of the
/// two, and one of 0 for no limit.
fn no_swap(cgroups: &Cgroups, resources: &LinuxResources) -> Option<PathBuf> {
    let memory = resources.memory().as_ref()?;
    let limit = memory.limit().filter(|l| *l > 0)?;
    if memory.swap() != Some(limit) || cgroups.dirs().any(|(h, _)| h.has("memory")) {
        return None;
    }
    let v2 = cgroups.dirs().find(|(h, _)| h.kind == Kind::V2);
    v2.map(|(_, dir)| dir.join("memory.swap.max"))
}

/// The files that an update may write, of both versions of cgroups.
const LIMITS: [&str; 25] = [
    "blkio.weight",
    "cpu.cfs_burst_us",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.shares",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "io.weight",
    "memory.high",
    "memory.limit_in_bytes",
    "memory.low",
    "memory.max",
    "memory.memsw.limit_in_bytes",
    "memory.min",
    "memory.soft_limit_in_bytes",
    "memory.swap.max",
    "memory.swappiness",
    "net_cls.classid",
    "pids.max",
];

/// What the limits were, for an update that is refused half way.
#[derive(Debug)]
struct Before(Vec<(PathBuf, String)>);

impl Before {
    fn read<'a>(cgroups: &Cgroups, more: impl Iterator<Item = &'a String>) -> Self {
        let more: Vec<_> = more.map(String::as_str).collect();
        let mut values = Vec::new();
        for (_, dir) in cgroups.dirs() {
            for name in LIMITS.iter().chain(&more) {
                // A name from outside must not lead elsewhere.
                let file = dir.join(name);
                if file.parent() == Some(&dir)
                    && let Ok(value) = fs::read_to_string(&file)
                {
                    values.push((file, value));
                }
            }
        }
        Self(values)
    }

    /// Writes what has changed; answers the files that stay changed.
    fn write_back(&self) -> Vec<String> {
        let changed = |(file, value): &&(PathBuf, String)| {
            fs::read_to_string(file).is_ok_and(|now| now != *value)
        };
        // One limit may have to go before another can.
        for _ in 0..3 {
            for (file, value) in self.0.iter().filter(changed) {
                let _ = fs::write(file, value.trim_end());
            }
        }
        let stay = self.0.iter().filter(changed);
        stay.map(|(file, _)| file.display().to_string()).collect()
    }
}

/// What an update must not change by the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct V1Memory {
    oom_killer_disabled: bool,
    /// The kernel limits memory and swap together.
    swap: bool,
}

impl V1Memory {
    /// v2: nothing needs care.
    const NONE: Self = Self {
        oom_killer_disabled: false,
        swap: true,
    };

    fn read(dir: Option<PathBuf>) -> Self {
        let Some(dir) = dir else {
            return Self::NONE;
        };
        let control = fs::read_to_string(dir.join("memory.oom_control")).unwrap_or_default();
        Self {
            oom_killer_disabled: control.lines().any(|l| l == "oom_kill_disable 1"),
            swap: dir.join("memory.memsw.limit_in_bytes").exists(),
        }
    }
}

/// The limits that libcgroups is to write so that nothing else changes: it
/// takes what is missing for a default in places.
fn changes(mut wanted: LinuxResources, now: &V1Memory) -> LinuxResources {
    // Clients send the whole spec, "deny all" first; a running program would
    // be without its devices for a moment.
    wanted.set_devices(None);
    if wanted.pids().is_some_and(|p| p.limit() == 0) {
        wanted.set_pids(None);
    }
    if let Some(memory) = wanted.memory_mut() {
        if memory.disable_oom_killer().is_none() {
            memory.set_disable_oom_killer(Some(now.oom_killer_disabled));
        }
        // No limit of memory means none of swap, where there is one. 0 is no change.
        if memory.limit() == Some(-1) && memory.swap().is_none() && !now.swap {
            memory.set_swap(Some(0));
        }
    }
    wanted
}

/// The processor quota of limits that also have a period.
fn quota_alone(wanted: &LinuxResources) -> Option<LinuxResources> {
    let cpu = wanted.cpu().as_ref()?;
    cpu.period()?;
    let mut quota = LinuxCpu::default();
    quota.set_quota(Some(cpu.quota()?));
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_cpu(Some(quota));
    Some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let wanted = parse(
            r#"{"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":0},
                "memory":{"limit":4096,"swap":8192},"cpu":{"shares":10}}"#,
        );
        let now = V1Memory {
            oom_killer_disabled: true,
            swap: true,
        };
        let changes = changes(wanted, &now);
        assert!(changes.devices().is_none() && changes.pids().is_none());
        let memory = changes.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(4096), Some(8192)));
        assert_eq!(memory.disable_oom_killer(), Some(true));
        assert_eq!(changes.cpu().as_ref().unwrap().shares(), Some(10));
        // And a limit of processes that is one stays.
        let pids = super::changes(parse(r#"{"pids":{"limit":5}}"#), &now);
        assert_eq!(pids.pids().unwrap().limit(), 5);
    }

    #[test]
    fn swap_is_lifted_with_memory_only_where_it_is_limited() {
        let unlimited = || parse(r#"{"memory":{"limit":-1}}"#);
        let swap = |now| changes(unlimited(), &now).memory().unwrap().swap();
        let without = V1Memory {
            swap: false,
            ..V1Memory::NONE
        };
        assert_eq!(swap(V1Memory::NONE), None);
        assert_eq!(swap(without), Some(0));
    }

    #[test]
    fn what_an_update_changed_is_written_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("c");
        fs::create_dir(&dir).unwrap();
        let hierarchy = crate::cgroup::Hierarchy {
            mountpoint: root.path().to_owned(),
            kind: Kind::V2,
        };
        let cgroups = Cgroups::within(std::path::Path::new("/c"), vec![hierarchy]).unwrap();
        fs::write(dir.join("pids.max"), "10\n").unwrap();
        fs::write(dir.join("memory.max"), "max\n").unwrap();
        fs::write(dir.join("misc.max"), "a 1\n").unwrap();
        fs::write(root.path().join("outside"), "1\n").unwrap();
        let more = ["misc.max".to_owned(), "../outside".to_owned()];
        let before = Before::read(&cgroups, more.iter());
        assert_eq!(before.0.len(), 3);
        fs::write(dir.join("pids.max"), "20\n").unwrap();
        fs::write(dir.join("misc.max"), "a 2\n").unwrap();
        // Unlike the kernel, a plain file does not end in a newline then.
        assert_eq!(before.write_back().len(), 2);
        assert_eq!(fs::read_to_string(dir.join("pids.max")).unwrap(), "10");
        assert_eq!(fs::read_to_string(dir.join("misc.max")).unwrap(), "a 1");
        assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap(), "max\n");
    }

    #[test]
    fn a_quota_goes_alone_only_beside_a_period() {
        assert_eq!(quota_alone(&parse(r#"{"cpu":{"quota":5}}"#)), None);
        let both = parse(r#"{"cpu":{"quota":5,"period":10,"shares":3}}"#);
        let cpu = quota_alone(&both).unwrap().cpu().clone().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(5), None, None)
        );
    }
}
