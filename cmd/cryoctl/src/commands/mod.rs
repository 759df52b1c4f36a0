//! The command line. Each subcommand is a file of its own, and its arguments are its manual.

mod build;
mod check;
mod checkpoint;
mod completion;
mod convert;
mod core;
mod dialect;
mod diff;
mod doctor;
mod failures;
mod inspect;
mod install;
mod list;
mod man;
mod memparse;
mod node_info;
mod plugin;
mod ps;
mod pull;
mod push;
mod restore;
mod show;
mod summary;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use self::dialect::Dialect;
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
    Show(show::Show),
    Inspect(inspect::Inspect),
    Diff(diff::Diff),
    List(list::List),
    Summary(summary::Summary),
    Build(Box<build::Build>),
    Push(push::Push),
    Pull(pull::Pull),
    Convert(convert::Convert),
    Check(check::Check),
    Checkpoint(Box<checkpoint::Checkpoint>),
    Doctor(doctor::Doctor),
    Failures(failures::Failures),
    Core(core::Core),
    Memparse(memparse::Memparse),
    Plugin(plugin::Plugin),
    Install(install::Install),
    NodeInfo(node_info::NodeInfo),
    Ps(ps::Ps),
    Restore(Box<restore::Restore>),
    Uninstall(install::Uninstall),
    Verify(verify::Verify),
    Completion(completion::Completion),
    Man(man::Man),
}

/// Runs the command of a command line, which may be that of checkpointctl: whoever calls us by
/// that name gets its form of errors and its exit codes.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let dialect = Dialect::of(arguments.first().map(OsString::as_os_str));
    let mut command = dialect.command(Cryoctl::command());
    let parsed = command
        .try_get_matches_from_mut(&arguments)
        .and_then(|matches| Cryoctl::from_arg_matches(&matches));
    match parsed {
        Ok(cryoctl) => match cryoctl.run() {
            Ok(code) => code,
            Err(failure) => failure.report(dialect),
        },
        Err(error) => {
            if let (ErrorKind::InvalidSubcommand, [_, name, rest @ ..]) =
                (error.kind(), arguments.as_slice())
                && command.find_subcommand(name).is_none()
                && let Err(failure) = plugin::run_external(name, rest)
            {
                return failure.report(dialect);
            }
            dialect.usage(&error)
        }
    }
}

impl Cryoctl {
    /// Runs the command that was asked for.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Check(command) => return command.run(),
            Command::Show(command) => command.run(),
            Command::Inspect(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::List(command) => command.run(),
            Command::Checkpoint(command) => return command.run(),
            Command::Summary(command) => command.run(),
            Command::Build(command) => command.run(),
            Command::Push(command) => command.run(),
            Command::Pull(command) => command.run(),
            Command::Convert(command) => command.run(),
            Command::Doctor(command) => return command.run(),
            Command::Failures(command) => command.run(),
            Command::Core(command) => command.run(),
            Command::Memparse(command) => command.run(),
            Command::Plugin(command) => command.run(),
            Command::Install(command) => return command.run(),
            Command::NodeInfo(command) => command.run(),
            Command::Uninstall(command) => return command.run(),
            Command::Verify(command) => return command.run(),
            Command::Ps(command) => command.run(),
            Command::Restore(command) => return command.run(),
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
