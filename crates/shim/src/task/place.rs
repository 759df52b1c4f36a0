//! What a restore shows CRIU of the node where the node's paths do not do: below a tmpfs on
//! `/tmp`, where CRIU makes folders of its own too, in a mount namespace of CRIU's.
//!
//! | what | why |
//! |---|---|
//! | the spec's binds, as mounts | they show other owners; or the container's root cannot reach them by their paths |
//! | the container's root | the rest is there |
//! | images and work directory | a CRIU [inside](Inside) of the container's user namespace can do as much as its root |
//!
//! A user namespace that the spec names by a path is one that CRIU has to be inside of: nobody
//! in a new one may enter the pod's other namespaces. There CRIU writes no host name and makes no
//! time namespace, so the images are not to ask for the one, and it is given the other.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use cryo_checkpoint::image_dir::{self, ImageDir};
use cryo_criu::request::Inside;
use cryo_criu::{MountPlan, Tree};
use cryo_engine::{ClockOffset, mountpoint, spec};
use cryo_sys::namespace::map_owners;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use rustix::time::{ClockId, clock_gettime};

use super::context::{Context, from_engine};
use super::criu::WorkDir;
use super::owners;
use crate::rpc::{TaskError, with_causes};

/// Where it is. CRIU cannot do without this folder, so it is there.
const AT: &str = "/tmp";

/// Everything that CRIU is shown.
#[derive(Debug)]
pub(super) struct Place {
    /// The tmpfs, and what is mounted in it.
    folder: OwnedFd,
    trees: Vec<Tree>,
    /// Where the spec's binds are, in the order of [`spec::binds`].
    pub(super) sources: Vec<PathBuf>,
    /// Where the container's root is.
    pub(super) root: PathBuf,
    /// For a CRIU inside of the container's user namespace.
    pub(super) inside: Option<Inside>,
    /// The same one's time namespace.
    pub(super) time_namespace: Option<OwnedFd>,
}

impl Place {
    /// Makes the mounts that this container needs, attached nowhere; `None` if it needs none.
    ///
    /// # Errors
    ///
    /// FailedPrecondition where the checkpoint, the spec or the node cannot be restored so.
    pub(super) fn new(
        context: &Context,
        images: &ImageDir,
        work: &WorkDir,
    ) -> Result<Option<Self>, TaskError> {
        let spec = &context.spec;
        let spec::Namespace::Path(path) = spec::namespace(spec, LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let failed = |e| TaskError::io("cannot make the mounts for CRIU", &e);
        let mut place = Self {
            folder: tmpfs().map_err(failed)?,
            trees: Vec::new(),
            sources: Vec::new(),
            root: PathBuf::new(),
            inside: None,
            time_namespace: None,
        };
        let root = copy_of(&context.record.rootfs(), true).map_err(failed)?;
        place.root = place.add("root", root, true).map_err(failed)?;
        let binds = context.shared.engine.binds(&context.target());
        for (i, tree) in binds.map_err(from_engine)?.into_iter().enumerate() {
            // CRIU takes the sharing of a mount from its source, where the mount has some.
            let at = place.add(&i.to_string(), tree, true).map_err(failed)?;
            place.sources.push(at);
        }
        if let Some(before) = images.id_maps().map_err(from_images)? {
            owners::carry_over(&context.record.rootfs(), &before, spec).map_err(|e| {
                TaskError::io(
                    "cannot give changed files of the root their owners back",
                    &e,
                )
            })?;
        }
        place.enter(context, &path, images, work)?;
        Ok(Some(place))
    }

    /// The mounts, to be made in this order.
    ///
    /// # Errors
    ///
    /// When the descriptors cannot be copied.
    pub(super) fn plan(&mut self) -> Result<MountPlan, TaskError> {
        let folder = self.folder.try_clone();
        let folder = Tree {
            tree: folder.map_err(|e| TaskError::io("cannot pass on a mount", &e))?,
            target: AT.into(),
            own_peers: false,
        };
        let mut trees = vec![folder];
        trees.append(&mut self.trees);
        Ok(MountPlan {
            trees,
            ..MountPlan::default()
        })
    }

    /// Mounts a tree under a name; answers its path.
    fn add(&mut self, name: &str, tree: OwnedFd, own_peers: bool) -> io::Result<PathBuf> {
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode).is_dir() {
            rustix::fs::mkdirat(&self.folder, name, Mode::from(0o755))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.folder, name, flags, Mode::from(0o644))?;
        }
        let target = Path::new(AT).join(name);
        self.trees.push(Tree {
            tree,
            target: target.clone(),
            own_peers,
        });
        Ok(target)
    }

    /// Prepares for a CRIU inside of a user namespace.
    fn enter(
        &mut self,
        context: &Context,
        path: &Path,
        images: &ImageDir,
        work: &WorkDir,
    ) -> Result<(), TaskError> {
        let root = root_of(&context.spec, path)?;
        let shown = |e| TaskError::io("cannot show CRIU its directories", &e);
        let inventory = inventory(&context.spec, path, images)?;
        let (user_namespace, _) = mountpoint::open_namespace(path).map_err(|e| {
            TaskError::io(
                format_args!("cannot open the namespace {}", path.display()),
                &e,
            )
        })?;

        let mapped = images_of(images.fd(), user_namespace.as_fd())?;
        let images_at = self.add("images", mapped, false).map_err(shown)?;
        let ours = work.path().join("inventory.img");
        fs::write(&ours, inventory)
            .and_then(|()| fs::set_permissions(&ours, fs::Permissions::from_mode(0o644)))
            .map_err(shown)?;
        // Over the file of the checkpoint, which stays as it is.
        self.trees.push(Tree {
            tree: copy_of(&ours, false).map_err(shown)?,
            target: images_at.join("inventory.img"),
            own_peers: false,
        });
        rustix::fs::chown(work.path(), Some(root.0), Some(root.1)).map_err(|e| shown(e.into()))?;
        let tree = copy_of(work.path(), false).map_err(shown)?;
        let work_dir = self.add("work", tree, false).map_err(shown)?;
        self.time_namespace = clocks(context, images)?;
        self.inside = Some(Inside {
            user_namespace,
            images: images_at,
            work_dir,
        });
        Ok(())
    }
}

/// Who the root of the user namespace is on the node.
fn root_of(spec: &Spec, path: &Path) -> Result<(Uid, Gid), TaskError> {
    let linux = spec.linux().as_ref();
    let has_root = |maps: Option<&Vec<oci_spec::runtime::LinuxIdMapping>>| {
        maps.into_iter()
            .flatten()
            .any(|m| m.container_id() == 0 && m.size() > 0)
    };
    if !has_root(linux.and_then(|l| l.uid_mappings().as_ref()))
        || !has_root(linux.and_then(|l| l.gid_mappings().as_ref()))
    {
        return Err(TaskError::FailedPrecondition(format!(
            "the user namespace {} is given without the mappings of its root, and CRIU has to be it: give linux.uidMappings and linux.gidMappings",
            path.display()
        )));
    }
    let (uid, gid) = spec::outside(spec, (0, 0));
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// What the images say of themselves to a CRIU inside.
fn inventory(spec: &Spec, path: &Path, images: &ImageDir) -> Result<Vec<u8>, TaskError> {
    let cannot = |why: &str| {
        Err(TaskError::FailedPrecondition(format!(
            "cannot restore into the user namespace {}: {why}",
            path.display()
        )))
    };
    if images.has_parents() {
        return cannot(
            "part of the checkpoint's memory is in another directory, which CRIU cannot reach from there; make a checkpoint without a parent",
        );
    }
    let uts = match spec::namespace(spec, LinuxNamespaceType::Uts) {
        spec::Namespace::New => {
            return cannot(
                "the container is to have a UTS namespace of its own, and CRIU may not set its host name from there; give it the pod's by its path",
            );
        }
        spec::Namespace::Path(_) => true,
        spec::Namespace::Host => false,
    };
    let inside = images.inventory_inside(uts).map_err(from_images)?;
    match inside {
        Some(inventory) => Ok(inventory),
        None => cannot(
            "the checkpoint is of a container without a user namespace; restore it into a pod without one",
        ),
    }
}

/// The image directory with the owners that the user namespace gives it: its root owns what the
/// node's root does.
fn images_of(directory: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<OwnedFd, TaskError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(directory, c"", flags)
        .map_err(|e| TaskError::io("cannot copy the mount of the checkpoint", &e.into()))?;
    map_owners(tree.as_fd(), users, false).map_err(|e| {
        TaskError::FailedPrecondition(format!(
            "cannot show the checkpoint to the root of the container's user namespace ({e}): its file system or this kernel knows no idmapped mounts; put it on another one, as ext4 or xfs"
        ))
    })?;
    Ok(tree)
}

fn from_images(error: image_dir::Error) -> TaskError {
    TaskError::FailedPrecondition(format!("{}: {}", with_causes(&error), error.hint()))
}

/// A time namespace in which the clocks go on from where they were.
fn clocks(context: &Context, images: &ImageDir) -> Result<Option<OwnedFd>, TaskError> {
    let clocks = images.clocks().map_err(from_images)?;
    let Some(clocks) = clocks.filter(|_| Path::new("/proc/self/ns/time").exists()) else {
        return Ok(None);
    };
    let offset = |clock, wanted| {
        let now = clock_gettime(clock);
        ClockOffset::between((now.tv_sec, now.tv_nsec), wanted)
    };
    let made = context.shared.engine.time_namespace(
        offset(ClockId::Monotonic, clocks.monotonic),
        offset(ClockId::Boottime, clocks.boottime),
    );
    made.map(Some).map_err(from_engine)
}

/// A detached tmpfs that everybody may write to, as to `/tmp`.
fn tmpfs() -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), "source", "cryo")?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), "mode", "1777")?;
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn copy_of(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}
