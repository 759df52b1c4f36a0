//! The container engine: what makes, starts and removes containers.
//!
//! [`Engine`] is what the shim needs of an engine. [`Zygote`] is the one there
//! is: youki's libcontainer, which may only run in a process of one thread, so
//! it runs in workers that a zygote forks ([`zygote`]). Control groups
//! ([`cgroup`]) are ours, or those that [`systemd`] hands to us, since CRIU and
//! restored containers need more than libcontainer gives.
#![forbid(unsafe_code)]

pub mod adapt;
pub mod cgroup;
mod client;
mod console;
mod copy;
mod devices;
mod exec;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layers;
pub mod mountpoint;
mod mounts;
mod private;
mod program;
pub mod protocol;
mod resources;
pub mod spec;
pub mod systemd;
mod userns;
mod worker;
pub mod zygote;

pub use client::{Enclosed, Engine, Error, ExecSpec, Started, ZYGOTE_ARG, Zygote};
pub use protocol::{ClockOffset, CreateOptions, FailureKind, HookPhase, MappedRoot, Target};
