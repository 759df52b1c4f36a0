//! Owners of what a container has changed in its root file system, after it has moved to other
//! users of the node.
//!
//! The layers of an image show a container with a user namespace the owners that they have, by
//! idmapped mounts; what the container changes is kept in the upper layer of the overlay with the
//! owners that they are on the node. Containers' engines carry these along as they are, and the
//! kubelet gives each pod other users. So before the restore each file of the upper layer gets the
//! owner that is the same one inside.
//!
//! containerd 2.1 goes further wrong: its checkpoint of such a container says of all changed files
//! that they are nobody's. Whose they were is lost; they become the container's root's, and run as
//! nobody but who runs them.
//!
//! Nobody else is in the container's root yet. No link is followed, and nobody but a user of the
//! new container gets anything, so a forged map can change only what is the container's.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cryo_criu_image::inventory::{IdMaps, IdRange};
use oci_spec::runtime::{LinuxIdMapping, Spec};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// Set-user-id and set-group-id, which a change of the owner takes away.
const SET_ID: u32 = 0o6000;
/// The kernel's nobody: who an id is that has no place in a map.
const NOBODY: u32 = 65534;
/// Folders in folders that are followed; a path of more cannot be named.
const DEPTH: usize = 2048;

/// Gives the changed files of the root their owners back.
///
/// # Errors
///
/// When a file cannot be looked at or changed.
pub(super) fn carry_over(rootfs: &Path, before: &IdMaps, spec: &Spec) -> io::Result<()> {
    let linux = spec.linux().as_ref();
    let moves = Moves {
        uids: Moved::new(&before.uids, linux.and_then(|l| l.uid_mappings().as_ref())),
        gids: Moved::new(&before.gids, linux.and_then(|l| l.gid_mappings().as_ref())),
    };
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let Some(upper) = upper_layer(&table, rootfs) else {
        return Ok(());
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::openat(CWD, &upper, flags, Mode::empty())?;
    let root = rustix::fs::openat(CWD, rootfs, flags, Mode::empty())?;
    moves.change(upper.as_fd(), root.as_fd(), c".")?;
    moves.walk(&upper, &root, DEPTH)
}

/// The upper layer of the overlay that is mounted there last.
fn upper_layer(mountinfo: &str, rootfs: &Path) -> Option<PathBuf> {
    let of_line = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        let mut source = source.split(' ');
        let overlay = source.next() == Some("overlay") && Path::new(at) == rootfs;
        let options = source.nth(1).filter(|_| overlay)?;
        let upper = options.split(',').find_map(|o| o.strip_prefix("upperdir="));
        upper.map(PathBuf::from)
    };
    mountinfo.lines().rev().find_map(of_line)
}

/// Where users and groups of the node go.
struct Moves {
    uids: Moved,
    gids: Moved,
}

impl Moves {
    /// Changes what is in a folder of the upper layer, by the same folder of the whole root.
    fn walk(&self, upper: &OwnedFd, root: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth == 0 {
            return Err(Errno::NAMETOOLONG.into());
        }
        for entry in Dir::read_from(upper)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = self.change(upper.as_fd(), root.as_fd(), name)?;
            if kind != Some(FileType::Directory) {
                continue;
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inside = |dir: &OwnedFd| rustix::fs::openat(dir, name, flags, Mode::empty());
            self.walk(&inside(upper)?, &inside(root)?, depth - 1)?;
        }
        Ok(())
    }

    /// Answers what it is; `None` for what marks a file as deleted.
    fn change(
        &self,
        upper: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<Option<FileType>> {
        let file = rustix::fs::statat(upper, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(file.st_mode);
        if kind == FileType::CharacterDevice && file.st_rdev == 0 {
            return Ok(None);
        }
        let uid = self.uids.of(file.st_uid);
        let gid = self.gids.of(file.st_gid);
        if uid.is_none() && gid.is_none() {
            return Ok(Some(kind));
        }
        rustix::fs::chownat(
            root,
            name,
            uid.map(Uid::from_raw),
            gid.map(Gid::from_raw),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| named(name, e))?;
        let known = !self.uids.is_lost(file.st_uid) && !self.gids.is_lost(file.st_gid);
        if kind == FileType::RegularFile && known && file.st_mode & SET_ID != 0 {
            let mode = Mode::from_raw_mode(file.st_mode & 0o7777);
            // What was looked at is no link, and nobody else is there to make it one.
            rustix::fs::chmodat(root, name, mode, AtFlags::empty()).map_err(|e| named(name, e))?;
        }
        Ok(Some(kind))
    }
}

fn named(name: &CStr, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    let name = Path::new(OsStr::from_bytes(name.to_bytes()));
    io::Error::new(error.kind(), format!("{}: {error}", name.display()))
}

/// Ids of the node, before and after.
#[derive(Debug, PartialEq, Eq)]
struct Moved {
    before: Vec<IdRange>,
    after: Vec<IdRange>,
}

impl Moved {
    fn new(before: &[IdRange], after: Option<&Vec<LinuxIdMapping>>) -> Self {
        let after = after.into_iter().flatten().map(|m| IdRange {
            inside: m.container_id(),
            outside: m.host_id(),
            count: m.size(),
        });
        Self {
            before: before.to_vec(),
            after: after.collect(),
        }
    }

    /// Who it was inside.
    fn inside(&self, id: u32) -> Option<u32> {
        self.before.iter().find_map(|r| {
            let offset = within(r.outside, r.count, id)?;
            r.inside.checked_add(offset)
        })
    }

    /// Whether it is nobody, and so could have been anybody.
    fn is_lost(&self, id: u32) -> bool {
        id == NOBODY && self.inside(id).is_none()
    }

    /// Who is the same one inside, or root for who is lost; `None` where nobody is, or it is who
    /// it was.
    fn of(&self, id: u32) -> Option<u32> {
        let inside = match self.is_lost(id) {
            true => 0,
            false => self.inside(id)?,
        };
        let outside = self.after.iter().find_map(|r| {
            let offset = within(r.inside, r.count, inside)?;
            r.outside.checked_add(offset)
        })?;
        (outside != id).then_some(outside)
    }
}

fn within(start: u32, count: u32, id: u32) -> Option<u32> {
    id.checked_sub(start).filter(|n| *n < count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn who_is_the_same_inside_takes_over() {
        let moved = Moved {
            before: vec![range(0, 1000, 10), range(10, 5000, 1)],
            after: vec![range(0, 3000, 5), range(5, 1005, 6)],
        };
        for (id, wanted) in [
            (1000, Some(3000)),
            (1004, Some(3004)),
            // It stays who it is.
            (1005, None),
            (5000, Some(1010)),
            // Of nobody in the container.
            (0, None),
            (999, None),
            (1010, None),
            (u32::MAX, None),
            // Of somebody, but nobody knows of whom.
            (65534, Some(3000)),
        ] {
            assert_eq!(moved.of(id), wanted, "{id}");
        }
        let gone = Moved {
            before: vec![range(0, 1000, 10)],
            after: vec![range(0, 3000, 5)],
        };
        assert_eq!(gone.of(1007), None);
        let all = Moved {
            before: vec![range(0, 0, 65536)],
            after: vec![range(0, 3000, 65536)],
        };
        assert_eq!(all.of(65534), Some(68534));
    }

    #[test]
    fn the_upper_layer_is_the_last_mounts() {
        let table = "1 2 0:3 / /x rw - overlay overlay rw,upperdir=/old/fs,workdir=/w\n\
            1 2 0:3 / /x rw shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/up/fs,workdir=/w\n\
            1 2 0:3 / /y rw - ext4 /dev/a rw,upperdir=/no\n";
        assert_eq!(
            upper_layer(table, Path::new("/x")),
            Some(PathBuf::from("/up/fs"))
        );
        assert_eq!(upper_layer(table, Path::new("/y")), None);
        assert_eq!(upper_layer(table, Path::new("/z")), None);
    }
}
