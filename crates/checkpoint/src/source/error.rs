//! Why a checkpoint cannot be read.

use std::io;

use cryo_criu_image::Kind;
use cryo_criu_image::inventory::UnknownVersion;

use crate::oci::{Digest, model};
use crate::{layout, tar_stream};

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be opened or read.
    #[error("{name} cannot be read")]
    Unreadable {
        /// The path, or a file in the checkpoint.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory or an archive, but none of a checkpoint.
    #[error(
        "{path} is not a checkpoint: it has neither {} nor a directory {}",
        Kind::Inventory.file_name(0), layout::CHECKPOINT_DIR
    )]
    NotACheckpoint {
        /// The directory or archive.
        path: String,
    },
    /// It holds the checkpoints of several containers where one is asked for.
    #[error("{path} is of a pod with several containers: {}", containers.join(", "))]
    Pod {
        /// The archive or directory.
        path: String,
        /// What the containers are called in it.
        containers: Vec<String>,
    },
    /// The archive is none, is damaged, or holds what no checkpoint does.
    #[error(transparent)]
    Archive(#[from] tar_stream::Error),
    /// Something is wrong with what lies in something else: a layer of an image, an archive in an
    /// archive.
    #[error("{name}")]
    Within {
        /// What it lies in.
        name: String,
        /// What is wrong.
        source: Box<Error>,
    },
    /// The document of an image cannot be used.
    #[error("{name} is not of a checkpoint's image")]
    Image {
        /// The index or manifest.
        name: String,
        /// What is wrong.
        source: model::Error,
    },
    /// An image with other than one layer, as a checkpoint's has.
    #[error("{name} is not of a checkpoint's image: it has {found} layers and not one")]
    Layers {
        /// The manifest.
        name: String,
        /// How many layers it has.
        found: usize,
    },
    /// Indexes in indexes.
    #[error("{name} is not of a checkpoint's image: it stands in too many indexes")]
    TooDeep {
        /// The document that stands too deep.
        name: String,
    },
    /// A blob that is not what its digest says.
    #[error("the image is damaged: {digest} has other content: {found}")]
    Digest {
        /// The digest by which it is named.
        digest: Digest,
        /// The digest, or the length, that it has.
        found: String,
    },
    /// Something in the directory is not a regular file.
    #[error("the checkpoint is unsafe: {name} is {what}")]
    Foreign {
        /// The file.
        name: String,
        /// What it is, with its article.
        what: &'static str,
    },
    /// There are more files than any checkpoint has.
    #[error("the checkpoint is unsafe: more than {limit} files")]
    TooManyFiles {
        /// How many there may be.
        limit: usize,
    },
    /// A name that stands twice in an archive, so that tools may disagree on what it says.
    #[error("the checkpoint is unsafe: {name} is there twice, again at offset {offset}")]
    Duplicate {
        /// The entry.
        name: String,
        /// Where the second one's header stands in the archive.
        offset: u64,
    },
    /// A file that every checkpoint has is not there.
    #[error("the checkpoint is incomplete: {name} is missing")]
    Missing {
        /// The file.
        name: String,
    },
    /// An image cannot be decoded.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    Damaged {
        /// The file.
        name: String,
        /// What is wrong, and where.
        source: cryo_criu_image::Error,
    },
    /// A JSON file cannot be decoded.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    BadJson {
        /// The file.
        name: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A file that is read whole is too long.
    #[error(
        "the checkpoint is unsafe: {name} has {size_bytes} bytes, more than the limit of {limit_bytes}"
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Its length.
        size_bytes: u64,
        /// How long it may be.
        limit_bytes: u64,
    },
    /// An image says what is not known here.
    #[error("{name} is of a newer criu than is known here")]
    Newer {
        /// The file.
        name: String,
        /// What is not known, and where.
        source: cryo_criu_image::Error,
    },
    /// The images are of a version that we do not know.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

impl Error {
    /// What one can do about it, where that is not plain.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotACheckpoint { .. } => FORMS,
            Self::Archive(tar_stream::Error::Compressed { .. }) => {
                "it is compressed twice: decompress it once"
            }
            Self::Archive(tar_stream::Error::BadHeader { offset: 0, .. }) => FORMS,
            Self::Archive(tar_stream::Error::Truncated { .. } | tar_stream::Error::Io { .. })
            | Self::Missing { .. } => {
                "make the checkpoint again, or copy all of it: the dump or a copy was cut short"
            }
            Self::Damaged { .. } | Self::BadJson { .. } | Self::Digest { .. } => {
                "make the checkpoint again, or copy it anew from its origin"
            }
            Self::Newer { .. } => {
                "use a cryoctl that knows it, or make the checkpoint without what is new, such as --compress of criu 4.3"
            }
            Self::Version(_) => "use a cryoctl that knows them",
            Self::Foreign { name, .. } if name.ends_with(layout::PARENT) => {
                "incremental checkpoints are not supported: make one without a parent"
            }
            Self::Foreign { .. }
            | Self::TooManyFiles { .. }
            | Self::Duplicate { .. }
            | Self::TooLarge { .. }
            | Self::Archive(
                tar_stream::Error::Foreign { .. } | tar_stream::Error::TooManyEntries { .. },
            ) => "do not use it unless you know where it comes from: no engine writes this",
            Self::Within { source, .. } => return source.hint(),
            _ => return None,
        })
    }
}

const FORMS: &str = "name an archive, its unpacked directory, an OCI layout, or the directory that holds inventory.img";
