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
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o600);
        header.set_cksum();
        header
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let kind = if name.ends_with('/') {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            };
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read<R: Read>(mut stream: TarStream<R>) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut found = Vec::new();
        while let Some(entry) = stream.next_entry()? {
            let mut content = Vec::new();
            stream.read_to_end(&mut content).unwrap();
            found.push((entry.name, content));
        }
        Ok(found)
    }

    #[test]
    fn what_the_tar_crate_writes() {
        let long = format!("checkpoint/{}", "n".repeat(200));
        let big = vec![7; 1000];
        let files: [(&str, &[u8]); 4] = [
            ("checkpoint/", b""),
            ("./checkpoint//a", b"x"),
            (&long, &big),
            ("b", b""),
        ];
        let bytes = archive(&files);
        let expected = [
            ("checkpoint".to_owned(), Vec::new()),
            ("checkpoint/a".to_owned(), b"x".to_vec()),
            (long.clone(), big.clone()),
            ("b".to_owned(), Vec::new()),
        ];
        assert_eq!(read(TarStream::new(bytes.as_slice())).unwrap(), expected);
        assert_eq!(
            read(TarStream::seekable(Cursor::new(&bytes))).unwrap(),
            expected
        );

        // Passing over what is not read finds the same entries.
        let mut stream = TarStream::seekable(Cursor::new(&bytes));
        let names: Vec<_> = std::iter::from_fn(|| stream.next_entry().unwrap())
            .map(|e| e.name)
            .collect();
        assert_eq!(names, expected.map(|(name, _)| name));

        // Whatever stands behind the end marker.
        let mut garbage = bytes.clone();
        garbage.extend([0xff; 4096]);
        assert_eq!(read(TarStream::new(garbage.as_slice())).unwrap().len(), 4);
    }

    #[test]
    fn pax_names_and_sizes() {
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions([("path", b"checkpoint/from-pax".as_slice()), ("size", b"3")])
            .unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(header("short", tar::EntryType::Regular, 0).as_bytes());
        let mut content = b"abc".to_vec();
        content.resize(512, 0);
        bytes.extend(content);
        bytes.extend([0; 1024]);
        assert_eq!(
            read(TarStream::new(bytes.as_slice())).unwrap(),
            [("checkpoint/from-pax".to_owned(), b"abc".to_vec())]
        );
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = archive(&[("checkpoint/", b""), ("checkpoint/a", &[1; 600])]);
        let end = bytes.len() - 1024;
        for length in 0..bytes.len() {
            let streamed = read(TarStream::new(&bytes[..length]));
            let seeked = read(TarStream::seekable(Cursor::new(&bytes[..length])));
            let whole = length >= end + 512;
            assert_eq!(streamed.is_ok(), whole, "{length}");
            assert_eq!(seeked.is_ok(), whole, "{length}");
        }
    }

    #[test]
    fn refused() {
        use tar::EntryType as T;
        let cases = [
            (
                "l",
                T::Symlink,
                "unsafe archive: entry \"l\" at offset 0 is a symbolic link",
            ),
            (
                "l",
                T::Link,
                "unsafe archive: entry \"l\" at offset 0 is a hard link",
            ),
            (
                "d",
                T::Char,
                "unsafe archive: entry \"d\" at offset 0 is a device",
            ),
            (
                "d",
                T::Block,
                "unsafe archive: entry \"d\" at offset 0 is a device",
            ),
            (
                "f",
                T::Fifo,
                "unsafe archive: entry \"f\" at offset 0 is a fifo",
            ),
            (
                "s",
                T::GNUSparse,
                "unsafe archive: entry \"s\" at offset 0 is a sparse file",
            ),
            (
                "z",
                T::new(b'Z'),
                "unsafe archive: entry \"z\" at offset 0 is of unknown type",
            ),
        ];
        for (name, kind, expected) in cases {
            let mut bytes = header(name, kind, 0).as_bytes().to_vec();
            bytes.extend([0; 1024]);
            assert_eq!(
                read(TarStream::new(bytes.as_slice()))
                    .unwrap_err()
                    .to_string(),
                expected
            );
        }

        for (name, what) in [
            (
                "/etc/passwd",
                "is outside of the archive: its name is absolute",
            ),
            (
                "a/../../b",
                "is outside of the archive: its name leads upwards",
            ),
            ("", "is without a name"),
        ] {
            let mut raw = header("x", T::Regular, 0);
            raw.as_mut_bytes()[..100].fill(0);
            raw.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            raw.set_cksum();
            let error = read(TarStream::new(raw.as_bytes().as_slice())).unwrap_err();
            assert!(error.to_string().ends_with(what), "{error}");
        }
    }

    #[test]
    fn what_is_no_archive() {
        let cases: [(&[u8], &str); 6] = [
            (b"", "the archive is cut off at offset 0"),
            (b"{}", "the archive is cut off at offset 0"),
            (
                &[b'x'; 600],
                "not a tar archive: no entry at offset 0: wrong checksum",
            ),
            (&[0x1f, 0x8b, 8, 0], "the archive is compressed with gzip"),
            (
                &[0x28, 0xb5, 0x2f, 0xfd],
                "the archive is compressed with zstd",
            ),
            (b"BZh91AY", "the archive is compressed with bzip2"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(
                read(TarStream::new(bytes)).unwrap_err().to_string(),
                expected
            );
        }
    }

    #[test]
    fn a_long_name_of_a_gigabyte_is_not_read() {
        let bytes = header("././@LongLink", tar::EntryType::GNULongName, 1 << 30);
        let mut stream = TarStream::new(bytes.as_bytes().chain(io::repeat(b'a')));
        let error = stream.next_entry().unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a tar archive: no entry at offset 0: extension too long"
        );
        assert_eq!(stream.next_entry().unwrap(), None);
    }

    #[test]
    fn impossible_sizes() {
        for size in [
            [
                0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            [0xff; 12],
            [b'8'; 12],
        ] {
            let mut raw = header("x", tar::EntryType::Regular, 0);
            raw.as_mut_bytes()[124..136].copy_from_slice(&size);
            raw.set_cksum();
            for result in [
                read(TarStream::new(raw.as_bytes().as_slice())),
                read(TarStream::seekable(Cursor::new(raw.as_bytes()))),
            ] {
                assert!(
                    matches!(result, Err(Error::BadHeader { .. })),
                    "{size:?} {result:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = read(TarStream::new(bytes.as_slice()));
            let _ = read(TarStream::seekable(Cursor::new(&bytes)));
        }

        #[test]
        fn any_damage_is_answered(
            content in prop::collection::vec(any::<u8>(), 0..700),
            at in any::<prop::sample::Index>(), byte in any::<u8>(), fix in any::<bool>(),
        ) {
            let mut bytes = archive(&[(&"n".repeat(120), &content), ("checkpoint/a", b"b")]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if fix {
                // So that the checksum does not keep the damage from being looked at.
                let start = at / 512 * 512;
                let block = &mut bytes[start..start + 512];
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let streamed = read(TarStream::new(bytes.as_slice())).map_err(|e| e.to_string());
            let seeked = read(TarStream::seekable(Cursor::new(&bytes))).map_err(|e| e.to_string());
            prop_assert_eq!(streamed.is_ok(), seeked.is_ok());
        }
    }
}
