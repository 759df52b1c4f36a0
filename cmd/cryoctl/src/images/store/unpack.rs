//! Layers as snapshots: containerd's CRI starts nothing from an image that is not unpacked, and
//! does not unpack it itself.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::model::{Config, Manifest, Platform};
use tonic::Code;

use super::messages::{
    Anything, ApplyRequest, CommitRequest, Mounts, SnapshotRequest, WireDescriptor,
};
use super::{Store, code};
use crate::images::whole;

impl Store {
    /// Unpacks the layers of an image for this machine, and gives the name of the snapshot; `None`
    /// for an image of another machine.
    pub(super) fn unpack(&mut self, manifest: &Manifest) -> anyhow::Result<Option<String>> {
        let config = Config::parse(&whole(self, &manifest.config)?)?;
        if config.platform != Platform::linux(std::env::consts::ARCH) {
            return Ok(None);
        }
        let diff_ids = config.rootfs.diff_ids;
        ensure!(
            diff_ids.len() == manifest.layers.len(),
            "the image's configuration has {} layers and its manifest {}",
            diff_ids.len(),
            manifest.layers.len()
        );
        let mut below = String::new();
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            let name = match below.as_str() {
                "" => diff_id.to_string(),
                below => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            };
            let descriptor = WireDescriptor {
                media_type: layer.media_type.clone(),
                digest: layer.digest.to_string(),
                size: i64::try_from(layer.size)?,
                annotations: HashMap::new(),
            };
            self.snapshot(&name, &below, descriptor)
                .with_context(|| format!("the layer {} cannot be unpacked", layer.digest))?;
            below = name;
        }
        Ok(Some(below))
    }

    /// Makes a snapshot of a layer above another, if it is not there.
    fn snapshot(&mut self, name: &str, below: &str, layer: WireDescriptor) -> anyhow::Result<()> {
        let snapshot = |key: &str, parent: &str| SnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
        };
        let lease = self.lease.clone().unwrap_or_default();
        let key = format!("{lease} {name}");
        let (there, prepare) = (snapshot(name, ""), snapshot(&key, below));
        let (remove, commit) = (
            snapshot(&key, ""),
            CommitRequest {
                snapshotter: self.snapshotter.clone(),
                name: name.to_owned(),
                key,
            },
        );
        match self.ask::<_, Anything>("/containerd.services.snapshots.v1.Snapshots/Stat", there) {
            Ok(_) => return Ok(()),
            Err(error) if code(&error) == Some(Code::NotFound) => {}
            Err(error) => return Err(error),
        }
        let method = "/containerd.services.snapshots.v1.Snapshots/Prepare";
        let mounts = self.ask::<_, Mounts>(method, prepare)?.mounts;
        let apply = ApplyRequest {
            layer: Some(layer),
            mounts,
        };
        let method = "/containerd.services.diff.v1.Diff/Apply";
        let done = match self.ask::<_, Anything>(method, apply) {
            Ok(_) => {
                let method = "/containerd.services.snapshots.v1.Snapshots/Commit";
                self.ask::<_, Anything>(method, commit).map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            let method = "/containerd.services.snapshots.v1.Snapshots/Remove";
            // It goes with the lease in any case.
            let _ = self.ask::<_, Anything>(method, remove);
            // Somebody else has unpacked the same.
            if code(&error) != Some(Code::AlreadyExists) {
                return Err(error);
            }
        }
        Ok(())
    }
}
