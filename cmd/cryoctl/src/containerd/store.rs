//! What containerd keeps: snapshots, layers, images.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::messages::{
    ContentPart, Descriptor, Diff, DiffResponse, Empty, GetImage, GetImageResponse, Lease, Mount,
    Mounts, ReadContent, Snapshot, StatSnapshotResponse,
};
use super::{Client, Refused};

/// A layer, as containerd's CRI makes it for a checkpoint.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A lease that nobody removed, since its owner was killed, ends by itself after this time.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// A manifest, an index or a configuration of an image is at most this long.
const MAX_JSON_BYTES: i64 = 8 << 20;

impl Client {
    /// Runs work whose results in containerd's store are not collected before it ends.
    ///
    /// # Errors
    ///
    /// Those of the work, and when containerd gives no lease.
    pub(crate) async fn leased<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let now = SystemTime::now();
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let id = format!("cryoctl-{}-{}", std::process::id(), since.as_nanos());
        let end = crate::text::rfc3339(now + LEASE);
        let lease = Lease {
            id: id.clone(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), end)]),
        };
        let what = || "containerd gives no lease".to_owned();
        let _: Empty = self
            .call(what, "/containerd.services.leases.v1.Leases/Create", lease)
            .await?;
        let mut leased = self.clone();
        leased.lease = Some(id.parse().context("the lease's name")?);
        let done = work(&leased).await;
        let what = || format!("cannot give the lease {id} back");
        let given_back: Result<Empty, _> = self
            .call(
                what,
                "/containerd.services.leases.v1.Leases/Delete",
                super::Id::of(&id),
            )
            .await;
        let done = done?;
        given_back?;
        Ok(done)
    }

    /// How to mount a snapshot.
    pub(crate) async fn mounts(&self, snapshotter: &str, key: &str) -> anyhow::Result<Vec<Mount>> {
        let method = "/containerd.services.snapshots.v1.Snapshots/Mounts";
        let what = || format!("cannot find the root file system {key}");
        let request = snapshot(snapshotter, key, "");
        let answer: Mounts = self.call(what, method, request).await?;
        Ok(answer.mounts)
    }

    /// A new snapshot over another.
    pub(crate) async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> anyhow::Result<Vec<Mount>> {
        let method = "/containerd.services.snapshots.v1.Snapshots/Prepare";
        let what = || format!("cannot make the root file system {key}");
        let request = snapshot(snapshotter, key, parent);
        let answer: Result<Mounts, Refused> = self.call(what, method, request).await;
        match answer {
            Ok(answer) => Ok(answer.mounts),
            Err(e) if e.code() == Code::NotFound => bail!(
                "the image is not unpacked for the snapshotter {snapshotter}: pull it again, or `ctr images unpack` it"
            ),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), Refused> {
        let method = "/containerd.services.snapshots.v1.Snapshots/Remove";
        let what = || format!("cannot remove the snapshot {key}");
        let _: Empty = self
            .call(what, method, snapshot(snapshotter, key, ""))
            .await?;
        Ok(())
    }

    /// Writes as a layer, gzipped, what a snapshot has beyond its parent.
    ///
    /// # Errors
    ///
    /// When containerd cannot make the layer in that time, or it cannot be written.
    pub(crate) async fn write_changes(
        &self,
        snapshotter: &str,
        key: &str,
        limit: Duration,
        to: &mut impl Write,
    ) -> anyhow::Result<()> {
        self.leased(async |client| {
            let layer = client.changes(snapshotter, key, limit).await?;
            client.write_content(&layer.digest, to).await
        })
        .await
    }

    async fn changes(
        &self,
        snapshotter: &str,
        key: &str,
        limit: Duration,
    ) -> anyhow::Result<Descriptor> {
        let method = "/containerd.services.snapshots.v1.Snapshots/Stat";
        let what = || format!("cannot find the root file system {key}");
        let stat: StatSnapshotResponse = self
            .call(what, method, snapshot(snapshotter, key, ""))
            .await?;
        let parent = stat.info.unwrap_or_default().parent;
        let upper = self.mounts(snapshotter, key).await?;
        let view = format!("{key}-cryoctl-{}", std::process::id());
        let method = "/containerd.services.snapshots.v1.Snapshots/View";
        let what = || format!("cannot look at the image below {key}");
        let lower: Mounts = self
            .call(what, method, snapshot(snapshotter, &view, &parent))
            .await?;
        let diff = Diff {
            left: lower.mounts,
            right: upper,
            media_type: LAYER.to_owned(),
            reference: format!("cryoctl-{key}-{}", std::process::id()),
        };
        let what = || "cannot take the changes of the root file system".to_owned();
        let method = "/containerd.services.diff.v1.Diff/Diff";
        let made: Result<DiffResponse, _> = self.call_within(limit, what, method, diff).await;
        let removed = self.remove_snapshot(snapshotter, &view).await;
        let layer = made?
            .diff
            .context("containerd tells nothing of the changes of the root file system")?;
        removed?;
        Ok(layer)
    }

    /// Writes a blob.
    async fn write_content(&self, digest: &str, to: &mut impl Write) -> anyhow::Result<()> {
        let request = ReadContent {
            digest: digest.to_owned(),
            ..ReadContent::default()
        };
        let method = "/containerd.services.content.v1.Content/Read";
        let failed = |e: tonic::Status| anyhow!("cannot read {digest}: {}", e.message());
        let mut parts = self
            .stream::<_, ContentPart>(method, request)
            .await
            .map_err(failed)?;
        while let Some(part) = parts.message().await.map_err(failed)? {
            to.write_all(&part.data)
                .context("cannot write what containerd has")?;
        }
        Ok(())
    }

    async fn json<T: for<'a> Deserialize<'a>>(&self, of: &Descriptor) -> anyhow::Result<T> {
        if of.size > MAX_JSON_BYTES {
            bail!("{} is too long for what it is", of.digest);
        }
        let mut text = Vec::new();
        self.write_content(&of.digest, &mut text).await?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", of.digest))
    }

    /// An image by its name.
    pub(crate) async fn image(&self, name: &str) -> anyhow::Result<Descriptor> {
        let method = "/containerd.services.images.v1.Images/Get";
        let what = || format!("cannot look for the image {name}");
        let request = GetImage {
            name: name.to_owned(),
        };
        let found: Result<GetImageResponse, Refused> = self.call(what, method, request).await;
        match found {
            Ok(found) => found
                .image
                .and_then(|image| image.target)
                .with_context(|| format!("containerd tells nothing of the image {name}")),
            Err(e) if e.code() == Code::NotFound => bail!(
                "the image {name} is not here: `ctr --namespace {} images pull {name}`, or name another with --image",
                self.namespace()
            ),
            Err(e) => Err(e.into()),
        }
    }

    /// The name of the snapshot that is an image's root file system.
    pub(crate) async fn chain_id(&self, image: &Descriptor) -> anyhow::Result<String> {
        let manifest: Manifest = if is_index(&image.media_type) {
            let index: Index = self.json(image).await?;
            let here = index.manifests.iter().find(|m| m.is_for_here());
            let here = here.context("the image is for other architectures")?;
            self.json(&here.descriptor()).await?
        } else {
            self.json(image).await?
        };
        let config: Config = self.json(&manifest.config.descriptor()).await?;
        chain(&config.rootfs.diff_ids).context("the image has no layers")
    }
}

fn snapshot(snapshotter: &str, key: &str, parent: &str) -> Snapshot {
    Snapshot {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
    }
}

fn is_index(media_type: &str) -> bool {
    media_type.contains("image.index") || media_type.contains("manifest.list")
}

/// A descriptor in an image's JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    digest: String,
    size: i64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Part {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            digest: self.digest.clone(),
            size: self.size,
            ..Descriptor::default()
        }
    }

    fn is_for_here(&self) -> bool {
        // Where an image does not say, it is for here.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == architecture)
    }
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Part>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Part,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    diff_ids: Vec<String>,
}

/// The chain id of layers, as the OCI image specification has it.
fn chain(diff_ids: &[String]) -> Option<String> {
    let mut ids = diff_ids.iter();
    let first = ids.next()?.clone();
    Some(ids.fold(first, |below, id| {
        let digest = Sha256::digest(format!("{below} {id}"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains() {
        assert_eq!(chain(&[]), None);
        assert_eq!(chain(&["sha256:a".into()]).unwrap(), "sha256:a");
        let two = chain(&["sha256:a".into(), "sha256:b".into()]).unwrap();
        assert!(two.starts_with("sha256:") && two.len() == 71);
        let digest = Sha256::digest(format!("{two} sha256:c"));
        let three = chain(&["sha256:a".into(), "sha256:b".into(), "sha256:c".into()]).unwrap();
        assert!(three.ends_with(&format!("{:02x}", digest[31])));
    }
}
