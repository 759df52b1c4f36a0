//! Sockets, working directories and credentials.

use prost::Message;

/// `fs-PID.img`: root, working directory and umask.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct FsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub cwd_id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub root_id: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub umask: Option<u32>,
}

/// Options of any socket, as far as they are shown.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SkOptsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub so_sndbuf: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub so_rcvbuf: Option<u32>,
}

/// An internet socket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct InetSkEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub ino: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub family: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub r#type: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub proto: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub state: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub src_port: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub dst_port: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    pub flags: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    pub backlog: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub src_addr: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub dst_addr: Vec<u32>,
    #[prost(message, optional, tag = "14")]
    pub opts: Option<SkOptsEntry>,
}

/// A packet socket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacketSkEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub r#type: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub protocol: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub ifindex: Option<u32>,
    #[prost(message, optional, tag = "7")]
    pub opts: Option<SkOptsEntry>,
}

/// A netlink socket.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NetlinkSkEntry {
    #[prost(uint32, optional, tag = "1")]
    pub id: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub ino: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub protocol: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub state: Option<u32>,
    #[prost(message, optional, tag = "12")]
    pub opts: Option<SkOptsEntry>,
}

/// `core-PID.img` once more: what a thread may do.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SecurityEntry {
    #[prost(message, optional, tag = "5")]
    pub thread_core: Option<ThreadSecurityEntry>,
}

/// The part of a thread that [`SecurityEntry`] has.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ThreadSecurityEntry {
    #[prost(message, optional, tag = "10")]
    pub creds: Option<CredsEntry>,
    #[prost(int32, optional, tag = "11")]
    pub seccomp_mode: Option<i32>,
    #[prost(uint32, optional, tag = "12")]
    pub seccomp_filter: Option<u32>,
}

/// Users, groups and capabilities of a thread.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CredsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub gid: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub euid: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub egid: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub suid: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub sgid: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub fsuid: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub fsgid: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    pub cap_inh: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    pub cap_prm: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub cap_eff: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub cap_bnd: Vec<u32>,
    #[prost(uint32, optional, tag = "13")]
    pub secbits: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "14")]
    pub groups: Vec<u32>,
    #[prost(bytes = "vec", optional, tag = "15")]
    pub lsm_profile: Option<Vec<u8>>,
    #[prost(uint32, optional, tag = "18")]
    pub no_new_privs: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "19")]
    pub cap_amb: Vec<u32>,
}
