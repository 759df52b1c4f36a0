//! Mounts that only this worker sees, and what it forks.
//!
//! They are made in a mount namespace of the worker's. That ends with the
//! worker, and the mounts with it, however it ends: nothing has to be unmounted,
//! and nobody who removes the folder that they are in can reach what they show.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cryo_sys::namespace;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{
    FsMountFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

/// A folder whose mounts nobody else sees.
#[derive(Debug)]
pub(crate) struct Private<'a>(&'a Path);

impl<'a> Private<'a> {
    /// Gives this process a mount namespace of its own. What the host mounts
    /// still comes.
    pub(crate) fn enter(dir: &'a Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        namespace::unshare_mounts()?;
        rustix::mount::mount_change(mount_point_of(dir)?, MountPropagationFlags::DOWNSTREAM)?;
        Ok(Self(dir))
    }

    /// Mounts a detached tree in the folder, under a number; answers where.
    pub(crate) fn attach(&self, number: usize, tree: BorrowedFd<'_>) -> io::Result<PathBuf> {
        let at = self.0.join(number.to_string());
        if fs::metadata(format!("/proc/self/fd/{}", tree.as_raw_fd()))?.is_dir() {
            fs::create_dir_all(&at)?;
        } else {
            File::create(&at)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, c"", CWD, &at, flags)?;
        Ok(at)
    }
}

/// Where the file system of a folder is mounted.
fn mount_point_of(dir: &Path) -> io::Result<&Path> {
    for ancestor in dir.ancestors() {
        let stat = rustix::fs::statx(CWD, ancestor, AtFlags::empty(), StatxFlags::empty())?;
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(ancestor);
        }
    }
    Ok(Path::new("/"))
}

/// A detached copy of what is mounted at a path, or of the folder there; with
/// all that is mounted below it, or without.
pub(crate) fn copy_of(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// The detached mount of a file system, once all its options are said.
pub(crate) fn mount_of(fs: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    rustix::mount::fsconfig_create(fs)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(fs, flags, MountAttrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_is_in_a_mount() {
        assert_eq!(
            mount_point_of(Path::new("/proc/self")).unwrap(),
            Path::new("/proc")
        );
        mount_point_of(Path::new("/nonexistent/x")).unwrap_err();
    }
}
