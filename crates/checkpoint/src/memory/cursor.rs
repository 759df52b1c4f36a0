//! Reading pages, at any place or as a stream.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::{Error, Run, Source};
use crate::source::{self, Blob, Section};

/// Reads pages of a [`super::Memory`].
#[derive(Debug)]
pub struct Cursor {
    sources: Vec<(String, Access)>,
}

#[derive(Debug)]
enum Access {
    Random(Section),
    Stream(Stream),
}

/// What can only be read forth.
struct Stream {
    blob: Blob,
    reader: Box<dyn Read + Send>,
    position: u64,
    /// The last bytes before `position`, so that windows may overlap.
    tail: Vec<u8>,
    keep: usize,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("blob", &self.blob)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Cursor {
    pub(super) fn new(sources: &[Source], keep: usize) -> Result<Self, Error> {
        let open = |source: &Source| {
            Ok(match source.blob.section()? {
                Some(section) => Access::Random(section),
                None => Access::Stream(Stream {
                    reader: Box::new(source.blob.reader()?),
                    blob: source.blob.clone(),
                    position: 0,
                    tail: Vec::new(),
                    keep,
                }),
            })
        };
        let sources = sources
            .iter()
            .map(|source| match open(source) {
                Ok(access) => Ok((source.name.clone(), access)),
                Err(error) => Err(unreadable(&source.name, error)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { sources })
    }

    /// Whether all can be read at any place at once, so that several cursors are of use.
    pub fn is_random(&self) -> bool {
        self.sources
            .iter()
            .all(|(_, access)| matches!(access, Access::Random(_)))
    }

    /// Makes the buffer hold the bytes of a run, which has to be short enough for that.
    ///
    /// # Errors
    ///
    /// As [`Cursor::read`].
    pub fn read_part(&mut self, run: Run, buffer: &mut Vec<u8>) -> Result<(), Error> {
        buffer.resize(usize::try_from(run.bytes).unwrap_or_default(), 0);
        self.read(run, buffer)
    }

    /// Fills the buffer with what a run begins with; the run is at least as long.
    ///
    /// # Errors
    ///
    /// [`Error::Source`]; [`Error::Short`] if the file has become shorter, or decompresses
    /// to fewer bytes than it says.
    pub fn read(&mut self, run: Run, buffer: &mut [u8]) -> Result<(), Error> {
        let wanted = run.offset.saturating_add(buffer.len() as u64);
        let Some((name, access)) = self.sources.get_mut(run.source) else {
            return Ok(());
        };
        let result = match access {
            Access::Random(section) => section
                .file
                .read_exact_at(buffer, section.offset.saturating_add(run.offset)),
            Access::Stream(stream) => stream.read_at(run.offset, buffer),
        };
        result.map_err(|error| broken(name, wanted, error))
    }
}

/// What became of reading a file of pages up to an offset.
pub(super) fn broken(name: &str, wanted: u64, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Short {
            name: name.to_owned(),
            wanted,
        },
        _ => unreadable(name, error),
    }
}

fn unreadable(name: &str, source: io::Error) -> Error {
    let name = name.to_owned();
    source::Error::Unreadable { name, source }.into()
}

impl Stream {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let back = self.position.saturating_sub(offset);
        let mut filled = 0;
        if back > 0 {
            let start = usize::try_from(back)
                .ok()
                .and_then(|back| self.tail.len().checked_sub(back));
            match start.and_then(|start| self.tail.get(start..)) {
                Some(again) => {
                    filled = again.len().min(buffer.len());
                    let both = buffer.get_mut(..filled).zip(again.get(..filled));
                    if let Some((to, from)) = both {
                        to.copy_from_slice(from);
                    }
                    if filled == buffer.len() {
                        return Ok(());
                    }
                }
                // Further back than what was kept: once more from the start.
                None => {
                    self.reader = Box::new(self.blob.reader()?);
                    self.position = 0;
                    self.tail.clear();
                }
            }
        }
        if offset > self.position {
            let skip = offset - self.position;
            let skipped = io::copy(&mut (&mut self.reader).take(skip), &mut io::sink())?;
            self.position += skipped;
            self.tail.clear();
            if skipped != skip {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        self.reader.read_exact(rest)?;
        self.position += rest.len() as u64;
        // Of what was kept and what was read, the last bytes.
        let old = self.keep.saturating_sub(rest.len()).min(self.tail.len());
        self.tail.drain(..self.tail.len() - old);
        let new = rest.len().saturating_sub(self.keep);
        self.tail
            .extend_from_slice(rest.get(new..).unwrap_or_default());
        Ok(())
    }
}
