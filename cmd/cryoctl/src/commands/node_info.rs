//! `cryoctl node-info`.

use std::io::{self, Write};

use clap::Args;

use crate::containerd::Socket;
use crate::failure::Failure;
use crate::nodeinfo::Node;
use crate::text;

/// Print what this node is, as JSON, for `cryoctl verify --node` elsewhere.
///
/// Kernel, processor features, criu, cgroups, security modules, and the runtimes of containerd's CRI:
/// all that decides whether a checkpoint can be restored here. What cannot be asked is null.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct NodeInfo {
    #[command(flatten)]
    socket: Socket,
}

const AFTER_HELP: &str = "\
Examples:
  cryoctl node-info > node-b.json              on node b
  cryoctl verify c1.tar --node node-b.json     wherever the checkpoint is

Exit codes:
  0  it was done
  2  the command line is wrong";

impl NodeInfo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let text = text::pretty(&Node::here(Some(&self.socket)))?;
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}
