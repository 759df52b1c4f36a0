//! The action `start`: one listening socket and one long-lived shim per group.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cryo_engine::cgroup::{self, Cgroups};
use cryo_sys::process;
use cryo_sys::spawn::{Group, Spawn, SpawnError};
use rustix::fs::{Mode, OFlags};

use super::socket::{self, Identity, Listening, SocketError};
use super::{Daemon, MAX_STDIN_BYTES, ParamsError, Protocol, StartParams, daemon};
use crate::args::Flags;
use crate::options::RuntimeOptions;
use crate::rpc::TaskError;
use crate::serve::LISTENER_FD;

/// Where sockets go unless containerd says otherwise.
pub const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";

/// Variable that carries the log level to the long-lived shim; `-debug` knows two levels only.
pub const LOG_LEVEL_ENV: &str = "CRYO_LOG_LEVEL";

/// Variable that asks for a core scheduling cookie, as containerd's `sched_core` sets it.
const SCHED_CORE_ENV: &str = "SCHED_CORE";

/// A link in the bundle to a socket directory other than the default, as the Go shim leaves it.
const SOCKET_DIR_LINK: &str = "s";

/// A link in the bundle to a state directory other than the default: the option `Root`.
const STATE_ROOT_LINK: &str = "cryo-root";

const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_OOM_SCORE_ADJ: i32 = 1000;

/// Why `start` failed. containerd shows the text to the user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What containerd said makes no sense.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The long-lived shim does not start.
    #[error("{error}{}", .error.io_error().map(|e| format!(": {e}")).unwrap_or_default())]
    Spawn {
        /// Why.
        #[from]
        error: SpawnError,
    },
    /// The socket directory that containerd asked for is relative.
    #[error("socket directory {0} is not absolute: configure an absolute one in containerd")]
    RelativeSocketDir(PathBuf),
    /// The runtime's options cannot be used.
    #[error(transparent)]
    Options(TaskError),
    /// Core scheduling was asked for.
    #[error(
        "cannot give the shim a core scheduling cookie: {0}; the kernel needs CONFIG_SCHED_CORE and the cores several threads, else unset sched_core in containerd's configuration"
    )]
    SchedCore(#[source] io::Error),
    /// The shim cannot be put where the options want it.
    #[error("cannot move the shim into the configured ShimCgroup: {0}")]
    ShimCgroup(#[source] cgroup::Error),
    /// A file of the bundle cannot be read or written.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StartError + use<'a> {
    move |source| StartError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// What `start` takes from its process; a test makes its own.
#[derive(Debug, Clone)]
pub struct StartEnv {
    /// All of stdin.
    pub stdin: Vec<u8>,
    /// The bundle: the working directory.
    pub bundle: PathBuf,
    /// The environment, handed on to the long-lived shim.
    pub env: BTreeMap<OsString, OsString>,
    /// Where sockets go unless containerd says otherwise.
    pub default_socket_dir: PathBuf,
}

impl StartEnv {
    /// The process' own: reads stdin to its end.
    ///
    /// # Errors
    ///
    /// [`StartError::Io`].
    pub fn of_process() -> Result<Self, StartError> {
        let mut stdin = Vec::new();
        // One byte more than allowed, so that too much is seen as too much.
        io::stdin()
            .take(MAX_STDIN_BYTES as u64 + 1)
            .read_to_end(&mut stdin)
            .map_err(failed("read", Path::new("stdin")))?;
        Ok(Self {
            stdin,
            bundle: std::env::current_dir()
                .map_err(failed("find working directory", Path::new(".")))?,
            env: std::env::vars_os().collect(),
            default_socket_dir: DEFAULT_SOCKET_DIR.into(),
        })
    }
}

/// Finds or makes the shim of this container's group. Returns what goes to stdout.
///
/// A shim that already serves the group is named again and no process is made. Else the socket
/// listens before the new shim runs, so whoever gets the answer can connect at once.
///
/// # Errors
///
/// [`StartError`]; then neither a socket nor a process is left.
pub fn start(flags: &Flags, env: &StartEnv) -> Result<String, StartError> {
    let ttrpc = env
        .env
        .get(&OsString::from("TTRPC_ADDRESS"))
        .map(|address| address.to_string_lossy().into_owned())
        .unwrap_or_default();
    let params = super::parse_stdin(&env.stdin, flags, &ttrpc)?;
    let group = super::group_of(&read_config(&env.bundle)?, &params.id)?;
    let asking = asking_daemon(&params);

    let dir = match &params.socket_dir {
        Some(dir) if !dir.is_absolute() => {
            return Err(StartError::RelativeSocketDir(dir.clone()));
        }
        Some(dir) => {
            link(&env.bundle, SOCKET_DIR_LINK, dir)?;
            dir
        }
        None => &env.default_socket_dir,
    };
    let options = RuntimeOptions::parse(params.options.as_ref()).map_err(StartError::Options)?;
    if let Some(root) = options.state_root() {
        link(&env.bundle, STATE_ROOT_LINK, root)?;
    }
    let path = socket::path(dir, &params.grpc_address, &params.namespace, &group)?;
    let address = socket::address(&path);

    write_shim_binary_path(&env.bundle)?;
    if asking == Daemon::V1 {
        write_file(&env.bundle, "address", address.as_bytes())?;
    }
    if let Listening::New(listener) = socket::listen(&path)? {
        let ours = Identity::of(&path).map_err(failed("look at socket", &path))?;
        if let Err(error) = spawn_shim(&params, &options, env, listener) {
            // The first error counts.
            let _ = socket::remove(&ours);
            return Err(error);
        }
    }
    Ok(super::answer(&address, asking))
}

/// The socket directory that `start` used for this bundle.
#[must_use]
pub fn socket_dir_of(bundle: &Path) -> PathBuf {
    linked(bundle, SOCKET_DIR_LINK).unwrap_or_else(|| DEFAULT_SOCKET_DIR.into())
}

/// The state directory that the options at `start` of this bundle name, if they do.
#[must_use]
pub fn state_root_of(bundle: &Path) -> Option<PathBuf> {
    linked(bundle, STATE_ROOT_LINK)
}

fn linked(bundle: &Path, name: &str) -> Option<PathBuf> {
    fs::read_link(bundle.join(name))
        .ok()
        .filter(|dir| dir.is_absolute())
}

/// Writes the path of the running binary to `shim-binary-path` in a bundle.
///
/// containerd reads it after a restart to find the shim's binary, and throws the container away
/// if it cannot; it writes the file itself only where it ran `start`, so each Create must.
///
/// # Errors
///
/// [`StartError::Io`].
pub fn write_shim_binary_path(bundle: &Path) -> Result<(), StartError> {
    let exe = own_path()?;
    write_file(bundle, "shim-binary-path", exe.as_os_str().as_bytes())
}

/// The path this program was started from, even if the file has been replaced since.
fn own_path() -> Result<PathBuf, StartError> {
    let link = Path::new("/proc/self/exe");
    let exe = fs::read_link(link).map_err(failed("read link", link))?;
    let bytes = exe.as_os_str().as_bytes();
    Ok(match bytes.strip_suffix(b" (deleted)") {
        Some(path) if !exe.exists() => Path::new(std::ffi::OsStr::from_bytes(path)).to_owned(),
        _ => exe,
    })
}

fn asking_daemon(params: &StartParams) -> Daemon {
    if params.protocol == Protocol::Bootstrap {
        return Daemon::V2;
    }
    // The running daemon first: the file under its path may be a newer one already.
    let parent = rustix::process::getppid()
        .map(|pid| PathBuf::from(format!("/proc/{}/exe", pid.as_raw_nonzero())));
    parent
        .iter()
        .chain([&params.containerd_binary])
        .map(|path| daemon::of_binary(path))
        .find(|found| *found != Daemon::Unknown)
        .unwrap_or(Daemon::Unknown)
}

fn read_config(bundle: &Path) -> Result<Vec<u8>, StartError> {
    let path = bundle.join("config.json");
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes))
        .map_err(failed("read", &path))?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(failed("read", &path)(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {MAX_CONFIG_BYTES} bytes"),
        )));
    }
    Ok(bytes)
}

/// Leaves word for the long-lived shim and for `delete`, which get no options.
fn link(bundle: &Path, name: &str, dir: &Path) -> Result<(), StartError> {
    let link = bundle.join(name);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &link)(error));
        }
        _ => {}
    }
    symlink(dir, &link).map_err(failed("make link", &link))
}

/// Writes a small file whole or not at all: containerd may read it after a crash.
fn write_file(bundle: &Path, name: &str, content: &[u8]) -> Result<(), StartError> {
    let path = bundle.join(name);
    let temporary = bundle.join(format!(".{name}.new"));
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(failed("write", &path))
}

fn spawn_shim(
    params: &StartParams,
    options: &RuntimeOptions,
    env: &StartEnv,
    listener: UnixListener,
) -> Result<(), StartError> {
    let bundle = rustix::fs::open(
        &env.bundle,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed("open", &env.bundle)(error.into()))?;

    let mut vars = env.env.clone();
    for (name, value) in [
        ("TTRPC_ADDRESS", params.ttrpc_address.clone()),
        ("GRPC_ADDRESS", params.grpc_address.clone()),
        ("NAMESPACE", params.namespace.clone()),
        (LOG_LEVEL_ENV, params.log_level.to_string()),
    ] {
        vars.insert(name.into(), value.into());
    }

    if env
        .env
        .get(&OsString::from(SCHED_CORE_ENV))
        .is_some_and(|v| !v.is_empty())
    {
        // This process ends soon; the shim inherits the cookie, and its containers from it.
        process::new_core_scheduling_cookie().map_err(StartError::SchedCore)?;
    }

    // The path names the process in ps; after an upgrade it may be gone.
    let exe = own_path()?;
    let exe = if exe.exists() {
        exe
    } else {
        "/proc/self/exe".into()
    };
    let mut spawn = Spawn::new(exe)
        .args(["-namespace", &params.namespace, "-id", &params.id])
        .args(["-address", &params.grpc_address])
        .arg("-publish-binary")
        .arg(&params.containerd_binary);
    if params.log_level >= tracing::level_filters::LevelFilter::DEBUG {
        spawn = spawn.arg("-debug");
    }
    for (name, value) in vars {
        spawn = spawn.env(name, value);
    }
    let child = spawn
        .cwd(bundle)
        .fd(OwnedFd::from(listener), LISTENER_FD)
        // Own session: containerd kills the process group of a `start` that takes too long.
        .group(Group::Session)
        .spawn()?;

    let pid = child.pid().as_raw_nonzero().get();
    if !options.shim_cgroup.is_empty() {
        let cgroup = Path::new(&options.shim_cgroup);
        Cgroups::at(cgroup)
            .and_then(|c| c.create().and_then(|()| c.join(pid.unsigned_abs())))
            .map_err(StartError::ShimCgroup)?;
    }
    raise_oom_score(pid);
    child.release();
    Ok(())
}

/// The kernel should take a shim before containerd. Best effort: lowering would need a privilege,
/// and a shim with the wrong score is better than none.
fn raise_oom_score(pid: i32) {
    let Some(parent) = rustix::process::getppid() else {
        return;
    };
    let Some(containerd) = oom_score(parent.as_raw_nonzero().get()) else {
        return;
    };
    let wanted = (containerd + 1).min(MAX_OOM_SCORE_ADJ);
    if oom_score(pid).is_some_and(|now| now < wanted) {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), wanted.to_string());
    }
}

fn oom_score(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn binary_path_is_written_whole() {
        let bundle = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            write_shim_binary_path(bundle.path()).unwrap();
        }
        let file = bundle.path().join("shim-binary-path");
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(Path::new(&text), std::env::current_exe().unwrap());
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
        assert!(write_shim_binary_path(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn socket_dir_is_found_again() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(socket_dir_of(bundle.path()), Path::new("/run/containerd/s"));
        for dir in ["/run/one", "/run/two"] {
            link(bundle.path(), SOCKET_DIR_LINK, Path::new(dir)).unwrap();
            assert_eq!(socket_dir_of(bundle.path()), Path::new(dir));
        }
    }

    #[test]
    fn a_missing_config_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        let env = StartEnv {
            stdin: Vec::new(),
            bundle: bundle.path().into(),
            env: BTreeMap::new(),
            default_socket_dir: bundle.path().join("s"),
        };
        let flags = Flags {
            id: "c1".into(),
            namespace: "n".into(),
            ..Flags::default()
        };
        let text = start(&flags, &env).unwrap_err().to_string();
        assert!(
            text.starts_with("read ") && text.contains("config.json"),
            "{text}"
        );
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
    }
}
