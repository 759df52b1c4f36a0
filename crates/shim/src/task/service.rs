//! `containerd.task.v3.Task` (and v2, which is the same): ttrpc in, actors out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::shim_async::Task;
use cryo_criu::Abort;
use cryo_engine::cgroup::Cgroups;
use cryo_engine::spec;
use cryo_engine::systemd::{self, Scope};
use cryo_engine::{CreateOptions, Enclosed};
use cryo_sys::process;
use oci_spec::runtime::Spec;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{EnumOrUnknown, Message as _};
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use super::container::{CheckpointRequest, Container, raw};
use super::context::{Context, Record, Shared, from_engine, from_spec, internal, state_dir};
use super::dump::{self, ContainerState, Dump, ShimState};
use super::process::{Exec, ExecRequest};
use super::rootfs;
use super::settings::{Annotations, CheckpointOptions};
use super::state::{Exit, Phase};
use super::stdio::{Paths, Stdio};
use super::{stats, update};
use crate::bootstrap;
use crate::events::{self, timestamp};
use crate::info;
use crate::options::RuntimeOptions;
use crate::rpc::{TaskError, guarded};

/// How long a container may take to tell its state.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Slot {
    /// The id is taken, the container not there yet.
    Creating,
    Ready(Container),
}

#[derive(Debug, Default)]
struct Containers {
    slots: HashMap<String, Slot>,
    /// Shutdown was asked for while there were containers.
    shutdown: bool,
}

/// What a request with an optional exec id is about.
enum Either {
    Init(Container),
    Exec(Exec, Container),
}

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
    containers: Arc<Mutex<Containers>>,
    shutdown: Arc<Notify>,
    since: Instant,
}

impl Service {
    /// A service without containers.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            containers: Arc::default(),
            shutdown: Arc::default(),
            since: Instant::now(),
        }
    }

    /// The state of the shim and of all its containers. One that does not answer
    /// at once is there with that as its phase.
    pub async fn dump(&self) -> Dump {
        let mut ready = Vec::new();
        let (waiting, dropped) = self.shared.events.backlog();
        let mut shim = ShimState {
            version: info::VERSION,
            revision: info::REVISION,
            pid: std::process::id(),
            uptime_s: self.since.elapsed().as_secs(),
            namespace: self.shared.namespace.clone(),
            state_root: self.shared.state_root.clone(),
            threads: dump::own("task"),
            tasks: tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks(),
            fds: dump::own("fd"),
            core_scheduling_cookie: process::core_scheduling_cookie(),
            events_waiting: waiting,
            events_dropped: dropped,
            ..ShimState::default()
        };
        {
            let containers = self.lock();
            shim.shutdown_asked = containers.shutdown;
            for (id, slot) in &containers.slots {
                match slot {
                    Slot::Creating => shim.creating.push(id.clone()),
                    Slot::Ready(container) => ready.push(container.clone()),
                }
            }
        }
        shim.creating.sort();
        let mut containers = Vec::new();
        for container in ready {
            let id = container.context().id().to_owned();
            let answer = tokio::time::timeout(DESCRIBE_LIMIT, container.describe()).await;
            containers.push(match answer {
                Ok(Ok(state)) => state,
                // Deleted just now.
                Ok(Err(_)) => continue,
                Err(_) => ContainerState {
                    id,
                    phase: "does not answer".to_owned(),
                    ..ContainerState::default()
                },
            });
        }
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        Dump { shim, containers }
    }

    /// Comes back once containerd wants the shim to end and no container is left.
    pub async fn finished(&self) {
        self.shutdown.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Containers> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Container, TaskError> {
        match self.lock().slots.get(id) {
            None => Err(TaskError::NotFound(format!("container {id} not created"))),
            Some(Slot::Creating) => Err(TaskError::Unavailable(format!(
                "container {id} is being created; try again"
            ))),
            Some(Slot::Ready(container)) => Ok(container.clone()),
        }
    }

    /// A process: the container's first one if no exec is named.
    fn process(&self, id: &str, exec_id: &str) -> Result<Either, TaskError> {
        let container = self.find(id)?;
        Ok(if exec_id.is_empty() {
            Either::Init(container)
        } else {
            Either::Exec(container.process(exec_id.to_owned()), container)
        })
    }

    fn remove(&self, id: &str) {
        let mut containers = self.lock();
        containers.slots.remove(id);
        if containers.shutdown && containers.slots.is_empty() {
            self.shutdown.notify_one();
        }
    }

    async fn create_container(&self, request: api::CreateTaskRequest) -> Result<u32, TaskError> {
        check_id(&request.id)?;
        {
            let mut containers = self.lock();
            if containers.slots.contains_key(&request.id) {
                return Err(TaskError::AlreadyExists(format!(
                    "container {} exists already",
                    request.id
                )));
            }
            containers.slots.insert(request.id.clone(), Slot::Creating);
            // A new container takes an earlier Shutdown back.
            containers.shutdown = false;
        }
        let id = request.id.clone();
        match self.build(request).await {
            Ok((container, pid)) => {
                self.lock().slots.insert(id, Slot::Ready(container));
                Ok(pid)
            }
            Err(error) => {
                self.remove(&id);
                Err(error)
            }
        }
    }

    /// Makes a container, or takes back everything it made.
    async fn build(&self, request: api::CreateTaskRequest) -> Result<(Container, u32), TaskError> {
        let shared = Arc::clone(&self.shared);
        let options = RuntimeOptions::parse(request.options.as_ref())?;
        let mounts = request.rootfs.clone();
        let (bundle, id) = (PathBuf::from(&request.bundle), request.id.clone());
        let checkpoint =
            (!request.checkpoint.is_empty()).then(|| PathBuf::from(&request.checkpoint));
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let context =
            blocking(move || prepare(shared, id, bundle, checkpoint, paths, options, &mounts))
                .await?;
        let context = Arc::new(context);

        // From here on there is something to take back.
        match self.launch(&context).await {
            Ok(container) => {
                let pid = container.state().await?.pid.map_or(0, raw);
                events::create(&*self.shared.events, &request, pid);
                Ok((container, pid))
            }
            Err(error) => {
                let cleanup = blocking(move || {
                    let restored = context.checkpoint.is_some();
                    let engine = context.shared.engine.as_ref();
                    context
                        .record
                        .remove_all(&context.state_dir(), engine, restored)
                });
                if let Err(left) = cleanup.await {
                    tracing::error!(error = %left, "a failed create left something behind");
                }
                Err(error)
            }
        }
    }

    async fn launch(&self, context: &Arc<Context>) -> Result<Container, TaskError> {
        let options = CreateOptions {
            no_pivot: context.options.no_pivot_root,
            no_new_keyring: context.options.no_new_keyring,
        };
        let owner = context.owner_of(context.id(), spec::user(&context.spec));
        let (mut stdio, ends) = if spec::terminal(&context.spec) {
            let stdio = Stdio::open_for_terminal(&context.paths, &owner).await?;
            (stdio, [const { None }; 3])
        } else {
            let (mut stdio, mut ends) = Stdio::open(&context.paths, &owner).await?;
            if context.checkpoint.is_some() {
                ends = stdio.fill(ends, &owner)?;
            }
            (stdio, ends)
        };
        if context.checkpoint.is_some() {
            return Container::adopt(Arc::clone(context), stdio, ends, None);
        }
        let hold = self.shared.reaper.hold();
        let maker = Arc::clone(context);
        let (started, hold) = blocking(move || {
            let enclosed = maker.enclose()?;
            let engine = &maker.shared.engine;
            let started = engine
                .create(&maker.target(), ends, options)
                .map_err(from_engine)?;
            enclosed
                .map_or(Ok(()), Enclosed::release)
                .map_err(from_engine)?;
            Ok((started, hold))
        })
        .await?;
        if let Some(master) = started.console {
            let no_terminal = |e| TaskError::io("cannot use the container's terminal", &e);
            stdio.attach(master).map_err(no_terminal)?;
            if let Some((columns, rows)) = spec::console_size(&context.spec) {
                stdio.resize(columns, rows).map_err(no_terminal)?;
            }
        }
        let container = Container::adopt(
            Arc::clone(context),
            stdio,
            [const { None }; 3],
            Some(started.pid),
        );
        drop(hold);
        container
    }
}

/// What is done before anything runs. Takes back what it did when it fails.
fn prepare(
    shared: Arc<Shared>,
    id: String,
    bundle: PathBuf,
    checkpoint: Option<PathBuf>,
    paths: Paths,
    options: RuntimeOptions,
    mounts: &[api::Mount],
) -> Result<Context, TaskError> {
    // `delete` knows one state directory for all of a pod.
    if let Some(root) = options.state_root()
        && root != shared.state_root
    {
        return Err(TaskError::InvalidArgument(format!(
            "the runtime option Root is {}, but the shim of this pod was started with {}: use one for all containers of a pod",
            root.display(),
            shared.state_root.display()
        )));
    }
    let spec = spec::load(&bundle).map_err(from_spec)?;
    let annotations = Annotations::read(&spec)?;
    if let Some(mount) = spec.mounts().iter().flatten().find(|m| spec::idmapped(m))
        && checkpoint.is_some()
    {
        return Err(TaskError::FailedPrecondition(format!(
            "the idmapped mount {} cannot be restored, CRIU would show the owners that its source has: use a volume without",
            mount.destination().display()
        )));
    }
    let group = bootstrap::group_in(spec.annotations().as_ref(), &id);
    let scope = scope(&spec, &id, &options)?;
    let cgroup_path = match &scope {
        Some(scope) => scope.path().to_owned(),
        None => spec::cgroup_path(&spec).map_err(from_spec)?,
    };
    let cgroups = Cgroups::at(&cgroup_path).map_err(internal)?;
    // Two containers in one cgroup would freeze and end each other.
    let others = cgroups.pids().map_err(internal)?;
    if !others.is_empty() {
        return Err(TaskError::FailedPrecondition(format!(
            "the cgroup {} has {} processes already: end the container that they are of, or give this one a cgroup of its own",
            cgroups.path().display(),
            others.len()
        )));
    }
    let record = Record {
        id: id.clone(),
        group,
        bundle,
        cgroup_path,
        scope,
    };
    let state = state_dir(&shared.state_root, &shared.namespace, &id);
    if Record::load(&state).is_ok_and(|r| r.is_some()) {
        return Err(TaskError::AlreadyExists(format!(
            "container {id} has state in {} already: another shim runs it, or died; `delete` it",
            state.display()
        )));
    }
    let undo = |error| {
        let _ = rootfs::unmount(&record.rootfs());
        let _ = std::fs::remove_dir_all(&state);
        error
    };
    record.save(&state).map_err(|e| {
        undo(TaskError::io(
            format_args!("cannot write {}", state.display()),
            &e,
        ))
    })?;
    bootstrap::write_shim_binary_path(&record.bundle)
        .map_err(|e| undo(TaskError::Internal(e.to_string())))?;
    let scratch = state.join("layers");
    rootfs::mount(mounts, &record.rootfs(), &*shared.engine, &scratch).map_err(undo)?;
    Ok(Context {
        shared,
        record,
        spec,
        cgroups,
        paths,
        options,
        annotations,
        checkpoint,
    })
}

/// The container's scope, if systemd is to place it.
fn scope(spec: &Spec, id: &str, options: &RuntimeOptions) -> Result<Option<Scope>, TaskError> {
    if !options.systemd_cgroup {
        return Ok(None);
    }
    systemd::available().map_err(|e| TaskError::FailedPrecondition(e.to_string()))?;
    let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
    let scope = Scope::parse(&path.unwrap_or_default(), id);
    scope.map(Some).map_err(from_spec)
}

/// Ids become parts of paths.
fn check_id(id: &str) -> Result<(), TaskError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(fine) {
        return Err(TaskError::InvalidArgument(format!(
            "id {id:?} is not usable: letters, digits and _.+- are allowed, 255 at most"
        )));
    }
    Ok(())
}

fn checkpoint_request(
    request: &api::CheckpointTaskRequest,
    timeout_nano: i64,
) -> Result<CheckpointRequest, TaskError> {
    let options = CheckpointOptions::read(request.options.as_ref())?;
    let images = [&request.path, &options.image_path]
        .into_iter()
        .find(|p| !p.is_empty())
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .ok_or_else(|| {
            TaskError::InvalidArgument("a checkpoint needs an absolute image path".to_owned())
        })?;
    Ok(CheckpointRequest {
        images,
        work: (!options.work_path.is_empty()).then(|| PathBuf::from(&options.work_path)),
        exit: options.exit,
        options: options.layer()?,
        deadline: u64::try_from(timeout_nano)
            .ok()
            .filter(|n| *n > 0)
            .map(|n| Instant::now() + Duration::from_nanos(n)),
        client_gone: None,
    })
}

fn exec_request(request: api::ExecProcessRequest) -> Result<ExecRequest, TaskError> {
    check_id(&request.exec_id)?;
    let wrong = |e: &dyn std::fmt::Display| {
        TaskError::InvalidArgument(format!("the process to exec cannot be decoded: {e}"))
    };
    let spec = request.spec.into_option().unwrap_or_default();
    let mut process: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&spec.value).map_err(|e| wrong(&e))?;
    // The request decides, not what the specification was copied from.
    process.insert("terminal".to_owned(), request.terminal.into());
    Ok(ExecRequest {
        process: serde_json::to_vec(&process).map_err(|e| wrong(&e))?,
        id: request.exec_id,
        paths: Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        terminal: request.terminal,
    })
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(internal(e)))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_climb() {
        for id in ["", ".", "..", "a/b", "a\0", "ä", "a b"] {
            assert!(
                matches!(check_id(id), Err(TaskError::InvalidArgument(_))),
                "{id:?}"
            );
        }
        check_id("k8s_pause-1.2+x").unwrap();
        check_id(&"a".repeat(255)).unwrap();
        check_id(&"a".repeat(256)).unwrap_err();
    }

    fn request(path: &str, options: Option<oci::CheckpointOptions>) -> api::CheckpointTaskRequest {
        let mut request = api::CheckpointTaskRequest::new();
        request.path = path.to_owned();
        request.options = options
            .map(|o| {
                let mut any = Any::new();
                any.type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
                any.value = o.write_to_bytes().unwrap();
                any
            })
            .into();
        request
    }

    #[test]
    fn no_options_leave_the_container_running() {
        let parsed = checkpoint_request(&request("/images", None), 0).unwrap();
        assert_eq!(parsed.images, Path::new("/images"));
        assert!(!parsed.exit && parsed.work.is_none() && parsed.deadline.is_none());
    }

    #[test]
    fn options_are_carried_over() {
        let mut options = oci::CheckpointOptions::new();
        options.exit = true;
        options.image_path = "/other".to_owned();
        options.work_path = "/work".to_owned();
        let parsed = checkpoint_request(&request("", Some(options)), 1_000).unwrap();
        assert_eq!(parsed.images, Path::new("/other"));
        assert_eq!(parsed.work.as_deref(), Some(Path::new("/work")));
        assert!(parsed.exit && parsed.deadline.is_some());
    }

    #[test]
    fn a_checkpoint_without_a_place_or_with_strange_options_is_refused() {
        for bad in [request("", None), request("relative", None)] {
            assert!(matches!(
                checkpoint_request(&bad, 0),
                Err(TaskError::InvalidArgument(_))
            ));
        }
        let mut strange = request("/images", Some(oci::CheckpointOptions::new()));
        if let Some(any) = strange.options.as_mut() {
            any.type_url = "x.y.Z".to_owned();
        }
        let error = checkpoint_request(&strange, 0).unwrap_err();
        assert!(error.to_string().contains("x.y.Z"), "{error}");
    }
}
