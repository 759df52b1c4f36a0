//! Whose command line it is: cryoctl's own, or that of checkpointctl.
//!
//! checkpointctl's is cobra's and pflag's: what they take and ours does not is added here, and what
//! is wrong is said in their words, which scripts compare.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use crate::failure::Failure;

/// Whose errors and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `error: …`, a hint, 2 for a wrong command line.
    Cryoctl,
    /// `Error: …` on one line, 1 for all.
    Checkpointctl,
}

impl Dialect {
    /// That of a program called by this path.
    pub(super) fn of(path: Option<&OsStr>) -> Self {
        match path.and_then(|path| Path::new(path).file_name()) {
            Some(name) if name == Self::Checkpointctl.name() => Self::Checkpointctl,
            _ => Self::Cryoctl,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cryoctl => "cryoctl",
            Self::Checkpointctl => "checkpointctl",
        }
    }

    /// The command line as it is taken by this name.
    pub(super) fn command(self, command: Command) -> Command {
        let command = command.name(self.name());
        if self == Self::Cryoctl {
            return command;
        }
        let version = Arg::new("version")
            .short('v')
            .long("version")
            .help("Print version")
            .action(ArgAction::Version);
        command
            .disable_help_subcommand(false)
            .disable_version_flag(true)
            .version(concat!("version ", env!("CARGO_PKG_VERSION")))
            .arg(version)
            .mut_subcommands(|one| one.args_override_self(true).mut_args(switch))
    }

    /// Prints help and version, or what is wrong with the command line.
    pub(super) fn usage(self, error: &clap::Error) -> ExitCode {
        if self == Self::Cryoctl || !error.use_stderr() {
            // Nowhere is left to say that this failed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = io::stdout().write_all(error.to_string().as_bytes());
            return ExitCode::SUCCESS;
        }
        Failure::from(anyhow::anyhow!(what_is_wrong(error))).report(self)
    }
}

/// A switch that takes `=true` and `=false` as well.
fn switch(argument: Arg) -> Arg {
    if !matches!(argument.get_action(), ArgAction::SetTrue) {
        return argument;
    }
    argument
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_parser(boolean)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

/// One line: cobra's for what is not there, else ours.
fn what_is_wrong(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => {
            return format!("unknown flag: {argument}");
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let letter = argument.chars().nth(1).unwrap_or_default();
            return format!("unknown shorthand flag: '{letter}' in {argument}");
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            return format!("unknown command \"{name}\" for \"checkpointctl\"");
        }
        ErrorKind::InvalidValue if argument.starts_with("--format ") => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            return format!("invalid output format: {value}");
        }
        _ => {}
    }
    let text = error.to_string();
    // What is missing stands in the lines below; usage and tips come after an empty one.
    let lines = text.lines().take_while(|line| !line.is_empty());
    let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
