//! `pagemap-ID.img`: which pages of memory the image holds. Here only their numbers.

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
        let mut totals = Self {
            pages_id: at.need(head.pages_id, "pages_id")?,
            present: 0,
            parent: 0,
            absent_lazy: 0,
            newer: has_field_above(entry.bytes, 1),
        };

        while let Some(entry) = raw.next_entry()? {
            let at = At {
                file,
                offset: entry.offset,
            };
            let run: PagemapEntry = at.decode(entry.bytes)?;
            totals.newer |= has_field_above(entry.bytes, 5);
            at.need(run.vaddr, "vaddr")?;
            let pages = match run.nr_pages {
                Some(pages) => pages,
                None => at.need(run.compat_nr_pages, "nr_pages")?.into(),
            };
            let flags = match (run.flags, run.in_parent) {
                (flags, Some(true)) => flags.unwrap_or_default() | PE_PARENT,
                (Some(flags), _) => flags,
                (None, _) => PE_PRESENT,
            };
            let total = if flags & PE_PRESENT != 0 {
                &mut totals.present
            } else if flags & PE_PARENT != 0 {
                &mut totals.parent
            } else if flags & PE_LAZY != 0 {
                &mut totals.absent_lazy
            } else {
                continue;
            };
            *total = total
                .checked_add(pages)
                .ok_or_else(|| at.bad_value("nr_pages", pages))?;
        }
        Ok(totals)
    }
}
