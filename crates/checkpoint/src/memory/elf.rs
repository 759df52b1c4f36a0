//! ELF core files: what the kernel writes of a process that crashes, from a checkpoint.
//!
//! A debugger finds in one the threads with their registers, the memory, and which file is mapped
//! where. What of a mapped file was never written to is not in a checkpoint: a debugger takes it
//! from the file itself, as with a core file of the kernel.

mod notes;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use cryo_criu_image::Kind;
use cryo_criu_image::mm::{Area, Backing, MemoryMap};
use cryo_criu_image::pstree::Process;
use cryo_criu_image::registers::{Registers, Thread};
use cryo_criu_image::task::{Core, TaskState};

use super::{Error, Memory, Piece, files_of, image};
use crate::source::Source;

/// How many bytes are copied at a time.
const PIECE: usize = 1 << 20;

/// Bytes of the arguments that a core file shows, with the zero that ends them.
const ARGUMENTS: usize = 80;

/// Most program headers that fit in the field for them; with more it says this, and the number
/// stands in the first section header.
const MANY_HEADERS: u64 = 0xffff;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;

/// A process as a core file shows it.
#[derive(Debug)]
pub struct Dump {
    process: Process,
    core: Core,
    /// The leader first.
    threads: Vec<(u32, Thread)>,
    map: MemoryMap,
    /// Its memory; what parents have of it may be put into it.
    pub memory: Memory,
    shared: BTreeMap<u64, Memory>,
    files: BTreeMap<u32, Vec<u8>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How long the file is.
    pub file_bytes: u64,
    /// How much of that are pages with something in them: the rest takes no room on the disk.
    pub page_bytes: u64,
    /// How many threads there are.
    pub threads: usize,
}

impl Dump {
    /// Reads all but the pages of a process of the tree.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Short`]; [`Error::Refused`] for a process without memory, and for a machine or program that is not known here.
    pub fn open(checkpoint: &Source, process: &Process) -> Result<Self, Error> {
        let pid = process.pid;
        let core: Core = image(checkpoint, Kind::Core, pid)?;
        let state = core.process.as_ref().map(|of_all| of_all.state);
        if matches!(state, Some(TaskState::Dead | TaskState::Zombie)) {
            return Err(Error::Refused(format!(
                "process {pid} has no memory: it had ended when the checkpoint was made"
            )));
        }
        let mut threads = Vec::new();
        for tid in std::iter::once(pid).chain(process.threads.iter().copied()) {
            let thread: Thread = image(checkpoint, Kind::Core, tid)?;
            match &thread.registers {
                Some(Registers::X86(registers)) if registers.compat => {
                    return Err(Error::Refused(format!(
                        "process {pid} is a program of 32 bits: core files of those are not written"
                    )));
                }
                Some(_) => threads.push((tid, thread)),
                None => {
                    return Err(Error::Refused(format!(
                        "process {pid} is of a machine whose registers are not known here ({}): \
                         core files are written for x86_64 and aarch64",
                        core.arch.as_str()
                    )));
                }
            }
        }
        let (map, memory) = Memory::open(checkpoint, pid)?;
        let mut shared = BTreeMap::new();
        for area in &map.areas {
            if let Backing::Shared { id, .. } = area.backing
                && let Some(memory) = Memory::open_shared(checkpoint, id, map.page_bytes())?
            {
                shared.insert(id, memory);
            }
        }
        let files = files_of(checkpoint, &map)?;
        Ok(Self {
            process: process.clone(),
            core,
            threads,
            map,
            memory,
            shared,
            files,
        })
    }

    /// How many bytes of memory there are to copy.
    pub fn bytes(&self) -> u64 {
        let shared = self.shared.values().map(Memory::bytes);
        shared.fold(self.memory.bytes(), u64::saturating_add)
    }

    /// The path of its executable, if the checkpoint knows it.
    pub fn executable(&self) -> Option<&[u8]> {
        self.files.get(&self.map.exe_file_id).map(Vec::as_slice)
    }

    /// Writes the core file into an empty one. `progress` is told how many more bytes of memory
    /// were copied.
    ///
    /// # Errors
    ///
    /// Those of reading; [`Error::Output`]; [`Error::Refused`] if it would be longer than files
    /// can be.
    pub fn write(&self, out: &File, mut progress: impl FnMut(u64)) -> Result<Written, Error> {
        let notes_bytes = self.notes(&[]).len() as u64;
        let segments = self.segments();
        // All segments and that of the notes.
        let headers = segments.len() as u64 + 1;
        let many = headers >= MANY_HEADERS;
        let notes_at = HEADER + headers * PROGRAM_HEADER;
        let sections_at = notes_at + notes_bytes;
        let mut at = sections_at + if many { SECTION_HEADER } else { 0 };
        let page = self.map.page_bytes();
        at = at.next_multiple_of(page);

        let mut placed = Vec::with_capacity(segments.len());
        for segment in segments {
            placed.push((at, segment));
            at = at
                .checked_add(segment.file_bytes)
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| {
                    Error::Refused("its memory areas are larger than a file can be".to_owned())
                })?;
        }
        out.set_len(at)?;

        let mut arguments = vec![0; ARGUMENTS];
        let mut page_bytes = 0;
        self.memory
            .each_piece(PIECE, |Piece { address, bytes, .. }| {
                self.note_arguments(address, bytes, &mut arguments);
                progress(bytes.len() as u64);
                page_bytes += put(out, &placed, page, address, bytes, |segment| {
                    !matches!(segment.area.backing, Backing::Shared { .. })
                })?;
                Ok::<_, Error>(())
            })?;
        for (id, memory) in &self.shared {
            memory.each_piece(
                PIECE,
                |Piece {
                     address: offset,
                     bytes,
                     ..
                 }| {
                    progress(bytes.len() as u64);
                    // Each area that shows it.
                    for &(at, segment) in &placed {
                        let Backing::Shared {
                            id: of,
                            offset: first,
                        } = segment.area.backing
                        else {
                            continue;
                        };
                        if of != *id {
                            continue;
                        }
                        let shift = segment.area.start.wrapping_sub(first);
                        page_bytes += put(
                            out,
                            &[(at, segment)],
                            page,
                            offset.wrapping_add(shift),
                            bytes,
                            |_| true,
                        )?;
                    }
                    Ok::<_, Error>(())
                },
            )?;
        }

        let mut head = self.header(headers, many, sections_at);
        program_header(&mut head, 4, 0, notes_at, 0, notes_bytes, 0, 4);
        for (at, segment) in &placed {
            // PF_X 1, PF_W 2, PF_R 4: the other way round than mmap's.
            let protection = segment.area.protection;
            let flags = (protection & 1) << 2 | protection & 2 | (protection & 4) >> 2;
            program_header(
                &mut head,
                1,
                flags,
                *at,
                segment.start,
                segment.file_bytes,
                segment.bytes,
                page,
            );
        }
        head.extend(self.notes(&arguments));
        if many {
            let mut section = [0u8; SECTION_HEADER as usize];
            // sh_info.
            if let Some(field) = section.get_mut(44..48) {
                field.copy_from_slice(&(headers as u32).to_le_bytes());
            }
            head.extend(section);
        }
        out.write_all_at(&head, 0)?;
        Ok(Written {
            file_bytes: at,
            page_bytes,
            threads: self.threads.len(),
        })
    }

    fn header(&self, headers: u64, many: bool, sections_at: u64) -> Vec<u8> {
        let machine: u16 = match self.threads.first().map(|(_, thread)| &thread.registers) {
            Some(Some(Registers::Aarch64(_))) => 183,
            _ => 62,
        };
        let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // ET_CORE.
        head.extend(4u16.to_le_bytes());
        head.extend(machine.to_le_bytes());
        head.extend(1u32.to_le_bytes());
        // No entry point; the program headers follow directly.
        head.extend(0u64.to_le_bytes());
        head.extend(HEADER.to_le_bytes());
        head.extend(if many { sections_at } else { 0 }.to_le_bytes());
        head.extend(0u32.to_le_bytes());
        let sections = u16::from(many);
        let section_header = sections * SECTION_HEADER as u16;
        for half in [
            HEADER as u16,
            PROGRAM_HEADER as u16,
            headers.min(MANY_HEADERS) as u16,
            section_header,
            sections,
            0,
        ] {
            head.extend(half.to_le_bytes());
        }
        head
    }

    /// The parts of all areas, in order of address.
    fn segments(&self) -> Vec<Segment> {
        let mut stretches: Vec<_> = self.memory.stretches().collect();
        stretches.sort_unstable_by_key(|stretch| stretch.address);
        let mut segments = Vec::new();
        for area in &self.map.areas {
            let whole = |file_bytes| Segment {
                area: *area,
                start: area.start,
                bytes: area.bytes(),
                file_bytes,
            };
            let first = stretches.partition_point(|stretch| stretch.end() <= area.start);
            let here = stretches.get(first..).unwrap_or_default();
            let mut here = here
                .iter()
                .map_while(|stretch| stretch.part(area.start, area.end))
                .peekable();
            match area.backing {
                Backing::Shared { id, .. } => {
                    let there = self.shared.contains_key(&id);
                    segments.push(whole(if there { area.bytes() } else { 0 }));
                }
                // What is not there stands in the file: a segment without content says so.
                Backing::File { .. } => {
                    let mut at = area.start;
                    let mut add = |start, end, in_file| {
                        if start < end {
                            segments.push(Segment {
                                area: *area,
                                start,
                                bytes: end - start,
                                file_bytes: if in_file { end - start } else { 0 },
                            });
                        }
                    };
                    for part in here {
                        add(at, part.address, false);
                        add(part.address, part.end(), true);
                        at = part.end();
                    }
                    add(at, area.end, false);
                }
                // What is not there is zero, and a hole in the file. As the kernel does it, an
                // area that was never touched is not there at all.
                _ => {
                    let touched = here.peek().is_some();
                    segments.push(whole(if touched { area.bytes() } else { 0 }));
                }
            }
        }
        segments
    }

    /// Keeps the arguments of the process if they are in a piece of memory.
    fn note_arguments(&self, address: u64, bytes: &[u8], arguments: &mut [u8]) {
        let range = self.map.arguments;
        let wanted = range.bytes().min(arguments.len() as u64 - 1);
        let end = address.saturating_add(bytes.len() as u64);
        for at in range.start.max(address)..(range.start + wanted).min(end) {
            let from = usize::try_from(at - address)
                .ok()
                .and_then(|i| bytes.get(i));
            let to = usize::try_from(at - range.start)
                .ok()
                .and_then(|i| arguments.get_mut(i));
            if let (Some(to), Some(from)) = (to, from) {
                // They are shown as one text.
                *to = if *from == 0 { b' ' } else { *from };
            }
        }
    }
}

/// A part of an area, all of it in the core file or nothing.
#[derive(Debug, Clone, Copy)]
struct Segment {
    area: Area,
    start: u64,
    bytes: u64,
    file_bytes: u64,
}

/// Writes a piece of memory to where its segments stand. Pages of zeros are left out: there the
/// file has a hole. Answers how many bytes were written.
fn put(
    out: &File,
    placed: &[(u64, Segment)],
    page_bytes: u64,
    address: u64,
    bytes: &[u8],
    wanted: impl Fn(&Segment) -> bool,
) -> Result<u64, Error> {
    let end = address.saturating_add(bytes.len() as u64);
    let first = placed.partition_point(|(_, segment)| segment.start + segment.bytes <= address);
    let mut written = 0;
    for (at, segment) in placed.get(first..).unwrap_or_default() {
        if segment.start >= end {
            break;
        }
        if segment.file_bytes == 0 || !wanted(segment) {
            continue;
        }
        let from = segment.start.max(address);
        let to = (segment.start + segment.bytes).min(end);
        let index = |address: u64| usize::try_from(address - from).unwrap_or(usize::MAX);
        let skip = usize::try_from(from - address).unwrap_or(usize::MAX);
        let part = bytes
            .get(skip..)
            .and_then(|bytes| bytes.get(..index(to)))
            .unwrap_or_default();
        let page = usize::try_from(page_bytes).unwrap_or(usize::MAX);
        let mut at = at + (from - segment.start);
        for pages in runs_of_content(part, page) {
            match pages {
                Pages::Zero(length) => at += length as u64,
                Pages::Content(content) => {
                    out.write_all_at(content, at)?;
                    at += content.len() as u64;
                    written += content.len() as u64;
                }
            }
        }
    }
    Ok(written)
}

enum Pages<'a> {
    Zero(usize),
    Content(&'a [u8]),
}

/// Pages of zeros, and runs of pages that are not, in turn.
fn runs_of_content(mut bytes: &[u8], page: usize) -> impl Iterator<Item = Pages<'_>> {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    std::iter::from_fn(move || {
        let zero = is_zero(bytes.chunks(page).next()?);
        let length = bytes
            .chunks(page)
            .take_while(|chunk| is_zero(chunk) == zero)
            .map(<[u8]>::len)
            .sum();
        let (run, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        Some(if zero {
            Pages::Zero(length)
        } else {
            Pages::Content(run)
        })
    })
}

#[expect(clippy::too_many_arguments, reason = "the fields of a program header")]
fn program_header(
    head: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    bytes: u64,
    align: u64,
) {
    head.extend(kind.to_le_bytes());
    head.extend(flags.to_le_bytes());
    for word in [offset, address, 0, file_bytes, bytes, align] {
        head.extend(word.to_le_bytes());
    }
}
