//! From an image of a registry's kind to the one layer that holds the checkpoint.

use std::io::{self, Read};

use super::blob::Blob;
use super::error::Error;
use crate::oci::model::{Descriptor, Document, MAX_DOCUMENT_BYTES, Platform};
use crate::oci::{Digest, Hasher};

/// How deep indexes may stand in indexes.
const MAX_DEPTH: usize = 4;

/// The images of a task checkpoint in the index that `ctr container checkpoint` makes.
const CRIU_TAR: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// Where the blobs of an image are: a layout, a content store.
pub trait Blobs {
    /// The blob with this digest; its content need not be verified.
    ///
    /// # Errors
    ///
    /// Whatever looking for it says; [`Error::Missing`] if it is not there.
    fn blob(&self, digest: &Digest) -> Result<Blob, Error>;
}

/// The layer of the image of which `bytes` are the index or manifest, verified; and its digest.
pub(super) fn layer(blobs: &dyn Blobs, name: &str, bytes: &[u8]) -> Result<(Blob, Digest), Error> {
    follow(blobs, name, bytes, None, MAX_DEPTH)
}

/// The same, of the index or manifest with this descriptor.
pub(super) fn layer_of(blobs: &dyn Blobs, root: &Descriptor) -> Result<(Blob, Digest), Error> {
    enter(blobs, root, MAX_DEPTH)
}

fn follow(
    blobs: &dyn Blobs,
    name: &str,
    bytes: &[u8],
    media_type: Option<&str>,
    depth: usize,
) -> Result<(Blob, Digest), Error> {
    let wrong = |source| Error::Image {
        name: name.to_owned(),
        source,
    };
    match Document::parse(media_type, bytes).map_err(wrong)? {
        Document::Index(index) => {
            if let Some(tar) = index.manifests.iter().find(|d| d.media_type == CRIU_TAR) {
                return Ok((verified(blobs, tar)?, tar.digest));
            }
            let platform = Platform::linux(std::env::consts::ARCH);
            enter(blobs, index.select(&platform).map_err(wrong)?, depth)
        }
        Document::Manifest(manifest) => match manifest.layers.as_slice() {
            [one] => Ok((verified(blobs, one)?, one.digest)),
            layers => Err(Error::Layers {
                name: name.to_owned(),
                found: layers.len(),
            }),
        },
    }
}

fn enter(
    blobs: &dyn Blobs,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<(Blob, Digest), Error> {
    let name = descriptor.digest.to_string();
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Error::TooDeep { name });
    };
    if descriptor.size > MAX_DOCUMENT_BYTES {
        return Err(Error::TooLarge {
            name,
            size_bytes: descriptor.size,
            limit_bytes: MAX_DOCUMENT_BYTES,
        });
    }
    let mut bytes = Vec::new();
    verified(blobs, descriptor)?
        .reader()
        .and_then(|reader| reader.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes))
        .map_err(|source| Error::Unreadable {
            name: name.clone(),
            source,
        })?;
    follow(blobs, &name, &bytes, Some(&descriptor.media_type), depth)
}

/// The blob of a descriptor, once it was read and found to be that.
fn verified(blobs: &dyn Blobs, descriptor: &Descriptor) -> Result<Blob, Error> {
    let blob = blobs.blob(&descriptor.digest)?;
    let other = |found| {
        Err(Error::Digest {
            digest: descriptor.digest,
            found,
        })
    };
    if blob.length() != descriptor.size {
        return other(format!("{} bytes, not {}", blob.length(), descriptor.size));
    }
    match digest_of(&blob) {
        Ok(found) if found == descriptor.digest => Ok(blob),
        Ok(found) => other(found.to_string()),
        Err(source) => Err(Error::Unreadable {
            name: descriptor.digest.to_string(),
            source,
        }),
    }
}

fn digest_of(blob: &Blob) -> io::Result<Digest> {
    let mut reader = blob.reader()?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}
