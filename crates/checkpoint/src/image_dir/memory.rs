//! The memory of an image directory.

use std::collections::BTreeMap;
use std::fs::File;

use cryo_criu_image::Kind;
use cryo_criu_image::pagemap::PagemapTotals;
use cryo_criu_image::pstree::ProcessTree;

use super::{Error, FlatDir, flat_error, open};

/// The open images of a process's memory, for who fills it in after the restore.
#[derive(Debug)]
pub struct LazyMemory {
    /// The process, by its number in the images.
    pub pid: u32,
    /// Its `pagemap-*.img`.
    pub pagemap: File,
    /// The `pages-*.img` that belongs to it; one without pages may have none.
    pub pages: Option<File>,
}

/// Opens the memory of all processes of the tree. The dead have none.
///
/// # Errors
///
/// [`Error::NotLazy`] for memory that cannot be filled in, and what opening says.
pub(super) fn open_lazy(files: &FlatDir, tree: &ProcessTree) -> Result<Vec<LazyMemory>, Error> {
    let file = |name: &str| files.open_file(name).map_err(|e| flat_error(name, e));
    let mut memory = Vec::new();
    for process in tree.processes() {
        let name = Kind::Pagemap.file_name(process.pid.into());
        if files.size(&name).is_none() {
            continue;
        }
        let totals =
            PagemapTotals::read(&name, open(files, &name)?).map_err(|source| Error::Damaged {
                name: name.clone(),
                source,
            })?;
        let not_lazy = |what| {
            Err(Error::NotLazy {
                name: name.clone(),
                what,
            })
        };
        if totals.newer {
            return not_lazy("compressed by CRIU 4.3, or of something newer");
        }
        if totals.parent_lazy > 0 {
            return not_lazy("marked to be filled in from a parent, as CRIU never does");
        }
        let pages = Kind::Pages.file_name(totals.pages_id.into());
        memory.push(LazyMemory {
            pid: process.pid,
            pagemap: file(&name)?,
            pages: match files.size(&pages) {
                Some(_) => Some(file(&pages)?),
                None => None,
            },
        });
    }
    Ok(memory)
}

/// Every pagemap can be read, and its pages are there.
///
/// # Errors
///
/// [`Error::MemoryElsewhere`] for pages that would have to be in a parent when there is none, and
/// the other errors of memory.
pub(super) fn check(files: &FlatDir, parent: Option<&FlatDir>) -> Result<(), Error> {
    // The smallest of all: elsewhere it is a lower bound.
    const PAGE_BYTES: u64 = 4096;
    let mut needed = BTreeMap::<u32, u64>::new();
    for (name, _) in files.files() {
        if !matches!(
            Kind::of_file_name(name),
            Some((Kind::Pagemap | Kind::PagemapShmem, _))
        ) {
            continue;
        }
        let damaged = |source| Error::Damaged {
            name: name.to_owned(),
            source,
        };
        let totals = PagemapTotals::read(name, open(files, name)?).map_err(damaged)?;
        let inherits = totals.parent > 0 && parent.is_some_and(|p| p.size(name).is_some());
        let inherited = if inherits { 0 } else { totals.parent };
        let elsewhere = totals.absent_lazy.saturating_add(inherited);
        if elsewhere > 0 {
            return Err(Error::MemoryElsewhere {
                name: name.to_owned(),
                pages: elsewhere,
            });
        }
        if totals.present > 0 {
            let bytes = if totals.newer {
                0
            } else {
                totals.present.saturating_mul(PAGE_BYTES)
            };
            let sum = needed.entry(totals.pages_id).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    for (id, needed_bytes) in needed {
        let name = Kind::Pages.file_name(id.into());
        match files.size(&name) {
            None => return Err(Error::Missing { name }),
            Some(found_bytes) if found_bytes < needed_bytes => {
                return Err(Error::ShortPages {
                    name,
                    found_bytes,
                    needed_bytes,
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
