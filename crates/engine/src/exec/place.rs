//! Where a container's processes live: its namespaces and its root, as its
//! first process has them. A restored container's differ from its spec's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::move_into_link_name_space;

/// These take effect for children.
const FOR_CHILDREN: [&str; 2] = ["pid", "time"];

/// In the order in which they are entered. The user namespace comes last: the
/// rights of the outside reach all the others, those of the inside may not.
const INSIDE: [&str; 5] = ["net", "uts", "ipc", "cgroup", "mnt"];

/// Open files that name the place.
#[derive(Debug)]
pub(super) struct Place {
    for_children: Vec<(&'static str, OwnedFd)>,
    inside: Vec<(&'static str, OwnedFd)>,
    user: Option<OwnedFd>,
    root: OwnedFd,
}

impl Place {
    /// Opens what process `pid` lives in; namespaces that are ours already are
    /// left out.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let open_all = |names: &[&'static str]| {
            names
                .iter()
                .filter_map(|name| Some(foreign(pid, name).transpose()?.map(|fd| (*name, fd))))
                .collect::<io::Result<Vec<_>>>()
        };
        Ok(Self {
            for_children: open_all(&FOR_CHILDREN)?,
            inside: open_all(&INSIDE)?,
            user: foreign(pid, "user")?,
            root: rustix::fs::openat(
                CWD,
                format!("/proc/{pid}/root"),
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?,
        })
    }

    /// Makes the children of this process live in the pid and time namespaces.
    pub(super) fn enter_for_children(&self) -> Result<(), (&'static str, io::Error)> {
        enter(&self.for_children)
    }

    /// Moves this process in, all but its user.
    pub(super) fn enter(&self) -> Result<(), (&'static str, io::Error)> {
        enter(&self.inside)?;
        rustix::process::fchdir(&self.root)
            .and_then(|()| rustix::process::chroot("."))
            .and_then(|()| rustix::process::chdir("/"))
            .map_err(|e| ("root", e.into()))
    }

    /// Moves this process into the user namespace; says whether there is one.
    pub(super) fn enter_user(&self) -> io::Result<bool> {
        match &self.user {
            None => Ok(false),
            Some(fd) => {
                move_into_link_name_space(fd.as_fd(), None)?;
                Ok(true)
            }
        }
    }
}

fn enter(namespaces: &[(&'static str, OwnedFd)]) -> Result<(), (&'static str, io::Error)> {
    for (name, fd) in namespaces {
        move_into_link_name_space(fd.as_fd(), None).map_err(|e| (*name, e.into()))?;
    }
    Ok(())
}

fn foreign(pid: i32, name: &str) -> io::Result<Option<OwnedFd>> {
    let theirs = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
    let ours = PathBuf::from(format!("/proc/self/ns/{name}"));
    let Ok(ours) = rustix::fs::stat(&ours) else {
        // This kernel has no such namespaces.
        return Ok(None);
    };
    let fd = OwnedFd::from(File::open(theirs)?);
    let stat = rustix::fs::fstat(&fd).map_err(|e: Errno| io::Error::from(e))?;
    Ok(((stat.st_dev, stat.st_ino) != (ours.st_dev, ours.st_ino)).then_some(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_place_needs_no_entering() {
        let own = Place::of(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert!(own.for_children.is_empty() && own.inside.is_empty() && own.user.is_none());
    }

    #[test]
    fn a_process_that_is_gone_has_no_place() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        Place::of(i32::try_from(child.id()).unwrap()).unwrap_err();
    }
}
