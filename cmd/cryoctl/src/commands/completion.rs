//! `cryoctl completion`.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cryoctl;
use crate::failure::Failure;

/// Print the completion script for a shell.
///
/// For bash, say: source <(cryoctl completion bash)
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Completion {
    /// The shell.
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        let name = super::Dialect::of(std::env::args_os().next().as_deref()).name();
        clap_complete::generate(self.shell, &mut Cryoctl::command(), name, &mut script);
        io::stdout().write_all(&script)?;
        Ok(())
    }
}
