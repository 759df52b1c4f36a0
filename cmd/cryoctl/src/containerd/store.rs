//! What containerd keeps of images: their names, and their layers as snapshots.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::model::{self, Config, Document, Platform};
use tonic::Code;

use super::messages::{
    Apply, CommitSnapshot, Descriptor, Diff, DiffResponse, Empty, FieldMask, Id, Image, Mount,
    Mounts, OneImage, Snapshot, StatSnapshotResponse, UpdateImage,
};
use super::{Client, Refused};

/// A layer, as containerd's CRI makes it for a checkpoint.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Client {
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
            let mut parts = client.read(&layer.digest.parse()?, 0).await?;
            while let Some(part) = parts.next().await? {
                to.write_all(&part)
                    .context("cannot write what containerd has")?;
            }
            Ok(())
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

    /// An image by its name, if it is there.
    pub(crate) async fn image(&self, name: &str) -> anyhow::Result<Option<model::Descriptor>> {
        let method = "/containerd.services.images.v1.Images/Get";
        let what = || format!("cannot look for the image {name}");
        let found: Result<OneImage, Refused> = self.call(what, method, Id::of(name)).await;
        match found {
            Ok(found) => found
                .image
                .and_then(|image| image.target)
                .with_context(|| format!("containerd tells nothing of the image {name}"))?
                .try_into()
                .map(Some),
            Err(e) if e.code() == Code::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives an image its name, which another may have had.
    pub(crate) async fn name_image(
        &self,
        name: &str,
        target: &model::Descriptor,
    ) -> Result<(), Refused> {
        let image = Some(Image {
            name: name.to_owned(),
            labels: HashMap::new(),
            target: Some(target.into()),
        });
        let method = "/containerd.services.images.v1.Images/Create";
        let what = || format!("cannot name the image {name}");
        let create = OneImage {
            image: image.clone(),
        };
        match self.call::<_, Empty>(what, method, create).await {
            Err(error) if error.code() == Code::AlreadyExists => {
                let update = UpdateImage {
                    image,
                    mask: Some(FieldMask {
                        paths: vec!["target".to_owned()],
                    }),
                };
                let method = "/containerd.services.images.v1.Images/Update";
                self.call::<_, Empty>(what, method, update).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// The name of the snapshot that is an image's root file system.
    pub(crate) async fn chain_id(&self, image: &model::Descriptor) -> anyhow::Result<Digest> {
        let parse = async |of: &model::Descriptor| -> anyhow::Result<Document> {
            let bytes = self.document(of).await?;
            Ok(Document::parse(Some(&of.media_type), &bytes)?)
        };
        let manifest = match parse(image).await? {
            Document::Index(index) => {
                let here = Platform::linux(std::env::consts::ARCH);
                parse(index.select(&here)?).await?
            }
            manifest => manifest,
        };
        let Document::Manifest(manifest) = manifest else {
            bail!("the image has an index in its index");
        };
        let config = Config::parse(&self.document(&manifest.config).await?)?;
        let chain = chain(&config.rootfs.diff_ids);
        chain.last().copied().context("the image has no layers")
    }

    /// Makes a snapshot of a layer above another, if it is not there.
    ///
    /// # Errors
    ///
    /// containerd's; then nothing of it is left.
    pub(crate) async fn unpack(
        &self,
        snapshotter: &str,
        name: &str,
        parent: &str,
        layer: &model::Descriptor,
    ) -> anyhow::Result<()> {
        self.hold(&format!("snapshots/{snapshotter}"), name).await?;
        let method = "/containerd.services.snapshots.v1.Snapshots/Stat";
        let what = || format!("cannot look for the snapshot {name}");
        let there = self.call::<_, Empty>(what, method, snapshot(snapshotter, name, ""));
        match there.await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Code::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let key = format!("{} {name}", self.lease());
        let mounts = self.prepare(snapshotter, &key, parent).await?;
        let done = self.fill(snapshotter, name, &key, layer, mounts).await;
        if let Err(error) = done {
            // It goes with the lease in any case.
            let _ = self.remove_snapshot(snapshotter, &key).await;
            // Somebody else has unpacked the same.
            if error.code() != Code::AlreadyExists {
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn fill(
        &self,
        snapshotter: &str,
        name: &str,
        key: &str,
        layer: &model::Descriptor,
        mounts: Vec<Mount>,
    ) -> Result<(), Refused> {
        let apply = Apply {
            layer: Some(layer.into()),
            mounts,
        };
        let method = "/containerd.services.diff.v1.Diff/Apply";
        let what = || format!("cannot unpack the layer {}", layer.digest);
        let _: Empty = self.call(what, method, apply).await?;
        let commit = CommitSnapshot {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
        };
        let method = "/containerd.services.snapshots.v1.Snapshots/Commit";
        let what = || format!("cannot keep the snapshot {name}");
        self.call::<_, Empty>(what, method, commit).await.map(drop)
    }
}

fn snapshot(snapshotter: &str, key: &str, parent: &str) -> Snapshot {
    Snapshot {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
    }
}

/// The chain ids of layers, as the OCI image specification has them: each names a layer with all
/// below it.
pub(crate) fn chain(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        chain.push(match chain.last() {
            Some(below) => Digest::of(format!("{below} {id}").as_bytes()),
            None => *id,
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains() {
        assert_eq!(chain(&[]), []);
        let layers = [b"a", b"b", b"c"].map(|layer| Digest::of(layer));
        let all = chain(&layers);
        assert_eq!(all[0], layers[0]);
        assert_eq!(
            all[1].to_string(),
            "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"
        );
        let text = format!("{} {}", all[1], layers[2]);
        assert_eq!(all[2], Digest::of(text.as_bytes()));
    }
}
