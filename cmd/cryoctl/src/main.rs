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

mod commands;
mod containerd;
mod failure;
mod newfile;
mod progress;
mod table;
mod text;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match commands::Cryoctl::parse().run() {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
