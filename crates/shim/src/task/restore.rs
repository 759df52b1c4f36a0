//! Restore: image files become a container.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cryo_checkpoint::image_dir::{self, ImageDir};
use cryo_criu::request::{EXTERNAL_NETNS, EXTERNAL_PIDNS, JoinKind, JoinNs, NetworkLockMethod};
use cryo_criu::{Bind, Control, Event, External, MountPlan, Refusal, RestoreOptions};
use cryo_engine::{Enclosed, HookPhase, Started, mountpoint, spec};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::process::Pid;

use super::context::{Context, from_engine, internal};
use super::criu::{self, WorkDir};
use super::gate::{self, Gate, Refused};
use super::hostname::Names;
use super::memory::{self, Restoring};
use super::place::Place;
use super::settings;
use super::stdio::ContainerEnds;
use crate::rpc::{TaskError, with_causes};

/// Restores the container from `context.checkpoint` and answers its first
/// process, a child of this one, with its terminal if it has one. Blocks.
///
/// # Errors
///
/// FailedPrecondition when the checkpoint is not whole or does not fit, else
/// the cause. Then nothing of the container runs, and its cgroups are gone.
pub fn run(context: &Context, ends: ContainerEnds) -> Result<Started, TaskError> {
    let config = criu::config(context)?;
    let criu = criu::find(&config)?;
    let options = settings::of_restore(context, &config, &criu)?;
    let images = open_images(context, options.parents.as_deref())?;
    if !options.any_seccomp {
        check_seccomp(context, &images)?;
    }
    let work = WorkDir::create(context, "restore")?;
    let mut place = Place::new(context, &images, &work)?;
    mountpoint::make_all(&context.record.rootfs(), &context.spec).map_err(internal)?;
    // Before what kills, so that it goes after it.
    let memory = options
        .lazy_pages
        .then(|| memory::start(context, &images))
        .transpose()?;
    let half_done = HalfDone(Some(context));
    let mut enclosed = context.enclose()?;
    if enclosed.is_none() {
        context.cgroups.create().map_err(internal)?;
        context
            .shared
            .engine
            .limit(&context.target())
            .map_err(from_engine)?;
    }

    let externals = externals(context, place.as_ref())?;
    let (root, mounts) = match &mut place {
        Some(place) => (place.root.clone(), place.plan()?),
        None => bound_root(context, &work)?,
    };
    let (inside, time_namespace) = place.map_or((None, None), |p| (p.inside, p.time_namespace));
    if let Some(memory) = &memory {
        memory.listen(&images, work.path())?;
    }
    let (inherit_fds, join_ns) = namespaces(context)?;
    let cgroup_namespace = cgroup_namespace(context)?;
    let mut gate = Gate::new(
        &context.spec,
        &context.record.rootfs(),
        cgroup_namespace.as_ref(),
    )
    .map_err(|e| TaskError::io("cannot tell what the container may be", &e))?;
    let mut options = options.apply(RestoreOptions {
        mounts: Some(mounts),
        root: Some(root),
        rst_sibling: true,
        evasive_devices: true,
        orphan_pts_master: true,
        external: externals,
        inherit_fds,
        join_ns,
        cgroup_namespace,
        time_namespace,
        inside,
        network_lock: Some(network_lock(&images)?),
        ..RestoreOptions::new(clone_dir(&images)?, work.path())
    });
    // CRIU makes a terminal anew, in the container's own devpts, and hands us
    // its master.
    if !spec::terminal(&context.spec) {
        options.inherit_fds.extend(streams(&images, ends));
    }

    // The pod's, for as long as CRIU may write others there.
    let mut names = match spec::namespace(&context.spec, LinuxNamespaceType::Uts) {
        spec::Namespace::Path(path) => Some(Names::of(&path).map_err(|e| {
            TaskError::io(
                format_args!("cannot read the host name of {}", path.display()),
                &e,
            )
        })?),
        _ => None,
    };
    let mut console = None;
    let mut checked = false;
    // Why we did not let it go on, with its own code.
    let mut refused = None;
    let mut notify = |event: &Event, fd: Option<OwnedFd>| {
        let answer = match event {
            Event::SetupNamespaces { pid } => set_up(context, *pid, enclosed.take(), &mut gate),
            Event::PostSetupNamespaces => {
                names = None;
                Ok(())
            }
            Event::PreResume => {
                checked = true;
                gate.check(&context.cgroups).map_err(from_gate)
            }
            Event::OrphanPtsMaster => {
                console = fd;
                Ok(())
            }
            _ => Ok(()),
        };
        answer.map_err(|error| {
            let refusal = Refusal(error.to_string());
            refused = Some(error);
            refusal
        })
    };
    let restored = criu.restore(options, &mut notify, &Control::default());
    drop(names);
    let memory_failed = || memory.as_ref().and_then(Restoring::failure);
    let restored = restored.map_err(|error| match refused.take().or_else(memory_failed) {
        Some(cause) => cause,
        None => work.failed(context, "restore", error),
    })?;
    if !checked {
        return Err(TaskError::FailedPrecondition(
            "criu let the container run without asking first: install a newer one".to_owned(),
        ));
    }
    let pid = Pid::from_raw(restored.pid)
        .ok_or_else(|| TaskError::Internal("CRIU restored a process without an id".to_owned()))?;
    let poststart =
        context
            .shared
            .engine
            .hooks(&context.target(), &[HookPhase::Poststart], restored.pid);
    if let Err(error) = poststart {
        return Err(from_engine(error));
    }
    if let Some(to) = context.options.criu_work() {
        work.hand_over(&to, &["restore.log", "stats-restore"])?;
    }
    if let Some(memory) = memory {
        memory.done()?;
    }
    half_done.done();
    Ok(Started { pid, console })
}

/// Kills what there is of a restore that failed.
struct HalfDone<'a>(Option<&'a Context>);

impl HalfDone<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for HalfDone<'_> {
    fn drop(&mut self) {
        let Some(context) = self.0 else {
            return;
        };
        if let Err(error) = context.remove_cgroups() {
            tracing::error!(%error, "parts of a failed restore stay");
        }
    }
}

fn open_images(context: &Context, parents: Option<&Path>) -> Result<ImageDir, TaskError> {
    let path = context.checkpoint.as_ref().ok_or_else(|| {
        TaskError::FailedPrecondition("the container was not made from a checkpoint".to_owned())
    })?;
    let images = image_dir::check_with_parents(path, parents).and_then(|images| {
        images.check_owner()?;
        Ok(images)
    });
    images.map_err(|e| {
        TaskError::FailedPrecondition(format!(
            "{}: {}: {}",
            path.display(),
            with_causes(&e),
            e.hint()
        ))
    })
}

/// The filter of the specification has to be in force on all that the images bring.
fn check_seccomp(context: &Context, images: &ImageDir) -> Result<(), TaskError> {
    if !spec::filtered(&context.spec) {
        return Ok(());
    }
    let found = images
        .seccomp()
        .map_err(|e| TaskError::FailedPrecondition(format!("{}: {}", with_causes(&e), e.hint())))?;
    let wanted = context.shared.engine.seccomp_filter(&context.target());
    gate::check_filters(&found, &wanted.map_err(from_engine)?).map_err(from_gate)
}

fn clone_dir(images: &ImageDir) -> Result<OwnedFd, TaskError> {
    images
        .fd()
        .try_clone_to_owned()
        .map_err(|e| TaskError::io("cannot pass on the image directory", &e))
}

/// CRIU wants a root that is a mount; it is one in CRIU's own mount namespace, and so ends with it.
fn bound_root(context: &Context, work: &WorkDir) -> Result<(PathBuf, MountPlan), TaskError> {
    let root = work.path().join("root");
    fs::create_dir_all(&root)
        .map_err(|e| TaskError::io(format_args!("cannot make {}", root.display()), &e))?;
    let plan = MountPlan {
        binds: vec![Bind {
            source: context.record.rootfs(),
            target: root.clone(),
        }],
        ..MountPlan::default()
    };
    Ok((root, plan))
}

fn externals(context: &Context, place: Option<&Place>) -> Result<Vec<External>, TaskError> {
    let mut outside = criu::outside_mounts(context)?;
    let sources = place.into_iter().flat_map(|p| &p.sources);
    for (mount, source) in outside.iter_mut().zip(sources) {
        mount.source = source.display().to_string();
    }
    outside
        .iter()
        .map(|m| External::mount(&m.key, &m.source).map_err(internal))
        .collect()
}

type InheritedFds = Vec<(String, OwnedFd)>;

/// Namespaces that the spec names by a path: given to CRIU, or joined.
fn namespaces(context: &Context) -> Result<(InheritedFds, Vec<JoinNs>), TaskError> {
    let mut inherited = Vec::new();
    for (kind, key) in [
        (LinuxNamespaceType::Network, EXTERNAL_NETNS),
        (LinuxNamespaceType::Pid, EXTERNAL_PIDNS),
    ] {
        if let spec::Namespace::Path(path) = spec::namespace(&context.spec, kind) {
            inherited.push((key.to_owned(), open_namespace(&path)?));
        }
    }
    let mut join = Vec::new();
    for (kind, join_kind) in [
        (LinuxNamespaceType::Ipc, JoinKind::Ipc),
        (LinuxNamespaceType::Uts, JoinKind::Uts),
    ] {
        if let spec::Namespace::Path(path) = spec::namespace(&context.spec, kind) {
            join.push(JoinNs {
                kind: join_kind,
                path,
                extra: None,
            });
        }
    }
    Ok((inherited, join))
}

/// The container's cgroup namespace, unless it has the node's. CRIU makes none where it places
/// no cgroups, and no task can be moved into one later.
fn cgroup_namespace(context: &Context) -> Result<Option<OwnedFd>, TaskError> {
    match spec::namespace(&context.spec, LinuxNamespaceType::Cgroup) {
        spec::Namespace::Host => Ok(None),
        spec::Namespace::Path(path) => open_namespace(&path).map(Some),
        spec::Namespace::New => {
            let made = context.shared.engine.cgroup_namespace(&context.target());
            made.map(Some).map_err(from_engine)
        }
    }
}

fn open_namespace(path: &Path) -> Result<OwnedFd, TaskError> {
    let opened = mountpoint::open_namespace(path).map_err(|e| {
        TaskError::io(
            format_args!("cannot open the namespace {}", path.display()),
            &e,
        )
    })?;
    Ok(opened.0)
}

/// The lock of the dump is taken away by the same method.
fn network_lock(images: &ImageDir) -> Result<NetworkLockMethod, TaskError> {
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&images.fd())
    );
    let entries = fs::read_dir(path).map_err(|e| TaskError::io("cannot list the images", &e))?;
    let connections = entries
        .flatten()
        .any(|e| e.file_name().to_string_lossy().starts_with("tcp-stream-"));
    Ok(if connections {
        NetworkLockMethod::Nftables
    } else {
        NetworkLockMethod::Skip
    })
}

/// The new streams under the names of the old ones.
fn streams(images: &ImageDir, ends: ContainerEnds) -> InheritedFds {
    let mut seen = HashSet::new();
    let mut fds = Vec::new();
    for (key, end) in images.stdio_keys().iter().zip(ends) {
        let Some(key) = key
            .as_ref()
            .filter(|k| k.is_stream())
            .and_then(|k| k.inherit_key())
        else {
            continue;
        };
        if let Some(fd) = end
            && seen.insert(key.clone())
        {
            fds.push((key, fd));
        }
    }
    fds
}

/// A checkpoint that asks for too much is the client's to change; the rest is not.
fn from_gate(refused: Refused) -> TaskError {
    match refused {
        Refused::Violation(_) | Refused::Filters(_) => {
            TaskError::PermissionDenied(refused.to_string())
        }
        Refused::Unknown(_) => internal(refused),
    }
}

/// The first process is there, alone: what it forks inherits its cgroups.
fn set_up(
    context: &Context,
    pid: i32,
    enclosed: Option<Enclosed>,
    gate: &mut Gate,
) -> Result<(), TaskError> {
    context.cgroups.join(pid.unsigned_abs()).map_err(internal)?;
    enclosed
        .map_or(Ok(()), Enclosed::release)
        .map_err(from_engine)?;
    gate.placed(pid)
        .map_err(|e| TaskError::io("cannot read the first process's cgroups", &e))?;
    let phases = [HookPhase::Prestart, HookPhase::CreateRuntime];
    context
        .shared
        .engine
        .hooks(&context.target(), &phases, pid)
        .map_err(from_engine)
}
