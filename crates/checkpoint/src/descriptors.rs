//! `descriptors.json`: what descriptors 0 to 2 of the container were.
//!
//! runc and crun write it beside CRIU's images and need it at a restore, so whoever wants to be
//! restored by them writes it too. It is a JSON array of three strings as `readlink` of
//! `/proc/PID/fd/N` gives them:
//!
//! ```json
//! ["/dev/null","pipe:[4026]","pipe:[4027]"]
//! ```
//!
//! At a restore CRIU is given the new container's descriptors under the *keys* of the old ones,
//! and whoever held the old ones gets the new: that is how output after a restore arrives in the
//! new log. [`StdioKey`] is one such key.

use std::fmt;

/// Largest `descriptors.json` that is read: three paths of the longest kind, and their quotes.
pub const MAX_BYTES: usize = 16 << 10;

/// Longest entry: the longest path that Linux knows.
const MAX_ENTRY_BYTES: usize = 4096;

/// Why a `descriptors.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is longer than [`MAX_BYTES`].
    #[error("{found} bytes, more than the limit of {MAX_BYTES}")]
    TooLarge {
        /// Its length.
        found: u64,
    },
    /// It is not a JSON array of three strings.
    #[error("not an array of three strings")]
    Malformed(#[source] serde_json::Error),
    /// An entry is empty, too long or holds control characters.
    #[error("entry {index} is not the name of a descriptor")]
    BadEntry {
        /// The descriptor, 0 to 2.
        index: usize,
    },
}

/// What one of the descriptors 0 to 2 is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StdioKey {
    /// A pipe, by its inode number at the dump.
    Pipe(u32),
    /// A unix socket, by its inode number at the dump.
    Socket(u32),
    /// A file by its absolute path in the container: `/dev/null`, a log, `/dev/pts/0`.
    Path(String),
    /// A terminal as CRIU's images have it: device, and device of the file system it lies on.
    Tty {
        /// Packed as in the images.
        rdev: u32,
        /// Packed as in the images.
        dev: u32,
    },
    /// Anything else, e.g. `anon_inode:[eventpoll]`, in the words of `readlink`.
    Other(String),
}

impl StdioKey {
    /// Reads the words of `readlink`; never fails, since [`StdioKey::Other`] takes the rest.
    pub fn parse(text: &str) -> Self {
        let numbered = |prefix| {
            let number: &str = text.strip_prefix(prefix)?.strip_suffix(']')?;
            // One spelling per number, so that a key is equal to what it was made from.
            number
                .parse()
                .ok()
                .filter(|n: &u32| n.to_string() == number)
        };
        if let Some(inode) = numbered("pipe:[") {
            Self::Pipe(inode)
        } else if let Some(inode) = numbered("socket:[") {
            Self::Socket(inode)
        } else if text.starts_with('/') {
            Self::Path(text.to_owned())
        } else {
            Self::Other(text.to_owned())
        }
    }

    /// The key under which CRIU takes a descriptor in its place (`inherit_fd`); `None` for what
    /// cannot be handed over.
    ///
    /// A path is known to CRIU without its leading slash. CRIU opens files by themselves at a
    /// restore, so that for a path the key is needed only to put something else there.
    pub fn inherit_key(&self) -> Option<String> {
        match self {
            Self::Pipe(_) | Self::Socket(_) | Self::Tty { .. } => Some(self.to_string()),
            Self::Path(path) => path
                .strip_prefix('/')
                .filter(|rest| !rest.is_empty())
                .map(str::to_owned),
            Self::Other(_) => None,
        }
    }

    /// Whether the other end lay outside of the container, so that a restore must supply it.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Pipe(_) | Self::Socket(_) | Self::Tty { .. })
    }
}

/// The words of `readlink`, but for terminals: their CRIU key.
impl fmt::Display for StdioKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe(inode) => write!(f, "pipe:[{inode}]"),
            Self::Socket(inode) => write!(f, "socket:[{inode}]"),
            Self::Tty { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            Self::Path(text) | Self::Other(text) => f.write_str(text),
        }
    }
}

/// Descriptors 0 to 2 of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors(pub [StdioKey; 3]);

impl Descriptors {
    /// Reads the file's bytes.
    ///
    /// # Errors
    ///
    /// All of [`Error`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::TooLarge {
                found: bytes.len() as u64,
            });
        }
        let entries: [String; 3] = serde_json::from_slice(bytes).map_err(Error::Malformed)?;
        check(entries.iter().map(String::as_str))?;
        Ok(Self(entries.map(|entry| StdioKey::parse(&entry))))
    }

    /// The file's bytes: one line, no newline at its end, as runc writes it.
    ///
    /// # Errors
    ///
    /// [`Error::BadEntry`] for what [`Descriptors::from_json`] would refuse.
    pub fn to_json(&self) -> Result<String, Error> {
        let entries = self.0.each_ref().map(StdioKey::to_string);
        check(entries.iter().map(String::as_str))?;
        serde_json::to_string(&entries).map_err(Error::Malformed)
    }
}

fn check<'a>(entries: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    for (index, entry) in entries.enumerate() {
        if entry.is_empty() || entry.len() > MAX_ENTRY_BYTES || entry.contains(char::is_control) {
            return Err(Error::BadEntry { index });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden() {
        let json = r#"["/dev/null","pipe:[4026]","socket:[9]"]"#;
        let descriptors = Descriptors::from_json(json.as_bytes()).unwrap();
        assert_eq!(
            descriptors.0,
            [
                StdioKey::Path("/dev/null".into()),
                StdioKey::Pipe(4026),
                StdioKey::Socket(9)
            ]
        );
        assert_eq!(descriptors.to_json().unwrap(), json);
    }

    #[test]
    fn keys() {
        let cases = [
            ("pipe:[1]", Some("pipe:[1]"), true),
            ("pipe:[4294967295]", Some("pipe:[4294967295]"), true),
            ("pipe:[4294967296]", None, false),
            ("pipe:[01]", None, false),
            ("pipe:[+1]", None, false),
            ("pipe:[1", None, false),
            ("socket:[7]", Some("socket:[7]"), true),
            ("/dev/null", Some("dev/null"), false),
            ("/", None, false),
            ("anon_inode:[eventfd]", None, false),
        ];
        for (text, key, stream) in cases {
            let parsed = StdioKey::parse(text);
            assert_eq!(parsed.inherit_key().as_deref(), key, "{text}");
            assert_eq!(parsed.is_stream(), stream, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
        let tty = StdioKey::Tty {
            rdev: 0x8800,
            dev: 0x18,
        };
        assert_eq!(tty.inherit_key().as_deref(), Some("tty[8800:18]"));
    }

    #[test]
    fn refused() {
        let long = format!(r#"["/{}","/b","/c"]"#, "a".repeat(MAX_ENTRY_BYTES));
        let huge = " ".repeat(MAX_BYTES + 1);
        let cases = [
            ("", "not an array of three strings"),
            ("{}", "not an array of three strings"),
            (r#"["a","b"]"#, "not an array of three strings"),
            (r#"["a","b","c","d"]"#, "not an array of three strings"),
            (r#"["a","b",3]"#, "not an array of three strings"),
            (r#"["a","","c"]"#, "entry 1 is not the name of a descriptor"),
            (
                r#"["a","b","/c\u0000d"]"#,
                "entry 2 is not the name of a descriptor",
            ),
            (
                r#"["a","b","/c\nd"]"#,
                "entry 2 is not the name of a descriptor",
            ),
            (&long, "entry 0 is not the name of a descriptor"),
            (&huge, "16385 bytes, more than the limit of 16384"),
        ];
        for (json, expected) in cases {
            let error = Descriptors::from_json(json.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json:.40}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(entries in prop::array::uniform3("[ -~\u{a0}-\u{fff}]{1,40}")) {
            let descriptors = Descriptors(entries.map(|entry| StdioKey::parse(&entry)));
            let json = descriptors.to_json().unwrap();
            prop_assert_eq!(Descriptors::from_json(json.as_bytes()).unwrap(), descriptors);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Descriptors::from_json(&bytes);
        }

        #[test]
        fn any_text_is_a_key(text in any::<String>()) {
            prop_assert_eq!(StdioKey::parse(&text).to_string(), text);
        }
    }
}
