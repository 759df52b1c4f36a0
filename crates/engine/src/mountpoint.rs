//! Where mounts go in a root file system: paths resolved and made inside a
//! root, so that no link of the container leads out of it.
//!
//! CRIU mounts onto mount points that exist; a restore makes those that the
//! new root lacks, as a start would.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::spec;

/// Paths are the container's, and no link leads out of its root.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A mount point that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the mount point {destination} in {root}")]
pub struct Error {
    /// The container's root, or the volume that the mount point is in.
    pub root: PathBuf,
    /// The path in it.
    pub destination: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Resolves a path of the container, following links as the container would.
/// What does not exist is taken as it is written.
///
/// # Errors
///
/// When the root cannot be opened, or a link loops.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let root_fd = open_root(root)?;
    let root_path = path_of(&root_fd)?;
    let fd = match open_in(&root_fd, path) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(path.to_owned()),
        Err(e) => return Err(e.into()),
    };
    let inside = path_of(&fd)?;
    Ok(Path::new("/").join(
        inside
            .strip_prefix(&root_path)
            .unwrap_or(path.strip_prefix("/").unwrap_or(path)),
    ))
}

/// Opens a folder of the container, following links as the container would.
/// `None` when there is nothing.
///
/// # Errors
///
/// What open(2) says, as `ENOTDIR` for something else.
pub(crate) fn open_dir(root: &Path, path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(open_root(root)?, path, flags, Mode::empty(), IN_ROOT) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes the mount points of all mounts of the spec that lie in the root file
/// system or in a volume. Those inside of other mounts CRIU makes itself.
///
/// # Errors
///
/// [`Error`].
pub fn make_all(root: &Path, spec: &Spec) -> Result<(), Error> {
    let mounts: Vec<_> = spec.mounts().iter().flatten().collect();
    let binds = spec::binds(spec);
    for (i, mount) in mounts.iter().enumerate() {
        let destination = mount.destination();
        let bind = binds.iter().find(|b| &b.destination == destination);
        let is_dir = bind.is_none_or(|b| !b.source.exists() || b.source.is_dir());
        let before = mounts[..i].iter().map(|m| m.destination().as_path());
        let Some((root, inside)) = holder_of(root, destination, before, &binds) else {
            continue;
        };
        if !root.is_dir() {
            continue;
        }
        make(&root, &inside, is_dir).map_err(|source| Error {
            root,
            destination: destination.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Where a path lies on this host: in the root, or in the source of the bind
/// that holds it. `None` inside of any other mount.
fn holder_of<'a>(
    root: &Path,
    path: &Path,
    mounts: impl Iterator<Item = &'a Path>,
    binds: &[spec::Bind],
) -> Option<(PathBuf, PathBuf)> {
    let deepest = mounts
        .filter(|d| *d != path && path.starts_with(d) && *d != Path::new("/"))
        .max_by_key(|d| d.components().count());
    let Some(holder) = deepest else {
        return Some((root.to_owned(), path.to_owned()));
    };
    let bind = binds.iter().find(|b| b.destination == holder)?;
    let inside = path.strip_prefix(holder).unwrap_or(path);
    Some((bind.source.clone(), inside.to_owned()))
}

/// Makes the directory that the container's program starts in, if it is missing
/// in the root or in a volume, as runc does.
///
/// # Errors
///
/// [`Error`].
pub fn make_cwd(root: &Path, spec: &Spec) -> Result<(), Error> {
    let Some(cwd) = spec.process().as_ref().map(|p| p.cwd().clone()) else {
        return Ok(());
    };
    let mounts = spec
        .mounts()
        .iter()
        .flatten()
        .map(|m| m.destination().as_path());
    let Some((root, inside)) = holder_of(root, &cwd, mounts, &spec::binds(spec)) else {
        return Ok(());
    };
    make(&root, &inside, true).map_err(|source| Error {
        root,
        destination: cwd,
        source,
    })
}

/// Makes a directory, or an empty file, at a path inside a root; what is there
/// already stays.
fn make(root: &Path, path: &Path, is_dir: bool) -> io::Result<()> {
    let root = open_root(root)?;
    let names: Vec<OsString> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        })
        .collect();
    let mut so_far = PathBuf::from("/");
    let mut parent = root.try_clone()?;
    for (i, name) in names.iter().enumerate() {
        so_far.push(name);
        let last = i + 1 == names.len();
        match open_in(&root, &so_far) {
            Ok(fd) => {
                parent = fd;
                continue;
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let made = if last && !is_dir {
            rustix::fs::openat(
                &parent,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o644),
            )
            .map(drop)
        } else {
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
        };
        match made {
            // Somebody else makes the mount points of a shared volume too.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        parent = open_in(&root, &so_far)?;
    }
    Ok(())
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn open_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        IN_ROOT,
    )
}

fn path_of(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Opens a namespace file for somebody who wants its identity or to pass it on.
///
/// # Errors
///
/// What open(2) says.
pub fn open_namespace(path: &Path) -> io::Result<(OwnedFd, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = File::open(path)?;
    let inode = file.metadata()?.ino();
    Ok((file.into(), inode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn spec(mounts: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.1.0","mounts":[{mounts}]}}"#)).unwrap()
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("run/secrets")).unwrap();
        std::fs::create_dir_all(root.join("var")).unwrap();
        symlink("/run", root.join("var/run")).unwrap();
        symlink("../../../../etc", root.join("out")).unwrap();
        assert_eq!(
            resolve(&root, Path::new("/var/run/secrets")).unwrap(),
            Path::new("/run/secrets")
        );
        assert_eq!(
            resolve(&root, Path::new("/none/x")).unwrap(),
            Path::new("/none/x")
        );
        make(&root, Path::new("/out/made"), true).unwrap_err();
        assert!(!Path::new("/etc/made").exists());
    }

    #[test]
    fn mount_points_are_made_where_they_belong() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let volume = dir.path().join("volume");
        let file = dir.path().join("file");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(&file, "x").unwrap();
        let bind = |destination: &str, source: &Path| {
            format!(
                r#"{{"destination":"{destination}","type":"bind","source":"{}"}}"#,
                source.display()
            )
        };
        let spec = spec(
            &[
                r#"{"destination":"/proc","type":"proc","source":"proc"}"#.to_owned(),
                r#"{"destination":"/dev","type":"tmpfs","source":"tmpfs"}"#.to_owned(),
                r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm"}"#.to_owned(),
                bind("/data", &volume),
                bind("/data/conf/one", &file),
                bind("/etc/hosts", &file),
            ]
            .join(","),
        );
        make_all(&root, &spec).unwrap();
        assert!(root.join("proc").is_dir() && root.join("dev").is_dir());
        assert!(!root.join("dev/shm").exists());
        assert!(root.join("data").is_dir() && !root.join("data/conf").exists());
        assert!(volume.join("conf/one").is_file());
        assert!(root.join("etc/hosts").is_file());
        make_all(&root, &spec).unwrap();
    }
}
