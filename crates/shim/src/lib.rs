//! The containerd shim v2 runtime and the Task service.
//!
//! One program, four roles: [`args`] tells them apart and [`main_entry`] plays them. `start` is
//! [`bootstrap`]; `-info` and `-v` are [`info`]; the long-lived process is made of [`serve`],
//! [`events`], [`log`] and [`rpc`] around the Task service, which the caller of [`main_entry`]
//! brings along with the cleanup of `delete`.
#![forbid(unsafe_code)]

pub mod args;
pub mod bootstrap;
pub mod debug;
pub mod entry;
pub mod events;
pub mod info;
pub mod log;
pub mod options;
pub mod rpc;
pub mod run;
pub mod serve;
pub mod task;

pub use entry::{Entry, main_entry};
