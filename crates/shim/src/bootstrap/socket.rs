//! The shim's listening socket: its name, its permissions, and who may make it.
//!
//! Two `start` of one group at the same time must end with one shim, and a stale socket file must
//! not be mistaken for a live one. So each look at the path (bind, connect, remove) happens under
//! an exclusive `flock` of the directory; the kernel drops it with the process. The lock is held
//! for microseconds: connecting never blocks, a full backlog counts as alive.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest as _, Sha256};

/// containerd refuses longer paths; the kernel takes one byte more.
pub const MAX_PATH_BYTES: usize = 106;

const BACKLOG: i32 = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The directory's name is too long.
    #[error(
        "socket path {path} is longer than {MAX_PATH_BYTES} bytes: configure a shorter socket directory in containerd"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else listens there.
    #[error(
        "socket {path} belongs to uid {uid}: remove it, and keep its directory writable by root only"
    )]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The listener's user.
        uid: u32,
    },
    /// A system call failed.
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

fn failed<E: Into<io::Error>>(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> SocketError + use<E> {
    let path = path.to_owned();
    move |source| SocketError::Io {
        doing,
        path,
        source: source.into(),
    }
}

/// The outcome of [`listen`].
#[derive(Debug)]
pub enum Listening {
    /// A new socket, ours to serve.
    New(UnixListener),
    /// A shim of this group already serves it.
    Existing,
}

/// The path of a group's socket: a hash, so that its length does not depend on the ids.
///
/// # Errors
///
/// [`SocketError::TooLong`] if `dir` leaves no room.
pub fn path(
    dir: &Path,
    grpc_address: &str,
    namespace: &str,
    group: &str,
) -> Result<PathBuf, SocketError> {
    let mut hash = Sha256::new();
    // As Go's filepath.Join does: empty elements leave no slash.
    let parts = [grpc_address, namespace, group];
    for (n, part) in parts.iter().filter(|part| !part.is_empty()).enumerate() {
        if n > 0 {
            hash.update(b"/");
        }
        hash.update(part.as_bytes());
    }
    let name: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let path = dir.join(name);
    check_length(&path)?;
    Ok(path)
}

/// Whether a socket can have this path.
///
/// # Errors
///
/// [`SocketError::TooLong`].
pub fn check_length(path: &Path) -> Result<(), SocketError> {
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(SocketError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// `unix://` before a path.
#[must_use]
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Listens on `path`, or finds that somebody does. A stale socket is replaced.
///
/// Makes the directory (0711) if it is missing; the socket is 0600 from its first moment.
///
/// # Errors
///
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<Listening, SocketError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .map_err(failed("make directory", dir))?;
    let _lock = lock(dir)?;
    let name = SocketAddrUnix::new(path).map_err(failed("name socket", path))?;

    if let Some(listener) = bind(path, &name)? {
        return Ok(Listening::New(listener));
    }
    if alive(path, &name)? {
        return Ok(Listening::Existing);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove stale socket", path)(error));
        }
        _ => {}
    }
    match bind(path, &name)? {
        Some(listener) => Ok(Listening::New(listener)),
        None => Err(failed("bind", path)(io::Error::from(Errno::ADDRINUSE))),
    }
}

/// Which file a socket path led to; [`remove`] takes away only that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Identity {
    /// Looks at `path` as it is now.
    ///
    /// # Errors
    ///
    /// Whatever `lstat` says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        })
    }
}

/// Removes the socket of a shim that died; one that is served stays, and none is fine.
///
/// # Errors
///
/// [`SocketError`].
pub fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let Some(dir) = path.parent().filter(|_| path.exists()) else {
        return Ok(());
    };
    let _lock = lock(dir)?;
    let name = SocketAddrUnix::new(path).map_err(failed("name socket", path))?;
    if path.exists() && !alive(path, &name)? {
        fs::remove_file(path).map_err(failed("remove stale socket", path))?;
    }
    Ok(())
}

/// Removes a socket file, unless another shim has put its own there meanwhile. Says whether it
/// removed anything.
///
/// # Errors
///
/// [`SocketError::Io`]; a missing file is none.
pub fn remove(socket: &Identity) -> Result<bool, SocketError> {
    let dir = socket.path.parent().unwrap_or(Path::new("."));
    let _lock = match lock(dir) {
        Ok(lock) => lock,
        Err(SocketError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    match Identity::of(&socket.path) {
        Ok(now) if now == *socket => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at socket", &socket.path)(error)),
    }
    fs::remove_file(&socket.path).map_err(failed("remove socket", &socket.path))?;
    Ok(true)
}

fn lock(dir: &Path) -> Result<OwnedFd, SocketError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(failed("open directory", dir))?;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed("lock directory", dir)(error)),
        }
    }
}

/// `None` if the name is taken.
fn bind(path: &Path, name: &SocketAddrUnix) -> Result<Option<UnixListener>, SocketError> {
    let socket = stream(SocketFlags::CLOEXEC).map_err(failed("make socket", path))?;
    // The file inherits the mode of the unbound socket, so it never exists with another one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)
        .map_err(failed("set mode of socket", path))?;
    match rustix::net::bind(&socket, name) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => return Ok(None),
        Err(error) => return Err(failed("bind", path)(error)),
    }
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on", path))?;
    Ok(Some(socket.into()))
}

fn alive(path: &Path, name: &SocketAddrUnix) -> Result<bool, SocketError> {
    let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .map_err(failed("make socket", path))?;
    match rustix::net::connect(&socket, name) {
        Ok(()) => {}
        // A full backlog: busy or stopped, but there.
        Err(Errno::AGAIN | Errno::INPROGRESS) => return Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(false),
        Err(error) => return Err(failed("connect to", path)(error)),
    }
    let peer = rustix::net::sockopt::socket_peercred(&socket)
        .map_err(failed("ask who listens on", path))?;
    if peer.uid != rustix::process::geteuid() {
        return Err(SocketError::Foreign {
            path: path.to_owned(),
            uid: peer.uid.as_raw(),
        });
    }
    Ok(true)
}

fn stream(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    fn new(path: &Path) -> UnixListener {
        match listen(path).unwrap() {
            Listening::New(listener) => listener,
            Listening::Existing => panic!("somebody listens on {path:?}"),
        }
    }

    #[test]
    fn golden_path() {
        let got = path(
            Path::new("/run/containerd/s"),
            "/run/containerd/containerd.sock",
            "default",
            "c1",
        )
        .unwrap();
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let want =
            "/run/containerd/s/d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        assert_eq!(got, Path::new(want));
        assert_eq!(got.as_os_str().len(), 82);
        assert_eq!(
            path(Path::new("/s"), "", "n", "g").unwrap(),
            path(Path::new("/s"), "n", "", "g").unwrap()
        );
    }

    #[test]
    fn length_limit() {
        let dir = |n: usize| PathBuf::from(format!("/{}", "d".repeat(n)));
        assert!(path(&dir(40), "a", "b", "c").is_ok());
        let error = path(&dir(41), "a", "b", "c").unwrap_err();
        assert!(matches!(error, SocketError::TooLong { .. }), "{error}");
    }

    #[test]
    fn permissions_and_reuse() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/s");
        let listener = new(&path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o711);
        assert!(matches!(listen(&path).unwrap(), Listening::Existing));
        drop(listener);
        // Now it is stale.
        assert!(UnixStream::connect(&path).is_err());
        let again = new(&path);
        assert!(UnixStream::connect(&path).is_ok());
        drop(again);
    }

    #[test]
    fn a_full_backlog_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = stream(SocketFlags::CLOEXEC).unwrap();
        let name = SocketAddrUnix::new(&path).unwrap();
        rustix::net::bind(&socket, &name).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path).unwrap(), Listening::Existing));
    }

    #[test]
    fn only_our_own_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = new(&path);
        let identity = Identity::of(&path).unwrap();
        fs::rename(&path, dir.path().join("away")).unwrap();
        let second = new(&path);
        assert!(!remove(&identity).unwrap());
        assert!(remove(&Identity::of(&path).unwrap()).unwrap());
        assert!(!remove(&identity).unwrap());
        drop((first, second, dir));
        assert!(!remove(&identity).unwrap(), "directory gone");
    }

    #[test]
    fn a_race_has_one_winner() {
        for stale in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            if stale {
                drop(new(&path));
            }
            let barrier = Barrier::new(8);
            let winners: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            match listen(&path).unwrap() {
                                Listening::New(listener) => Some(listener),
                                Listening::Existing => None,
                            }
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .filter_map(|thread| thread.join().unwrap())
                    .collect()
            });
            assert_eq!(winners.len(), 1);
            assert!(UnixStream::connect(&path).is_ok());
        }
    }

    #[test]
    fn errors_name_the_path() {
        let error = listen(Path::new("/proc/nowhere/s"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/proc/nowhere"), "{error}");
    }

    #[test]
    fn only_a_dead_shims_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        remove_stale(&path).unwrap();
        let Listening::New(listener) = listen(&path).unwrap() else {
            panic!("somebody serves a new path");
        };
        remove_stale(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
    }
}
