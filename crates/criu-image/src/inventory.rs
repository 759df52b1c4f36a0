//! `inventory.img`: what the rest of the directory is.

use prost::Message as _;

use crate::msg::{
    InventoryEntry, TaskKobjIdsEntry, TimensEntry, Timespec, UidGidExtent, UsernsEntry,
};
use crate::{At, Error, Kind, View};

/// The only version of the image format in use: CRIU has written it since 2014.
pub const IMAGE_VERSION: u32 = 2;

/// The images are of a version of the format that is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint has images of version {found}, only {IMAGE_VERSION} is known")]
pub struct UnknownVersion {
    /// The version.
    pub found: u32,
}

/// The head of an image directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Version of the image format; see [`IMAGE_VERSION`].
    pub image_version: u32,
    /// Whether `fdinfo-*.img` are numbered by [`TaskIds::files`]; by pid otherwise (before 2014).
    pub fdinfo_per_id: bool,
    /// Whether namespace images are numbered by the namespace's id; by pid otherwise.
    pub ns_per_id: bool,
    /// The namespaces in which *CRIU* ran. A task with the same id here and there is restored
    /// into the namespace of whoever restores it.
    pub root_ids: Option<TaskIds>,
    /// The cgroup set, in `cgroup.img`, in which CRIU ran.
    pub root_cg_set: Option<u32>,
    /// The security module whose labels the images carry.
    pub lsm: Lsm,
    /// Uptime of the machine at the dump.
    pub dump_uptime_us: Option<u64>,
    /// Whether TCP connections were closed rather than captured.
    pub tcp_close: bool,
    /// CRIU's number of the method by which the network was locked.
    pub network_lock_method: Option<u32>,
    /// Plugins that took part; `None` in images of CRIU before 4.0, which did not record it.
    pub plugins: Option<Vec<Vec<u8>>>,
}

impl Inventory {
    /// Whether the other images can be understood. Of another version of the format nothing is
    /// known, not even that a message which decodes means the same.
    ///
    /// # Errors
    ///
    /// [`UnknownVersion`].
    pub fn check_version(&self) -> Result<(), UnknownVersion> {
        match self.image_version {
            IMAGE_VERSION => Ok(()),
            found => Err(UnknownVersion { found }),
        }
    }
}

impl View for Inventory {
    type Wire = InventoryEntry;

    const KIND: Kind = Kind::Inventory;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            image_version: at.need(wire.img_version, "img_version")?,
            fdinfo_per_id: wire.fdinfo_per_id.unwrap_or_default(),
            ns_per_id: wire.ns_per_id.unwrap_or_default(),
            root_ids: wire
                .root_ids
                .map(|ids| TaskIds::from_wire(ids, at))
                .transpose()?,
            root_cg_set: wire.root_cg_set,
            lsm: Lsm::from_wire(wire.lsmtype.unwrap_or_default()),
            dump_uptime_us: wire.dump_uptime,
            tcp_close: wire.tcp_close.unwrap_or_default(),
            network_lock_method: wire.network_lock_method,
            plugins: wire.plugins_entry.map(|entry| entry.plugins),
        })
    }
}

/// An inventory as it was, but that CRIU takes these for the namespaces in which it ran.
///
/// Of a message that is there twice the second one's fields count, so nothing else is touched,
/// and nothing lost that only a newer CRIU knows.
#[must_use]
pub fn with_root_ids(entry: &[u8], ids: &TaskIds) -> Vec<u8> {
    let more = InventoryEntry {
        root_ids: Some(ids.to_wire()),
        ..InventoryEntry::default()
    };
    let mut bytes = entry.to_vec();
    bytes.extend(more.encode_to_vec());
    bytes
}

/// An inventory as it was, but that CRIU takes this for the cgroup set in which it ran.
#[must_use]
pub fn with_root_cg_set(entry: &[u8], set: u32) -> Vec<u8> {
    let more = InventoryEntry {
        root_cg_set: Some(set),
        ..InventoryEntry::default()
    };
    let mut bytes = entry.to_vec();
    bytes.extend(more.encode_to_vec());
    bytes
}

/// What the clocks of a time namespace showed at the dump, as seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The monotonic one.
    pub monotonic: (i64, i64),
    /// The one of the boot time.
    pub boottime: (i64, i64),
}

impl View for Clocks {
    type Wire = TimensEntry;

    const KIND: Kind = Kind::Timens;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let moment = |clock: Option<Timespec>, name| {
            let clock = at.need(clock, name)?;
            let number = |n: Option<u64>| {
                let n = at.need(n, name)?;
                // More seconds than any clock has: the kernel refuses them.
                Ok::<_, Error>(i64::try_from(n).unwrap_or(i64::MAX))
            };
            Ok::<_, Error>((number(clock.tv_sec)?, number(clock.tv_nsec)?))
        };
        Ok(Self {
            monotonic: moment(wire.monotonic, "monotonic")?,
            boottime: moment(wire.boottime, "boottime")?,
        })
    }
}

/// Who the users and groups of a user namespace are outside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

/// A run of ids of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one inside.
    pub inside: u32,
    /// What that is outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl View for IdMaps {
    type Wire = UsernsEntry;

    const KIND: Kind = Kind::Userns;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let ranges = |map: Vec<UidGidExtent>| {
            map.into_iter()
                .map(|e| {
                    Ok(IdRange {
                        inside: at.need(e.first, "first")?,
                        outside: at.need(e.lower_first, "lower_first")?,
                        count: at.need(e.count, "count")?,
                    })
                })
                .collect::<Result<_, Error>>()
        };
        Ok(Self {
            uids: ranges(wire.uid_map)?,
            gids: ranges(wire.gid_map)?,
        })
    }
}

/// A Linux security module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lsm {
    /// None that CRIU knows.
    None,
    /// SELinux.
    Selinux,
    /// AppArmor.
    Apparmor,
    /// A value of a newer CRIU.
    Unknown(i32),
}

impl Lsm {
    fn from_wire(value: i32) -> Self {
        match value {
            0 => Self::None,
            1 => Self::Selinux,
            2 => Self::Apparmor,
            other => Self::Unknown(other),
        }
    }
}

/// Which kernel objects a task shares with others: equal numbers in one image directory mean
/// the same object. Also the one message of `ids-PID.img`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskIds {
    /// Address space.
    pub vm: u32,
    /// Descriptor table; the number of its `fdinfo-*.img`.
    pub files: u32,
    /// Root, working directory and umask.
    pub fs: u32,
    /// Signal handlers.
    pub sighand: u32,
    /// Pid namespace.
    pub pid_ns: Option<u32>,
    /// Network namespace.
    pub net_ns: Option<u32>,
    /// IPC namespace.
    pub ipc_ns: Option<u32>,
    /// UTS namespace.
    pub uts_ns: Option<u32>,
    /// Mount namespace.
    pub mnt_ns: Option<u32>,
    /// User namespace.
    pub user_ns: Option<u32>,
    /// Cgroup namespace.
    pub cgroup_ns: Option<u32>,
    /// Time namespace.
    pub time_ns: Option<u32>,
}

impl TaskIds {
    fn to_wire(self) -> TaskKobjIdsEntry {
        TaskKobjIdsEntry {
            vm_id: Some(self.vm),
            files_id: Some(self.files),
            fs_id: Some(self.fs),
            sighand_id: Some(self.sighand),
            pid_ns_id: self.pid_ns,
            net_ns_id: self.net_ns,
            ipc_ns_id: self.ipc_ns,
            uts_ns_id: self.uts_ns,
            mnt_ns_id: self.mnt_ns,
            user_ns_id: self.user_ns,
            cgroup_ns_id: self.cgroup_ns,
            time_ns_id: self.time_ns,
        }
    }
}

impl View for TaskIds {
    type Wire = TaskKobjIdsEntry;

    const KIND: Kind = Kind::Ids;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            vm: at.need(wire.vm_id, "vm_id")?,
            files: at.need(wire.files_id, "files_id")?,
            fs: at.need(wire.fs_id, "fs_id")?,
            sighand: at.need(wire.sighand_id, "sighand_id")?,
            pid_ns: wire.pid_ns_id,
            net_ns: wire.net_ns_id,
            ipc_ns: wire.ipc_ns_id,
            uts_ns: wire.uts_ns_id,
            mnt_ns: wire.mnt_ns_id,
            user_ns: wire.user_ns_id,
            cgroup_ns: wire.cgroup_ns_id,
            time_ns: wire.time_ns_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_namespaces_leave_the_rest_as_it_is() {
        let ids = |user| TaskIds {
            vm: 1,
            files: 2,
            fs: 3,
            sighand: 4,
            pid_ns: Some(5),
            net_ns: Some(6),
            ipc_ns: None,
            uts_ns: Some(8),
            mnt_ns: Some(9),
            user_ns: Some(user),
            cgroup_ns: Some(11),
            time_ns: Some(12),
        };
        let before = InventoryEntry {
            img_version: Some(IMAGE_VERSION),
            root_ids: Some(ids(1).to_wire()),
            dump_uptime: Some(77),
            ..InventoryEntry::default()
        };
        let mut bytes = before.encode_to_vec();
        // Field 31, a number: of no CRIU yet.
        bytes.extend([0xf8, 0x01, 0x05]);
        let after = with_root_ids(&bytes, &ids(14));
        assert!(after.starts_with(&bytes));
        let wanted = InventoryEntry {
            root_ids: Some(ids(14).to_wire()),
            ..before
        };
        assert_eq!(InventoryEntry::decode(after.as_slice()).unwrap(), wanted);
    }
}
