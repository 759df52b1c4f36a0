//! An image in containerd's store, through its API.
//!
//! What is written is held by a lease until the image has its name, and by labels from then on:
//! containerd collects whatever neither holds.

mod messages;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::model::{self, Descriptor, Document};
use cryo_checkpoint::oci::reference::Reference;
use cryo_checkpoint::source::{self, Blob, Blobs, Content};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use messages::{
    AbortRequest, Anything, COMMIT, CreateLeaseRequest, DeleteLeaseRequest, FieldMask,
    GetImageRequest, Image, Info, InfoRequest, InfoResponse, OneImage, ReadRequest, ReadResponse,
    STAT, UpdateImageRequest, UpdateInfoRequest, WRITE, WireDescriptor, WriteRequest,
    WriteResponse,
};

use super::{Access, Broken, Sink, Source, Target, verify_bytes};

/// How long containerd may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);

/// How long containerd may take to answer: unpacking a large layer, or writing it to the disk,
/// takes its time.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// How long a lease holds if it is not given back.
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes of content in one message; containerd takes 16 MiB.
const PIECE_BYTES: usize = 1 << 20;

/// One image of containerd's store.
pub(crate) struct Store {
    runtime: Arc<Runtime>,
    grpc: tonic::client::Grpc<Channel>,
    namespace: String,
    name: String,
    snapshotter: String,
    lease: Option<String>,
}

impl Store {
    /// Connects to containerd.
    pub(crate) fn connect(access: &Access, name: &Reference) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for the connection")?;
        let socket = access.address.display();
        let endpoint = Endpoint::from_shared(format!("unix:{socket}"))?;
        let channel = runtime.block_on(async {
            tokio::time::timeout(CONNECT, endpoint.connect())
                .await
                .map_err(|_| anyhow!("containerd at {socket} does not answer"))?
                .with_context(|| format!("cannot connect to containerd at {socket}"))
        })?;
        Ok(Self {
            runtime: Arc::new(runtime),
            grpc: tonic::client::Grpc::new(channel),
            namespace: access.namespace.clone(),
            name: name.to_string(),
            snapshotter: access.snapshotter.clone(),
            lease: None,
        })
    }

    /// Holds what is written from now on. Should we be killed, it is held for a day.
    pub(super) fn leased(mut self) -> anyhow::Result<Self> {
        let random =
            std::fs::read("/proc/sys/kernel/random/uuid").context("no random name for a lease")?;
        let id = format!("cryoctl-{}", String::from_utf8_lossy(&random).trim());
        let expires = crate::text::rfc3339(SystemTime::now() + LEASE);
        let request = CreateLeaseRequest {
            id: id.clone(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]),
        };
        self.ask::<_, Anything>("/containerd.services.leases.v1.Leases/Create", request)?;
        self.lease = Some(id);
        Ok(self)
    }

    fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let text = |text: &str| -> anyhow::Result<MetadataValue<Ascii>> {
            text.parse().with_context(|| format!("{text:?} is no name"))
        };
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", text(&self.namespace)?);
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", text(lease)?);
        }
        Ok(request)
    }

    /// One request, one answer.
    fn ask<Q, R>(&mut self, method: &'static str, message: Q) -> anyhow::Result<R>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let request = self.request(message)?;
        let grpc = &mut self.grpc;
        let asked = async {
            grpc.ready().await.context("containerd is not ready")?;
            let method = PathAndQuery::from_static(method);
            let answer = grpc.unary(request, method, ProstCodec::<Q, R>::default());
            Ok(answer.await?.into_inner())
        };
        self.runtime.block_on(limited(asked))
    }

    fn info(&mut self, digest: &str) -> anyhow::Result<Option<Info>> {
        let request = InfoRequest {
            digest: digest.to_owned(),
        };
        let method = "/containerd.services.content.v1.Content/Info";
        match self.ask::<_, InfoResponse>(method, request) {
            Ok(answer) => Ok(answer.info),
            Err(error) if code(&error) == Some(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The descriptor of the image.
    fn descriptor(&mut self) -> anyhow::Result<Descriptor> {
        let request = GetImageRequest {
            name: self.name.clone(),
        };
        let answer = self.ask::<_, OneImage>("/containerd.services.images.v1.Images/Get", request);
        let answer = match answer {
            Err(error) if code(&error) == Some(Code::NotFound) => bail!(
                "containerd has no image {} in its namespace {}: 'ctr -n {2} images ls' lists them",
                self.name,
                self.namespace,
                self.namespace
            ),
            other => other?,
        };
        let target = answer
            .image
            .and_then(|image| image.target)
            .context("containerd answers without a descriptor")?;
        Ok(Descriptor {
            media_type: target.media_type,
            digest: target.digest.parse()?,
            size: u64::try_from(target.size)?,
            platform: None,
            annotations: BTreeMap::new(),
        })
    }

    /// Opens a stream of writes, and asks how much there is already.
    fn writer(
        &mut self,
        reference: &str,
        expected: Option<&Descriptor>,
    ) -> anyhow::Result<Writer<'_>> {
        let (requests, queue) = mpsc::channel(1);
        let first = WriteRequest {
            action: STAT,
            reference: reference.to_owned(),
            total: expected.map_or(Ok(0), |blob| i64::try_from(blob.size))?,
            expected: expected.map_or_else(String::new, |blob| blob.digest.to_string()),
            ..WriteRequest::default()
        };
        let request = self.request(Queue(queue))?;
        let grpc = &mut self.grpc;
        let opened = async {
            grpc.ready().await.context("containerd is not ready")?;
            requests.send(first).await.context("no stream")?;
            let method = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
            let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
            let mut answers = grpc.streaming(request, method, codec).await?.into_inner();
            let answer = answers
                .message()
                .await?
                .context("containerd ends the stream")?;
            Ok((answers, answer))
        };
        let (answers, answer) = self.runtime.block_on(limited(opened))?;
        let at = u64::try_from(answer.offset)?;
        Ok(Writer {
            store: self,
            requests,
            answers,
            reference: reference.to_owned(),
            start: at,
            at,
            buffer: Vec::new(),
        })
    }

    /// Adds labels to a blob.
    fn label(&mut self, digest: &Digest, labels: HashMap<String, String>) -> anyhow::Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = UpdateInfoRequest {
            info: Some(Info {
                digest: digest.to_string(),
                size: 0,
                labels,
            }),
            mask: Some(FieldMask { paths }),
        };
        let method = "/containerd.services.content.v1.Content/Update";
        self.ask::<_, Anything>(method, request).map(drop)
    }

    /// Writes a small blob with labels.
    fn put(
        &mut self,
        descriptor: &Descriptor,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let digest = descriptor.digest.to_string();
        if self.info(&digest)?.is_some() {
            return self.label(&descriptor.digest, labels);
        }
        let mut writer = self.writer(&format!("cryoctl-{digest}"), Some(descriptor))?;
        let rest = usize::try_from(writer.start)?;
        writer.write_all(bytes.get(rest..).unwrap_or_default())?;
        writer.finish(descriptor, labels)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(id) = self.lease.take() {
            let method = "/containerd.services.leases.v1.Leases/Delete";
            // It ends in a day in any case.
            let _ = self.ask::<_, Anything>(method, DeleteLeaseRequest { id });
        }
    }
}

impl Source for Store {
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let root = self.descriptor()?;
        let bytes = super::whole(self, &root)?;
        Ok((root, bytes))
    }

    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.read(&blob.digest, offset)?))
    }
}

impl Store {
    /// The bytes of a blob from `offset` on.
    fn read(&mut self, digest: &Digest, offset: u64) -> anyhow::Result<Reader> {
        let request = self.request(ReadRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset)?,
            size: 0,
        })?;
        let grpc = &mut self.grpc;
        let opened = async {
            grpc.ready().await.context("containerd is not ready")?;
            let method = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
            let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
            Ok(grpc
                .server_streaming(request, method, codec)
                .await?
                .into_inner())
        };
        let answers = self
            .runtime
            .block_on(limited(opened))
            .with_context(|| digest.to_string())?;
        Ok(Reader {
            runtime: Arc::clone(&self.runtime),
            answers,
            piece: io::Cursor::default(),
        })
    }
}

impl Target for Store {
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool> {
        Ok(self.info(&blob.digest.to_string())?.is_some())
    }

    fn begin(&mut self, expected: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>> {
        let reference = match (expected, &self.lease) {
            (Some(blob), _) => format!("cryoctl-{}", blob.digest),
            (None, lease) => format!("{}-layer", lease.as_deref().unwrap_or("cryoctl")),
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
        let image = Image {
            name: self.name.clone(),
            labels: HashMap::new(),
            target: Some(WireDescriptor {
                media_type: root.media_type.clone(),
                digest: root.digest.to_string(),
                size: i64::try_from(root.size)?,
                annotations: HashMap::new(),
            }),
        };
        let create = OneImage {
            image: Some(image.clone()),
        };
        let created =
            self.ask::<_, Anything>("/containerd.services.images.v1.Images/Create", create);
        match created {
            Err(error) if code(&error) == Some(Code::AlreadyExists) => {
                let update = UpdateImageRequest {
                    image: Some(image),
                    mask: Some(FieldMask {
                        paths: vec!["target".to_owned()],
                    }),
                };
                let method = "/containerd.services.images.v1.Images/Update";
                self.ask::<_, Anything>(method, update).map(drop)
            }
            other => other.map(drop),
        }
    }
}

/// The requests of a stream.
struct Queue(mpsc::Receiver<WriteRequest>);

impl futures_core::Stream for Queue {
    type Item = WriteRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<WriteRequest>> {
        self.0.poll_recv(cx)
    }
}

/// A blob on its way into the store.
struct Writer<'a> {
    store: &'a mut Store,
    requests: mpsc::Sender<WriteRequest>,
    answers: Streaming<WriteResponse>,
    reference: String,
    start: u64,
    at: u64,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn tell(&mut self, request: WriteRequest) -> anyhow::Result<()> {
        let told = async {
            // If the stream is closed, its end says why.
            let _ = self.requests.send(request).await;
            let answer = self.answers.message().await?;
            answer.context("containerd ends the stream")
        };
        let answer = self.store.runtime.block_on(limited(told))?;
        self.at = u64::try_from(answer.offset)?;
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.buffer);
        self.tell(WriteRequest {
            action: WRITE,
            reference: self.reference.clone(),
            offset: i64::try_from(self.at)?,
            data,
            ..WriteRequest::default()
        })
    }

    fn finish(&mut self, blob: &Descriptor, labels: HashMap<String, String>) -> anyhow::Result<()> {
        self.send()?;
        let committed = self.tell(WriteRequest {
            action: COMMIT,
            reference: self.reference.clone(),
            total: i64::try_from(blob.size)?,
            expected: blob.digest.to_string(),
            offset: i64::try_from(self.at)?,
            labels,
            ..WriteRequest::default()
        });
        match committed {
            // Somebody else has written the same.
            Err(error) if code(&error) == Some(Code::AlreadyExists) => Ok(()),
            Err(error) => {
                self.abort();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// There is nothing in it that a later try could go on with.
    fn abort(&mut self) {
        let abort = AbortRequest {
            reference: self.reference.clone(),
        };
        let method = "/containerd.services.content.v1.Content/Abort";
        // containerd takes it away in its own time.
        let _ = self.store.ask::<_, Anything>(method, abort);
    }
}

impl Write for Writer<'_> {
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

impl Sink for Writer<'_> {
    fn offset(&self) -> u64 {
        self.start
    }

    fn commit(mut self: Box<Self>, blob: &Descriptor) -> Result<(), Broken> {
        self.finish(blob, HashMap::new()).map_err(Broken::Content)
    }

    fn discard(mut self: Box<Self>) {
        self.abort();
    }
}

/// A blob on its way out of the store.
struct Reader {
    runtime: Arc<Runtime>,
    answers: Streaming<ReadResponse>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let next = async { Ok(self.answers.message().await?) };
            let next = self.runtime.block_on(limited(next));
            match next.map_err(io::Error::other)? {
                Some(answer) => self.piece = io::Cursor::new(answer.data),
                None => return Ok(0),
            }
        }
    }
}

/// An image of the store as a checkpoint to be looked at. Nothing is copied.
pub(crate) fn checkpoint(access: &Access, name: &Reference) -> anyhow::Result<source::Source> {
    let root = Store::connect(access, name)?.descriptor()?;
    let blobs = AllBlobs {
        access: access.clone(),
        name: name.clone(),
    };
    Ok(source::Source::of_image(&name.to_string(), &blobs, &root)?)
}

/// The blobs of the store.
struct AllBlobs {
    access: Access,
    name: Reference,
}

impl Blobs for AllBlobs {
    fn blob(&self, digest: &Digest) -> Result<Blob, source::Error> {
        let name = digest.to_string();
        let found = || -> anyhow::Result<Option<u64>> {
            let mut store = Store::connect(&self.access, &self.name)?;
            let info = store.info(&name)?;
            Ok(info.map(|info| u64::try_from(info.size)).transpose()?)
        };
        match found() {
            Ok(Some(size)) => {
                let blob = StoredBlob {
                    access: self.access.clone(),
                    name: self.name.clone(),
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
    access: Access,
    name: Reference,
    digest: Digest,
}

impl Content for StoredBlob {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let reader = Store::connect(&self.access, &self.name)
            .and_then(|mut store| store.read(&self.digest, offset))
            .map_err(io::Error::other)?;
        Ok(Box::new(reader))
    }
}

/// Within [`LIMIT`], and with what containerd says as the error.
async fn limited<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(LIMIT, asked)
        .await
        .map_err(|_| anyhow!("containerd does not answer"))?;
    answer.map_err(|error| match error.downcast::<Status>() {
        Ok(status) => Refused(status).into(),
        Err(error) => error,
    })
}

fn code(error: &anyhow::Error) -> Option<Code> {
    Some(error.downcast_ref::<Refused>()?.0.code())
}

/// What containerd answers.
#[derive(Debug)]
struct Refused(Status);

impl std::error::Error for Refused {}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "containerd: {}", self.0.message())
    }
}
