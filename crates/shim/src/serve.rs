//! The long-lived process: take fd 3, serve ttrpc on it, stop in good order.
//!
//! The order matters. Before tokio (and before anything is forked): [`take_listener`] and
//! [`become_subreaper`]. In the runtime: [`serve`], which returns when the [`Shutdown`] token is
//! triggered, by a signal or by the Task service, after these steps:
//!
//! 1. the socket file goes, so that no new `start` finds a shim that is leaving;
//! 2. no more connections are taken;
//! 3. events that wait are sent (bounded);
//! 4. running calls get their answers (bounded).
//!
//! Only processes of the shim's own user are served: the socket is 0600, and the kernel's word on
//! each peer is checked as well. ttrpc answers INVALID_ARGUMENT to a service it does not know
//! (Go: UNIMPLEMENTED) and UNIMPLEMENTED to an unknown method of one it does.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Sleep, timeout};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{MethodHandler, Server, Service, TtrpcContext};

use crate::bootstrap::socket::{self, Identity};

/// The number under which `start` passes the listening socket.
pub const LISTENER_FD: i32 = 3;

/// The Task service that containerd 2.x asks for.
pub const TASK_V3: &str = "containerd.task.v3.Task";
/// The same under its older name, for containerd 1.7.
pub const TASK_V2: &str = "containerd.task.v2.Task";

const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
// containerd waits 3 s for its Shutdown call.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept, which is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the process does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Started by hand, or by something that is not `start`.
    #[error(
        "descriptor {LISTENER_FD} is not a listening unix socket ({0}): this mode is entered by the action start, which containerd calls"
    )]
    NoListener(String),
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// ttrpc does not start.
    #[error("ttrpc server: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ServeError {
    move |source| ServeError::Io {
        doing,
        source: source.into(),
    }
}

/// Takes over the listening socket that `start` left as descriptor 3.
///
/// # Errors
///
/// [`ServeError::NoListener`], with what is there instead.
pub fn take_listener() -> Result<UnixListener, ServeError> {
    let fd = cryo_sys::inherited::take(LISTENER_FD)
        .map_err(|error| ServeError::NoListener(error.to_string()))?;
    let listening = sockopt::socket_domain(&fd)
        .map(|domain| domain == AddressFamily::UNIX)
        .and_then(|unix| {
            Ok(unix
                && sockopt::socket_type(&fd)? == SocketType::STREAM
                && sockopt::socket_acceptconn(&fd)?)
        });
    match listening {
        Ok(true) => Ok(fd.into()),
        Ok(false) => Err(ServeError::NoListener("another socket".to_owned())),
        Err(error) => Err(ServeError::NoListener(error.to_string())),
    }
}

/// Makes this process the parent of orphans below it: containers' inits, and what they leave.
///
/// # Errors
///
/// [`ServeError::Io`].
pub fn become_subreaper() -> Result<(), ServeError> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(failed("become a subreaper"))
}

/// Asks the process to end; cloned to whoever may ask.
#[derive(Debug, Clone)]
pub struct Shutdown {
    state: Arc<watch::Sender<bool>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A token that nobody has triggered.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Asks. Again is the same as once.
    pub fn trigger(&self) {
        self.state.send_replace(true);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.state.borrow()
    }

    /// Returns once somebody has asked. Cancellation safe.
    pub async fn wait(&self) {
        // The sender is alive: it is in self.
        let _ = self.state.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Serves `services` on `listener` until `shutdown` is triggered.
///
/// SIGTERM and SIGINT trigger it; SIGUSR1 calls `dump`, which should log the state and be quick.
/// `flush` is called once, after the last connection was taken; it should send what events wait
/// and is given up after some seconds. Containers are left as they are.
///
/// Not cancellation safe: dropped midway, the socket file stays.
///
/// # Errors
///
/// [`ServeError`], only before it serves.
pub async fn serve<D, F>(
    listener: UnixListener,
    services: HashMap<String, Service>,
    shutdown: Shutdown,
    dump: D,
    flush: F,
) -> Result<(), ServeError>
where
    D: AsyncFn(),
    F: AsyncFnOnce(Duration),
{
    let socket = socket_file(&listener)?;
    let connections = SameUser::new(listener).map_err(failed("watch the listening socket"))?;
    let signals = Signals::new().map_err(failed("watch signals"))?;

    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(services);
    server.start().await?;
    tracing::info!(pid = std::process::id(), "serving");

    tokio::select! {
        () = shutdown.wait() => tracing::info!("shutting down"),
        name = signals.wait(dump) => {
            tracing::info!(signal = name, "shutting down");
            shutdown.trigger();
        }
    }

    if let Some(socket) = &socket
        && let Err(error) = socket::remove(socket)
    {
        tracing::warn!(%error, "the socket stays");
    }
    server.stop_listen().await;
    flush(FLUSH_TIMEOUT).await;
    if timeout(DRAIN_TIMEOUT, server.shutdown()).await.is_err() {
        tracing::warn!("calls were still running");
    }
    Ok(())
}

/// The file behind a listening socket, if it has one.
fn socket_file(listener: &UnixListener) -> Result<Option<Identity>, ServeError> {
    let address = listener
        .local_addr()
        .map_err(failed("ask the listening socket for its name"))?;
    // A missing file (the bundle was cleaned meanwhile) is nothing to remove.
    Ok(address
        .as_pathname()
        .and_then(|path| Identity::of(path).ok()))
}

struct Signals {
    term: Signal,
    int: Signal,
    usr1: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn wait(mut self, dump: impl AsyncFn()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                // By default it would kill.
                _ = self.usr1.recv() => dump().await,
            }
        }
    }
}

/// Connections of this user, and of no other.
#[derive(Debug)]
pub(crate) struct SameUser {
    listener: tokio::net::UnixListener,
    uid: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl SameUser {
    pub(crate) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: tokio::net::UnixListener::from_std(listener)?,
            uid: rustix::process::geteuid().as_raw(),
            pause: None,
        })
    }

    /// The next connection. Cancellation safe.
    pub(crate) async fn accept(&mut self) -> UnixStream {
        loop {
            let next = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await;
            // It neither ends nor fails, it waits.
            if let Some(Ok(connection)) = next {
                return connection;
            }
        }
    }
}

impl Stream for SameUser {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => match peer_uid(&stream) {
                    Ok(uid) if uid == self.uid => return Poll::Ready(Some(Ok(stream))),
                    peer => tracing::warn!(?peer, "refused a connection of another user"),
                },
                // ttrpc would ask again at once and burn a core.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(sockopt::socket_peercred(stream.as_fd())?.uid.as_raw())
}

/// A method that two services share.
struct Shared(Arc<dyn MethodHandler + Send + Sync>);

#[async_trait]
impl MethodHandler for Shared {
    async fn handler(
        &self,
        ctx: TtrpcContext,
        request: ttrpc::Request,
    ) -> ttrpc::Result<ttrpc::Response> {
        self.0.handler(ctx, request).await
    }
}

/// Serves the Task service under both of its names.
///
/// The crates generate `containerd.task.v3.Task` only; v2 has the same messages, so the same
/// methods answer. Other services pass unchanged.
#[must_use]
pub fn both_versions(mut services: HashMap<String, Service>) -> HashMap<String, Service> {
    let Some(task) = services
        .remove(TASK_V3)
        .or_else(|| services.remove(TASK_V2))
    else {
        return services;
    };
    let mut twice = [HashMap::new(), HashMap::new()];
    for (name, method) in task.methods {
        let method: Arc<dyn MethodHandler + Send + Sync> = Arc::from(method);
        for methods in &mut twice {
            let shared: Box<dyn MethodHandler + Send + Sync> = Box::new(Shared(method.clone()));
            methods.insert(name.clone(), shared);
        }
    }
    for (name, methods) in [TASK_V3, TASK_V2].into_iter().zip(twice) {
        services.insert(
            name.to_owned(),
            Service {
                methods,
                streams: task.streams.clone(),
            },
        );
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_is_remembered() {
        let token = Shutdown::new();
        assert!(
            timeout(Duration::from_millis(5), token.wait())
                .await
                .is_err()
        );
        let other = token.clone();
        other.trigger();
        other.trigger();
        assert!(token.is_triggered());
        token.wait().await;
        token.wait().await;
    }

    #[tokio::test]
    async fn other_users_are_turned_away() {
        use tokio::io::AsyncReadExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let own = rustix::process::geteuid().as_raw();
        for (uid, served) in [(own, true), (own + 1, false)] {
            let _ = std::fs::remove_file(&path);
            let mut connections = SameUser::new(UnixListener::bind(&path).unwrap()).unwrap();
            connections.uid = uid;
            let mut client = UnixStream::connect(&path).await.unwrap();
            let next = std::future::poll_fn(|cx| Pin::new(&mut connections).poll_next(cx));
            let limit = Duration::from_millis(if served { 30_000 } else { 50 });
            let next = timeout(limit, next).await;
            assert_eq!(next.is_ok(), served);
            if !served {
                assert_eq!(
                    client.read(&mut [0]).await.unwrap(),
                    0,
                    "the connection stays"
                );
            }
        }
    }

    #[test]
    fn no_listener_is_explained() {
        let text = ServeError::NoListener("Bad file descriptor".into()).to_string();
        assert!(
            text.contains("descriptor 3") && text.contains("start"),
            "{text}"
        );
    }

    #[test]
    fn unknown_services_pass() {
        let mut services = HashMap::new();
        services.insert(
            "cryo.v1.Other".to_owned(),
            Service {
                methods: HashMap::new(),
                streams: HashMap::new(),
            },
        );
        let keys: Vec<_> = both_versions(services).into_keys().collect();
        assert_eq!(keys, ["cryo.v1.Other"]);
    }
}
