//! The memory of a process: its areas, and where the pages of it are.
//!
//! [`Memory::open`] reads the memory map and the pagemap; nothing of the pages. What they hold is
//! read through a [`Cursor`], in pieces: an archive that is not compressed by `pread` at any
//! place, a compressed one as a stream, in the order of the image. Nothing is unpacked and no
//! more than a few buffers are held, whatever the size of the process.
//!
//! Pages that are in a parent image are found in the directories given to
//! [`Memory::with_parent`] and nowhere else: a link named `parent` is not followed.

mod cursor;
pub mod diff;
pub mod elf;
pub mod search;
mod text;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use cryo_criu_image::files::{Object, OpenFile};
use cryo_criu_image::mm::{Backing, MemoryMap, Range};
use cryo_criu_image::pagemap::{Location, Pagemap};
use cryo_criu_image::pstree::{Process, ProcessTree};
use cryo_criu_image::task::{Core, ProcessCore, TaskState};
use cryo_criu_image::{Kind, View};

use crate::source::{self, Blob};

pub use cursor::Cursor;
pub use text::Texts;

/// Most threads that memory is read on. Each has buffers of its own, and memory is bounded.
pub const MAX_THREADS: usize = 8;

/// Why the memory of a process cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the checkpoint is missing, damaged or cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// There are fewer pages than the pagemap says.
    #[error(
        "the checkpoint is damaged: {name} ends before offset {wanted}, where its pagemap has pages"
    )]
    Short {
        /// The file of the pages.
        name: String,
        /// How long it has to be, in bytes.
        wanted: u64,
    },
    /// It is not of a kind that can be dealt with.
    #[error("{0}")]
    Refused(String),
    /// Writing what was asked for failed.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl Error {
    /// What one can do about it, where that is not plain.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Source(error) => error.hint(),
            Self::Short { .. } => Some(
                "make the checkpoint again, or copy all of it: the dump or a copy was cut short",
            ),
            _ => None,
        }
    }
}

/// The memory of a process, or a piece of memory that processes share.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What is in the image, in the order in which it stands there.
    runs: Vec<Run>,
    /// The files of pages: our own, then those of parents.
    sources: Vec<Source>,
    page_bytes: u64,
    missing: Missing,
    /// Runs that a parent has to have: address and bytes.
    in_parent: Vec<(u64, u64)>,
}

/// A file of pages.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) blob: Blob,
}

/// Pages that lie side by side, in memory and in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The address of the first byte; in shared memory its offset.
    pub address: u64,
    /// How many bytes there are.
    pub bytes: u64,
    /// Where they stand in their file of pages.
    pub(crate) offset: u64,
    /// Which one that is.
    pub(crate) source: usize,
}

impl Run {
    /// The address behind the last byte.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }

    /// Whether `next` goes on where this ends, in memory and in the image.
    fn goes_on_in(&self, next: &Self) -> bool {
        self.source == next.source
            && self.end() == next.address
            && self.offset.saturating_add(self.bytes) == next.offset
    }

    /// The part of it from an address up to another one.
    fn part(&self, from: u64, to: u64) -> Option<Self> {
        let (start, end) = (self.address.max(from), self.end().min(to));
        (start < end).then(|| Self {
            address: start,
            bytes: end - start,
            offset: self.offset + (start - self.address),
            source: self.source,
        })
    }
}

/// Bytes of memory that the images do not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    /// Those of a parent that was not given.
    pub parent_bytes: u64,
    /// Those that a page server was to supply.
    pub lazy_bytes: u64,
}

impl Memory {
    /// The memory map and the memory of a process.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Short`].
    pub fn open(checkpoint: &source::Source, pid: u32) -> Result<(MemoryMap, Self), Error> {
        checkpoint.check_version()?;
        let map = map(checkpoint, pid)?;
        let memory = Self::from_pagemap(checkpoint, Kind::Pagemap, pid.into(), map.page_bytes())?;
        Ok((map, memory))
    }

    /// Shared memory by its number, see [`cryo_criu_image::mm::Backing::Shared`]; `None` if there
    /// is none of that number. Its addresses begin at 0.
    ///
    /// # Errors
    ///
    /// As [`Memory::open`].
    pub fn open_shared(
        checkpoint: &source::Source,
        id: u64,
        page_bytes: u64,
    ) -> Result<Option<Self>, Error> {
        if checkpoint.image(Kind::PagemapShmem, id).is_none() {
            return Ok(None);
        }
        Self::from_pagemap(checkpoint, Kind::PagemapShmem, id, page_bytes).map(Some)
    }

    fn from_pagemap(
        checkpoint: &source::Source,
        kind: Kind,
        number: u64,
        page_bytes: u64,
    ) -> Result<Self, Error> {
        let name = checkpoint.image_name(kind, number);
        let pagemap = Pagemap::read(&name, checkpoint.reader(&name)?, page_bytes)
            .map_err(|error| source::damaged(&name, error))?;
        let mut memory = Self {
            runs: Vec::with_capacity(pagemap.runs.len()),
            sources: Vec::new(),
            page_bytes,
            missing: Missing::default(),
            in_parent: Vec::new(),
        };
        let mut offset = 0;
        for run in pagemap.runs {
            // That none of these overflows was checked by the pagemap.
            let bytes = run.pages.saturating_mul(page_bytes);
            match run.location {
                Location::Here => {
                    memory.runs.push(Run {
                        address: run.address,
                        bytes,
                        offset,
                        source: 0,
                    });
                    offset += bytes;
                }
                Location::Parent => {
                    memory.missing.parent_bytes += bytes;
                    memory.in_parent.push((run.address, bytes));
                }
                Location::Nowhere if run.lazy => memory.missing.lazy_bytes += bytes,
                Location::Nowhere => {}
            }
        }
        if offset > 0 {
            let name = checkpoint.image_name(Kind::Pages, pagemap.pages_id.into());
            let Some(entry) = checkpoint.file(&name) else {
                return Err(source::Error::Missing { name }.into());
            };
            if entry.size_bytes < offset {
                return Err(Error::Short {
                    name,
                    wanted: offset,
                });
            }
            memory.sources.push(Source {
                name,
                blob: entry.blob(),
            });
        }
        Ok(memory)
    }

    /// The same with the pages that a parent has; what is in its parent in turn has to have been
    /// put into `parent` before.
    #[must_use]
    pub fn with_parent(mut self, parent: &Self) -> Self {
        let first = self.sources.len();
        self.sources.extend(parent.sources.iter().cloned());
        let mut sorted = parent.runs.clone();
        sorted.sort_unstable_by_key(|run| run.address);
        let mut missing = Vec::new();
        for (address, bytes) in std::mem::take(&mut self.in_parent) {
            let end = address.saturating_add(bytes);
            let after = sorted.partition_point(|run| run.end() <= address);
            let mut at = address;
            for run in sorted.get(after..).unwrap_or_default() {
                let Some(part) = run.part(at, end) else { break };
                if part.address > at {
                    missing.push((at, part.address - at));
                }
                self.runs.push(Run {
                    source: first + part.source,
                    ..part
                });
                at = part.end();
            }
            if at < end {
                missing.push((at, end - at));
            }
        }
        self.missing.parent_bytes = missing.iter().map(|(_, bytes)| bytes).sum();
        self.in_parent = missing;
        self.runs.sort_by_key(|run| run.address);
        self
    }

    /// What is in the image, as its pagemap has it, in its order. Runs that go on in each other
    /// are apart here: CRIU writes a MiB at a time.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The same, with runs that go on in each other as one.
    pub fn stretches(&self) -> impl Iterator<Item = Run> {
        let mut runs = self.runs.iter().copied().peekable();
        std::iter::from_fn(move || {
            let mut run = runs.next()?;
            while let Some(next) = runs.next_if(|next| run.goes_on_in(next)) {
                run.bytes += next.bytes;
            }
            Some(run)
        })
    }

    /// How many bytes can be read.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes).sum()
    }

    /// How many of them are between two addresses.
    fn bytes_between(&self, Range { start, end }: Range) -> u64 {
        let parts = self.runs.iter().filter_map(|run| run.part(start, end));
        parts.map(|part| part.bytes).sum()
    }

    /// What can be read between two addresses.
    fn between(&self, Range { start, end }: Range) -> Self {
        let parts = self.runs.iter().filter_map(|run| run.part(start, end));
        Self {
            runs: parts.collect(),
            sources: self.sources.clone(),
            page_bytes: self.page_bytes,
            missing: Missing::default(),
            in_parent: Vec::new(),
        }
    }

    /// What cannot.
    pub fn missing(&self) -> Missing {
        self.missing
    }

    /// The size of a page of the machine.
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// Reads pages. `keep` is how far back of what was read last one wants to read again: what
    /// is compressed can only go forth, and begins anew otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Source`].
    pub fn cursor(&self, keep: usize) -> Result<Cursor, Error> {
        Cursor::new(&self.sources, keep)
    }

    /// Calls back with all that is there, piece by piece, none of them longer than `limit` bytes,
    /// in the order of the image.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Short`], and what the callback says.
    pub fn each_piece<E: From<Error>>(
        &self,
        limit: usize,
        mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut cursor = self.cursor(0)?;
        let mut buffer = Vec::new();
        for (position, part) in parts(self.stretches(), limit) {
            cursor.read_part(part, &mut buffer)?;
            take(Piece {
                position,
                address: part.address,
                bytes: &buffer,
            })?;
        }
        Ok(())
    }

    /// The same on several threads at once, at most [`MAX_THREADS`], in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Memory::each_piece`]; of several errors, one.
    pub fn each_piece_on<E: From<Error> + Send>(
        &self,
        threads: usize,
        limit: usize,
        take: impl Fn(Piece<'_>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let cursor = self.cursor(0)?;
        let random = cursor.is_random();
        let shared = Mutex::new((parts(self.stretches(), limit), cursor));
        let stopped = AtomicBool::new(false);
        let work = || {
            let mut own = random.then(|| self.cursor(0)).transpose()?;
            let mut buffer = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut all = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((position, part)) = all.0.next() else {
                    break;
                };
                // What can only be read forth is read by whoever is in turn.
                match &mut own {
                    None => all.1.read_part(part, &mut buffer)?,
                    Some(own) => {
                        drop(all);
                        own.read_part(part, &mut buffer)?;
                    }
                }
                take(Piece {
                    position,
                    address: part.address,
                    bytes: &buffer,
                })?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.clamp(1, MAX_THREADS))
                .map(|_| {
                    scope.spawn(|| {
                        let result: Result<(), E> = work();
                        if result.is_err() {
                            stopped.store(true, Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            // A panic of ours stays one.
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .unwrap_or_else(|p| std::panic::resume_unwind(p))
                })
                .fold(Ok(()), Result::and)
        })
    }
}

/// Some bytes of memory.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// How many bytes of the same memory come before it in the image.
    pub position: u64,
    /// The address of the first.
    pub address: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Parts of at most `limit` bytes, and how many bytes come before each.
pub fn parts(
    mut runs: impl Iterator<Item = Run>,
    limit: usize,
) -> impl Iterator<Item = (u64, Run)> {
    let limit = limit.max(1) as u64;
    let mut rest: Option<Run> = None;
    let mut position = 0;
    std::iter::from_fn(move || {
        let run = rest.take().or_else(|| runs.next())?;
        let part = run.part(run.address, run.address.saturating_add(limit))?;
        rest = run.part(part.end(), u64::MAX);
        position += part.bytes;
        Some((position - part.bytes, part))
    })
}

/// The processes that have memory, each with what its name and its state are: parents before
/// children, siblings in the order of the image. What is below a dead one is left out, as by
/// checkpointctl.
///
/// # Errors
///
/// [`Error::Source`].
pub fn processes(checkpoint: &source::Source) -> Result<Vec<(Process, ProcessCore)>, Error> {
    checkpoint.check_version()?;
    let name = checkpoint.image_name(Kind::Pstree, 0);
    let tree = ProcessTree::read(&name, checkpoint.reader(&name)?)
        .map_err(|error| source::damaged(&name, error))?;
    let mut children = BTreeMap::<u32, Vec<Process>>::new();
    for process in tree.processes().iter().rev() {
        children
            .entry(process.ppid)
            .or_default()
            .push(process.clone());
    }
    let mut stack = children.remove(&0).unwrap_or_default();
    let mut living = Vec::new();
    while let Some(process) = stack.pop() {
        let core: Core = image(checkpoint, Kind::Core, process.pid)?;
        let Some(core) = core.process else {
            let name = checkpoint.image_name(Kind::Core, process.pid.into());
            return Err(Error::Refused(format!(
                "the checkpoint is damaged: {name} is that of a thread, not of a process"
            )));
        };
        if !matches!(core.state, TaskState::Alive | TaskState::Stopped) {
            continue;
        }
        stack.extend(children.remove(&process.pid).unwrap_or_default());
        living.push((process, core));
    }
    Ok(living)
}

/// The memory map of a process.
///
/// # Errors
///
/// [`Error::Source`].
pub fn map(checkpoint: &source::Source, pid: u32) -> Result<MemoryMap, Error> {
    image(checkpoint, Kind::Mm, pid)
}

/// An image of one message that has to be there.
pub(crate) fn image<V: View>(
    checkpoint: &source::Source,
    kind: Kind,
    number: u32,
) -> Result<V, Error> {
    let name = checkpoint.image_name(kind, number.into());
    match checkpoint.view(&name)? {
        Some(view) => Ok(view),
        None => Err(source::Error::Missing { name }.into()),
    }
}

/// The paths of the files that are mapped, and of the executable, by their id.
pub(crate) fn files_of(
    checkpoint: &source::Source,
    map: &MemoryMap,
) -> Result<BTreeMap<u32, Vec<u8>>, Error> {
    let mut files: BTreeMap<u32, Option<Vec<u8>>> = map
        .areas
        .iter()
        .filter_map(|area| match area.backing {
            Backing::File { file_id, .. } => Some((file_id, None)),
            _ => None,
        })
        .collect();
    files.insert(map.exe_file_id, None);
    let name = checkpoint.image_name(Kind::Files, 0);
    let Some(entries) = checkpoint.views::<OpenFile>(&name)? else {
        return Err(source::Error::Missing { name }.into());
    };
    for file in entries {
        let file = file.map_err(|error| source::damaged(&name, error))?;
        if let (Some(slot), Object::Path { path, .. }) = (files.get_mut(&file.id), file.object) {
            *slot = Some(path);
        }
    }
    let found = files.into_iter();
    Ok(found.filter_map(|(id, path)| Some((id, path?))).collect())
}
