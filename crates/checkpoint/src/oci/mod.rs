//! Checkpoints as OCI images: documents, digests, names, annotations, and what a registry says.
//!
//! The image of a checkpoint has one layer, whose files are those of the archive, and is named by
//! an index, because containerd looks for its marker there and CRI-O and Podman look for theirs
//! in the manifest:
//!
//! ```text
//! index     annotations of all three dialects
//! └─ manifest     the same annotations; platform linux/ARCH
//!    ├─ config    architecture, rootfs.diff_ids
//!    └─ layer     tar, gzip or zstd: config.dump spec.dump checkpoint/... rootfs-diff.tar ...
//! ```
//!
//! All of this is pure: bytes in, values out. What comes from outside (documents, headers,
//! credentials files) is bounded before it is parsed.

pub mod annotations;
pub mod auth;
mod digest;
pub mod image;
pub mod model;
pub mod reference;
pub mod url;

pub use digest::{BadDigest, Digest, Hasher};
