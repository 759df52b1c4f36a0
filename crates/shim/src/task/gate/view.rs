//! What the kernel says of a mount namespace: read by a thread inside of it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cryo_engine::cgroup::unescape;
use cryo_sys::mntns;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatVfsMountFlags, fstat, fstatvfs, major,
    minor, open, openat, statat,
};
use rustix::io::Errno;

/// The most files that are looked at for devices in one file system of the container.
const MAX_FILES: usize = 1 << 20;

/// A mount namespace, as seen from its root.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// All mounts, parents before children.
    pub(super) mounts: Vec<Mount>,
    /// What is at the paths that were asked for, in their order; `None`: nothing.
    pub(super) places: Vec<Option<Place>>,
    /// Device nodes in file systems that the images filled.
    pub(super) devices: Vec<Device>,
}

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// Major and minor number of the file system.
    pub(super) device: (u32, u32),
    /// Which of its directories or files is shown.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) at: PathBuf,
    pub(super) flags: Flags,
    /// Its type.
    pub(super) kind: String,
}

/// What a mount forbids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) read_only: bool,
    pub(super) nosuid: bool,
    pub(super) nodev: bool,
    pub(super) noexec: bool,
}

/// What is at a path, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Device and inode number.
    pub(super) identity: (u64, u64),
    /// The device that it is, if it is one.
    pub(super) node: Option<Node>,
    pub(super) read_only: bool,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    pub(super) node: Node,
}

impl View {
    /// Looks at the mount namespace of a task, by the file of it in `/proc`.
    ///
    /// # Errors
    ///
    /// When it cannot be entered or read.
    pub(super) fn read(namespace: impl AsFd, places: &[PathBuf]) -> io::Result<Self> {
        // Seen from inside, `/proc` is the container's.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = open("/proc", flags, Mode::empty())?;
        mntns::inside(namespace.as_fd(), || {
            let table = openat(
                &proc,
                "thread-self/mountinfo",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let mut text = String::new();
            io::Read::read_to_string(&mut fs::File::from(table), &mut text)?;
            let mounts = parse_mounts(&text)
                .ok_or_else(|| io::Error::other("mountinfo has not what it should"))?;
            let mut devices = Vec::new();
            for mount in &mounts {
                if mount.kind == "tmpfs" && !mount.flags.nodev {
                    find_devices(mount, &mut devices)?;
                }
            }
            let places = places.iter().map(|p| place(p)).collect::<Result<_, _>>()?;
            Ok(Self {
                mounts,
                places,
                devices,
            })
        })?
    }
}

/// What is at a path.
///
/// # Errors
///
/// When that cannot be told.
pub(super) fn place(path: &Path) -> io::Result<Option<Place>> {
    let at = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(at) => at,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let stat = fstat(&at)?;
    Ok(Some(Place {
        identity: (stat.st_dev, stat.st_ino),
        node: node(&stat),
        read_only: fstatvfs(&at)?.f_flag.contains(StatVfsMountFlags::RDONLY),
    }))
}

fn node(stat: &Stat) -> Option<Node> {
    let block = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => false,
        _ => return None,
    };
    Some(Node {
        block,
        major: major(stat.st_rdev),
        minor: minor(stat.st_rdev),
    })
}

/// The device nodes in a mounted file system; a mount on top of it hides what it hides.
fn find_devices(mount: &Mount, found: &mut Vec<Device>) -> io::Result<()> {
    let root = statat(CWD, &mount.at, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(root.st_mode) != FileType::Directory {
        found.extend(node(&root).map(|node| Device {
            path: mount.at.clone(),
            node,
        }));
        return Ok(());
    }
    let mut left = MAX_FILES;
    let mut folders = vec![mount.at.clone()];
    while let Some(folder) = folders.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = open(&folder, flags, Mode::empty())?;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            left = left.checked_sub(1).ok_or_else(|| {
                io::Error::other(format!(
                    "more than {MAX_FILES} files below {}",
                    mount.at.display()
                ))
            })?;
            let path = folder.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            // tmpfs tells the type with the name.
            match entry.file_type() {
                FileType::RegularFile | FileType::Symlink | FileType::Fifo | FileType::Socket => {}
                _ => {
                    let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if stat.st_dev != root.st_dev {
                        continue;
                    }
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        folders.push(path);
                    } else if let Some(node) = node(&stat) {
                        found.push(Device { path, node });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads the lines of a `mountinfo`; `None` when there is one that is none.
pub(super) fn parse_mounts(text: &str) -> Option<Vec<Mount>> {
    text.lines().map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let id = left.next()?.parse().ok()?;
    let parent = left.next()?.parse().ok()?;
    let (major, minor) = left.next()?.split_once(':')?;
    let root = unescape(left.next()?);
    let at = unescape(left.next()?);
    let options = left.next()?;
    let mut right = right.split(' ');
    let kind = right.next()?.to_owned();
    let of_file_system = right.nth(1)?;
    let has = |name: &str| options.split(',').any(|o| o == name);
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        at: at.into(),
        flags: Flags {
            read_only: has("ro") || of_file_system.split(',').any(|o| o == "ro"),
            nosuid: has("nosuid"),
            nodev: has("nodev"),
            noexec: has("noexec"),
        },
        kind,
    })
}
