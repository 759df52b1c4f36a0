//! `cryoctl core`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use cryo_checkpoint::memory::elf::{Dump, Written};
use cryo_checkpoint::memory::{self};
use cryo_checkpoint::source::Source;
use cryo_criu_image::pstree::Process;
use serde_json::json;

use super::Format;
use super::memparse::{check_pid, with_parents};
use crate::choice::Choice;
use crate::failure::Failure;
use crate::newfile::NewFile;
use crate::progress::ProgressArgs;
use crate::text::{bytes, printable};

/// Write core files that a debugger opens: one per process.
///
/// A core file has the threads of a process with their registers, its memory, and which file is
/// mapped where. What was never changed of a mapped file is not in a checkpoint: give the
/// debugger the files of the container's image for that, as in
/// `gdb -iex "set sysroot ROOTFS" ROOTFS/bin/program core.1`.
///
/// Pages of zeros take no room on the disk. A core file is there once it is whole, and its owner
/// alone may read it: it has all that the program had in memory.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Core {
    /// A checkpoint, in any form.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,

    /// Of this process alone, by its pid in the container.
    #[arg(short, long, value_name = "PID")]
    pid: Option<u32>,

    /// The file to write, of one process; otherwise it is core.PID in the current directory.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// How to tell what was written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// The checkpoint that an incremental one was made on top of, then the one below that.
    #[arg(long, value_name = "CHECKPOINT")]
    parent: Vec<PathBuf>,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    progress: ProgressArgs,
}

impl Core {
    pub(super) fn run(self) -> Result<(), Failure> {
        let checkpoint = self.choice.checkpoint(&self.checkpoint)?;
        if let Some(pid) = self.pid {
            check_pid(&checkpoint, pid)?;
        }
        let mut living = memory::processes(&checkpoint)?;
        living.retain(|(process, _)| self.pid.is_none_or(|pid| pid == process.pid));
        if self.output.is_some() && living.len() > 1 {
            let pids: Vec<_> = living.iter().map(|(p, _)| p.pid.to_string()).collect();
            return Err(anyhow!(
                "there are {} processes ({}): name one by --pid, or leave --output out",
                living.len(),
                pids.join(", ")
            )
            .into());
        }
        for (process, core) in &living {
            let path = match &self.output {
                Some(path) => path.clone(),
                None => PathBuf::from(format!("core.{}", process.pid)),
            };
            let (dump, written) = self.write(&checkpoint, process, &path)?;
            self.tell(&path, process, &core.comm_lossy(), &dump, written)?;
        }
        Ok(())
    }

    fn write(
        &self,
        checkpoint: &Source,
        process: &Process,
        path: &Path,
    ) -> Result<(Dump, Written), Failure> {
        let mut dump = Dump::open(checkpoint, process)?;
        dump.memory = with_parents(dump.memory, &self.choice, &self.parent, process.pid)?;
        let new = NewFile::create(path)?;
        if !new.is_regular() {
            return Err(anyhow!(
                "{} is no regular file, and a core file has holes: name one",
                path.display()
            )
            .into());
        }
        let progress = self.progress.start("writing", dump.bytes());
        let written = dump.write(new.file(), |bytes| progress.add(bytes))?;
        new.finish()?;
        Ok((dump, written))
    }

    fn tell(
        &self,
        path: &Path,
        process: &Process,
        name: &str,
        dump: &Dump,
        written: Written,
    ) -> Result<(), Failure> {
        let executable = dump.executable().map(String::from_utf8_lossy);
        let line = match self.format {
            Format::Json => json!({
                "file": path.to_string_lossy(),
                "pid": process.pid,
                "name": name,
                "executable": executable,
                "threads": written.threads,
                "file_bytes": written.file_bytes,
                "page_bytes": written.page_bytes,
            })
            .to_string(),
            Format::Text => format!(
                "{}: process {} ({}) of {}, {} thread{}, {} of memory",
                path.display(),
                process.pid,
                printable(name),
                printable(executable.as_deref().unwrap_or("an unknown program")),
                written.threads,
                if written.threads == 1 { "" } else { "s" },
                bytes(written.page_bytes),
            ),
        };
        writeln!(io::stdout(), "{line}")?;
        Ok(())
    }
}
