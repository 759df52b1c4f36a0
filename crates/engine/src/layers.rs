//! A root file system for a user namespace: containerd's snapshots keep the
//! owners of the image, and the mount's options `uidmap` and `gidmap` say how
//! the container is to see them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use cryo_sys::namespace;
use rustix::mount::FsOpenFlags;

use crate::private::{Private, copy_of, mount_of};
use crate::protocol::MappedRoot;
use crate::userns;

/// What a string of `fsconfig` may hold.
const STRING_BYTES: usize = 255;

/// Makes the root as a detached mount. Its layers are mounted in `dir`, where
/// nobody else sees them.
pub(crate) fn mount(root: &MappedRoot, dir: &Path) -> io::Result<OwnedFd> {
    let owners = userns::make(&root.uids, &root.gids)?;
    let mapped = |path: &Path, recursive| -> io::Result<OwnedFd> {
        let tree = copy_of(path, recursive)?;
        namespace::map_owners(tree.as_fd(), owners.as_fd(), recursive)?;
        Ok(tree)
    };
    if root.is_bind {
        return mapped(Path::new(&root.source), false);
    }
    let private = Private::enter(dir)?;
    let fs = rustix::mount::fsopen(&root.fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value);
    set("source", &root.source)?;
    for option in &root.options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                let mut names = Vec::new();
                for (n, layer) in layers.split(':').enumerate() {
                    private.attach(n, mapped(Path::new(layer), false)?.as_fd())?;
                    names.push(n.to_string());
                }
                // Short names, for a kernel that wants all of them in one string.
                rustix::process::chdir(dir)?;
                let all = names.join(":");
                if all.len() <= STRING_BYTES {
                    set("lowerdir", &all)?;
                } else {
                    for name in &names {
                        set("lowerdir+", &dir.join(name).to_string_lossy())?;
                    }
                }
            }
            Some((key, value)) => set(key, value)?,
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), option.as_str())?,
        }
    }
    mount_of(fs.as_fd())
}
