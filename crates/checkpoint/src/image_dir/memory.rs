//! The memory of an image directory.

use std::collections::BTreeMap;

use cryo_criu_image::Kind;
use cryo_criu_image::pagemap::PagemapTotals;

use super::{Error, FlatDir, open};

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
