//! `cryoctl diff`.

mod detail;
mod render;

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use cryo_checkpoint::inspect::{Files, Inspection, ProcessNode, Sockets, Wanted};
use serde::{Serialize, Serializer};

use super::inspect::Format;
use crate::choice::Choice;
use crate::failure::Failure;

/// Show what changed between two checkpoints of a container.
///
/// Processes are told apart by their pids, files and sockets by process and what they are. Beyond
/// checkpointctl, memory is compared page by page, and so are rights, mounts and the files of the
/// container.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Diff {
    /// The earlier checkpoint.
    before: PathBuf,

    /// The later checkpoint.
    after: PathBuf,

    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Tree)]
    format: Format,

    /// Compare the arguments of processes.
    #[arg(long)]
    ps_tree_cmd: bool,

    /// Compare the environments of processes.
    #[arg(long)]
    ps_tree_env: bool,

    /// Compare open files.
    #[arg(long)]
    files: bool,

    /// Compare sockets.
    #[arg(long)]
    sockets: bool,

    /// Show what is the same in both as well.
    #[arg(long)]
    show_unchanged: bool,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    detail: detail::Detail,
}

/// The differences. The keys of the JSON form are those of checkpointctl.
#[derive(Debug, Serialize)]
struct Differences {
    container_id: String,
    container_name: String,
    image: String,
    checkpoint_a: About,
    checkpoint_b: About,
    process_changes: Changes<Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_changes: Option<Changes<File>>,
    memory_changes: MemoryChange,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_changes: Option<Changes<Socket>>,
    summary: String,
    #[serde(flatten)]
    detail: serde_json::Map<String, serde_json::Value>,
}

/// A checkpoint: when it was made, and the bytes of CRIU's files.
#[derive(Debug, Serialize)]
struct About {
    created: String,
    total_size: u64,
}

#[derive(Debug, Serialize)]
struct MemoryChange {
    size_change_bytes: i64,
    #[serde(serialize_with = "shortest")]
    size_change_mb: f64,
}

#[derive(Debug, Serialize)]
struct Changes<T> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    added: Vec<T>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed: Vec<T>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modified: Vec<T>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unchanged: Vec<T>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Process {
    pid: u32,
    command: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cmdline: String,
    #[serde(skip)]
    environment: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
struct File {
    path: String,
    r#type: String,
    pid: u32,
    fd: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
struct Socket {
    pid: u32,
    protocol: String,
    r#type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source: String,
    #[serde(skip_serializing_if = "is_zero")]
    src_port: u16,
    #[serde(skip_serializing_if = "String::is_empty")]
    dest: String,
    #[serde(skip_serializing_if = "is_zero")]
    dst_port: u16,
}

/// Without a fraction where there is none, as Go's JSON has it.
fn shortest<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    // Of bytes in MiB: it fits.
    let whole = *value as i64;
    match whole as f64 == *value {
        true => to.serialize_i64(whole),
        false => to.serialize_f64(*value),
    }
}

fn is_zero(value: &u16) -> bool {
    *value == 0
}

impl Diff {
    pub(super) fn run(self) -> Result<(), Failure> {
        let wanted = Wanted {
            processes: true,
            arguments: self.ps_tree_cmd,
            environment: self.ps_tree_env,
            files: self.files,
            sockets: self.sockets,
            ..Wanted::default()
        };
        let sources = [
            self.choice.checkpoint(&self.before)?,
            self.choice.checkpoint(&self.after)?,
        ];
        let [source_before, source_after] = &sources;
        let before = Inspection::of(source_before, wanted)?;
        let after = Inspection::of(source_after, wanted)?;
        // What is not known of one of them would look like a change.
        if let Some(why) = before.not_shown.iter().chain(&after.not_shown).next() {
            return Err(anyhow!("there is nothing to compare: {why}").into());
        }
        if before.id != after.id {
            return Err(anyhow!(
                "checkpoints are from different containers: A is {} ({}), B is {} ({})",
                before.container_name,
                before.id,
                after.container_name,
                after.id
            )
            .into());
        }
        let mut differences = self.compare(&before, &after);
        let detail = self.detail.compare(
            source_before,
            source_after,
            self.show_unchanged,
            matches!(self.format, Format::Json),
        )?;
        differences.detail = detail.json;
        let text = match self.format {
            Format::Tree => {
                render::render(&self, &differences, after.process_tree.as_ref()) + &detail.text
            }
            Format::Json => {
                let mut json = serde_json::to_string_pretty(&differences).context("no JSON")?;
                json.push('\n');
                json
            }
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    fn compare(&self, before: &Inspection, after: &Inspection) -> Differences {
        let of = |one: &Inspection| About {
            created: one.checkpointed.clone().unwrap_or(one.created.clone()),
            total_size: one.checkpoint_size.total_size,
        };
        let memory = |one: &Inspection| one.checkpoint_size.memory_pages_size.cast_signed();
        let bytes = memory(after).saturating_sub(memory(before));
        let files = || {
            changes(
                files(&before.file_descriptors),
                files(&after.file_descriptors),
            )
        };
        let sockets = || changes(sockets(&before.sockets), sockets(&after.sockets));
        let mut differences = Differences {
            container_id: before.id.clone(),
            container_name: before.container_name.clone(),
            image: before.image.clone(),
            checkpoint_a: of(before),
            checkpoint_b: of(after),
            process_changes: process_changes(
                before.process_tree.as_ref(),
                after.process_tree.as_ref(),
            ),
            file_changes: self.files.then(files),
            memory_changes: MemoryChange {
                size_change_bytes: bytes,
                size_change_mb: bytes as f64 / 1024.0 / 1024.0,
            },
            socket_changes: self.sockets.then(sockets),
            summary: String::new(),
            detail: serde_json::Map::new(),
        };
        differences.summary = summary(&differences);
        differences
    }
}

/// By pid.
fn flatten(root: Option<&ProcessNode>) -> BTreeMap<u32, Process> {
    let mut stack: Vec<_> = root.into_iter().collect();
    let mut all = BTreeMap::new();
    while let Some(node) = stack.pop() {
        let process = Process {
            pid: node.pid,
            command: node.command.clone(),
            cmdline: node.cmdline.clone(),
            environment: node.environment.clone(),
        };
        all.insert(node.pid, process);
        stack.extend(&node.children);
    }
    all
}

fn process_changes(before: Option<&ProcessNode>, after: Option<&ProcessNode>) -> Changes<Process> {
    let mut old = flatten(before);
    let mut changes = Changes {
        added: Vec::new(),
        removed: Vec::new(),
        modified: Vec::new(),
        unchanged: Vec::new(),
    };
    for (pid, process) in flatten(after) {
        match old.remove(&pid) {
            None => changes.added.push(process),
            Some(was) if was == process => changes.unchanged.push(process),
            Some(_) => changes.modified.push(process),
        }
    }
    changes.removed = old.into_values().collect();
    changes
}

/// Of things that are the same or not there; as often as they are there.
fn changes<T: Clone + Eq + Hash>(before: Vec<T>, after: Vec<T>) -> Changes<T> {
    let mut left = HashMap::<T, usize>::new();
    for thing in &before {
        *left.entry(thing.clone()).or_default() += 1;
    }
    let mut take = |thing: &T| match left.get_mut(thing) {
        Some(count @ 1..) => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let (unchanged, added) = after.into_iter().partition(&mut take);
    // What is left of the old: the last ones of those that are there more than once.
    let removed = before
        .into_iter()
        .rev()
        .filter(&mut take)
        .collect::<Vec<_>>();
    Changes {
        added,
        removed: removed.into_iter().rev().collect(),
        modified: Vec::new(),
        unchanged,
    }
}

fn files(all: &[Files]) -> Vec<File> {
    let of = |own: &Files| {
        let pid = own.pid;
        let file = move |file: &cryo_checkpoint::inspect::FileNode| File {
            path: file.path.clone(),
            r#type: file.r#type.clone(),
            pid,
            fd: file.fd.clone(),
        };
        own.open_files.iter().map(file).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = all.iter().flat_map(of).collect();
    // The order of checkpointctl since 1.7; before it had none.
    all.sort_by(|a, b| (a.pid, &a.path, &a.fd).cmp(&(b.pid, &b.path, &b.fd)));
    all
}

fn sockets(all: &[Sockets]) -> Vec<Socket> {
    let of = |own: &Sockets| {
        let pid = own.pid;
        let socket = move |socket: &cryo_checkpoint::inspect::SocketNode| Socket {
            pid,
            protocol: socket.protocol.clone(),
            r#type: socket.data.r#type.clone(),
            address: socket.data.address.clone(),
            state: socket.data.state.clone(),
            source: socket.data.src.clone(),
            src_port: socket.data.src_port,
            dest: socket.data.dst.clone(),
            dst_port: socket.data.dst_port,
        };
        own.open_sockets.iter().map(socket).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = all.iter().flat_map(of).collect();
    all.sort_by(|a, b| order(a).cmp(&order(b)));
    all
}

/// As of files.
fn order(one: &Socket) -> impl Ord + '_ {
    let own = (&one.source, one.src_port, &one.r#type, &one.address);
    (one.pid, &one.protocol, own, &one.dest, one.dst_port)
}

fn summary(all: &Differences) -> String {
    let mut text = format!("Checkpoint comparison for container {}", all.container_name);
    let processes = &all.process_changes;
    let [added, removed, modified] =
        [&processes.added, &processes.removed, &processes.modified].map(Vec::len);
    if added + removed + modified > 0 {
        text.push_str(&format!("\nProcesses: +{added} -{removed} ~{modified}"));
    }
    let others = [
        ("Files", all.file_changes.as_ref().map(Changes::lengths)),
        ("Sockets", all.socket_changes.as_ref().map(Changes::lengths)),
    ];
    for (label, lengths) in others {
        if let Some((added, removed)) = lengths.filter(|(added, removed)| added + removed > 0) {
            text.push_str(&format!("\n{label}: +{added} -{removed}"));
        }
    }
    if all.memory_changes.size_change_bytes != 0 {
        text.push_str(&format!(
            "\nMemory: {:+.2} MB",
            all.memory_changes.size_change_mb
        ));
    }
    text
}

impl<T> Changes<T> {
    fn lengths(&self) -> (usize, usize) {
        (self.added.len(), self.removed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_that_are_there_twice() {
        let found = changes(vec![1, 2, 2, 3], vec![2, 3, 3, 4]);
        assert_eq!(found.added, [3, 4]);
        assert_eq!(found.removed, [1, 2]);
        assert_eq!(found.unchanged, [2, 3]);
    }
}
