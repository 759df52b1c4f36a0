//! The Task service: containers, their streams, checkpoint and restore.

mod actor;
mod checkpoint;

pub mod container;
pub mod context;
mod criu;
pub mod delete;
pub mod dump;
mod failures;
mod gate;
mod hostname;
mod kill;
pub mod memory;
pub mod oom;
pub mod owners;
mod pause;
mod place;
mod portable;
pub mod process;
pub mod reaper;
pub mod restore;
mod rootfs;
pub mod service;
pub mod settings;
pub mod state;
pub mod stats;
pub mod stdio;
mod transfer;
mod update;
