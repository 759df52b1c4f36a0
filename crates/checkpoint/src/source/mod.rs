//! One reader for every form in which a checkpoint comes.
//!
//! ```text
//! image directory      CRIU's files, flat
//! archive              a tar of config.dump, spec.dump, checkpoint/…; by containerd, CRI-O, Podman
//! unpacked archive     the same as a directory
//! image archive        a tar of CRIU's files, flat; by `ctr` as a blob
//! OCI layout, archive  an image of one layer, which is an archive; as a directory, or a tar of one
//! pod archive          several archives as directories or files of a tar
//! ```
//!
//! Each tar may be compressed with gzip, zstd, bzip2 or xz. [`Source::open`] tells by the content
//! which it is. Nothing is unpacked to disk: a [`Source`] is an index of names and of where their
//! bytes are. What is not compressed can be read from any place ([`Source::section`] has file and
//! offset, for `pread` and `mmap`), and opening it reads the headers alone. What is compressed is
//! decompressed once to open it, and again up to an entry to read that, save for small files,
//! which are kept. [`Source::visit`] reads several entries in one pass.
//!
//! Names are exact and normalised. Links, devices, absolute names, names that lead upwards, and
//! names that are there twice are refused, whether or not anyone asks for them. Digests of an
//! image are verified when it is opened. Memory is bounded, whatever the size of the checkpoint.

mod blob;
mod error;
mod image;
mod index;
mod unpack;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use cryo_criu_image::inventory::Inventory;
use cryo_criu_image::{Kind, Reader, View};
use serde::de::DeserializeOwned;

pub use blob::{Blob, Content, Section, SectionReader};
pub use error::Error;
pub use image::Blobs;
pub use unpack::Algorithm;

use crate::flat::{self, FlatDir};
use crate::layout;
use crate::oci::Digest;
use crate::oci::model::Descriptor;

/// Most entries of a checkpoint, as of its image directory.
const MAX_ENTRIES: usize = 1 << 18;

/// All their names together.
const MAX_NAME_BYTES: usize = 16 << 20;

/// Largest JSON file that is read. `spec.dump` carries the pod's annotations.
pub const MAX_JSON_BYTES: u64 = 8 << 20;

/// The form in which a checkpoint lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Form {
    /// CRIU's files, flat.
    ImageDirectory,
    /// A tar archive, compressed or not.
    Archive,
    /// A tar archive, unpacked.
    ArchiveDirectory,
    /// A tar archive of CRIU's files, flat.
    ImageArchive,
    /// An image in a tar archive of an OCI layout.
    OciArchive,
    /// An image in the directory of an OCI layout.
    OciLayout,
    /// An image elsewhere.
    Image,
}

/// One file or directory of a checkpoint.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Its name from the root of the checkpoint, without `./` and doubled or trailing slashes.
    pub name: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Its length.
    pub size_bytes: u64,
    /// Where its header stands in the (decompressed) archive; 0 in directories.
    pub offset: u64,
    blob: Blob,
    kept: Option<Arc<[u8]>>,
}

impl Entry {
    /// Where its bytes are.
    pub fn blob(&self) -> Blob {
        match &self.kept {
            Some(bytes) => Blob::from_bytes(Arc::clone(bytes)),
            None => self.blob.clone(),
        }
    }
}

/// A checkpoint of one container, opened.
#[derive(Debug, Clone)]
pub struct Source {
    name: String,
    container: Option<String>,
    form: Form,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
    /// What stands before the names of CRIU's images.
    images: &'static str,
}

impl Source {
    /// Opens the checkpoint at `path`, which must be of one container.
    ///
    /// # Errors
    ///
    /// All of [`Error`] but those of decoding; [`Error::Pod`] if it is of several containers.
    pub fn open(path: &Path) -> Result<Self, Error> {
        only(&path.display().to_string(), Self::open_all(path)?)
    }

    /// Opens the checkpoints at `path`: one, or those of a pod's containers, sorted by name.
    ///
    /// # Errors
    ///
    /// As [`Source::open`].
    pub fn open_all(path: &Path) -> Result<Vec<Self>, Error> {
        let name = path.display().to_string();
        let unreadable = |source| Error::Unreadable {
            name: name.clone(),
            source,
        };
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            let directory = FlatDir::open(path, true).map_err(|e| directory_error(&name, "", e))?;
            return of_directory(&name, directory, true);
        }
        let file = File::open(path).map_err(unreadable)?;
        Self::of_blob(&name, &Blob::from_file(file).map_err(unreadable)?)
    }

    /// Opens the archives, or the OCI archive, that a blob is; `name` is what errors call it.
    ///
    /// # Errors
    ///
    /// As [`Source::open`].
    pub fn of_blob(name: &str, blob: &Blob) -> Result<Vec<Self>, Error> {
        of_archive(name, blob, Nesting::Outermost)
    }

    /// Opens the image that `root`, the descriptor of an index or a manifest, names.
    ///
    /// # Errors
    ///
    /// As [`Source::open`].
    pub fn of_image(name: &str, blobs: &dyn Blobs, root: &Descriptor) -> Result<Self, Error> {
        of_layer(name, image::layer_of(blobs, root)?, Form::Image)
    }

    /// What errors call it: its path, and the container's name if it is one of a pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the container is called in the archive of its pod: the name of its directory, or of its
    /// archive without the suffix; `None` if this is no archive of a pod.
    pub fn container(&self) -> Option<&str> {
        self.container.as_deref()
    }

    /// In which form it lies there.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Files and directories: of an archive in its order, of a directory sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The file with this name.
    pub fn file(&self, name: &str) -> Option<&Entry> {
        let entry = self.entries.get(*self.by_name.get(name)?)?;
        (!entry.directory).then_some(entry)
    }

    /// The files of the image directory, with the names they have in it.
    pub fn images(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .filter(|entry| !entry.directory)
            .filter_map(|entry| Some((self.image_of(&entry.name)?, entry)))
    }

    /// The name in the image directory of an entry of that directory.
    pub fn image_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.images)
            .filter(|image| !image.contains('/'))
    }

    /// What an image of CRIU's is called here, whether or not it is there.
    pub fn image_name(&self, kind: Kind, number: u64) -> String {
        format!("{}{}", self.images, kind.file_name(number))
    }

    /// The image of CRIU's.
    pub fn image(&self, kind: Kind, number: u64) -> Option<&Entry> {
        self.file(&self.image_name(kind, number))
    }

    /// Reads a file from its start.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Unreadable`].
    pub fn reader(&self, name: &str) -> Result<impl Read + use<>, Error> {
        let entry = self.file(name).ok_or_else(|| Error::Missing {
            name: name.to_owned(),
        })?;
        let reader = entry.blob().reader();
        reader.map(blob::buffered).map_err(|e| unreadable(name, e))
    }

    /// Where the bytes of a file are, for `pread` and `mmap`; `None` if they are compressed.
    ///
    /// # Errors
    ///
    /// As [`Source::reader`].
    pub fn section(&self, name: &str) -> Result<Option<Section>, Error> {
        let entry = self.file(name).ok_or_else(|| Error::Missing {
            name: name.to_owned(),
        })?;
        entry.blob.section().map_err(|e| unreadable(name, e))
    }

    /// The whole of a file of at most `limit_bytes`, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::Unreadable`].
    pub fn read(&self, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(entry) = self.file(name) else {
            return Ok(None);
        };
        if entry.size_bytes > limit_bytes {
            return Err(Error::TooLarge {
                name: name.to_owned(),
                size_bytes: entry.size_bytes,
                limit_bytes,
            });
        }
        let mut bytes = Vec::new();
        self.reader(name)?
            .read_to_end(&mut bytes)
            .map_err(|source| unreadable(name, source))?;
        Ok(Some(bytes))
    }

    /// A JSON file of at most [`MAX_JSON_BYTES`], if it is there.
    ///
    /// # Errors
    ///
    /// As [`Source::read`], and [`Error::BadJson`].
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.read(name, MAX_JSON_BYTES)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&bytes).map_err(|source| Error::BadJson {
            name: name.to_owned(),
            source,
        })?;
        Ok(Some(value))
    }

    /// The one message of a file that has one, if the file is there.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`], [`Error::Unreadable`].
    pub fn view<V: View>(&self, name: &str) -> Result<Option<V>, Error> {
        match self.views::<V>(name)? {
            Some(reader) => reader.single().map(Some).map_err(|e| damaged(name, e)),
            None => Ok(None),
        }
    }

    /// The messages of a file, if it is there. [`damaged`] makes an [`Error`] of theirs.
    ///
    /// # Errors
    ///
    /// As [`Source::view`].
    pub fn views<V: View>(
        &self,
        name: &str,
    ) -> Result<Option<Reader<V, impl Read + use<V>>>, Error> {
        if self.file(name).is_none() {
            return Ok(None);
        }
        let reader = Reader::new(name, self.reader(name)?).map_err(|e| damaged(name, e))?;
        Ok(Some(reader))
    }

    /// The same with its entries in the order of their names, in whatever form it lies there. To
    /// [visit](Source::visit) it takes one more pass for each large file of a compressed archive
    /// that stands before the one that comes first by name.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let names = self.entries.iter().map(|entry| entry.name.clone());
        self.by_name = names.zip(0..).collect();
        self
    }

    /// Whether its images can be understood; without an inventory that is not known.
    ///
    /// # Errors
    ///
    /// [`Error::Version`], and as [`Source::view`].
    pub fn check_version(&self) -> Result<(), Error> {
        match self.view::<Inventory>(&self.image_name(Kind::Inventory, 0))? {
            Some(inventory) => Ok(inventory.check_version()?),
            None => Ok(()),
        }
    }

    /// Gives the content of those files that are `wanted` to `f`, in the order of
    /// [`Source::entries`] and, if that is the archive's, in one pass; `f` need not read all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`], and what `f` says.
    pub fn visit<E: From<Error>>(
        &self,
        mut wanted: impl FnMut(&Entry) -> bool,
        mut f: impl FnMut(&Entry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        // Of what is compressed, there is one stream, and this is how far it was read.
        let mut stream: Option<(Box<dyn Read + Send>, u64)> = None;
        for entry in self.entries.iter().filter(|entry| !entry.directory) {
            if !wanted(entry) {
                continue;
            }
            let broken = |source| unreadable(&entry.name, source);
            if entry.kept.is_some() || entry.blob.is_seekable() {
                let mut reader = blob::buffered(entry.blob().reader().map_err(broken)?);
                f(entry, &mut reader)?;
                continue;
            }
            let start = entry.blob.offset();
            let (mut inner, position) = match stream.take() {
                Some(stream) if stream.1 <= start => stream,
                _ => (entry.blob.content_from(start).map_err(broken)?, start),
            };
            io::copy(&mut (&mut inner).take(start - position), &mut io::sink()).map_err(broken)?;
            let mut content = (&mut inner).take(entry.size_bytes);
            f(entry, &mut content)?;
            let read = entry.size_bytes - content.limit();
            stream = Some((inner, start + read));
        }
        Ok(())
    }

    fn new(name: &str, form: Form, entries: Vec<Entry>, images: &'static str) -> Self {
        let names = entries.iter().map(|entry| entry.name.clone());
        Self {
            name: name.to_owned(),
            container: None,
            form,
            by_name: names.zip(0..).collect(),
            entries,
            images,
        }
    }

    /// The same as one of a pod.
    fn of_container(mut self, name: &str) -> Self {
        self.container = Some(name.to_owned());
        self
    }
}

/// What a blob decompresses to; itself if it is not compressed.
///
/// # Errors
///
/// Whatever reading says.
pub(crate) fn decompressed(blob: Blob) -> io::Result<Blob> {
    Ok(match unpack::algorithm(&blob)? {
        Some(algorithm) => unpack::unpacked(blob, algorithm),
        None => blob,
    })
}

/// What an image that cannot be decoded makes of reading the checkpoint: it is damaged, or of a
/// newer CRIU.
pub fn damaged(name: &str, source: cryo_criu_image::Error) -> Error {
    let name = name.to_owned();
    match source {
        cryo_criu_image::Error::Newer { .. } => Error::Newer { name, source },
        _ => Error::Damaged { name, source },
    }
}

/// `checkpoint/`.
const IN_ARCHIVES: &str = "checkpoint/";

/// What an archive lies in, which decides what it may be itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nesting {
    /// A path.
    Outermost,
    /// An archive of a pod.
    InPod,
    /// An image: it is a layer.
    InImage(Form),
}

fn of_archive(name: &str, blob: &Blob, nesting: Nesting) -> Result<Vec<Source>, Error> {
    let archive = match unpack::algorithm(blob).map_err(|e| unreadable(name, e))? {
        Some(algorithm) => unpack::unpacked(blob.clone(), algorithm),
        None => blob.clone(),
    };
    let entries = index::index(&archive)?;
    let has = |wanted: &str| entries.iter().any(|entry| entry.name == wanted);
    let form = match nesting {
        Nesting::InImage(form) => form,
        _ => Form::Archive,
    };
    if has(layout::CONFIG_DUMP)
        || has(layout::SPEC_DUMP)
        || has(layout::CHECKPOINT_DIR)
        || entries.iter().any(|e| e.name.starts_with(IN_ARCHIVES))
    {
        return Ok(vec![Source::new(name, form, entries, IN_ARCHIVES)]);
    }
    if has(&Kind::Inventory.file_name(0)) {
        let form = match form {
            Form::Archive => Form::ImageArchive,
            form => form,
        };
        return Ok(vec![Source::new(name, form, entries, "")]);
    }
    let not = || Error::NotACheckpoint {
        path: name.to_owned(),
    };
    if matches!(nesting, Nesting::InImage(_)) {
        return Err(not());
    }
    if has(layout::OCI_LAYOUT) && has(layout::OCI_INDEX) {
        let archive = Source::new(name, Form::OciArchive, entries, "");
        return of_layout(name, &archive, Form::OciArchive).map(|source| vec![source]);
    }
    if nesting == Nesting::Outermost {
        let sources = of_pod(name, entries)?;
        if !sources.is_empty() {
            return Ok(sources);
        }
    }
    Err(not())
}

/// The containers of a pod: directories with a `config.dump`, or archives.
fn of_pod(name: &str, entries: Vec<Entry>) -> Result<Vec<Source>, Error> {
    let mut containers: Vec<String> = entries
        .iter()
        .filter_map(|entry| match entry.name.split_once('/') {
            Some((directory, layout::CONFIG_DUMP)) => Some(directory.to_owned()),
            None if !entry.directory && is_archive_name(&entry.name) => Some(entry.name.clone()),
            _ => None,
        })
        .collect();
    containers.sort_unstable();
    let mut parts: HashMap<String, Vec<Entry>> = HashMap::new();
    for mut entry in entries {
        match entry.name.split_once('/') {
            Some((directory, rest)) => {
                let directory = directory.to_owned();
                entry.name = rest.to_owned();
                parts.entry(directory).or_default().push(entry);
            }
            None if !entry.directory => parts.entry(entry.name.clone()).or_default().push(entry),
            None => {}
        }
    }
    let mut sources = Vec::with_capacity(containers.len());
    for container in containers {
        let part = parts.remove(&container).unwrap_or_default();
        let full = format!("{name}: {container}");
        match &*part {
            [archive] if archive.name == container => {
                let inner = of_archive(&full, &archive.blob(), Nesting::InPod)
                    .and_then(|inner| only(&full, inner))
                    .map_err(|source| within(&container, source))?;
                let suffix = ARCHIVE_SUFFIXES.iter();
                let stem = suffix
                    .filter_map(|suffix| container.strip_suffix(suffix))
                    .next();
                sources.push(inner.of_container(stem.unwrap_or(&container)));
            }
            _ => {
                let source = Source::new(&full, Form::Archive, part, IN_ARCHIVES);
                sources.push(source.of_container(&container));
            }
        }
    }
    Ok(sources)
}

const ARCHIVE_SUFFIXES: [&str; 5] = [".tar", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz"];

fn is_archive_name(name: &str) -> bool {
    ARCHIVE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// The image of an OCI layout, `files` being the layout's.
fn of_layout(name: &str, files: &Source, form: Form) -> Result<Source, Error> {
    let index = files
        .read(layout::OCI_INDEX, MAX_JSON_BYTES)?
        .unwrap_or_default();
    of_layer(name, image::layer(files, layout::OCI_INDEX, &index)?, form)
}

fn of_layer(name: &str, (layer, digest): (Blob, Digest), form: Form) -> Result<Source, Error> {
    of_archive(name, &layer, Nesting::InImage(form))
        .and_then(|sources| only(name, sources))
        .map_err(|source| within(&digest.to_string(), source))
}

impl Blobs for Source {
    fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        let name = format!("{}{}", layout::OCI_BLOBS, digest.hex());
        match self.file(&name) {
            Some(entry) => Ok(entry.blob()),
            None => Err(Error::Missing { name }),
        }
    }
}

fn of_directory(name: &str, top: FlatDir, outermost: bool) -> Result<Vec<Source>, Error> {
    let refused = |prefix: &'static str| move |error| directory_error(name, prefix, error);
    let top = Arc::new(top);
    let images = || top.files().any(|(name, _)| name.ends_with(".img"));
    if !top.has_directory(layout::CHECKPOINT_DIR) && images() {
        if let Some(directory) = top.directories().first() {
            return Err(Error::Foreign {
                name: directory.clone(),
                what: "a directory",
            });
        }
        let mut entries = Vec::new();
        files_of(&top, "", &mut entries)?;
        return Ok(vec![Source::new(name, Form::ImageDirectory, entries, "")]);
    }

    let mut entries = Vec::new();
    files_of(&top, "", &mut entries)?;
    if top.size(layout::OCI_LAYOUT).is_some() && top.size(layout::OCI_INDEX).is_some() {
        let blobs = top
            .subdirectory("blobs", true)
            .and_then(|blobs| blobs.subdirectory("sha256", false))
            .map_err(refused(layout::OCI_BLOBS))?;
        files_of(&Arc::new(blobs), layout::OCI_BLOBS, &mut entries)?;
        let files = Source::new(name, Form::OciLayout, entries, "");
        return of_layout(name, &files, Form::OciLayout).map(|source| vec![source]);
    }
    if top.has_directory(layout::CHECKPOINT_DIR) || top.size(layout::CONFIG_DUMP).is_some() {
        for directory in top.directories() {
            // Whatever lies deeper is none of ours, but CRIU's images are flat.
            let deeper = directory != layout::CHECKPOINT_DIR;
            let prefix = format!("{directory}/");
            let sub = top
                .subdirectory(directory, deeper)
                .map_err(|error| directory_error(name, &prefix, error))?;
            files_of(&Arc::new(sub), &prefix, &mut entries)?;
        }
        let form = Form::ArchiveDirectory;
        return Ok(vec![Source::new(name, form, entries, IN_ARCHIVES)]);
    }
    let mut sources = Vec::new();
    if outermost {
        for directory in top.directories() {
            let sub = top
                .subdirectory(directory, true)
                .map_err(|error| directory_error(name, "", error))?;
            if sub.size(layout::CONFIG_DUMP).is_some() {
                let full = format!("{name}: {directory}");
                let inner = of_directory(&full, sub, false)?;
                sources.extend(inner.into_iter().map(|one| one.of_container(directory)));
            }
        }
    }
    if sources.is_empty() {
        return Err(Error::NotACheckpoint {
            path: name.to_owned(),
        });
    }
    Ok(sources)
}

fn files_of(directory: &Arc<FlatDir>, prefix: &str, entries: &mut Vec<Entry>) -> Result<(), Error> {
    for (name, size_bytes) in directory.files() {
        if entries.len() >= MAX_ENTRIES {
            return Err(Error::TooManyFiles { limit: MAX_ENTRIES });
        }
        entries.push(Entry {
            name: format!("{prefix}{name}"),
            directory: false,
            size_bytes,
            offset: 0,
            blob: Blob::of_directory(directory, name, size_bytes),
            kept: None,
        });
    }
    Ok(())
}

fn only(name: &str, mut sources: Vec<Source>) -> Result<Source, Error> {
    match sources.pop() {
        Some(source) if sources.is_empty() => Ok(source),
        Some(last) => Err(Error::Pod {
            path: name.to_owned(),
            containers: sources
                .into_iter()
                .chain([last])
                .map(|source| source.name)
                .collect(),
        }),
        None => Err(Error::NotACheckpoint {
            path: name.to_owned(),
        }),
    }
}

fn within(name: &str, source: Error) -> Error {
    Error::Within {
        name: name.to_owned(),
        source: Box::new(source),
    }
}

fn unreadable(name: &str, source: io::Error) -> Error {
    Error::Unreadable {
        name: name.to_owned(),
        source,
    }
}

fn directory_error(name: &str, prefix: &str, error: flat::Error) -> Error {
    match error {
        flat::Error::Io(source) => unreadable(name, source),
        flat::Error::Foreign(name, what) => Error::Foreign {
            name: format!("{prefix}{name}"),
            what,
        },
        flat::Error::TooMany(limit) => Error::TooManyFiles { limit },
    }
}
