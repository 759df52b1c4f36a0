//! A file that is there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::failure::Failure;

/// A file under a temporary name beside its own, mode 0600: what is in a checkpoint is the
/// memory of a program. It is removed if it is dropped before [`NewFile::finish`].
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    /// Its temporary name and its own; none for what is no regular file, as `/dev/stdout`.
    names: Option<(PathBuf, PathBuf)>,
}

impl NewFile {
    /// Creates it. What is there under its name stays until it is finished.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let cannot = || format!("{} cannot be written", path.display());
        if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            let file = OpenOptions::new().write(true).open(path);
            return Ok(Self {
                file: file.with_context(cannot)?,
                names: None,
            });
        }
        let name = path.file_name().map(OsString::from);
        let mut name = name
            .filter(|_| !path.is_dir())
            .with_context(|| format!("{} is no name of a file", path.display()))?;
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(cannot)?;
        Ok(Self {
            file,
            names: Some((temporary, path.to_owned())),
        })
    }

    /// The file to write to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether one can write at any place of it.
    pub(crate) fn is_regular(&self) -> bool {
        self.names.is_some()
    }

    /// All was written: it gets its name, once it is on the disk.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.rename(|file| file.sync_all())
    }

    /// The same without waiting for the disk: of what is large and can be made again at any time.
    /// Should the machine lose its power, it may be there and not whole.
    pub(crate) fn finish_unsynced(self) -> Result<(), Failure> {
        self.rename(|_| Ok(()))
    }

    fn rename(mut self, sync: impl FnOnce(&File) -> io::Result<()>) -> Result<(), Failure> {
        let Some((temporary, path)) = self.names.take() else {
            return Ok(());
        };
        let done = (|| -> io::Result<()> {
            sync(&self.file)?;
            fs::rename(&temporary, &path)
        })();
        if done.is_err() {
            // The error that is told is the first one.
            let _ = fs::remove_file(&temporary);
        }
        done.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.names {
            // Nothing is left to do about it.
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.1");
        fs::write(&path, "old").unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();

        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"half").unwrap();
        assert_eq!(names(), 2);
        drop(new);
        assert_eq!(names(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"old");

        let new = NewFile::create(&path).unwrap();
        new.file().write_all(b"new").unwrap();
        new.finish().unwrap();
        assert_eq!(names(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"new");

        assert!(NewFile::create(dir.path()).is_err());
        assert!(
            !NewFile::create(Path::new("/dev/null"))
                .unwrap()
                .is_regular()
        );
    }
}
