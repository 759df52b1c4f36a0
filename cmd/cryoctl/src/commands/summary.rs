//! `cryoctl summary`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use cryo_checkpoint::source::Form;
use cryo_checkpoint::summary::{self, Process};

use super::Format;
use crate::choice::Choice;
use crate::failure::Failure;
use crate::text::{bytes, microseconds, printable};

/// Deepest level to which the process tree is indented.
const MAX_INDENT: usize = 32;

/// Show what is in a checkpoint.
///
/// Container, sizes, what the dump took, and the processes. Nothing is unpacked, and memory
/// pages are not read.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Summary {
    /// An archive (also gzip, zstd, bzip2, xz), an archive unpacked, an OCI layout or archive, or a
    /// directory of CRIU's images.
    path: PathBuf,

    /// How to print it. The JSON keys name their units: `_bytes`, `_us`.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// The stats-dump of the checkpoint, where it lies elsewhere: CRIU writes it into its work
    /// directory, which need not be the directory of the images.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,

    #[command(flatten)]
    choice: Choice,
}

impl Summary {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut summary = summary::Summary::of(&self.choice.checkpoint(&self.path)?)?;
        if let Some(stats) = &self.stats {
            summary.read_stats(stats)?;
        }
        let text = match self.format {
            Format::Text => render(&summary),
            Format::Json => {
                let mut json = serde_json::to_string_pretty(&summary).context("no JSON")?;
                json.push('\n');
                json
            }
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

fn render(summary: &summary::Summary) -> String {
    let mut lines = Vec::<(&str, String)>::new();
    if let Some(container) = &summary.container {
        let fields = [
            ("container", &container.name),
            ("id", &container.id),
            ("pod", &container.pod),
            ("namespace", &container.namespace),
            ("image", &container.image),
            ("runtime", &container.runtime),
            ("created", &container.created),
            ("checkpointed", &container.checkpointed),
        ];
        for (label, value) in fields {
            if let Some(value) = value {
                lines.push((label, printable(value).into_owned()));
            }
        }
        lines.push(("engine", container.engine.to_owned()));
    }
    lines.push((
        "form",
        match summary.form {
            Form::ImageDirectory => "image directory",
            Form::Archive => "archive",
            Form::ArchiveDirectory => "unpacked archive",
            Form::ImageArchive => "archive of images",
            Form::OciArchive => "OCI archive",
            Form::OciLayout => "OCI layout",
            _ => "unknown",
        }
        .to_owned(),
    ));

    let size = &summary.size;
    lines.push(("size", bytes(size.total_bytes)));
    lines.push(("memory", bytes(size.memory_bytes)));
    if let Some(diff) = size.rootfs_diff_bytes {
        lines.push(("rootfs diff", bytes(diff)));
    }
    match &summary.dump {
        Some(dump) => {
            lines.push(("freezing", microseconds(dump.freezing_time_us)));
            lines.push(("frozen", microseconds(dump.frozen_time_us)));
            lines.push(("memory dump", microseconds(dump.memdump_time_us)));
            lines.push(("memory write", microseconds(dump.memwrite_time_us)));
            lines.push((
                "pages",
                format!(
                    "{} scanned, {} written",
                    dump.pages_scanned, dump.pages_written
                ),
            ));
        }
        None => lines.push(("statistics", "none; name their file by --stats".to_owned())),
    }

    let width = lines
        .iter()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or_default()
        + 1;
    let mut text = String::new();
    for (label, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:width$} {value}", format!("{label}:"));
    }
    text.push_str("processes:\n");
    render_tree(&mut text, &summary.processes);
    text
}

/// Parents before children, siblings in the order of the image. Not recursive: a hostile tree
/// may be as deep as it is large.
fn render_tree(text: &mut String, processes: &[Process]) {
    let mut children = BTreeMap::<u32, Vec<&Process>>::new();
    for process in processes.iter().rev() {
        children.entry(process.ppid).or_default().push(process);
    }
    let mut stack: Vec<(usize, &Process)> = children
        .remove(&0)
        .unwrap_or_default()
        .into_iter()
        .map(|root| (1, root))
        .collect();
    while let Some((depth, process)) = stack.pop() {
        let indent = "  ".repeat(depth.min(MAX_INDENT));
        let _ = write!(
            text,
            "{indent}[{}] {}",
            process.pid,
            printable(&process.command)
        );
        let mut notes = Vec::new();
        if process.state != "alive" {
            notes.push(process.state.to_owned());
        }
        if process.threads > 1 {
            notes.push(format!("{} threads", process.threads));
        }
        if !notes.is_empty() {
            let _ = write!(text, " ({})", notes.join(", "));
        }
        text.push('\n');
        let below = children.remove(&process.pid).unwrap_or_default();
        stack.extend(below.into_iter().map(|child| (depth + 1, child)));
    }
}
