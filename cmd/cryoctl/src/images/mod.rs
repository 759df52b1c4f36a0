//! Images where they are: in a layout, an archive, containerd's store, a registry.
//!
//! An image is copied from a [`Source`] to a [`Target`] by its blobs, each verified against its
//! digest, and is named last: what was cut off is never an image. What both sides can continue is
//! continued: see [`Sink::offset`].

mod archive;
mod begun;
mod http;
mod layout;
mod login;
mod registry;
mod store;
mod upload;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use cryo_checkpoint::oci::model::{self, Descriptor, Document};
use cryo_checkpoint::oci::reference::{Place, Reference};
use cryo_checkpoint::oci::{Digest, Hasher};
use cryo_checkpoint::source;

use crate::failure::Failure;
use crate::progress::{Progress, ProgressArgs};

use store::Store;
use upload::Forgotten;

/// How deep indexes may be in each other.
const MAX_DEPTH: usize = 4;

/// Most blobs of an image.
const MAX_BLOBS: usize = 4096;

/// How often the transfer of a blob is begun again without an answer in between.
pub(crate) const ATTEMPTS: u32 = 5;

/// containerd's socket, unless something else is said.
const ADDRESS: &str = "/run/containerd/containerd.sock";

/// The kubelet's namespace.
const NAMESPACE: &str = "k8s.io";

/// containerd's default.
const SNAPSHOTTER: &str = "overlayfs";

/// How to reach registries and containerd.
#[derive(Debug, Clone, Args)]
pub(crate) struct Access {
    /// Talk to registries by HTTP. Those on this machine are tried by HTTPS and then by HTTP in
    /// any case.
    #[arg(long)]
    pub(crate) plain_http: bool,

    /// A file with certificates of authorities (PEM) that are trusted besides the system's when
    /// they speak for a registry.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// The file with the credentials for registries, as `docker login` and `podman login` write
    /// it. Default: $REGISTRY_AUTH_FILE, then Docker's, then Podman's.
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,

    /// containerd's socket.
    #[arg(
        long,
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = ADDRESS
    )]
    pub(crate) address: PathBuf,

    /// containerd's namespace; the kubelet's is k8s.io.
    #[arg(short, long, value_name = "NAME", env = "CONTAINERD_NAMESPACE", default_value = NAMESPACE)]
    pub(crate) namespace: String,

    /// containerd's snapshotter for which an image is unpacked in its store.
    #[arg(long, value_name = "NAME", default_value = SNAPSHOTTER)]
    pub(crate) snapshotter: String,
}

impl Default for Access {
    /// As `ctr` has it: from $CONTAINERD_ADDRESS and $CONTAINERD_NAMESPACE.
    fn default() -> Self {
        let variable = |name: &str, default: &str| match std::env::var(name) {
            Ok(value) if !value.is_empty() => value,
            _ => default.to_owned(),
        };
        Self {
            plain_http: false,
            ca: None,
            authfile: None,
            address: variable("CONTAINERD_ADDRESS", ADDRESS).into(),
            namespace: variable("CONTAINERD_NAMESPACE", NAMESPACE),
            snapshotter: SNAPSHOTTER.to_owned(),
        }
    }
}

/// Opens a checkpoint to look at it: a path, or `containerd:NAME` for an image in containerd's
/// store. Of a pod there are several.
pub(crate) fn open(path: &Path) -> Result<Vec<source::Source>, Failure> {
    match in_store(path)? {
        Some(name) => Ok(vec![store::checkpoint(&Access::default(), &name)?]),
        None => Ok(source::Source::open_all(path)?),
    }
}

/// The name of an image in containerd's store, if that is what a path is.
fn in_store(path: &Path) -> Result<Option<Reference>, Failure> {
    let name = path
        .to_str()
        .and_then(|path| path.strip_prefix("containerd:"));
    let name = name.map(str::parse).transpose();
    Ok(name.map_err(anyhow::Error::from)?)
}

/// Where an image is read.
pub(crate) trait Source {
    /// The index or manifest that the image's name stands for, and its descriptor.
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)>;

    /// A blob's bytes from `offset` on.
    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>>;
}

/// Where an image is written.
pub(crate) trait Target {
    /// Whether a blob is there already.
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool>;

    /// Begins to write a blob, or goes on with the one that is `expected`.
    fn begin(&mut self, expected: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>>;

    /// Begins to write a blob whose digest only its end tells, or goes on with one that was
    /// `made_of` the same.
    fn begin_new(&mut self, _made_of: &Digest) -> anyhow::Result<Box<dyn Sink + '_>> {
        self.begin(None)
    }

    /// Writes an index or manifest, all of whose children are there.
    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()>;

    /// Gives the image its name, when all of it is there.
    fn name(&mut self, root: &Descriptor) -> anyhow::Result<()>;
}

/// A blob that is being written. One that is dropped without a commit is no blob.
pub(crate) trait Sink: Write {
    /// How much of it is there from an earlier try.
    fn offset(&self) -> u64 {
        0
    }

    /// Makes it a blob, if it is what the descriptor says; else nothing of it is kept.
    fn commit(self: Box<Self>, blob: &Descriptor) -> Result<(), Broken>;

    /// It cannot become what it was to be: nothing of it is to be kept for a later try.
    fn discard(self: Box<Self>) {}
}

/// Opens a place to read an image.
pub(crate) fn source(place: &Place, access: &Access) -> anyhow::Result<Box<dyn Source>> {
    Ok(match place {
        Place::Layout { path, tag } => Box::new(layout::Layout::open(path, tag.as_deref())?),
        Place::Archive { path, tag } => Box::new(archive::Archive::open(path, tag.as_deref())?),
        Place::Containerd(name) => Box::new(Store::connect(access, name)?),
        Place::Registry(name) => Box::new(registry::Registry::new(access, name, false)?),
    })
}

/// Opens a place to write an image.
pub(crate) fn target(place: &Place, access: &Access) -> anyhow::Result<Box<dyn Target>> {
    Ok(match place {
        Place::Layout { path, tag } => Box::new(layout::Layout::create(path, tag.as_deref())?),
        Place::Archive { path, tag } => Box::new(archive::Writer::create(path, tag.as_deref())?),
        Place::Containerd(name) => Box::new(Store::connect(access, &tagged(name)?)?.leased()?),
        Place::Registry(name) => Box::new(registry::Registry::new(access, &tagged(name)?, true)?),
    })
}

/// What is written has a tag: its digest comes of its content.
fn tagged(name: &Reference) -> anyhow::Result<Reference> {
    ensure!(
        name.digest.is_none(),
        "{name} names an image by its digest, which only its content decides: name a tag"
    );
    Ok(name.clone())
}

/// Copies an image and names it. Gives the descriptor of its root.
pub(crate) fn copy(
    from: &mut dyn Source,
    to: &mut dyn Target,
    progress: ProgressArgs,
    what: &'static str,
) -> anyhow::Result<Descriptor> {
    let (root, bytes) = from.root()?;
    let mut copier = Copier {
        from,
        to,
        progress,
        what,
        blobs: 0,
    };
    copier.document(&root, &bytes, 0)?;
    to.name(&root)?;
    Ok(root)
}

/// Copies an image from one place to another, and prints its name and digest.
pub(crate) fn copied(
    from: &Place,
    to: &Place,
    access: &Access,
    progress: ProgressArgs,
    what: &'static str,
) -> Result<(), Failure> {
    let copied = || {
        let mut source = source(from, access)?;
        let mut target = target(to, access)?;
        copy(source.as_mut(), target.as_mut(), progress, what)
    };
    tell(to, &copied().map_err(failed)?)?;
    Ok(())
}

/// Takes an error's causes for its text: a connection that broke is no reader of our output that
/// went away.
pub(crate) fn failed(error: anyhow::Error) -> Failure {
    anyhow::anyhow!("{error:#}").into()
}

/// Prints what was made, and by which digest one gets just that.
pub(crate) fn tell(place: &Place, root: &Descriptor) -> io::Result<()> {
    writeln!(io::stdout(), "{place} {}", root.digest)
}

struct Copier<'a> {
    from: &'a mut dyn Source,
    to: &'a mut dyn Target,
    progress: ProgressArgs,
    what: &'static str,
    blobs: usize,
}

impl Copier<'_> {
    fn document(
        &mut self,
        descriptor: &Descriptor,
        bytes: &[u8],
        depth: usize,
    ) -> anyhow::Result<()> {
        ensure!(
            depth < MAX_DEPTH,
            "the image is unsafe: more than {MAX_DEPTH} indexes are in each other"
        );
        let document = Document::parse(Some(&descriptor.media_type), bytes)?;
        for (child, is_document) in document.children() {
            self.blobs += 1;
            ensure!(
                self.blobs <= MAX_BLOBS,
                "the image is unsafe: it has more than {MAX_BLOBS} blobs"
            );
            if is_document {
                let bytes = whole(self.from, child)?;
                self.document(child, &bytes, depth + 1)?;
            } else {
                self.blob(child)
                    .with_context(|| format!("blob {}", child.digest))?;
            }
        }
        self.to.document(descriptor, bytes)
    }

    fn blob(&mut self, blob: &Descriptor) -> anyhow::Result<()> {
        if self.to.has(blob)? {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let sink = self.to.begin(Some(blob))?;
            let went_on = sink.offset() > 0;
            let progress = self.progress.start(self.what, blob.size);
            match fill(sink, self.from, blob, progress) {
                Ok(()) => return Ok(()),
                // What an earlier try left was not what it should be; now it is gone.
                Err(Broken::Content(_)) if went_on && tries < ATTEMPTS => {}
                Err(Broken::Forgotten(_)) if tries < ATTEMPTS => {}
                Err(broken) => return Err(broken.into_error()),
            }
        }
    }
}

/// Why a blob was not copied.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It has not what its descriptor says.
    Content(anyhow::Error),
    /// What was written before was lost on the other side.
    Forgotten(anyhow::Error),
    /// It could not be read or written. What was is kept.
    Transfer(anyhow::Error),
}

impl Broken {
    /// What is to be told.
    pub(crate) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Content(error) | Self::Forgotten(error) | Self::Transfer(error) => error,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.chain().any(|cause| cause.is::<Forgotten>()) {
            return Self::Forgotten(error);
        }
        Self::Transfer(error)
    }
}

/// Copies a blob from where the sink is on.
fn fill(
    mut sink: Box<dyn Sink + '_>,
    from: &mut dyn Source,
    blob: &Descriptor,
    progress: Progress,
) -> Result<(), Broken> {
    let mut at = sink.offset();
    progress.add(at);
    let mut hasher = (at == 0).then(Hasher::default);
    let mut content = from.blob(blob, at)?;
    let mut buffer = vec![0; 1 << 20];
    while at <= blob.size {
        let read = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        at += read as u64;
        let bytes = buffer.get(..read).unwrap_or_default();
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes);
        }
        sink.write_all(bytes)?;
        progress.add(read as u64);
    }
    let checked = if at == blob.size {
        hasher.map_or(Ok(()), |hasher| verify(blob, hasher.finish()))
    } else {
        let what = if at < blob.size { "only" } else { "at least" };
        Err(anyhow::anyhow!(
            "the source has {what} {at} bytes instead of the {} that the manifest states",
            blob.size
        ))
    };
    match checked {
        Ok(()) => sink.commit(blob),
        Err(error) => {
            sink.discard();
            Err(Broken::Content(error))
        }
    }
}

/// A whole document, verified.
pub(crate) fn whole(from: &mut dyn Source, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    ensure!(
        descriptor.size <= model::MAX_DOCUMENT_BYTES,
        "the image is unsafe: a document of it has {} bytes, more than the limit of {}",
        descriptor.size,
        model::MAX_DOCUMENT_BYTES
    );
    let mut bytes = Vec::new();
    from.blob(descriptor, 0)?
        .take(descriptor.size + 1)
        .read_to_end(&mut bytes)?;
    verify_bytes(descriptor, &bytes)?;
    Ok(bytes)
}

fn verify_bytes(descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.len() as u64 == descriptor.size,
        "{} has {} bytes instead of {}",
        descriptor.digest,
        bytes.len(),
        descriptor.size
    );
    verify(descriptor, Digest::of(bytes))
}

fn verify(descriptor: &Descriptor, found: Digest) -> anyhow::Result<()> {
    if found == descriptor.digest {
        return Ok(());
    }
    bail!(
        "the content has the digest {found} instead of {}: it was changed or damaged",
        descriptor.digest
    )
}

/// The image of a layout's `index.json` that a tag names, or the only one.
fn named<'a>(
    index: &'a model::Index,
    tag: Option<&str>,
    place: &str,
) -> anyhow::Result<&'a Descriptor> {
    let names = |found: &Descriptor| {
        [model::REF_NAME, model::CONTAINERD_NAME]
            .iter()
            .filter_map(|key| found.annotations.get(*key).cloned())
            .next()
    };
    match (tag, index.manifests.as_slice()) {
        (Some(tag), all) => all
            .iter()
            .find(|found| {
                [model::REF_NAME, model::CONTAINERD_NAME]
                    .iter()
                    .any(|key| found.annotations.get(*key).is_some_and(|name| name == tag))
            })
            .with_context(|| format!("{place} has no image with the tag {tag:?}")),
        (None, [one]) => Ok(one),
        (None, []) => bail!("{place} has no image"),
        (None, several) => {
            let names: Vec<String> = several.iter().filter_map(names).collect();
            bail!(
                "{place} has several images, so name one as PLACE:TAG: {}",
                names.join(", ")
            )
        }
    }
}

/// The entry of `index.json` for an image with a tag, beside those of others.
fn add_name(index: &mut model::Index, root: &Descriptor, tag: Option<&str>) {
    let same = |found: &Descriptor| match tag {
        Some(tag) => found
            .annotations
            .get(model::REF_NAME)
            .is_some_and(|name| name == tag),
        None => !found.annotations.contains_key(model::REF_NAME),
    };
    index.manifests.retain(|found| !same(found));
    let mut entry = Descriptor {
        platform: None,
        ..root.clone()
    };
    entry.annotations.clear();
    if let Some(tag) = tag {
        entry
            .annotations
            .insert(model::REF_NAME.to_owned(), tag.to_owned());
    }
    index.manifests.push(entry);
}

/// The `index.json` of a layout without images.
fn no_images() -> model::Index {
    model::Index {
        schema_version: 2,
        media_type: Some(model::INDEX.to_owned()),
        manifests: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
    }
}

/// The content of a layout's file `oci-layout`.
const LAYOUT_VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
