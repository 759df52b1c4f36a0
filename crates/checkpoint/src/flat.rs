//! A directory of regular files, opened without following links.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::layout;

/// Most files that a directory may hold. CRIU writes a few for each task and namespace.
const MAX_FILES: usize = 1 << 18;

/// A directory of regular files: what they are called and how long they are.
#[derive(Debug)]
pub(crate) struct FlatDir {
    fd: OwnedFd,
    files: BTreeMap<String, u64>,
    directories: Vec<String>,
    /// There is a link by the name that CRIU gives the one to the images before.
    link: bool,
    /// The first that others than its owner or root may change.
    exposed: Option<String>,
}

/// Why a directory is not flat, or could not be read.
#[derive(Debug)]
pub(crate) enum Error {
    Io(io::Error),
    /// Something that is not a regular file of its own: its name, and what it is.
    Foreign(String, &'static str),
    TooMany(usize),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl FlatDir {
    /// Lists a directory. Subdirectories are refused unless `directories` says otherwise.
    pub(crate) fn open(path: &Path, directories: bool) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::new(open(path, flags, Mode::empty())?, directories)
    }

    /// Lists a directory of CRIU's images, where alone there may be a link to a parent.
    pub(crate) fn open_images(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::of_images(open(path, flags, Mode::empty())?)
    }

    /// As [`Self::open_images`], by its descriptor.
    pub(crate) fn of_images(fd: OwnedFd) -> Result<Self, Error> {
        Self::list(fd, false, Some(layout::PARENT))
    }

    /// Lists a subdirectory, without following a link; its own are refused unless `directories`
    /// says otherwise.
    pub(crate) fn subdirectory(&self, name: &str, directories: bool) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::new(openat(&self.fd, name, flags, Mode::empty())?, directories)
    }

    /// Lists a directory by its descriptor.
    pub(crate) fn new(fd: OwnedFd, directories: bool) -> Result<Self, Error> {
        Self::list(fd, directories, None)
    }

    fn list(fd: OwnedFd, directories: bool, link: Option<&str>) -> Result<Self, Error> {
        let exposed = is_exposed(&fstat(&fd)?).then(|| "the directory".to_owned());
        let mut flat = Self {
            fd,
            files: BTreeMap::new(),
            directories: Vec::new(),
            link: false,
            exposed,
        };
        for entry in Dir::read_from(&flat.fd)? {
            let entry = entry?;
            let raw = entry.file_name();
            if raw == c"." || raw == c".." {
                continue;
            }
            if flat.files.len() + flat.directories.len() >= MAX_FILES {
                return Err(Error::TooMany(MAX_FILES));
            }
            let name = raw.to_string_lossy().into_owned();
            let stat = statat(&flat.fd, raw, AtFlags::SYMLINK_NOFOLLOW)?;
            match foreign(&stat) {
                None if name.as_bytes() != raw.to_bytes() => {
                    return Err(Error::Foreign(name, "a file with an unreadable name"));
                }
                None => {
                    if flat.exposed.is_none() && is_exposed(&stat) {
                        flat.exposed = Some(name.clone());
                    }
                    flat.files.insert(name, size(&stat));
                }
                Some(DIRECTORY) if directories => flat.directories.push(name),
                Some(SYMLINK) if link == Some(&*name) => flat.link = true,
                Some(what) => return Err(Error::Foreign(name, what)),
            }
        }
        flat.directories.sort_unstable();
        Ok(flat)
    }

    /// Names and sizes in bytes, sorted by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, size)| (name.as_str(), *size))
    }

    /// The size of a file, if it is there.
    pub(crate) fn size(&self, name: &str) -> Option<u64> {
        self.files.get(name).copied()
    }

    /// The subdirectories, sorted.
    pub(crate) fn directories(&self) -> &[String] {
        &self.directories
    }

    pub(crate) fn has_directory(&self, name: &str) -> bool {
        self.directories.iter().any(|directory| directory == name)
    }

    /// Whether there is a link to a parent.
    pub(crate) fn has_link(&self) -> bool {
        self.link
    }

    /// Where that link says that it leads.
    pub(crate) fn link_target(&self) -> Result<String, Error> {
        let target = readlinkat(&self.fd, layout::PARENT, Vec::new())?;
        target.into_string().map_err(|_| {
            Error::Foreign(layout::PARENT.to_owned(), "a link with an unreadable name")
        })
    }

    /// Opens one of the files, which must still be what it was when it was listed.
    pub(crate) fn open_file(&self, name: &str) -> Result<File, Error> {
        // NONBLOCK: a fifo put there meanwhile does not hold us up. It means nothing to files.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let fd = match openat2(&self.fd, name, flags, Mode::empty(), within) {
            Err(Errno::LOOP) => return Err(Error::Foreign(name.to_owned(), SYMLINK)),
            Err(Errno::XDEV) => return Err(Error::Foreign(name.to_owned(), "a mount")),
            result => result?,
        };
        match foreign(&fstat(&fd)?) {
            None => Ok(File::from(fd)),
            Some(what) => Err(Error::Foreign(name.to_owned(), what)),
        }
    }

    /// The first of directory and files that somebody else than root and ourselves may change.
    pub(crate) fn exposed(&self) -> Option<&str> {
        self.exposed.as_deref()
    }

    /// The directory itself.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const DIRECTORY: &str = "a directory";
const SYMLINK: &str = "a symbolic link";

/// What a file is, if it is not a regular file with one name.
fn foreign(stat: &Stat) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink > 1 => Some("a hard link"),
        FileType::RegularFile => None,
        FileType::Directory => Some(DIRECTORY),
        FileType::Symlink => Some(SYMLINK),
        FileType::Fifo => Some("a fifo"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Unknown => Some("neither file nor directory"),
    }
}

/// Whether somebody else than root and ourselves may change it.
pub(crate) fn is_exposed(stat: &Stat) -> bool {
    let others = Mode::WGRP | Mode::WOTH;
    let owner = stat.st_uid;
    (owner != 0 && owner != rustix::process::geteuid().as_raw())
        || Mode::from_raw_mode(stat.st_mode).intersects(others)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}
