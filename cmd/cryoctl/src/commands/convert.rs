//! `cryoctl convert`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use cryo_checkpoint::convert::rootfs::{with_whiteouts, without_whiteouts};
use cryo_checkpoint::convert::{Converted, Engine, Fate, fate, metadata};
use cryo_checkpoint::layout;
use cryo_checkpoint::source::{self, Source};
use cryo_checkpoint::write::Archive;
use flate2::write::GzEncoder;
use rustix::fs::{Mode, OFlags};

use crate::choice::Choice;
use crate::failure::Failure;
use crate::newfile::NewFile;
use crate::progress::{Progress, ProgressArgs};
use crate::text::printable;

/// Make an archive of one engine into that of another.
///
/// CRIU's images are the same for all engines; the files around them are translated. What the
/// other engine has no place for, and what it will want besides, is told on stderr.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct Convert {
    /// The engine that shall read it.
    #[arg(long, value_enum)]
    to: To,

    /// The low-level runtime that CRI-O or Podman shall restore it by.
    #[arg(long, value_name = "NAME", default_value = "runc")]
    runtime: String,

    /// The checkpoint, in any form.
    #[arg(value_name = "IN")]
    from: PathBuf,

    /// The archive to make. It is not compressed.
    out: PathBuf,

    #[command(flatten)]
    choice: Choice,

    #[command(flatten)]
    progress: ProgressArgs,
}

/// An engine.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    /// containerd's CRI.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
}

impl From<To> for Engine {
    fn from(to: To) -> Self {
        match to {
            To::Containerd => Self::Containerd,
            To::CriO => Self::CriO,
            To::Podman => Self::Podman,
        }
    }
}

impl Convert {
    pub(super) fn run(self) -> Result<(), Failure> {
        let to = Engine::from(self.to);
        let source = self.choice.checkpoint(&self.from)?;
        let need = |name: &str| {
            let missing = source::Error::Missing {
                name: name.to_owned(),
            };
            source.read(name, source::MAX_JSON_BYTES)?.ok_or(missing)
        };
        let (config, spec) = (need(layout::CONFIG_DUMP)?, need(layout::SPEC_DUMP)?);
        let mut converted =
            metadata(to, &config, &spec, &self.runtime).map_err(anyhow::Error::from)?;

        let new = NewFile::create(&self.out)?;
        let total = source.entries().iter().map(|entry| entry.size_bytes).sum();
        let progress = self.progress.start("converting", total);
        let mut archive = Archive::new(BufWriter::new(new.file()));
        archive.directory(layout::CHECKPOINT_DIR)?;
        for (name, bytes) in &converted.files {
            archive.file(name, bytes.len() as u64, &mut bytes.as_slice())?;
        }
        self.files(&source, &mut archive, &mut converted, &progress)?;
        self.root(&source, &mut archive, &mut converted)?;
        archive.finish()?.flush()?;
        drop(progress);
        new.finish()?;
        for note in &converted.notes {
            writeln!(io::stderr(), "note: {}", printable(note))?;
        }
        Ok(())
    }

    /// What is copied or left out.
    fn files(
        &self,
        source: &Source,
        archive: &mut Archive<impl Write>,
        converted: &mut Converted,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let to = Engine::from(self.to);
        let mut left_out = Vec::new();
        let written: Vec<&str> = converted.files.keys().copied().collect();
        source.visit(
            |entry| match fate(&entry.name, to) {
                Fate::Translated => false,
                Fate::LeftOut(why) => {
                    left_out.push((entry.name.clone(), why));
                    false
                }
                Fate::Copied(_) | Fate::Kept => !written.contains(&entry.name.as_str()),
            },
            |entry, content| -> Result<(), Failure> {
                let name = match fate(&entry.name, to) {
                    Fate::Copied(name) => name,
                    _ => &entry.name,
                };
                archive.file(name, entry.size_bytes, content)?;
                progress.add(entry.size_bytes);
                Ok(())
            },
        )?;
        for (name, why) in left_out {
            converted.notes.push(format!("{name} is left out: {why}"));
        }
        Ok(())
    }

    /// What the container changed in its root file system.
    fn root(
        &self,
        source: &Source,
        archive: &mut Archive<impl Write>,
        converted: &mut Converted,
    ) -> Result<(), Failure> {
        let to = Engine::from(self.to);
        if source.file(layout::ROOTFS_DIFF).is_none() {
            return Ok(());
        }
        let damaged = || format!("the checkpoint is damaged: {}", layout::ROOTFS_DIFF);
        let mut diff = BufReader::new(source.reader(layout::ROOTFS_DIFF)?);
        let packed = io::BufRead::fill_buf(&mut diff)?.starts_with(&[0x1f, 0x8b]);
        let diff: Box<dyn Read> = if packed {
            Box::new(flate2::bufread::MultiGzDecoder::new(diff))
        } else {
            Box::new(diff)
        };
        let scratch = scratch(&self.out)?;
        if to.lists_deleted_files() == converted.from.lists_deleted_files() {
            io::copy(&mut { diff }, &mut BufWriter::new(&scratch)).with_context(damaged)?;
            if let Some(list) = source.read(layout::DELETED_FILES, source::MAX_JSON_BYTES)? {
                archive.file(
                    layout::DELETED_FILES,
                    list.len() as u64,
                    &mut list.as_slice(),
                )?;
            }
        } else if to.lists_deleted_files() {
            let deleted =
                without_whiteouts(diff, BufWriter::new(&scratch)).with_context(damaged)?;
            let list = serde_json::to_vec_pretty(&deleted.paths).context("no JSON")?;
            archive.file(
                layout::DELETED_FILES,
                list.len() as u64,
                &mut list.as_slice(),
            )?;
            for path in deleted.opaque {
                converted.notes.push(format!(
                    "{path} had been made anew, and what the image has there shows through again"
                ));
            }
        } else {
            let list: Option<Option<Vec<String>>> = source.json(layout::DELETED_FILES)?;
            let list = list.flatten().unwrap_or_default();
            let mut layer =
                GzEncoder::new(BufWriter::new(&scratch), flate2::Compression::default());
            with_whiteouts(diff, &list, &mut layer).with_context(damaged)?;
            layer.finish()?.flush()?;
        }
        let mut scratch = scratch;
        let size = scratch.stream_position()?;
        scratch.rewind()?;
        archive.file(layout::ROOTFS_DIFF, size, &mut scratch)?;
        Ok(())
    }
}

/// A file without a name, beside another.
fn scratch(beside: &Path) -> anyhow::Result<File> {
    let parent = beside
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(parent, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("{} takes no temporary file", parent.display()))?;
    Ok(file.into())
}
