//! `/etc/cryo/config.toml`: what the node's owner decides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use crate::options::{Checkpoint, Layer, Raw, Restore, Source, Table};

/// Where the configuration is. Every key is optional, and so is the file.
pub const PATH: &str = "/etc/cryo/config.toml";

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
        let written: Written = toml::from_str(text).map_err(|e| e.to_string())?;
        Ok(Self {
            criu: written.criu,
            checkpoint: layer(&written.checkpoint, text)?,
            restore: layer(&written.restore, text)?,
        })
    }
}

fn layer<T: Table>(section: &Section, text: &str) -> Result<Layer<T>, String> {
    let mut layer = Layer::new(Source::Node);
    for (name, value) in section {
        let raw = match value.get_ref() {
            Value::String(text) => Raw::Text(text),
            Value::Boolean(on) => Raw::Bool(*on),
            Value::Integer(number) => Raw::Integer(*number),
            other => Raw::Other(other.type_str()),
        };
        layer.put(name, raw).map_err(|e| {
            let before = text.get(..value.span().start).unwrap_or(text);
            format!("line {}: {e}", before.matches('\n').count() + 1)
        })?;
    }
    Ok(layer)
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
    fn a_missing_file_is_an_empty_one() {
        let config = Config::load(Path::new("/nonexistent/x")).unwrap();
        assert_eq!(config.criu, CriuConfig::default());
    }
}
