//! The server over a real socket: both names of the Task service, shutdown, guarded calls.
#![allow(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, PidsRequest, PidsResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, TaskClient, create_task};
use cryo_shim::bootstrap::socket::{self, Listening};
use cryo_shim::rpc::{self, TaskError};
use cryo_shim::serve::{self, Shutdown};
use protobuf::Message as _;
use ttrpc::asynchronous::{Client, TtrpcContext};
use ttrpc::{Code, context};

#[derive(Debug, Default)]
struct Service {
    begun: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
}

#[async_trait]
impl Task for Service {
    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        rpc::guarded("Connect", async {
            Ok::<_, TaskError>(ConnectResponse {
                shim_pid: 42,
                ..Default::default()
            })
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, _: PidsRequest) -> ttrpc::Result<PidsResponse> {
        async fn bad() -> Result<PidsResponse, TaskError> {
            panic!("oh no")
        }
        rpc::guarded("Pids", bad()).await
    }

    async fn wait(&self, _: &TtrpcContext, _: WaitRequest) -> ttrpc::Result<WaitResponse> {
        self.begun.store(true, Ordering::SeqCst);
        let done = self.done.clone();
        rpc::guarded("Wait", async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            done.store(true, Ordering::SeqCst);
            Ok::<_, TaskError>(WaitResponse::new())
        })
        .await
    }
}

struct Running {
    _dir: tempfile::TempDir,
    path: PathBuf,
    shutdown: Shutdown,
    begun: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
    flushed: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(), serve::ServeError>>,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let Listening::New(listener) = socket::listen(&path).unwrap() else {
            panic!("taken")
        };
        let service = Service::default();
        let (begun, done) = (service.begun.clone(), service.done.clone());
        let services = serve::both_versions(create_task(Arc::new(service)));
        let shutdown = Shutdown::new();
        let flushed = Arc::new(AtomicBool::new(false));
        let flag = flushed.clone();
        let token = shutdown.clone();
        let task = tokio::spawn(async move {
            let flush = async move |_| flag.store(true, Ordering::SeqCst);
            serve::serve(listener, services, token, async || {}, flush).await
        });
        Self {
            _dir: dir,
            path,
            shutdown,
            begun,
            done,
            flushed,
            task,
        }
    }

    async fn client(&self) -> Client {
        client(&self.path).await
    }
}

async fn client(path: &Path) -> Client {
    Client::connect(&format!("unix://{}", path.display()))
        .await
        .unwrap()
}

fn soon() -> context::Context {
    context::with_duration(Duration::from_secs(30))
}

/// Waits for it.
async fn is_set(flag: &AtomicBool) {
    let set = async {
        while !flag.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), set)
        .await
        .unwrap();
}

fn code(error: ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn both_names_of_the_task_service() {
    let running = Running::start().await;
    let v3 = TaskClient::new(running.client().await);
    let answer = v3.connect(soon(), &ConnectRequest::new()).await.unwrap();
    assert_eq!(answer.shim_pid, 42);

    for (service, method, want) in [
        (serve::TASK_V2, "Connect", Ok(())),
        (serve::TASK_V3, "Connect", Ok(())),
        (serve::TASK_V2, "Nope", Err(Code::UNIMPLEMENTED)),
        (
            "containerd.task.v4.Task",
            "Connect",
            Err(Code::INVALID_ARGUMENT),
        ),
    ] {
        let mut request = ttrpc::Request::new();
        request.service = service.into();
        request.method = method.into();
        request.timeout_nano = 30_000_000_000;
        match running.client().await.request(request).await {
            Ok(answer) => {
                want.unwrap();
                let answer = ConnectResponse::parse_from_bytes(&answer.payload).unwrap();
                assert_eq!(answer.shim_pid, 42);
            }
            Err(error) => assert_eq!(Err(code(error)), want, "{service}/{method}"),
        }
    }
}

#[tokio::test]
async fn a_panic_is_answered_and_work_outlives_its_client() {
    let running = Running::start().await;
    let task = TaskClient::new(running.client().await);
    let error = task.pids(soon(), &PidsRequest::new()).await.unwrap_err();
    assert_eq!(code(error), Code::INTERNAL);

    // The client's deadline passes; then the client itself goes.
    let hasty = context::with_duration(Duration::from_millis(20));
    assert!(task.wait(hasty, &WaitRequest::new()).await.is_err());
    drop(task);
    is_set(&running.done).await;
}

#[tokio::test]
async fn shutdown_in_good_order() {
    let running = Running::start().await;
    let task = TaskClient::new(running.client().await);
    task.connect(soon(), &ConnectRequest::new()).await.unwrap();
    // A call that is under way gets its answer.
    let call = tokio::spawn(async move { task.wait(soon(), &WaitRequest::new()).await });
    is_set(&running.begun).await;
    running.shutdown.trigger();
    tokio::time::timeout(Duration::from_secs(30), running.task)
        .await
        .expect("still serving")
        .unwrap()
        .unwrap();
    assert!(!running.path.exists(), "the socket stays");
    assert!(running.flushed.load(Ordering::SeqCst));
    call.await.unwrap().unwrap();
}
