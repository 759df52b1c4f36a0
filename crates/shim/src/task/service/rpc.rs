//! The methods: each finds its container, asks that one's actor, and makes the answer.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::shim_async::Task;
use cryo_criu::Abort;
use cryo_engine::spec;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{EnumOrUnknown, Message as _};
use ttrpc::r#async::TtrpcContext;

use super::request::{checkpoint_request, exec_request};
use super::{Either, Service, blocking};
use crate::events::timestamp;
use crate::rpc::{TaskError, guarded};
use crate::task::container::raw;
use crate::task::state::{Exit, Phase};
use crate::task::{stats, update};

#[async_trait::async_trait]
impl Task for Service {
    async fn state(
        &self,
        _: &TtrpcContext,
        req: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let service = self.clone();
        guarded("State", async move {
            let (container, exec) = match service.process(&req.id, &req.exec_id)? {
                Either::Init(container) => (container, None),
                Either::Exec(exec, container) => (container, Some(exec.state().await?)),
            };
            let snapshot = container.state().await?;
            let context = container.context();
            let mut answer = api::StateResponse::new();
            answer.bundle = path_text(&context.record.bundle);
            let frozen = match snapshot.phase {
                _ if snapshot.pausing => Some(api::Status::PAUSING),
                Phase::Paused => Some(api::Status::PAUSED),
                _ => None,
            };
            let (id, pid, paths, status, exit) = match exec {
                None => {
                    answer.terminal = spec::terminal(&context.spec);
                    let (status, exit) = match snapshot.phase {
                        Phase::Prepared | Phase::Created => (api::Status::CREATED, None),
                        Phase::Running | Phase::Paused => (api::Status::RUNNING, None),
                        Phase::Stopped(exit) => (api::Status::STOPPED, Some(exit)),
                    };
                    (req.id, snapshot.pid, context.paths.clone(), status, exit)
                }
                Some(exec) => {
                    answer.terminal = exec.terminal;
                    let status = match (exec.pid, exec.exit) {
                        (_, Some(_)) => api::Status::STOPPED,
                        (Some(_), None) => api::Status::RUNNING,
                        (None, None) => api::Status::CREATED,
                    };
                    answer.exec_id.clone_from(&req.exec_id);
                    (req.exec_id, exec.pid, exec.paths, status, exec.exit)
                }
            };
            answer.id = id;
            answer.pid = pid.map_or(0, raw);
            answer.stdin = paths.stdin;
            answer.stdout = paths.stdout;
            answer.stderr = paths.stderr;
            let status = frozen
                .filter(|_| status == api::Status::RUNNING)
                .unwrap_or(status);
            answer.status = EnumOrUnknown::new(status);
            if let Some(exit) = exit {
                answer.exit_status = exit.status;
                answer.exited_at = Some(timestamp(exit.at)).into();
            }
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        req: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let service = self.clone();
        guarded("Create", async move {
            let mut answer = api::CreateTaskResponse::new();
            answer.pid = service.create_container(req).await?;
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        req: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let service = self.clone();
        guarded("Start", async move {
            let mut answer = api::StartResponse::new();
            answer.pid = raw(match service.process(&req.id, &req.exec_id)? {
                Either::Init(container) => container.start().await?,
                Either::Exec(exec, _) => exec.start().await?,
            });
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        req: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let service = self.clone();
        guarded("Delete", async move {
            let (pid, exit) = match service.process(&req.id, &req.exec_id)? {
                Either::Init(container) => {
                    let pid = container.state().await?.pid.map_or(0, raw);
                    let exit = container.delete().await?;
                    service.remove(&req.id);
                    (pid, exit)
                }
                Either::Exec(exec, _) => exec.delete().await?,
            };
            let mut answer = api::DeleteResponse::new();
            answer.pid = pid;
            answer.exit_status = exit.status;
            answer.exited_at = Some(timestamp(exit.at)).into();
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        req: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let service = self.clone();
        guarded("Pids", async move {
            let pids = service.find(&req.id)?.pids().await?;
            let mut answer = api::PidsResponse::new();
            answer.processes = pids
                .into_iter()
                .map(|found| {
                    let mut process = api::ProcessInfo::new();
                    process.pid = found.pid;
                    process.info = found.exec_id.and_then(details).into();
                    process
                })
                .collect();
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn pause(&self, _: &TtrpcContext, req: api::PauseRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        let watch = ClientWatch::new()?;
        let client_gone = Arc::clone(&watch.gone);
        let answer = guarded("Pause", async move {
            let container = service.find(&req.id)?;
            container.pause().await?;
            // Who does not hear of the pause does not resume either.
            if client_gone.is_triggered() {
                container.resume().await?;
                return Err(TaskError::Canceled(
                    "the client did not wait for the pause: it is undone".to_owned(),
                ));
            }
            Ok::<_, TaskError>(Empty::new())
        })
        .await;
        watch.answered();
        answer
    }

    async fn resume(&self, _: &TtrpcContext, req: api::ResumeRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("Resume", async move {
            service.find(&req.id)?.resume().await?;
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn checkpoint(
        &self,
        ctx: &TtrpcContext,
        req: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let service = self.clone();
        let timeout_nano = ctx.timeout_nano;
        let watch = ClientWatch::new()?;
        let client_gone = Some(Arc::clone(&watch.gone));
        let answer = guarded("Checkpoint", async move {
            let mut request = checkpoint_request(&req, timeout_nano)?;
            request.client_gone = client_gone;
            service.find(&req.id)?.checkpoint(request).await?;
            Ok::<_, TaskError>(Empty::new())
        })
        .await;
        watch.answered();
        answer
    }

    async fn kill(&self, _: &TtrpcContext, req: api::KillRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("Kill", async move {
            let signal = i32::try_from(req.signal).map_err(|_| {
                TaskError::InvalidArgument(format!("there is no signal {}", req.signal))
            })?;
            match service.process(&req.id, &req.exec_id)? {
                Either::Init(container) => container.kill(signal, req.all).await?,
                Either::Exec(exec, _) => exec.kill(signal).await?,
            }
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, req: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("Exec", async move {
            let container = service.find(&req.id)?;
            container.exec(exec_request(req)?).await?;
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        req: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("ResizePty", async move {
            let (Ok(columns), Ok(rows)) = (u16::try_from(req.width), u16::try_from(req.height))
            else {
                return Err(TaskError::InvalidArgument(format!(
                    "no terminal is {} wide and {} high",
                    req.width, req.height
                )));
            };
            match service.process(&req.id, &req.exec_id)? {
                Either::Init(container) => container.resize(columns, rows).await?,
                Either::Exec(exec, _) => exec.resize(columns, rows).await?,
            }
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, req: api::CloseIORequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("CloseIO", async move {
            let process = service.process(&req.id, &req.exec_id)?;
            if req.stdin {
                match process {
                    Either::Init(container) => container.close_stdin().await?,
                    Either::Exec(exec, _) => exec.close_stdin().await?,
                }
            }
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn update(&self, _: &TtrpcContext, req: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let service = self.clone();
        guarded("Update", async move {
            let container = service.find(&req.id)?;
            let resources = update::resources(req.resources.as_ref())?;
            update::check(container.state().await?.phase)?;
            blocking(move || update::run(container.context(), &resources)).await?;
            Ok::<_, TaskError>(Empty::new())
        })
        .await
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        req: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        // Not guarded: it changes nothing, and ends when its client goes.
        let exit: Exit = match self.process(&req.id, &req.exec_id)? {
            Either::Init(container) => container.wait().await?,
            Either::Exec(exec, _) => exec.wait().await?,
        };
        let mut answer = api::WaitResponse::new();
        answer.exit_status = exit.status;
        answer.exited_at = Some(timestamp(exit.at)).into();
        Ok(answer)
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        req: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let service = self.clone();
        guarded("Stats", async move {
            let container = service.find(&req.id)?;
            let metrics = blocking(move || stats::read(&container.context().cgroups)).await?;
            let mut answer = api::StatsResponse::new();
            answer.stats = Some(metrics).into();
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        req: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let service = self.clone();
        guarded("Connect", async move {
            let mut answer = api::ConnectResponse::new();
            answer.version = env!("CARGO_PKG_VERSION").to_owned();
            answer.shim_pid = std::process::id();
            // Never fails: containerd would take the shim for dead.
            if let Ok(container) = service.find(&req.id)
                && let Ok(snapshot) = container.state().await
            {
                answer.task_pid = snapshot.pid.map_or(0, raw);
            }
            Ok::<_, TaskError>(answer)
        })
        .await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        let mut containers = self.lock();
        containers.shutdown = true;
        if containers.slots.is_empty() {
            self.shutdown.notify_one();
        }
        Ok(Empty::new())
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Dropped before the answer it says that the client has gone: ttrpc drops a
/// handler with its connection, and at its deadline.
struct ClientWatch {
    gone: Arc<Abort>,
    answered: bool,
}

impl ClientWatch {
    fn new() -> Result<Self, TaskError> {
        let gone = Abort::new().map_err(|e| TaskError::io("cannot watch the client", &e))?;
        Ok(Self {
            gone: Arc::new(gone),
            answered: false,
        })
    }

    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for ClientWatch {
    fn drop(&mut self) {
        if !self.answered {
            self.gone.trigger();
        }
    }
}

/// What tells clients which process is whose.
fn details(exec_id: String) -> Option<Any> {
    let mut details = oci::ProcessDetails::new();
    details.exec_id = exec_id;
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.ProcessDetails".to_owned();
    any.value = details.write_to_bytes().ok()?;
    Some(any)
}
