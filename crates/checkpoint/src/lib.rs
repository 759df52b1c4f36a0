//! What a checkpoint is: layouts, metadata, summaries.
//!
//! A checkpoint appears in many forms, and [`source::Source`] reads them all:
//!
//! * an **image directory**: CRIU's files, flat, plus [`layout::DESCRIPTORS`]. A task service
//!   writes it at a checkpoint and reads it at a restore. [`image_dir::check`] is the gate
//!   before the latter;
//! * an **archive**: a tar with the image directory under [`layout::CHECKPOINT_DIR`] and what
//!   the engine above knew of the container beside it. containerd's CRI, CRI-O and Podman write
//!   it, compressed or not;
//! * the same unpacked, as an OCI image, or several of them as one of a pod.
//!
//! [`summary::Summary`] tells of all alike; [`oci`] is what images of checkpoints look like.
//!
//! # A checkpoint is hostile input
//!
//! It may come from another machine or tenant. Files are opened by known names only, beneath a
//! directory descriptor, without following links; what is not a regular file is refused; sizes
//! are bounded before anything is allocated; nothing is unpacked. Names and texts that end up
//! on a terminal may hold control characters: whoever prints them escapes them.
//!
//! # What does I/O
//!
//! [`image_dir`] and [`source`] open files, both through the private `flat` module; so does
//! [`failures`], which tells of checkpoints that did not come to be. The rest is pure:
//! [`tar_stream`] takes a reader, [`descriptors`] bytes.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod convert;
pub mod descriptors;
pub mod dump_log;
pub mod failures;
mod flat;
pub mod image_dir;
pub mod inspect;
pub mod layout;
pub mod memory;
pub mod metadata;
pub mod oci;
pub mod rootfs;
pub mod source;
pub mod summary;
pub mod tar_stream;
pub mod write;
