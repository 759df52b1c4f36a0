//! Failed checkpoints and restores, as a node keeps them: the form, and how it is read.
//!
//! Each is a pair of files of one stem, `TIME-OPERATION-NAMESPACE-CONTAINER`: a [`Record`]
//! (`.json`) and the log of CRIU (`.log`), if it left one. The time is in milliseconds and of
//! one length, so names sort by age. A record appears whole, after its log.
//!
//! What CRIU says holds names that containers chose, so it is read as hostile input: regular
//! files only, links not followed, sizes bounded.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

/// Where a node keeps them.
pub const DIR: &str = "/var/lib/cryo/failures";

/// How many are kept; the oldest go first.
pub const KEEP: usize = 20;

/// Longer logs keep their end, where the cause is.
pub const MAX_LOG_BYTES: u64 = 1024 * 1024;

/// No record is longer: its writer cuts the texts.
pub const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// The extension of records.
pub const RECORD: &str = "json";

/// The extension of logs.
pub const LOG: &str = "log";

/// Most files that are looked at: far more than there ever are.
const MAX_FILES: usize = 4096;

/// What is known about a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// What failed: `dump` or `restore`; or `resume`, of a client that should have after its dump.
    pub operation: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub container: String,
    /// What was the matter, in one line.
    pub cause: String,
    /// What to do about it, if the cause is known.
    pub remedy: Option<String>,
    /// The error that the client got.
    pub error: String,
    /// The lines of CRIU's log that say something of it, in order.
    #[serde(default)]
    pub lines: Vec<String>,
}

/// A failure that is kept.
#[derive(Debug)]
pub struct Failure {
    /// The stem of its files.
    pub id: String,
    /// What is known.
    pub record: Result<Record, Error>,
}

/// Why something kept cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error("{} cannot be read", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is none of ours.
    #[error("{} is {what}", path.display())]
    Foreign {
        /// What was read.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A record cannot be understood.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// What was read.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

/// What is kept in a directory, the newest first. There is nothing in one that is not there.
///
/// # Errors
///
/// When the directory cannot be read; a record that cannot be is an error of its own.
pub fn list(dir: &Path) -> Result<Vec<Failure>, Error> {
    let failed = |source| Error::Io {
        path: dir.to_owned(),
        source,
    };
    let entries = match dir.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == RECORD)
            && let Some(id) = path.file_stem().and_then(|s| s.to_str())
        {
            ids.push(id.to_owned());
        }
    }
    ids.sort_unstable();
    let failures = ids.into_iter().rev().map(|id| {
        let record = record(&dir.join(format!("{id}.{RECORD}")));
        Failure { id, record }
    });
    Ok(failures.collect())
}

fn record(path: &Path) -> Result<Record, Error> {
    let bytes = read(path, MAX_RECORD_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Damaged {
        path: path.to_owned(),
        source,
    })
}

/// CRIU's log of a failure; `None` if it left none.
///
/// # Errors
///
/// When it cannot be read.
pub fn log(dir: &Path, id: &str) -> Result<Option<Vec<u8>>, Error> {
    match read(&dir.join(format!("{id}.{LOG}")), MAX_LOG_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        log => log.map(Some),
    }
}

/// The whole of a regular file of a bounded size.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let foreign = |what| Error::Foreign {
        path: path.to_owned(),
        what,
    };
    // A fifo would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::LOOP) => return Err(foreign("a symbolic link")),
        file => File::from(file.map_err(|e| failed(e.into()))?),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(foreign("no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(foreign("larger than any of its kind"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn record(container: &str) -> Record {
        Record {
            time: "2026-11-23T14:40:00.000000000Z".into(),
            operation: "dump".into(),
            namespace: "k8s.io".into(),
            container: container.into(),
            cause: "a process holds a file lock".into(),
            remedy: None,
            error: "criu dump failed".into(),
            lines: Vec::new(),
        }
    }

    #[test]
    fn the_newest_is_first_and_others_are_not_records() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["2-dump-n-b", "1-dump-n-a"] {
            let json = serde_json::to_vec(&record(id)).unwrap();
            fs::write(dir.path().join(id).with_extension(RECORD), json).unwrap();
        }
        fs::write(dir.path().join("0-old.log"), "x").unwrap();
        let found = list(dir.path()).unwrap();
        let ids: Vec<_> = found.iter().map(|f| f.id.as_str()).collect();
        assert_eq!(ids, ["2-dump-n-b", "1-dump-n-a"]);
        assert_eq!(found[0].record.as_ref().unwrap(), &record("2-dump-n-b"));
        assert_eq!(log(dir.path(), "0-old").unwrap().unwrap(), b"x");
        assert!(log(dir.path(), "2-dump-n-b").unwrap().is_none());
        assert!(list(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_record_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", dir.path().join("5.json")).unwrap();
        fs::create_dir(dir.path().join("4.json")).unwrap();
        let long = vec![b' '; usize::try_from(MAX_RECORD_BYTES).unwrap() + 1];
        fs::write(dir.path().join("3.json"), long).unwrap();
        fs::write(dir.path().join("2.json"), "{}").unwrap();
        let said: Vec<_> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|f| f.record.unwrap_err().to_string())
            .collect();
        let at = |n: &str| dir.path().join(n).display().to_string();
        assert_eq!(
            said,
            [
                format!("{} is a symbolic link", at("5.json")),
                format!("{} is no regular file", at("4.json")),
                format!("{} is larger than any of its kind", at("3.json")),
                format!("{} is damaged", at("2.json")),
            ]
        );
    }
}
