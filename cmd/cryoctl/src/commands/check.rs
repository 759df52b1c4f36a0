//! `cryoctl check`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use cryo_criu::preflight::{self, Allowed, Finding, Object, Report};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::Format;
use crate::containerd::{Client, Socket, block_on};
use crate::failure::Failure;
use crate::text;

/// Nobody waits for this one but who asked.
const LIMIT: Duration = Duration::from_secs(60);

const EXIT_CODES: &str = "\
Exit codes:
  0  nothing is in the way of a checkpoint
  1  something is; stdout says what
  2  it could not be checked, or the command line is wrong; stderr says why";

/// Say what is in the way of a checkpoint.
///
/// Looks at the processes of a running container, as the runtime does before each checkpoint,
/// and changes nothing. Needs root. What CRIU alone can find, it does not.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Check {
    /// The container's id.
    #[arg(required_unless_present = "pid")]
    container: Option<String>,

    /// A process, with all that descend from it, in place of a container.
    #[arg(long, conflicts_with = "container")]
    pid: Option<i32>,

    /// containerd's namespace. That of Kubernetes is k8s.io.
    #[arg(long, short, default_value = "default")]
    namespace: String,

    #[command(flatten)]
    socket: Socket,

    /// What the checkpoint will be allowed.
    #[arg(long, value_name = "OPTION", value_enum, value_delimiter = ',')]
    allow: Vec<Allow>,

    /// The largest deleted file that the checkpoint will take, in bytes.
    #[arg(long, value_name = "BYTES")]
    ghost_limit: Option<u32>,

    /// How to print it. The JSON keys name their units: `_us`.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Allow {
    /// Open TCP connections.
    TcpEstablished,
    /// TCP connections that are not accepted yet.
    TcpSkipInFlight,
    /// File locks.
    FileLocks,
    /// Deleted files that have another name.
    LinkRemap,
    /// Datagram sockets connected to the outside.
    ExtUnixSk,
    /// A session shared with the outside.
    ShellJob,
    /// Some state may be lost.
    Lossy,
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let (report, text) = self.check().map_err(|e| Failure::from(e).code(2))?;
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::from(u8::from(!report.obstacles.is_empty())))
    }

    fn check(&self) -> anyhow::Result<(Report, String)> {
        let (first, all) = match (&self.container, self.pid) {
            (Some(id), _) => {
                let found = block_on(async {
                    let client = Client::connect(&self.socket.address, &self.namespace).await?;
                    client.processes(id).await
                })?;
                (found.first.cast_signed(), found.all)
            }
            (None, pid) => (pid.unwrap_or_default(), Vec::new()),
        };
        let pid = Pid::from_raw(first)
            .filter(|_| first > 0)
            .with_context(|| format!("{first} is no process"))?;
        let report = preflight::check(pid, &all, &self.allowed(), LIMIT)
            .with_context(|| format!("cannot look at the process {first}"))?;
        if report.incomplete && report.obstacles.is_empty() {
            return Err(anyhow!(
                "nothing was found in {} s, but there is more to look at",
                LIMIT.as_secs()
            ));
        }
        let text = match self.format {
            Format::Text => render(&report),
            Format::Json => text::pretty(&to_json(&report))?,
        };
        Ok((report, text))
    }

    fn allowed(&self) -> Allowed {
        let has = |option| self.allow.contains(&option);
        Allowed {
            tcp_established: has(Allow::TcpEstablished),
            tcp_skip_in_flight: has(Allow::TcpSkipInFlight),
            file_locks: has(Allow::FileLocks),
            link_remap: has(Allow::LinkRemap),
            ghost_limit_bytes: self.ghost_limit,
            ext_unix_sk: has(Allow::ExtUnixSk),
            shell_job: has(Allow::ShellJob),
            lossy: has(Allow::Lossy),
        }
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    if report.obstacles.is_empty() {
        text.push_str("nothing is in the way of a checkpoint\n");
    } else {
        text.push_str("in the way of a checkpoint:\n");
    }
    list(&mut text, &report.obstacles);
    if report.more > 0 {
        let _ = writeln!(text, "  and {} more", report.more);
    }
    if !report.warnings.is_empty() {
        text.push_str("lost by a checkpoint:\n");
    }
    list(&mut text, &report.warnings);
    text
}

/// What is in a finding of the container's, is printable already.
fn list(text: &mut String, findings: &[Finding]) {
    for finding in findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {finding}");
    }
}

pub(super) fn to_json(report: &Report) -> Value {
    let list = |findings: &[Finding]| -> Vec<Value> { findings.iter().map(finding).collect() };
    json!({
        "obstacles": list(&report.obstacles),
        "warnings": list(&report.warnings),
        "more": report.more,
        "processes": report.processes,
        "took_us": u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
    })
}

fn finding(finding: &Finding) -> Value {
    let object = match &finding.object {
        Object::Fd { number, name } => json!({"kind": "fd", "number": number, "name": name}),
        Object::Mapping { range, name } => {
            json!({"kind": "mapping", "range": range, "name": name})
        }
        Object::Namespace(name) => json!({"kind": "namespace", "name": name}),
        Object::Thread(tid) => json!({"kind": "thread", "number": tid}),
        _ => json!({"kind": "process"}),
    };
    json!({
        "problem": finding.problem.name(),
        "severity": finding.problem.severity().name(),
        "process": {
            "pid": finding.process.pid,
            "host_pid": finding.process.host_pid,
            "command": finding.process.command,
        },
        "object": object,
        "reason": finding.problem.reason(),
        "remedy": finding.problem.remedy(),
        "option": finding.problem.option(),
    })
}
