//! Open files: `fdinfo-ID.img` (descriptors), `files.img` (what they refer to), `tty-info.img`
//! (terminals) and `fs-PID.img` (root and working directory).

use crate::msg::{FdinfoEntry, FileEntry, FsEntry, TtyInfoEntry};
use crate::sockets::{InetSocket, NetlinkSocket, PacketSocket, UnixSocket};
use crate::{At, Error, Kind, View};

/// One descriptor of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// The [`OpenFile::id`] it refers to.
    pub file_id: u32,
    /// CRIU's number of the type of that file, which `files.img` repeats.
    pub file_type: i32,
    /// Descriptor flags: 1 is `FD_CLOEXEC`.
    pub flags: u32,
}

impl View for Descriptor {
    type Wire = FdinfoEntry;

    const KIND: Kind = Kind::Fdinfo;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            fd: at.need(wire.fd, "fd")?,
            file_id: at.need(wire.id, "id")?,
            file_type: at.need(wire.r#type, "type")?,
            flags: at.need(wire.flags, "flags")?,
        })
    }
}

/// One open file. Descriptors, memory areas, roots and working directories refer to it by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFile {
    /// Its number.
    pub id: u32,
    /// What it is.
    pub object: Object,
}

/// What an open file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// A file with a path: regular, directory or device.
    Path {
        /// The path in its mount namespace; the id of an external file if `external`.
        path: Vec<u8>,
        /// Whether the file lies outside of what was captured.
        external: bool,
        /// The mount it was opened on, if recorded.
        mount_id: Option<i32>,
    },
    /// One end of a pipe.
    Pipe {
        /// The pipe: its inode number at the dump.
        pipe_id: u32,
        /// Flags of `open(2)`, whose access mode tells which end it is.
        flags: u32,
    },
    /// A fifo.
    Fifo {
        /// The pipe behind it.
        pipe_id: u32,
    },
    /// A terminal.
    Tty {
        /// The [`Terminal::id`].
        info_id: u32,
    },
    /// A unix socket.
    Unix(UnixSocket),
    /// An internet socket.
    Inet(InetSocket),
    /// A packet socket.
    Packet(PacketSocket),
    /// A netlink socket.
    Netlink(NetlinkSocket),
    /// Anything else, by CRIU's number of the type.
    Other(i32),
}

impl View for OpenFile {
    type Wire = FileEntry;

    const KIND: Kind = Kind::Files;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let object = match at.need(wire.r#type, "type")? {
            1 => {
                let file = at.need(wire.reg, "reg")?;
                Object::Path {
                    path: at.need(file.name, "reg.name")?,
                    external: file.ext.unwrap_or_default(),
                    mount_id: file.mnt_id.filter(|id| *id >= 0),
                }
            }
            2 => {
                let pipe = at.need(wire.pipe, "pipe")?;
                Object::Pipe {
                    pipe_id: at.need(pipe.pipe_id, "pipe.pipe_id")?,
                    flags: at.need(pipe.flags, "pipe.flags")?,
                }
            }
            3 => {
                let fifo = at.need(wire.fifo, "fifo")?;
                Object::Fifo {
                    pipe_id: at.need(fifo.pipe_id, "fifo.pipe_id")?,
                }
            }
            4 => Object::Inet(InetSocket::from_wire(&at.need(wire.isk, "isk")?, at)?),
            5 => Object::Unix(UnixSocket::from_wire(at.need(wire.usk, "usk")?, at)?),
            10 => Object::Packet(PacketSocket::from_wire(&at.need(wire.psk, "psk")?, at)?),
            11 => {
                let tty = at.need(wire.tty, "tty")?;
                Object::Tty {
                    info_id: at.need(tty.tty_info_id, "tty.tty_info_id")?,
                }
            }
            13 => Object::Netlink(NetlinkSocket::from_wire(&at.need(wire.nlsk, "nlsk")?, at)?),
            other => Object::Other(other),
        };
        Ok(Self {
            id: at.need(wire.id, "id")?,
            object,
        })
    }
}

/// One terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Its number.
    pub id: u32,
    /// CRIU's number of its type: 1 is a pseudoterminal.
    pub tty_type: i32,
    /// The device it is, as CRIU packs major and minor.
    pub rdev: u32,
    /// The device of the file system it lies on.
    pub dev: Option<u32>,
}

impl View for Terminal {
    type Wire = TtyInfoEntry;

    const KIND: Kind = Kind::TtyInfo;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: at.need(wire.id, "id")?,
            tty_type: at.need(wire.r#type, "type")?,
            rdev: at.need(wire.rdev, "rdev")?,
            dev: wire.dev,
        })
    }
}

/// CRIU's name of a type of files; `None` for those of a newer CRIU.
pub fn type_name(number: i32) -> Option<&'static str> {
    Some(match number {
        0 => "UND",
        1 => "REG",
        2 => "PIPE",
        3 => "FIFO",
        4 => "INETSK",
        5 => "UNIXSK",
        6 => "EVENTFD",
        7 => "EVENTPOLL",
        8 => "INOTIFY",
        9 => "SIGNALFD",
        10 => "PACKETSK",
        11 => "TTY",
        12 => "FANOTIFY",
        13 => "NETLINKSK",
        14 => "NS",
        15 => "TUNF",
        16 => "EXT",
        17 => "TIMERFD",
        18 => "MEMFD",
        19 => "BPFMAP",
        20 => "PIDFD",
        _ => return None,
    })
}

/// Root, working directory and umask of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// The [`OpenFile::id`] of its working directory.
    pub cwd: u32,
    /// The [`OpenFile::id`] of its root.
    pub root: u32,
    /// Its umask, if recorded.
    pub umask: Option<u32>,
}

impl View for Places {
    type Wire = FsEntry;

    const KIND: Kind = Kind::Fs;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            cwd: at.need(wire.cwd_id, "cwd_id")?,
            root: at.need(wire.root_id, "root_id")?,
            umask: wire.umask,
        })
    }
}
