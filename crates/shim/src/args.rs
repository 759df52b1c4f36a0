//! The command line of a shim, in the syntax of Go's `flag` package.
//!
//! containerd writes `-namespace NS -address ADDR -publish-binary BIN -id ID [-debug] start`;
//! people write `--id=x`. Both mean the same: one or two dashes, `-name value` or
//! `-name=value`, booleans take a value only after `=`, the first word that is not a flag ends
//! the flags and names the action. Pure: no environment, no file system.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What the process was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `-h`, `-help`: print [`usage`].
    Help,
    /// `-v`, `-version`: print the version.
    Version,
    /// `-info`: print a `RuntimeInfo` message.
    Info,
    /// `start`: make or find the long-lived shim and print its address.
    Start,
    /// `delete`: clean up after a dead shim.
    Delete,
    /// No action: be the long-lived shim, listening on fd 3.
    Serve,
}

/// The flags that containerd knows; absent ones are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-debug`: log at debug level.
    pub debug: bool,
    /// `-v`, `-version`.
    pub version: bool,
    /// `-info`.
    pub info: bool,
    /// `-namespace`: containerd's namespace of the container.
    pub namespace: String,
    /// `-id`: the container, or the sandbox.
    pub id: String,
    /// `-socket`: path of a socket to serve; cryo serves fd 3 and ignores it.
    pub socket: PathBuf,
    /// `-debug-socket`: accepted and ignored.
    pub debug_socket: PathBuf,
    /// `-bundle`: the bundle, given to `delete` only (elsewhere it is the working directory).
    pub bundle: PathBuf,
    /// `-address`: containerd's gRPC address.
    pub address: String,
    /// `-publish-binary`: containerd's own binary.
    pub publish_binary: PathBuf,
}

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub mode: Mode,
    /// With what.
    pub flags: Flags,
    /// Words after the action, which nobody uses today.
    pub rest: Vec<OsString>,
}

/// Why a command line was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// Not `-name`, for example `---x` or `-=x`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// A flag that no containerd sends.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The last word is a flag that wants a value.
    #[error("flag needs an argument: -{0}")]
    NeedsValue(&'static str),
    /// `-debug=maybe`.
    #[error("invalid boolean value {value:?} for -{flag}: write true or false")]
    Boolean {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// A name, id or address that is not UTF-8.
    #[error("value of -{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// The action needs this flag.
    #[error("{action} needs -{flag}: containerd always passes it")]
    Missing {
        /// The action.
        action: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// Neither `start` nor `delete`.
    #[error("unknown action {0:?}: use start or delete")]
    Action(String),
}

/// The text of `-help`, also shown after a wrong command line.
#[must_use]
pub fn usage() -> &'static str {
    "usage: containerd-shim-cryo-v2 [flags] [start|delete]
containerd runs this program; there is little to do with it by hand.

  -address string         containerd's gRPC address
  -bundle string          path to the bundle (delete only)
  -debug                  log at debug level
  -debug-socket string    accepted for compatibility, not used
  -id string              id of the container or sandbox
  -info                   print what the runtime can do (a RuntimeInfo message) and exit
  -namespace string       containerd namespace of the container
  -publish-binary string  path to containerd's binary
  -socket string          accepted for compatibility, not used
  -v, -version            print the version and exit
"
}

enum Slot<'a> {
    Bool(&'static str, &'a mut bool),
    Text(&'static str, &'a mut String),
    Path(&'static str, &'a mut PathBuf),
}

impl Flags {
    fn slot(&mut self, name: &[u8]) -> Option<Slot<'_>> {
        Some(match name {
            b"debug" => Slot::Bool("debug", &mut self.debug),
            b"v" => Slot::Bool("v", &mut self.version),
            b"version" => Slot::Bool("version", &mut self.version),
            b"info" => Slot::Bool("info", &mut self.info),
            b"namespace" => Slot::Text("namespace", &mut self.namespace),
            b"id" => Slot::Text("id", &mut self.id),
            b"address" => Slot::Text("address", &mut self.address),
            b"socket" => Slot::Path("socket", &mut self.socket),
            b"debug-socket" => Slot::Path("debug-socket", &mut self.debug_socket),
            b"bundle" => Slot::Path("bundle", &mut self.bundle),
            b"publish-binary" => Slot::Path("publish-binary", &mut self.publish_binary),
            _ => return None,
        })
    }
}

/// Parses the words after the program's name.
///
/// # Errors
///
/// [`ArgsError`] for anything Go's `flag` would refuse, an unknown action, or an action without
/// the flags it cannot work without.
pub fn parse<I>(args: I) -> Result<Invocation, ArgsError>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut flags = Flags::default();
    let mut help = false;
    let mut words = args.into_iter().map(Into::into);
    let mut action = None;

    while let Some(word) = words.next() {
        let Some(name) = flag_name(&word)? else {
            // "--" ends the flags and is dropped; any other plain word is the action.
            action = if word == "--" {
                words.next()
            } else {
                Some(word)
            };
            break;
        };
        let (name, value) = split_value(name);
        match flags.slot(name) {
            None if name == b"h" || name == b"help" => {
                help = true;
                break;
            }
            None => return Err(ArgsError::Unknown(lossy(name))),
            Some(Slot::Bool(flag, slot)) => {
                *slot = match value {
                    None => true,
                    Some(text) => parse_bool(text).ok_or_else(|| ArgsError::Boolean {
                        flag,
                        value: lossy(text),
                    })?,
                };
            }
            Some(Slot::Text(flag, slot)) => {
                *slot = take_value(flag, value, &mut words)?
                    .into_string()
                    .map_err(|_| ArgsError::NotUtf8(flag))?;
            }
            Some(Slot::Path(flag, slot)) => {
                *slot = take_value(flag, value, &mut words)?.into();
            }
        }
    }

    let mode = if help {
        Mode::Help
    } else if flags.version {
        Mode::Version
    } else if flags.info {
        Mode::Info
    } else {
        mode_of(action.as_deref(), &flags)?
    };
    Ok(Invocation {
        mode,
        flags,
        rest: words.collect(),
    })
}

fn mode_of(action: Option<&OsStr>, flags: &Flags) -> Result<Mode, ArgsError> {
    let (mode, name) = match action.map(OsStr::as_bytes) {
        None | Some(b"") => (Mode::Serve, "serving"),
        Some(b"start") => (Mode::Start, "start"),
        Some(b"delete") => (Mode::Delete, "delete"),
        Some(other) => return Err(ArgsError::Action(lossy(other))),
    };
    for (flag, value) in [("namespace", &flags.namespace), ("id", &flags.id)] {
        if value.is_empty() {
            return Err(ArgsError::Missing { action: name, flag });
        }
    }
    Ok(mode)
}

/// The word without its dashes, or `None` if it is not a flag.
fn flag_name(word: &OsStr) -> Result<Option<&[u8]>, ArgsError> {
    let bytes = word.as_bytes();
    let name = match bytes {
        b"--" | b"-" => return Ok(None),
        [b'-', b'-', name @ ..] | [b'-', name @ ..] => name,
        _ => return Ok(None),
    };
    if matches!(name.first(), None | Some(b'-' | b'=')) {
        return Err(ArgsError::Syntax(lossy(bytes)));
    }
    Ok(Some(name))
}

fn split_value(name: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut parts = name.splitn(2, |&b| b == b'=');
    (parts.next().unwrap_or_default(), parts.next())
}

fn take_value(
    flag: &'static str,
    value: Option<&[u8]>,
    words: &mut impl Iterator<Item = OsString>,
) -> Result<OsString, ArgsError> {
    match value {
        Some(bytes) => Ok(OsString::from_vec(bytes.to_vec())),
        None => words.next().ok_or(ArgsError::NeedsValue(flag)),
    }
}

fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Some(false),
        _ => None,
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(args: &[&str]) -> Invocation {
        parse(args.iter().copied()).unwrap()
    }

    fn err(args: &[&str]) -> String {
        parse(args.iter().copied()).unwrap_err().to_string()
    }

    #[test]
    fn what_containerd_sends() {
        let start = ok(&[
            "-namespace",
            "k8s.io",
            "-address",
            "/run/containerd/containerd.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "c1",
            "-debug",
            "start",
        ]);
        assert_eq!(start.mode, Mode::Start);
        assert!(start.flags.debug);
        assert_eq!(start.flags.namespace, "k8s.io");
        assert_eq!(start.flags.id, "c1");
        assert_eq!(start.flags.address, "/run/containerd/containerd.sock");
        assert_eq!(
            start.flags.publish_binary,
            PathBuf::from("/usr/bin/containerd")
        );

        let delete = ok(&["-namespace", "n", "-id", "c", "-bundle", "/b", "delete"]);
        assert_eq!(
            (delete.mode, delete.flags.bundle),
            (Mode::Delete, "/b".into())
        );
    }

    #[test]
    fn go_flag_syntax() {
        for form in [
            vec!["-id", "x", "-namespace", "n"],
            vec!["--id", "x", "--namespace=n"],
            vec!["-id=x", "-namespace=n"],
            vec!["-namespace=n", "--id=x", "--"],
        ] {
            let parsed = ok(&form);
            assert_eq!(
                (parsed.mode, parsed.flags.id.as_str()),
                (Mode::Serve, "x"),
                "{form:?}"
            );
        }
        // A value may look like a flag, contain '=', or be empty.
        assert_eq!(ok(&["-namespace=n", "-id", "-x"]).flags.id, "-x");
        assert_eq!(ok(&["-namespace=n", "-id=a=b"]).flags.id, "a=b");
        assert_eq!(ok(&["-v", "-id="]).flags.id, "");
        // The last one wins, booleans take no separate value.
        assert!(
            !ok(&["-debug", "-debug=false", "-namespace=n", "-id=x"])
                .flags
                .debug
        );
        assert!(ok(&["-debug=T", "-namespace=n", "-id=x"]).flags.debug);
        let stops = ok(&["-namespace=n", "-id=x", "start", "-debug"]);
        assert!(!stops.flags.debug, "flags end at the first plain word");
        assert_eq!(stops.rest, ["-debug"]);
        assert_eq!(
            ok(&["-namespace=n", "-id=x", "--", "start"]).mode,
            Mode::Start
        );
    }

    #[test]
    fn modes() {
        assert_eq!(ok(&["-v"]).mode, Mode::Version);
        assert_eq!(ok(&["--version"]).mode, Mode::Version);
        assert_eq!(ok(&["-info"]).mode, Mode::Info);
        assert_eq!(ok(&["-h"]).mode, Mode::Help);
        assert_eq!(ok(&["-debug", "--help", "-nonsense"]).mode, Mode::Help);
    }

    #[test]
    fn refusals() {
        assert_eq!(err(&["-nope"]), "flag provided but not defined: -nope");
        assert_eq!(err(&["-id"]), "flag needs an argument: -id");
        assert_eq!(err(&["---id=x"]), "bad flag syntax: ---id=x");
        assert_eq!(err(&["-=x"]), "bad flag syntax: -=x");
        assert!(err(&["-debug=maybe"]).starts_with("invalid boolean value \"maybe\" for -debug"));
        assert_eq!(
            err(&["-id=x", "start"]),
            "start needs -namespace: containerd always passes it"
        );
        assert!(err(&[]).starts_with("serving needs -namespace"));
        assert!(err(&["-id=x", "-namespace=n", "stop"]).starts_with("unknown action \"stop\""));
        let raw = OsString::from_vec(vec![0xff]);
        assert_eq!(
            parse([OsString::from("-id"), raw.clone()]),
            Err(ArgsError::NotUtf8("id"))
        );
        let bundle = parse([OsString::from("-v"), OsString::from("-bundle"), raw.clone()]);
        assert_eq!(bundle.unwrap().flags.bundle, PathBuf::from(raw));
    }

    proptest! {
        #[test]
        fn never_panics(args in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..8)) {
            let _ = parse(args.into_iter().map(OsString::from_vec));
        }

        #[test]
        fn both_spellings_agree(ns in "[a-z.]{1,12}", id in "[a-zA-Z0-9_.=-]{1,20}", debug: bool) {
            let spaced = ["-namespace", &ns, "-id", &id, if debug { "-debug" } else { "-debug=0" }];
            let glued = [format!("--debug={debug}"), format!("--id={id}"), format!("--namespace={ns}")];
            prop_assert_eq!(parse(spaced).unwrap().flags, parse(glued).unwrap().flags);
        }
    }
}
