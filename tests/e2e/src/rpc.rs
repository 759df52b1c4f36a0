//! gRPC over a unix socket for messages that are written down by hand.
//!
//! The tests need a dozen calls of two APIs; their field numbers are facts, and a code
//! generator with its `.proto` files would be larger than they are.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// How long a unary call may take unless it says otherwise.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(40);

/// A connection to one gRPC server. It connects at the first call and again after the
/// server was restarted, so one value lives as long as the node does.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    namespace: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// A client of the socket at `path`; nothing is opened yet. Needs a tokio runtime.
    pub fn lazy(path: &Path) -> anyhow::Result<Self> {
        let uri = format!("unix:{}", path.display());
        let channel = Endpoint::from_shared(uri)?.connect_lazy();
        Ok(Self {
            channel,
            namespace: None,
        })
    }

    /// The same connection, with containerd's namespace header set.
    pub fn in_namespace(&self, namespace: &str) -> anyhow::Result<Self> {
        Ok(Self {
            channel: self.channel.clone(),
            namespace: Some(namespace.parse()?),
        })
    }

    /// Calls `method` (`/package.Service/Method`) under the default deadline.
    ///
    /// # Errors
    /// The server's status, or `Unavailable` when there is no server.
    pub async fn call<Q, R>(&self, method: &'static str, message: Q) -> Result<R, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        self.call_within(method, message, DEFAULT_DEADLINE).await
    }

    /// Calls `method` with a deadline that is sent to the server as `grpc-timeout`.
    ///
    /// # Errors
    /// As [`Client::call`]; `DeadlineExceeded` or `Cancelled` when the time is over.
    pub async fn call_within<Q, R>(
        &self,
        method: &'static str,
        message: Q,
        deadline: Duration,
    ) -> Result<R, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut request = self.request(message);
        request.set_timeout(deadline);
        let mut grpc = self.ready().await?;
        let answer = tokio::time::timeout(
            deadline,
            grpc.unary(
                request,
                PathAndQuery::from_static(method),
                Proto::<Q, R>::default(),
            ),
        )
        .await
        .map_err(|_| Status::deadline_exceeded("no answer within the client's deadline"))??;
        Ok(answer.into_inner())
    }

    /// Calls `method` and returns the stream of its answers.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn stream<Q, R>(
        &self,
        method: &'static str,
        message: Q,
    ) -> Result<Streaming<R>, Status>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let request = self.request(message);
        let mut grpc = self.ready().await?;
        let answer = grpc
            .server_streaming(
                request,
                PathAndQuery::from_static(method),
                Proto::<Q, R>::default(),
            )
            .await?;
        Ok(answer.into_inner())
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(namespace) = &self.namespace {
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace.clone());
        }
        request
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(format!("not connected: {e}")))?;
        Ok(grpc)
    }
}

/// The protobuf codec for a pair of messages.
#[derive(Debug)]
struct Proto<Q, R>(PhantomData<fn(Q) -> R>);

impl<Q, R> Default for Proto<Q, R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q, R> Codec for Proto<Q, R>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    type Encode = Q;
    type Decode = R;
    type Encoder = Encode<Q>;
    type Decoder = Decode<R>;

    fn encoder(&mut self) -> Encode<Q> {
        Encode(PhantomData)
    }

    fn decoder(&mut self) -> Decode<R> {
        Decode(PhantomData)
    }
}

#[derive(Debug)]
struct Encode<Q>(PhantomData<fn(Q)>);

impl<Q: Message + 'static> Encoder for Encode<Q> {
    type Item = Q;
    type Error = Status;

    fn encode(&mut self, item: Q, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|e| Status::internal(format!("request does not encode: {e}")))
    }
}

#[derive(Debug)]
struct Decode<R>(PhantomData<fn() -> R>);

impl<R: Message + Default + 'static> Decoder for Decode<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer)
            .map(Some)
            .map_err(|e| Status::internal(format!("answer does not decode: {e}")))
    }
}
