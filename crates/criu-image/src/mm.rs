//! `mm-PID.img`: the memory map of a process.

use crate::msg::{MmEntry, VmaEntry};
use crate::{At, Error, Kind, View};

/// The smallest page of any machine.
const PAGE: u64 = 4096;

/// The kernel's number of the size of a page in the auxiliary vector.
const AT_PAGESZ: u64 = 6;

/// `VMA_AREA_REGULAR` and its like, as CRIU classifies memory areas.
mod status {
    pub(super) const VSYSCALL: u32 = 1 << 2;
    pub(super) const VDSO: u32 = 1 << 3;
    pub(super) const HEAP: u32 = 1 << 5;
    pub(super) const FILE_PRIVATE: u32 = 1 << 6;
    pub(super) const FILE_SHARED: u32 = 1 << 7;
    pub(super) const ANON_SHARED: u32 = 1 << 8;
    pub(super) const SYSV_SHARED: u32 = 1 << 10;
    pub(super) const VVAR: u32 = 1 << 12;
    pub(super) const MEMFD: u32 = 1 << 14;
    pub(super) const GUARD: u32 = 1 << 16;
}

const MAP_SHARED: u32 = 1;
const MAP_GROWSDOWN: u32 = 0x100;

/// The address space of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    /// Its areas in order of address; none overlaps another one.
    pub areas: Vec<Area>,
    /// Addresses within areas that it made inaccessible (`MADV_GUARD_INSTALL`), as those below
    /// the stacks of its threads.
    pub guards: Vec<Range>,
    /// Where its arguments stand, each ended by a zero.
    pub arguments: Range,
    /// Where its environment stands.
    pub environment: Range,
    /// The heap's begin and its current end.
    pub heap: Range,
    /// Where the stack of the first thread began.
    pub stack_start: u64,
    /// The [`crate::files::OpenFile::id`] of its executable.
    pub exe_file_id: u32,
    /// The auxiliary vector: type and value alternate.
    pub auxv: Vec<u64>,
}

/// Addresses from `start` up to but without `end`. Never `end < start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

impl Range {
    /// How many bytes it has.
    pub fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// One memory area. It has whole pages, and at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// The first address.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
    /// `PROT_READ` 1, `PROT_WRITE` 2, `PROT_EXEC` 4.
    pub protection: u32,
    /// Flags of `mmap(2)`.
    pub flags: u32,
    /// Where its content comes from.
    pub backing: Backing,
}

/// Where the content of an area comes from, as far as it is not in its own pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// Nowhere: what has no page is zero.
    Anonymous,
    /// The heap, which is anonymous as well.
    Heap,
    /// A file: what has no page stands there.
    File {
        /// Its [`crate::files::OpenFile::id`].
        file_id: u32,
        /// The offset in it that `start` shows, in bytes.
        offset: u64,
        /// Whether what is written to memory is written to the file.
        shared: bool,
    },
    /// Memory shared with others; its pages stand in `pagemap-shmem-ID.img`.
    Shared {
        /// The ID.
        id: u64,
        /// The offset in it that `start` shows, in bytes.
        offset: u64,
    },
    /// Code and data of the kernel's for user space.
    Kernel(&'static str),
}

impl Area {
    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it is shared with other processes or with a file (`MAP_SHARED`).
    pub fn is_shared(&self) -> bool {
        self.flags & MAP_SHARED != 0
    }

    /// `rw-p` and so on, as in `/proc/PID/maps`.
    pub fn permissions(&self) -> String {
        let bit = |bit, c| if self.protection & bit != 0 { c } else { '-' };
        let sharing = if self.is_shared() { 's' } else { 'p' };
        [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), sharing]
            .iter()
            .collect()
    }

    /// Whether it grows downwards by itself, as the stack of a first thread does.
    pub fn grows_down(&self) -> bool {
        self.flags & MAP_GROWSDOWN != 0
    }

    fn from_wire(wire: &VmaEntry, at: At<'_>) -> Result<Self, Error> {
        let (start, end) = bounds(wire, at)?;
        let flags = at.need(wire.flags, "vmas.flags")?;
        let status = at.need(wire.status, "vmas.status")?;
        let offset = at.need(wire.pgoff, "vmas.pgoff")?;
        let shmid = at.need(wire.shmid, "vmas.shmid")?;
        let is = |bits: u32| status & bits != 0;
        let backing = if is(status::VDSO) {
            Backing::Kernel("[vdso]")
        } else if is(status::VVAR) {
            Backing::Kernel("[vvar]")
        } else if is(status::VSYSCALL) {
            Backing::Kernel("[vsyscall]")
        } else if is(status::FILE_PRIVATE | status::FILE_SHARED) {
            Backing::File {
                file_id: u32::try_from(shmid).map_err(|_| at.bad_value("vmas.shmid", shmid))?,
                offset,
                shared: is(status::FILE_SHARED),
            }
        } else if is(status::ANON_SHARED | status::SYSV_SHARED | status::MEMFD)
            && flags & MAP_SHARED != 0
        {
            Backing::Shared { id: shmid, offset }
        } else if is(status::HEAP) {
            Backing::Heap
        } else {
            Backing::Anonymous
        };
        Ok(Self {
            start,
            end,
            protection: at.need(wire.prot, "vmas.prot")?,
            flags,
            backing,
        })
    }
}

fn bounds(wire: &VmaEntry, at: At<'_>) -> Result<(u64, u64), Error> {
    let start = at.need(wire.start, "vmas.start")?;
    let end = at.need(wire.end, "vmas.end")?;
    if end <= start || start % PAGE != 0 || end % PAGE != 0 {
        return Err(at.bad_value("vmas.end", format_args!("{end:#x} after {start:#x}")));
    }
    Ok((start, end))
}

impl MemoryMap {
    /// The area with an address, if there is one.
    pub fn area(&self, address: u64) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.end <= address);
        self.areas.get(after).filter(|area| area.start <= address)
    }

    /// The size of a page of the machine, in bytes: what its auxiliary vector says, 4096 where
    /// that says nothing.
    pub fn page_bytes(&self) -> u64 {
        let pairs = self.auxv.chunks_exact(2);
        pairs
            .filter_map(|pair| <[u64; 2]>::try_from(pair).ok())
            .find(|[kind, _]| *kind == AT_PAGESZ)
            .map_or(PAGE, |[_, bytes]| bytes)
    }
}

impl View for MemoryMap {
    type Wire = MmEntry;

    const KIND: Kind = Kind::Mm;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let mut areas = Vec::with_capacity(wire.vmas.len());
        let mut guards = Vec::new();
        let mut end = 0;
        for vma in &wire.vmas {
            if vma.status.unwrap_or_default() & status::GUARD != 0 {
                let (start, end) = bounds(vma, at)?;
                guards.push(Range { start, end });
                continue;
            }
            let area = Area::from_wire(vma, at)?;
            if area.start < end {
                return Err(at.bad_value("vmas.start", format_args!("{:#x}", area.start)));
            }
            end = area.end;
            areas.push(area);
        }
        let range = |start, end, name: &'static str| {
            let start = at.need(start, name)?;
            let end = at.need(end, name)?;
            if end < start {
                return Err(at.bad_value(name, format_args!("{end:#x} after {start:#x}")));
            }
            Ok(Range { start, end })
        };
        let map = Self {
            areas,
            guards,
            arguments: range(wire.mm_arg_start, wire.mm_arg_end, "mm_arg_end")?,
            environment: range(wire.mm_env_start, wire.mm_env_end, "mm_env_end")?,
            heap: range(wire.mm_start_brk, wire.mm_brk, "mm_brk")?,
            stack_start: at.need(wire.mm_start_stack, "mm_start_stack")?,
            exe_file_id: at.need(wire.exe_file_id, "exe_file_id")?,
            auxv: wire.mm_saved_auxv,
        };
        let page = map.page_bytes();
        if !(PAGE..=1 << 20).contains(&page) || !page.is_power_of_two() {
            return Err(at.bad_value("mm_saved_auxv (AT_PAGESZ)", page));
        }
        Ok(map)
    }
}
