//! The archive, as containerd's CRI writes it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use cryo_checkpoint::layout;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::live::CHANGES;
use super::output::Output;
use crate::containerd::Client;
use crate::containerd::messages::{
    CriContainerStatus, CriContainerStatusResponse, CriStatusRequest,
};
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::{Progress, ProgressArgs};
use crate::target::{CRI_NAMESPACE, Found};
use crate::text;

/// Makes the archive of what was taken, under its name only when all of it is there. Images that
/// are to be no archive are in their place already.
///
/// # Errors
///
/// [`Interrupted`], or when something cannot be read or written.
pub(super) async fn write(
    client: &Client,
    one: &Found,
    output: &Output,
    stop: Option<&Interrupt>,
    progress: ProgressArgs,
) -> anyhow::Result<()> {
    if !output.is_archive() {
        return Ok(());
    }
    let status = cri_status(client, one).await?;
    let texts = texts(client, one, status.as_ref()).await?;
    let (files, work) = (
        files(one, output, status.as_ref())?,
        output.work().to_owned(),
    );
    let (path, stop) = (output.path().to_owned(), stop.cloned());
    // So that Ctrl-C is heard meanwhile.
    tokio::task::spawn_blocking(move || {
        let part = work.join("archive");
        let sizes = files.iter().filter_map(|(_, path)| path.metadata().ok());
        let progress = progress.start("writing", sizes.map(|meta| meta.len()).sum());
        let mut archive = Archive::create(&part, stop, progress)?;
        archive.folder(layout::CHECKPOINT_DIR)?;
        for (name, path) in &files {
            archive.file(name, path)?;
        }
        for (name, bytes) in &texts {
            archive.bytes(name, bytes)?;
        }
        archive.finish()?;
        fs::hard_link(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;
        if let Some(dir) = path.parent() {
            File::open(dir).and_then(|dir| dir.sync_all())?;
        }
        Ok(())
    })
    .await
    .context("the archive")?
}

/// A tar in the making.
struct Archive {
    tar: tar::Builder<File>,
    path: PathBuf,
    now: u64,
    stop: Option<Interrupt>,
    progress: Progress,
}

impl Archive {
    fn create(path: &Path, stop: Option<Interrupt>, progress: Progress) -> anyhow::Result<Self> {
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            tar: tar::Builder::new(file),
            path: path.to_owned(),
            now: now.unwrap_or_default().as_secs(),
            stop,
            progress,
        })
    }

    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(self.now);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header
    }

    fn folder(&mut self, name: &str) -> anyhow::Result<()> {
        let mut header = self.header(EntryType::Directory, 0o700, 0);
        let added = self
            .tar
            .append_data(&mut header, format!("{name}/"), io::empty());
        self.written(added)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut header = self.header(EntryType::Regular, 0o600, bytes.len() as u64);
        let added = self.tar.append_data(&mut header, name, bytes);
        self.written(added)
    }

    fn file(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let size = file.metadata()?.len();
        let mut header = self.header(EntryType::Regular, 0o600, size);
        let content = Interruptible {
            // A log may have grown meanwhile.
            inner: file.take(size),
            stop: self.stop.clone(),
            progress: &self.progress,
        };
        let added = self.tar.append_data(&mut header, name, content);
        if self.stop.as_ref().is_some_and(Interrupt::came) {
            return Err(Interrupted.into());
        }
        self.written(added)
    }

    fn written(&self, result: io::Result<()>) -> anyhow::Result<()> {
        result.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let path = self.path.clone();
        let done = self.tar.finish().and_then(|()| {
            let mut file = self.tar.into_inner()?;
            file.flush()?;
            file.sync_all()
        });
        done.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Ends with an error when the user wants it.
struct Interruptible<'a, R> {
    inner: R,
    stop: Option<Interrupt>,
    progress: &'a Progress,
}

impl<R: Read> Read for Interruptible<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.as_ref().is_some_and(Interrupt::came) {
            return Err(io::Error::other(Interrupted));
        }
        let read = self.inner.read(buffer)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}

/// Entries that are files, by name: in an order that does not depend on the file system.
fn files(
    one: &Found,
    output: &Output,
    status: Option<&CriContainerStatus>,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let images = output.image_dir();
    let mut all = Vec::new();
    let entries =
        fs::read_dir(&images).with_context(|| format!("cannot read {}", images.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        all.push((format!("{}/{name}", layout::CHECKPOINT_DIR), entry.path()));
    }
    for name in [layout::DUMP_LOG, layout::STATS_DUMP] {
        all.push((name.to_owned(), output.work().join(name)));
    }
    all.push((layout::ROOTFS_DIFF.to_owned(), output.work().join(CHANGES)));
    if let Some(status) = status {
        all.push((
            layout::CONTAINER_LOG.to_owned(),
            status.log_path.clone().into(),
        ));
        all.push((layout::STATUS.to_owned(), cri_root(one).join("status")));
    }
    // Not each release of containerd, and not each container, has the optional ones.
    all.retain(|(name, path)| name.starts_with(layout::CHECKPOINT_DIR) || path.is_file());
    all.sort();
    Ok(all)
}

/// Where containerd's CRI keeps what it knows of a container: it says so only by the files that
/// it binds into it.
fn cri_root(one: &Found) -> PathBuf {
    let root = one
        .spec
        .get("mounts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|mount| mount.get("destination").and_then(Value::as_str) == Some("/etc/hostname"))
        .filter_map(|mount| mount.get("source")?.as_str()?.split_once("/sandboxes/"))
        .map(|(root, _)| root)
        .next();
    let root = root.unwrap_or("/var/lib/containerd/io.containerd.grpc.v1.cri");
    Path::new(root).join("containers").join(&one.record.id)
}

/// What CRI says of it, if CRI made it.
async fn cri_status(client: &Client, one: &Found) -> anyhow::Result<Option<CriContainerStatus>> {
    if client.namespace() != CRI_NAMESPACE || one.pod().is_none() {
        return Ok(None);
    }
    let request = CriStatusRequest {
        id: one.record.id.clone(),
        verbose: false,
    };
    let method = "/runtime.v1.RuntimeService/ContainerStatus";
    let what = || format!("CRI does not tell of {}", one.title());
    let answer: CriContainerStatusResponse = client.call(what, method, request).await?;
    Ok(answer.status)
}

/// Entries that are made here.
async fn texts(
    client: &Client,
    one: &Found,
    status: Option<&CriContainerStatus>,
) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let record = &one.record;
    let image = match status {
        Some(status) => status.image_ref.clone(),
        // An image may be gone while its container runs.
        None => match client.image(&record.image).await {
            Ok(Some(found)) => format!("{}@{}", repository(&record.image), found.digest),
            Ok(None) | Err(_) => record.image.clone(),
        },
    };
    let pod = one.pod().unwrap_or_else(|| crate::target::PodOf {
        namespace: String::new(),
        pod: String::new(),
        container: None,
    });
    // As CRI calls it, since its restore wants the name.
    let name = match (&pod.container, status) {
        (Some(container), Some(status)) => {
            let attempt = status.metadata.as_ref().map_or(0, |m| m.attempt);
            let uid = one
                .spec
                .pointer("/annotations/io.kubernetes.cri.sandbox-uid")
                .and_then(Value::as_str)
                .unwrap_or_default();
            format!("{container}_{}_{}_{uid}_{attempt}", pod.pod, pod.namespace)
        }
        _ => record.id.clone(),
    };
    let created = record.created_at.unwrap_or_default();
    let created = UNIX_EPOCH
        + std::time::Duration::new(
            u64::try_from(created.seconds).unwrap_or_default(),
            u32::try_from(created.nanos).unwrap_or_default(),
        );
    let config = json!({
        "id": record.id,
        "name": name,
        "rootfsImage": record.image,
        "rootfsImageRef": image,
        "rootfsImageName": record.image,
        "runtime": record.runtime.clone().unwrap_or_default().name,
        "createdTime": text::rfc3339(created),
        "checkpointedTime": text::rfc3339(SystemTime::now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    });
    let mut all = vec![(layout::CONFIG_DUMP, serde_json::to_vec(&config)?)];
    let spec = record.spec.clone().unwrap_or_default().value;
    all.push((layout::SPEC_DUMP, spec));
    if let Some(status) = status {
        all.push((layout::STATUS_DUMP, serde_json::to_vec(&dump_of(status))?));
    }
    Ok(all)
}

/// A name without tag and digest.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        // What is before a slash is a port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// As containerd writes it: Go's JSON of CRI's message, without what is empty.
fn dump_of(status: &CriContainerStatus) -> Value {
    let metadata = status.metadata.clone().unwrap_or_default();
    let mounts: Vec<Value> = status
        .mounts
        .iter()
        .map(|mount| {
            json!({
                "container_path": mount.container_path,
                "host_path": mount.host_path,
                "readonly": mount.readonly,
            })
        })
        .collect();
    json!({
        "id": status.id,
        "metadata": {"name": metadata.name, "attempt": metadata.attempt},
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "image": {"image": status.image.clone().unwrap_or_default().image},
        "image_ref": status.image_ref,
        "labels": status.labels,
        "annotations": status.annotations,
        "mounts": mounts,
        "log_path": status.log_path,
        "image_id": status.image_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        for (image, repository_) in [
            ("localhost:5000/busybox:1", "localhost:5000/busybox"),
            ("localhost:5000/busybox", "localhost:5000/busybox"),
            ("docker.io/library/a@sha256:1", "docker.io/library/a"),
            ("a:1@sha256:1", "a"),
        ] {
            assert_eq!(repository(image), repository_);
        }
    }
}
