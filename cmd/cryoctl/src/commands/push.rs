//! `cryoctl push`.

use anyhow::anyhow;
use clap::Args;
use cryo_checkpoint::oci::reference::Place;

use crate::failure::Failure;
use crate::images::{self, Access};
use crate::progress::ProgressArgs;

/// Copy an image to a registry.
///
/// What the registry has already is not sent again. A connection that breaks is made anew, and
/// the upload goes on where it was; so does one that was killed, when it is run again. The image
/// gets its name last.
///
/// IMAGE is NAME or containerd:NAME in containerd's store, oci:DIR[:TAG] or
/// oci-archive:FILE[:TAG].
#[expect(
    rustdoc::broken_intra_doc_links,
    reason = "this is a help: `[:TAG]` is what may be left out"
)]
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Push {
    /// The image.
    #[arg(value_name = "IMAGE")]
    from: Place,

    /// Its name in the registry, with or without docker:// in front. Default: the name that it
    /// has in containerd's store.
    #[arg(value_name = "DESTINATION")]
    to: Option<Place>,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    progress: ProgressArgs,
}

impl Push {
    pub(super) fn run(self) -> Result<(), Failure> {
        let to = match self.to.as_ref().unwrap_or(&self.from) {
            Place::Registry(name) | Place::Containerd(name) => Place::Registry(name.clone()),
            place if self.to.is_some() => {
                return Err(anyhow!(
                    "{place} is in no registry: 'cryoctl pull' copies to other places"
                )
                .into());
            }
            _ => return Err(anyhow!("name the image in the registry: REGISTRY/NAME:TAG").into()),
        };
        images::copied(&self.from, &to, &self.access, self.progress, "pushing")
    }
}
