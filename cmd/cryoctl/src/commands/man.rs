//! `cryoctl man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};

use super::Cryoctl;
use crate::failure::Failure;

/// Write the manual pages into a directory.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory, which must exist.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        clap_mangen::generate_to(Cryoctl::command(), &self.directory).with_context(|| {
            format!(
                "manual pages cannot be written to {}",
                self.directory.display()
            )
        })?;
        Ok(())
    }
}
