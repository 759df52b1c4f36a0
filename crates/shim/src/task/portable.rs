//! What another runtime needs of a checkpoint that ours does without.
//!
//! CRIU is told to leave cgroups alone, at the dump and at the restore: the shim places tasks
//! itself. runc has CRIU place them, by its *soft* mode, and the images name no folder that CRIU
//! could make, only the old container's cgroups. In them it would look for these, which are gone;
//! or find them, where the old container still runs. So the images are made to say what is so where
//! runc restores: CRIU runs in the container's cgroups already, and the tasks are to stay.
//!
//! A container with a cgroup namespace is left as it is: what is where CRIU is has CRIU's
//! namespace too.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cryo_criu_image::inventory::{Inventory, TaskIds, with_root_cg_set};
use cryo_criu_image::pstree::ProcessTree;
use cryo_criu_image::task::Core;
use cryo_criu_image::{Error, Kind, RawReader, Reader, View, Writer};

/// Has whoever restores leave the tasks in the cgroups that CRIU runs in.
///
/// # Errors
///
/// When the images cannot be read or written. They are then as they were.
pub(super) fn inherit_cgroups(images: &Path) -> io::Result<()> {
    let name = Kind::Inventory.file_name(0);
    let Some(inventory) = changed(images).map_err(io::Error::other)? else {
        return Ok(());
    };
    let new = images.join(format!("{name}.new"));
    let written = fs::write(&new, inventory)
        .and_then(|()| fs::set_permissions(&new, fs::metadata(images.join(&name))?.permissions()))
        .and_then(|()| fs::rename(&new, images.join(&name)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn changed(images: &Path) -> Result<Option<Vec<u8>>, Error> {
    let name = Kind::Pstree.file_name(0);
    let tree = ProcessTree::read(&name, open(images, &name)?)?;
    let root = tree.root_pid().into();
    let core: Core = one(images, Kind::Core, root)?;
    let inventory: Inventory = one(images, Kind::Inventory, 0)?;
    let ids: Option<TaskIds> = match core.ids {
        Some(ids) => Some(ids),
        None => Some(one(images, Kind::Ids, root)?),
    };
    let own_namespace = match (ids, inventory.root_ids) {
        (Some(ids), Some(node)) => ids.cgroup_ns != node.cgroup_ns,
        _ => true,
    };
    let Some(set) = core.cgroup_set.filter(|set| !own_namespace && *set != 0) else {
        return Ok(None);
    };
    let name = Kind::Inventory.file_name(0);
    let mut reader = RawReader::new(&*name, Kind::Inventory, open(images, &name)?)?;
    let mut writer = Writer::new(Kind::Inventory, Vec::new())?;
    while let Some(entry) = reader.next_entry()? {
        writer.entry(&with_root_cg_set(entry.bytes, set))?;
    }
    Ok(Some(writer.into_inner()))
}

fn one<V: View>(images: &Path, kind: Kind, number: u64) -> Result<V, Error> {
    let name = kind.file_name(number);
    let file = open(images, &name)?;
    Reader::<V, _>::new(name, file)?.single()
}

fn open(images: &Path, name: &str) -> Result<File, Error> {
    File::open(images.join(name)).map_err(|source| Error::Io {
        file: name.to_owned(),
        offset: 0,
        source,
    })
}
