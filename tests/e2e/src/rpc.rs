//! gRPC over a unix socket for messages that are written down by hand.
//!
//! The tests need a dozen calls of two APIs; their field numbers are facts, and a code
//! generator with its `.proto` files would be larger than they are.

use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::patience::PATIENCE;

/// How long a unary call may take unless it says otherwise.
const DEFAULT_DEADLINE: Duration = PATIENCE;

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
                ProstCodec::<Q, R>::default(),
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
                ProstCodec::<Q, R>::default(),
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
