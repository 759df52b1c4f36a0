//! `cryoctl pull`.

use anyhow::anyhow;
use clap::Args;
use cryo_checkpoint::oci::reference::Place;

use crate::failure::Failure;
use crate::images::{self, Access};
use crate::progress::ProgressArgs;

/// Copy an image from a registry, or from any other place.
///
/// All of it is verified by its digests. A connection that breaks is made anew for what is left;
/// what an earlier pull left unfinished in a layout or in containerd's store is completed.
#[expect(
    rustdoc::broken_intra_doc_links,
    reason = "this is a help: `[:TAG]` is what may be left out"
)]
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Pull {
    /// The image: [docker://]REGISTRY/NAME[:TAG][@DIGEST], or oci:DIR[:TAG],
    /// oci-archive:FILE[:TAG], containerd:NAME.
    #[arg(value_name = "IMAGE")]
    from: String,

    /// Where to: oci:DIR[:TAG], oci-archive:FILE[:TAG], or NAME in containerd's store.
    /// Default: containerd's store, by the same name.
    #[arg(value_name = "DESTINATION")]
    to: Option<Place>,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    progress: ProgressArgs,
}

impl Pull {
    pub(super) fn run(self) -> Result<(), Failure> {
        let named = self.from.starts_with("containerd:");
        let from = match self.from.parse().map_err(anyhow::Error::from)? {
            // A name alone is one of a registry here.
            Place::Containerd(name) if !named => Place::Registry(name),
            other => other,
        };
        let to = match (self.to, &from) {
            (Some(to), _) => to,
            (None, Place::Registry(name)) => {
                let mut name = name.clone();
                // The store has an image by a name, and its digest is checked before.
                if name.digest.take().is_some() && name.tag.is_none() {
                    return Err(anyhow!("name the image that it shall be here").into());
                }
                Place::Containerd(name)
            }
            (None, _) => return Err(anyhow!("name where to copy it to").into()),
        };
        images::copied(&from, &to, &self.access, self.progress, "pulling")
    }
}
