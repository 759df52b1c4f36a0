//! What is in a checkpoint, in a form to show.
//!
//! [`Summary::of`] takes a checkpoint in any form; memory pages are passed over. What is kept is
//! bounded: the processes, and a few small files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use cryo_criu_image::inventory::Inventory;
use cryo_criu_image::pstree::ProcessTree;
use cryo_criu_image::stats::DumpStats;
use cryo_criu_image::task::Core;
use cryo_criu_image::{Kind, Reader};
use serde::Serialize;

use crate::layout;
use crate::metadata::Metadata;
use crate::source::{Error, Form, Source, damaged};

/// What is in a checkpoint.
///
/// The keys of its JSON form are the names of its fields. Texts are as they stand in the
/// checkpoint: they may hold control characters, which JSON escapes and a terminal does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// What kind of file or directory it is.
    pub form: Form,
    /// What the engine knew of the container; an image directory tells nothing of it.
    pub container: Option<Container>,
    /// How large it is.
    pub size: Size,
    /// What the dump took; `None` if `stats-dump` is not part of the checkpoint.
    pub dump: Option<Dump>,
    /// The processes, parents before their children.
    pub processes: Vec<Process>,
}

/// The container that was checkpointed. Times are RFC 3339 in the words of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Container {
    /// Its id.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// The image it was made from.
    pub image: Option<String>,
    /// The same by digest.
    pub image_ref: Option<String>,
    /// The runtime it ran by.
    pub runtime: Option<String>,
    /// Who wrote the archive: `containerd`, `cri-o` or `podman`.
    pub engine: &'static str,
    /// When it was made.
    pub created: Option<String>,
    /// When it was checkpointed.
    pub checkpointed: Option<String>,
    /// Its pod.
    pub pod: Option<String>,
    /// Its pod's namespace.
    pub namespace: Option<String>,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Size {
    /// All files.
    pub total_bytes: u64,
    /// The image directory, memory included.
    pub images_bytes: u64,
    /// Memory pages.
    pub memory_bytes: u64,
    /// What the container changed in its root file system, if that is part of the checkpoint.
    pub rootfs_diff_bytes: Option<u64>,
}

/// What a dump took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Dump {
    /// Until all tasks stood still.
    pub freezing_time_us: u32,
    /// How long they stood still.
    pub frozen_time_us: u32,
    /// Taking memory over.
    pub memdump_time_us: u32,
    /// Writing it.
    pub memwrite_time_us: u32,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written.
    pub pages_written: u64,
}

impl From<DumpStats> for Dump {
    fn from(stats: DumpStats) -> Self {
        Self {
            freezing_time_us: stats.freezing_time_us,
            frozen_time_us: stats.frozen_time_us,
            memdump_time_us: stats.memdump_time_us,
            memwrite_time_us: stats.memwrite_time_us,
            pages_scanned: stats.pages_scanned,
            pages_written: stats.pages_written,
        }
    }
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Process {
    /// Its pid in the container.
    pub pid: u32,
    /// Its parent's; 0 for the root.
    pub ppid: u32,
    /// Its name.
    pub command: String,
    /// `alive`, `stopped`, `dead` or `unknown`.
    pub state: &'static str,
    /// How many threads it has.
    pub threads: usize,
}

impl Summary {
    /// Reads the checkpoint of a container, in whatever form it is.
    ///
    /// # Errors
    ///
    /// All of [`Error`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::of(&Source::open(path)?)
    }

    /// Of a checkpoint that is open.
    ///
    /// # Errors
    ///
    /// Those of [`Error`] that come of reading and decoding.
    pub fn of(source: &Source) -> Result<Self, Error> {
        let missing = |kind: Kind, number: u64| Error::Missing {
            name: source.image_name(kind, number),
        };
        let inventory: Inventory = source
            .view(&source.image_name(Kind::Inventory, 0))?
            .ok_or_else(|| missing(Kind::Inventory, 0))?;
        inventory.check_version()?;
        let tree = source.image_name(Kind::Pstree, 0);
        let tree =
            ProcessTree::read(&tree, source.reader(&tree)?).map_err(|e| damaged(&tree, e))?;
        let mut processes = Vec::with_capacity(tree.processes().len());
        for process in tree.processes() {
            let core: Core = source
                .view(&source.image_name(Kind::Core, process.pid.into()))?
                .ok_or_else(|| missing(Kind::Core, process.pid.into()))?;
            let core = core
                .process
                .ok_or_else(|| missing(Kind::Core, process.pid.into()))?;
            processes.push(Process {
                pid: process.pid,
                ppid: process.ppid,
                command: core.comm_lossy().into_owned(),
                state: core.state.as_str(),
                threads: process.threads.len() + 1,
            });
        }
        // containerd's is at the top; Podman and CRI-O leave a copy with the images.
        let dump: Option<DumpStats> = match source.view(layout::STATS_DUMP)? {
            Some(stats) => Some(stats),
            None => source.view(&source.image_name(Kind::StatsDump, 0))?,
        };
        Ok(Self {
            form: source.form(),
            container: container(source)?,
            size: Size::of(source),
            dump: dump.map(Dump::from),
            processes,
        })
    }

    /// Takes the statistics from a `stats-dump` that lies elsewhere, as in the work directory
    /// that `ctr task checkpoint --work-path` named.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`], [`Error::Damaged`].
    pub fn read_stats(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| Error::Unreadable {
            name: name.clone(),
            source,
        })?;
        let stats = Reader::<DumpStats, _>::new(&name, BufReader::new(file))
            .and_then(Reader::single)
            .map_err(|error| damaged(&name, error))?;
        self.dump = Some(stats.into());
        Ok(())
    }
}

impl Size {
    /// Of a checkpoint that is open.
    pub fn of(source: &Source) -> Self {
        let total = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
        let images = || {
            source
                .images()
                .map(|(name, entry)| (name, entry.size_bytes))
        };
        let is_memory = |name| matches!(Kind::of_file_name(name), Some((Kind::Pages, _)));
        Self {
            total_bytes: total(&mut source.entries().iter().map(|entry| entry.size_bytes)),
            images_bytes: total(&mut images().map(|(_, size)| size)),
            memory_bytes: total(
                &mut images()
                    .filter(|(name, _)| is_memory(name))
                    .map(|(_, size)| size),
            ),
            rootfs_diff_bytes: source.file(layout::ROOTFS_DIFF).map(|e| e.size_bytes),
        }
    }
}

/// What the engine knew; `None` of images alone.
fn container(source: &Source) -> Result<Option<Container>, Error> {
    let found = Metadata::of(source)?;
    Ok(found.map(|metadata| Container {
        id: metadata.id,
        name: metadata.name,
        image: metadata.image,
        image_ref: metadata.image_ref,
        runtime: metadata.runtime,
        engine: metadata.engine.as_str(),
        created: metadata.created,
        checkpointed: metadata.checkpointed,
        pod: metadata.pod,
        namespace: metadata.namespace,
    }))
}
