//! `/etc/cryo/config.toml`: what the node's owner decides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::{Spanned, Value};

use crate::options::{Checkpoint, Layer, Raw, Restore, Source, Table};

/// Where the configuration is. Every key is optional, and so is the file.
pub const PATH: &str = "/etc/cryo/config.toml";

/// How long the client of a checkpoint may take to resume what it paused, if nothing is said.
pub const RESUME_WITHIN: Duration = Duration::from_secs(60 * 60);

/// The key of [`Config::resume_within`].
const RESUME_WITHIN_KEY: &str = "resume-within";

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It says what it cannot say.
    #[error("{}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, the key, and what is wrong with it.
        what: String,
    },
}

/// The node's configuration, read afresh for each operation.
#[derive(Debug)]
pub struct Config {
    /// `[criu]`
    pub criu: CriuConfig,
    /// `[checkpoint]`
    pub checkpoint: Layer<Checkpoint>,
    /// `resume-within` in `[checkpoint]`, from the end of a checkpoint to the Resume of the client
    /// that paused for it; `None` is for ever. Not an option: what a container or a client may
    /// say does not bind the node to stand by one that is gone.
    pub resume_within: Option<Duration>,
    /// `[restore]`
    pub restore: Layer<Restore>,
}

/// `[criu]`: the program that freezes and wakes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriuConfig {
    /// The executable; by default the first of the usual places.
    pub path: Option<PathBuf>,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    criu: CriuConfig,
    checkpoint: Section,
    restore: Section,
}

/// Options by name, for the table of options to judge.
type Section = BTreeMap<String, Spanned<Value>>;

impl Config {
    /// Reads the configuration; a missing file is an empty one.
    ///
    /// # Errors
    ///
    /// [`Error`] when it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(Error::Unreadable {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(&text).map_err(|what| Error::Wrong {
            path: path.to_owned(),
            what,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut written: Written = toml::from_str(text).map_err(|e| e.to_string())?;
        let resume_within = match written.checkpoint.remove(RESUME_WITHIN_KEY) {
            None => Some(RESUME_WITHIN),
            Some(value) => span(value.get_ref()).ok_or_else(|| {
                let line = line_of(&value, text);
                format!(
                    "line {line}: [checkpoint] {RESUME_WITHIN_KEY}: {} is not a value of it: it is seconds, a time as \"90s\", \"15m\" or \"1h\" of 1000 days at most, or \"never\"",
                    raw(value.get_ref())
                )
            })?,
        };
        Ok(Self {
            criu: written.criu,
            resume_within,
            checkpoint: layer(&written.checkpoint, text)?,
            restore: layer(&written.restore, text)?,
        })
    }
}

fn layer<T: Table>(section: &Section, text: &str) -> Result<Layer<T>, String> {
    let mut layer = Layer::new(Source::Node);
    for (name, value) in section {
        layer
            .put(name, raw(value.get_ref()))
            .map_err(|e| format!("line {}: {e}", line_of(value, text)))?;
    }
    Ok(layer)
}

fn raw(value: &Value) -> Raw<'_> {
    match value {
        Value::String(text) => Raw::Text(text),
        Value::Boolean(on) => Raw::Bool(*on),
        Value::Integer(number) => Raw::Integer(*number),
        other => Raw::Other(other.type_str()),
    }
}

fn line_of(value: &Spanned<Value>, text: &str) -> usize {
    let before = text.get(..value.span().start).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// A time; 0 and `never` are without an end. `None` if it is none.
#[expect(clippy::option_option, reason = "not a time, no end, this long")]
fn span(value: &Value) -> Option<Option<Duration>> {
    let seconds = match value {
        Value::Integer(seconds) => u64::try_from(*seconds).ok()?,
        Value::String(text) if text == "never" => 0,
        Value::String(text) => {
            let (digits, factor) = match text.char_indices().next_back()? {
                (at, 's') => (text.get(..at)?, 1),
                (at, 'm') => (text.get(..at)?, 60),
                (at, 'h') => (text.get(..at)?, 60 * 60),
                _ => (&**text, 1),
            };
            // `parse` alone would take "+1".
            if !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            digits.parse::<u64>().ok()?.checked_mul(factor)?
        }
        _ => return None,
    };
    match seconds {
        0 => Some(None),
        1..=86_400_000 => Some(Some(Duration::from_secs(seconds))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::options::resolve;
    use crate::{Probe, Version};

    use super::*;

    fn criu() -> Probe {
        Probe::new(Version::new(4, 2, 1))
    }

    #[test]
    fn every_key_is_optional_and_unknown_ones_are_named() {
        let empty = Config::parse("").unwrap();
        assert_eq!(empty.criu, CriuConfig::default());
        let values: Checkpoint = resolve(&[&empty.checkpoint], &criu()).unwrap();
        assert_eq!(values, Checkpoint::default());
        let values: Restore = resolve(&[&empty.restore], &criu()).unwrap();
        assert_eq!(values, Restore::default());

        let config = Config::parse("[criu]\npath = \"/opt/criu\"\n").unwrap();
        assert_eq!(config.criu.path.as_deref(), Some(Path::new("/opt/criu")));
        for unknown in ["[criu]\npaht = \"/opt/criu\"\n", "[chekpoint]\n"] {
            let error = Config::parse(unknown).unwrap_err();
            assert!(
                error.contains("line 2") || error.contains("line 1"),
                "{error}"
            );
            assert!(
                error.contains("paht") || error.contains("chekpoint"),
                "{error}"
            );
        }
    }

    #[test]
    fn options_are_judged_by_their_table_with_the_line() {
        let text = "[checkpoint]\ntcp-established = true\nghost-limit = \"16M\"\ntimeout = 9\npage-server = \"[::1]:9\"\n\n[restore]\nlsm-profile = \"apparmor:p\"\n";
        let config = Config::parse(text).unwrap();
        let values = resolve(&[&config.checkpoint], &criu()).unwrap();
        assert!(values.tcp_established);
        assert_eq!(values.ghost_limit_bytes, Some(16 << 20));
        assert_eq!(values.timeout_s, 9);
        assert!(values.page_server.is_some());
        let values = resolve(&[&config.restore], &criu()).unwrap();
        assert_eq!(values.lsm_profile.as_deref(), Some("apparmor:p"));

        for (line, key, value) in [
            ("line 3", "ghost-limt", "1"),
            ("line 3", "ghost-limit", "\"many\""),
            ("line 3", "ghost-limit", "1.5"),
            ("line 3", "timeout", "[1]"),
            ("line 3", "parent-path", "\"../a\""),
            ("line 3", "config-file", "\"/etc/criu/runc.conf\""),
        ] {
            let text = format!("[checkpoint]\nfile-locks = true\n{key} = {value}\n");
            let error = Config::parse(&text).unwrap_err();
            assert!(error.starts_with(line) && error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_client_has_a_time_to_resume() {
        let within = |value: &str| {
            let text = format!("[checkpoint]\nfile-locks = true\nresume-within = {value}\n");
            Config::parse(&text).map(|config| config.resume_within)
        };
        assert_eq!(
            Config::parse("").unwrap().resume_within,
            Some(RESUME_WITHIN)
        );
        for (value, seconds) in [
            ("90", 90),
            ("\"90\"", 90),
            ("\"90s\"", 90),
            ("\"15m\"", 900),
            ("\"1h\"", 3600),
        ] {
            let wanted = Some(Duration::from_secs(seconds));
            assert_eq!(within(value).unwrap(), wanted, "{value}");
        }
        for never in ["0", "\"0\"", "\"never\"", "\"0h\""] {
            assert_eq!(within(never).unwrap(), None, "{never}");
        }
        for wrong in [
            "true",
            "-1",
            "1.5",
            "\"\"",
            "\"h\"",
            "\"1d\"",
            "\"+1s\"",
            "\"1 h\"",
            "\"ü\"",
            "\"99999999999999999999h\"",
            "\"24001h\"",
        ] {
            let error = within(wrong).unwrap_err();
            assert!(
                error.starts_with("line 3") && error.contains("resume-within"),
                "{error}"
            );
        }
        // It is no option.
        let elsewhere = Config::parse("[restore]\nresume-within = 1\n").unwrap_err();
        assert!(elsewhere.contains("resume-within"), "{elsewhere}");
    }

    #[test]
    fn a_missing_file_is_an_empty_one() {
        let config = Config::load(Path::new("/nonexistent/x")).unwrap();
        assert_eq!(config.criu, CriuConfig::default());
    }
}
