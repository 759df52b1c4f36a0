//! containerd's content: blobs, read and written as streams.

use std::collections::HashMap;

use anyhow::ensure;
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::model::{Descriptor, MAX_DOCUMENT_BYTES};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages::{
    self, Action, Content, ContentInfo, ContentPart, ContentWritten, Empty, FieldMask, Id,
    ReadContent, UpdateContent, WriteContent,
};
use super::{Client, Refused};

impl TryFrom<messages::Descriptor> for Descriptor {
    type Error = anyhow::Error;

    fn try_from(wire: messages::Descriptor) -> anyhow::Result<Self> {
        Ok(Self {
            media_type: wire.media_type,
            digest: wire.digest.parse()?,
            size: u64::try_from(wire.size)?,
            platform: None,
            annotations: wire.annotations.into_iter().collect(),
        })
    }
}

impl From<&Descriptor> for messages::Descriptor {
    fn from(blob: &Descriptor) -> Self {
        Self {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: signed(blob.size),
            annotations: HashMap::new(),
        }
    }
}

/// As containerd counts bytes.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Client {
    /// The length of a blob, if it is there.
    pub(crate) async fn content_size(&self, digest: &Digest) -> anyhow::Result<Option<u64>> {
        let method = "/containerd.services.content.v1.Content/Info";
        let what = || format!("cannot look for {digest}");
        let request = Id::of(&digest.to_string());
        match self.call::<_, ContentInfo>(what, method, request).await {
            Ok(answer) => Ok(Some(u64::try_from(answer.info.unwrap_or_default().size)?)),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Adds labels to a blob.
    pub(crate) async fn label(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), Refused> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = UpdateContent {
            info: Some(Content {
                digest: digest.to_string(),
                size: 0,
                labels,
            }),
            mask: Some(FieldMask { paths }),
        };
        let method = "/containerd.services.content.v1.Content/Update";
        let what = || format!("cannot label {digest}");
        self.call::<_, Empty>(what, method, request).await.map(drop)
    }

    /// The bytes of a blob from `offset` on.
    pub(crate) async fn read(&self, digest: &Digest, offset: u64) -> Result<Parts, Refused> {
        let request = ReadContent {
            digest: digest.to_string(),
            offset: signed(offset),
            size: 0,
        };
        let opened = async {
            let mut grpc = self.ready().await?;
            let method = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
            let codec = ProstCodec::<ReadContent, ContentPart>::default();
            let request = self.request(request);
            let answer = grpc.server_streaming(request, method, codec).await?;
            Ok(answer.into_inner())
        };
        let what = || format!("cannot read {digest}");
        Ok(Parts {
            answers: self.within(what, opened).await?,
            client: self.clone(),
            digest: *digest,
        })
    }

    /// The whole of an index, a manifest or a configuration.
    pub(crate) async fn document(&self, of: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let mut parts = self.read(&of.digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await? {
            bytes.extend(part);
            ensure!(
                bytes.len() as u64 <= MAX_DOCUMENT_BYTES,
                "{} is too long for what it is",
                of.digest
            );
        }
        Ok(bytes)
    }

    /// Begins to write a blob under a name for the time being, or goes on with what was written
    /// under that name.
    pub(crate) async fn write(
        &self,
        reference: &str,
        expected: Option<&Descriptor>,
    ) -> Result<Writing, Refused> {
        let (requests, queue) = mpsc::channel(1);
        let first = WriteContent {
            action: Action::Stat.into(),
            reference: reference.to_owned(),
            total: expected.map_or(0, |blob| signed(blob.size)),
            expected: expected.map_or_else(String::new, |blob| blob.digest.to_string()),
            ..WriteContent::default()
        };
        let opened = async {
            let mut grpc = self.ready().await?;
            // There is room for one.
            let _ = requests.send(first).await;
            let method = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
            let codec = ProstCodec::<WriteContent, ContentWritten>::default();
            let request = self.request(Queue(queue));
            let mut answers = grpc.streaming(request, method, codec).await?.into_inner();
            let answer = answered(&mut answers).await?;
            Ok((answers, answer.offset))
        };
        let what = || format!("cannot write {reference}");
        let (answers, offset) = self.within(what, opened).await?;
        Ok(Writing {
            client: self.clone(),
            requests,
            answers,
            reference: reference.to_owned(),
            offset,
        })
    }
}

/// A blob on its way out of the store.
#[derive(Debug)]
pub(crate) struct Parts {
    client: Client,
    digest: Digest,
    answers: Streaming<ContentPart>,
}

impl Parts {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Refused> {
        let what = || format!("cannot read {}", self.digest);
        let next = self.client.within(what, self.answers.message()).await?;
        Ok(next.map(|part| part.data))
    }
}

/// A blob on its way into the store. What is written stays under its name if it is not committed.
#[derive(Debug)]
pub(crate) struct Writing {
    client: Client,
    requests: mpsc::Sender<WriteContent>,
    answers: Streaming<ContentWritten>,
    reference: String,
    offset: i64,
}

impl Writing {
    /// How much is written.
    pub(crate) fn offset(&self) -> u64 {
        self.offset.unsigned_abs()
    }

    /// Writes more.
    pub(crate) async fn write(&mut self, data: Vec<u8>) -> Result<(), Refused> {
        let request = WriteContent {
            action: Action::Write.into(),
            offset: self.offset,
            data,
            ..WriteContent::default()
        };
        self.tell(request).await
    }

    /// Makes it a blob with labels. If it is not what it should be, it is dropped.
    pub(crate) async fn commit(
        mut self,
        blob: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), Refused> {
        let request = WriteContent {
            action: Action::Commit.into(),
            total: signed(blob.size),
            expected: blob.digest.to_string(),
            offset: self.offset,
            labels,
            ..WriteContent::default()
        };
        match self.tell(request).await {
            // Somebody else has written the same.
            Err(error) if error.code() == Code::AlreadyExists => Ok(()),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// There is nothing in it that a later try could go on with.
    pub(crate) async fn abort(self) {
        let method = "/containerd.services.content.v1.Content/Abort";
        let what = || format!("cannot drop {}", self.reference);
        let request = Id::of(&self.reference);
        // containerd takes it away in its own time.
        let _: Result<Empty, _> = self.client.call(what, method, request).await;
    }

    async fn tell(&mut self, mut request: WriteContent) -> Result<(), Refused> {
        request.reference.clone_from(&self.reference);
        let what = || format!("cannot write {}", self.reference);
        let told = async {
            // If the stream is closed, its end says why.
            let _ = self.requests.send(request).await;
            answered(&mut self.answers).await
        };
        self.offset = self.client.within(what, told).await?.offset;
        Ok(())
    }
}

async fn answered(answers: &mut Streaming<ContentWritten>) -> Result<ContentWritten, Status> {
    let ends = || Status::unavailable("containerd ends the stream");
    answers.message().await?.ok_or_else(ends)
}

/// The requests of a stream.
struct Queue(mpsc::Receiver<WriteContent>);

impl futures_core::Stream for Queue {
    type Item = WriteContent;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<WriteContent>> {
        self.0.poll_recv(cx)
    }
}
