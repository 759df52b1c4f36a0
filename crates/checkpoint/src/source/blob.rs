//! Bytes, wherever they lie: a file, a part of one, memory, or what another blob decompresses to.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::flat::{self, FlatDir};

/// Bytes that can be read as often as needed. Implement it to read checkpoints from elsewhere.
pub trait Content: fmt::Debug + Send + Sync {
    /// A reader that begins at `offset`; at the end if that lies behind it.
    ///
    /// # Errors
    ///
    /// Whatever opening says.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;

    /// Whether `open` gets to an offset at once. Otherwise it reads all that stands before.
    fn is_seekable(&self) -> bool {
        true
    }

    /// The file, if the bytes are those of one.
    ///
    /// # Errors
    ///
    /// Whatever opening says.
    fn file(&self) -> io::Result<Option<Arc<File>>> {
        Ok(None)
    }
}

/// A run of bytes of some [`Content`]. Cheap to clone; nothing is open until it is read.
#[derive(Debug, Clone)]
pub struct Blob {
    content: Arc<dyn Content>,
    offset: u64,
    length: u64,
}

/// Where bytes stand in an open file: for `pread` and `mmap`.
#[derive(Debug, Clone)]
pub struct Section {
    /// The file.
    pub file: Arc<File>,
    /// Where they begin.
    pub offset: u64,
    /// How many they are.
    pub length: u64,
}

impl Blob {
    /// The first `length` bytes of a content.
    pub fn new(content: Arc<dyn Content>, length: u64) -> Self {
        Self {
            content,
            offset: 0,
            length,
        }
    }

    /// A whole file.
    ///
    /// # Errors
    ///
    /// Its length cannot be had.
    pub fn from_file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::new(Arc::new(WholeFile(Arc::new(file))), length))
    }

    /// Bytes in memory.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let length = bytes.len() as u64;
        Self::new(Arc::new(Memory(bytes)), length)
    }

    pub(crate) fn of_directory(directory: &Arc<FlatDir>, name: &str, length: u64) -> Self {
        let file = DirectoryFile {
            directory: Arc::clone(directory),
            name: name.to_owned(),
        };
        Self::new(Arc::new(file), length)
    }

    /// A part of it; what lies behind its end is cut off.
    #[must_use]
    pub fn slice(&self, offset: u64, length: u64) -> Self {
        let offset = offset.min(self.length);
        Self {
            content: Arc::clone(&self.content),
            offset: self.offset.saturating_add(offset),
            length: length.min(self.length - offset),
        }
    }

    /// How many bytes it has at most: what decompresses to fewer ends earlier.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads it from its start. Not buffered.
    ///
    /// # Errors
    ///
    /// Whatever opening says.
    pub fn reader(&self) -> io::Result<io::Take<Box<dyn Read + Send>>> {
        Ok(self.content.open(self.offset)?.take(self.length))
    }

    /// Where it stands in a file, unless it has to be decompressed.
    ///
    /// # Errors
    ///
    /// Whatever opening says.
    pub fn section(&self) -> io::Result<Option<Section>> {
        Ok(self.content.file()?.map(|file| Section {
            file,
            offset: self.offset,
            length: self.length,
        }))
    }

    pub(crate) fn is_seekable(&self) -> bool {
        self.content.is_seekable()
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The content from `offset` of the content on, whatever the blob's own bounds are.
    pub(super) fn content_from(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        self.content.open(offset)
    }
}

impl Section {
    /// Reads and seeks within the section, apart from any other reader of the file.
    pub fn reader(&self) -> SectionReader {
        SectionReader {
            section: self.clone(),
            position: 0,
        }
    }
}

/// Reads a [`Section`] by `pread`.
#[derive(Debug)]
pub struct SectionReader {
    section: Section,
    position: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.section.length.saturating_sub(self.position);
        let wanted = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let at = self.section.offset.saturating_add(self.position);
        let read = self.section.file.read_at(buffer, at)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SectionReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.section.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[derive(Debug)]
struct WholeFile(Arc<File>);

impl Content for WholeFile {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(read_file(Arc::clone(&self.0), offset))
    }

    fn file(&self) -> io::Result<Option<Arc<File>>> {
        Ok(Some(Arc::clone(&self.0)))
    }
}

#[derive(Debug)]
struct DirectoryFile {
    directory: Arc<FlatDir>,
    name: String,
}

impl DirectoryFile {
    fn file(&self) -> io::Result<Arc<File>> {
        match self.directory.open_file(&self.name) {
            Ok(file) => Ok(Arc::new(file)),
            Err(flat::Error::Io(error)) => Err(error),
            Err(flat::Error::Foreign(name, what)) => {
                Err(io::Error::other(format!("{name} is now {what}")))
            }
            Err(flat::Error::TooMany(_)) => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Content for DirectoryFile {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(read_file(self.file()?, offset))
    }

    fn file(&self) -> io::Result<Option<Arc<File>>> {
        self.file().map(Some)
    }
}

fn read_file(file: Arc<File>, offset: u64) -> Box<dyn Read + Send> {
    let section = Section {
        file,
        offset,
        length: u64::MAX - offset,
    };
    Box::new(section.reader())
}

#[derive(Debug)]
struct Memory(Arc<[u8]>);

impl Content for Memory {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut reader = io::Cursor::new(Arc::clone(&self.0));
        reader.set_position(offset);
        Ok(Box::new(reader))
    }
}

/// Buffers a blob's reader for those who read a few bytes at a time.
pub(super) fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(32 << 10, reader)
}
