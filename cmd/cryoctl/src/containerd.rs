//! The part of containerd's API that is used: gRPC over its socket, with messages written down
//! by hand. Field numbers: `containerd/api/services/tasks/v1`, `containerd/api/types/task`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// How long containerd may take to connect and to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A request of Get and of ListPids.
#[derive(Clone, PartialEq, Message)]
struct TaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetResponse {
    #[prost(message, optional, tag = "1")]
    process: Option<Process>,
}

#[derive(Clone, PartialEq, Message)]
struct Process {
    #[prost(uint32, tag = "3")]
    pid: u32,
    #[prost(int32, tag = "4")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct ListPidsResponse {
    #[prost(message, repeated, tag = "1")]
    processes: Vec<ProcessInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct ProcessInfo {
    #[prost(uint32, tag = "1")]
    pid: u32,
}

/// `containerd.v1.types.Status`
const STOPPED: i32 = 3;

/// The processes of a running container.
#[derive(Debug)]
pub(crate) struct Processes {
    /// The id of its first.
    pub(crate) first: u32,
    /// The ids of all, execs included.
    pub(crate) all: Vec<u32>,
}

/// Asks for a container's processes. Blocks.
///
/// # Errors
///
/// When containerd cannot be asked, or there is no such container, or it does not run.
pub(crate) fn processes(address: &Path, namespace: &str, id: &str) -> anyhow::Result<Processes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for the connection")?;
    let asked = async {
        let mut tasks = Tasks::connect(address, namespace).await?;
        let get = "/containerd.services.tasks.v1.Tasks/Get";
        let process = tasks.ask::<GetResponse>(get, id).await?.process;
        let first = process
            .filter(|process| process.status != STOPPED && process.pid != 0)
            .with_context(|| format!("the container {id} does not run"))?
            .pid;
        let list = "/containerd.services.tasks.v1.Tasks/ListPids";
        let all = tasks.ask::<ListPidsResponse>(list, id).await?.processes;
        Ok(Processes {
            first,
            all: all.into_iter().map(|process| process.pid).collect(),
        })
    };
    runtime
        .block_on(async { tokio::time::timeout(LIMIT, asked).await })
        .map_err(|_| anyhow!("containerd at {} does not answer", address.display()))?
}

/// The Tasks service in one of containerd's namespaces.
struct Tasks {
    grpc: tonic::client::Grpc<Channel>,
    namespace: MetadataValue<Ascii>,
}

impl Tasks {
    async fn connect(address: &Path, namespace: &str) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("unix:{}", address.display()))?
            .connect()
            .await
            .with_context(|| format!("cannot connect to containerd at {}", address.display()))?;
        Ok(Self {
            grpc: tonic::client::Grpc::new(channel),
            namespace: namespace
                .parse()
                .with_context(|| format!("{namespace:?} is no namespace"))?,
        })
    }

    async fn ask<R>(&mut self, method: &'static str, id: &str) -> anyhow::Result<R>
    where
        R: Message + Default + 'static,
    {
        self.grpc.ready().await.context("containerd is not ready")?;
        let mut request = Request::new(TaskRequest {
            container_id: id.to_owned(),
        });
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.clone());
        let method = PathAndQuery::from_static(method);
        let codec = ProstCodec::<TaskRequest, R>::default();
        match self.grpc.unary(request, method, codec).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if status.code() == Code::NotFound => {
                bail!(
                    "no container {id} runs in containerd's namespace {}",
                    self.namespace.to_str().unwrap_or_default()
                )
            }
            Err(status) => bail!("containerd: {}", status.message()),
        }
    }
}
