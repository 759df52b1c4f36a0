//! `inventory.img`: what the rest of the directory is.

use crate::msg::{InventoryEntry, TaskKobjIdsEntry};
use crate::{At, Error, Kind, View};

/// The only version of the image format in use: CRIU has written it since 2014.
pub const IMAGE_VERSION: u32 = 2;

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
