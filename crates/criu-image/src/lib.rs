//! CRIU's image files: framing, messages, typed views.
//!
//! # The format
//!
//! An image directory holds some twenty files. Most of them are framed:
//!
//! ```text
//! u32 le  0x54564319 (common) or 0x55105940 (service: stats, irmap cache)
//! u32 le  magic of the kind, e.g. 0x50273030 for pstree.img
//! { u32 le length, protobuf message of that length }*
//! ```
//!
//! `inventory.img` has its own magic alone. Some kinds carry raw bytes after each message, and
//! some (`pages-*.img`, tarballs, rule sets) are raw bytes from the first one on: see [`Body`].
//! [`Kind`] names them all, though only the framed ones are decoded here.
//!
//! # The contract
//!
//! * **Pure.** Readers take [`std::io::Read`], writers [`std::io::Write`]; nothing here opens a
//!   file, so whoever does decides about links and ownership.
//! * **Hostile bytes.** Images come from elsewhere. Nothing panics, memory is bounded by the
//!   [`Limits`] of the kind before anything is read, and every [`Error`] names file and offset.
//! * **Strict.** A field that CRIU requires and that is absent is an error, never a zero.
//!   Unknown *fields* are passed over, since a newer CRIU adds some in most releases.
//! * Names and paths are bytes: the kernel promises no encoding for them.
//!
//! Three levels, each usable alone: [`RawReader`] and [`Writer`] know the framing, [`msg`] the
//! messages, and [`Reader`] yields the typed views of [`inventory`], [`pstree`], [`task`],
//! [`registers`], [`mm`], [`files`], [`mounts`], [`pagemap`], [`seccomp`], [`cpuinfo`] and [`stats`].
//!
//! ```
//! use cryo_criu_image::{Kind, Reader, Writer, msg, pstree::Process};
//!
//! let mut bytes = Vec::new();
//! let mut image = Writer::new(Kind::Pstree, &mut bytes)?;
//! image.message(&msg::PstreeEntry { pid: Some(1), ppid: Some(0), pgid: Some(1), sid: Some(1), threads: vec![1] })?;
//!
//! let root = Reader::<Process, _>::new("pstree.img", bytes.as_slice())?.next().transpose()?;
//! assert_eq!(root.map(|task| task.pid), Some(1));
//! # Ok::<(), cryo_criu_image::Error>(())
//! ```
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

pub mod cpuinfo;
mod error;
pub mod files;
mod frame;
pub mod inventory;
mod kind;
pub mod mm;
pub mod mounts;
pub mod msg;
pub mod pagemap;
pub mod pstree;
pub mod registers;
pub mod seccomp;
pub mod security;
pub mod sockets;
pub mod stats;
pub mod task;
mod view;
mod wire;

pub use error::Error;
pub use frame::{RawEntry, RawReader, Writer};
pub use kind::{Body, Kind, Limits};
pub use view::{At, Reader, View};
