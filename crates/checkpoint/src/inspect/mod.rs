//! All that is told of a checkpoint: what `inspect` shows.
//!
//! The keys of the JSON form, their order and what is left out where it is empty are those of
//! checkpointctl; what it does not know stands under keys that it does not have. Pages are read
//! only for arguments and environments, and in one pass for all of them.

mod files;
mod task;

use std::collections::BTreeMap;

use cryo_criu_image::Kind;
use cryo_criu_image::inventory::TaskIds;
use cryo_criu_image::pstree::ProcessTree;
use cryo_criu_image::registers::Thread;
use cryo_criu_image::security::Security;
use cryo_criu_image::stats::DumpStats;
use cryo_criu_image::task::{Core, TaskState};
use serde::{Serialize, Serializer};

use crate::layout;
use crate::memory::{self, Error, Memory, Texts};
use crate::metadata::{Interface, Metadata, Mount, Network};
use crate::source::{self, Source, damaged};
use crate::summary::Size;

pub use files::{FileNode, Files, SocketData, SocketNode, Sockets};
pub use task::{CredentialsNode, ThreadNode};

/// Deepest level of a process tree: each takes a little of the stack.
const MAX_DEPTH: usize = 256;

/// What is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// What the dump took.
    pub statistics: bool,
    /// What the engine knew of pod and container.
    pub metadata: bool,
    /// The mounts of the specification.
    pub mounts: bool,
    /// The processes.
    pub processes: bool,
    /// Their arguments.
    pub arguments: bool,
    /// Their environments.
    pub environment: bool,
    /// Their open files.
    pub files: bool,
    /// Their sockets.
    pub sockets: bool,
    /// Their users, capabilities and seccomp.
    pub credentials: bool,
    /// Which namespaces they are in.
    pub namespaces: bool,
    /// The registers of their threads.
    pub registers: bool,
    /// Only this process, and those below it.
    pub pid: Option<u32>,
}

impl Wanted {
    /// All that can be told, of all processes.
    pub const ALL: Self = Self {
        statistics: true,
        metadata: true,
        mounts: true,
        processes: true,
        arguments: true,
        environment: true,
        files: true,
        sockets: true,
        credentials: true,
        namespaces: true,
        registers: true,
        pid: None,
    };

    /// What is wanted of what stands in the memory of a process.
    fn texts(self) -> Option<&'static str> {
        match (self.arguments, self.environment) {
            (true, true) => Some("arguments and environment"),
            (true, false) => Some("arguments"),
            (false, true) => Some("environment"),
            (false, false) => None,
        }
    }
}

/// All that was wanted.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The container's name.
    pub container_name: String,
    /// The image it was made from.
    pub image: String,
    /// Its id.
    pub id: String,
    /// The runtime it ran by.
    pub runtime: String,
    /// When it was made, to the second.
    pub created: String,
    /// When it was checkpointed, to the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointed: Option<String>,
    /// Who wrote the archive.
    pub engine: &'static str,
    /// Its addresses, with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Its hardware addresses, with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// How large the checkpoint is.
    pub checkpoint_size: CheckpointSize,
    /// What the dump took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<Statistics>,
    /// What the engine knew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataNode>,
    /// The processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_tree: Option<ProcessNode>,
    /// Open files of those that live, in the order of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub file_descriptors: Vec<Files>,
    /// Sockets of those that live and have some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<Sockets>,
    /// The mounts of the specification.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// What was wanted and is of a newer CRIU than is known here: what it is, of which process, and
    /// why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_shown: Vec<String>,
}

/// Bytes; what is 0 has no key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CheckpointSize {
    /// CRIU's files.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_size: u64,
    /// Memory pages.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_pages_size: u64,
    /// Pages of AMD GPUs.
    #[serde(skip_serializing_if = "is_zero")]
    pub amd_gpu_memory_pages_size: u64,
    /// What the container changed in its root file system.
    #[serde(skip_serializing_if = "is_zero")]
    pub root_fs_diff_size: u64,
}

/// What a dump took; times are in microseconds, and what is 0 has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Until all tasks stood still.
    #[serde(skip_serializing_if = "is_zero")]
    pub freezing_time: u64,
    /// How long they stood still.
    #[serde(skip_serializing_if = "is_zero")]
    pub frozen_time: u64,
    /// Taking memory over.
    #[serde(skip_serializing_if = "is_zero")]
    pub memdump_time: u64,
    /// Writing it.
    #[serde(skip_serializing_if = "is_zero")]
    pub memwrite_time: u64,
    /// Pages looked at.
    #[serde(skip_serializing_if = "is_zero")]
    pub pages_scanned: u64,
    /// Pages written.
    #[serde(skip_serializing_if = "is_zero")]
    pub pages_written: u64,
}

/// What the engine knew of pod and container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MetadataNode {
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_namespace: Option<String>,
    /// The annotations of the specification.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A process, and those below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ProcessNode {
    /// Its pid in the container.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// Its arguments, each followed by a space but the last one of all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cmdline: String,
    /// `Alive`, `Stopped`, `Dead`, `Zombie` or `Unknown`.
    pub task_state: &'static str,
    /// Its environment in its own order; in JSON an object with sorted keys. What has no `=` is a
    /// key without a value.
    #[serde(
        rename = "environment_variables",
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "as_object"
    )]
    pub environment: Vec<String>,
    /// What it may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsNode>,
    /// The number of each namespace it is in; equal ones are the same.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<&'static str, u32>,
    /// Registers of its threads, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadNode>,
    /// Its children, by pid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ProcessNode>,
}

impl Inspection {
    /// Reads what is wanted of a checkpoint.
    ///
    /// # Errors
    ///
    /// Of a wanted file that is missing or damaged; [`source::Error::Version`] if something of the
    /// images is wanted and their version is not known; [`Error::Refused`] if there is no process
    /// with the wanted pid.
    pub fn of(checkpoint: &Source, wanted: Wanted) -> Result<Self, Error> {
        let metadata = Metadata::of(checkpoint)?;
        let size = CheckpointSize::of(checkpoint);
        let mut inspection = match metadata {
            Some(metadata) => Self::from_metadata(metadata, size, wanted),
            None => Self::of_images(size),
        };
        if wanted.statistics {
            inspection.statistics = Some(statistics(checkpoint)?);
        }
        if wanted.processes {
            checkpoint.check_version()?;
            let mut processes = Processes::read(checkpoint, wanted)?;
            inspection.not_shown = std::mem::take(&mut processes.not_shown);
            let living: Vec<u32> = processes.living();
            inspection.process_tree = Some(processes.tree(wanted.pid)?);
            if wanted.files || wanted.sockets {
                let open = files::read(checkpoint, &living, wanted)?;
                (inspection.file_descriptors, inspection.sockets) = open;
            }
        }
        Ok(inspection)
    }

    /// Whether the checkpoint has the statistics of its dump.
    pub fn has_statistics(checkpoint: &Source) -> bool {
        checkpoint.file(&statistics_name(checkpoint)).is_some()
    }

    fn of_images(checkpoint_size: CheckpointSize) -> Self {
        Self {
            container_name: String::new(),
            image: String::new(),
            id: String::new(),
            runtime: String::new(),
            created: String::new(),
            checkpointed: None,
            engine: "",
            ip: None,
            mac: None,
            networks: Vec::new(),
            checkpoint_size,
            statistics: None,
            metadata: None,
            process_tree: None,
            file_descriptors: Vec::new(),
            sockets: Vec::new(),
            mounts: Vec::new(),
            not_shown: Vec::new(),
        }
    }

    fn from_metadata(found: Metadata, size: CheckpointSize, wanted: Wanted) -> Self {
        let each = |value: fn(&Interface) -> &str| {
            let interfaces = found.networks.iter().flat_map(|n| n.interfaces.values());
            let values: Vec<_> = interfaces.map(value).filter(|v| !v.is_empty()).collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        let ip = each(|interface| interface.ip.split('/').next().unwrap_or_default());
        let mac = each(|interface| &interface.mac);
        Self {
            container_name: found.name.unwrap_or_default(),
            image: found.image.unwrap_or_default(),
            id: found.id.unwrap_or_default(),
            runtime: found.runtime.unwrap_or_default(),
            created: to_the_second(found.created.as_deref().unwrap_or_default()),
            checkpointed: found.checkpointed.as_deref().map(to_the_second),
            engine: found.engine.name(),
            ip: found.ip.or(ip),
            mac,
            networks: found.networks,
            metadata: wanted.metadata.then_some(MetadataNode {
                pod_name: found.pod,
                kubernetes_namespace: found.namespace,
                annotations: found.annotations,
            }),
            mounts: if wanted.mounts {
                found.mounts
            } else {
                Vec::new()
            },
            ..Self::of_images(size)
        }
    }
}

impl CheckpointSize {
    /// Of a checkpoint.
    pub fn of(checkpoint: &Source) -> Self {
        let size = Size::of(checkpoint);
        let gpu = checkpoint
            .images()
            .filter(|(name, _)| name.starts_with("amdgpu-pages-"))
            .fold(0u64, |sum, (_, entry)| sum.saturating_add(entry.size_bytes));
        Self {
            total_size: size.images_bytes,
            memory_pages_size: size.memory_bytes,
            amd_gpu_memory_pages_size: gpu,
            root_fs_diff_size: size.rootfs_diff_bytes.unwrap_or_default(),
        }
    }
}

/// A time of RFC 3339 without what is below seconds. Other texts are left as they are.
pub fn to_the_second(time: &str) -> String {
    let whole = time.split_at_checked(19).filter(|(date, _)| {
        date.bytes()
            .zip("0000-00-00T00:00:00".bytes())
            .all(|(found, form)| found == form || (form == b'0' && found.is_ascii_digit()))
    });
    let Some((date, rest)) = whole else {
        return time.to_owned();
    };
    let digits = rest.strip_prefix('.').map_or(rest, |fraction| {
        fraction.trim_start_matches(|c: char| c.is_ascii_digit())
    });
    let zone = if digits == "+00:00" { "Z" } else { digits };
    format!("{date}{zone}")
}

/// The file with the statistics: containerd's is at the top; Podman and CRI-O leave a copy with
/// the images.
fn statistics_name(checkpoint: &Source) -> String {
    let beside = checkpoint.image_name(Kind::StatsDump, 0);
    match checkpoint.file(layout::STATS_DUMP) {
        None if checkpoint.file(&beside).is_some() => beside,
        _ => layout::STATS_DUMP.to_owned(),
    }
}

fn statistics(checkpoint: &Source) -> Result<Statistics, Error> {
    let name = statistics_name(checkpoint);
    let stats: DumpStats = checkpoint
        .view(&name)?
        .ok_or(source::Error::Missing { name })?;
    Ok(Statistics {
        freezing_time: stats.freezing_time_us.into(),
        frozen_time: stats.frozen_time_us.into(),
        memdump_time: stats.memdump_time_us.into(),
        memwrite_time: stats.memwrite_time_us.into(),
        pages_scanned: stats.pages_scanned,
        pages_written: stats.pages_written,
    })
}

/// The processes, before they are made a tree.
struct Processes {
    /// With the parent's pid, in the order of the image.
    nodes: Vec<(u32, ProcessNode)>,
    /// See [`Inspection::not_shown`].
    not_shown: Vec<String>,
}

impl Processes {
    fn read(checkpoint: &Source, wanted: Wanted) -> Result<Self, Error> {
        let name = checkpoint.image_name(Kind::Pstree, 0);
        let tree = ProcessTree::read(&name, checkpoint.reader(&name)?)
            .map_err(|error| damaged(&name, error))?;
        let mut nodes = Vec::with_capacity(tree.processes().len());
        let (mut texts, mut asked) = (Texts::default(), Vec::new());
        let mut not_shown = Vec::new();
        for process in tree.processes() {
            let core: Core = memory::image(checkpoint, Kind::Core, process.pid)?;
            let own = core.process.as_ref().ok_or_else(|| {
                let name = checkpoint.image_name(Kind::Core, process.pid.into());
                Error::Refused(format!("{name} is that of a thread, not of a process"))
            })?;
            let mut node = ProcessNode {
                pid: process.pid,
                command: own.comm_lossy().into_owned(),
                cmdline: String::new(),
                task_state: state_name(own.state),
                environment: Vec::new(),
                credentials: None,
                namespaces: BTreeMap::new(),
                threads: Vec::new(),
                children: Vec::new(),
            };
            if matches!(own.state, TaskState::Alive | TaskState::Stopped) {
                node.describe(checkpoint, wanted, core.ids, &process.threads)?;
                if let Some(what) = wanted.texts() {
                    match Asked::of(checkpoint, node.pid, wanted, &mut texts) {
                        // All else of the checkpoint can be shown without.
                        Err(Error::Source(ref error @ source::Error::Newer { ref source, .. })) => {
                            let pid = node.pid;
                            not_shown.push(format!("{what} of process {pid}: {error}: {source}"));
                        }
                        found => asked.push((nodes.len(), found?)),
                    }
                }
            }
            nodes.push((process.ppid, node));
        }
        let mut texts = texts.read(checkpoint)?;
        for (at, asked) in asked {
            if let Some((_, node)) = nodes.get_mut(at) {
                asked.give(node, &mut texts);
            }
        }
        Ok(Self { nodes, not_shown })
    }

    fn living(&self) -> Vec<u32> {
        self.nodes
            .iter()
            .filter(|(_, node)| matches!(node.task_state, "Alive" | "Stopped"))
            .map(|(_, node)| node.pid)
            .collect()
    }

    /// The tree, or the part of it below a process.
    fn tree(self, pid: Option<u32>) -> Result<ProcessNode, Error> {
        let parents: BTreeMap<u32, u32> = self.nodes.iter().map(|(p, n)| (n.pid, *p)).collect();
        for &leaf in parents.keys() {
            let ancestors = std::iter::successors(parents.get(&leaf), |pid| parents.get(pid));
            if ancestors.take(MAX_DEPTH + 1).count() > MAX_DEPTH {
                return Err(Error::Refused(format!(
                    "process {leaf} has more than {MAX_DEPTH} others above it"
                )));
            }
        }
        let root = pid.or_else(|| self.nodes.first().map(|(_, node)| node.pid));
        // Children come behind their parents: from the end on, all of a node's are there.
        let mut below = BTreeMap::<u32, Vec<ProcessNode>>::new();
        for (parent, mut node) in self.nodes.into_iter().rev() {
            node.children = below.remove(&node.pid).unwrap_or_default();
            node.children.sort_by_key(|child| child.pid);
            if Some(node.pid) == root {
                return Ok(node);
            }
            below.entry(parent).or_default().push(node);
        }
        Err(Error::Refused(format!(
            "no process with PID {} (use `inspect --ps-tree` to view all PIDs)",
            root.unwrap_or_default()
        )))
    }
}

/// The numbers of the texts of a process.
struct Asked {
    arguments: Option<usize>,
    environment: Option<usize>,
}

impl Asked {
    fn of(checkpoint: &Source, pid: u32, wanted: Wanted, texts: &mut Texts) -> Result<Self, Error> {
        let (map, memory) = Memory::open(checkpoint, pid)?;
        let mut ask = |wanted: bool, range| wanted.then(|| texts.ask(&memory, range)).transpose();
        Ok(Self {
            arguments: ask(wanted.arguments, map.arguments)?,
            environment: ask(wanted.environment, map.environment)?,
        })
    }

    fn give(self, node: &mut ProcessNode, texts: &mut [Vec<u8>]) {
        let mut take = |text: Option<usize>| match text {
            Some(text) => texts.get_mut(text).map(std::mem::take).unwrap_or_default(),
            None => Vec::new(),
        };
        node.cmdline = String::from_utf8_lossy(&take(self.arguments)).replace('\0', " ");
        node.environment = take(self.environment)
            .split(|&byte| byte == 0)
            .filter(|variable| !variable.is_empty())
            .map(|variable| String::from_utf8_lossy(variable).into_owned())
            .collect();
    }
}

impl ProcessNode {
    /// What only a living process has, but for its texts.
    fn describe(
        &mut self,
        checkpoint: &Source,
        wanted: Wanted,
        ids: Option<TaskIds>,
        threads: &[u32],
    ) -> Result<(), Error> {
        if wanted.credentials {
            let security: Security = memory::image(checkpoint, Kind::Core, self.pid)?;
            self.credentials = task::credentials(&security);
        }
        if wanted.namespaces {
            let ids = match ids {
                Some(ids) => ids,
                None => memory::image(checkpoint, Kind::Ids, self.pid)?,
            };
            self.namespaces = task::namespaces(ids);
        }
        if wanted.registers {
            for &tid in [self.pid].iter().chain(threads) {
                let thread: Thread = memory::image(checkpoint, Kind::Core, tid)?;
                self.threads.push(ThreadNode {
                    tid,
                    registers: task::registers(&thread),
                });
            }
        }
        Ok(())
    }
}

fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Alive => "Alive",
        TaskState::Dead => "Dead",
        TaskState::Stopped => "Stopped",
        TaskState::Zombie => "Zombie",
        _ => "Unknown",
    }
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn as_object<S: Serializer>(variables: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    let sorted: BTreeMap<&str, &str> = variables
        .iter()
        .map(|variable| variable.split_once('=').unwrap_or((variable, "")))
        .collect();
    serializer.collect_map(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (time, expected) in [
            ("2026-03-13T21:42:59.123456789Z", "2026-03-13T21:42:59Z"),
            ("2026-03-13T21:42:59Z", "2026-03-13T21:42:59Z"),
            ("2026-03-13T21:42:59.5+00:00", "2026-03-13T21:42:59Z"),
            ("2026-03-13T21:42:59.5+01:00", "2026-03-13T21:42:59+01:00"),
            ("yesterday", "yesterday"),
            ("", ""),
            ("2026-03-13T21:42:5\u{e9}.5", "2026-03-13T21:42:5\u{e9}.5"),
        ] {
            assert_eq!(to_the_second(time), expected);
        }
    }
}
