//! containerd's events, collected in the background while a test runs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use prost::Message;

use crate::containerd::{Api, TaskEvent, TaskExit};
use crate::patience::{PATIENCE, until};

static BARRIERS: AtomicU32 = AtomicU32::new(0);

/// One task event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `/tasks/start` and so on.
    pub topic: String,
    /// The container it is about.
    pub container: String,
    /// Process id within the container (the container's own for init) and exit status,
    /// of exits only.
    pub exit: Option<(String, u32)>,
}

/// The events of one node and namespace since the value was made.
#[derive(Debug)]
pub struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Events {
    /// Subscribes to the tasks' events of one namespace.
    ///
    /// # Errors
    /// When containerd refuses the subscription.
    pub async fn subscribe(api: &Api, namespace: &str) -> anyhow::Result<Self> {
        let filter = format!(r#"namespace=={namespace},topic~="^/tasks/""#);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let client = api.clone();
        let reader = tokio::spawn(async move {
            // The answer begins with the first event, so this waits for it.
            let Ok(mut stream) = client.subscribe(vec![filter]).await else {
                return;
            };
            while let Ok(Some(envelope)) = stream.message().await {
                let bytes = envelope.event.unwrap_or_default().value;
                let container = TaskEvent::decode(bytes.as_slice())
                    .map(|e| e.container_id)
                    .unwrap_or_default();
                let exit = (envelope.topic == "/tasks/exit")
                    .then(|| TaskExit::decode(bytes.as_slice()).ok())
                    .flatten()
                    .map(|e| (e.id, e.exit_status));
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Event {
                        topic: envelope.topic,
                        container,
                        exit,
                    });
            }
        });
        let events = Self { seen, reader };
        // Subscribed is who sees an event that is published now.
        let barrier = format!("barrier-{}", BARRIERS.fetch_add(1, Ordering::Relaxed));
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            api.publish("/tasks/e2e", &barrier)
                .await
                .context("publish an event")?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if !events.of(&barrier).is_empty() {
                return Ok(events);
            }
        }
        bail!("containerd sends no events after the subscription")
    }

    /// What was seen of one container, in order.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|e| e.container == container)
            .cloned()
            .collect()
    }

    /// The topics seen of one container, in order, without `/tasks/`.
    pub fn topics(&self, container: &str) -> Vec<String> {
        self.of(container)
            .into_iter()
            .map(|e| e.topic.trim_start_matches("/tasks/").to_owned())
            .collect()
    }

    /// Waits until `topic` was seen of `container`.
    ///
    /// # Errors
    /// When it did not come; the text has what came instead.
    pub async fn wait_for(&self, container: &str, topic: &str) -> anyhow::Result<Event> {
        let find = || Ok(self.of(container).into_iter().find(|e| e.topic == topic));
        until(&format!("{topic} of {container}"), find)
            .await
            .with_context(|| format!("seen: {:?}", self.topics(container)))
    }
}
