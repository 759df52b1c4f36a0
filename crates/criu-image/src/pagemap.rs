//! `pagemap-ID.img`: which pages of memory the image holds.
//!
//! [`PagemapTotals`] counts them in constant memory, [`Pagemap`] says where each one is.

use std::io::Read;

use crate::msg::{PagemapEntry, PagemapHead};
use crate::wire::has_field_above;
use crate::{At, Error, Kind, RawReader};

/// Pages that a parent image holds.
const PE_PARENT: u32 = 1;
/// Pages that may be, or must be, filled in after the restore.
const PE_LAZY: u32 = 2;
/// Pages that stand in `pages-ID.img`.
const PE_PRESENT: u32 = 4;

/// How many pages one pagemap speaks of, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagemapTotals {
    /// The number of the `pages-*.img` that holds them; several pagemaps may share one.
    pub pages_id: u32,
    /// Pages in that file.
    pub present: u64,
    /// Pages in a parent image.
    pub parent: u64,
    /// Pages in neither, which only a page server could supply.
    pub absent_lazy: u64,
    /// Pages of a parent image that may be filled in later, which CRIU never writes.
    pub parent_lazy: u64,
    /// Whether entries say more than we know, as those of a newer CRIU with compression do.
    /// Then `present` does not tell the length of the file.
    pub newer: bool,
}

impl PagemapTotals {
    /// Reads a pagemap of kind [`Kind::Pagemap`] or [`Kind::PagemapShmem`], which are alike.
    ///
    /// # Errors
    ///
    /// Whatever reading says; [`Error::WrongCount`] if not even the head is there, and
    /// [`Error::BadValue`] if the numbers of pages overflow.
    pub fn read(file: &str, inner: impl Read) -> Result<Self, Error> {
        let mut totals = Self {
            pages_id: 0,
            present: 0,
            parent: 0,
            absent_lazy: 0,
            parent_lazy: 0,
            newer: false,
        };
        let (pages_id, newer) = each_run(file, inner, |run, newer, at| {
            totals.newer |= newer;
            if run.lazy && run.location == Location::Parent {
                totals.parent_lazy = totals.parent_lazy.saturating_add(run.pages);
            }
            let total = match run.location {
                Location::Here => &mut totals.present,
                Location::Parent => &mut totals.parent,
                Location::Nowhere if run.lazy => &mut totals.absent_lazy,
                Location::Nowhere => return Ok(()),
            };
            *total = total
                .checked_add(run.pages)
                .ok_or_else(|| at.bad_value("nr_pages", run.pages))?;
            Ok(())
        })?;
        totals.pages_id = pages_id;
        totals.newer |= newer;
        Ok(totals)
    }
}

/// Most runs of a [`Pagemap`]: one of a process with 16 GiB of memory of which each second page
/// was never touched has half as many.
pub const MAX_RUNS: usize = 1 << 22;

/// Where all pages of a process, or of a piece of shared memory, are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// The number of the `pages-*.img` that holds those which are [`Location::Here`], one after
    /// the other in the order of the runs.
    pub pages_id: u32,
    /// The runs, in the order of the image. That is not always the order of addresses, but no
    /// two of them overlap.
    pub runs: Vec<PageRun>,
}

/// Pages that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The address of the first; in shared memory its offset in bytes.
    pub address: u64,
    /// How many there are; not 0.
    pub pages: u64,
    /// Where they are.
    pub location: Location,
    /// They may be filled in after the restore. Where they are nowhere, a page server was to
    /// supply them.
    pub lazy: bool,
}

/// Where pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In the `pages-*.img` of the pagemap.
    Here,
    /// In the image before this one, that it was made on top of.
    Parent,
    /// In neither.
    Nowhere,
}

impl Pagemap {
    /// Reads a pagemap of kind [`Kind::Pagemap`] or [`Kind::PagemapShmem`], which are alike.
    /// `page_bytes` is the size of a page of the machine it is of, see
    /// [`crate::mm::MemoryMap::page_bytes`].
    ///
    /// # Errors
    ///
    /// Whatever reading says; [`Error::WrongCount`] if not even the head is there;
    /// [`Error::Newer`] if it says more than we know, as that of memory which CRIU compressed;
    /// [`Error::ImageTooLarge`] above [`MAX_RUNS`]; [`Error::BadValue`] if a run does not begin
    /// at a page, has no page, leaves the address space or overlaps another one.
    pub fn read(file: &str, inner: impl Read, page_bytes: u64) -> Result<Self, Error> {
        let mut runs = Vec::new();
        // Sum of all pages: what they have in bytes fits as well.
        let mut total = 0u64;
        let newer = |offset| Error::Newer {
            file: file.to_owned(),
            offset,
            what: "compressed memory of CRIU 4.3, or something newer",
        };
        let (pages_id, newer_head) = each_run(file, inner, |run, is_newer, at| {
            if is_newer {
                return Err(newer(at.offset));
            }
            if runs.len() >= MAX_RUNS {
                return Err(Error::ImageTooLarge {
                    file: file.to_owned(),
                    offset: at.offset,
                    limit: MAX_RUNS as u64,
                    unit: "runs of pages",
                });
            }
            let end = end(&run, page_bytes);
            if run.address % page_bytes != 0 || end.is_none() {
                return Err(at.bad_value("vaddr", format_args!("{:#x}", run.address)));
            }
            total = match total.checked_add(run.pages) {
                Some(total) if total.checked_mul(page_bytes).is_some() && run.pages > 0 => total,
                _ => return Err(at.bad_value("nr_pages", run.pages)),
            };
            runs.push(run);
            Ok(())
        })?;
        if newer_head {
            return Err(newer(8));
        }
        let ordered = |runs: &[PageRun]| {
            let mut pairs = runs.iter().zip(runs.iter().skip(1));
            pairs
                .find(|(a, b)| end(a, page_bytes).is_none_or(|end| end > b.address))
                .map(|(_, b)| b.address)
        };
        if ordered(&runs).is_some() {
            let mut sorted = runs.clone();
            sorted.sort_unstable_by_key(|run| run.address);
            if let Some(address) = ordered(&sorted) {
                let at = At { file, offset: 8 };
                return Err(
                    at.bad_value("vaddr", format_args!("{address:#x}, which is there twice"))
                );
            }
        }
        Ok(Self { pages_id, runs })
    }
}

/// The address behind a run.
fn end(run: &PageRun, page_bytes: u64) -> Option<u64> {
    run.pages.checked_mul(page_bytes)?.checked_add(run.address)
}

/// Calls back for each run with whether its entry says more than we know. Answers the number of
/// the pages' file, and whether the head says more.
fn each_run(
    file: &str,
    inner: impl Read,
    mut take: impl FnMut(PageRun, bool, At<'_>) -> Result<(), Error>,
) -> Result<(u32, bool), Error> {
    let mut raw = RawReader::new(file, Kind::Pagemap, inner)?;
    let Some(entry) = raw.next_entry()? else {
        return Err(Error::WrongCount {
            file: file.to_owned(),
            offset: 8,
            problem: "no head",
        });
    };
    let at = At {
        file,
        offset: entry.offset,
    };
    let head: PagemapHead = at.decode(entry.bytes)?;
    let pages_id = at.need(head.pages_id, "pages_id")?;
    let newer = has_field_above(entry.bytes, 1);

    while let Some(entry) = raw.next_entry()? {
        let at = At {
            file,
            offset: entry.offset,
        };
        let run: PagemapEntry = at.decode(entry.bytes)?;
        let pages = match run.nr_pages {
            Some(pages) => pages,
            None => at.need(run.compat_nr_pages, "nr_pages")?.into(),
        };
        let flags = match (run.flags, run.in_parent) {
            (flags, Some(true)) => flags.unwrap_or_default() | PE_PARENT,
            (Some(flags), _) => flags,
            (None, _) => PE_PRESENT,
        };
        let location = if flags & PE_PRESENT != 0 {
            Location::Here
        } else if flags & PE_PARENT != 0 {
            Location::Parent
        } else {
            Location::Nowhere
        };
        let run = PageRun {
            address: at.need(run.vaddr, "vaddr")?,
            pages,
            location,
            lazy: flags & PE_LAZY != 0,
        };
        take(run, has_field_above(entry.bytes, 5), at)?;
    }
    Ok((pages_id, newer))
}
