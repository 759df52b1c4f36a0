//! The entries of a tar archive, in order, without unpacking anything.
//!
//! The `tar` crate is not used for this: it reads long names and extended headers of any stated
//! length into memory, and takes an archive that was cut off between two entries for a whole
//! one. Here an extension may have [`MAX_EXTENSION_BYTES`], and an archive ends with its end
//! marker; what stands behind it is not looked at, since containerd writes over longer files
//! without cutting them off.
//!
//! Understood are ustar, GNU (long names, sizes in base 256) and pax (`path`, `size`). Refused
//! are links, devices and fifos, sparse files, and names that are absolute or lead upwards.

use std::io::{self, Read, Seek, SeekFrom};

use crate::source::Algorithm;

pub(crate) const BLOCK: usize = 512;

/// Longest extension (a GNU long name, a pax header).
pub const MAX_EXTENSION_BYTES: u64 = 64 << 10;

/// Most entries of an archive.
pub const MAX_ENTRIES: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading failed.
    #[error("i/o error at offset {offset} of the archive")]
    Io {
        /// Where.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The archive ends before its end marker.
    #[error("the archive is cut off at offset {offset}")]
    Truncated {
        /// Where it ends, or where the entry begins that does not fit.
        offset: u64,
    },
    /// What stands where an entry should begin is not one.
    #[error("not a tar archive: no entry at offset {offset}: {reason}")]
    BadHeader {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive is compressed.
    #[error("the archive is compressed with {algorithm}")]
    Compressed {
        /// How.
        algorithm: Algorithm,
    },
    /// An entry that a checkpoint does not have.
    #[error("unsafe archive: entry {name:?} at offset {offset} is {what}")]
    Foreign {
        /// The entry's name.
        name: String,
        /// Where its header stands.
        offset: u64,
        /// What it is, with its article.
        what: &'static str,
    },
    /// More entries than any checkpoint has.
    #[error("unsafe archive: more than {MAX_ENTRIES} entries at offset {offset}")]
    TooManyEntries {
        /// Where the one too many stands.
        offset: u64,
    },
}

/// One entry: a file or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name without leading `./`, doubled or trailing slashes; `.` for the archive's root.
    pub name: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Its length.
    pub size_bytes: u64,
    /// Where its header stands in the archive.
    pub offset: u64,
    /// Where its content begins.
    pub content_offset: u64,
}

/// Reads an archive. The content of an entry is read from the stream itself, until the next is
/// asked for; what is left of it is passed over.
#[derive(Debug)]
pub struct TarStream<R> {
    inner: R,
    offset: u64,
    entries: u64,
    /// Of the current entry: bytes of content, then of padding.
    content: u64,
    padding: u64,
    ended: bool,
    skip: fn(&mut R, u64) -> io::Result<u64>,
}

impl<R: Read> TarStream<R> {
    /// Of a stream that can only be read.
    pub fn new(inner: R) -> Self {
        Self::with_skip(inner, |inner, bytes| {
            io::copy(&mut inner.take(bytes), &mut io::sink())
        })
    }

    fn with_skip(inner: R, skip: fn(&mut R, u64) -> io::Result<u64>) -> Self {
        Self {
            inner,
            offset: 0,
            entries: 0,
            content: 0,
            padding: 0,
            ended: false,
            skip,
        }
    }

    /// The stream where the reading stopped, and that offset.
    pub fn into_inner(self) -> (R, u64) {
        (self.inner, self.offset)
    }

    /// The next entry, or `None` at the end marker.
    ///
    /// # Errors
    ///
    /// All of [`Error`]. Afterwards there is no next entry.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        let result = self.advance();
        self.ended = !matches!(result, Ok(Some(_)));
        result
    }

    fn advance(&mut self) -> Result<Option<Entry>, Error> {
        let mut long_name = None;
        let mut long_size = None;
        loop {
            self.finish_content()?;
            let offset = self.offset;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let header = Header(&block);
            if offset == 0 {
                header.check_compressed()?;
            }
            let bad = |reason| Error::BadHeader { offset, reason };
            if !header.checksum_matches() {
                return Err(bad("wrong checksum"));
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Error::TooManyEntries { offset });
            }
            let mut size = header.size().ok_or_else(|| bad("unreadable size"))?;
            let kind = header.kind();
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                size = long_size.unwrap_or(size);
            }
            self.content = size;
            self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
            if size > i64::MAX as u64 - BLOCK as u64 {
                return Err(bad("impossible size"));
            }

            let name = long_name.clone().unwrap_or_else(|| header.name());
            let foreign = |what| Error::Foreign {
                name: String::from_utf8_lossy(&name).into_owned(),
                offset,
                what,
            };
            let directory = match kind {
                b'0' | b'\0' | b'7' => name.ends_with(b"/"),
                b'5' => true,
                b'L' => {
                    let mut bytes = self.extension(offset)?;
                    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
                    long_name = Some(bytes);
                    continue;
                }
                b'x' => {
                    let bytes = self.extension(offset)?;
                    for (key, value) in pax_records(&bytes).ok_or_else(|| bad("bad pax header"))? {
                        match key {
                            b"path" => long_name = Some(value.to_vec()),
                            b"size" => {
                                let size = decimal(value).ok_or_else(|| bad("bad pax size"))?;
                                long_size = Some(size);
                            }
                            _ if key.starts_with(b"GNU.sparse.") => {
                                return Err(foreign("a sparse file"));
                            }
                            _ => {}
                        }
                    }
                    continue;
                }
                // A long link target, whose link is refused when it comes; defaults for all.
                b'K' | b'g' => {
                    self.extension(offset)?;
                    continue;
                }
                b'1' => return Err(foreign("a hard link")),
                b'2' => return Err(foreign("a symbolic link")),
                b'3' | b'4' => return Err(foreign("a device")),
                b'6' => return Err(foreign("a fifo")),
                b'S' => return Err(foreign("a sparse file")),
                _ => return Err(foreign("of unknown type")),
            };
            if directory && size != 0 {
                return Err(foreign("a directory with content"));
            }
            let name = normalize(&name).map_err(foreign)?;
            return Ok(Some(Entry {
                name,
                directory,
                size_bytes: size,
                offset,
                content_offset: self.offset,
            }));
        }
    }

    /// The whole of the current entry's content, which is an extension.
    fn extension(&mut self, offset: u64) -> Result<Vec<u8>, Error> {
        if self.content > MAX_EXTENSION_BYTES {
            return Err(Error::BadHeader {
                offset,
                reason: "extension too long",
            });
        }
        let wanted = self.content;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)
            .map_err(|source| Error::Io { offset, source })?;
        if bytes.len() as u64 == wanted {
            Ok(bytes)
        } else {
            Err(Error::Truncated { offset })
        }
    }

    fn finish_content(&mut self) -> Result<(), Error> {
        let bytes = self.content + self.padding;
        if bytes == 0 {
            return Ok(());
        }
        let skipped = (self.skip)(&mut self.inner, bytes).map_err(|source| Error::Io {
            offset: self.offset,
            source,
        })?;
        self.offset += skipped;
        (self.content, self.padding) = (0, 0);
        if skipped == bytes {
            Ok(())
        } else {
            Err(Error::Truncated {
                offset: self.offset,
            })
        }
    }

    /// The next header; `None` for the end marker, a block of zeros.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = Vec::with_capacity(BLOCK);
        (&mut self.inner)
            .take(BLOCK as u64)
            .read_to_end(&mut block)
            .map_err(|source| Error::Io {
                offset: self.offset,
                source,
            })?;
        if self.offset == 0 {
            // Tells a compressed archive even if it is shorter than a block.
            Header::check_magic(&block)?;
        }
        let Ok(block) = <[u8; BLOCK]>::try_from(block) else {
            return Err(Error::Truncated {
                offset: self.offset,
            });
        };
        self.offset += BLOCK as u64;
        Ok(block.iter().any(|&byte| byte != 0).then_some(block))
    }
}

impl<R: Read + Seek> TarStream<R> {
    /// Of a file: what is not read is not even looked at.
    pub fn seekable(inner: R) -> Self {
        // Beyond the end one can seek, but finds no further header there.
        Self::with_skip(inner, |inner, bytes| {
            let distance = i64::try_from(bytes).map_err(io::Error::other)?;
            inner.seek(SeekFrom::Current(distance)).map(|_| bytes)
        })
    }
}

/// The content of the current entry.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.inner).take(self.content).read(buffer)?;
        self.content -= read as u64;
        self.offset += read as u64;
        Ok(read)
    }
}

pub(crate) struct Header<'a>(pub(crate) &'a [u8; BLOCK]);

impl Header<'_> {
    fn field(&self, start: usize, length: usize) -> &[u8] {
        self.0.get(start..start + length).unwrap_or_default()
    }

    fn text(&self, start: usize, length: usize) -> &[u8] {
        let field = self.field(start, length);
        field.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        let mut name = Vec::new();
        // Only ustar has a prefix; GNU has other things there.
        if self.field(257, 6) == b"ustar\0" {
            name.extend(self.text(345, 155));
            if !name.is_empty() {
                name.push(b'/');
            }
        }
        name.extend(self.text(0, 100));
        name
    }

    pub(crate) fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or_default()
    }

    pub(crate) fn size(&self) -> Option<u64> {
        let field = self.field(124, 12);
        match field.split_first()? {
            (0x80, rest) => rest.iter().try_fold(0u64, |value, &byte| {
                value.checked_mul(256)?.checked_add(byte.into())
            }),
            _ => octal(field),
        }
    }

    pub(crate) fn checksum_matches(&self) -> bool {
        let sum: u64 = (0..)
            .zip(self.0)
            .map(|(at, &byte)| {
                if (148..156).contains(&at) {
                    0x20
                } else {
                    u64::from(byte)
                }
            })
            .sum();
        octal(self.field(148, 8)) == Some(sum)
    }

    fn check_compressed(&self) -> Result<(), Error> {
        Self::check_magic(self.0)
    }

    fn check_magic(bytes: &[u8]) -> Result<(), Error> {
        match Algorithm::of(bytes) {
            Some(algorithm) => Err(Error::Compressed { algorithm }),
            None => Ok(()),
        }
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = field.trim_ascii_start();
    let digits = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
    digits.iter().try_fold(0u64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
pub(crate) fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        let (digits, _) = bytes.split_at_checked(space)?;
        let length = usize::try_from(decimal(digits)?).ok()?;
        let (record, rest) = bytes.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let (key, value) = record.split_at_checked(equals)?;
        records.push((key, value.get(1..)?));
        bytes = rest;
    }
    Some(records)
}

fn normalize(name: &[u8]) -> Result<String, &'static str> {
    let Ok(name) = std::str::from_utf8(name) else {
        return Err("a file with an unreadable name");
    };
    if name.is_empty() {
        return Err("without a name");
    }
    if name.starts_with('/') {
        return Err("outside of the archive: its name is absolute");
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("outside of the archive: its name leads upwards"),
            part => parts.push(part),
        }
    }
    Ok(if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    })
}

#[cfg(test)]
mod tests;
