//! What became of the memory of a process between two checkpoints, area by area and page by page.
//!
//! Pages are compared by the first half of their SHA-256, so that each checkpoint is read once
//! and in its own order. That takes 24 bytes a page: 6 MiB for a GiB of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use cryo_criu_image::mm::{Area, Backing, MemoryMap, Range};
use sha2::{Digest, Sha256};

use super::{Error, Memory, Piece, files_of};
use crate::source::Source;

/// How many bytes are hashed at a time.
const PIECE: usize = 1 << 20;

type Hash = [u8; 16];

/// A process of a checkpoint, with a hash of each page that the checkpoint has of it.
#[derive(Debug)]
pub struct Image {
    map: MemoryMap,
    files: BTreeMap<u32, Vec<u8>>,
    /// By address.
    pages: Vec<(u64, Hash)>,
    /// The hash of a page of zeros.
    zero: Hash,
}

impl Image {
    /// Reads all memory of a process, shared memory included. `done` is told how many more bytes
    /// were read.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Short`].
    pub fn read(
        checkpoint: &Source,
        pid: u32,
        parent: impl FnOnce(Memory) -> Result<Memory, Error>,
        threads: usize,
        done: impl Fn(u64) + Sync,
    ) -> Result<Self, Error> {
        let (map, memory) = Memory::open(checkpoint, pid)?;
        let memory = parent(memory)?;
        let files = files_of(checkpoint, &map)?;
        let page = map.page_bytes();
        let mut pages = hashes(&memory, threads, page, &done)?;
        for area in &map.areas {
            let Backing::Shared { id, offset } = area.backing else {
                continue;
            };
            let Some(shared) = Memory::open_shared(checkpoint, id, page)? else {
                continue;
            };
            let hashed = hashes(&shared, threads, page, &done)?;
            pages.extend(hashed.into_iter().filter_map(|(at, hash)| {
                let address = at.checked_sub(offset)?.checked_add(area.start)?;
                (address < area.end).then_some((address, hash))
            }));
        }
        pages.sort_unstable_by_key(|(address, _)| *address);
        let zero = vec![0; usize::try_from(page).unwrap_or_default()];
        Ok(Self {
            map,
            files,
            pages,
            zero: hash(&zero),
        })
    }

    fn name(&self, area: &Area) -> String {
        match area.backing {
            Backing::File { file_id, .. } => match self.files.get(&file_id) {
                Some(path) => String::from_utf8_lossy(path).into_owned(),
                None => format!("[file {file_id}]"),
            },
            Backing::Shared { .. } => "[shared]".to_owned(),
            Backing::Heap => "[heap]".to_owned(),
            Backing::Kernel(name) => name.to_owned(),
            _ if (area.start..area.end).contains(&self.map.stack_start) => "[stack]".to_owned(),
            _ => "[anonymous]".to_owned(),
        }
    }
}

fn hash(page: &[u8]) -> Hash {
    let digest = Sha256::digest(page);
    let mut half = Hash::default();
    for (to, from) in half.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    half
}

fn hashes(
    memory: &Memory,
    threads: usize,
    page: u64,
    done: &(impl Fn(u64) + Sync),
) -> Result<Vec<(u64, Hash)>, Error> {
    let pages = usize::try_from(memory.bytes() / page.max(1)).unwrap_or_default();
    let all = Mutex::new(Vec::with_capacity(pages));
    let step = usize::try_from(page).unwrap_or(usize::MAX);
    memory.each_piece_on(
        threads,
        PIECE.max(step),
        |Piece { address, bytes, .. }| {
            let hashed: Vec<_> = (address..)
                .step_by(step)
                .zip(bytes.chunks(step).map(hash))
                .collect();
            done(bytes.len() as u64);
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(hashed);
            Ok::<_, Error>(())
        },
    )?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Numbers of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pages {
    /// With the same content in both.
    pub same: u64,
    /// With other content than before.
    pub changed: u64,
    /// That only the second checkpoint has.
    pub added: u64,
    /// That only the first one has.
    pub removed: u64,
    /// Of the changed and the added ones, those that are now all zeros.
    pub zero: u64,
}

impl Pages {
    /// Whether nothing became of them.
    pub fn is_same(&self) -> bool {
        self.changed == 0 && self.added == 0 && self.removed == 0
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            same: self.same + other.same,
            changed: self.changed + other.changed,
            added: self.added + other.added,
            removed: self.removed + other.removed,
            zero: self.zero + other.zero,
        }
    }
}

/// What became of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is where it was.
    Kept,
    /// It begins or ends elsewhere, or has other permissions.
    Altered,
    /// It was not there before.
    Added,
    /// It is not there any more.
    Removed,
}

/// An area, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AreaDiff {
    /// Where it is; where it was if it was removed.
    pub range: Range,
    /// Where it was, if that is elsewhere.
    pub before: Option<Range>,
    /// `rw-p` and so on.
    pub permissions: String,
    /// Its file, or a name in brackets.
    pub name: String,
    /// What became of it as a whole.
    pub fate: Fate,
    /// What became of its pages.
    pub pages: Pages,
    /// Where pages changed or were added: ranges of addresses, in order.
    pub touched: Vec<Range>,
}

/// Compares a process with what became of it: all areas of both, in order of address.
pub fn compare(before: &Image, after: &Image) -> Vec<AreaDiff> {
    let mut areas: Vec<AreaDiff> = Vec::new();
    let by_end: BTreeMap<u64, &Area> = before.map.areas.iter().map(|a| (a.end, a)).collect();
    let mut survived = BTreeSet::new();
    for area in &after.map.areas {
        let old = [before.map.area(area.start), by_end.get(&area.end).copied()];
        let mut old = old.into_iter().flatten().filter(|old| is_of(old, area));
        let old = old.next();
        survived.extend(old.map(|old| old.start));
        let range = range(area);
        areas.push(AreaDiff {
            range,
            before: old.map(self::range).filter(|old| *old != range),
            permissions: area.permissions(),
            name: after.name(area),
            fate: match old {
                None => Fate::Added,
                Some(old)
                    if self::range(old) == range && old.permissions() == area.permissions() =>
                {
                    Fate::Kept
                }
                Some(_) => Fate::Altered,
            },
            pages: Pages::default(),
            touched: Vec::new(),
        });
    }
    for area in &before.map.areas {
        if !survived.contains(&area.start) {
            areas.push(AreaDiff {
                range: range(area),
                before: None,
                permissions: area.permissions(),
                name: before.name(area),
                fate: Fate::Removed,
                pages: Pages::default(),
                touched: Vec::new(),
            });
        }
    }
    areas.sort_by_key(|area| (area.range.start, area.fate == Fate::Removed));
    count(before, after, &mut areas);
    areas
}

fn range(area: &Area) -> Range {
    Range {
        start: area.start,
        end: area.end,
    }
}

/// Whether one area became the other: they begin or end at the same address, as one that grew
/// does, and are of the same kind.
fn is_of(old: &Area, new: &Area) -> bool {
    (old.start == new.start || old.end == new.end)
        && std::mem::discriminant(&old.backing) == std::mem::discriminant(&new.backing)
}

/// Ranges that do not overlap, and which area each is of.
struct Places(BTreeMap<u64, (u64, usize)>);

impl Places {
    fn new<'a>(areas: &'a [AreaDiff], range: impl Fn(&'a AreaDiff) -> Option<Range>) -> Self {
        let ranges = areas.iter().enumerate();
        Self(
            ranges
                .filter_map(|(index, area)| range(area).map(|r| (r.start, (r.end, index))))
                .collect(),
        )
    }

    fn of(&self, address: u64) -> Option<usize> {
        let (_, (end, index)) = self.0.range(..=address).next_back()?;
        (address < *end).then_some(*index)
    }
}

/// Goes through the pages of both in order of address.
fn count(before: &Image, after: &Image, areas: &mut [AreaDiff]) {
    let there = Places::new(areas, |area| {
        (area.fate != Fate::Removed).then_some(area.range)
    });
    let gone = Places::new(areas, |area| {
        (area.fate == Fate::Removed).then_some(area.range)
    });
    let shrunk = Places::new(areas, |area| area.before);
    let mut old = before.pages.iter().copied().peekable();
    let mut new = after.pages.iter().copied().peekable();
    let page = after.map.page_bytes();
    loop {
        let next = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(&(a, _)), None) | (None, Some(&(a, _))) => a,
            (Some(&(a, _)), Some(&(b, _))) => a.min(b),
        };
        let was = old.next_if(|(at, _)| *at == next).map(|(_, hash)| hash);
        let is = new.next_if(|(at, _)| *at == next).map(|(_, hash)| hash);
        // What is there now has it, else what was there.
        let index = there
            .of(next)
            .or_else(|| gone.of(next))
            .or_else(|| shrunk.of(next));
        let Some(area) = index.and_then(|index| areas.get_mut(index)) else {
            continue;
        };
        let pages = &mut area.pages;
        match (was, is) {
            (Some(was), Some(is)) if was == is => pages.same += 1,
            (Some(_), None) => pages.removed += 1,
            (was, _) => {
                match was {
                    Some(_) => pages.changed += 1,
                    None => pages.added += 1,
                }
                pages.zero += u64::from(is == Some(after.zero));
                match area.touched.last_mut() {
                    Some(last) if last.end == next => last.end = next.saturating_add(page),
                    _ => area.touched.push(Range {
                        start: next,
                        end: next.saturating_add(page),
                    }),
                }
            }
        }
    }
}
