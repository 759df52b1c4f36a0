//! `cryoctl doctor`.

mod containerd;
mod kubelet;
mod node;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Format;
use crate::containerd::Socket;
use crate::failure::Failure;
use crate::finding::{self, Finding};
use crate::text;

/// Say whether this node can checkpoint and restore, and what to do where it cannot.
///
/// Looks at criu, the kernel, cgroups, containerd with its configuration as it runs, the shim, the kubelet and
/// the disks, and changes nothing. An error means that checkpoints or restores do not work, a
/// warning that some do not. Needs root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Doctor {
    #[command(flatten)]
    socket: Socket,

    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  no errors; there may be warnings
  1  there are errors; stdout says what, and what to do
  2  the command line is wrong";

impl Doctor {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let mut all = Vec::new();
        node::look(&mut all);
        containerd::look(&self.socket, &mut all);
        kubelet::look(&mut all);
        let text = match self.format {
            Format::Text => finding::render(&all),
            Format::Json => text::pretty(&json!({
                "healthy": !finding::any_error(&all),
                "findings": all,
            }))?,
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::from(u8::from(finding::any_error(&all))))
    }
}

/// The first of a path list's directories that has this program.
fn in_path(path: &str, program: &str) -> Option<std::path::PathBuf> {
    path.split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| std::path::Path::new(dir).join(program))
        .find(|file| is_program(file))
}

fn is_program(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A program of this node is owned by root, and nobody else may write it: it runs as root.
fn judge_program(name: &'static str, file: &std::path::Path, all: &mut Vec<Finding>) {
    use std::os::unix::fs::MetadataExt as _;
    if let Ok(meta) = file.metadata()
        && (meta.uid() != 0 || meta.mode() & 0o022 != 0)
    {
        all.push(Finding::warning(
            name,
            format!("{} can be changed by others than root", file.display()),
            format!("chown root:root {0}; chmod 755 {0}", file.display()),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_containerd_finds_them() {
        assert_eq!(
            in_path("/nonexistent:bin:/bin", "sh").unwrap(),
            std::path::PathBuf::from("/bin/sh")
        );
        assert_eq!(in_path("/nonexistent::", "sh"), None);
        assert_eq!(in_path("/etc", "passwd"), None);
    }
}
