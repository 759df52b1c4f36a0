//! The part of containerd's API that is used: gRPC over its socket, with messages written down
//! by hand ([`messages`]). What is kept is in [`content`], [`store`] and [`lease`].

pub(crate) mod content;
pub(crate) mod cri;
mod lease;
pub(crate) mod messages;
pub(crate) mod store;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use messages::{
    Container, GetResponse, Id, ListContainersResponse, ListNamespacesResponse, ListPidsResponse,
    ListTasksResponse, OneContainer, Process, State,
};

/// How long containerd may take to connect and to answer, where the work is not the shim's.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Messages may be this long: a specification can be, and a list of them.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Where containerd is, as flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct Socket {
    /// containerd's socket.
    #[arg(
        long,
        short,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) address: PathBuf,
}

/// Why containerd did not do it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {}", status.message())]
pub(crate) struct Refused {
    what: String,
    status: Status,
}

impl Refused {
    pub(crate) fn code(&self) -> Code {
        self.status.code()
    }
}

/// What runs that which talks to containerd.
///
/// # Errors
///
/// When the process may have no threads or timers.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for the connection")
}

/// Runs what talks to containerd. Blocks.
///
/// # Errors
///
/// Those of the task and of [`runtime`].
pub(crate) fn block_on<T>(task: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime()?.block_on(task)
}

/// containerd's API, in one of its namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    limit: Duration,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or the namespace cannot be one.
    pub(crate) async fn connect(socket: &Path, namespace: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        let channel = tokio::time::timeout(LIMIT, endpoint.connect())
            .await
            .map_err(|_| anyhow!("containerd at {} does not answer", socket.display()))?
            .with_context(|| format!("cannot connect to containerd at {}", socket.display()))?;
        Ok(Self {
            channel,
            namespace: name(namespace)?,
            lease: None,
            limit: LIMIT,
        })
    }

    /// The same connection, with another limit than [`LIMIT`].
    pub(crate) fn patient(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The same connection in another namespace.
    ///
    /// # Errors
    ///
    /// When that cannot be one.
    pub(crate) fn in_namespace(&self, namespace: &str) -> anyhow::Result<Self> {
        Ok(Self {
            namespace: name(namespace)?,
            ..self.clone()
        })
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    /// Calls `/package.Service/Method`, which has [`LIMIT`] to answer, or that of
    /// [`Client::patient`].
    ///
    /// # Errors
    ///
    /// containerd's answer, with `what` failed before it.
    pub(crate) async fn call<Q, R>(
        &self,
        what: impl FnOnce() -> String,
        method: &'static str,
        message: Q,
    ) -> Result<R, Refused>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        self.call_within(self.limit, what, method, message).await
    }

    /// As [`Client::call`], with a limit that the other side learns of.
    ///
    /// # Errors
    ///
    /// As [`Client::call`]; DeadlineExceeded when the time is over.
    pub(crate) async fn call_within<Q, R>(
        &self,
        limit: Duration,
        what: impl FnOnce() -> String,
        method: &'static str,
        message: Q,
    ) -> Result<R, Refused>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut request = self.request(message);
        request.set_timeout(limit);
        // Who keeps the time here too gives the other side a moment to tell why it is over.
        let local = limit.saturating_add(Duration::from_secs(5));
        let asked = async {
            let mut grpc = self.ready().await?;
            grpc.unary(
                request,
                PathAndQuery::from_static(method),
                ProstCodec::<Q, R>::default(),
            )
            .await
        };
        let answer = within(local, what, asked).await?;
        Ok(answer.into_inner())
    }

    /// What is asked of containerd, within the limit.
    async fn within<T>(
        &self,
        what: impl FnOnce() -> String,
        asked: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Refused> {
        within(self.limit, what, asked).await
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.clone());
        }
        request
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        grpc.ready()
            .await
            .map_err(|e| Status::unavailable(format!("containerd is not ready: {e}")))?;
        Ok(grpc)
    }

    /// The names of all namespaces.
    pub(crate) async fn namespaces(&self) -> Result<Vec<String>, Refused> {
        let method = "/containerd.services.namespaces.v1.Namespaces/List";
        let what = || "cannot list containerd's namespaces".to_owned();
        let all: ListNamespacesResponse = self.call(what, method, messages::Empty {}).await?;
        Ok(all.namespaces.into_iter().map(|n| n.name).collect())
    }

    /// The records of all containers.
    pub(crate) async fn containers(&self) -> Result<Vec<Container>, Refused> {
        let method = "/containerd.services.containers.v1.Containers/List";
        let what = || format!("cannot list the containers of {}", self.namespace());
        let all: ListContainersResponse = self.call(what, method, messages::Empty {}).await?;
        Ok(all.containers)
    }

    /// The record of a container.
    pub(crate) async fn container(&self, id: &str) -> anyhow::Result<Container> {
        let method = "/containerd.services.containers.v1.Containers/Get";
        let what = || format!("cannot look at the container {id}");
        let one: Result<OneContainer, _> = self.call(what, method, Id::of(id)).await;
        let namespace = self.namespace();
        told(id, one.map(|one| one.container), || {
            format!("there is no container {id} in containerd's namespace {namespace}")
        })
    }

    /// All tasks: the first processes of the containers that have one.
    pub(crate) async fn tasks(&self) -> Result<Vec<Process>, Refused> {
        let method = "/containerd.services.tasks.v1.Tasks/List";
        let what = || format!("cannot list the tasks of {}", self.namespace());
        let all: ListTasksResponse = self.call(what, method, messages::Empty {}).await?;
        Ok(all.tasks)
    }

    /// The first process of a container, in whatever state.
    pub(crate) async fn task(&self, id: &str) -> anyhow::Result<Process> {
        let method = "/containerd.services.tasks.v1.Tasks/Get";
        let what = || format!("cannot look at the container {id}");
        let found: Result<GetResponse, _> = self.call(what, method, Id::of(id)).await;
        let namespace = self.namespace();
        told(id, found.map(|found| found.process), || {
            format!("no container {id} runs in containerd's namespace {namespace}")
        })
    }

    /// The ids of all processes of a container, execs included.
    pub(crate) async fn pids(&self, id: &str) -> Result<Vec<u32>, Refused> {
        let method = "/containerd.services.tasks.v1.Tasks/ListPids";
        let what = || format!("cannot list the processes of {id}");
        let all: ListPidsResponse = self.call(what, method, Id::of(id)).await?;
        Ok(all.processes.into_iter().map(|p| p.pid).collect())
    }

    /// The processes of a running container.
    ///
    /// # Errors
    ///
    /// When there is no such container, or it does not run.
    pub(crate) async fn processes(&self, id: &str) -> anyhow::Result<Processes> {
        let process = self.task(id).await?;
        if process.status() == State::Stopped || process.pid == 0 {
            return Err(anyhow!("the container {id} does not run"));
        }
        Ok(Processes {
            first: process.pid,
            all: self.pids(id).await?,
        })
    }

    /// containerd's version.
    pub(crate) async fn version(&self) -> Result<String, Refused> {
        let method = "/containerd.services.version.v1.Version/Version";
        let what = || "containerd does not tell its version".to_owned();
        let version: messages::Version = self.call(what, method, messages::Empty {}).await?;
        Ok(version.version)
    }
}

async fn within<T>(
    limit: Duration,
    what: impl FnOnce() -> String,
    asked: impl Future<Output = Result<T, Status>>,
) -> Result<T, Refused> {
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("containerd does not answer")))
        .map_err(|status| Refused {
            what: what(),
            status,
        })
}

/// What there is of a container, or why there is nothing.
fn told<T>(
    id: &str,
    answer: Result<Option<T>, Refused>,
    missing: impl FnOnce() -> String,
) -> anyhow::Result<T> {
    match answer {
        Ok(found) => {
            found.with_context(|| format!("containerd tells nothing of the container {id}"))
        }
        Err(e) if e.code() == Code::NotFound => Err(anyhow!(missing())),
        Err(e) => Err(e.into()),
    }
}

fn name(namespace: &str) -> anyhow::Result<MetadataValue<Ascii>> {
    namespace
        .parse()
        .with_context(|| format!("{namespace:?} is no namespace"))
}

/// The processes of a running container.
#[derive(Debug)]
pub(crate) struct Processes {
    /// The id of its first.
    pub(crate) first: u32,
    /// The ids of all, execs included.
    pub(crate) all: Vec<u32>,
}
