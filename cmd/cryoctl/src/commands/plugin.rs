//! `cryoctl plugin`, and external commands: executables in PATH named after us.

use std::collections::HashSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, CommandFactory, Subcommand};

use super::Cryoctl;
use crate::failure::Failure;
use crate::text::printable;

/// What executables are called, with the command's name behind it; ours come first.
const PREFIXES: [&str; 2] = ["cryoctl-", "checkpointctl-"];

/// With this argument a plugin says what it does…
const DESCRIPTION_FLAG: &str = "--plugin-description";
/// …in this time…
const DESCRIPTION_TIME: Duration = Duration::from_millis(500);
/// …and ends with this code.
const DESCRIPTION_CODE: i32 = 42;

/// Longest description that is read.
const MAX_DESCRIPTION_BYTES: u64 = 4096;

/// List external commands.
///
/// An executable cryoctl-NAME or checkpointctl-NAME in PATH is the command NAME: what comes behind
/// the name is given to it as it stands. The first in PATH counts; a command of cryoctl's own
/// comes before all.
#[derive(Debug, Args)]
pub(super) struct Plugin {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the external commands in PATH.
    ///
    /// Each is run with --plugin-description; what it prints within half a second is shown if it
    /// ends with the code 42.
    List,
}

impl Plugin {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Action::List = self.command;
        let found = discover(&env::var_os("PATH").unwrap_or_default());
        let own = Cryoctl::command();
        let mut text = match found.is_empty() {
            true => "No plugins found in PATH\n".to_owned(),
            false => "Available plugins:\n".to_owned(),
        };
        for (name, path) in found {
            let description = match description(&path) {
                _ if own.find_subcommand(&name).is_some() => {
                    "(not used: a built-in command has this name)".to_owned()
                }
                Some(text) => printable(&text).into_owned(),
                None => "(no description)".to_owned(),
            };
            let shown = path.display().to_string();
            text.push_str(&format!("  {:<20} {description}\n", printable(&name)));
            text.push_str(&format!("  {:<20} {}\n", "", printable(&shown)));
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Becomes the external command of this name; comes back only if there is none.
///
/// # Errors
///
/// It cannot be run.
pub(crate) fn run_external(name: &OsStr, arguments: &[OsString]) -> Result<(), Failure> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = name.to_str().and_then(|name| find(&path, name));
    let Some(found) = found else {
        return Ok(());
    };
    let error = Command::new(&found).args(arguments).exec();
    let what = format!("{} cannot be run", found.display());
    Err(anyhow::Error::from(error).context(what).into())
}

fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    directories(path).find_map(|directory| find_in(&directory, name))
}

fn find_in(directory: &Path, name: &str) -> Option<PathBuf> {
    PREFIXES
        .iter()
        .map(|prefix| directory.join(format!("{prefix}{name}")))
        .find(|file| is_executable(file))
}

/// All external commands with what is run for them: as they stand in PATH, each directory's by name.
fn discover(path: &OsStr) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut seen = HashSet::new();
    for directory in directories(path) {
        let files = fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = files
            .filter_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let name = PREFIXES.iter().find_map(|prefix| file.strip_prefix(prefix));
                name.map(str::to_owned)
            })
            .collect();
        names.sort_unstable();
        for name in names {
            let Some(file) = find_in(&directory, &name).filter(|_| !seen.contains(&name)) else {
                continue;
            };
            seen.insert(name.clone());
            found.push((name, file));
        }
    }
    found
}

/// Of PATH, save empty ones: the working directory is nobody's choice.
fn directories(path: &OsStr) -> impl Iterator<Item = PathBuf> {
    env::split_paths(path).filter(|directory| !directory.as_os_str().is_empty())
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The first line of what a plugin says of itself.
fn description(path: &Path) -> Option<String> {
    let deadline = Instant::now() + DESCRIPTION_TIME;
    let mut child = Command::new(path)
        .arg(DESCRIPTION_FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    // Not waited for: what the plugin has started may hold its end of the pipe for long.
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(MAX_DESCRIPTION_BYTES).read_to_end(&mut bytes);
        let _ = sender.send(read.map(|_| bytes));
    });
    let left = deadline.saturating_duration_since(Instant::now());
    let bytes = receiver.recv_timeout(left);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
            _ => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let text = String::from_utf8_lossy(&bytes.ok()?.ok()?)
        .trim()
        .to_owned();
    let first = text.lines().next()?.to_owned();
    (status?.code() == Some(DESCRIPTION_CODE)).then_some(first)
}
