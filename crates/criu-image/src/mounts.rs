//! `mountpoints-ID.img`: the mounts of a namespace.

use crate::msg::MntEntry;
use crate::{At, Error, Kind, View};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u32,
    /// The mount it lies on.
    pub parent_id: u32,
    /// CRIU's number of the file system's type; [`Mount::fs_type`] is its name.
    pub fs_code: i32,
    /// The name of the type that CRIU recorded where the number does not tell.
    pub fs_name: Option<Vec<u8>>,
    /// Where it is mounted, as seen in the namespace.
    pub mountpoint: Vec<u8>,
    /// Which directory of the file system is mounted.
    pub root: Vec<u8>,
    /// What is mounted: a device or a word.
    pub source: Vec<u8>,
    /// Options of the file system.
    pub options: Vec<u8>,
    /// `MS_*` flags.
    pub flags: u32,
    /// The name under which whoever restores must supply the mount, if it is external.
    pub ext_key: Option<Vec<u8>>,
}

impl Mount {
    /// The file system's type as `mount(8)` names it, if we know CRIU's number or CRIU wrote it.
    pub fn fs_type(&self) -> Option<&[u8]> {
        let known: &[u8] = match self.fs_code {
            1 => b"proc",
            2 => b"sysfs",
            3 => b"devtmpfs",
            4 => b"binfmt_misc",
            5 => b"tmpfs",
            6 => b"devpts",
            7 => b"simfs",
            8 => b"pstore",
            9 => b"securityfs",
            10 => b"fusectl",
            11 => b"debugfs",
            12 => b"cgroup",
            13 => b"aufs",
            14 => b"mqueue",
            15 => b"fuse",
            17 => b"overlay",
            18 => b"autofs",
            19 => b"tracefs",
            23 => b"cgroup2",
            _ => return self.fs_name.as_deref(),
        };
        Some(known)
    }
}

impl View for Mount {
    type Wire = MntEntry;

    const KIND: Kind = Kind::Mountpoints;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: at.need(wire.mnt_id, "mnt_id")?,
            parent_id: at.need(wire.parent_mnt_id, "parent_mnt_id")?,
            fs_code: at.need(wire.fstype, "fstype")?,
            fs_name: wire.fsname,
            mountpoint: at.need(wire.mountpoint, "mountpoint")?,
            root: at.need(wire.root, "root")?,
            source: at.need(wire.source, "source")?,
            options: at.need(wire.options, "options")?,
            flags: at.need(wire.flags, "flags")?,
            ext_key: wire.ext_key,
        })
    }
}
