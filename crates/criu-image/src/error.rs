use std::io;

use crate::Kind;

/// Why an image file could not be read or written.
///
/// Every variant names the file and, where there is one, the offset of the byte at which the
/// entry in question begins.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing failed.
    #[error("{file}: i/o error at offset {offset}")]
    Io {
        /// The file as the caller named it.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file ends inside a magic, a length or a message.
    #[error("{file}: truncated at offset {offset}: {wanted} bytes expected, {found} left")]
    Truncated {
        /// The file as the caller named it.
        file: String,
        /// Where the missing bytes should begin.
        offset: u64,
        /// How many were needed.
        wanted: u64,
        /// How many there were.
        found: u64,
    },
    /// The file is not an image of the kind that was expected.
    #[error(
        "{file}: not an image of kind {kind}: magic {found:#010x} at offset {offset}, expected {expected:#010x}"
    )]
    BadMagic {
        /// The file as the caller named it.
        file: String,
        /// Where the magic stands.
        offset: u64,
        /// The kind that was expected.
        kind: Kind,
        /// The magic of that kind.
        expected: u32,
        /// What was found.
        found: u32,
    },
    /// The kind has raw bytes between or instead of its messages.
    #[error("{file}: images of kind {kind} are not sequences of messages")]
    RawPayload {
        /// The file as the caller named it.
        file: String,
        /// The kind.
        kind: Kind,
    },
    /// A message is longer than any sane one of its kind.
    #[error("{file}: message of {length} bytes at offset {offset}: more than the limit of {limit}")]
    EntryTooLarge {
        /// The file as the caller named it.
        file: String,
        /// Where the entry begins.
        offset: u64,
        /// Its length as stated.
        length: u64,
        /// [`crate::Limits::entry_bytes`].
        limit: u64,
    },
    /// There are more messages, or more bytes of them, than any sane image of the kind has.
    #[error("{file}: too large at offset {offset}: more than {limit} {unit}")]
    ImageTooLarge {
        /// The file as the caller named it.
        file: String,
        /// Where the entry that was one too many begins.
        offset: u64,
        /// [`crate::Limits::entries`] or [`crate::Limits::total_bytes`].
        limit: u64,
        /// `entries` or `bytes`.
        unit: &'static str,
    },
    /// The bytes are not the protobuf message of this kind.
    #[error("{file}: undecodable message at offset {offset}")]
    Undecodable {
        /// The file as the caller named it.
        file: String,
        /// Where the entry begins.
        offset: u64,
        /// What the decoder objects to.
        source: prost::DecodeError,
    },
    /// A field that CRIU always writes is absent.
    #[error("{file}: message at offset {offset} lacks its field {field}")]
    MissingField {
        /// The file as the caller named it.
        file: String,
        /// Where the entry begins.
        offset: u64,
        /// The field's name.
        field: &'static str,
    },
    /// A field has a value that CRIU never writes.
    #[error("{file}: message at offset {offset}: field {field} has the impossible value {value}")]
    BadValue {
        /// The file as the caller named it.
        file: String,
        /// Where the entry begins.
        offset: u64,
        /// The field's name.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// The image says what this version does not know how to read.
    #[error("{file}: message at offset {offset} has fields that are not known here: {what}")]
    Newer {
        /// The file as the caller named it.
        file: String,
        /// Where the entry begins.
        offset: u64,
        /// What they may be.
        what: &'static str,
    },
    /// The file holds fewer or more messages than images of its kind do.
    #[error("{file}: {problem} at offset {offset}")]
    WrongCount {
        /// The file as the caller named it.
        file: String,
        /// Where the surplus entry begins, or the file ends.
        offset: u64,
        /// What is missing or in excess.
        problem: &'static str,
    },
}

impl Error {
    /// The file the error is about, as the caller named it.
    pub fn file(&self) -> &str {
        match self {
            Self::Io { file, .. }
            | Self::Truncated { file, .. }
            | Self::BadMagic { file, .. }
            | Self::RawPayload { file, .. }
            | Self::EntryTooLarge { file, .. }
            | Self::ImageTooLarge { file, .. }
            | Self::Undecodable { file, .. }
            | Self::MissingField { file, .. }
            | Self::BadValue { file, .. }
            | Self::Newer { file, .. }
            | Self::WrongCount { file, .. } => file,
        }
    }
}
