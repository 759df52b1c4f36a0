//! Copies a folder of a container's root, which may hold anything: no link is
//! followed, and no device or fifo is opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

/// Copies what is in `from` into `to`: files, folders, links, devices and fifos
/// with owner, mode and times. Sockets and extended attributes are left out.
pub(crate) fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // The descriptors may be mere names of folders.
    let from = open_dir(from, c".")?;
    let to = open_dir(to, c".")?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(&to, name, Mode::RWXU)?;
                copy_dir(
                    open_dir(from.as_fd(), name)?.as_fd(),
                    open_dir(to.as_fd(), name)?.as_fd(),
                )?;
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source =
                    rustix::fs::openat(&from, name, flags | OFlags::RDONLY, Mode::empty())?;
                let copy = rustix::fs::openat(
                    &to,
                    name,
                    flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                    Mode::RUSR | Mode::WUSR,
                )?;
                io::copy(&mut File::from(source), &mut File::from(copy))?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&from, name, Vec::new())?;
                rustix::fs::symlinkat(link, &to, name)?;
            }
            FileType::Socket => continue,
            kind => rustix::fs::mknodat(&to, name, kind, mode, stat.st_rdev)?,
        }
        keep(to.as_fd(), name, &stat)?;
    }
    Ok(())
}

fn open_dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

/// Owner, mode and times; the mode last, since a new owner takes set-id bits away.
fn keep(dir: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let link = AtFlags::SYMLINK_NOFOLLOW;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(dir, name, Some(owner.0), Some(owner.1), link)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode);
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
    }
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(dir, name, &times, link)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_copy_is_the_same_and_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("from/a/b")).unwrap();
        fs::create_dir(at("to")).unwrap();
        fs::write(at("from/a/b/file"), "text").unwrap();
        fs::set_permissions(at("from/a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(at("from/a"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc", at("from/link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("from/fifo"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();

        let (from, to) = (
            File::open(at("from")).unwrap(),
            File::open(at("to")).unwrap(),
        );
        copy_dir(from.as_fd(), to.as_fd()).unwrap();

        assert_eq!(fs::read_to_string(at("to/a/b/file")).unwrap(), "text");
        let stat = |path: &str| {
            let stat = fs::symlink_metadata(at(path)).unwrap();
            (stat.mode(), stat.uid(), stat.mtime_nsec())
        };
        for path in ["a", "a/b/file", "link", "fifo"] {
            assert_eq!(
                stat(&format!("to/{path}")),
                stat(&format!("from/{path}")),
                "{path}"
            );
        }
        assert_eq!(
            fs::read_link(at("to/link")).unwrap(),
            std::path::Path::new("/etc")
        );
    }
}
