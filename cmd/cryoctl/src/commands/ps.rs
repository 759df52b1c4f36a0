//! `cryoctl ps`.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use cryo_criu::config::{self, Config};
use cryo_criu::options::{self, Checkpoint, Layer};
use cryo_criu::preflight::{self, Allowed, Report};
use cryo_criu::{Probe, Version};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::{Format, check};
use crate::containerd::messages::{Process, State};
use crate::containerd::{Client, Socket, block_on};
use crate::failure::Failure;
use crate::procfs::{self, Shim};
use crate::target::{Found, PodOf};
use crate::text;

/// How long each container may be looked at for what is in the way.
const LOOK: Duration = Duration::from_secs(2);

/// List the containers of cryo, and what stands in the way of a checkpoint of each.
///
/// MEMORY is what a checkpoint would have to take: what is of no file. CHECKPOINT is `yes`, or
/// the first thing that is in the way, and how many more there are; `cryoctl check ID` tells of
/// all with their remedies, and `--format json` too. What the container's annotations and the
/// node's configuration allow is allowed. Needs root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Ps {
    /// One of containerd's namespaces [default: all of them].
    #[arg(long, short)]
    namespace: Option<String>,

    /// The first containers of pods too, that hold their namespaces.
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    socket: Socket,

    /// How to print it. The JSON keys name their units: `_bytes`.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  it was done, whatever was found
  1  containerd cannot be asked; stderr says why
  2  the command line is wrong";

/// What is told of a container.
#[derive(Debug)]
struct Row {
    namespace: String,
    id: String,
    pod: Option<PodOf>,
    state: State,
    shim: Option<Shim>,
    processes: usize,
    memory_bytes: u64,
    checkpoint: Answer,
}

/// Whether it can be checkpointed.
#[derive(Debug)]
enum Answer {
    Looked(Report),
    Cannot(String),
}

impl Ps {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rows = block_on(self.look())?;
        let text = match self.format {
            Format::Json => text::pretty(&rows.iter().map(Row::json).collect::<Vec<_>>())?,
            Format::Text if rows.is_empty() => "no containers of cryo run here\n".to_owned(),
            Format::Text => render(&rows),
        };
        Ok(io::stdout().write_all(text.as_bytes())?)
    }

    async fn look(&self) -> anyhow::Result<Vec<Row>> {
        let first = self.namespace.as_deref().unwrap_or("default");
        let client = Client::connect(&self.socket.address, first).await?;
        let mut namespaces = match &self.namespace {
            Some(one) => vec![one.clone()],
            None => client.namespaces().await?,
        };
        namespaces.sort();
        let config = Config::load(config::PATH.as_ref());
        let mut rows = Vec::new();
        for namespace in namespaces {
            let client = client.in_namespace(&namespace)?;
            let mut tasks = client.tasks().await?;
            tasks.sort_by(|a, b| a.id.cmp(&b.id));
            for task in tasks {
                let shim = Shim::of(task.pid).filter(|_| task.pid != 0);
                if shim.as_ref().is_some_and(|shim| !shim.is_cryo()) {
                    continue;
                }
                // Its end may have come in the meantime.
                let Ok(record) = client.container(&task.id).await else {
                    continue;
                };
                let ours =
                    shim.is_some() || by_name(&record.runtime.clone().unwrap_or_default().name);
                let found = Found::of(record)?;
                let pod = found.pod();
                let sandbox = pod.as_ref().is_some_and(|pod| pod.container.is_none());
                if ours && (self.all || !sandbox) {
                    rows.push(row(&client, &task, shim, &found, pod, &config).await);
                }
            }
        }
        Ok(rows)
    }
}

/// A container without a process is known by the name of its runtime alone.
fn by_name(runtime: &str) -> bool {
    runtime.starts_with("io.containerd.cryo.") || runtime.ends_with(procfs::NAME)
}

async fn row(
    client: &Client,
    task: &Process,
    shim: Option<Shim>,
    found: &Found,
    pod: Option<PodOf>,
    config: &Result<Config, config::Error>,
) -> Row {
    let pids = client.pids(&task.id).await.unwrap_or_default();
    let memory = |pid: &u32| procfs::status(*pid).map(|status| status.memory_bytes);
    let checkpoint = match (task.status(), config) {
        (State::Running | State::Paused | State::Pausing, Ok(config)) => {
            match allowed(found, config) {
                Ok(allowed) => look(task.pid, &pids, &allowed),
                Err(refused) => Answer::Cannot(refused.to_string()),
            }
        }
        (State::Running | State::Paused | State::Pausing, Err(error)) => {
            Answer::Cannot(error.to_string())
        }
        (other, _) => Answer::Cannot(format!("it is {}", other.name())),
    };
    Row {
        namespace: client.namespace().to_owned(),
        id: task.id.clone(),
        pod,
        state: task.status(),
        shim,
        // A stopped one still has the id of its first.
        processes: pids
            .iter()
            .filter(|pid| procfs::status(**pid).is_some())
            .count(),
        memory_bytes: pids.iter().filter_map(memory).sum(),
        checkpoint,
    }
}

/// What a checkpoint of it that asks for nothing would be allowed.
fn allowed(found: &Found, config: &Config) -> Result<Allowed, options::Refused> {
    let annotations = found.spec.get("annotations").and_then(Value::as_object);
    let annotations: Vec<(String, String)> = annotations
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let annotations = Layer::annotations(annotations.iter().map(|(key, value)| (key, value)))?;
    // What this CRIU cannot do, the checkpoint will say.
    let mut any = Probe::new(Version::new(u32::MAX, 0, 0));
    any.mem_track = true;
    let options: Checkpoint = options::resolve(&[&config.checkpoint, &annotations], &any)?;
    Ok((&options).into())
}

fn look(first: u32, pids: &[u32], allowed: &Allowed) -> Answer {
    let Some(pid) = Pid::from_raw(first.cast_signed()) else {
        return Answer::Cannot("it has no process".to_owned());
    };
    match preflight::check(pid, pids, allowed, LOOK) {
        Ok(report) if report.incomplete && report.obstacles.is_empty() => {
            Answer::Cannot("there is more to look at than in the time: cryoctl check".to_owned())
        }
        Ok(report) => Answer::Looked(report),
        Err(error) => Answer::Cannot(format!("it cannot be looked at: {error}")),
    }
}

impl Row {
    fn can(&self) -> bool {
        matches!(&self.checkpoint, Answer::Looked(report) if report.obstacles.is_empty())
    }

    fn answer(&self) -> String {
        match &self.checkpoint {
            Answer::Cannot(why) => why.clone(),
            Answer::Looked(report) => match report.obstacles.split_first() {
                None => "yes".to_owned(),
                Some((first, others)) => {
                    let more = others.len() + report.more;
                    let name = first.problem.name();
                    if more == 0 {
                        name.to_owned()
                    } else {
                        format!("{name} and {more} more")
                    }
                }
            },
        }
    }

    fn json(&self) -> Value {
        let pod = self.pod.as_ref().map(
            |pod| json!({"namespace": pod.namespace, "name": pod.pod, "container": pod.container}),
        );
        let (findings, why) = match &self.checkpoint {
            Answer::Looked(report) => (Some(check::to_json(report)), None),
            Answer::Cannot(why) => (None, Some(why)),
        };
        json!({
            "namespace": self.namespace,
            "id": self.id,
            "pod": pod,
            "state": self.state.name(),
            "shim_pid": self.shim.as_ref().map(|shim| shim.pid),
            "processes": self.processes,
            "memory_bytes": self.memory_bytes,
            "can_checkpoint": self.can(),
            "findings": findings,
            "why_not": why,
        })
    }
}

fn render(rows: &[Row]) -> String {
    let header = [
        "NAMESPACE",
        "CONTAINER",
        "POD",
        "STATE",
        "PIDS",
        "MEMORY",
        "CHECKPOINT",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for row in rows {
        let pod = row.pod.as_ref().map(|pod| {
            let container = pod.container.as_deref().unwrap_or("(sandbox)");
            format!("{}/{}/{container}", pod.namespace, pod.pod)
        });
        // CRI's ids are 64 digits, and 13 of them are enough for every tool.
        let id = match &row.pod {
            Some(_) => row.id.get(..13).unwrap_or(&row.id),
            None => &row.id,
        };
        table.push(vec![
            row.namespace.clone(),
            id.to_owned(),
            pod.unwrap_or_else(|| "-".to_owned()),
            row.state.name().to_owned(),
            row.processes.to_string(),
            text::bytes(row.memory_bytes),
            row.answer(),
        ]);
    }
    text::table(&table)
}
