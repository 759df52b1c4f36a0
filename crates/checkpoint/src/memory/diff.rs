//! What became of the memory of a process between two checkpoints, area by area and page by page.
//!
//! Pages are compared by the first half of their SHA-256, so that each checkpoint is read in its
//! own order. That takes 24 bytes a page, so no more than [`PAGES_AT_ONCE`] are looked at at a
//! time: those between two addresses. What is compressed is decompressed for each such stretch of
//! addresses, up to the last page in it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use cryo_criu_image::mm::{Area, Backing, MemoryMap, Range};
use sha2::{Digest, Sha256};

use super::{Error, Memory, Piece, files_of};
use crate::source::Source;

/// How many bytes are hashed at a time.
const PIECE: usize = 256 << 10;

/// How many pages of both checkpoints together are looked at at a time: 2 GiB, for which the
/// hashes take 12 MiB.
pub const PAGES_AT_ONCE: u64 = 1 << 19;

type Hash = [u8; 16];

/// A process of a checkpoint, and where its pages are.
#[derive(Debug)]
pub struct Image {
    map: MemoryMap,
    files: BTreeMap<u32, Vec<u8>>,
    mapped: Vec<Mapped>,
}

/// Memory, and where a part of it is in the process.
#[derive(Debug)]
struct Mapped {
    memory: Arc<Memory>,
    place: Range,
    /// The address in `memory` of what is at the start of the place.
    offset: u64,
}

impl Mapped {
    /// The same between two addresses; `None` if it is not there.
    fn within(&self, window: Range) -> Option<Self> {
        let start = self.place.start.max(window.start);
        let end = self.place.end.min(window.end);
        (start < end).then(|| Self {
            memory: Arc::clone(&self.memory),
            place: Range { start, end },
            offset: self.offset.saturating_add(start - self.place.start),
        })
    }

    /// The addresses in `memory`.
    fn inside(&self) -> Range {
        Range {
            start: self.offset,
            end: self.offset.saturating_add(self.place.bytes()),
        }
    }
}

impl Image {
    /// Finds all memory of a process, shared memory included. Nothing of the pages is read.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Short`].
    pub fn open(checkpoint: &Source, pid: u32) -> Result<Self, Error> {
        let (map, own) = Memory::open(checkpoint, pid)?;
        let files = files_of(checkpoint, &map)?;
        let mut mapped = vec![Mapped {
            memory: Arc::new(own),
            place: Range {
                start: 0,
                end: u64::MAX,
            },
            offset: 0,
        }];
        let mut shared = BTreeMap::new();
        for area in &map.areas {
            let Backing::Shared { id, offset } = area.backing else {
                continue;
            };
            let memory = match shared.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let memory = Memory::open_shared(checkpoint, id, map.page_bytes())?;
                    new.insert(memory.map(Arc::new))
                }
            };
            if let Some(memory) = memory {
                mapped.push(Mapped {
                    memory: Arc::clone(memory),
                    place: range(area),
                    offset,
                });
            }
        }
        Ok(Self { map, files, mapped })
    }

    fn within(&self, window: Range) -> impl Iterator<Item = Mapped> {
        self.mapped
            .iter()
            .filter_map(move |mapped| mapped.within(window))
    }

    /// How many pages it has between two addresses.
    fn pages(&self, window: Range) -> u64 {
        let bytes = self
            .within(window)
            .map(|mapped| mapped.memory.bytes_between(mapped.inside()));
        bytes.fold(0, u64::saturating_add) / self.map.page_bytes()
    }

    /// The hashes of these, by address.
    fn hashes(
        &self,
        window: Range,
        threads: usize,
        done: &(impl Fn(u64) + Sync),
    ) -> Result<Vec<(u64, Hash)>, Error> {
        let capacity = usize::try_from(self.pages(window)).unwrap_or_default();
        let step = usize::try_from(self.map.page_bytes()).unwrap_or(usize::MAX);
        let all = Mutex::new(Vec::with_capacity(capacity));
        for mapped in self.within(window) {
            let inside = mapped.inside();
            let memory = mapped.memory.between(inside);
            if memory.runs.is_empty() {
                continue;
            }
            memory.each_piece_on(threads, PIECE.max(step), |piece: Piece<'_>| {
                let first = mapped.place.start + (piece.address - inside.start);
                let hashed: Vec<_> = (first..)
                    .step_by(step)
                    .zip(piece.bytes.chunks(step).map(hash))
                    .collect();
                done(piece.bytes.len() as u64);
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(hashed);
                Ok::<_, Error>(())
            })?;
        }
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.sort_unstable_by_key(|(address, _)| *address);
        Ok(all)
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
    /// Where pages changed or were added: ranges of addresses, in order. Empty unless it was asked
    /// for.
    pub touched: Vec<Range>,
}

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether to say where pages changed: that can be as long as the memory has pages.
    pub ranges: bool,
    /// How many threads to hash on; 0 is taken as 1.
    pub threads: usize,
    /// How many pages of both to look at at a time, 1 at least; [`PAGES_AT_ONCE`] is a good value.
    pub pages_at_once: u64,
}

/// Compares a process with what became of it: all areas of both, in order of address. `done` is
/// told how many more bytes of either were read.
///
/// # Errors
///
/// [`Error::Source`], [`Error::Short`]; [`Error::Refused`] if the machines have pages of different
/// sizes.
pub fn compare(
    before: &Image,
    after: &Image,
    options: Options,
    done: impl Fn(u64) + Sync,
) -> Result<Vec<AreaDiff>, Error> {
    let page = after.map.page_bytes();
    if before.map.page_bytes() != page {
        let what = "the checkpoints are of machines whose pages have different sizes";
        return Err(Error::Refused(what.to_owned()));
    }
    let mut areas = areas(before, after);
    let mut count = Count {
        places: Places::all(&areas),
        areas: &mut areas,
        page,
        zero: hash(&vec![0; usize::try_from(page).unwrap_or_default()]),
        ranges: options.ranges,
    };
    for window in windows(before, after, options.pages_at_once.max(1)) {
        let old = before.hashes(window, options.threads, &done)?;
        let new = after.hashes(window, options.threads, &done)?;
        count.add(&old, &new);
    }
    Ok(areas)
}

/// Cuts the addresses at which there are pages into stretches that have no more than so many pages
/// of both, or one address: halves them until they do.
fn windows(before: &Image, after: &Image, limit: u64) -> impl Iterator<Item = Range> {
    let page = after.map.page_bytes();
    let mut left = vec![Range {
        start: 0,
        end: u64::MAX - u64::MAX % page,
    }];
    std::iter::from_fn(move || {
        while let Some(window) = left.pop() {
            let Range { start, end } = window;
            let pages = before.pages(window).saturating_add(after.pages(window));
            if pages == 0 {
                continue;
            }
            if pages <= limit || end - start <= page {
                return Some(window);
            }
            let middle = start + (end - start) / page / 2 * page;
            left.push(Range { start: middle, end });
            left.push(Range { start, end: middle });
        }
        None
    })
}

/// The areas of both, of which no page was looked at.
fn areas(before: &Image, after: &Image) -> Vec<AreaDiff> {
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
    /// What is there now has a page, else what was there.
    fn all(areas: &[AreaDiff]) -> [Self; 3] {
        let removed = |area: &AreaDiff| area.fate == Fate::Removed;
        [
            Self::new(areas, |area| (!removed(area)).then_some(area.range)),
            Self::new(areas, |area| removed(area).then_some(area.range)),
            Self::new(areas, |area| area.before),
        ]
    }

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

/// Counts pages.
struct Count<'a> {
    areas: &'a mut [AreaDiff],
    places: [Places; 3],
    page: u64,
    /// The hash of a page of zeros.
    zero: Hash,
    ranges: bool,
}

impl Count<'_> {
    /// Goes through pages of both in order of address.
    fn add(&mut self, old: &[(u64, Hash)], new: &[(u64, Hash)]) {
        let mut old = old.iter().copied().peekable();
        let mut new = new.iter().copied().peekable();
        loop {
            let next = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(&(a, _)), None) | (None, Some(&(a, _))) => a,
                (Some(&(a, _)), Some(&(b, _))) => a.min(b),
            };
            let was = old.next_if(|(at, _)| *at == next).map(|(_, hash)| hash);
            let is = new.next_if(|(at, _)| *at == next).map(|(_, hash)| hash);
            self.page(next, was, is);
        }
    }

    fn page(&mut self, address: u64, was: Option<Hash>, is: Option<Hash>) {
        let index = self.places.iter().find_map(|places| places.of(address));
        let Some(area) = index.and_then(|index| self.areas.get_mut(index)) else {
            return;
        };
        let pages = &mut area.pages;
        match (was, is) {
            (Some(was), Some(is)) if was == is => return pages.same += 1,
            (Some(_), None) => return pages.removed += 1,
            (Some(_), Some(_)) => pages.changed += 1,
            (None, _) => pages.added += 1,
        }
        pages.zero += u64::from(is == Some(self.zero));
        if !self.ranges {
            return;
        }
        let end = address.saturating_add(self.page);
        match area.touched.last_mut() {
            Some(last) if last.end == address => last.end = end,
            _ => area.touched.push(Range {
                start: address,
                end,
            }),
        }
    }
}
