//! An image directory, checked before a restore.
//!
//! ```text
//! inventory.img pstree.img files.img       once
//! core-PID.img ids-PID.img mm-PID.img …    per task
//! pagemap-PID.img pages-ID.img             memory
//! descriptors.json                         by us, runc or crun
//! stats-dump dump.log                      if the work directory was the same
//! ```
//!
//! [`check`] answers two questions: is it *safe to open* (known names and regular files only,
//! flat, one name each; CRIU follows links and would load any file of the host into the container's memory),
//! and is it *complete* (everything that CRIU will look for first is there, can be read, and has
//! the length that the rest promises). Whether the container is what its specification says is
//! another question, which is not asked here.

mod memory;
mod parents;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use cryo_criu_image::files::{Descriptor, Object, OpenFile, Terminal};
use cryo_criu_image::inventory::{
    Clocks, IdMaps, Inventory, TaskIds, UnknownVersion, with_root_ids,
};
use cryo_criu_image::pstree::ProcessTree;
pub use cryo_criu_image::seccomp::Filter;
use cryo_criu_image::seccomp::Filters;
use cryo_criu_image::stats::DumpStats;
use cryo_criu_image::task::Core;
use cryo_criu_image::{Body, Kind, RawReader, Reader, View, Writer};

use crate::descriptors::{self, Descriptors, StdioKey};
use crate::flat::{self, FlatDir};
use crate::layout;
pub use memory::LazyMemory;
use parents::Parent;

/// Why an image directory cannot be restored from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such directory, or it cannot be read.
    #[error("the checkpoint cannot be read: {name}")]
    Unreadable {
        /// The directory, or a file in it.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something in the directory could lead CRIU elsewhere.
    #[error("the checkpoint is unsafe: {name} is {what}")]
    Foreign {
        /// The file.
        name: String,
        /// What it is, with its article.
        what: &'static str,
    },
    /// Somebody could change the files after they were checked.
    #[error("the checkpoint is unsafe: {name} can be changed by others than root")]
    Exposed {
        /// The file, or the directory.
        name: String,
    },
    /// There are more files than any container's images have.
    #[error("the checkpoint is unsafe: more than {limit} files")]
    TooManyFiles {
        /// How many there may be.
        limit: usize,
    },
    /// CRIU would restore into a namespace that it is in itself.
    #[error("the checkpoint is unsafe: its processes are in the {namespace} namespace of the node")]
    InTheNodes {
        /// Its kind.
        namespace: &'static str,
    },
    /// A file that a restore needs is not there.
    #[error("the checkpoint is incomplete: {name} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// A file of memory pages is shorter than its pagemap says.
    #[error(
        "the checkpoint is incomplete: {name} has {found_bytes} bytes, {needed_bytes} are needed"
    )]
    ShortPages {
        /// The file.
        name: String,
        /// Its length.
        found_bytes: u64,
        /// The length it should have at least.
        needed_bytes: u64,
    },
    /// A directory that it inherits memory from cannot be used.
    #[error("in its parent {name}: {source}")]
    Parent {
        /// The parent, as the link to it has it.
        name: String,
        /// What is wrong there.
        source: Box<Error>,
    },
    /// The chain of parents is too long.
    #[error("the checkpoint has more than {limit} parents")]
    TooManyParents {
        /// How many there may be.
        limit: usize,
    },
    /// Some memory stands in the images of an earlier dump, or on a page server.
    #[error("the checkpoint is incomplete: {name} refers to {pages} pages that are not in it")]
    MemoryElsewhere {
        /// The pagemap.
        name: String,
        /// How many pages.
        pages: u64,
    },
    /// Its memory cannot be filled in after the restore.
    #[error("the memory in {name} cannot be restored with lazy-pages: it is {what}")]
    NotLazy {
        /// The pagemap.
        name: String,
        /// What is in the way.
        what: &'static str,
    },
    /// A file cannot be decoded.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong, and where.
        source: cryo_criu_image::Error,
    },
    /// `descriptors.json` cannot be used.
    #[error("the checkpoint is damaged: {} cannot be used", layout::DESCRIPTORS)]
    BadDescriptors(#[source] descriptors::Error),
    /// The images are of a version that CRIU does not read.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// The images were made on another kind of machine.
    #[error("the checkpoint was made on {found}, this machine is {here}")]
    Architecture {
        /// The architecture in the images.
        found: &'static str,
        /// The architecture of this machine.
        here: &'static str,
    },
}

impl Error {
    /// What whoever asked for the restore can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "name the directory that holds inventory.img",
            Self::Foreign { name, .. } if name == layout::PARENT => {
                "part of its memory is in another directory: have the node's owner name the one that holds both, as `parents` under [restore] in /etc/cryo/config.toml, or make a checkpoint without a parent"
            }
            Self::Foreign { .. } | Self::TooManyFiles { .. } | Self::InTheNodes { .. } => {
                "do not use it unless you know where it comes from: CRIU never writes this"
            }
            Self::NotLazy { .. } => "leave the option lazy-pages out",
            Self::Parent { source, .. } => source.hint(),
            Self::TooManyParents { .. } => "make a checkpoint without a parent",
            Self::Exposed { .. } => "make root its owner, and let nobody else write to it",
            Self::Missing { .. } | Self::ShortPages { .. } => {
                "make the checkpoint again, or copy all of it: the dump or a copy was cut short"
            }
            Self::MemoryElsewhere { .. } => {
                "make a full checkpoint: incremental and lazy ones cannot be restored alone"
            }
            Self::Damaged { .. } | Self::BadDescriptors(_) => {
                "make the checkpoint again, or copy it anew from its origin"
            }
            Self::Version(_) => "restore it with the version of CRIU that made it",
            Self::Architecture { .. } => "restore it on a machine of its own architecture",
        }
    }
}

/// An image directory that passed [`check`].
///
/// It owns the directory's descriptor, so that CRIU can be given the very directory that was
/// checked ([`ImageDir::fd`]) whatever its path leads to by then. The files in it are not locked
/// against whoever may write to them; [`ImageDir::check_owner`] tells whether that is root alone.
#[derive(Debug)]
pub struct ImageDir {
    files: FlatDir,
    parents: Vec<Parent>,
    inventory: Inventory,
    tree: ProcessTree,
    root: Core,
    ids: Option<TaskIds>,
    stdio: [Option<StdioKey>; 3],
    stats: Option<DumpStats>,
}

/// The seccomp filters in an image directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seccomp {
    /// All of them, by their positions.
    pub filters: Vec<Filter>,
    /// The tasks that have some, by their numbers, and each one's first; `None` where only images
    /// of an old CRIU say it.
    pub chains: Vec<(u32, Option<u32>)>,
}

/// Checks the image directory at `path`.
///
/// The path itself may lead through links: it comes from whoever asks for the restore. What is
/// in the directory may not.
///
/// # Errors
///
/// All of [`Error`]; its [`Error::hint`] says what to do.
pub fn check(path: &Path) -> Result<ImageDir, Error> {
    check_with_parents(path, None)
}

/// Checks the image directory at `path`, and those that it inherits memory from: each beside the
/// one that names it, in a directory that is `store` or beneath it. Without a store there may be
/// none.
///
/// # Errors
///
/// As [`check`].
pub fn check_with_parents(path: &Path, store: Option<&Path>) -> Result<ImageDir, Error> {
    let files = FlatDir::open_images(path).map_err(|error| path_error(path, error))?;
    ImageDir::new(files, store)
}

/// Checks the image directory of which `fd` is a descriptor opened for reading.
///
/// # Errors
///
/// As [`check`].
pub fn check_fd(fd: OwnedFd) -> Result<ImageDir, Error> {
    let files = FlatDir::of_images(fd).map_err(|error| flat_error("the directory", error))?;
    ImageDir::new(files, None)
}

impl ImageDir {
    fn new(files: FlatDir, store: Option<&Path>) -> Result<Self, Error> {
        check_names(&files)?;
        let inventory: Inventory = one(&files, Kind::Inventory, 0)?;
        inventory.check_version()?;
        let name = Kind::Pstree.file_name(0);
        let tree = ProcessTree::read(&name, open(&files, &name)?)
            .map_err(|source| Error::Damaged { name, source })?;
        for process in tree.processes() {
            for &task in process.threads.iter().chain([&process.pid]) {
                let name = Kind::Core.file_name(task.into());
                if files.size(&name).is_none() {
                    return Err(Error::Missing { name });
                }
            }
        }

        let root: Core = one(&files, Kind::Core, tree.root_pid().into())?;
        let here = std::env::consts::ARCH;
        if root.arch.as_str() != here {
            return Err(Error::Architecture {
                found: root.arch.as_str(),
                here,
            });
        }
        let ids = task_ids(&files, &tree, &root)?;
        check_namespaces(&inventory, &tree, ids.as_ref())?;
        let parents = parents::check(&files, store)?;

        let stdio = stdio_keys(&files, ids)?;
        let stats = match files.size(layout::STATS_DUMP) {
            Some(_) => Some(one(&files, Kind::StatsDump, 0)?),
            None => None,
        };
        Ok(Self {
            files,
            parents,
            inventory,
            tree,
            root,
            ids,
            stdio,
            stats,
        })
    }

    /// Checks that nobody but root, and who runs this, can change the directory or its files: CRIU
    /// opens them anew, after they were checked.
    ///
    /// # Errors
    ///
    /// [`Error::Exposed`].
    pub fn check_owner(&self) -> Result<(), Error> {
        check_owner(&self.files)?;
        let mut parents = self.parents.iter();
        parents.try_for_each(|p| check_owner(&p.files).map_err(|e| p.error(e)))
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.files.fd()
    }

    /// The pid, in its namespace, of the root of the process tree: the container's init.
    pub fn root_pid(&self) -> u32 {
        self.tree.root_pid()
    }

    /// The root task.
    pub fn root(&self) -> &Core {
        &self.root
    }

    /// All processes.
    pub fn tree(&self) -> &ProcessTree {
        &self.tree
    }

    /// The head of the images.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What the container's descriptors 0 to 2 were, so that the new container's can be given to
    /// CRIU in their place; `None` for one that was closed.
    ///
    /// An entry of `descriptors.json` counts: it is what the container was *started* with, and
    /// some process may hold it even if the root task has put something else at that number.
    /// But a pipe or socket there that no image knows is stale, and a path counts for nothing if
    /// the root task has a terminal (runc writes what *it* had, `/dev/null` thrice). Then, or
    /// without the file, it is what the root task had there at the dump, save pipes of which the
    /// container holds both ends.
    pub fn stdio_keys(&self) -> &[Option<StdioKey>; 3] {
        &self.stdio
    }

    /// Whether part of its memory is in other directories.
    pub fn has_parents(&self) -> bool {
        !self.parents.is_empty()
    }

    /// `inventory.img` for a CRIU that runs in the container's user namespace, and, with `uts`,
    /// is not to set the host name. `None` where the checkpoint is not of a container with a user
    /// namespace of its own.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn inventory_inside(&self, uts: bool) -> Result<Option<Vec<u8>>, Error> {
        let name = Kind::Inventory.file_name(0);
        let damaged = |source| damaged(&name, source);
        let (Some(ids), Some(mut root)) = (&self.ids, self.inventory.root_ids) else {
            return Ok(None);
        };
        if ids.user_ns.is_none() || ids.user_ns == root.user_ns {
            return Ok(None);
        }
        root.user_ns = ids.user_ns;
        if uts {
            root.uts_ns = ids.uts_ns;
        }
        let file = open(&self.files, &name)?;
        let mut reader = RawReader::new(&*name, Kind::Inventory, file).map_err(damaged)?;
        let mut image = Writer::new(Kind::Inventory, Vec::new()).map_err(damaged)?;
        if let Some(entry) = reader.next_entry().map_err(damaged)? {
            let entry = with_root_ids(entry.bytes, &root);
            image.entry(&entry).map_err(damaged)?;
        }
        Ok(Some(image.into_inner()))
    }

    /// Who its users were on its node; `None` without a user namespace of its own.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn id_maps(&self) -> Result<Option<IdMaps>, Error> {
        let (Some(ids), Some(root)) = (&self.ids, &self.inventory.root_ids) else {
            return Ok(None);
        };
        match ids.user_ns {
            Some(ns) if ids.user_ns != root.user_ns => {
                one(&self.files, Kind::Userns, ns.into()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What the container's clocks showed at the dump; `None` where it did not tell.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn clocks(&self) -> Result<Option<Clocks>, Error> {
        let own = match (&self.ids, &self.inventory.root_ids) {
            (Some(ids), Some(root)) if ids.time_ns != root.time_ns => ids.time_ns.unwrap_or(0),
            _ => 0,
        };
        let name = Kind::Timens.file_name(own.into());
        match self.files.size(&name) {
            Some(_) => one(&self.files, Kind::Timens, own.into()).map(Some),
            None => Ok(None),
        }
    }

    /// The seccomp filters of all tasks.
    ///
    /// # Errors
    ///
    /// When an image of them cannot be read.
    pub fn seccomp(&self) -> Result<Seccomp, Error> {
        const FILTERS: i32 = 2;
        let filters = match self.files.size(&Kind::Seccomp.file_name(0)) {
            Some(_) => one::<Filters>(&self.files, Kind::Seccomp, 0)?.0,
            None => Vec::new(),
        };
        let mut chains = Vec::new();
        for process in self.tree.processes() {
            for &task in process.threads.iter().chain([&process.pid]) {
                let core: Core = one(&self.files, Kind::Core, task.into())?;
                if core.seccomp_of_process {
                    chains.push((task, None));
                } else if core.seccomp_mode == Some(FILTERS) {
                    // What CRIU takes where nothing is said.
                    chains.push((task, Some(core.seccomp_filter.unwrap_or(0))));
                }
            }
        }
        Ok(Seccomp { filters, chains })
    }

    /// Opens what CRIU leaves to others with lazy-pages: the memory of each process. The files stay
    /// what they are, whatever becomes of the directory.
    ///
    /// # Errors
    ///
    /// [`Error::NotLazy`] for memory that cannot be filled in, and what opening says.
    pub fn lazy_memory(&self) -> Result<Vec<LazyMemory>, Error> {
        memory::open_lazy(&self.files, &self.tree)
    }

    /// The statistics of the dump, if CRIU's work directory was this one.
    pub fn stats(&self) -> Option<&DumpStats> {
        self.stats.as_ref()
    }

    /// Bytes of all files together, without those of its parents.
    pub fn size_bytes(&self) -> u64 {
        self.files.files().map(|(_, size)| size).sum()
    }

    /// Bytes of memory pages among them.
    pub fn memory_bytes(&self) -> u64 {
        self.files
            .files()
            .filter(|(name, _)| matches!(Kind::of_file_name(name), Some((Kind::Pages, _))))
            .map(|(_, size)| size)
            .sum()
    }
}

fn check_owner(files: &FlatDir) -> Result<(), Error> {
    match files.exposed() {
        Some(name) => Err(Error::Exposed {
            name: name.to_owned(),
        }),
        None => Ok(()),
    }
}

/// There are files of known names only, and none is longer than we would read it.
/// Whether a file of an image directory is one that is known: an image of a CRIU that is not newer
/// than what we know, or one of ours. A directory with another one is refused.
pub fn is_known(name: &str) -> bool {
    const OTHERS: [&str; 3] = [layout::DESCRIPTORS, layout::DUMP_LOG, layout::RESTORE_LOG];
    Kind::of_file_name(name).is_some() || OTHERS.contains(&name)
}

fn check_names(files: &FlatDir) -> Result<(), Error> {
    for (name, size) in files.files() {
        let foreign = |what| {
            Err(Error::Foreign {
                name: name.to_owned(),
                what,
            })
        };
        match Kind::of_file_name(name) {
            Some((kind, _)) if kind.body() == Body::Bytes => {}
            Some((kind, _)) if size > kind.limits().total_bytes => {
                return foreign("longer than any that CRIU writes");
            }
            _ if !is_known(name) => return foreign("no file of a checkpoint"),
            _ => {}
        }
    }
    Ok(())
}

fn stdio_keys(files: &FlatDir, ids: Option<TaskIds>) -> Result<[Option<StdioKey>; 3], Error> {
    let recorded = match files.size(layout::DESCRIPTORS) {
        Some(_) => read_descriptors(files)?.0.map(Some),
        None => [None, None, None],
    };
    let current = current_stdio(files, ids)?;

    // Which ends of the pipes in question are held within the container.
    let mut ends = BTreeMap::<u32, Ends>::new();
    for key in recorded.iter().chain(&current) {
        if let Some(StdioKey::Pipe(inode) | StdioKey::Socket(inode)) = key {
            ends.insert(*inode, Ends::default());
        }
    }
    for_each_file(files, |file| {
        let (inode, writes) = match &file.object {
            Object::Pipe { pipe_id, flags } => (*pipe_id, flags & 3 == 1),
            Object::Unix(socket) => (socket.inode, true),
            _ => return,
        };
        if let Some(ends) = ends.get_mut(&inode) {
            ends.writing |= writes;
            ends.reading |= !writes;
        }
    })?;
    let ends_of = |inode: u32| ends.get(&inode).copied().unwrap_or_default();

    let mut keys = recorded;
    for (key, current) in keys.iter_mut().zip(current) {
        let stale = match key {
            None => true,
            Some(StdioKey::Pipe(inode) | StdioKey::Socket(inode)) => {
                ends_of(*inode) == Ends::default()
            }
            Some(_) => matches!(current, Some(StdioKey::Tty { .. })),
        };
        if !stale {
            continue;
        }
        *key = match current {
            // The container's own: between two of its processes, say.
            Some(StdioKey::Pipe(inode))
                if ends_of(inode)
                    == (Ends {
                        reading: true,
                        writing: true,
                    }) =>
            {
                Some(StdioKey::Other(format!("inner pipe {inode}")))
            }
            current => current,
        };
    }
    Ok(keys)
}

/// The ends of a pipe that are held within the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ends {
    reading: bool,
    writing: bool,
}

/// A container has a mount namespace, and a process with the number 1 a pid namespace. Other kinds
/// may be the node's; whoever restores knows.
fn check_namespaces(
    inventory: &Inventory,
    tree: &ProcessTree,
    ids: Option<&TaskIds>,
) -> Result<(), Error> {
    let (Some(nodes), Some(ids)) = (&inventory.root_ids, ids) else {
        return Ok(());
    };
    let shared = |one: Option<u32>, other: Option<u32>| one.is_some() && one == other;
    if shared(nodes.mnt_ns, ids.mnt_ns) {
        return Err(Error::InTheNodes { namespace: "mount" });
    }
    if tree.root_pid() == 1 && shared(nodes.pid_ns, ids.pid_ns) {
        return Err(Error::InTheNodes { namespace: "pid" });
    }
    Ok(())
}

/// Which kernel objects the root task shares with whom.
fn task_ids(files: &FlatDir, tree: &ProcessTree, root: &Core) -> Result<Option<TaskIds>, Error> {
    let pid = tree.root_pid().into();
    match files.size(&Kind::Ids.file_name(pid)) {
        Some(_) => Ok(Some(one(files, Kind::Ids, pid)?)),
        None => Ok(root.ids),
    }
}

/// What the root task has at its descriptors 0 to 2.
fn current_stdio(files: &FlatDir, ids: Option<TaskIds>) -> Result<[Option<StdioKey>; 3], Error> {
    let Some(table) = ids.map(|ids| Kind::Fdinfo.file_name(ids.files.into())) else {
        return Ok([None, None, None]);
    };
    let mut wanted = [None; 3];
    for descriptor in read::<Descriptor>(files, &table)? {
        let descriptor = descriptor.map_err(|source| damaged(&table, source))?;
        let index = usize::try_from(descriptor.fd).unwrap_or(usize::MAX);
        if let Some(slot) = wanted.get_mut(index) {
            *slot = Some(descriptor.file_id);
        }
    }

    let mut objects: [Option<Object>; 3] = [None, None, None];
    for_each_file(files, |file| {
        for (slot, wanted) in objects.iter_mut().zip(wanted) {
            if wanted == Some(file.id) {
                *slot = Some(file.object.clone());
            }
        }
    })?;

    let mut keys = [None, None, None];
    for (key, object) in keys.iter_mut().zip(objects) {
        *key = object.map(|object| key_of(files, &object)).transpose()?;
    }
    Ok(keys)
}

fn for_each_file(files: &FlatDir, mut visit: impl FnMut(&OpenFile)) -> Result<(), Error> {
    let name = Kind::Files.file_name(0);
    for file in read::<OpenFile>(files, &name)? {
        visit(&file.map_err(|source| damaged(&name, source))?);
    }
    Ok(())
}

fn key_of(files: &FlatDir, object: &Object) -> Result<StdioKey, Error> {
    Ok(match object {
        Object::Path {
            path,
            external: false,
            ..
        } => StdioKey::parse(&String::from_utf8_lossy(path)),
        Object::Path {
            path,
            external: true,
            ..
        } => StdioKey::Other(String::from_utf8_lossy(path).into_owned()),
        Object::Pipe { pipe_id, .. } => StdioKey::Pipe(*pipe_id),
        Object::Unix(socket) => StdioKey::Socket(socket.inode),
        Object::Tty { info_id } => {
            let name = Kind::TtyInfo.file_name(0);
            for terminal in read::<Terminal>(files, &name)? {
                let terminal = terminal.map_err(|source| damaged(&name, source))?;
                if terminal.id == *info_id {
                    let dev = terminal.dev.unwrap_or_default();
                    return Ok(StdioKey::Tty {
                        rdev: terminal.rdev,
                        dev,
                    });
                }
            }
            StdioKey::Other(format!("terminal {info_id}"))
        }
        Object::Fifo { pipe_id } => StdioKey::Other(format!("fifo {pipe_id}")),
        Object::Other(number) => StdioKey::Other(format!("file of type {number}")),
        _ => StdioKey::Other("file of unknown type".to_owned()),
    })
}

fn read_descriptors(files: &FlatDir) -> Result<Descriptors, Error> {
    let limit = descriptors::MAX_BYTES as u64;
    let mut bytes = Vec::new();
    open(files, layout::DESCRIPTORS)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Unreadable {
            name: layout::DESCRIPTORS.to_owned(),
            source,
        })?;
    Descriptors::from_json(&bytes).map_err(Error::BadDescriptors)
}

fn one<V: View>(files: &FlatDir, kind: Kind, number: u64) -> Result<V, Error> {
    let name = kind.file_name(number);
    read::<V>(files, &name)?
        .single()
        .map_err(|source| damaged(&name, source))
}

fn read<V: View>(files: &FlatDir, name: &str) -> Result<Reader<V, impl Read + use<V>>, Error> {
    Reader::new(name, open(files, name)?).map_err(|source| damaged(name, source))
}

fn open(files: &FlatDir, name: &str) -> Result<impl Read + use<>, Error> {
    if files.size(name).is_none() {
        return Err(Error::Missing {
            name: name.to_owned(),
        });
    }
    files
        .open_file(name)
        .map(BufReader::new)
        .map_err(|error| flat_error(name, error))
}

fn damaged(name: &str, source: cryo_criu_image::Error) -> Error {
    Error::Damaged {
        name: name.to_owned(),
        source,
    }
}

fn path_error(path: &Path, error: flat::Error) -> Error {
    flat_error(&path.display().to_string(), error)
}

fn flat_error(name: &str, error: flat::Error) -> Error {
    match error {
        flat::Error::Io(source) => Error::Unreadable {
            name: name.to_owned(),
            source,
        },
        flat::Error::Foreign(name, what) => Error::Foreign { name, what },
        flat::Error::TooMany(limit) => Error::TooManyFiles { limit },
    }
}
