//! The checkpoint to restore, as a directory that containerd can be pointed at, or as the archive
//! that its CRI takes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cryo_checkpoint::layout;
use cryo_checkpoint::source::{Form, Source as Archive};
use cryo_checkpoint::write;
use serde::Deserialize;
use serde_json::Value;

use crate::choice::Choice;
use crate::progress::ProgressArgs;

/// Where archives are unpacked for the time of a restore: as large as they are, and nobody
/// else's to read.
const WORK: &str = "/var/lib/cryo";

/// Largest JSON files that are read.
const MAX_JSON_BYTES: u64 = 8 << 20;

/// A checkpoint to be restored. What was unpacked of it ends with it.
#[derive(Debug)]
pub(super) struct Source {
    /// As it was named.
    pub(super) named: PathBuf,
    images: PathBuf,
    /// The archive of the container alone: as it was named, or packed.
    archive: PathBuf,
    /// What was unpacked, or what is for the work alone.
    work: PathBuf,
    pub(super) config: Option<Config>,
    pub(super) spec: Option<Value>,
}

/// `config.dump`, what is needed of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    pub(super) id: String,
    pub(super) rootfs_image_name: String,
    pub(super) rootfs_image_ref: String,
}

impl Source {
    /// Opens a checkpoint of any form, for a container of its own or in a pod.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is none, or is unsafe.
    pub(super) fn open(
        path: &Path,
        choice: &Choice,
        in_pod: bool,
        progress: ProgressArgs,
    ) -> anyhow::Result<Self> {
        let named = std::path::absolute(path)?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(WORK);
        made.with_context(|| format!("cannot make {WORK}"))?;
        let work = Path::new(WORK).join(format!("restore-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&work)
            .with_context(|| format!("cannot make {}", work.display()))?;
        let mut source = Self {
            images: work.join(layout::CHECKPOINT_DIR),
            archive: named.clone(),
            named,
            work,
            config: None,
            spec: None,
        };
        if in_pod {
            source.pack(choice, progress)?;
        } else if source.named.is_dir() {
            source.directory(choice)?;
        } else {
            source.unpack(choice, progress)?;
        }
        Ok(source)
    }

    /// The directory of criu's images; what was changed in the root file system is beside it.
    pub(super) fn images(&self) -> &Path {
        &self.images
    }

    /// The archive, for CRI.
    pub(super) fn archive(&self) -> &Path {
        &self.archive
    }

    /// For what criu leaves.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Whether it is of a container of a pod.
    pub(super) fn is_of_pod(&self) -> bool {
        let spec = self.spec.as_ref();
        spec.and_then(crate::target::PodOf::read).is_some()
    }

    fn directory(&mut self, choice: &Choice) -> anyhow::Result<()> {
        if choice.container.is_some() {
            let all = Archive::open_all(&self.named)?;
            let chosen = choice.one(&self.named, all)?;
            // One that was found has the name of its directory.
            self.named.push(chosen.container().unwrap_or_default());
        }
        let below = self.named.join(layout::CHECKPOINT_DIR);
        self.images = if below.is_dir() {
            below
        } else {
            self.named.clone()
        };
        let inventory = self.images.join("inventory.img");
        if !inventory.is_file() {
            bail!("it is no checkpoint: there is no {}", inventory.display());
        }
        self.config = read_json(&self.named.join(layout::CONFIG_DUMP))?;
        self.spec = read_json(&self.named.join(layout::SPEC_DUMP))?;
        Ok(())
    }

    /// Makes an archive as CRI takes it, of what is none by itself: one container of a pod's, one
    /// that is compressed or unpacked, an image.
    fn pack(&mut self, choice: &Choice, progress: ProgressArgs) -> anyhow::Result<()> {
        let source = choice.one(&self.named, Archive::open_all(&self.named)?)?;
        self.config = source.json(layout::CONFIG_DUMP)?;
        self.spec = source.json(layout::SPEC_DUMP)?;
        let is_one = source.form() == Form::Archive && source.container().is_none();
        let is_plain = is_one && source.section(layout::CONFIG_DUMP)?.is_some();
        if is_plain {
            return Ok(());
        }
        self.archive = self.work.join("checkpoint.tar");
        let failed = || format!("cannot write {}", self.archive.display());
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.archive)
            .with_context(failed)?;
        let total = source.entries().iter().map(|entry| entry.size_bytes).sum();
        let progress = progress.start("packing", total);
        let mut packed = write::Archive::new(BufWriter::new(file));
        packed.directory(layout::CHECKPOINT_DIR)?;
        source.visit(
            |_| true,
            |entry, content| -> anyhow::Result<()> {
                packed
                    .file(&entry.name, entry.size_bytes, content)
                    .with_context(|| entry.name.clone())?;
                progress.add(entry.size_bytes);
                Ok(())
            },
        )?;
        packed.finish()?.flush().with_context(failed)
    }

    /// Takes the files that a restore needs out of an archive, of whatever form.
    fn unpack(&mut self, choice: &Choice, progress: ProgressArgs) -> anyhow::Result<()> {
        let archive = choice.one(&self.named, Archive::open_all(&self.named)?)?;
        DirBuilder::new().mode(0o700).create(&self.images)?;
        self.config = archive.json(layout::CONFIG_DUMP)?;
        self.spec = archive.json(layout::SPEC_DUMP)?;
        let target = |name: &str| match archive.image_of(name) {
            Some(image) => Some(self.images.join(image)),
            None if name == layout::ROOTFS_DIFF => Some(self.work.join(name)),
            None => None,
        };
        let entries = archive.entries().iter();
        let wanted = entries.filter(|entry| target(&entry.name).is_some());
        let progress = progress.start("unpacking", wanted.map(|entry| entry.size_bytes).sum());
        archive.visit(
            |entry| target(&entry.name).is_some(),
            |entry, content| {
                let Some(to) = target(&entry.name) else {
                    return Ok(());
                };
                let failed = || format!("{}: cannot be unpacked", entry.name);
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&to)
                    .with_context(failed)?;
                let copied = io::copy(content, &mut file).with_context(failed)?;
                if copied != entry.size_bytes {
                    bail!("the archive is cut short in {}", entry.name);
                }
                progress.add(copied);
                anyhow::Ok(())
            },
        )?;
        if !self.images.join("inventory.img").is_file() {
            bail!("it is no checkpoint: there is no inventory.img in it");
        }
        Ok(())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // What stays is in a directory of our own, with a name that says of what.
        let _ = fs::remove_dir_all(&self.work);
    }
}

fn parse<T: for<'a> Deserialize<'a>>(name: &str, from: impl Read) -> anyhow::Result<T> {
    let mut text = Vec::new();
    from.take(MAX_JSON_BYTES)
        .read_to_end(&mut text)
        .with_context(|| format!("{name} cannot be read"))?;
    serde_json::from_slice(&text).with_context(|| format!("{name} is damaged"))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> anyhow::Result<Option<T>> {
    match File::open(path) {
        Ok(file) => parse(&path.display().to_string(), file).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("{} cannot be read", path.display())),
    }
}
