//! The memory of stopped tasks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use cryo_criu_image::Kind;
use cryo_criu_image::pagemap::{Location, Pagemap};

use super::Left;

/// Reads the memory of the tasks of a lazy dump, which have to be stopped all the while.
#[derive(Debug)]
pub struct Tasks(HashMap<u32, File>);

impl Tasks {
    /// Finds what a lazy dump has left, by the images in a directory, and opens the memory of
    /// those of `pids` that have it.
    ///
    /// # Errors
    ///
    /// When an image cannot be read, or none of `pids` is the process that it speaks of.
    pub fn open(images: &Path, pids: &[u32]) -> io::Result<(Self, Left)> {
        let mut left = Left::default();
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            if let Some(process) = process_of(&entry.file_name().to_string_lossy()) {
                add(&mut left, process, &entry.path())?;
            }
        }
        let mut tasks = HashMap::new();
        for pid in pids {
            let name = name_of(*pid)?;
            if left.processes().any(|process| process == name) {
                tasks.insert(name, File::open(format!("/proc/{pid}/mem"))?);
            }
        }
        let stranger = left
            .processes()
            .find(|process| !tasks.contains_key(process));
        match stranger {
            None => Ok((Self(tasks), left)),
            Some(process) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the process {process} of the images is not in the container"),
            )),
        }
    }

    #[cfg(test)]
    pub(super) fn of(memory: impl IntoIterator<Item = (u32, File)>) -> Self {
        Self(memory.into_iter().collect())
    }

    /// Fills the buffer with what is at an address.
    ///
    /// # Errors
    ///
    /// When it is not to be had, as that of a process which has ended.
    pub(super) fn read(&self, process: u32, address: u64, pages: &mut [u8]) -> io::Result<()> {
        let memory = self.0.get(&process);
        let memory = memory.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        memory.read_exact_at(pages, address)
    }
}

/// Whose `pagemap-ID.img` this is.
fn process_of(name: &str) -> Option<u32> {
    let id: u32 = name
        .strip_prefix("pagemap-")?
        .strip_suffix(".img")?
        .parse()
        .ok()?;
    (name == Kind::Pagemap.file_name(id.into())).then_some(id)
}

fn add(left: &mut Left, process: u32, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let page_bytes = rustix::param::page_size() as u64;
    let pagemap = Pagemap::read(&name, BufReader::new(File::open(path)?), page_bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    for run in pagemap.runs {
        if run.location == Location::Nowhere && run.lazy {
            left.add(process, run.address, run.pages.saturating_mul(page_bytes));
        }
    }
    Ok(())
}

/// What a process is called in the images: its id in its own namespace.
fn name_of(pid: u32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    innermost(&status).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn innermost(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|l| l.strip_prefix("NStgid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn images_are_told_by_their_names() {
        assert_eq!(process_of("pagemap-1.img"), Some(1));
        for other in [
            "pagemap-shmem-1.img",
            "pagemap-01.img",
            "pagemap-x.img",
            "pages-1.img",
        ] {
            assert_eq!(process_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_has_the_name_of_its_own_namespace() {
        assert_eq!(innermost("Pid:\t7\nNStgid:\t77\t7\t1\n"), Some(1));
        assert_eq!(innermost("NStgid:\t77\n"), Some(77));
        assert_eq!(innermost("Pid:\t7\n"), None);
        assert_eq!(name_of(std::process::id()).unwrap(), std::process::id());
    }

    #[test]
    fn memory_is_read_where_it_is() {
        let own = File::open("/proc/self/mem").unwrap();
        let tasks = Tasks::of([(1, own)]);
        let here = *b"memory of this very process";
        let mut read = [0; 27];
        tasks.read(1, here.as_ptr() as u64, &mut read).unwrap();
        assert_eq!(read, here);
        tasks.read(1, 0, &mut read).unwrap_err();
        tasks.read(2, 0, &mut read).unwrap_err();
    }
}
