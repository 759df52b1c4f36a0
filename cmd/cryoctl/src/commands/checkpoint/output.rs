//! Where a checkpoint goes: a name that is there only when all of it is, and a directory beside
//! it for the work.

use std::cell::Cell;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::target::{Found, PodOf};
use crate::text;

/// Where one checkpoint goes. Its work directory ends with it.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    work: PathBuf,
    kind: Kind,
    kept: Cell<bool>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Archive,
    Images,
}

impl Output {
    /// An archive: the file that was named, or one in the directory that was.
    ///
    /// # Errors
    ///
    /// When it is there already, or its directory is not.
    pub(super) fn archive(
        named: Option<&Path>,
        of: &Found,
        count: usize,
        time: SystemTime,
    ) -> anyhow::Result<Self> {
        let path = match named {
            Some(path) if !path.is_dir() && count > 1 => bail!(
                "the pod has {count} containers: name one with --name, or an existing directory for their archives"
            ),
            Some(path) if !path.is_dir() => path.to_owned(),
            dir => dir.unwrap_or(Path::new(".")).join(file_name(of, time)),
        };
        Self::new(path, Kind::Archive)
    }

    /// A directory of images.
    ///
    /// # Errors
    ///
    /// When it is there and not empty.
    pub(super) fn images(path: &Path) -> anyhow::Result<Self> {
        Self::new(path.to_owned(), Kind::Images)
    }

    fn new(path: PathBuf, kind: Kind) -> anyhow::Result<Self> {
        // containerd and the shim have other working directories.
        let path = std::path::absolute(&path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        let empty = || fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if path.symlink_metadata().is_ok() && (kind == Kind::Archive || !empty()) {
            bail!(
                "{} is there already: remove it, or name another",
                path.display()
            );
        }
        let name = path
            .file_name()
            .with_context(|| format!("{} is no name for a checkpoint", path.display()))?;
        let hidden = format!(".{}.cryo-{}", name.to_string_lossy(), std::process::id());
        let work = path.with_file_name(hidden);
        // A memory image is for nobody else to read.
        DirBuilder::new()
            .mode(0o700)
            .create(&work)
            .with_context(|| format!("cannot make the directory {}", work.display()))?;
        Ok(Self {
            path,
            work,
            kind,
            kept: Cell::new(false),
        })
    }

    /// The name that it will have.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is to be an archive.
    pub(super) fn is_archive(&self) -> bool {
        self.kind == Kind::Archive
    }

    /// Where criu's images go: for an archive, beside it for now.
    pub(super) fn image_dir(&self) -> PathBuf {
        match self.kind {
            Kind::Archive => self.work.join(cryo_checkpoint::layout::CHECKPOINT_DIR),
            Kind::Images => self.path.clone(),
        }
    }

    /// A directory for the work, on the same file system.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Leaves the work directory there, for it is all that is left.
    pub(super) fn keep_work(&self) -> &Path {
        self.kept.set(true);
        &self.work
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.kept.get() {
            // What stays has a name that says whose it is.
            let _ = fs::remove_dir_all(&self.work);
        }
    }
}

/// As the kubelet names them, `checkpoint-POD_NAMESPACE-CONTAINER-TIME.tar`.
fn file_name(of: &Found, time: SystemTime) -> String {
    let time = text::rfc3339(time);
    let time = time.split('.').next().unwrap_or_default();
    match of.pod() {
        Some(PodOf {
            namespace,
            pod,
            container: Some(name),
        }) => format!("checkpoint-{pod}_{namespace}-{name}-{time}Z.tar"),
        _ => format!("checkpoint-{}-{time}Z.tar", of.record.id),
    }
    .replace('/', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::containerd::messages::Container;

    fn found(spec: serde_json::Value) -> Found {
        Found {
            record: Container {
                id: "c1".to_owned(),
                ..Container::default()
            },
            spec,
        }
    }

    #[test]
    fn names() {
        let time = SystemTime::UNIX_EPOCH;
        assert_eq!(
            file_name(&found(json!({})), time),
            "checkpoint-c1-1970-01-01T00:00:00Z.tar"
        );
        let spec = json!({"annotations": {
            "io.kubernetes.cri.sandbox-name": "../p",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.container-name": "c",
        }});
        assert_eq!(
            file_name(&found(spec), time),
            "checkpoint-.._p_shop-c-1970-01-01T00:00:00Z.tar"
        );
    }

    #[test]
    fn what_is_there_is_not_touched_and_the_work_goes() {
        let dir = tempfile::tempdir().unwrap();
        let of = found(json!({}));
        let time = SystemTime::UNIX_EPOCH;
        let file = dir.path().join("a.tar");
        let output = Output::archive(Some(&file), &of, 1, time).unwrap();
        assert!(output.work().is_dir() && output.image_dir().starts_with(output.work()));
        let work = output.work().to_owned();
        drop(output);
        assert!(!work.exists() && !file.exists());

        fs::write(&file, "mine").unwrap();
        let error = Output::archive(Some(&file), &of, 1, time).unwrap_err();
        assert!(error.to_string().contains("there already"), "{error}");
        let error = Output::archive(Some(&dir.path().join("b")), &of, 2, time).unwrap_err();
        assert!(error.to_string().contains("--name"), "{error}");
        let output = Output::archive(Some(dir.path()), &of, 2, time).unwrap();
        assert_eq!(output.path().parent(), Some(dir.path()));
        assert!(Output::images(dir.path()).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }
}
