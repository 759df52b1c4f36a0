//! Mounts that libcontainer cannot make: those that show other owners (idmapped
//! mounts), `tmpcopyup`, and binds of what the root of a user namespace cannot
//! reach by its path, as the kubelet's volumes are.
//!
//! They are made where only this worker sees them ([`crate::private`]), and
//! libcontainer is given binds of them.
//!
//! Hooks of the runtime's namespaces run in the worker's, whose mounts are peers
//! of the host's: what a hook mounts is on the host where the host's mounts are
//! shared, as systemd makes them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use cryo_sys::namespace;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::mount::FsOpenFlags;

use crate::copy::copy_dir;
use crate::private::{Private, copy_of, mount_of};
use crate::spec::Namespace;
use crate::{mountpoint, spec, userns};

/// A mount that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot make a place for private mounts")]
    Place(#[source] io::Error),
    #[error("cannot find {what} of the mount {destination}")]
    Find {
        what: &'static str,
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot idmap the mount {destination}: this kernel or the file system of {from} cannot, or it is idmapped already; use a volume on another file system"
    )]
    Map {
        destination: PathBuf,
        from: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the tmpfs {destination}")]
    Tmpfs {
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot copy the content of {destination} into its tmpfs")]
    Copy {
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes what libcontainer cannot, and replaces it in the spec by binds of it.
/// They are mounted in `dir`.
///
/// # Errors
///
/// [`Error`]. What was made ends with this process.
pub(crate) fn adapt(spec: &mut Spec, dir: &Path) -> Result<(), Error> {
    let own_users = spec::namespace(spec, LinuxNamespaceType::User) != Namespace::Host;
    let mut made = Vec::new();
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let Some(kind) = kind(mount, own_users) else {
            continue;
        };
        let tree = match kind {
            Kind::Mapped { recursive } => mapped_tree(mount, recursive, spec)?,
            Kind::CopyUp => filled_tmpfs(mount, spec)?,
            Kind::Bound => source_tree(mount)?,
        };
        made.push((i, kind, tree));
    }
    if made.is_empty() {
        return Ok(());
    }
    // Only now: what was opened before are peers of the host's mounts.
    let private = Private::enter(dir).map_err(Error::Place)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (i, kind, tree) in made {
        let at = private.attach(i, tree.as_fd()).map_err(Error::Place)?;
        if let Some(mount) = mounts.get_mut(i) {
            replace(mount, at, kind);
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Detached mounts of all that the spec binds, in the order of [`spec::binds`].
///
/// # Errors
///
/// [`Error`].
pub(crate) fn trees(spec: &Spec) -> Result<Vec<OwnedFd>, Error> {
    let mounts = spec.mounts().iter().flatten();
    let binds = mounts.filter(|m| spec::is_bind(m) && m.source().is_some());
    binds
        .map(|mount| match kind(mount, true) {
            Some(Kind::Mapped { recursive }) => mapped_tree(mount, recursive, spec),
            _ => source_tree(mount),
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Shows other owners; with all that is mounted below it, or alone.
    Mapped { recursive: bool },
    /// A tmpfs with the content of what it hides.
    CopyUp,
    /// Shows what it is of, which the container's root may not reach by its path.
    Bound,
}

fn kind(mount: &Mount, own_users: bool) -> Option<Kind> {
    let has = |name: &str| mount.options().iter().flatten().any(|o| o == name);
    if spec::idmapped(mount) {
        let recursive = has("ridmap");
        return Some(Kind::Mapped { recursive });
    }
    if mount.typ().as_deref() == Some("tmpfs") && has("tmpcopyup") {
        return Some(Kind::CopyUp);
    }
    (own_users && spec::is_bind(mount)).then_some(Kind::Bound)
}

/// The mount as a bind of what was made.
fn replace(mount: &mut Mount, at: PathBuf, kind: Kind) {
    let mut options = mount.options().clone().unwrap_or_default();
    options
        .retain(|o| !matches!(o.as_str(), "idmap" | "ridmap" | "tmpcopyup") && !is_tmpfs_data(o));
    if kind == Kind::CopyUp {
        options.push("bind".to_owned());
    }
    mount
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(at))
        .set_options(Some(options))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
}

fn source_tree(mount: &Mount) -> Result<OwnedFd, Error> {
    let recursive = mount.options().iter().flatten().any(|o| o == "rbind");
    let from = mount.source().clone().unwrap_or_default();
    copy_of(&from, recursive).map_err(|source| Error::Find {
        what: "the source",
        destination: mount.destination().clone(),
        source,
    })
}

fn mapped_tree(mount: &Mount, recursive: bool, spec: &Spec) -> Result<OwnedFd, Error> {
    let from = mount.source().clone().unwrap_or_default();
    let namespace = match (mount.uid_mappings(), mount.gid_mappings()) {
        (Some(uids), Some(gids)) => userns::make(uids, gids),
        // Those of the container, by the namespace that it joins or gets.
        _ => match spec::namespace(spec, LinuxNamespaceType::User) {
            Namespace::Path(path) => File::open(path).map(Into::into),
            _ => Err(io::ErrorKind::NotFound.into()),
        },
    }
    .map_err(|source| Error::Find {
        what: "the owners",
        destination: mount.destination().clone(),
        source,
    })?;
    let tree = source_tree(mount)?;
    namespace::map_owners(tree.as_fd(), namespace.as_fd(), recursive).map_err(|source| {
        Error::Map {
            destination: mount.destination().clone(),
            from,
            source,
        }
    })?;
    Ok(tree)
}

/// Options that a tmpfs takes when it is made; all others are of the mount.
fn is_tmpfs_data(option: &str) -> bool {
    option.contains('=') || matches!(option, "inode32" | "inode64" | "noswap")
}

fn filled_tmpfs(mount: &Mount, spec: &Spec) -> Result<OwnedFd, Error> {
    let destination = mount.destination();
    let root = spec.root().as_ref().map(|r| r.path().clone());
    let below = root
        .map(|root| mountpoint::open_dir(&root, destination))
        .transpose()
        .map_err(|source| Error::Find {
            what: "the content",
            destination: destination.clone(),
            source,
        })?
        .flatten();
    let tree = tmpfs(mount, below.as_ref(), spec).map_err(|source| Error::Tmpfs {
        destination: destination.clone(),
        source,
    })?;
    if let Some(below) = below {
        copy_dir(below.as_fd(), tree.as_fd()).map_err(|source| Error::Copy {
            destination: destination.clone(),
            source,
        })?;
    }
    Ok(tree)
}

/// A detached tmpfs with the spec's options. What they do not say: the mode is
/// that of the folder it hides, the owner the container's root.
fn tmpfs(mount: &Mount, below: Option<&OwnedFd>, spec: &Spec) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), "source", "tmpfs")?;
    let mut owner = (0, 0);
    if let Some(below) = below {
        let mode = rustix::fs::fstat(below)?.st_mode & 0o7777;
        rustix::mount::fsconfig_set_string(fs.as_fd(), "mode", format!("{mode:o}"))?;
    }
    for option in mount
        .options()
        .iter()
        .flatten()
        .filter(|o| is_tmpfs_data(o))
    {
        let number = |text: &str| text.parse::<u32>().map_err(io::Error::other);
        match option.split_once('=') {
            // They are meant as the container counts.
            Some(("uid", id)) => owner.0 = number(id)?,
            Some(("gid", id)) => owner.1 = number(id)?,
            Some((key, value)) => rustix::mount::fsconfig_set_string(fs.as_fd(), key, value)?,
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), option.as_str())?,
        }
    }
    let tree = mount_of(fs.as_fd())?;
    let root = File::from(rustix::fs::openat(
        &tree,
        c".",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?);
    let (uid, gid) = spec::outside(spec, owner);
    rustix::fs::fchown(&root, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(rest: &str) -> Mount {
        serde_json::from_str(&format!(r#"{{"destination":"/m","source":"/x",{rest}}}"#)).unwrap()
    }

    #[test]
    fn what_libcontainer_cannot_make_is_known() {
        for (rest, wanted) in [
            (r#""type":"bind","options":["rbind","ro"]"#, None),
            (
                r#""type":"bind","options":["idmap"]"#,
                Some(Kind::Mapped { recursive: false }),
            ),
            (
                r#""type":"bind","options":["ridmap"]"#,
                Some(Kind::Mapped { recursive: true }),
            ),
            (
                r#""type":"bind","uidMappings":[{"containerID":0,"hostID":1,"size":1}],
                   "gidMappings":[{"containerID":0,"hostID":1,"size":1}]"#,
                Some(Kind::Mapped { recursive: false }),
            ),
            (
                r#""type":"tmpfs","options":["nosuid","tmpcopyup"]"#,
                Some(Kind::CopyUp),
            ),
            (r#""type":"tmpfs","options":["nosuid"]"#, None),
        ] {
            assert_eq!(kind(&mount(rest), false), wanted, "{rest}");
            let bind = spec::is_bind(&mount(rest)).then_some(Kind::Bound);
            assert_eq!(kind(&mount(rest), true), wanted.or(bind), "{rest}");
        }
    }

    #[test]
    fn a_bind_takes_the_place_of_what_was_wanted() {
        let mut copy = mount(r#""type":"tmpfs","options":["nosuid","tmpcopyup","size=1m","ro"]"#);
        replace(&mut copy, "/p/0".into(), Kind::CopyUp);
        assert_eq!(copy.typ().as_deref(), Some("bind"));
        assert_eq!(copy.source().as_deref(), Some(Path::new("/p/0")));
        assert_eq!(copy.options().clone().unwrap(), ["nosuid", "ro", "bind"]);
        let mut mapped = mount(r#""type":"bind","options":["rbind","ridmap","ro"]"#);
        replace(&mut mapped, "/p/1".into(), Kind::Mapped { recursive: true });
        assert_eq!(mapped.options().clone().unwrap(), ["rbind", "ro"]);
    }
}
