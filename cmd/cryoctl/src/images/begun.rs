//! Uploads that were begun: what a later process has to know to go on with one that ended early.
//!
//! Each is a file, `$XDG_CACHE_HOME/cryo/uploads/KEY.json`, locked by the process that uploads. It
//! is for its owner alone: with some registries the address of an upload is all that one needs to
//! write there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cryo_checkpoint::oci::Digest;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

/// No registry is known to keep an upload for longer.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Longest file.
const MAX_BYTES: u64 = 64 << 10;

/// What is kept of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Where the registry wants the next chunk.
    pub(super) location: String,
    /// How large it is to be.
    pub(super) chunk_bytes: usize,
}

/// The file of one upload, held as long as this is.
#[derive(Debug)]
pub(super) struct Note {
    file: File,
    path: PathBuf,
}

impl Note {
    /// Opens the one for a blob of a repository. `None` if another process uploads the same, or
    /// nothing can be kept here: an upload is possible without.
    pub(super) fn open(repository: &str, blob: &Digest) -> Option<Self> {
        Self::open_in(&folder()?, repository, blob)
    }

    fn open_in(folder: &Path, repository: &str, blob: &Digest) -> Option<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .ok()?;
        sweep(folder);
        let key = Digest::of(format!("{repository} {blob}").as_bytes());
        let path = folder.join(format!("{}.json", key.hex()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Self { file, path })
    }

    /// What was written last. Half a note, of a process that was killed as it wrote, is none.
    pub(super) fn read(&self) -> Option<Begun> {
        let mut bytes = Vec::new();
        (&self.file).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes where the upload is now. What cannot be written is not gone on with.
    pub(super) fn write(&self, begun: &Begun) {
        let written = serde_json::to_vec(begun)
            .map_err(Into::into)
            .and_then(|bytes| {
                self.file.set_len(0)?;
                self.file.write_all_at(&bytes, 0)
            });
        if written.is_err() {
            let _ = self.file.set_len(0);
        }
    }

    /// There is nothing to go on with.
    pub(super) fn remove(self) {
        // What stays is swept up in a week.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the files are.
fn folder() -> Option<PathBuf> {
    let variable = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("cryo/uploads"))
}

/// Removes what is too old to be of use.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok();
        if age.is_some_and(|at| at.elapsed().is_ok_and(|age| age > MAX_AGE)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_kept_for_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("uploads");
        let blob = Digest::of(b"blob");
        let open = || Note::open_in(&folder, "https://reg.example/v2/a/", &blob);
        let begun = |location: &str| Begun {
            location: location.to_owned(),
            chunk_bytes: 5,
        };
        let note = open().unwrap();
        assert_eq!(note.read(), None);
        note.write(&begun("/v2/a/blobs/uploads/a-long-one"));
        note.write(&begun("/v2/a/1"));
        assert!(open().is_none(), "two have the same upload");
        drop(note);
        let note = open().unwrap();
        assert_eq!(note.read(), Some(begun("/v2/a/1")));
        assert!(Note::open_in(&folder, "https://reg.example/v2/b/", &blob).is_some());

        fs::write(&note.path, "{\"location\":\"/v2").unwrap();
        drop(note);
        let note = open().unwrap();
        assert_eq!(note.read(), None);
        let old = std::time::SystemTime::now() - MAX_AGE * 2;
        note.file.set_modified(old).unwrap();
        let path = note.path.clone();
        drop(note);
        sweep(&folder);
        assert!(!path.exists());
        open().unwrap().remove();
        assert!(!path.exists());
    }
}
