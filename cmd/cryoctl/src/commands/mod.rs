//! The command line. Each subcommand is a file of its own, and its arguments are its manual.

mod check;
mod completion;
mod core;
mod failures;
mod man;
mod memparse;
mod summary;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::failure::Failure;

/// Read checkpoints of containers, check what can be checkpointed, and see what failed.
///
/// A checkpoint is an archive as containerd's CRI, CRI-O and Podman write it, the same unpacked,
/// or an image directory as `ctr task checkpoint --image-path` writes it.
#[derive(Debug, Parser)]
#[command(
    name = "cryoctl",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub(crate) struct Cryoctl {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  it was done
  1  what was asked for is damaged, incomplete, unsafe or cannot be read; stderr says why
  2  the command line is wrong";

#[derive(Debug, Subcommand)]
enum Command {
    Summary(summary::Summary),
    Check(check::Check),
    Failures(failures::Failures),
    Core(core::Core),
    Memparse(memparse::Memparse),
    Completion(completion::Completion),
    Man(man::Man),
}

impl Cryoctl {
    /// Runs the command that was asked for.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Check(command) => return command.run(),
            Command::Summary(command) => command.run(),
            Command::Failures(command) => command.run(),
            Command::Core(command) => command.run(),
            Command::Memparse(command) => command.run(),
            Command::Completion(command) => command.run(),
            Command::Man(command) => command.run(),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cryoctl::command().debug_assert();
    }
}
