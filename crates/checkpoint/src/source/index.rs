//! The entries of an archive, and where their content is.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use cryo_criu_image::Kind;

use super::blob::{Blob, buffered};
use super::error::Error;
use super::{Entry, MAX_ENTRIES, MAX_NAME_BYTES};
use crate::tar_stream::{self, TarStream};

/// Files of compressed archives up to this size are kept from the first pass.
const KEPT_BYTES: u64 = 1 << 20;

/// All of them together have at most so many bytes.
const ALL_KEPT_BYTES: u64 = 16 << 20;

/// How much behind the end marker of a compressed archive is still read, so that the checksum at
/// its end is: tar fills its last record up.
const TRAILER_BYTES: u64 = 1 << 20;

/// Lists an archive that is not compressed any more.
pub(super) fn index(archive: &Blob) -> Result<Vec<Entry>, Error> {
    let unreadable = |source| Error::Archive(tar_stream::Error::Io { offset: 0, source });
    match archive.section().map_err(unreadable)? {
        Some(section) => list(archive, TarStream::seekable(buffered(section.reader()))),
        None => {
            let reader = archive.reader().map_err(unreadable)?;
            list(archive, TarStream::new(buffered(reader)))
        }
    }
}

fn list<R: Read>(archive: &Blob, mut stream: TarStream<R>) -> Result<Vec<Entry>, Error> {
    let keeps = !archive.is_seekable();
    let mut kept = 0;
    let mut name_bytes = 0;
    let mut names = HashMap::new();
    let mut entries = Vec::new();
    while let Some(found) = stream.next_entry()? {
        name_bytes += found.name.len();
        if entries.len() >= MAX_ENTRIES || name_bytes > MAX_NAME_BYTES {
            return Err(Error::TooManyFiles { limit: MAX_ENTRIES });
        }
        match names.insert(found.name.clone(), found.directory) {
            None => {}
            // A directory may be named again, as by `tar -r`.
            Some(true) if found.directory => continue,
            Some(_) => {
                return Err(Error::Duplicate {
                    name: found.name,
                    offset: found.offset,
                });
            }
        }
        let mut entry = Entry {
            blob: archive.slice(found.content_offset, found.size_bytes),
            kept: None,
            name: found.name,
            directory: found.directory,
            size_bytes: found.size_bytes,
            offset: found.offset,
        };
        if keeps
            && !entry.directory
            && is_small(&entry)
            && kept + entry.size_bytes <= ALL_KEPT_BYTES
        {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map_err(|source| {
                Error::Archive(tar_stream::Error::Io {
                    offset: found.content_offset,
                    source,
                })
            })?;
            kept += bytes.len() as u64;
            // What is cut off shows when the next entry is asked for.
            entry.kept = Some(Arc::from(bytes));
        }
        entries.push(entry);
    }
    if keeps {
        let (mut rest, offset) = stream.into_inner();
        io::copy(&mut (&mut rest).take(TRAILER_BYTES), &mut io::sink())
            .map_err(|source| Error::Archive(tar_stream::Error::Io { offset, source }))?;
    }
    Ok(entries)
}

fn is_small(entry: &Entry) -> bool {
    let file = entry.name.rsplit('/').next().unwrap_or_default();
    entry.size_bytes <= KEPT_BYTES && !matches!(Kind::of_file_name(file), Some((Kind::Pages, _)))
}
