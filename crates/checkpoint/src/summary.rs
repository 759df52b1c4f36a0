//! What is in a checkpoint, in a form to show.
//!
//! [`Summary::read`] takes an image directory, an archive, or an archive unpacked. Archives are
//! read in one pass; memory pages are passed over. What is kept is bounded: the processes, and
//! a few small files.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use cryo_criu_image::inventory::{IMAGE_VERSION, Inventory};
use cryo_criu_image::pstree::ProcessTree;
use cryo_criu_image::stats::DumpStats;
use cryo_criu_image::task::Core;
use cryo_criu_image::{Kind, Reader, View};
use serde::{Deserialize, Serialize};

use crate::flat::{self, FlatDir};
use crate::layout;
use crate::tar_stream::{self, TarStream};

/// Largest `config.dump` and `spec.dump` that are read. The latter carries the pod's annotations.
const MAX_JSON_BYTES: u64 = 8 << 20;

/// Why a checkpoint cannot be summarised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be opened or read.
    #[error("{name} cannot be read")]
    Unreadable {
        /// The path, or a file in the checkpoint.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, but none of a checkpoint.
    #[error("{path} is not a checkpoint: it has neither {} nor a directory {}", Kind::Inventory.file_name(0), layout::CHECKPOINT_DIR)]
    NotACheckpoint {
        /// The directory.
        path: String,
    },
    /// The archive is none, is damaged, or holds what no checkpoint does.
    #[error(transparent)]
    Archive(#[from] tar_stream::Error),
    /// Something in the directory is not a regular file.
    #[error("the checkpoint is unsafe: {name} is {what}")]
    Foreign {
        /// The file.
        name: String,
        /// What it is, with its article.
        what: &'static str,
    },
    /// There are more files than any checkpoint has.
    #[error("the checkpoint is unsafe: more than {limit} files")]
    TooManyFiles {
        /// How many there may be.
        limit: usize,
    },
    /// A name that stands twice in an archive, so that tools may disagree on what it says.
    #[error("the checkpoint is unsafe: {name} is there twice")]
    Duplicate {
        /// The entry.
        name: String,
    },
    /// A file that every checkpoint has is not there.
    #[error("the checkpoint is incomplete: {name} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// An image cannot be decoded.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong, and where.
        source: cryo_criu_image::Error,
    },
    /// A JSON file cannot be decoded.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    BadJson {
        /// The file.
        name: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A JSON file is too long.
    #[error(
        "the checkpoint is unsafe: {name} has {size_bytes} bytes, more than the limit of {MAX_JSON_BYTES}"
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Its length.
        size_bytes: u64,
    },
    /// The images are of a version that we do not know.
    #[error("the checkpoint has images of version {found}, only {IMAGE_VERSION} is known")]
    Version {
        /// The version.
        found: u32,
    },
}

impl Error {
    /// What one can do about it, where that is not plain.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotACheckpoint { .. } => {
                "name an archive, its unpacked directory, or the directory that holds inventory.img"
            }
            Self::Archive(tar_stream::Error::Compressed { .. }) => "decompress it first",
            Self::Archive(tar_stream::Error::BadHeader { offset: 0, .. }) => {
                "name an archive, its unpacked directory, or the directory that holds inventory.img"
            }
            Self::Archive(tar_stream::Error::Truncated { .. }) | Self::Missing { .. } => {
                "make the checkpoint again, or copy all of it: the dump or a copy was cut short"
            }
            Self::Damaged { .. } | Self::BadJson { .. } => {
                "make the checkpoint again, or copy it anew from its origin"
            }
            Self::Foreign { name, .. } if name.ends_with(layout::PARENT) => {
                "incremental checkpoints are not supported: make one without a parent"
            }
            Self::Foreign { .. }
            | Self::TooManyFiles { .. }
            | Self::Duplicate { .. }
            | Self::TooLarge { .. }
            | Self::Archive(
                tar_stream::Error::Foreign { .. } | tar_stream::Error::TooManyEntries { .. },
            ) => "do not use it unless you know where it comes from: no engine writes this",
            _ => return None,
        })
    }
}

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

/// The form in which a checkpoint lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Form {
    /// CRIU's files, flat.
    ImageDirectory,
    /// A tar archive.
    Archive,
    /// A tar archive, unpacked.
    ArchiveDirectory,
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
    /// Reads a checkpoint in whatever form it is.
    ///
    /// # Errors
    ///
    /// All of [`Error`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Unreadable {
            name: path.display().to_string(),
            source,
        };
        if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            let file = File::open(path).map_err(unreadable)?;
            return Self::read_archive(TarStream::seekable(BufReader::new(file)));
        }
        let name = path.display().to_string();
        let directory =
            FlatDir::open(path, true).map_err(|error| directory_error(&name, "", error))?;
        let mut collector = Collector::default();
        if directory.has_directory(layout::CHECKPOINT_DIR) {
            let images = directory
                .subdirectory(layout::CHECKPOINT_DIR)
                .map_err(|error| directory_error(layout::CHECKPOINT_DIR, "checkpoint/", error))?;
            collector.directory(&directory, "")?;
            collector.directory(&images, "checkpoint/")?;
            return collector.finish(Form::ArchiveDirectory);
        }
        if directory.files().all(|(name, _)| !name.ends_with(".img")) {
            return Err(Error::NotACheckpoint { path: name });
        }
        // Again, and this time without subdirectories.
        let images =
            FlatDir::open(path, false).map_err(|error| directory_error(&name, "", error))?;
        collector.directory(&images, "checkpoint/")?;
        collector.finish(Form::ImageDirectory)
    }

    /// Reads an archive.
    ///
    /// # Errors
    ///
    /// All of [`Error`].
    pub fn read_archive<R: Read>(mut archive: TarStream<R>) -> Result<Self, Error> {
        let mut collector = Collector::default();
        while let Some(entry) = archive.next_entry()? {
            if !entry.directory {
                collector.file(&entry.name, entry.size_bytes, &mut archive)?;
            }
        }
        collector.finish(Form::Archive)
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
        self.dump = Some(single::<DumpStats>(&name, BufReader::new(file))?.into());
        Ok(())
    }
}

/// Gathers what the files of a checkpoint say, in whatever order they come.
#[derive(Debug, Default)]
struct Collector {
    seen: HashSet<String>,
    size: Size,
    config: Option<Config>,
    annotations: BTreeMap<String, String>,
    inventory: Option<Inventory>,
    tree: Option<ProcessTree>,
    cores: BTreeMap<u64, (String, &'static str)>,
    stats: Option<DumpStats>,
}

/// `config.dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    id: Option<String>,
    name: Option<String>,
    rootfs_image_name: Option<String>,
    rootfs_image_ref: Option<String>,
    runtime: Option<String>,
    created_time: Option<String>,
    checkpointed_time: Option<String>,
}

/// `spec.dump`, of which only the annotations are of interest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
}

impl Collector {
    fn directory(&mut self, directory: &FlatDir, prefix: &str) -> Result<(), Error> {
        for (name, size_bytes) in directory.files() {
            let full = format!("{prefix}{name}");
            if is_read(&full) {
                let file = directory
                    .open_file(name)
                    .map_err(|error| directory_error(&full, prefix, error))?;
                self.file(&full, size_bytes, &mut BufReader::new(file))?;
            } else {
                self.file(&full, size_bytes, &mut io::empty())?;
            }
        }
        Ok(())
    }

    /// Takes one file, `name` being that of an archive's entry.
    fn file(&mut self, name: &str, size_bytes: u64, content: &mut dyn Read) -> Result<(), Error> {
        self.size.total_bytes = self.size.total_bytes.saturating_add(size_bytes);
        if is_read(name) && !self.seen.insert(name.to_owned()) {
            return Err(Error::Duplicate {
                name: name.to_owned(),
            });
        }
        if let Some(image) = image_name(name) {
            self.size.images_bytes = self.size.images_bytes.saturating_add(size_bytes);
            return match Kind::of_file_name(image) {
                Some((Kind::Pages, _)) => {
                    self.size.memory_bytes = self.size.memory_bytes.saturating_add(size_bytes);
                    Ok(())
                }
                Some((Kind::Inventory, _)) => {
                    self.inventory = Some(single(name, content)?);
                    Ok(())
                }
                Some((Kind::Pstree, _)) => {
                    let damaged = |source| Error::Damaged {
                        name: name.to_owned(),
                        source,
                    };
                    self.tree = Some(ProcessTree::read(name, content).map_err(damaged)?);
                    Ok(())
                }
                Some((Kind::Core, Some(pid))) => {
                    if let Some(process) = single::<Core>(name, content)?.process {
                        let state = process.state.as_str();
                        self.cores
                            .insert(pid, (process.comm_lossy().into_owned(), state));
                    }
                    Ok(())
                }
                // Podman and CRI-O leave a copy here; containerd's is at the top.
                Some((Kind::StatsDump, _)) => {
                    self.stats = Some(single(name, content)?);
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        match name {
            layout::STATS_DUMP => self.stats = Some(single(name, content)?),
            layout::CONFIG_DUMP => self.config = Some(json(name, size_bytes, content)?),
            layout::SPEC_DUMP => {
                self.annotations = json::<Spec>(name, size_bytes, content)?.annotations;
            }
            layout::ROOTFS_DIFF => self.size.rootfs_diff_bytes = Some(size_bytes),
            _ => {}
        }
        Ok(())
    }

    fn finish(mut self, form: Form) -> Result<Summary, Error> {
        let missing = |kind: Kind, number: u64| Error::Missing {
            name: match form {
                Form::ImageDirectory => kind.file_name(number),
                _ => format!("{}/{}", layout::CHECKPOINT_DIR, kind.file_name(number)),
            },
        };
        let inventory = self
            .inventory
            .take()
            .ok_or_else(|| missing(Kind::Inventory, 0))?;
        if inventory.image_version != IMAGE_VERSION {
            return Err(Error::Version {
                found: inventory.image_version,
            });
        }
        let tree = self.tree.take().ok_or_else(|| missing(Kind::Pstree, 0))?;
        let mut processes = Vec::with_capacity(tree.processes().len());
        for process in tree.processes() {
            let Some((command, state)) = self.cores.remove(&process.pid.into()) else {
                return Err(missing(Kind::Core, process.pid.into()));
            };
            processes.push(Process {
                pid: process.pid,
                ppid: process.ppid,
                command,
                state,
                threads: process.threads.len() + 1,
            });
        }
        let container = (form != Form::ImageDirectory).then(|| self.container());
        Ok(Summary {
            form,
            container,
            size: self.size,
            dump: self.stats.map(Dump::from),
            processes,
        })
    }

    fn container(&mut self) -> Container {
        let mut annotation =
            |keys: &[&str]| keys.iter().find_map(|key| self.annotations.remove(*key));
        let engine = match annotation(&[layout::ANNOTATION_MANAGER]).as_deref() {
            Some("libpod") => "podman",
            Some("cri-o") => "cri-o",
            _ => "containerd",
        };
        let pod = annotation(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]);
        let namespace = annotation(&[
            "io.kubernetes.cri.sandbox-namespace",
            "io.kubernetes.pod.namespace",
        ]);
        // containerd's config.dump has the id of the container as its name.
        let name = annotation(&[
            "io.kubernetes.cri.container-name",
            "io.kubernetes.container.name",
        ]);
        let config = self.config.take().unwrap_or_default();
        Container {
            id: config.id,
            name: name.or(config.name),
            image: config.rootfs_image_name,
            image_ref: config.rootfs_image_ref,
            runtime: config.runtime,
            engine,
            created: config.created_time,
            checkpointed: config.checkpointed_time,
            pod,
            namespace,
        }
    }
}

/// The name of a file of the image directory.
fn image_name(name: &str) -> Option<&str> {
    name.strip_prefix(layout::CHECKPOINT_DIR)?.strip_prefix('/')
}

/// Whether the content of an entry is looked at, so that it must be unambiguous.
fn is_read(name: &str) -> bool {
    match image_name(name) {
        Some(image) => matches!(
            Kind::of_file_name(image),
            Some((
                Kind::Inventory | Kind::Pstree | Kind::Core | Kind::StatsDump,
                _
            ))
        ),
        None => matches!(
            name,
            layout::STATS_DUMP | layout::CONFIG_DUMP | layout::SPEC_DUMP | layout::ROOTFS_DIFF
        ),
    }
}

fn single<V: View>(name: &str, content: impl Read) -> Result<V, Error> {
    Reader::new(name, content)
        .and_then(Reader::single)
        .map_err(|source| Error::Damaged {
            name: name.to_owned(),
            source,
        })
}

fn json<T: for<'de> Deserialize<'de>>(
    name: &str,
    size_bytes: u64,
    content: &mut dyn Read,
) -> Result<T, Error> {
    if size_bytes > MAX_JSON_BYTES {
        return Err(Error::TooLarge {
            name: name.to_owned(),
            size_bytes,
        });
    }
    let mut bytes = Vec::new();
    content
        .take(MAX_JSON_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Unreadable {
            name: name.to_owned(),
            source,
        })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::BadJson {
        name: name.to_owned(),
        source,
    })
}

fn directory_error(name: &str, prefix: &str, error: flat::Error) -> Error {
    match error {
        flat::Error::Io(source) => Error::Unreadable {
            name: name.to_owned(),
            source,
        },
        flat::Error::Foreign(name, what) => Error::Foreign {
            name: format!("{prefix}{name}"),
            what,
        },
        flat::Error::TooMany(limit) => Error::TooManyFiles { limit },
    }
}
