//! Magics, lengths, bytes: the layer below the messages.

use std::io::{self, Read, Write};

use prost::Message;

use crate::kind::{COMMON_MAGIC, Lead, SERVICE_MAGIC};
use crate::{At, Body, Error, Kind, Limits, View};

/// One framed message, not yet decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Where the entry's length stands in the file.
    pub offset: u64,
    /// The message's bytes.
    pub bytes: &'a [u8],
}

/// Reads the frames of one image, in order, holding one message at a time.
#[derive(Debug)]
pub struct RawReader<R> {
    file: String,
    limits: Limits,
    inner: R,
    offset: u64,
    entries: u64,
    buffer: Vec<u8>,
}

impl<R: Read> RawReader<R> {
    /// Checks the magic; `file` is how errors name the image.
    ///
    /// # Errors
    ///
    /// [`Error::RawPayload`] for kinds that are not sequences of messages,
    /// [`Error::BadMagic`], [`Error::Truncated`], [`Error::Io`].
    pub fn new(file: impl Into<String>, kind: Kind, inner: R) -> Result<Self, Error> {
        let file = file.into();
        if kind.body() != Body::Messages {
            return Err(Error::RawPayload { file, kind });
        }
        let mut reader = Self {
            file,
            limits: kind.limits(),
            inner,
            offset: 0,
            entries: 0,
            buffer: Vec::new(),
        };
        match kind.lead() {
            Lead::Common => reader.magic(kind, COMMON_MAGIC)?,
            Lead::Service => reader.magic(kind, SERVICE_MAGIC)?,
            Lead::Own | Lead::Raw => {}
        }
        reader.magic(kind, kind.magic())?;
        Ok(reader)
    }

    /// The next message, or `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`], [`Error::EntryTooLarge`], [`Error::ImageTooLarge`], [`Error::Io`].
    /// After an error the reader stands nowhere in particular and must not be used.
    pub fn next_entry(&mut self) -> Result<Option<RawEntry<'_>>, Error> {
        let offset = self.offset;
        Ok(self.fill()?.then_some(RawEntry {
            offset,
            bytes: &self.buffer,
        }))
    }

    /// The view of the next message.
    pub(crate) fn next_view<V: View>(&mut self) -> Result<Option<V>, Error> {
        let offset = self.offset;
        if !self.fill()? {
            return Ok(None);
        }
        let at = At {
            file: &self.file,
            offset,
        };
        V::from_wire(at.decode(&self.buffer)?, at).map(Some)
    }

    /// Takes the next message into the buffer; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, Error> {
        let offset = self.offset;
        let Some(length) = self.word(true)? else {
            return Ok(false);
        };
        if length > self.limits.entry_bytes {
            return Err(Error::EntryTooLarge {
                file: self.file.clone(),
                offset,
                length: length.into(),
                limit: self.limits.entry_bytes.into(),
            });
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.too_large(offset, self.limits.entries, "entries"));
        }
        if self.offset.saturating_add(length.into()) > self.limits.total_bytes {
            return Err(self.too_large(offset, self.limits.total_bytes, "bytes"));
        }

        self.buffer.clear();
        // Grows with what is there, not with what is claimed.
        let found = (&mut self.inner)
            .take(length.into())
            .read_to_end(&mut self.buffer)
            .map_err(|source| Error::Io {
                file: self.file.clone(),
                offset: self.offset,
                source,
            })?;
        if found as u64 != u64::from(length) {
            return Err(Error::Truncated {
                file: self.file.clone(),
                offset: self.offset,
                wanted: length.into(),
                found: found as u64,
            });
        }
        self.offset += u64::from(length);
        Ok(true)
    }

    /// How errors name the image.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// How many bytes were read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn magic(&mut self, kind: Kind, expected: u32) -> Result<(), Error> {
        let offset = self.offset;
        match self.word(false)? {
            Some(found) if found == expected => Ok(()),
            found => Err(Error::BadMagic {
                file: self.file.clone(),
                offset,
                kind,
                expected,
                found: found.unwrap_or_default(),
            }),
        }
    }

    /// Four bytes; `None` if the file ends before the first of them and may do so.
    fn word(&mut self, may_end: bool) -> Result<Option<u32>, Error> {
        let mut word = Vec::with_capacity(4);
        let found = (&mut self.inner)
            .take(4)
            .read_to_end(&mut word)
            .map_err(|source| Error::Io {
                file: self.file.clone(),
                offset: self.offset,
                source,
            })?;
        match <[u8; 4]>::try_from(word) {
            Ok(bytes) => {
                self.offset += 4;
                Ok(Some(u32::from_le_bytes(bytes)))
            }
            Err(_) if found == 0 && may_end => Ok(None),
            Err(_) => Err(Error::Truncated {
                file: self.file.clone(),
                offset: self.offset,
                wanted: 4,
                found: found as u64,
            }),
        }
    }

    fn too_large(&self, offset: u64, limit: u64, unit: &'static str) -> Error {
        Error::ImageTooLarge {
            file: self.file.clone(),
            offset,
            limit,
            unit,
        }
    }
}

/// Writes an image that [`RawReader`] reads back.
#[derive(Debug)]
pub struct Writer<W> {
    file: String,
    limits: Limits,
    inner: W,
    offset: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the magic.
    ///
    /// # Errors
    ///
    /// [`Error::RawPayload`] for kinds that are not sequences of messages, [`Error::Io`].
    pub fn new(kind: Kind, inner: W) -> Result<Self, Error> {
        let file = kind.to_string();
        if kind.body() != Body::Messages {
            return Err(Error::RawPayload { file, kind });
        }
        let mut writer = Self {
            file,
            limits: kind.limits(),
            inner,
            offset: 0,
        };
        match kind.lead() {
            Lead::Common => writer.bytes(&COMMON_MAGIC.to_le_bytes())?,
            Lead::Service => writer.bytes(&SERVICE_MAGIC.to_le_bytes())?,
            Lead::Own | Lead::Raw => {}
        }
        writer.bytes(&kind.magic().to_le_bytes())?;
        Ok(writer)
    }

    /// Appends one message.
    ///
    /// # Errors
    ///
    /// [`Error::EntryTooLarge`] if [`RawReader`] would refuse it, [`Error::Io`].
    pub fn message(&mut self, message: &impl Message) -> Result<(), Error> {
        self.entry(&message.encode_to_vec())
    }

    /// Appends the bytes of one message.
    ///
    /// # Errors
    ///
    /// As [`Writer::message`].
    pub fn entry(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let limit = self.limits.entry_bytes;
        match u32::try_from(bytes.len()) {
            Ok(length) if length <= limit => {
                self.bytes(&length.to_le_bytes())?;
                self.bytes(bytes)
            }
            _ => Err(Error::EntryTooLarge {
                file: self.file.clone(),
                offset: self.offset,
                length: bytes.len() as u64,
                limit: limit.into(),
            }),
        }
    }

    /// Gives the underlying writer back; nothing is buffered here.
    pub fn into_inner(self) -> W {
        self.inner
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner
            .write_all(bytes)
            .map_err(|source: io::Error| Error::Io {
                file: self.file.clone(),
                offset: self.offset,
                source,
            })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut reader = RawReader::new("f", kind, bytes)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry.bytes.to_vec());
        }
        Ok(entries)
    }

    const PSTREE: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50];

    #[test]
    fn magic_of_each_lead() {
        let cases: [(Kind, &[u8]); 3] = [
            (Kind::Inventory, &[0x16, 0x31, 0x31, 0x58]),
            (Kind::Pstree, &PSTREE),
            (
                Kind::StatsDump,
                &[0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57],
            ),
        ];
        for (kind, golden) in cases {
            let bytes = Writer::new(kind, Vec::new()).unwrap().into_inner();
            assert_eq!(bytes, golden, "{kind}");
            assert!(read(kind, golden).unwrap().is_empty());
        }
    }

    #[test]
    fn every_truncation_is_an_error_but_between_entries() {
        let mut bytes = PSTREE.to_vec();
        bytes.extend([3, 0, 0, 0, b'a', b'b', b'c']);
        for end in 0..bytes.len() {
            let result = read(Kind::Pstree, &bytes[..end]);
            if end == 8 {
                assert!(result.unwrap().is_empty());
            } else {
                assert!(matches!(result, Err(Error::Truncated { .. })), "{end}");
            }
        }
        assert_eq!(read(Kind::Pstree, &bytes).unwrap(), [b"abc"]);
    }

    #[test]
    fn a_false_length_allocates_nothing() {
        let mut bytes = PSTREE.to_vec();
        bytes.extend(u32::MAX.to_le_bytes());
        let error = read(Kind::Pstree, &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f: message of 4294967295 bytes at offset 8: more than the limit of 1048576"
        );
    }

    #[test]
    fn too_many_entries() {
        let mut writer = Writer::new(Kind::Inventory, Vec::new()).unwrap();
        writer.entry(b"").unwrap();
        writer.entry(b"").unwrap();
        let error = read(Kind::Inventory, &writer.into_inner()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f: too large at offset 8: more than 1 entries"
        );
    }

    #[test]
    fn another_kind_is_named() {
        let error = read(Kind::Core, &PSTREE).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f: not an image of kind core: magic 0x50273030 at offset 4, expected 0x55053847"
        );
        assert!(matches!(
            read(Kind::Pages, &[0; 64]),
            Err(Error::RawPayload { .. })
        ));
        assert!(matches!(
            Writer::new(Kind::Pages, Vec::new()),
            Err(Error::RawPayload { .. })
        ));
    }

    #[test]
    fn the_writer_refuses_what_the_reader_would() {
        let mut writer = Writer::new(Kind::Inventory, Vec::new()).unwrap();
        assert!(matches!(
            writer.entry(&vec![0; (64 << 10) + 1]),
            Err(Error::EntryTooLarge { .. })
        ));
    }
}
