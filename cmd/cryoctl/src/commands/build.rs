//! `cryoctl build`.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use clap::{Args, ValueEnum};
use cryo_checkpoint::dump_log::Versions;
use cryo_checkpoint::layout;
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::annotations::Facts;
use cryo_checkpoint::oci::image::{Compression, Image, Layer, LayerWriter};
use cryo_checkpoint::oci::model::{Descriptor, Platform};
use cryo_checkpoint::oci::reference::Place;
use cryo_checkpoint::source::{self, Source};
use cryo_criu_image::Kind;
use cryo_criu_image::task::{Arch, Core};

use crate::choice::Choice;
use crate::failure::Failure;
use crate::images::{self, ATTEMPTS, Access, Broken, Sink, Target};
use crate::node;
use crate::progress::ProgressArgs;

/// Make an image of a checkpoint, for engines to restore from and registries to keep
///
/// The image has one layer with the files of the checkpoint, and the annotations by which
/// containerd, CRI-O and Podman know a checkpoint, in its index and its manifest. The same
/// checkpoint, with the same options, has the same digest each time. A build into a registry that
/// was killed goes on where it was when it is run again.
///
/// DESTINATION is one of
///
///   NAME[:TAG]                   an image in containerd's store, here and now
///   containerd:NAME[:TAG]        the same
///   docker://REGISTRY/NAME:TAG   an image in a registry
///   oci:DIR[:TAG]                an OCI image layout
///   oci-archive:FILE[:TAG]       the same as a tar archive, as 'podman load' takes it
#[expect(
    rustdoc::broken_intra_doc_links,
    reason = "this is a help: `[:TAG]` is what may be left out"
)]
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = super::EXIT_CODES)]
pub(super) struct Build {
    /// The checkpoint: an archive, the same unpacked, or an image of one.
    checkpoint: PathBuf,

    #[command(flatten)]
    choice: Choice,

    /// Where to put the image.
    #[arg(required_unless_present = "to", value_name = "DESTINATION")]
    image: Option<Place>,

    /// The same as DESTINATION.
    #[arg(long, value_name = "DESTINATION", conflicts_with = "image")]
    to: Option<Place>,

    /// How to compress the layer.
    #[arg(long, value_enum, default_value_t = Method::Zstd)]
    compression: Method,

    /// How hard to: 0 to 9 for gzip, 1 to 19 for zstd. Default: 6 for gzip, 3 for zstd.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=19))]
    level: Option<u32>,

    /// Say of the checkpoint what it does not say itself, as engine.version=2.1.9. What it says
    /// otherwise is refused. Names: those after org.criu.checkpoint. in docs/images.md.
    #[arg(long = "fact", value_name = "NAME=VALUE", value_parser = pair)]
    facts: Vec<(String, String)>,

    /// The checkpoint was made on this node: say its distribution, kernel, cgroup version and
    /// version of CRIU.
    #[arg(long)]
    this_node: bool,

    /// One more annotation.
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = pair)]
    annotations: Vec<(String, String)>,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    progress: ProgressArgs,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    /// Zstandard, on all processors.
    Zstd,
    /// gzip, for engines from before 2020.
    Gzip,
    /// Not at all.
    None,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is not NAME=VALUE".to_owned()),
    }
}

impl Build {
    pub(super) fn run(self) -> Result<(), Failure> {
        // A directory has no other order, and is to have the digest that its archive has.
        let source = self.choice.checkpoint(&self.checkpoint)?.sorted();
        let mut facts = facts(&source)?;
        let machine = machine(&source)?;
        match machine {
            Some(Arch::Unknown(_)) | None => {}
            Some(known) => facts.learn_architecture(known.as_str()),
        }
        if self.this_node {
            for (name, value) in node::facts() {
                facts
                    .state(name, &value)
                    .context("the checkpoint was not made on this node")?;
            }
        }
        for (name, value) in &self.facts {
            facts.state(name, value).map_err(anyhow::Error::from)?;
        }
        if let (Some(Arch::Unknown(number)), None) = (machine, facts.platform()) {
            return Err(anyhow!(
                "it was made on a machine that is not known here, number {number} of criu's: name it by --fact host.arch=NAME"
            )
            .into());
        }
        let place = self
            .to
            .as_ref()
            .or(self.image.as_ref())
            .context("no destination")?;
        let root = self.image(&source, &facts, place).map_err(images::failed)?;
        images::tell(place, &root)?;
        Ok(())
    }

    fn image(&self, source: &Source, facts: &Facts, place: &Place) -> anyhow::Result<Descriptor> {
        let platform = facts
            .platform()
            .unwrap_or_else(|| Platform::linux(std::env::consts::ARCH));
        let mut annotations = facts.annotations();
        annotations.extend(self.annotations.iter().cloned());
        let mut target = images::target(place, &self.access)?;
        let made_of = self.made_of(source, facts);
        let layer = self.layer(source, &made_of, target.as_mut())?;
        let image = Image::new(layer, &platform, facts.checkpointed(), &annotations)?;
        let (config, bytes) = &image.config;
        put(target.as_mut(), config, bytes)?;
        target.document(&image.manifest.0, &image.manifest.1)?;
        target.document(&image.index.0, &image.index.1)?;
        target.name(&image.index.0)?;
        Ok(image.index.0)
    }

    /// By what one knows, before all of it is read, that it becomes the same layer.
    fn made_of(&self, source: &Source, facts: &Facts) -> Digest {
        let files: Vec<_> = source
            .entries()
            .iter()
            .map(|entry| (&entry.name, entry.size_bytes))
            .collect();
        let (how, when, what) = (self.compression, facts.checkpointed(), facts.annotations());
        let level = self.level;
        Digest::of(format!("{how:?} {level:?} {when:?} {what:?} {files:?}").as_bytes())
    }

    fn compression(&self) -> anyhow::Result<Compression> {
        Ok(match (self.compression, self.level) {
            (Method::None, None) => Compression::None,
            (Method::None, Some(_)) => anyhow::bail!("--level needs a compression"),
            (Method::Gzip, level) => {
                let level = level.unwrap_or(6);
                ensure!(level <= 9, "gzip has no level {level}: 0 to 9");
                Compression::Gzip(level)
            }
            (Method::Zstd, level) => {
                let level = level.unwrap_or(3);
                ensure!(level > 0, "zstd has no level 0: 1 to 19");
                Compression::Zstd(level.cast_signed())
            }
        })
    }

    /// Writes the files of the checkpoint as a layer.
    fn layer(
        &self,
        source: &Source,
        made_of: &Digest,
        target: &mut dyn Target,
    ) -> anyhow::Result<Layer> {
        let compression = self.compression()?;
        let mut tries = 0;
        loop {
            tries += 1;
            let sink = target.begin_new(made_of)?;
            let went_on = sink.offset() > 0;
            match self.write_layer(source, compression, sink) {
                Ok(layer) => return Ok(layer),
                // What an earlier try left was not of this; now it is gone.
                Err(Broken::Content(_)) if went_on && tries < ATTEMPTS => {}
                Err(Broken::Forgotten(_)) if tries < ATTEMPTS => {}
                Err(broken) => return Err(broken.into_error()),
            }
        }
    }

    fn write_layer(
        &self,
        source: &Source,
        compression: Compression,
        sink: Box<dyn Sink + '_>,
    ) -> Result<Layer, Broken> {
        let total = source.entries().iter().map(|entry| entry.size_bytes).sum();
        let progress = self.progress.start("building", total);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let there = Rest {
            there: sink.offset(),
            sink,
        };
        let mut writer = LayerWriter::new(there, compression, threads)?;
        for name in directories(source) {
            writer.archive().directory(name)?;
        }
        source.visit(
            |_| true,
            |entry, content| -> anyhow::Result<()> {
                let mut content = Counted {
                    inner: content,
                    count: &|bytes| progress.add(bytes),
                };
                writer
                    .archive()
                    .file(&entry.name, entry.size_bytes, &mut content)
                    .with_context(|| entry.name.clone())
            },
        )?;
        let (rest, layer) = writer.finish()?;
        rest.sink.commit(&layer.descriptor)?;
        Ok(layer)
    }
}

/// Writes what comes behind that which is there already: the same bytes, made anew. Whether they
/// are the same shows at the end, by the digest.
struct Rest<'a> {
    sink: Box<dyn Sink + 'a>,
    there: u64,
}

impl Write for Rest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = usize::try_from(self.there).unwrap_or(usize::MAX);
        match bytes.len().min(left) {
            0 => self.sink.write(bytes),
            passed => {
                self.there -= passed as u64;
                Ok(passed)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// The directories that have files, and the one that engines look for: who unpacks an archive
/// may have left out the empty ones, and who packs one the others.
fn directories(source: &Source) -> BTreeSet<&str> {
    let files = source.entries().iter().filter(|entry| !entry.directory);
    let parents = files.flat_map(|entry| {
        entry
            .name
            .match_indices('/')
            .map(|(at, _)| entry.name.split_at(at).0)
    });
    parents.chain([layout::CHECKPOINT_DIR]).collect()
}

/// A small blob.
fn put(target: &mut dyn Target, blob: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
    if target.has(blob)? {
        return Ok(());
    }
    let mut sink = target.begin(Some(blob))?;
    let there = usize::try_from(sink.offset())?;
    sink.write_all(bytes.get(there..).unwrap_or_default())?;
    sink.commit(blob).map_err(Broken::into_error)
}

/// What the files of a checkpoint say of it.
fn facts(source: &Source) -> Result<Facts, Failure> {
    let need = |name: &str| {
        let missing = source::Error::Missing {
            name: name.to_owned(),
        };
        source
            .read(name, source::MAX_JSON_BYTES)?
            .ok_or(missing)
            .map_err(Failure::from)
    };
    let (config, spec) = (need(layout::CONFIG_DUMP)?, need(layout::SPEC_DUMP)?);
    let mut facts = Facts::of(&config, &spec).map_err(anyhow::Error::from)?;
    facts.learn_versions(Versions::of(source).map_err(anyhow::Error::from)?);
    Ok(facts)
}

/// What it was made on; nothing where no process is in it.
fn machine(source: &Source) -> Result<Option<Arch>, source::Error> {
    let core = source
        .images()
        .find(|(name, _)| matches!(Kind::of_file_name(name), Some((Kind::Core, Some(_)))));
    match core {
        Some((_, entry)) => Ok(source.view::<Core>(&entry.name)?.map(|core| core.arch)),
        None => Ok(None),
    }
}

/// Counts what is read.
struct Counted<'a> {
    inner: &'a mut dyn Read,
    count: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.count)(read as u64);
        Ok(read)
    }
}
