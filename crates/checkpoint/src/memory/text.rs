//! Short pieces of memory: arguments and environment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::ops;

use cryo_criu_image::mm::Range;

use super::cursor::broken;
use super::{Error, Memory, Run};
use crate::source;

/// Longest piece: the kernel gives arguments and environment together less.
const MAX_BYTES: u64 = 8 << 20;

impl Memory {
    /// The bytes of a range; what the image does not have is zero.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if it is longer than any process's arguments are, and as
    /// [`super::Cursor::read`].
    pub fn bytes_of(&self, range: Range) -> Result<Vec<u8>, Error> {
        let mut bytes = room(range)?;
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let mut cursor = self.cursor(0)?;
        for (part, place) in self.places(range) {
            if let Some(place) = bytes.get_mut(place) {
                cursor.read(part, place)?;
            }
        }
        Ok(bytes)
    }

    /// What there is of a range, and where it stands in the range.
    fn places(&self, range: Range) -> impl Iterator<Item = (Run, ops::Range<usize>)> {
        self.runs().iter().filter_map(move |run| {
            let part = run.part(range.start, range.end)?;
            let start = usize::try_from(part.address - range.start).ok()?;
            let end = start + usize::try_from(part.bytes).ok()?;
            Some((part, start..end))
        })
    }
}

/// Zeros for a range.
fn room(range: Range) -> Result<Vec<u8>, Error> {
    if range.bytes() > MAX_BYTES {
        return Err(Error::Refused(format!(
            "the checkpoint is damaged: arguments or environment of {} bytes",
            range.bytes()
        )));
    }
    Ok(vec![0; usize::try_from(range.bytes()).unwrap_or_default()])
}

/// Pieces of the memory of many processes: of what is compressed they are read in one pass, where
/// [`Memory::bytes_of`] decompresses all that stands before each of them.
#[derive(Debug, Default)]
pub struct Texts {
    texts: Vec<Vec<u8>>,
    /// By the file of pages that they are in.
    pieces: BTreeMap<String, Vec<Piece>>,
}

/// Where bytes stand in a file of pages, and where they belong.
#[derive(Debug)]
struct Piece {
    offset: u64,
    text: usize,
    place: ops::Range<usize>,
}

impl Texts {
    /// Asks for a range of the memory of a process of the checkpoint, whose parents are not
    /// looked at. Answers its number in what [`Texts::read`] gives.
    ///
    /// # Errors
    ///
    /// As [`Memory::bytes_of`].
    pub fn ask(&mut self, memory: &Memory, range: Range) -> Result<usize, Error> {
        let text = self.texts.len();
        if memory
            .sources
            .iter()
            .all(|source| source.blob.is_seekable())
        {
            self.texts.push(memory.bytes_of(range)?);
            return Ok(text);
        }
        self.texts.push(room(range)?);
        for (part, place) in memory.places(range) {
            let Some(source) = memory.sources.get(part.source) else {
                continue;
            };
            let pieces = self.pieces.entry(source.name.clone()).or_default();
            pieces.push(Piece {
                offset: part.offset,
                text,
                place,
            });
        }
        Ok(text)
    }

    /// The bytes that were asked for; what the images do not have is zero.
    ///
    /// # Errors
    ///
    /// As [`super::Cursor::read`].
    pub fn read(mut self, checkpoint: &source::Source) -> Result<Vec<Vec<u8>>, Error> {
        for pieces in self.pieces.values_mut() {
            pieces.sort_by_key(|piece| piece.offset);
        }
        // Only in strange images two share bytes: the second is left for another pass.
        while !self.pieces.is_empty() {
            let mut wanted = std::mem::take(&mut self.pieces);
            let names: BTreeSet<String> = wanted.keys().cloned().collect();
            checkpoint.visit(
                |entry| names.contains(&entry.name),
                |entry, reader| {
                    let pieces = wanted.remove(&entry.name).unwrap_or_default();
                    let left = self.fill(&entry.name, pieces, reader)?;
                    if !left.is_empty() {
                        self.pieces.insert(entry.name.clone(), left);
                    }
                    Ok::<(), Error>(())
                },
            )?;
        }
        Ok(self.texts)
    }

    /// Reads pieces, in the order of their offsets; answers those that it had passed by.
    fn fill(
        &mut self,
        name: &str,
        pieces: Vec<Piece>,
        reader: &mut dyn Read,
    ) -> Result<Vec<Piece>, Error> {
        let mut left = Vec::new();
        let mut position = 0;
        for piece in pieces {
            let Some(skip) = piece.offset.checked_sub(position) else {
                left.push(piece);
                continue;
            };
            let text = self.texts.get_mut(piece.text);
            let Some(bytes) = text.and_then(|text| text.get_mut(piece.place)) else {
                continue;
            };
            position = piece.offset.saturating_add(bytes.len() as u64);
            let read = io::copy(&mut (&mut *reader).take(skip), &mut io::sink());
            read.and_then(|_| reader.read_exact(bytes))
                .map_err(|error| broken(name, position, error))?;
        }
        Ok(left)
    }
}
