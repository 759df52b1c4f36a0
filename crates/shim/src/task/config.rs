//! `/etc/cryo/config.toml`: what the node's owner decides.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::rpc::TaskError;

/// Where the configuration is. Every key is optional, and so is the file.
pub const PATH: &str = "/etc/cryo/config.toml";

/// The node's configuration, read afresh for each operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[criu]`
    pub criu: CriuConfig,
}

/// `[criu]`: the program that freezes and wakes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriuConfig {
    /// The executable; by default the first of the usual places.
    pub path: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration; a missing file is an empty one.
    ///
    /// # Errors
    ///
    /// FailedPrecondition when it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, TaskError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .map_err(|e| TaskError::FailedPrecondition(format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(TaskError::io(
                format_args!("cannot read {}", path.display()),
                &e,
            )),
        }
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional_and_unknown_ones_are_named() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let config = Config::parse("[criu]\npath = \"/opt/criu\"\n").unwrap();
        assert_eq!(config.criu.path.as_deref(), Some(Path::new("/opt/criu")));
        let error = Config::parse("[criu]\npaht = \"/opt/criu\"\n").unwrap_err();
        assert!(error.to_string().contains("paht"), "{error}");
    }

    #[test]
    fn a_missing_file_is_an_empty_one() {
        assert_eq!(
            Config::load(Path::new("/nonexistent/x")).unwrap(),
            Config::default()
        );
    }
}
