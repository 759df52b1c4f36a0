//! Starting the container's program, the last thing its first process does.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::Spec;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As libcontainer's own, but without its demand for a `PATH`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program;

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (path, args) = find(spec).map_err(ExecutorError::Other)?;
        let mut command = Command::new(&path);
        if let Some((name, rest)) = args.split_first() {
            command.arg0(name).args(rest);
        }
        let error = command.exec();
        Err(ExecutorError::Other(format!(
            "cannot execute {}: {error}",
            path.display()
        )))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec)
            .map(drop)
            .map_err(ExecutorValidationError::ArgValidationError)
    }
}

fn find(spec: &Spec) -> Result<(PathBuf, Vec<String>), String> {
    let process = spec
        .process()
        .as_ref()
        .ok_or("config.json has no process")?;
    let args = process.args().clone().unwrap_or_default();
    let name = args
        .first()
        .filter(|n| !n.is_empty())
        .ok_or("config.json names no program to run")?;
    let search = process
        .env()
        .iter()
        .flatten()
        .find_map(|e| e.strip_prefix("PATH="));
    Ok((named(name, search)?, args))
}

/// The program that a name means, as `PATH` has it; or why there is none.
pub(crate) fn named(name: &str, search: Option<&str>) -> Result<PathBuf, String> {
    look_up(name, search.unwrap_or(DEFAULT_PATH)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("exec: \"{name}\": executable file not found in $PATH"),
        io::ErrorKind::PermissionDenied => format!("exec: \"{name}\": permission denied"),
        _ => format!("exec: \"{name}\": {e}"),
    })
}

/// The program's file: as named if the name has a slash, else the first in the
/// search path.
fn look_up(name: &str, search: &str) -> io::Result<PathBuf> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return executable(&path).map(|()| path);
    }
    let mut result = Err(io::ErrorKind::NotFound.into());
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            // A later one may be executable.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => result = Err(e),
            Err(_) => {}
        }
    }
    result
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = path.metadata()?;
    if metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_as_a_shell_would() {
        assert!(look_up("sh", DEFAULT_PATH).is_ok());
        assert_eq!(look_up("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        let missing = look_up("no-such-program", DEFAULT_PATH).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let plain = look_up("/etc/passwd", DEFAULT_PATH).unwrap_err();
        assert_eq!(plain.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_missing_path_is_no_error_and_a_missing_program_is_named() {
        let spec = |args: &str| -> Spec {
            serde_json::from_str(&format!(
                r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}},"args":[{args}]}}}}"#
            ))
            .unwrap()
        };
        assert!(find(&spec(r#""sh","-c","x""#)).is_ok());
        assert!(
            find(&spec(r#""nonexist""#))
                .unwrap_err()
                .contains("not found in $PATH")
        );
        assert!(find(&spec("")).unwrap_err().contains("no program"));
    }
}
