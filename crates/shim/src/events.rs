//! Events to containerd: in order, without blocking, across its restarts.
//!
//! containerd learns of exits by events, so an event that is lost is a container that runs for
//! ever. One task sends one event after the other and holds back the rest until the first has
//! arrived: the order is kept. *Any* error of the connection makes a new one (after a containerd
//! restart ttrpc answers with errors that do not look like a closed connection), and sending goes
//! on until the event is [`Config::give_up_after`] old. An event may arrive twice, when only its
//! answer was lost.

use std::fmt;
use std::os::unix::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{CreateTaskRequest, ForwardRequest};
use containerd_shim_protos::events::task;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

/// One event, packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For example `/tasks/exit`.
    pub topic: &'static str,
    /// The message's full name; containerd uses it bare, with no host before it.
    pub type_url: String,
    /// The message.
    pub value: Vec<u8>,
    /// When it happened.
    pub at: SystemTime,
}

impl Event {
    /// Packs a message of containerd's package of events.
    #[must_use]
    pub fn new<M: Message>(topic: &'static str, message: &M) -> Self {
        Self {
            topic,
            type_url: full_name::<M>(),
            // Only missing proto2 fields can fail, and there are none.
            value: message.write_to_bytes().unwrap_or_default(),
            at: SystemTime::now(),
        }
    }

    /// The message, if the event is of type `M`.
    #[must_use]
    pub fn message<M: Message>(&self) -> Option<M> {
        (self.type_url == full_name::<M>())
            .then(|| M::parse_from_bytes(&self.value).ok())
            .flatten()
    }

    fn request(&self, namespace: &str) -> ForwardRequest {
        ForwardRequest {
            envelope: MessageField::some(Envelope {
                timestamp: MessageField::some(timestamp(self.at)),
                namespace: namespace.to_owned(),
                topic: self.topic.to_owned(),
                event: MessageField::some(Any {
                    type_url: self.type_url.clone(),
                    value: self.value.clone(),
                    ..Any::default()
                }),
                ..Envelope::default()
            }),
            ..ForwardRequest::default()
        }
    }
}

/// Not from the message's descriptor: to have one, protobuf parses the descriptors of every file
/// and keeps them, half a megabyte in each shim.
fn full_name<M: Message>() -> String {
    format!("containerd.events.{}", M::NAME)
}

/// Where events go. Sending never blocks and never fails towards the sender.
pub trait EventSink: fmt::Debug + Send + Sync {
    /// Takes an event.
    fn send(&self, event: Event);

    /// How many events wait to be taken by containerd, and how many it never took.
    fn backlog(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// A sink that keeps events, for tests.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// What has been sent, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The topics alone.
    #[must_use]
    pub fn topics(&self) -> Vec<&'static str> {
        self.events().iter().map(|event| event.topic).collect()
    }
}

impl EventSink for Recorder {
    fn send(&self, event: Event) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}

/// `/tasks/create`: a container was made. `pid` is 0 if it is to be restored.
pub fn create(sink: &dyn EventSink, request: &CreateTaskRequest, pid: u32) {
    let mut event = task::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        io: MessageField::some(task::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        }),
        checkpoint: request.checkpoint.clone(),
        pid,
        ..Default::default()
    };
    // The type of these mounts has no name outside the protos; its fields do.
    event
        .rootfs
        .resize_with(request.rootfs.len(), Default::default);
    for (to, mount) in event.rootfs.iter_mut().zip(&request.rootfs) {
        to.type_.clone_from(&mount.type_);
        to.source.clone_from(&mount.source);
        to.target.clone_from(&mount.target);
        to.options.clone_from(&mount.options);
    }
    sink.send(Event::new(topics::TASK_CREATE_EVENT_TOPIC, &event));
}

/// `/tasks/start`: the container's init runs. Before its exit.
pub fn start(sink: &dyn EventSink, container_id: &str, pid: u32) {
    let event = task::TaskStart {
        container_id: container_id.to_owned(),
        pid,
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_START_EVENT_TOPIC, &event));
}

/// `/tasks/exit`: a process ended. `id` is the exec's, or the container's for its init.
pub fn exit(
    sink: &dyn EventSink,
    container_id: &str,
    id: &str,
    pid: u32,
    exit_status: u32,
    exited_at: SystemTime,
) {
    let event = task::TaskExit {
        container_id: container_id.to_owned(),
        id: id.to_owned(),
        pid,
        exit_status,
        exited_at: MessageField::some(timestamp(exited_at)),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_EXIT_EVENT_TOPIC, &event));
}

/// `/tasks/exec-added`: a process was declared.
pub fn exec_added(sink: &dyn EventSink, container_id: &str, exec_id: &str) {
    let event = task::TaskExecAdded {
        container_id: container_id.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event));
}

/// `/tasks/exec-started`: it runs. Before its exit.
pub fn exec_started(sink: &dyn EventSink, container_id: &str, exec_id: &str, pid: u32) {
    let event = task::TaskExecStarted {
        container_id: container_id.to_owned(),
        exec_id: exec_id.to_owned(),
        pid,
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event));
}

/// `/tasks/delete`: the container is gone.
pub fn delete(
    sink: &dyn EventSink,
    container_id: &str,
    id: &str,
    pid: u32,
    exit_status: u32,
    exited_at: SystemTime,
) {
    let event = task::TaskDelete {
        container_id: container_id.to_owned(),
        id: id.to_owned(),
        pid,
        exit_status,
        exited_at: MessageField::some(timestamp(exited_at)),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_DELETE_EVENT_TOPIC, &event));
}

/// `/tasks/paused`: the container is frozen.
pub fn paused(sink: &dyn EventSink, container_id: &str) {
    let event = task::TaskPaused {
        container_id: container_id.to_owned(),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_PAUSED_EVENT_TOPIC, &event));
}

/// `/tasks/resumed`: the container runs again.
pub fn resumed(sink: &dyn EventSink, container_id: &str) {
    let event = task::TaskResumed {
        container_id: container_id.to_owned(),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_RESUMED_EVENT_TOPIC, &event));
}

/// `/tasks/checkpointed`: a checkpoint lies at `checkpoint`.
pub fn checkpointed(sink: &dyn EventSink, container_id: &str, checkpoint: &str) {
    let event = task::TaskCheckpointed {
        container_id: container_id.to_owned(),
        checkpoint: checkpoint.to_owned(),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_CHECKPOINTED_EVENT_TOPIC, &event));
}

/// `/tasks/oom`: the kernel killed something in the container for its memory.
pub fn oom(sink: &dyn EventSink, container_id: &str) {
    let event = task::TaskOOM {
        container_id: container_id.to_owned(),
        ..Default::default()
    };
    sink.send(Event::new(topics::TASK_OOM_EVENT_TOPIC, &event));
}

/// A time as protobuf has it.
#[must_use]
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Below 10^9.
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

/// How hard a [`Publisher`] tries.
#[derive(Debug, Clone)]
pub struct Config {
    /// Events that may wait; more are dropped and counted.
    pub queue: usize,
    /// Deadline of one attempt.
    pub send_timeout: Duration,
    /// First and longest pause between attempts.
    pub backoff: (Duration, Duration),
    /// An older event is given up after one more attempt. Longer than a containerd restart takes;
    /// shorter than for ever, as a daemon that comes back asks for the state of each task anyway.
    pub give_up_after: Duration,
    /// Attempts for an event that containerd answers with an error.
    pub refusals: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            queue: 2048,
            send_timeout: Duration::from_secs(5),
            backoff: (Duration::from_millis(50), Duration::from_secs(1)),
            give_up_after: Duration::from_secs(120),
            refusals: 5,
        }
    }
}

/// Events that were still waiting when a flush was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} events did not reach containerd in time")]
pub struct FlushError {
    /// How many.
    pub waiting: u64,
}

enum Item {
    Event(Event),
    Flush(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Counters {
    waiting: AtomicU64,
    dropped: AtomicU64,
}

/// Sends events to containerd. Clones share one queue; when the last is dropped the queue is
/// still sent to its end.
#[derive(Debug, Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Item>,
    counters: Arc<Counters>,
}

impl Publisher {
    /// Starts the sending task; connects when there is something to send.
    ///
    /// `ttrpc_address` is the environment's `TTRPC_ADDRESS`: a path, with or without `unix://`,
    /// or `@name` of an abstract socket. With an empty one every event is given up.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(ttrpc_address: &str, namespace: &str, config: Config) -> Self {
        let (queue, items) = mpsc::channel(config.queue.max(1));
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            address: ttrpc_address
                .strip_prefix("unix://")
                .unwrap_or(ttrpc_address)
                .to_owned(),
            namespace: namespace.to_owned(),
            config,
            counters: counters.clone(),
            client: None,
        };
        tokio::spawn(worker.run(items));
        Self { queue, counters }
    }

    /// Packs and queues a message; never blocks.
    pub fn publish<M: Message>(&self, topic: &'static str, message: &M) {
        self.send(Event::new(topic, message));
    }

    /// Events given up since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all that was sent before has arrived or was given up. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`FlushError`] after `limit`; the events go on waiting.
    pub async fn flush(&self, limit: Duration) -> Result<(), FlushError> {
        let (done, arrived) = oneshot::channel();
        let flushed = timeout(limit, async {
            self.queue.send(Item::Flush(done)).await.ok()?;
            arrived.await.ok()
        })
        .await;
        match flushed {
            Ok(Some(())) => Ok(()),
            _ => Err(FlushError {
                waiting: self.counters.waiting.load(Ordering::Relaxed),
            }),
        }
    }
}

impl EventSink for Publisher {
    fn backlog(&self) -> (u64, u64) {
        let waiting = self.counters.waiting.load(Ordering::Relaxed);
        (waiting, self.dropped())
    }

    fn send(&self, event: Event) {
        self.counters.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.queue.try_send(Item::Event(event)) {
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            let dropped = self.counters.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            let topic = match error.into_inner() {
                Item::Event(event) => event.topic,
                Item::Flush(_) => "",
            };
            tracing::error!(topic, dropped, "event dropped: the queue is full");
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
enum SendError {
    /// No connection, or it broke, or no answer came.
    Connection(String),
    /// containerd answered, and said no.
    Refused(String),
}

struct Worker {
    address: String,
    namespace: String,
    config: Config,
    counters: Arc<Counters>,
    client: Option<EventsClient>,
}

impl Worker {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            match item {
                Item::Event(event) => self.deliver(&event).await,
                // Nobody may be waiting any more.
                Item::Flush(done) => drop(done.send(())),
            }
        }
    }

    /// Sends one event until it has arrived or must be given up.
    async fn deliver(&mut self, event: &Event) {
        if self.address.is_empty() {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(
                topic = event.topic,
                "event given up: there is no TTRPC_ADDRESS"
            );
            return;
        }
        let request = event.request(&self.namespace);
        // Its age when it comes to the head counts: after a long absence of containerd the whole
        // queue must not take its time anew.
        let age = event.at.elapsed().unwrap_or(Duration::ZERO);
        let give_up = Instant::now() + self.config.give_up_after.saturating_sub(age);
        let (mut pause, longest) = self.config.backoff;
        let mut refusals = 0;
        let mut failures = 0u32;
        loop {
            let error = match self.attempt(&request).await {
                Ok(()) => {
                    if failures > 0 {
                        tracing::info!(topic = event.topic, failures, "event delivered at last");
                    }
                    break;
                }
                Err(error) => error,
            };
            failures += 1;
            // A connection that containerd closed meanwhile is found out by the first send on it.
            let stale = self.client.take().is_some() && failures == 1;
            let text = match error {
                SendError::Refused(text) => {
                    refusals += 1;
                    text
                }
                SendError::Connection(text) => text,
            };
            if Instant::now() >= give_up || refusals >= self.config.refusals {
                let dropped = self.counters.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(
                    topic = event.topic,
                    failures,
                    dropped,
                    error = text,
                    "event given up"
                );
                break;
            }
            if failures == 1 {
                tracing::warn!(
                    topic = event.topic,
                    error = text,
                    "event not delivered, trying again"
                );
            }
            if !stale {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
        self.counters.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    async fn attempt(&mut self, request: &ForwardRequest) -> Result<(), SendError> {
        let limit = self.config.send_timeout;
        let attempt = async {
            let client = match &self.client {
                Some(client) => client,
                None => {
                    let client = connect(&self.address).await.map_err(|error| {
                        SendError::Connection(format!("connect to {}: {error}", self.address))
                    })?;
                    self.client.insert(client)
                }
            };
            match client.forward(context::with_duration(limit), request).await {
                Ok(_) => Ok(()),
                Err(ttrpc::Error::RpcStatus(status)) => Err(SendError::Refused(format!(
                    "{:?}: {}",
                    status.code(),
                    status.message
                ))),
                Err(error) => Err(SendError::Connection(error.to_string())),
            }
        };
        match timeout(limit, attempt).await {
            Ok(result) => result,
            Err(_) => Err(SendError::Connection(format!("no answer in {limit:?}"))),
        }
    }
}

async fn connect(address: &str) -> std::io::Result<EventsClient> {
    use std::os::linux::net::SocketAddrExt as _;
    let stream = match address.strip_prefix('@') {
        // ttrpc's own connect blocks the thread while a listener's backlog is full.
        None => UnixStream::connect(address).await?,
        Some(name) => {
            let name = SocketAddr::from_abstract_name(name)?;
            let stream = std::os::unix::net::UnixStream::connect_addr(&name)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)?
        }
    };
    Ok(EventsClient::new(Client::new(Socket::from(stream))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bare() {
        let sink = Recorder::default();
        start(&sink, "c1", 7);
        exit(
            &sink,
            "c1",
            "e1",
            8,
            137,
            SystemTime::UNIX_EPOCH + Duration::new(5, 6),
        );
        paused(&sink, "c1");
        resumed(&sink, "c1");
        checkpointed(&sink, "c1", "/d");
        oom(&sink, "c1");
        delete(&sink, "c1", "", 7, 0, SystemTime::now());
        let names: Vec<_> = sink
            .events()
            .into_iter()
            .map(|event| (event.topic, event.type_url))
            .collect();
        let want = [
            ("/tasks/start", "containerd.events.TaskStart"),
            ("/tasks/exit", "containerd.events.TaskExit"),
            ("/tasks/paused", "containerd.events.TaskPaused"),
            ("/tasks/resumed", "containerd.events.TaskResumed"),
            ("/tasks/checkpointed", "containerd.events.TaskCheckpointed"),
            ("/tasks/oom", "containerd.events.TaskOOM"),
            ("/tasks/delete", "containerd.events.TaskDelete"),
        ];
        assert_eq!(names, want.map(|(topic, name)| (topic, name.to_owned())));

        let exit: task::TaskExit = sink.events()[1].message().unwrap();
        assert_eq!(
            (exit.id.as_str(), exit.pid, exit.exit_status),
            ("e1", 8, 137)
        );
        assert_eq!((exit.exited_at.seconds, exit.exited_at.nanos), (5, 6));
        assert!(sink.events()[0].message::<task::TaskExit>().is_none());
    }

    #[test]
    fn create_tells_all() {
        let mut request = CreateTaskRequest {
            id: "c1".into(),
            bundle: "/b".into(),
            stdout: "/out".into(),
            terminal: true,
            checkpoint: "/cp".into(),
            ..Default::default()
        };
        request.rootfs.push(containerd_shim_protos::api::Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec!["lowerdir=/l".into()],
            ..Default::default()
        });
        let sink = Recorder::default();
        create(&sink, &request, 0);
        let event: task::TaskCreate = sink.events()[0].message().unwrap();
        assert_eq!(event.rootfs.len(), 1);
        assert_eq!(event.rootfs[0].type_, "overlay");
        assert_eq!(event.rootfs[0].options, ["lowerdir=/l"]);
        assert_eq!(
            (event.io.stdout.as_str(), event.io.terminal),
            ("/out", true)
        );
        assert_eq!((event.checkpoint.as_str(), event.pid), ("/cp", 0));
    }

    #[test]
    fn the_envelope() {
        let event = Event {
            at: SystemTime::UNIX_EPOCH + Duration::new(1, 2),
            ..Event::new("/tasks/oom", &task::TaskOOM::default())
        };
        let envelope = event.request("k8s.io").envelope.unwrap();
        assert_eq!(envelope.namespace, "k8s.io");
        assert_eq!(envelope.topic, "/tasks/oom");
        assert_eq!(
            (envelope.timestamp.seconds, envelope.timestamp.nanos),
            (1, 2)
        );
        assert_eq!(envelope.event.type_url, "containerd.events.TaskOOM");
    }
}
