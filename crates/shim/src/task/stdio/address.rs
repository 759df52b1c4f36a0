//! Where a stream goes, as containerd writes it. Pure.
//!
//! A path alone is a fifo. Of the others the path is percent-encoded, and what
//! follows a `#` is for nobody:
//!
//! | address | meaning |
//! |---|---|
//! | `/path`, `fifo:///path` | a fifo |
//! | `file:///path` | a file that output is appended to |
//! | `binary:///path?k=v&l` | a program that takes the output, with the arguments `k v l ""` |
//! | `binary-v2:///path?k=v` | the same, and it says when it is ready |

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::rpc::TaskError;

/// Where a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A fifo of containerd's.
    Fifo(PathBuf),
    /// A file.
    File(PathBuf),
    /// The standard input of a logger.
    Logger(Program),
}

/// A program that takes the output of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// The executable.
    pub(super) path: PathBuf,
    /// The query of its address, keys and values in turn.
    pub(super) args: Vec<OsString>,
    /// It writes a byte when it is ready; before `binary-v2` closing was enough.
    pub(super) says_ready: bool,
}

impl Address {
    /// Takes the address of `stream` apart; `None` if there is no stream at all.
    ///
    /// # Errors
    ///
    /// InvalidArgument for what is no address, Unimplemented for a scheme that
    /// is not known.
    pub(super) fn parse(stream: &str, address: &str) -> Result<Option<Self>, TaskError> {
        if address.is_empty() {
            return Ok(None);
        }
        let wrong = |why: &str| {
            TaskError::InvalidArgument(format!("{stream} to {address:?} is not possible: {why}"))
        };
        let absolute = |path: Vec<u8>| {
            if path.first() == Some(&b'/') {
                Ok(PathBuf::from(OsString::from_vec(path)))
            } else {
                Err(wrong("the path is not absolute"))
            }
        };
        let Some((scheme, rest)) = address.split_once("://") else {
            return absolute(address.into()).map(|path| Some(Self::Fifo(path)));
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let decode =
            |text: &str| decoded(text).ok_or_else(|| wrong("a % wants two hexadecimal digits"));
        let path = absolute(decode(path)?)?;
        Ok(Some(match scheme {
            "fifo" => Self::Fifo(path),
            "file" => Self::File(path),
            "binary" | "binary-v2" => {
                let mut args: Vec<OsString> = Vec::new();
                let mut seen = Vec::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    // Here, and only here, + is a space.
                    let (key, value) = (key.replace('+', " "), value.replace('+', " "));
                    let (key, value) = (decode(&key)?, decode(&value)?);
                    // Of a key's values the first counts.
                    if !seen.contains(&key) {
                        seen.push(key.clone());
                        args.push(OsString::from_vec(key));
                        args.push(OsString::from_vec(value));
                    }
                }
                Self::Logger(Program {
                    path,
                    args,
                    says_ready: scheme == "binary-v2",
                })
            }
            other => {
                return Err(TaskError::Unimplemented(format!(
                    "{stream} to {other}:// is not known to cryo: use a fifo, file://, binary:// or binary-v2://"
                )));
            }
        }))
    }
}

/// A percent-encoded text as bytes; `None` when it is none.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            u8::try_from(high * 16 + low).ok()?
        } else {
            byte
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(address: &str) -> Option<Address> {
        Address::parse("stdout", address).unwrap()
    }

    fn logger(path: &str, args: &[&str], says_ready: bool) -> Option<Address> {
        Some(Address::Logger(Program {
            path: path.into(),
            args: args.iter().map(Into::into).collect(),
            says_ready,
        }))
    }

    #[test]
    fn schemes() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("/a b%20"), Some(Address::Fifo("/a b%20".into())));
        assert_eq!(parse("fifo:///a"), Some(Address::Fifo("/a".into())));
        assert_eq!(
            parse("file:///a%20b?x#y"),
            Some(Address::File("/a b".into()))
        );
        assert_eq!(parse("binary:///bin/log"), logger("/bin/log", &[], false));
        assert_eq!(parse("binary-v2:///l"), logger("/l", &[], true));
    }

    #[test]
    fn the_query_becomes_arguments_in_its_order() {
        for (query, args) in [
            ("b=1&a=2", vec!["b", "1", "a", "2"]),
            ("flag", vec!["flag", ""]),
            ("&&k=", vec!["k", ""]),
            ("k=a=b", vec!["k", "a=b"]),
            ("k=1&k=2", vec!["k", "1"]),
            ("k=a+b%2Bc%26d", vec!["k", "a b+c&d"]),
        ] {
            let address = format!("binary:///l?{query}");
            assert_eq!(parse(&address), logger("/l", &args, false), "{query}");
        }
    }

    #[test]
    fn wrong_ones_are_named() {
        for wrong in [
            "a/b",
            "file://a/b",
            "file:///a%2",
            "binary:///l?%zz",
            "fifo://",
        ] {
            let error = Address::parse("stderr", wrong).unwrap_err();
            assert!(
                matches!(&error, TaskError::InvalidArgument(t) if t.contains("stderr") && t.contains(wrong)),
                "{error}"
            );
        }
        let error = Address::parse("stdout", "ttrpc+unix:///s").unwrap_err();
        assert!(
            matches!(&error, TaskError::Unimplemented(t) if t.contains("ttrpc+unix://")),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "(fifo|file|binary|binary-v2)://.{0,30}|.{0,30}") {
            let _ = Address::parse("stdin", &text);
        }
    }
}
