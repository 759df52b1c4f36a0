//! What is in the way of a checkpoint, found before anything is frozen.
//!
//! CRIU finds it too, but one thing at a time, with the container frozen, in its own words; some
//! of it only at the restore, and some never. So [`check`] reads what the kernel tells of a
//! container's processes (`/proc`, `sock_diag`) and judges it by what CRIU 4.2 does; a few
//! milliseconds, and the processes do not notice. CRIU has the last word.
//!
//! Processes come and go while this reads: what is no longer there is in nobody's way. What is
//! in the way has to be there twice, a moment apart: a connection that lasts for a millisecond
//! is no reason to refuse.
//!
//! A container may be made to be tedious. The time has a limit, what is kept has one, and each
//! text of the container's is cut and made printable.
//!
//! | module | what | does I/O |
//! |---|---|---|
//! | `problem` | the table: what, why, remedy | no |
//! | `parse` | texts of `/proc` | no |
//! | `file`, `socket` | judging | no |
//! | `procfs`, `diag` | reading `/proc`; asking about sockets | yes |
//! | `look` | from a process to a report | yes |
//!
//! Two things lose state, and no kernel interface shows them: a Landlock domain whose ruleset is
//! closed, and system calls caught by `PR_SET_SYSCALL_USER_DISPATCH`, which only a tracer of the
//! stopped thread sees.

mod diag;
mod file;
mod look;
mod parse;
mod problem;
mod procfs;
mod socket;

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Pid;

pub use problem::{Finding, Object, Problem, Process, Severity};

use crate::options::Checkpoint;
use diag::{Diag, State};

/// The most findings of one look, of each of its lists.
const MAX_SEEN: usize = 2000;
/// The most findings of a report, of each of its lists.
const MAX_KEPT: usize = 64;
/// The most of them of one kind in one process.
const MAX_ALIKE: usize = 4;
/// The most findings in the text of a refusal.
const MAX_TOLD: usize = 3;
/// How long after the first look comes the second.
const SECOND_LOOK: Duration = Duration::from_millis(10);

/// What the dump will be allowed, of the [options](crate::options) of a checkpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// Dump established TCP connections, kept or as closed.
    pub tcp_established: bool,
    /// Leave out TCP connections that are being established.
    pub tcp_skip_in_flight: bool,
    /// Dump file locks.
    pub file_locks: bool,
    /// Link files that are deleted but have another name.
    pub link_remap: bool,
    /// The largest deleted file that is dumped.
    pub ghost_limit_bytes: Option<u32>,
    /// Dump datagram sockets whose peer is outside.
    pub ext_unix_sk: bool,
    /// The tree shares its session with the outside.
    pub shell_job: bool,
    /// State may be lost: what only loses some is a warning.
    pub lossy: bool,
}

impl From<&Checkpoint> for Allowed {
    fn from(options: &Checkpoint) -> Self {
        Self {
            tcp_established: options.tcp_established || options.tcp_close,
            tcp_skip_in_flight: options.tcp_skip_in_flight,
            file_locks: options.file_locks,
            link_remap: options.link_remap,
            ghost_limit_bytes: options.ghost_limit_bytes,
            ext_unix_sk: options.ext_unix_sk,
            shell_job: options.shell_job,
            lossy: options.lossy,
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is in the way.
    pub obstacles: Vec<Finding>,
    /// What is lost without being in the way.
    pub warnings: Vec<Finding>,
    /// How many findings more there are than are told.
    pub more: usize,
    /// How many processes were looked at.
    pub processes: usize,
    /// How long the last look took.
    pub took: Duration,
    /// The time was up before everything was looked at.
    pub incomplete: bool,
    /// A process is stopped by a signal where the freezer is cgroup v1's. Frozen, it could not be
    /// traced: CRIU would wait for it, uninterruptibly, until somebody thaws.
    pub stopped: bool,
    connections: Option<Connections>,
}

/// The TCP connections of a network namespace.
#[derive(Debug)]
struct Connections {
    diag: Diag,
    /// Those that were somebody else's.
    others: HashSet<u64>,
}

impl Report {
    /// The first obstacles as a sentence, one of each kind before a second of any; `None` if
    /// nothing is in the way.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let mut kinds = HashSet::new();
        let (first, second): (Vec<_>, Vec<_>) =
            self.obstacles.iter().partition(|f| kinds.insert(f.problem));
        let told: Vec<String> = first
            .into_iter()
            .chain(second)
            .take(MAX_TOLD)
            .map(ToString::to_string)
            .collect();
        let more = self.obstacles.len() + self.more - told.len();
        match (told.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(told.join("; ")),
            (false, more) => Some(format!("{}; and {more} more", told.join("; "))),
        }
    }

    /// Whether the processes may have a TCP connection now. Ask while they are frozen, so that
    /// the answer stays true; when it cannot be told, they may.
    #[must_use]
    pub fn has_connections(&self) -> bool {
        let Some(Connections { diag, others }) = &self.connections else {
            return true;
        };
        diag.tcp().map_or(true, |all| {
            all.iter()
                .any(|s| s.state == State::Connected && !others.contains(&s.inode))
        })
    }
}

/// Looks at the process `root` and all that descend from it, for `limit` at most. Blocks.
///
/// Those `beside` it, by their ids here, are frozen with it and not dumped, as execs are; such as
/// are in the tree as well may be among them.
///
/// # Errors
///
/// What the kernel says when `root` cannot be read: `ESRCH` or `ENOENT` when it is gone,
/// `EACCES` without the right to look into it.
pub fn check(root: Pid, beside: &[u32], allowed: &Allowed, limit: Duration) -> io::Result<Report> {
    let look = || look::look(root, beside, allowed, Instant::now() + limit / 2);
    let mut report = look()?;
    if !report.obstacles.is_empty() {
        let before: HashSet<_> = report.obstacles.into_iter().collect();
        std::thread::sleep(SECOND_LOOK);
        report = look()?;
        report.obstacles.retain(|f| before.contains(f));
    }
    report.more += trim(&mut report.obstacles) + trim(&mut report.warnings);
    Ok(report)
}

/// Leaves some of each kind, and of all; how many are left out.
fn trim(findings: &mut Vec<Finding>) -> usize {
    let all = findings.len();
    let mut alike = HashMap::new();
    findings.retain(|f| {
        let count: &mut usize = alike.entry((f.problem, f.process.host_pid)).or_default();
        *count += 1;
        *count <= MAX_ALIKE
    });
    findings.truncate(MAX_KEPT);
    all - findings.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(problem: Problem, host_pid: u32, number: u32) -> Finding {
        Finding {
            problem,
            process: Process {
                pid: host_pid,
                host_pid,
                command: "x".to_owned(),
            },
            object: Object::Fd {
                number,
                name: "y".to_owned(),
            },
            inode: 0,
        }
    }

    #[test]
    fn one_kind_does_not_hide_another() {
        let locks = (0..1000).map(|n| finding(Problem::FileLock, 1, n));
        let mut found: Vec<_> = locks.chain([finding(Problem::Mptcp, 1, 9)]).collect();
        assert_eq!(trim(&mut found), 1000 - MAX_ALIKE);
        assert_eq!(found.len(), MAX_ALIKE + 1);
        let report = Report {
            obstacles: found,
            more: 996,
            ..Report::default()
        };
        let text = report.refusal().unwrap();
        assert_eq!(text.matches("process 1 (x)").count(), MAX_TOLD, "{text}");
        assert!(text.contains("MPTCP"), "{text}");
        assert!(text.ends_with("; and 998 more"), "{text}");

        let mut many = (0..1000).map(|n| finding(Problem::Mptcp, n, 1)).collect();
        assert_eq!(trim(&mut many), 1000 - MAX_KEPT);
        assert_eq!(Report::default().refusal(), None);
    }

    #[test]
    fn the_time_has_a_limit() {
        let own = rustix::process::getpid();
        match check(own, &[], &Allowed::default(), Duration::ZERO) {
            Ok(report) => assert!(report.incomplete),
            // Before the first process was looked at.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
        }
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        child.wait().unwrap();
        let error = check(pid, &[], &Allowed::default(), Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
