//! An image in containerd's store, through its API.
//!
//! What is written is held by a lease until the image has its name, and by labels from then on:
//! containerd collects whatever neither holds.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::model::{self, Config, Descriptor, Document, Manifest, Platform};
use cryo_checkpoint::oci::reference::Reference;
use cryo_checkpoint::source::{self, Blob, Blobs, Content};
use tokio::runtime::Runtime;

use super::{Access, Broken, Sink, Source, Target, verify_bytes, whole};
use crate::containerd::content::{Parts, Writing};
use crate::containerd::{Client, runtime, store};

/// How long containerd may take to answer: unpacking a large layer, or writing it to the disk,
/// takes its time.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Bytes of content in one message; containerd takes 16 MiB.
const PIECE_BYTES: usize = 1 << 20;

/// A connection for work that is done in steps.
#[derive(Debug, Clone)]
struct Connection {
    runtime: Arc<Runtime>,
    client: Client,
}

impl Connection {
    fn new(access: &Access) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let client = runtime.block_on(Client::connect(&access.address, &access.namespace))?;
        Ok(Self {
            runtime: Arc::new(runtime),
            client: client.patient(LIMIT),
        })
    }

    /// The descriptor of an image.
    fn image(&self, name: &Reference) -> anyhow::Result<Descriptor> {
        let name = name.to_string();
        let found = self.runtime.block_on(self.client.image(&name))?;
        let namespace = self.client.namespace();
        found.with_context(|| {
            format!(
                "containerd has no image {name} in its namespace {namespace}: 'ctr -n {namespace} images ls' lists them"
            )
        })
    }

    /// The bytes of a blob from `offset` on.
    fn read(&self, digest: &Digest, offset: u64) -> anyhow::Result<Reader> {
        Ok(Reader {
            parts: self.runtime.block_on(self.client.read(digest, offset))?,
            runtime: Arc::clone(&self.runtime),
            piece: io::Cursor::default(),
        })
    }
}

/// One image of containerd's store.
pub(crate) struct Store {
    connection: Connection,
    name: Reference,
    snapshotter: String,
}

impl Store {
    /// Connects to containerd.
    pub(crate) fn connect(access: &Access, name: &Reference) -> anyhow::Result<Self> {
        Ok(Self {
            connection: Connection::new(access)?,
            name: name.clone(),
            snapshotter: access.snapshotter.clone(),
        })
    }

    /// Holds what is written from now on.
    pub(super) fn leased(mut self) -> anyhow::Result<Self> {
        let Connection { runtime, client } = &self.connection;
        let leased = runtime.block_on(client.with_lease())?;
        self.connection.client = leased;
        Ok(self)
    }

    /// Opens a stream of writes, and asks how much there is already.
    fn writer(&self, reference: &str, expected: Option<&Descriptor>) -> anyhow::Result<Writer> {
        let Connection { runtime, client } = &self.connection;
        let writing = runtime.block_on(client.write(reference, expected))?;
        Ok(Writer {
            runtime: Arc::clone(runtime),
            start: writing.offset(),
            writing,
            buffer: Vec::new(),
        })
    }

    /// Adds labels to a blob.
    fn label(&self, digest: &Digest, labels: HashMap<String, String>) -> anyhow::Result<()> {
        let Connection { runtime, client } = &self.connection;
        Ok(runtime.block_on(client.label(digest, labels))?)
    }

    /// Writes a small blob with labels.
    fn put(
        &mut self,
        descriptor: &Descriptor,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        if self.has(descriptor)? {
            return self.label(&descriptor.digest, labels);
        }
        let mut writer =
            self.writer(&format!("cryoctl-{}", descriptor.digest), Some(descriptor))?;
        let rest = usize::try_from(writer.start)?;
        writer.write_all(bytes.get(rest..).unwrap_or_default())?;
        writer.finish(descriptor, labels)
    }

    /// Unpacks the layers of an image for this machine, since containerd's CRI starts nothing from
    /// one that is not, and does not do it itself. Gives the name of the snapshot; `None` for an
    /// image of another machine.
    fn unpack(&mut self, manifest: &Manifest) -> anyhow::Result<Option<String>> {
        let config = Config::parse(&whole(self, &manifest.config)?)?;
        if config.platform != Platform::linux(std::env::consts::ARCH) {
            return Ok(None);
        }
        let diff_ids = config.rootfs.diff_ids;
        ensure!(
            diff_ids.len() == manifest.layers.len(),
            "the image's configuration has {} layers and its manifest {}",
            diff_ids.len(),
            manifest.layers.len()
        );
        let Connection { runtime, client } = &self.connection;
        let mut below = String::new();
        for (layer, name) in manifest.layers.iter().zip(store::chain(&diff_ids)) {
            let name = name.to_string();
            runtime
                .block_on(client.unpack(&self.snapshotter, &name, &below, layer))
                .with_context(|| format!("the layer {} cannot be unpacked", layer.digest))?;
            below = name;
        }
        Ok(Some(below))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Connection { runtime, client } = &self.connection;
        if !client.lease().is_empty() {
            // It ends in a day in any case.
            let _ = runtime.block_on(client.clone().release());
        }
    }
}

impl Source for Store {
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let root = self.connection.image(&self.name)?;
        let bytes = whole(self, &root)?;
        Ok((root, bytes))
    }

    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.connection.read(&blob.digest, offset)?))
    }
}

impl Target for Store {
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool> {
        let Connection { runtime, client } = &self.connection;
        let held = async {
            // What is there may be of an image that is removed meanwhile.
            client.hold("content", &blob.digest.to_string()).await?;
            client.content_size(&blob.digest).await
        };
        Ok(runtime.block_on(held)?.is_some())
    }

    fn begin(&mut self, expected: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>> {
        let reference = match expected {
            Some(blob) => format!("cryoctl-{}", blob.digest),
            None => format!("{}-layer", self.connection.client.lease()),
        };
        Ok(Box::new(self.writer(&reference, expected)?))
    }

    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
        verify_bytes(descriptor, bytes)?;
        let document = Document::parse(Some(&descriptor.media_type), bytes)?;
        let mut labels = HashMap::new();
        for (number, (child, is_document)) in document.children().into_iter().enumerate() {
            let kind = match (is_document, child.media_type.as_str()) {
                (true, _) => format!("m.{number}"),
                (false, model::CONFIG) => "config".to_owned(),
                (false, _) => format!("l.{}", number.saturating_sub(1)),
            };
            labels.insert(
                format!("containerd.io/gc.ref.content.{kind}"),
                child.digest.to_string(),
            );
        }
        if let Document::Manifest(manifest) = &document
            && let Some(snapshot) = self.unpack(manifest)?
        {
            // The configuration holds the snapshot, as with every image that containerd pulls.
            let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
            self.label(&manifest.config.digest, HashMap::from([(label, snapshot)]))?;
        }
        self.put(descriptor, bytes, labels)
    }

    fn name(&mut self, root: &Descriptor) -> anyhow::Result<()> {
        let Connection { runtime, client } = &self.connection;
        Ok(runtime.block_on(client.name_image(&self.name.to_string(), root))?)
    }
}

/// A blob on its way into the store.
struct Writer {
    runtime: Arc<Runtime>,
    writing: Writing,
    start: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn send(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.buffer);
        Ok(self.runtime.block_on(self.writing.write(data))?)
    }

    fn finish(mut self, blob: &Descriptor, labels: HashMap<String, String>) -> anyhow::Result<()> {
        self.send()?;
        Ok(self.runtime.block_on(self.writing.commit(blob, labels))?)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= PIECE_BYTES {
            self.send().map_err(io::Error::other)?;
        }
        let room = PIECE_BYTES.saturating_sub(self.buffer.len());
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Writer {
    fn offset(&self) -> u64 {
        self.start
    }

    fn commit(self: Box<Self>, blob: &Descriptor) -> Result<(), Broken> {
        self.finish(blob, HashMap::new()).map_err(Broken::Content)
    }

    fn discard(self: Box<Self>) {
        self.runtime.block_on(self.writing.abort());
    }
}

/// A blob on its way out of the store.
struct Reader {
    runtime: Arc<Runtime>,
    parts: Parts,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.runtime.block_on(self.parts.next()) {
                Ok(Some(data)) => self.piece = io::Cursor::new(data),
                Ok(None) => return Ok(0),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

/// An image of the store as a checkpoint to be looked at. Nothing is copied.
pub(crate) fn checkpoint(access: &Access, name: &Reference) -> anyhow::Result<source::Source> {
    let connection = Connection::new(access)?;
    let root = connection.image(name)?;
    let blobs = AllBlobs(connection);
    Ok(source::Source::of_image(&name.to_string(), &blobs, &root)?)
}

/// The blobs of the store.
struct AllBlobs(Connection);

impl Blobs for AllBlobs {
    fn blob(&self, digest: &Digest) -> Result<Blob, source::Error> {
        let name = digest.to_string();
        let Connection { runtime, client } = &self.0;
        match runtime.block_on(client.content_size(digest)) {
            Ok(Some(size)) => {
                let blob = StoredBlob {
                    connection: self.0.clone(),
                    digest: *digest,
                };
                Ok(Blob::new(Arc::new(blob), size))
            }
            Ok(None) => Err(source::Error::Missing { name }),
            Err(error) => Err(source::Error::Unreadable {
                name,
                source: io::Error::other(error),
            }),
        }
    }
}

/// A blob of the store, which is asked for anew each time it is read.
#[derive(Debug)]
struct StoredBlob {
    connection: Connection,
    digest: Digest,
}

impl Content for StoredBlob {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let reader = self.connection.read(&self.digest, offset);
        Ok(Box::new(reader.map_err(io::Error::other)?))
    }
}
