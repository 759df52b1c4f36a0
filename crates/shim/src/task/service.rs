//! `containerd.task.v3.Task` (and v2, which is the same): ttrpc in, actors out.

mod request;
mod rpc;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use cryo_engine::cgroup::Cgroups;
use cryo_engine::spec;
use cryo_engine::systemd::{self, Scope};
use cryo_engine::{CreateOptions, Enclosed};
use cryo_sys::process;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tokio::sync::Notify;

use self::request::check_id;
use super::container::{Container, raw};
use super::context::{Context, Record, Shared, from_engine, from_spec, internal, state_dir};
use super::dump::{self, ContainerState, Dump, ShimState};
use super::process::Exec;
use super::settings::Annotations;
use super::stdio::{Paths, Stdio};
use super::{memory, rootfs};
use crate::bootstrap;
use crate::events;
use crate::info;
use crate::options::RuntimeOptions;
use crate::rpc::TaskError;

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
    let of_pod = matches!(
        spec::namespace(&spec, LinuxNamespaceType::User),
        spec::Namespace::Path(_)
    );
    if let Some(mount) = spec.mounts().iter().flatten().find(|m| spec::idmapped(m))
        && checkpoint.is_some()
        && !of_pod
    {
        return Err(TaskError::FailedPrecondition(format!(
            "the idmapped mount {} cannot be restored outside of a pod's user namespace: use a volume without",
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
        memory: memory::Slot::default(),
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(internal(e)))
}
