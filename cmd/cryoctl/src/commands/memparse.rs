//! `cryoctl memparse`.

mod hexdump;
mod search;

use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use cryo_checkpoint::memory::{self, Memory};
use cryo_checkpoint::source::Source;
use cryo_criu_image::Kind;
use cryo_criu_image::mm::MemoryMap;
use cryo_criu_image::pagemap::PagemapTotals;
use cryo_criu_image::task::{Core, TaskState};
use serde_json::json;

use super::Format;
use crate::choice::Choice;
use crate::failure::Failure;
use crate::progress::ProgressArgs;
use crate::table::Table;
use crate::text::{bytes, printable};

/// Show how much memory processes have, print it, or search it.
///
/// Without options: a table of the processes of each checkpoint and the sizes of their memory. With
/// --pid: a hexdump of the memory of that process. With --search or --search-regex: where in the
/// memory something stands, in the order of the image; in that of all processes unless --pid
/// names one.
///
/// On stdout a hexdump has a `*` for rows that look like the one before; in a file named by
/// --output it has all rows. Nothing is unpacked to disk; memory in use is bounded, whatever the
/// size of the checkpoint.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Memparse {
    /// Checkpoints, in any form. Hexdump and search take the first.
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<PathBuf>,

    /// The process, by its pid in the container.
    #[arg(
        short,
        long,
        value_name = "PID",
        default_value_t = 0,
        hide_default_value = true
    )]
    pid: u32,

    /// Write to this file instead of to stdout. It is there once it is whole.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Search for a text; may be given several times. As in what is printed, a `?` also stands
    /// for a byte that is no printable ASCII.
    #[arg(short, long, value_name = "TEXT")]
    search: Vec<String>,

    /// Search for a regular expression; may be given several times.
    #[arg(short = 'r', long, value_name = "REGEX")]
    search_regex: Vec<String>,

    /// Show so many bytes on either side of each match, at most 65536.
    #[arg(
        short,
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true
    )]
    context: usize,

    /// How what is searched for is written in memory; several, separated by commas, are searched
    /// for at once.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "text")]
    encoding: Vec<search::Encoding>,

    /// How to print sizes and matches. The JSON keys name their units: `_bytes`.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Search, and write hexdumps to files, on so many threads, eight at most; 0: as many as there
    /// are processors. What is printed does not depend on it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// The checkpoint that an incremental one was made on top of, then the one below that. Pages
    /// are taken from those named here alone.
    #[arg(long, value_name = "CHECKPOINT")]
    parent: Vec<PathBuf>,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    progress: ProgressArgs,
}

impl Memparse {
    pub(super) fn run(mut self) -> Result<(), Failure> {
        // As for checkpointctl, what is empty was not given.
        self.search.retain(|text| !text.is_empty());
        self.search_regex.retain(|text| !text.is_empty());
        let first = self.checkpoints.first().context("no checkpoint")?;
        if !self.search.is_empty() || !self.search_regex.is_empty() {
            search::search(&self, first)
        } else if self.pid != 0 {
            hexdump::hexdump(&self, first)
        } else {
            self.sizes()
        }
    }

    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            number => number,
        }
    }

    fn sizes(&self) -> Result<(), Failure> {
        let mut text = String::new();
        let mut array = Vec::new();
        for path in &self.checkpoints {
            let source = self.choice.checkpoint(path)?;
            let sizes = sizes(&source)?;
            match self.format {
                Format::Json => array.push(json!({
                    "checkpoint": path.to_string_lossy(),
                    "processes": sizes.iter().map(Size::json).collect::<Vec<_>>(),
                })),
                Format::Text => text.push_str(&render(path, &sizes)),
            }
        }
        if let Format::Json = self.format {
            text = serde_json::to_string_pretty(&array).context("no JSON")? + "\n";
        }
        match &self.output {
            None => io::stdout().write_all(text.as_bytes())?,
            Some(path) => {
                let new = crate::newfile::NewFile::create(path)?;
                new.file().write_all(text.as_bytes())?;
                new.finish()?;
            }
        }
        Ok(())
    }

    /// The memory of a process, its parents' included.
    fn memory(&self, checkpoint: &Source, pid: u32) -> Result<Memory, Failure> {
        let (_, memory) = Memory::open(checkpoint, pid)?;
        with_parents(memory, &self.choice, &self.parent, pid)
    }
}

/// Memory with what its parents have of it, the nearest first.
pub(super) fn with_parents(
    memory: Memory,
    choice: &Choice,
    parents: &[PathBuf],
    pid: u32,
) -> Result<Memory, Failure> {
    let mut below: Option<Memory> = None;
    for path in parents.iter().rev() {
        let (_, parent) = Memory::open(&choice.checkpoint(path)?, pid)?;
        below = Some(match &below {
            Some(below) => parent.with_parent(below),
            None => parent,
        });
    }
    let memory = match &below {
        Some(below) => memory.with_parent(below),
        None => memory,
    };
    let missing = memory.missing();
    for (count, what) in [
        (
            missing.parent_bytes,
            "are in a parent checkpoint: name it by --parent",
        ),
        (missing.lazy_bytes, "were left to a page server"),
    ] {
        if count > 0 {
            eprintln!("note: {} of process {pid} {what}", bytes(count));
        }
    }
    Ok(memory)
}

/// Refuses pids that have no memory, in checkpointctl's words.
pub(super) fn check_pid(checkpoint: &Source, pid: u32) -> Result<(), Failure> {
    let living = memory::processes(checkpoint)?;
    if living.iter().any(|(process, _)| process.pid == pid) {
        return Ok(());
    }
    let name = checkpoint.image_name(Kind::Core, pid.into());
    if let Some(core) = checkpoint.view::<Core>(&name)? {
        if let Some(TaskState::Unknown(state)) = core.process.map(|own| own.state) {
            return Err(anyhow!(
                "process {pid} is in a state that is not known here, number {state} of criu's: its memory is not looked at"
            )
            .into());
        }
        return Err(
            anyhow!("process {pid} has no memory pages (task state is zombie or dead)").into(),
        );
    }
    Err(anyhow!("no process with PID {pid} (use `inspect --ps-tree` to view all PIDs)").into())
}

/// What a process has of memory.
struct Size {
    pid: u32,
    name: String,
    memory_bytes: u64,
    shared_bytes: u64,
}

impl Size {
    fn json(&self) -> serde_json::Value {
        json!({
            "pid": self.pid,
            "name": self.name,
            "memory_bytes": self.memory_bytes,
            "shared_memory_bytes": self.shared_bytes,
        })
    }
}

fn sizes(checkpoint: &Source) -> Result<Vec<Size>, Failure> {
    let mut sizes = Vec::new();
    for (process, core) in memory::processes(checkpoint)? {
        let map = memory::map(checkpoint, process.pid)?;
        sizes.push(Size {
            pid: process.pid,
            name: core.comm_lossy().into_owned(),
            memory_bytes: pages(checkpoint, process.pid)?.saturating_mul(map.page_bytes()),
            shared_bytes: shared_bytes(&map),
        });
    }
    Ok(sizes)
}

/// All pages that the pagemap speaks of, wherever they are.
fn pages(checkpoint: &Source, pid: u32) -> Result<u64, Failure> {
    let name = checkpoint.image_name(Kind::Pagemap, pid.into());
    let totals = PagemapTotals::read(&name, checkpoint.reader(&name)?)
        .map_err(|error| cryo_checkpoint::source::damaged(&name, error))?;
    Ok(totals
        .present
        .saturating_add(totals.parent)
        .saturating_add(totals.absent_lazy))
}

fn shared_bytes(map: &MemoryMap) -> u64 {
    let shared = map.areas.iter().filter(|area| area.is_shared());
    shared.fold(0, |sum, area| sum.saturating_add(area.bytes()))
}

fn render(path: &Path, sizes: &[Size]) -> String {
    let rows: Vec<_> = sizes
        .iter()
        .map(|size| {
            [
                size.pid.to_string(),
                printable(&size.name).into_owned(),
                bytes(size.memory_bytes),
                bytes(size.shared_bytes),
            ]
        })
        .collect();
    let mut table = Table::new(&["PID", "Process name", "Memory size", "Shared memory size"]);
    for row in &rows {
        table.fit(row.iter().map(String::as_str));
    }
    let mut text = format!(
        "\nDisplaying processes memory sizes from {}\n\n{}",
        path.display(),
        table.head()
    );
    for row in &rows {
        text.push_str(&table.row(row.iter().map(String::as_str)));
    }
    text
}
