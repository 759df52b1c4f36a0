//! What an exec'd process is to be, from its JSON and the container's spec. Pure.

use std::path::PathBuf;

use cryo_sys::sched::Scheduler;
use oci_spec::runtime::{LinuxPersonalityDomain, LinuxSeccomp, LinuxSeccompAction, Spec};
use rustix::process::{Resource, Rlimit};
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, CpuSet};
use serde::Deserialize;

/// The OCI `Process`, read leniently: what this kernel does not know must not
/// keep a process from running.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Process {
    terminal: Option<bool>,
    console_size: Option<Size>,
    user: User,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: PathBuf,
    capabilities: Option<Names>,
    rlimits: Option<Vec<Limit>>,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    selinux_label: Option<String>,
    oom_score_adj: Option<i32>,
    io_priority: Option<IoPriority>,
    scheduler: Option<Policy>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<Affinity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct User {
    uid: u32,
    gid: u32,
    umask: Option<u32>,
    additional_gids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Size {
    height: u64,
    width: u64,
}

#[derive(Debug, Deserialize)]
struct Limit {
    #[serde(rename = "type")]
    name: String,
    #[serde(default)]
    hard: u64,
    #[serde(default)]
    soft: u64,
}

#[derive(Debug, Deserialize)]
struct IoPriority {
    class: String,
    #[serde(default)]
    priority: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    policy: String,
    nice: i32,
    priority: u32,
    flags: Vec<String>,
    runtime: u64,
    deadline: u64,
    period: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Affinity {
    initial: String,
    #[serde(rename = "final")]
    last: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Names {
    bounding: Option<Vec<String>>,
    effective: Option<Vec<String>>,
    inheritable: Option<Vec<String>>,
    permitted: Option<Vec<String>>,
    ambient: Option<Vec<String>>,
}

/// The five capability sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) bounding: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) inheritable: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

/// A label that a security module takes on at `execve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// Below `/proc/self/attr`, the first that exists.
    pub(super) files: &'static [&'static str],
    pub(super) text: String,
}

/// Everything that is known before anything is done.
#[derive(Debug)]
pub(super) struct Plan {
    /// The terminal's first size, if there is a terminal.
    pub(super) terminal: Option<Option<Winsize>>,
    pub(super) program: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) umask: u32,
    pub(super) limits: Vec<(Resource, Rlimit)>,
    pub(super) capabilities: Capabilities,
    pub(super) no_new_privs: bool,
    pub(super) labels: Vec<Label>,
    pub(super) oom_score_adj: Option<i32>,
    /// Class and level.
    pub(super) io_priority: Option<(u32, u32)>,
    pub(super) scheduler: Option<Scheduler>,
    /// The processors before the process is in the container's cgroups.
    pub(super) first_cpus: Option<CpuSet>,
    /// The processors from then on.
    pub(super) cpus: Option<CpuSet>,
    /// As personality(2) numbers it.
    pub(super) personality: Option<u32>,
    pub(super) seccomp: Option<LinuxSeccomp>,
}

impl Plan {
    /// Plans a process of the container that `spec` describes. What the
    /// process does not say about capabilities, limits, labels and scheduling
    /// is as for the container's own.
    pub(super) fn new(process: &[u8], spec: &Spec) -> Result<Self, String> {
        let own: Process = serde_json::from_slice(process)
            .map_err(|e| format!("the process to exec cannot be decoded: {e}"))?;
        let of_container: Process = spec
            .process()
            .as_ref()
            .and_then(|p| serde_json::to_value(p).ok())
            .and_then(|v| serde_json::from_value(v).ok())
            .unwrap_or_default();
        let args = own.args.unwrap_or_default();
        let program = args
            .first()
            .filter(|a| !a.is_empty())
            .ok_or("the process to exec has no arguments")?
            .clone();
        if !own.cwd.as_os_str().is_empty() && !own.cwd.is_absolute() {
            return Err(format!("cwd {:?} is not absolute", own.cwd));
        }
        let limits = own
            .rlimits
            .filter(|l| !l.is_empty())
            .or(of_container.rlimits)
            .unwrap_or_default()
            .iter()
            .map(limit)
            .collect::<Result<_, _>>()?;
        let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().clone());
        if seccomp.as_ref().is_some_and(notifies) {
            return Err(
                "the container's seccomp filter asks an agent (SCMP_ACT_NOTIFY), which cryo cannot pass to exec'd processes; use another profile"
                    .to_owned(),
            );
        }
        let labels = [
            (
                own.apparmor_profile
                    .or(of_container.apparmor_profile)
                    .map(|p| format!("exec {p}")),
                &["apparmor/exec", "exec"][..],
                "exec ",
            ),
            (
                own.selinux_label.or(of_container.selinux_label),
                &["exec"][..],
                "",
            ),
        ]
        .into_iter()
        .filter_map(|(text, files, empty)| {
            text.filter(|t| t != empty)
                .map(|text| Label { files, text })
        })
        .collect();
        let size = own.console_size.and_then(|s| {
            Some(Winsize {
                ws_row: u16::try_from(s.height).ok()?,
                ws_col: u16::try_from(s.width).ok()?,
                ws_xpixel: 0,
                ws_ypixel: 0,
            })
        });
        let affinity = own
            .exec_cpu_affinity
            .or(of_container.exec_cpu_affinity)
            .unwrap_or_default();
        Ok(Self {
            terminal: own.terminal.unwrap_or(false).then_some(size),
            program,
            args,
            env: last_of_each(own.env.unwrap_or_default()),
            cwd: if own.cwd.as_os_str().is_empty() {
                "/".into()
            } else {
                own.cwd
            },
            uid: own.user.uid,
            gid: own.user.gid,
            groups: own.user.additional_gids.unwrap_or_default(),
            umask: own.user.umask.unwrap_or(0o022),
            limits,
            capabilities: capabilities(own.capabilities.or(of_container.capabilities)),
            no_new_privs: own.no_new_privileges.unwrap_or(false),
            labels,
            oom_score_adj: own.oom_score_adj,
            io_priority: own
                .io_priority
                .or(of_container.io_priority)
                .map(|p| io_priority(&p))
                .transpose()?,
            scheduler: own
                .scheduler
                .or(of_container.scheduler)
                .map(|p| scheduler(&p))
                .transpose()?,
            first_cpus: cpus(&affinity.initial)?,
            cpus: cpus(&affinity.last)?,
            personality: spec
                .linux()
                .as_ref()
                .and_then(|l| l.personality().as_ref())
                .map(|p| match p.domain() {
                    LinuxPersonalityDomain::PerLinux => 0,
                    LinuxPersonalityDomain::PerLinux32 => 8,
                }),
            seccomp,
        })
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .find_map(|e| e.strip_prefix(name)?.strip_prefix('='))
    }
}

fn notifies(seccomp: &LinuxSeccomp) -> bool {
    seccomp
        .syscalls()
        .iter()
        .flatten()
        .any(|s| s.action() == LinuxSeccompAction::ScmpActNotify)
}

/// Of several values of one variable the last counts; the order stays.
fn last_of_each(env: Vec<String>) -> Vec<String> {
    let name = |e: &str| e.split_once('=').map_or(e, |(n, _)| n).to_owned();
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<_> = env
        .into_iter()
        .rev()
        .filter(|e| seen.insert(name(e)))
        .collect();
    kept.reverse();
    kept
}

fn capabilities(names: Option<Names>) -> Capabilities {
    let names = names.unwrap_or_default();
    Capabilities {
        bounding: capability_set(names.bounding),
        effective: capability_set(names.effective),
        inheritable: capability_set(names.inheritable),
        permitted: capability_set(names.permitted),
        ambient: capability_set(names.ambient),
    }
}

/// Names that nobody knows are left out, as runc does.
fn capability_set(names: Option<Vec<String>>) -> CapabilitySet {
    names
        .into_iter()
        .flatten()
        .filter_map(|n| CapabilitySet::from_name(n.strip_prefix("CAP_")?))
        .fold(CapabilitySet::empty(), CapabilitySet::union)
}

fn limit(limit: &Limit) -> Result<(Resource, Rlimit), String> {
    let resource = match limit.name.strip_prefix("RLIMIT_").unwrap_or_default() {
        "CPU" => Resource::Cpu,
        "FSIZE" => Resource::Fsize,
        "DATA" => Resource::Data,
        "STACK" => Resource::Stack,
        "CORE" => Resource::Core,
        "RSS" => Resource::Rss,
        "NPROC" => Resource::Nproc,
        "NOFILE" => Resource::Nofile,
        "MEMLOCK" => Resource::Memlock,
        "AS" => Resource::As,
        "LOCKS" => Resource::Locks,
        "SIGPENDING" => Resource::Sigpending,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        _ => return Err(format!("there is no resource limit {:?}", limit.name)),
    };
    // The largest number is how the kernel says "no limit".
    let value = |v: u64| (v != u64::MAX).then_some(v);
    Ok((
        resource,
        Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        },
    ))
}

fn io_priority(wanted: &IoPriority) -> Result<(u32, u32), String> {
    let class = match wanted.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(format!("there is no io priority class {other:?}")),
    };
    if wanted.priority > 7 {
        return Err(format!("io priority {} is not in 0-7", wanted.priority));
    }
    Ok((class, wanted.priority))
}

fn scheduler(wanted: &Policy) -> Result<Scheduler, String> {
    let policy = match wanted.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(format!("there is no scheduler policy {other:?}")),
    };
    let flag = |name: &String| match name.as_str() {
        "SCHED_FLAG_RESET_ON_FORK" => Ok(0x01),
        "SCHED_FLAG_RECLAIM" => Ok(0x02),
        "SCHED_FLAG_DL_OVERRUN" => Ok(0x04),
        "SCHED_FLAG_KEEP_POLICY" => Ok(0x08),
        "SCHED_FLAG_KEEP_PARAMS" => Ok(0x10),
        other => Err(format!("there is no scheduler flag {other:?}")),
    };
    let flags = wanted
        .flags
        .iter()
        .map(flag)
        .try_fold(0, |all, one| Ok::<u64, String>(all | one?))?;
    Ok(Scheduler {
        policy,
        flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    })
}

/// Processors from a list such as `0-3,7`; an empty one says nothing.
fn cpus(list: &str) -> Result<Option<CpuSet>, String> {
    if list.is_empty() {
        return Ok(None);
    }
    let bad = || format!("{list:?} is no list of processors, as 0-3,7 is");
    let number = |text: &str| {
        let n = text.trim().parse::<usize>().map_err(|_| bad())?;
        (n < CpuSet::MAX_CPU).then_some(n).ok_or_else(bad)
    };
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = number(first)?..=number(last)?;
        if range.is_empty() {
            return Err(bad());
        }
        range.for_each(|n| set.set(n));
    }
    Ok(Some(set))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion":"1.1.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["x"],
                "capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"]},
                "rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":18446744073709551615}]}}"#,
        )
        .unwrap()
    }

    #[test]
    fn what_is_not_said_is_the_containers() {
        let plan = Plan::new(br#"{"args":["sh"],"cwd":""}"#, &spec()).unwrap();
        assert_eq!(plan.capabilities.effective, CapabilitySet::KILL);
        assert_eq!(plan.capabilities.permitted, CapabilitySet::empty());
        assert_eq!(plan.limits.len(), 1);
        assert_eq!(plan.limits[0].1.maximum, Some(1024));
        assert_eq!(plan.limits[0].1.current, None);
        assert_eq!((plan.umask, plan.cwd.to_str()), (0o022, Some("/")));
        assert!(plan.terminal.is_none() && plan.labels.is_empty() && !plan.no_new_privs);
    }

    #[test]
    fn what_is_said_counts() {
        let plan = Plan::new(
            br#"{"args":["sh","-c","x"],"cwd":"/tmp","terminal":true,"consoleSize":{"height":24,"width":80},
                "user":{"uid":5,"gid":6,"umask":63,"additionalGids":[7,8]},"noNewPrivileges":true,
                "apparmorProfile":"p","selinuxLabel":"","oomScoreAdj":7,
                "capabilities":{"permitted":["CAP_CHOWN","CAP_FROM_THE_FUTURE"]},
                "env":["A=1","B=2","A=3"]}"#,
            &spec(),
        )
        .unwrap();
        assert_eq!(plan.capabilities.permitted, CapabilitySet::CHOWN);
        assert_eq!(plan.capabilities.effective, CapabilitySet::empty());
        let size = plan.terminal.unwrap().unwrap();
        assert_eq!((size.ws_row, size.ws_col), (24, 80));
        assert_eq!((plan.uid, plan.gid, plan.umask), (5, 6, 0o77));
        assert_eq!(plan.groups, [7, 8]);
        assert_eq!(plan.variable("A"), Some("3"));
        assert_eq!(plan.variable("C"), None);
        assert_eq!(plan.labels.len(), 1);
        assert_eq!(plan.labels[0].text, "exec p");
        assert_eq!(plan.oom_score_adj, Some(7));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &b"{"[..],
            b"{}",
            br#"{"args":[]}"#,
            br#"{"args":[""]}"#,
            br#"{"args":["x"],"cwd":"tmp"}"#,
            br#"{"args":["x"],"rlimits":[{"type":"RLIMIT_X"}]}"#,
            br#"{"args":["x"],"ioPriority":{"class":"IOPRIO_CLASS_X"}}"#,
            br#"{"args":["x"],"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}}"#,
            br#"{"args":["x"],"scheduler":{"policy":"SCHED_X"}}"#,
            br#"{"args":["x"],"scheduler":{"policy":"SCHED_IDLE","flags":["X"]}}"#,
            br#"{"args":["x"],"execCPUAffinity":{"final":"2-1"}}"#,
            br#"{"args":["x"],"execCPUAffinity":{"initial":"99999"}}"#,
        ] {
            assert!(Plan::new(bad, &spec()).is_err());
        }
        let notify: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW",
                "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}}}"#,
        )
        .unwrap();
        let error = Plan::new(br#"{"args":["x"]}"#, &notify).unwrap_err();
        assert!(error.contains("SCMP_ACT_NOTIFY"), "{error}");
    }

    #[test]
    fn scheduling_is_the_processes_or_the_containers() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.1.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
                "ioPriority":{"class":"IOPRIO_CLASS_BE","priority":3},
                "scheduler":{"policy":"SCHED_BATCH","nice":4}},
                "linux":{"personality":{"domain":"LINUX32"}}}"#,
        )
        .unwrap();
        let plan = Plan::new(br#"{"args":["x"]}"#, &spec).unwrap();
        assert_eq!(plan.io_priority, Some((2, 3)));
        let batch = plan.scheduler.unwrap();
        assert_eq!((batch.policy, batch.nice), (3, 4));
        assert_eq!(plan.personality, Some(8));
        assert!(plan.cpus.is_none() && plan.first_cpus.is_none());
        let plan = Plan::new(
            br#"{"args":["x"],"ioPriority":{"class":"IOPRIO_CLASS_IDLE"},
                "scheduler":{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_RESET_ON_FORK"],"runtime":5},
                "execCPUAffinity":{"initial":"0","final":"0-2,5"}}"#,
            &spec,
        )
        .unwrap();
        assert_eq!(plan.io_priority, Some((3, 0)));
        let deadline = plan.scheduler.unwrap();
        assert_eq!(
            (deadline.policy, deadline.flags, deadline.runtime),
            (6, 1, 5)
        );
        assert_eq!(plan.first_cpus.unwrap().count(), 1);
        let cpus = plan.cpus.unwrap();
        assert!(cpus.count() == 4 && cpus.is_set(2) && cpus.is_set(5));
    }

    proptest! {
        #[test]
        fn each_variable_is_kept_once_with_its_last_value(env in proptest::collection::vec("[AB]{0,2}=?[a-c]{0,2}", 0..12)) {
            let kept = last_of_each(env.clone());
            let name = |e: &String| e.split('=').next().unwrap_or_default().to_owned();
            for entry in &env {
                let last = env.iter().rfind(|e| name(e) == name(entry)).unwrap();
                prop_assert_eq!(kept.iter().filter(|e| name(e) == name(entry)).collect::<Vec<_>>(), [last]);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Plan::new(&bytes, &spec());
        }
    }
}
