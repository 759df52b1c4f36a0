//! A fake containerd: the Events service on a unix socket, which can go away and come back.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// What the fake does with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Takes it.
    Polite,
    /// Takes it after a while.
    Slow(Duration),
    /// Never answers.
    Silent,
    /// Refuses this topic, takes the rest.
    Refuses(&'static str),
}

#[derive(Debug)]
struct Service {
    manner: Manner,
    topics: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        match self.manner {
            Manner::Polite => {}
            Manner::Slow(pause) => tokio::time::sleep(pause).await,
            Manner::Silent => std::future::pending().await,
            Manner::Refuses(topic) if topic == envelope.topic => {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::INVALID_ARGUMENT,
                    "no such topic",
                )));
            }
            Manner::Refuses(_) => {}
        }
        assert_eq!(envelope.namespace, "default");
        // The payload tells events of one topic apart.
        let id = String::from_utf8_lossy(&envelope.event.value[2..]).into_owned();
        self.topics
            .lock()
            .unwrap()
            .push(format!("{} {id}", envelope.topic));
        Ok(Empty::new())
    }
}

/// The daemon; its memory survives its restarts.
pub(crate) struct FakeContainerd {
    path: PathBuf,
    topics: Arc<Mutex<Vec<String>>>,
    server: Option<Server>,
}

impl FakeContainerd {
    /// Not running yet.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            topics: Arc::default(),
            server: None,
        }
    }

    pub(crate) async fn start(&mut self, manner: Manner) {
        let service = Service {
            manner,
            topics: self.topics.clone(),
        };
        let mut server = Server::new()
            .bind(&format!("unix://{}", self.path.display()))
            .unwrap()
            .register_service(create_events(Arc::new(service)));
        server.start().await.unwrap();
        self.server = Some(server);
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = tokio::time::timeout(Duration::from_millis(200), server.shutdown()).await;
        }
        std::fs::remove_file(&self.path).unwrap();
    }

    /// `topic id` of what has arrived.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.topics.lock().unwrap().clone()
    }
}
