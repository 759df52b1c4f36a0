//! `cryoctl inspect`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use cryo_checkpoint::inspect::{
    CredentialsNode, Files, Inspection, MetadataNode, ProcessNode, SocketNode, Sockets, Statistics,
    Wanted,
};
use cryo_checkpoint::metadata::{Mount, Network};
use cryo_checkpoint::source::{self, Source};
use serde_json::Value;

use crate::choice::Choice;
use crate::failure::Failure;
use crate::text::{bytes, printable, short_duration};
use crate::tree::Tree;

/// Show what is in checkpoints in detail.
///
/// Memory pages are read for --ps-tree-cmd and --ps-tree-env alone, and of them only those that
/// are shown. What a program wrote into its arguments is shown, whatever the container's
/// specification says.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Inspect {
    /// Checkpoints, in any form.
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<PathBuf>,

    #[command(flatten)]
    choice: Choice,

    /// What the dump took.
    #[arg(long)]
    stats: bool,

    /// The mounts of the container's specification.
    #[arg(long)]
    mounts: bool,

    /// Only the process with this pid in the container, and those below it.
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,

    /// The processes.
    #[arg(long)]
    ps_tree: bool,

    /// The processes with their arguments.
    #[arg(long)]
    ps_tree_cmd: bool,

    /// The processes with their environments.
    #[arg(long)]
    ps_tree_env: bool,

    /// The processes with their open files.
    #[arg(long)]
    files: bool,

    /// The processes with their sockets.
    #[arg(long)]
    sockets: bool,

    /// Pod, namespace and annotations.
    #[arg(long)]
    metadata: bool,

    /// All of the above; statistics where there are some.
    #[arg(long)]
    all: bool,

    /// The processes with their users, groups, capabilities and seccomp mode.
    #[arg(long)]
    credentials: bool,

    /// The processes with the numbers of their namespaces: equal ones are the same.
    #[arg(long)]
    namespaces: bool,

    /// The processes with the general registers of their threads.
    #[arg(long)]
    registers: bool,

    /// How to print it. The JSON is an array with an object for each container.
    #[arg(long, value_enum, default_value_t = Format::Tree)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Tree,
    /// For programs.
    Json,
}

impl Inspect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut found = Vec::new();
        for path in &self.checkpoints {
            for source in self.choice.checkpoints(path)? {
                let wanted = self.wanted(&source);
                if !wanted.processes {
                    note_version(&source)?;
                }
                let inspection = Inspection::of(&source, wanted)?;
                found.push((source.name().to_owned(), inspection));
            }
        }
        let text = match self.format {
            Format::Tree => found.iter().map(|(name, one)| render(name, one)).collect(),
            Format::Json => {
                let all: Vec<_> = found.iter().map(|(_, one)| one).collect();
                let mut json = serde_json::to_string_pretty(&all).context("no JSON")?;
                json.push('\n');
                json
            }
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    fn wanted(&self, source: &Source) -> Wanted {
        let all = self.all;
        let of_processes = self.ps_tree_cmd
            || self.ps_tree_env
            || self.files
            || self.sockets
            || self.credentials
            || self.namespaces
            || self.registers;
        Wanted {
            // Not every engine keeps them.
            statistics: self.stats || (all && Inspection::has_statistics(source)),
            metadata: self.metadata || all,
            mounts: self.mounts || all,
            processes: self.ps_tree || all || of_processes || self.pid.is_some(),
            arguments: self.ps_tree_cmd || all,
            environment: self.ps_tree_env || all,
            files: self.files || all,
            sockets: self.sockets || all,
            credentials: self.credentials,
            namespaces: self.namespaces,
            registers: self.registers,
            pid: self.pid.filter(|pid| *pid != 0),
        }
    }
}

/// Says on stderr that the images are of a version that is not known, where that is in nobody's way.
pub(super) fn note_version(source: &Source) -> io::Result<()> {
    match source.check_version() {
        Err(error @ source::Error::Version(_)) => {
            let name = printable(source.name());
            writeln!(
                io::stderr(),
                "note: {name}: {error}: only what the engine wrote is shown"
            )
        }
        // Who reads the images says what else is wrong with them.
        _ => Ok(()),
    }
}

fn render(name: &str, one: &Inspection) -> String {
    let mut tree = Tree::new(match one.container_name.as_str() {
        "" => "Container".into(),
        name => printable(name),
    });
    let facts = [
        ("Image", Some(&one.image)),
        ("ID", Some(&one.id)),
        ("Runtime", Some(&one.runtime)),
        ("Created", Some(&one.created)),
        ("Checkpointed", one.checkpointed.as_ref()),
    ];
    for (label, value) in facts {
        if let Some(value) = value {
            tree.line(format!("{label}: {}", printable(value)));
        }
    }
    tree.line(format!("Engine: {}", one.engine));
    if one.networks.is_empty() {
        for (label, value) in [("IP", &one.ip), ("MAC", &one.mac)] {
            if let Some(value) = value {
                tree.line(format!("{label}: {}", printable(value)));
            }
        }
    } else {
        tree.add(networks(&one.networks));
    }

    let size = &one.checkpoint_size;
    let mut sizes = Tree::new(format!("Checkpoint size: {}", bytes(size.total_size)));
    for (label, value) in [
        ("Memory pages size", size.memory_pages_size),
        ("AMD GPU memory pages size", size.amd_gpu_memory_pages_size),
    ] {
        if value != 0 {
            sizes.line(format!("{label}: {}", bytes(value)));
        }
    }
    tree.add(sizes);
    if size.root_fs_diff_size != 0 {
        let text = bytes(size.root_fs_diff_size);
        tree.line(format!("Root FS diff size: {text}"));
    }
    if let Some(statistics) = &one.statistics {
        tree.add(render_statistics(statistics));
    }
    if let Some(metadata) = &one.metadata {
        tree.add(render_metadata(metadata));
    }
    if let Some(root) = &one.process_tree {
        let mut processes = Tree::new("Process tree");
        let open = Open {
            files: one.file_descriptors.iter().map(|f| (f.pid, f)).collect(),
            sockets: one.sockets.iter().map(|s| (s.pid, s)).collect(),
        };
        processes.add(process(root, &open));
        tree.add(processes);
    }
    if !one.mounts.is_empty() {
        tree.add(mounts(&one.mounts));
    }
    if !one.not_shown.is_empty() {
        let mut branch = Tree::new("Not shown");
        for what in &one.not_shown {
            branch.line(printable(what));
        }
        tree.add(branch);
    }
    format!(
        "\nDisplaying container checkpoint tree view from {}\n\n{}\n",
        printable(name),
        tree.render()
    )
}

fn networks(networks: &[Network]) -> Tree {
    let mut tree = Tree::new("Network Interfaces");
    for network in networks {
        for (name, interface) in &network.interfaces {
            let label = format!("{} ({})", printable(&network.name), printable(name));
            let mut branch = Tree::new(label);
            for (label, value) in [
                ("IP", &interface.ip),
                ("MAC", &interface.mac),
                ("Gateway", &interface.gateway),
            ] {
                if !value.is_empty() {
                    branch.line(format!("{label}: {}", printable(value)));
                }
            }
            tree.add(branch);
        }
    }
    tree
}

fn render_statistics(statistics: &Statistics) -> Tree {
    let mut tree = Tree::new("CRIU dump statistics");
    for (label, value) in [
        ("Freezing time", statistics.freezing_time),
        ("Frozen time", statistics.frozen_time),
        ("Memdump time", statistics.memdump_time),
        ("Memwrite time", statistics.memwrite_time),
    ] {
        tree.line(format!("{label}: {}", short_duration(value)));
    }
    tree.line(format!("Pages scanned: {}", statistics.pages_scanned));
    tree.line(format!("Pages written: {}", statistics.pages_written));
    tree
}

fn render_metadata(metadata: &MetadataNode) -> Tree {
    let mut tree = Tree::new("Metadata");
    for (label, value) in [
        ("Pod name", &metadata.pod_name),
        ("Kubernetes namespace", &metadata.kubernetes_namespace),
    ] {
        if let Some(value) = value {
            tree.line(format!("{label}: {}", printable(value)));
        }
    }
    let mut annotations = Tree::new("Annotations");
    for (key, value) in &metadata.annotations {
        annotations.add(annotation(key, value));
    }
    tree.add_full(annotations);
    tree
}

/// Annotations that are JSON become trees.
fn annotation(key: &str, value: &str) -> Tree {
    let key = printable(key);
    match serde_json::from_str(value) {
        Ok(Value::Object(object)) if !object.is_empty() => {
            let mut tree = Tree::new(key);
            for (key, value) in &object {
                tree.add(json(key, value));
            }
            tree
        }
        Ok(Value::Array(array)) if !array.is_empty() => {
            let mut tree = Tree::new(key);
            for (index, value) in array.iter().enumerate() {
                tree.add(json(&format!("[{index}]"), value));
            }
            tree
        }
        _ => Tree::new(format!("{key}: {}", printable(value))),
    }
}

fn json(key: &str, value: &Value) -> Tree {
    let key = printable(key);
    match value {
        Value::Object(object) => {
            let mut tree = Tree::new(format!("{key}:"));
            for (key, value) in object {
                tree.add(json(key, value));
            }
            tree
        }
        Value::Array(array) => {
            let mut tree = Tree::new(format!("{key}:"));
            for (index, value) in array.iter().enumerate() {
                tree.add(json(&format!("[{index}]"), value));
            }
            tree
        }
        Value::String(text) => Tree::new(format!("{key}: {}", printable(text))),
        other => Tree::new(format!("{key}: {other}")),
    }
}

/// Open files and sockets by pid.
struct Open<'a> {
    files: BTreeMap<u32, &'a Files>,
    sockets: BTreeMap<u32, &'a Sockets>,
}

fn process(node: &ProcessNode, open: &Open<'_>) -> Tree {
    let tag = match node.task_state {
        "Alive" => node.pid.to_string(),
        state => format!("{} ({state})", node.pid),
    };
    let label = match node.cmdline.as_str() {
        "" => &node.command,
        cmdline => cmdline,
    };
    let mut tree = Tree::tagged(&tag, &printable(label));
    let mut environment = Tree::new("Environment variables");
    for variable in &node.environment {
        environment.line(printable(variable));
    }
    tree.add_full(environment);
    if let Some(own) = &node.credentials {
        tree.add(credentials(own));
    }
    tree.add_full(namespaces(&node.namespaces));
    for thread in &node.threads {
        let mut registers = Tree::new(format!("Registers of thread {}", thread.tid));
        for line in thread.registers.chunks(3) {
            let cells: Vec<_> = line.iter().map(|(n, v)| format!("{n:<8} {v}")).collect();
            registers.line(cells.join("   "));
        }
        tree.add_full(registers);
    }
    let mut files = Tree::new("Open files");
    for file in open
        .files
        .get(&node.pid)
        .iter()
        .flat_map(|own| &own.open_files)
    {
        files.add(Tree::tagged(&file.fd, &printable(&file.path)));
    }
    tree.add_full(files);
    let mut sockets = Tree::new("Open sockets");
    for one in open
        .sockets
        .get(&node.pid)
        .iter()
        .flat_map(|own| &own.open_sockets)
    {
        sockets.add(socket(one));
    }
    tree.add_full(sockets);
    for child in &node.children {
        tree.add(process(child, open));
    }
    tree
}

fn socket(socket: &SocketNode) -> Tree {
    let data = &socket.data;
    let buffers = format!("↑ {} ↓ {}", data.send_buf, data.recv_buf);
    match data.r#type.as_str() {
        "UNIX" => {
            let address = match data.address.as_str() {
                "" => "@".into(),
                address => printable(address),
            };
            Tree::tagged(&format!("UNIX ({})", socket.kind), &address)
        }
        "" => Tree::tagged(&socket.protocol, &buffers),
        protocol => {
            let tag = match protocol {
                "TCP" => format!("TCP ({})", data.state),
                other => other.to_owned(),
            };
            let ends = format!(
                "{}:{} -> {}:{} ({buffers})",
                data.src, data.src_port, data.dst, data.dst_port
            );
            Tree::tagged(&tag, &ends)
        }
    }
}

fn credentials(own: &CredentialsNode) -> Tree {
    let mut tree = Tree::new("Credentials");
    let [real, effective, saved, file] = own.users;
    tree.line(format!(
        "Users: real {real}, effective {effective}, saved {saved}, files {file}"
    ));
    let [real, effective, saved, file] = own.groups;
    tree.line(format!(
        "Groups: real {real}, effective {effective}, saved {saved}, files {file}"
    ));
    if !own.supplementary_groups.is_empty() {
        let groups: Vec<_> = own
            .supplementary_groups
            .iter()
            .map(u32::to_string)
            .collect();
        tree.line(format!("Supplementary groups: {}", groups.join(" ")));
    }
    for (label, set) in [
        ("Effective", &own.effective),
        ("Permitted", &own.permitted),
        ("Inheritable", &own.inheritable),
        ("Ambient", &own.ambient),
        ("Bounding", &own.bounding),
    ] {
        let names = match set.as_slice() {
            [] => "none".to_owned(),
            names => names.join(" "),
        };
        tree.line(format!("{label}: {names}"));
    }
    tree.line(format!("No new privileges: {}", own.no_new_privileges));
    tree.line(format!("Seccomp: {}", own.seccomp));
    if let Some(profile) = &own.lsm_profile {
        tree.line(format!("LSM profile: {}", printable(profile)));
    }
    tree
}

fn namespaces(namespaces: &BTreeMap<&'static str, u32>) -> Tree {
    let mut tree = Tree::new("Namespaces");
    for (name, id) in namespaces {
        tree.line(format!("{name}: {id}"));
    }
    tree
}

fn mounts(mounts: &[Mount]) -> Tree {
    let mut tree = Tree::new("Overview of mounts");
    for mount in mounts {
        let mut branch = Tree::new(format!("Destination: {}", printable(&mount.destination)));
        branch.line(format!("Type: {}", printable(&mount.r#type)));
        branch.line(format!("Source: {}", printable(&mount.source)));
        tree.add(branch);
    }
    tree
}
