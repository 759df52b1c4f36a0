//! The messages, field by field.
//!
//! Numbers and types are those of CRIU; only fields that something here reads are listed.
//! Encoding one of these therefore loses whatever else a decoded message had: they are for
//! making images in tests and for reading, not yet for rewriting images of CRIU.
//!
//! Every field is optional even where CRIU requires it, so that a view can tell absent from
//! zero. Names and paths are `bytes` on our side, which is the same on the wire: the kernel
//! promises no encoding for them. Enumerations are plain integers, since a newer CRIU may know
//! more values than we do.
#![allow(missing_docs)]

mod memory;
mod objects;

use prost::Message;

pub use memory::*;
pub use objects::*;

/// `inventory.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InventoryEntry {
    #[prost(uint32, optional, tag = "1")]
    pub img_version: Option<u32>,
    #[prost(bool, optional, tag = "2")]
    pub fdinfo_per_id: Option<bool>,
    #[prost(message, optional, tag = "3")]
    pub root_ids: Option<TaskKobjIdsEntry>,
    #[prost(bool, optional, tag = "4")]
    pub ns_per_id: Option<bool>,
    #[prost(uint32, optional, tag = "5")]
    pub root_cg_set: Option<u32>,
    #[prost(int32, optional, tag = "6")]
    pub lsmtype: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    pub dump_uptime: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    pub pre_dump_mode: Option<u32>,
    #[prost(bool, optional, tag = "10")]
    pub tcp_close: Option<bool>,
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
    #[prost(message, optional, tag = "12")]
    pub plugins_entry: Option<PluginsEntry>,
    #[prost(bytes = "vec", optional, tag = "13")]
    pub dump_criu_run_id: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "14")]
    pub allow_uprobes: Option<bool>,
}

/// The plugins that took part in a dump.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PluginsEntry {
    #[prost(bytes = "vec", repeated, tag = "12")]
    pub plugins: Vec<Vec<u8>>,
}

/// `ids-PID.img`, and part of others: which kernel objects a task shares with whom.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskKobjIdsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub vm_id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub files_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub fs_id: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub sighand_id: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub pid_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub net_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub ipc_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub uts_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub mnt_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub user_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    pub cgroup_ns_id: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    pub time_ns_id: Option<u32>,
}

/// `userns-NS.img`: who the users of a user namespace are.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UsernsEntry {
    #[prost(message, repeated, tag = "1")]
    pub uid_map: Vec<UidGidExtent>,
    #[prost(message, repeated, tag = "2")]
    pub gid_map: Vec<UidGidExtent>,
}

/// A run of ids.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UidGidExtent {
    #[prost(uint32, optional, tag = "1")]
    pub first: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub lower_first: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub count: Option<u32>,
}

/// `timens-NS.img`: what the clocks showed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TimensEntry {
    #[prost(message, optional, tag = "1")]
    pub monotonic: Option<Timespec>,
    #[prost(message, optional, tag = "2")]
    pub boottime: Option<Timespec>,
}

/// A moment of a clock.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Timespec {
    #[prost(uint64, optional, tag = "1")]
    pub tv_sec: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub tv_nsec: Option<u64>,
}

/// `stats-dump` and `stats-restore`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatsEntry {
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStatsEntry>,
    #[prost(message, optional, tag = "2")]
    pub restore: Option<RestoreStatsEntry>,
}

/// What a dump took. Times are in microseconds.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DumpStatsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub freezing_time: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub frozen_time: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub memdump_time: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub memwrite_time: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub pages_scanned: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub pages_skipped_parent: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub pages_written: Option<u64>,
    #[prost(uint32, optional, tag = "8")]
    pub irmap_resolve: Option<u32>,
    #[prost(uint64, optional, tag = "9")]
    pub pages_lazy: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    pub page_pipes: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub page_pipe_bufs: Option<u64>,
    #[prost(uint64, optional, tag = "12")]
    pub shpages_scanned: Option<u64>,
    #[prost(uint64, optional, tag = "13")]
    pub shpages_skipped_parent: Option<u64>,
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// What a restore took. Times are in microseconds.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RestoreStatsEntry {
    #[prost(uint64, optional, tag = "1")]
    pub pages_compared: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub pages_skipped_cow: Option<u64>,
    #[prost(uint32, optional, tag = "3")]
    pub forking_time: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub restore_time: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub pages_restored: Option<u64>,
}

/// `pstree.img`: one per process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PstreeEntry {
    #[prost(uint32, optional, tag = "1")]
    pub pid: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub ppid: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub pgid: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub sid: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `core-PID.img`, without registers, credentials and timers.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CoreEntry {
    #[prost(int32, optional, tag = "1")]
    pub mtype: Option<i32>,
    #[prost(message, optional, tag = "3")]
    pub tc: Option<TaskCoreEntry>,
    #[prost(message, optional, tag = "4")]
    pub ids: Option<TaskKobjIdsEntry>,
    #[prost(message, optional, tag = "5")]
    pub thread_core: Option<ThreadCoreEntry>,
}

/// What belongs to a process as a whole.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskCoreEntry {
    #[prost(uint32, optional, tag = "1")]
    pub task_state: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub exit_code: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub personality: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub blk_sigset: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub comm: Option<Vec<u8>>,
    #[prost(int32, optional, tag = "11")]
    pub old_seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    pub old_seccomp_filter: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub loginuid: Option<u32>,
    #[prost(int32, optional, tag = "14")]
    pub oom_score_adj: Option<i32>,
    #[prost(bool, optional, tag = "18")]
    pub child_subreaper: Option<bool>,
    #[prost(uint32, optional, tag = "21")]
    pub stop_signo: Option<u32>,
}

/// What belongs to each thread.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ThreadCoreEntry {
    #[prost(int32, optional, tag = "11")]
    pub seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    pub seccomp_filter: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "13")]
    pub comm: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "16")]
    pub cg_set: Option<u32>,
}

/// `fdinfo-ID.img`: one per descriptor of a descriptor table.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FdinfoEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub flags: Option<u32>,
    #[prost(int32, optional, tag = "3")]
    pub r#type: Option<i32>,
    #[prost(uint32, optional, tag = "4")]
    pub fd: Option<u32>,
}

/// `files.img`: one per open file, whatever it is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileEntry {
    #[prost(int32, optional, tag = "1")]
    pub r#type: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub id: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub reg: Option<RegFileEntry>,
    #[prost(message, optional, tag = "4")]
    pub isk: Option<InetSkEntry>,
    #[prost(message, optional, tag = "6")]
    pub psk: Option<PacketSkEntry>,
    #[prost(message, optional, tag = "7")]
    pub nlsk: Option<NetlinkSkEntry>,
    #[prost(message, optional, tag = "16")]
    pub usk: Option<UnixSkEntry>,
    #[prost(message, optional, tag = "17")]
    pub fifo: Option<FifoEntry>,
    #[prost(message, optional, tag = "18")]
    pub pipe: Option<PipeEntry>,
    #[prost(message, optional, tag = "19")]
    pub tty: Option<TtyFileEntry>,
}

/// A file with a path: regular, directory or device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegFileEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub flags: Option<u32>,
    #[prost(uint64, optional, tag = "3")]
    pub pos: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub name: Option<Vec<u8>>,
    #[prost(sint32, optional, tag = "7")]
    pub mnt_id: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    pub size: Option<u64>,
    #[prost(bool, optional, tag = "9")]
    pub ext: Option<bool>,
    #[prost(uint32, optional, tag = "10")]
    pub mode: Option<u32>,
}

/// One end of a pipe.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PipeEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub pipe_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
}

/// A fifo: a pipe with a path, which stands in the regular file `regf_id`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FifoEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub pipe_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub regf_id: Option<u32>,
}

/// A unix socket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UnixSkEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub ino: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub r#type: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub state: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub peer: Option<u32>,
    #[prost(message, optional, tag = "10")]
    pub opts: Option<SkOptsEntry>,
    #[prost(bytes = "vec", optional, tag = "11")]
    pub name: Option<Vec<u8>>,
}

/// An open terminal; which one stands in `tty-info.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TtyFileEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub tty_info_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub regf_id: Option<u32>,
}

/// `tty-info.img`: one per terminal.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TtyInfoEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(int32, optional, tag = "2")]
    pub r#type: Option<i32>,
    #[prost(uint32, optional, tag = "6")]
    pub sid: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub pgrp: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub rdev: Option<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub dev: Option<u32>,
}

/// `mountpoints-ID.img`: one per mount of a namespace.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MntEntry {
    #[prost(int32, optional, tag = "1")]
    pub fstype: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub mnt_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub root_dev: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub parent_mnt_id: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub flags: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub root: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub mountpoint: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub source: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub options: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "10")]
    pub shared_id: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    pub master_id: Option<u32>,
    #[prost(bool, optional, tag = "12")]
    pub with_plugin: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    pub ext_mount: Option<bool>,
    #[prost(bytes = "vec", optional, tag = "14")]
    pub fsname: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "15")]
    pub internal_sharing: Option<bool>,
    #[prost(bool, optional, tag = "16")]
    pub deleted: Option<bool>,
    #[prost(uint32, optional, tag = "17")]
    pub sb_flags: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "18")]
    pub ext_key: Option<Vec<u8>>,
}

/// First message of `pagemap-ID.img`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PagemapHead {
    #[prost(uint32, optional, tag = "1")]
    pub pages_id: Option<u32>,
}

/// Every further message of `pagemap-ID.img`: one run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PagemapEntry {
    #[prost(uint64, optional, tag = "1")]
    pub vaddr: Option<u64>,
    #[prost(uint32, optional, tag = "2")]
    pub compat_nr_pages: Option<u32>,
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

/// The message of `seccomp.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SeccompEntry {
    #[prost(message, repeated, tag = "1")]
    pub seccomp_filters: Vec<SeccompFilter>,
}

/// A filter in [`SeccompEntry`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SeccompFilter {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub filter: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "2")]
    pub prev: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub flags: Option<u32>,
}

/// The message of `cpuinfo.img`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CpuinfoEntry {
    #[prost(message, repeated, tag = "1")]
    pub x86_entry: Vec<CpuinfoX86Entry>,
}

/// An x86 processor in [`CpuinfoEntry`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CpuinfoX86Entry {
    #[prost(uint32, optional, tag = "5")]
    pub capability_ver: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "6")]
    pub capability: Vec<u32>,
    #[prost(bytes = "vec", optional, tag = "7")]
    pub model_id: Option<Vec<u8>>,
}
