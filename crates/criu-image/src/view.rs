//! From messages to views.

use std::fmt::{self, Display};
use std::io::Read;
use std::marker::PhantomData;

use prost::Message;

use crate::{Error, Kind, RawReader};

/// A view of one message: what is left of it once it was checked.
pub trait View: Sized {
    /// The message it is made from.
    type Wire: Message + Default;

    /// The kind of image such messages stand in.
    const KIND: Kind;

    /// Checks the message. `at` says where it stands and makes the errors.
    ///
    /// # Errors
    ///
    /// [`Error::MissingField`], [`Error::BadValue`].
    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error>;
}

/// Where a message stands: the file as its reader named it, and the offset of the entry.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The file.
    pub file: &'a str,
    /// The offset of the entry in it.
    pub offset: u64,
}

impl At<'_> {
    /// The value of a field that CRIU requires.
    ///
    /// # Errors
    ///
    /// [`Error::MissingField`] if it is absent.
    pub fn need<T>(self, value: Option<T>, field: &'static str) -> Result<T, Error> {
        value.ok_or_else(|| Error::MissingField {
            file: self.file.to_owned(),
            offset: self.offset,
            field,
        })
    }

    /// The error for a field with a value that makes no sense.
    pub fn bad_value(self, field: &'static str, value: impl Display) -> Error {
        Error::BadValue {
            file: self.file.to_owned(),
            offset: self.offset,
            field,
            value: value.to_string(),
        }
    }

    pub(crate) fn decode<M: Message + Default>(self, bytes: &[u8]) -> Result<M, Error> {
        M::decode(bytes).map_err(|source| Error::Undecodable {
            file: self.file.to_owned(),
            offset: self.offset,
            source,
        })
    }
}

/// The views of an image, in order. Yields nothing after an error.
pub struct Reader<V, R> {
    raw: RawReader<R>,
    failed: bool,
    view: PhantomData<fn() -> V>,
}

impl<V, R: fmt::Debug> fmt::Debug for Reader<V, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("raw", &self.raw)
            .finish_non_exhaustive()
    }
}

impl<V: View, R: Read> Reader<V, R> {
    /// Checks the magic; `file` is how errors name the image.
    ///
    /// # Errors
    ///
    /// As [`RawReader::new`].
    pub fn new(file: impl Into<String>, inner: R) -> Result<Self, Error> {
        Ok(Self {
            raw: RawReader::new(file, V::KIND, inner)?,
            failed: false,
            view: PhantomData,
        })
    }

    /// The one message of an image that has exactly one.
    ///
    /// # Errors
    ///
    /// [`Error::WrongCount`] if there is none or another one, and whatever reading says.
    pub fn single(mut self) -> Result<V, Error> {
        let first = self.raw.next_view()?;
        let end = self.raw.offset();
        let problem = match first {
            None => "no message",
            Some(view) => match self.raw.next_entry() {
                Ok(None) => return Ok(view),
                Ok(Some(_)) | Err(Error::ImageTooLarge { .. }) => {
                    "a second message where one is expected"
                }
                Err(error) => return Err(error),
            },
        };
        Err(Error::WrongCount {
            file: self.raw.file().to_owned(),
            offset: end,
            problem,
        })
    }

    /// Where the next message begins.
    pub fn offset(&self) -> u64 {
        self.raw.offset()
    }
}

impl<V: View, R: Read> Iterator for Reader<V, R> {
    type Item = Result<V, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let result = self.raw.next_view().transpose();
        self.failed = matches!(result, Some(Err(_)));
        result
    }
}
