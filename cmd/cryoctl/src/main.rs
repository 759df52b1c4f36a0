//! Read, compare, build and move checkpoints.
//!
//! Where it deals with running containers, it asks containerd for their processes.
//!
//! One file per subcommand in `commands`; `failure` turns errors into text and exit codes. What
//! a checkpoint *is* stands in `cryo-checkpoint`, not here.
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

mod choice;
mod commands;
mod containerd;
mod failure;
mod finding;
mod images;
mod interrupt;
mod newfile;
mod node;
mod nodeinfo;
mod options;
mod procfs;
mod progress;
mod shiminfo;
mod stats;
mod table;
mod target;
mod text;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    commands::main(std::env::args_os().collect())
}
