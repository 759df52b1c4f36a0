//! The container's root file system: the mounts containerd asks for.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use containerd_shim_protos::api::Mount;
use cryo_engine::{Engine, MappedRoot};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use super::context::from_engine;
use crate::rpc::TaskError;

/// What mount(2) takes as data: one page with its ending zero.
const MOUNT_DATA_BYTES: usize = 4095;

/// A mount's options, sorted.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    /// Options of the file system itself.
    data: Vec<String>,
    /// How users are to be seen, as containerd writes it; or empty.
    uid_map: String,
    /// How groups are to be seen.
    gid_map: String,
}

impl Options {
    /// Whether the mount is to show other owners.
    fn is_mapped(&self) -> bool {
        !(self.uid_map.is_empty() && self.gid_map.is_empty())
    }
}

fn parse_options(options: &[String]) -> Options {
    let mut parsed = Options {
        flags: MountFlags::empty(),
        data: Vec::new(),
        uid_map: String::new(),
        gid_map: String::new(),
    };
    for option in options {
        let (flag, set) = match option.as_str() {
            "defaults" | "loop" => continue,
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "bind" => (MountFlags::BIND, true),
            "rbind" => (MountFlags::BIND | MountFlags::REC, true),
            other => {
                match other.split_once('=') {
                    Some(("uidmap", map)) => map.clone_into(&mut parsed.uid_map),
                    Some(("gidmap", map)) => map.clone_into(&mut parsed.gid_map),
                    _ => parsed.data.push(other.to_owned()),
                }
                continue;
            }
        };
        parsed.flags.set(flag, set);
    }
    parsed
}

/// Mounts all of them at `rootfs`, in order. A failure takes back what was done.
/// `scratch` is for the engine.
///
/// # Errors
///
/// Names the mount and what the kernel said.
pub(super) fn mount(
    mounts: &[Mount],
    rootfs: &Path,
    engine: &dyn Engine,
    scratch: &Path,
) -> Result<(), TaskError> {
    std::fs::create_dir_all(rootfs)
        .map_err(|e| TaskError::io(format_args!("cannot make {}", rootfs.display()), &e))?;
    for mount in mounts {
        let options = parse_options(&mount.options);
        if options.is_mapped() {
            if let Err(error) = mount_mapped(mount, &options, rootfs, engine, scratch) {
                let _ = unmount(rootfs);
                return Err(error);
            }
            continue;
        }
        if let Err(e) = mount_one(mount, &options, rootfs) {
            let _ = unmount(rootfs);
            return Err(TaskError::io(
                format_args!(
                    "cannot mount the {} {} at {}",
                    mount.type_,
                    mount.source,
                    rootfs.display()
                ),
                &e,
            ));
        }
    }
    Ok(())
}

/// A root for a user namespace: its snapshot has the owners of the image.
fn mount_mapped(
    mount: &Mount,
    options: &Options,
    rootfs: &Path,
    engine: &dyn Engine,
    scratch: &Path,
) -> Result<(), TaskError> {
    let failed =
        |e: io::Error| TaskError::io(format_args!("cannot mount {}", rootfs.display()), &e);
    let bad = |map: &str| {
        TaskError::InvalidArgument(format!(
            "the root's option uidmap or gidmap is {map:?}, not CONTAINER:HOST:SIZE"
        ))
    };
    let root = MappedRoot {
        fs_type: mount.type_.clone(),
        is_bind: mount.type_ == "bind" || options.flags.contains(MountFlags::BIND),
        source: mount.source.clone(),
        options: options.data.clone(),
        uids: id_map(&options.uid_map).ok_or_else(|| bad(&options.uid_map))?,
        gids: id_map(&options.gid_map).ok_or_else(|| bad(&options.gid_map))?,
    };
    let tree = engine.mount_root(&root, scratch).map_err(from_engine)?;
    let target = rootfs.join(mount.target.trim_start_matches('/'));
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, c"", CWD, &target, flags).map_err(|e| failed(e.into()))?;
    remount(&target, options.flags).map_err(failed)
}

/// Mappings as containerd writes them: `CONTAINER:HOST:SIZE`, with commas between.
fn id_map(text: &str) -> Option<Vec<LinuxIdMapping>> {
    text.split(',')
        .map(|mapping| {
            let mut numbers = mapping.split(':').map(str::parse::<u32>);
            let mut next = || numbers.next()?.ok();
            let mapping = LinuxIdMappingBuilder::default()
                .container_id(next()?)
                .host_id(next()?)
                .size(next()?)
                .build()
                .ok()?;
            numbers.next().is_none().then_some(mapping)
        })
        .collect()
}

/// Gives a new bind its flags: the kernel ignores them when it makes one.
fn remount(target: &Path, flags: MountFlags) -> io::Result<()> {
    let flags = flags.difference(MountFlags::BIND | MountFlags::REC);
    if !flags.is_empty() {
        rustix::mount::mount_remount(target, MountFlags::BIND | flags, c"")?;
    }
    Ok(())
}

fn mount_one(mount: &Mount, options: &Options, rootfs: &Path) -> io::Result<()> {
    let target = rootfs.join(mount.target.trim_start_matches('/'));
    if mount.type_ == "bind" || options.flags.contains(MountFlags::BIND) {
        let kind = MountFlags::BIND | (options.flags & MountFlags::REC);
        rustix::mount::mount(&mount.source, &target, c"", kind, None)?;
        return remount(&target, options.flags);
    }
    let data = options.data.join(",");
    if data.len() > MOUNT_DATA_BYTES {
        return mount_with_long_options(mount, options, &target);
    }
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(&mount.source, &target, &mount.type_, options.flags, &*data)?;
    Ok(())
}

/// An overlay of many layers does not fit into mount(2)'s page: the new mount
/// API takes the layers one by one (Linux 6.5 or newer).
fn mount_with_long_options(mount: &Mount, options: &Options, target: &Path) -> io::Result<()> {
    let fs = rustix::mount::fsopen(&mount.type_, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), "source", &mount.source)?;
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    rustix::mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", layer)?;
                }
            }
            Some((key, value)) => rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)?,
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), option.as_str())?,
        }
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ] {
        attributes.set(attribute, options.flags.contains(flag));
    }
    let detached = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(
        detached.as_fd(),
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Unmounts everything at and below `rootfs`. Nothing mounted is fine.
///
/// # Errors
///
/// What the kernel said about the first mount that stays.
pub(super) fn unmount(rootfs: &Path) -> Result<(), TaskError> {
    let failed =
        |e: io::Error| TaskError::io(format_args!("cannot unmount {}", rootfs.display()), &e);
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    let Ok(rootfs) = rootfs.canonicalize() else {
        return Ok(());
    };
    for target in mounts_below(&text, &rootfs) {
        match rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Ok(())
}

/// Mount points at and below a path, deepest last mounted first.
fn mounts_below(mountinfo: &str, root: &Path) -> Vec<std::path::PathBuf> {
    mountinfo
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|p| std::path::PathBuf::from(cryo_engine::cgroup::unescape(p)))
        .filter(|p| p.starts_with(root))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|o| (*o).to_owned()).collect()
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let parsed = parse_options(&strings(&[
            "rw",
            "nosuid",
            "index=off",
            "ro",
            "lowerdir=/a:/b",
        ]));
        assert_eq!(parsed.flags, MountFlags::NOSUID | MountFlags::RDONLY);
        assert_eq!(parsed.data, ["index=off", "lowerdir=/a:/b"]);
        let parsed = parse_options(&strings(&["rbind", "ro", "rw"]));
        assert_eq!(parsed.flags, MountFlags::BIND | MountFlags::REC);
    }

    #[test]
    fn maps_are_read_and_nonsense_is_not() {
        let parsed = parse_options(&strings(&[
            "lowerdir=/a",
            "uidmap=0:1000:5,5:2000:1",
            "gidmap=0:7:1",
        ]));
        assert!(parsed.is_mapped());
        assert_eq!(parsed.data, ["lowerdir=/a"]);
        let map = id_map(&parsed.uid_map).unwrap();
        assert_eq!(map.len(), 2);
        assert_eq!(
            (map[1].container_id(), map[1].host_id(), map[1].size()),
            (5, 2000, 1)
        );
        for bad in ["", "0:1", "0:1:2:3", "0:1:x", "0:1:2,"] {
            assert!(id_map(bad).is_none(), "{bad:?}");
        }
        assert!(!parse_options(&strings(&["ro"])).is_mapped());
    }

    #[test]
    fn mounts_are_found_below_a_path_only() {
        let info = "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /b/rootfs rw - overlay o rw\n\
                    3 2 0:3 / /b/rootfs/proc rw - proc p rw\n4 1 0:4 / /b/rootfs2 rw - tmpfs t rw\n";
        assert_eq!(
            mounts_below(info, Path::new("/b/rootfs")),
            [Path::new("/b/rootfs/proc"), Path::new("/b/rootfs")]
        );
    }

    #[test]
    fn nothing_mounted_is_fine() {
        unmount(Path::new("/nonexistent/rootfs")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unmount(dir.path()).unwrap();
    }
}
