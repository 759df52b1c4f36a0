//! The container's root file system: the mounts containerd asks for.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use containerd_shim_protos::api::Mount;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use crate::rpc::TaskError;

/// What mount(2) takes as data: one page with its ending zero.
const MOUNT_DATA_BYTES: usize = 4095;

/// A mount's options, sorted.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    /// Options of the file system itself.
    data: Vec<String>,
}

fn parse_options(options: &[String]) -> Options {
    let mut parsed = Options {
        flags: MountFlags::empty(),
        data: Vec::new(),
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
                parsed.data.push(other.to_owned());
                continue;
            }
        };
        parsed.flags.set(flag, set);
    }
    parsed
}

/// Mounts all of them at `rootfs`, in order. A failure takes back what was done.
///
/// # Errors
///
/// Names the mount and what the kernel said.
pub(super) fn mount(mounts: &[Mount], rootfs: &Path) -> Result<(), TaskError> {
    std::fs::create_dir_all(rootfs)
        .map_err(|e| TaskError::io(format_args!("cannot make {}", rootfs.display()), &e))?;
    for mount in mounts {
        if let Err(e) = mount_one(mount, rootfs) {
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

fn mount_one(mount: &Mount, rootfs: &Path) -> io::Result<()> {
    let target = rootfs.join(mount.target.trim_start_matches('/'));
    let options = parse_options(&mount.options);
    if mount.type_ == "bind" || options.flags.contains(MountFlags::BIND) {
        let kind = MountFlags::BIND | (options.flags & MountFlags::REC);
        rustix::mount::mount(&mount.source, &target, c"", kind, None)?;
        let rest = options.flags.difference(MountFlags::BIND | MountFlags::REC);
        if !rest.is_empty() {
            // The kernel ignores all other flags when it makes a bind.
            rustix::mount::mount_remount(&target, MountFlags::BIND | rest, c"")?;
        }
        return Ok(());
    }
    let data = options.data.join(",");
    if data.len() > MOUNT_DATA_BYTES {
        return mount_with_long_options(mount, &options, &target);
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
