//! `cryoctl verify`.

mod fits;
mod foreign;
mod origin;
mod whole;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use self::origin::Origin;
use super::Format;
use crate::choice::Choice;
use crate::containerd::Socket;
use crate::failure::Failure;
use crate::finding::{self, Finding};
use crate::nodeinfo::{self, Node};
use crate::progress::ProgressArgs;
use crate::text;

/// Say whether a checkpoint is whole, and whether it can be restored here or on another node.
///
/// Reads all of criu's images, compares what they say of each other, and then what the checkpoint needs with
/// what the node has: architecture, processor features, criu, kernel, file systems, security
/// modules. What the new container has to bring along, such as its mounts, is named. Nothing is
/// unpacked or changed.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Verify {
    /// The checkpoint, in any form.
    checkpoint: PathBuf,

    /// The node to restore on, as `cryoctl node-info` printed it there [default: this one].
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,

    /// The node that the checkpoint is of, likewise. Features of its processor that the other
    /// lacks are told, since programs choose by them when they start, and an older criu or kernel.
    /// Without it, what the checkpoint says itself is compared.
    #[arg(long, value_name = "FILE")]
    origin: Option<PathBuf>,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    socket: Socket,

    #[command(flatten)]
    progress: ProgressArgs,

    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  nothing is in the way of a restore; there may be warnings
  1  something is: stdout says what, and what to do; or it cannot be opened, which stderr says
  2  the command line is wrong";

impl Verify {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let source = self.choice.checkpoint(&self.checkpoint)?;
        let node = match &self.node {
            Some(path) => read_node(path)?,
            None => Node::here(Some(&self.socket)),
        };
        let told = self.origin.as_deref().map(read_node).transpose()?;
        let mut all = Vec::new();
        let total = source.entries().iter().map(|entry| entry.size_bytes).sum();
        let progress = self.progress.start("verifying", total);
        let facts = whole::look(&source, &progress, &mut all);
        drop(progress);
        let mut origin = Origin::of_checkpoint(&source).unwrap_or_else(|error| {
            all.push(Finding::warning(
                "origin",
                format!("where it was made cannot be read: {error}"),
                "name the node by --origin, or make the checkpoint again",
            ));
            Origin::default()
        });
        if let Some(told) = &told {
            origin = origin.told_by(told);
        }
        fits::look(&facts, &node, &origin, &mut all);
        let good = !finding::any_error(&all);
        let text = match self.format {
            Format::Text => render(&all, good, &node.hostname),
            Format::Json => text::pretty(&json!({
                "restorable": good,
                "node": node.hostname,
                "findings": all,
            }))?,
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::from(u8::from(!good)))
    }
}

fn render(all: &[Finding], good: bool, node: &str) -> String {
    let mut text = finding::render(all);
    let node = text::printable(node);
    text.push_str(&if good {
        format!("nothing is in the way of a restore on {node}\n")
    } else {
        format!("it cannot be restored on {node} as it is\n")
    });
    text
}

fn read_node(path: &Path) -> anyhow::Result<Node> {
    let named = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", named()))?;
    let node: Node = serde_json::from_str(&text)
        .with_context(|| format!("{} is not of `cryoctl node-info`", named()))?;
    if node.node_info_version != nodeinfo::FORM {
        bail!(
            "{} is of version {}, and only {} is known: make it with this cryoctl",
            named(),
            node.node_info_version,
            nodeinfo::FORM
        );
    }
    Ok(node)
}
