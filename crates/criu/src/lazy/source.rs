//! Where pages come from.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use cryo_criu_image::Kind;
use cryo_criu_image::pagemap::{Location, Pagemap};

use super::pending::{Part, Pending};

/// Supplies the memory of the processes of one checkpoint. A process is named by its number in
/// the images, a page by its address at the dump.
pub(super) trait Source: fmt::Debug {
    /// What is to come of a process, each page at its own address.
    ///
    /// # Errors
    ///
    /// When that cannot be told. A process without memory is none.
    fn pending(&mut self, process: u32) -> io::Result<Pending>;

    /// Fills the buffer with what was at an address; [`Source::pending`] has said that all of it
    /// is there. May block.
    ///
    /// # Errors
    ///
    /// When it is not to be had.
    fn read(&mut self, process: u32, origin: u64, pages: &mut [u8]) -> io::Result<()>;
}

/// The images of a checkpoint on this machine, opened by who checked them.
#[derive(Debug, Default)]
pub(super) struct Images {
    processes: HashMap<u32, Image>,
}

#[derive(Debug)]
struct Image {
    pagemap: File,
    pages: Option<File>,
    /// By address at the dump, in order: its bytes, and where they stand in the file.
    runs: Vec<(u64, u64, u64)>,
}

impl Images {
    /// Adds the images of a process.
    pub(super) fn add(&mut self, process: u32, pagemap: OwnedFd, pages: Option<OwnedFd>) {
        let image = Image {
            pagemap: pagemap.into(),
            pages: pages.map(File::from),
            runs: Vec::new(),
        };
        self.processes.insert(process, image);
    }
}

impl Source for Images {
    fn pending(&mut self, process: u32) -> io::Result<Pending> {
        let mut pending = Pending::default();
        let Some(image) = self.processes.get_mut(&process) else {
            return Ok(pending);
        };
        let name = Kind::Pagemap.file_name(process.into());
        let page_bytes = rustix::param::page_size() as u64;
        let file = io::BufReader::new(&image.pagemap);
        let pagemap = Pagemap::read(&name, file, page_bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let mut offset = 0;
        for run in pagemap.runs {
            // That none of these overflows was checked by the pagemap.
            let bytes = run.pages.saturating_mul(page_bytes);
            if run.location != Location::Here {
                continue;
            }
            // CRIU itself restores the others.
            if run.lazy {
                image.runs.push((run.address, bytes, offset));
                pending.insert(Part {
                    address: run.address,
                    bytes,
                    origin: run.address,
                });
            }
            offset += bytes;
        }
        image.runs.sort_unstable();
        Ok(pending)
    }

    fn read(&mut self, process: u32, origin: u64, pages: &mut [u8]) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no image has these pages");
        let image = self.processes.get(&process).ok_or_else(missing)?;
        let file = image.pages.as_ref().ok_or_else(missing)?;
        let after = image.runs.partition_point(|&(at, ..)| at <= origin);
        let (at, bytes, offset) = after
            .checked_sub(1)
            .and_then(|n| image.runs.get(n).copied())
            .ok_or_else(missing)?;
        let from = origin - at;
        if from.saturating_add(pages.len() as u64) > bytes {
            return Err(missing());
        }
        file.read_exact_at(pages, offset + from)
    }
}
