//! A worker: one operation with libcontainer, then the process ends.

use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cryo_sys::namespace::{new_time_namespace, unshare_cgroups};
use cryo_sys::seccomp::filter_of;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::hooks::run_hooks;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Hooks, LinuxNamespaceType, LinuxResources, Spec};
use rustix::fs::MemfdFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::adapt::adapt;
use crate::cgroup::{Cgroups, Kind};
use crate::console::{self, Console};
use crate::exec;
use crate::program::Program;
use crate::protocol::{
    ClockOffset, CreateOptions, Failure, FailureKind, HookPhase, MappedRoot, Reply, Request, Target,
};
use crate::systemd::{self, Scope};
use crate::{devices, layers, mountpoint, mounts, resources, spec, userns};

/// How long a start waits for the program.
const PROGRAM_LIMIT: Duration = Duration::from_secs(2);

/// Does what the request asks for, in this very process.
/// Descriptors may come with the reply.
pub(crate) fn run(request: Request, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    // libcontainer's errors are one general line; the cause is in its log,
    // which its other processes (intermediate, init) write as well.
    let log = Log::install();
    let result = match request {
        Request::Create {
            target,
            stdio,
            options,
        } => create(&target, stdio, fds, options),
        Request::Exec { target, exec } => exec::run(&target, &exec, fds),
        Request::Start { target } => start(&target).map(alone),
        Request::Delete { target } => delete(&target).map(alone),
        Request::Limit { target } => limit(&target).map(alone),
        Request::CgroupNamespace { target } => cgroup_namespace(&target),
        Request::Enclose { target } => enclose(&target).map(alone),
        Request::EndScope { target } => systemd::stop(scope_of(&target)?)
            .map_err(systemd_failure)
            .map(|()| alone(Reply::Ok)),
        Request::SeccompFilter { target } => seccomp_filter(&target),
        Request::TimeNamespace {
            monotonic,
            boottime,
        } => time_namespace(monotonic, boottime),
        Request::Binds { target } => binds(&target),
        Request::Update { target, resources } => update(&target, *resources).map(alone),
        Request::MountRoot { root, dir } => mount_root(&root, &dir),
        Request::Hooks {
            target,
            phases,
            pid,
        } => hooks(&target, &phases, pid).map(alone),
    };
    result.map_err(|mut failure| {
        if let Some(cause) = log.and_then(Log::first_error)
            && !failure.message.contains(&cause)
        {
            failure.message = format!("{}: {cause}", failure.message);
        }
        failure
    })
}

fn alone(reply: Reply) -> (Reply, Vec<OwnedFd>) {
    (reply, Vec::new())
}

fn create(
    target: &Target,
    stdio: [bool; 3],
    fds: Vec<OwnedFd>,
    options: CreateOptions,
) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let mut spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let cgroups = cgroups_of(target, &spec)?;
    adapt(&mut spec, &target.bundle, &cgroups).map_err(spec_failure)?;
    if let Some(root) = spec.root() {
        mountpoint::make_cwd(root.path(), &spec).map_err(|e| failure(FailureKind::Other, &e))?;
    }
    if let (Some(_), Some(linux)) = (&target.scope, spec.linux_mut()) {
        linux.set_cgroups_path(Some(cgroups.path()));
    }
    cgroups
        .create()
        .map_err(|e| failure(FailureKind::Other, &e))?;
    limit_devices(&cgroups, &spec)?;
    join_where_libcontainer_does_not(&cgroups)?;
    if !options.no_new_keyring {
        // Inherited by what is forked: else all containers share the shim's keys.
        cryo_sys::process::new_session_keyring(&format!("_ses.{}", target.id))
            .map_err(|e| failure(FailureKind::Other, &e))?;
    }

    // libcontainer reads its configuration from a bundle: one beside its state.
    let bundle = target.root.with_file_name("bundle");
    fs::create_dir_all(&target.root).map_err(|e| failure(FailureKind::Other, &e))?;
    fs::create_dir_all(&bundle).map_err(|e| failure(FailureKind::Other, &e))?;
    // Kept open until the first process is inside.
    let _user_namespace = userns::adapt(&mut spec).map_err(spec_failure)?;
    mounts::adapt(&mut spec, &bundle.join("mounts")).map_err(|e| failure(FailureKind::Spec, &e))?;
    spec.save(bundle.join("config.json"))
        .map_err(|e| failure(FailureKind::Other, &e))?;
    let mut fds = fds.into_iter();
    let mut builder = ContainerBuilder::new(target.id.clone(), SyscallType::default())
        .validate_id()
        .and_then(|b| b.with_root_path(&target.root))
        .map(|b| b.with_executor(Program))
        .map_err(|e| libcontainer_failure(&e))?;
    if stdio[0]
        && let Some(fd) = fds.next()
    {
        builder = builder.with_stdin(fd);
    }
    if stdio[1]
        && let Some(fd) = fds.next()
    {
        builder = builder.with_stdout(fd);
    }
    if stdio[2]
        && let Some(fd) = fds.next()
    {
        builder = builder.with_stderr(fd);
    }
    let console = spec::terminal(&spec)
        .then(|| Console::listen(&target.root))
        .transpose()
        .map_err(|e| Failure {
            kind: FailureKind::Other,
            message: format!("cannot wait for the container's terminal: {e}"),
        })?;
    builder = builder.with_console_socket(console.as_ref().map(Console::path));
    let container = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .with_no_pivot(options.no_pivot)
        .build()
        .map_err(|e| libcontainer_failure(&e))?;
    let pid = container.pid().ok_or_else(|| Failure {
        kind: FailureKind::Other,
        message: "libcontainer made a container without a process".to_owned(),
    })?;
    if spec::namespace(&spec, LinuxNamespaceType::Network) == spec::Namespace::New {
        bring_up_loopback(pid.as_raw()).map_err(|e| Failure {
            kind: FailureKind::Other,
            message: format!("cannot bring up the container's loopback interface: {e}"),
        })?;
    }
    let console = console
        .map(|console| {
            let master = console.receive()?;
            console::own(&master, spec::outside(&spec, spec::user(&spec)).0)?;
            Ok(master)
        })
        .transpose()
        .map_err(|e: io::Error| Failure {
            kind: FailureKind::Other,
            message: format!("the container's terminal did not come: {e}"),
        })?;
    // libcgroups leaves some limits of v2 out when it makes a container.
    if let Some(wanted) = resources_of(&spec)
        && cgroups.only_v2()
    {
        resources::limit(&cgroups, wanted).map_err(|e| failure(e.kind(), &e))?;
    }
    Ok((
        Reply::Created { pid: pid.as_raw() },
        console.into_iter().collect(),
    ))
}

/// libcontainer leaves it down. The worker stays in the namespace; it ends with the operation.
fn bring_up_loopback(pid: i32) -> io::Result<()> {
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    cryo_sys::loopback::up()
}

fn mount_root(root: &MappedRoot, dir: &Path) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let tree = layers::mount(root, dir).map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!(
            "cannot mount the root with other owners, as user namespaces need: {e}; \
             this takes a file system and a kernel that can (overlay: Linux 5.19)"
        ),
    })?;
    Ok((Reply::Ok, vec![tree]))
}

/// The worker joins `name=systemd` and, on a hybrid machine, the unified
/// hierarchy: what it forks inherits them.
fn join_where_libcontainer_does_not(cgroups: &Cgroups) -> Result<(), Failure> {
    let hybrid = !cgroups.only_v2();
    for (hierarchy, dir) in cgroups.dirs() {
        let left_out = match &hierarchy.kind {
            Kind::V1(names) => names.iter().any(|n| n.starts_with("name=")),
            Kind::V2 => hybrid,
        };
        if left_out {
            fs::write(dir.join("cgroup.procs"), "0").map_err(|e| Failure {
                kind: FailureKind::Other,
                message: format!("cannot join the cgroup {}: {e}", dir.display()),
            })?;
        }
    }
    Ok(())
}

fn load(target: &Target) -> Result<Container, Failure> {
    Container::load(target.root.join(&target.id)).map_err(|e| libcontainer_failure(&e))
}

fn start(target: &Target) -> Result<Reply, Failure> {
    let mut container = load(target)?;
    container.start().map_err(|e| libcontainer_failure(&e))?;
    if let Some(pid) = container.pid() {
        program_runs(pid.as_raw());
    }
    Ok(Reply::Ok)
}

/// Waits until the container's first process has become its program, or has ended.
///
/// libcontainer only tells it to go on. Until then it is a process of ours: CRIU would dump
/// our executable, and a pause would keep it from ever becoming the program. Hooks may hold
/// it up for long, so after the limit this is left to itself.
fn program_runs(pid: i32) {
    let image = |pid: &str| {
        let exe = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((exe.dev(), exe.ino()))
    };
    let ours = image("self");
    let deadline = Instant::now() + PROGRAM_LIMIT;
    while ours.is_some() && image(&pid.to_string()) == ours && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn delete(target: &Target) -> Result<Reply, Failure> {
    if target.root.join(&target.id).exists() {
        load(target)?
            .delete(true)
            .map_err(|e| libcontainer_failure(&e))?;
    }
    Ok(Reply::Ok)
}

fn limit(target: &Target) -> Result<Reply, Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let cgroups = cgroups_of(target, &spec)?;
    limit_all(&cgroups, &spec)?;
    Ok(Reply::Ok)
}

/// The worker goes where the container will be: its end takes it out again.
fn cgroup_namespace(target: &Target) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    cgroups_of(target, &spec)?
        .join(std::process::id())
        .map_err(|e| failure(FailureKind::Other, &e))?;
    let made = unshare_cgroups().and_then(|()| File::open("/proc/self/ns/cgroup"));
    let made = made.map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot make the container's cgroup namespace: {e}"),
    })?;
    Ok((Reply::Ok, vec![made.into()]))
}

fn time_namespace(
    monotonic: ClockOffset,
    boottime: ClockOffset,
) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let made = new_time_namespace(
        (monotonic.secs, monotonic.nanos),
        (boottime.secs, boottime.nanos),
    )
    .map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot make the container's time namespace: {e}"),
    })?;
    Ok((Reply::Ok, vec![made]))
}

fn binds(target: &Target) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let mut spec = spec::load(&target.bundle).map_err(spec_failure)?;
    // Its owners, where it gets one of its own; CRIU makes another with the same.
    let _user_namespace = userns::adapt(&mut spec).map_err(spec_failure)?;
    let trees = mounts::trees(&spec).map_err(|e| failure(FailureKind::Spec, &e))?;
    Ok((Reply::Ok, trees))
}

fn limit_all(cgroups: &Cgroups, spec: &Spec) -> Result<(), Failure> {
    limit_devices(cgroups, spec)?;
    match resources_of(spec) {
        Some(wanted) => resources::limit(cgroups, wanted).map_err(|e| failure(e.kind(), &e)),
        None => Ok(()),
    }
}

/// This worker is the scope's first process, and stays until the container's is there.
fn enclose(target: &Target) -> Result<Reply, Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let cgroups = cgroups_of(target, &spec)?;
    systemd::start(scope_of(target)?, &target.id, std::process::id()).map_err(systemd_failure)?;
    cgroups
        .create()
        .map_err(|e| failure(FailureKind::Other, &e))?;
    limit_all(&cgroups, &spec)?;
    tell_limits(target, &cgroups)?;
    Ok(Reply::Ok)
}

fn scope_of(target: &Target) -> Result<&Scope, Failure> {
    target.scope.as_ref().ok_or_else(|| Failure {
        kind: FailureKind::Other,
        message: "the container has no scope of systemd".to_owned(),
    })
}

fn tell_limits(target: &Target, cgroups: &Cgroups) -> Result<(), Failure> {
    match &target.scope {
        Some(scope) => systemd::tell_limits(scope, cgroups).map_err(|e| Failure {
            message: format!(
                "the limits are in force until systemd undoes them: {}",
                chain(&e)
            ),
            kind: e.kind(),
        }),
        None => Ok(()),
    }
}

fn seccomp_filter(target: &Target) -> Result<(Reply, Vec<OwnedFd>), Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let profile = profile.ok_or_else(|| Failure {
        kind: FailureKind::Spec,
        message: "the specification has no seccomp profile".to_owned(),
    })?;
    let written = filter_of(|| match initialize_seccomp(profile) {
        Ok(_) => {}
        Err(error) => tracing::error!("{error}"),
    })
    .and_then(|program| {
        let mut file = File::from(rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC)?);
        file.write_all(&program)?;
        file.rewind()?;
        Ok(file)
    });
    let file = written.map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot tell what the container's seccomp filter is: {e}"),
    })?;
    Ok((Reply::Ok, vec![file.into()]))
}

fn limit_devices(cgroups: &Cgroups, spec: &Spec) -> Result<(), Failure> {
    devices::limit(cgroups, resources_of(spec)).map_err(|e| failure(FailureKind::Other, &e))
}

fn resources_of(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

fn update(target: &Target, wanted: LinuxResources) -> Result<Reply, Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let cgroups = cgroups_of(target, &spec)?;
    resources::update(&cgroups, wanted).map_err(|e| failure(e.kind(), &e))?;
    tell_limits(target, &cgroups)?;
    Ok(Reply::Ok)
}

fn cgroups_of(target: &Target, spec: &Spec) -> Result<Cgroups, Failure> {
    let path = match &target.scope {
        Some(scope) => scope.path().to_owned(),
        None => spec::cgroup_path(spec).map_err(spec_failure)?,
    };
    Cgroups::at(&path).map_err(|e| failure(FailureKind::Spec, &e))
}

fn hooks(target: &Target, phases: &[HookPhase], pid: i32) -> Result<Reply, Failure> {
    let spec = spec::load(&target.bundle).map_err(spec_failure)?;
    let Some(hooks) = spec.hooks() else {
        return Ok(Reply::Ok);
    };
    for phase in phases {
        let (list, status) = hooks_of(hooks, *phase);
        if list.is_none_or(Vec::is_empty) {
            continue;
        }
        let container = Container::new(
            &target.id,
            status,
            Some(pid),
            &target.bundle,
            &target.bundle,
        )
        .map_err(|e| libcontainer_failure(&e))?;
        run_hooks(
            list,
            Some(&container.state),
            Some(&target.bundle),
            None,
            None,
        )
        .map_err(|e| Failure {
            kind: FailureKind::Other,
            message: format!("a {phase:?} hook failed: {}", chain(&e)),
        })?;
    }
    Ok(Reply::Ok)
}

fn hooks_of(
    hooks: &Hooks,
    phase: HookPhase,
) -> (Option<&Vec<oci_spec::runtime::Hook>>, ContainerStatus) {
    #[allow(deprecated)] // The spec's own word for prestart; runtimes still run it.
    match phase {
        HookPhase::Prestart => (hooks.prestart().as_ref(), ContainerStatus::Creating),
        HookPhase::CreateRuntime => (hooks.create_runtime().as_ref(), ContainerStatus::Creating),
        HookPhase::Poststart => (hooks.poststart().as_ref(), ContainerStatus::Running),
        HookPhase::Poststop => (hooks.poststop().as_ref(), ContainerStatus::Stopped),
    }
}

fn systemd_failure(error: systemd::Error) -> Failure {
    failure(error.kind(), &error)
}

fn spec_failure(error: spec::Error) -> Failure {
    failure(FailureKind::Spec, &error)
}

fn libcontainer_failure(error: &LibcontainerError) -> Failure {
    let kind = match error {
        LibcontainerError::Exist => FailureKind::Exists,
        LibcontainerError::IncorrectStatus(_) => FailureKind::State,
        LibcontainerError::InvalidInput(_)
        | LibcontainerError::InvalidID(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::InvalidSpec(_)
        | LibcontainerError::Spec(_) => FailureKind::Spec,
        _ => FailureKind::Other,
    };
    failure(kind, error)
}

pub(crate) fn failure(kind: FailureKind, error: &dyn StdError) -> Failure {
    Failure {
        kind,
        message: chain(error),
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// A log in memory that survives forks.
struct Log(File);

impl Log {
    fn install() -> Option<Self> {
        let file = File::from(rustix::fs::memfd_create("cryo-log", MemfdFlags::CLOEXEC).ok()?);
        let log = Self(file.try_clone().ok()?);
        tracing_subscriber::fmt()
            .with_max_level(LevelFilter::ERROR)
            .with_ansi(false)
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_writer(LogWriter(file))
            .try_init()
            .ok()?;
        Some(log)
    }

    /// The first error is the deepest: each level above repeats it in its own
    /// words.
    fn first_error(mut self) -> Option<String> {
        let mut text = String::new();
        self.0.rewind().ok()?;
        self.0.take(64 * 1024).read_to_string(&mut text).ok()?;
        text.lines()
            .map(str::trim)
            .find(|l| !l.is_empty())
            .map(str::to_owned)
    }
}

struct LogWriter(File);

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Appender<'a>;

    fn make_writer(&'a self) -> Appender<'a> {
        Appender(&self.0)
    }
}

struct Appender<'a>(&'a File);

impl Write for Appender<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // All forks share the file's offset, so this appends.
        let mut file = self.0;
        file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        below: Option<Box<Layer>>,
    }

    #[test]
    fn causes_are_said_once() {
        let error = Layer {
            text: "cannot create: no root",
            below: Some(Box::new(Layer {
                text: "no root",
                below: Some(Box::new(Layer {
                    text: "not found",
                    below: None,
                })),
            })),
        };
        assert_eq!(chain(&error), "cannot create: no root: not found");
    }

    #[test]
    fn a_bundle_without_a_config_is_a_fault_of_the_spec() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target {
            id: "a".to_owned(),
            bundle: dir.path().to_owned(),
            root: PathBuf::from("/nonexistent"),
            scope: None,
        };
        let failure = limit(&target).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Spec);
        assert!(
            failure.message.contains("config.json"),
            "{}",
            failure.message
        );
    }
}
