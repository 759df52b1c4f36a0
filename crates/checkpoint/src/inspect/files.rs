//! Open files and sockets of processes.

use std::collections::HashMap;
use std::io::Read;

use cryo_criu_image::files::{Descriptor, Object, OpenFile, Places, type_name};
use cryo_criu_image::inventory::TaskIds;
use cryo_criu_image::sockets::{Buffers, InetSocket, kind_name, protocol_name, state_name};
use cryo_criu_image::task::Core;
use cryo_criu_image::{Kind, Reader, View};
use serde::Serialize;

use super::Wanted;
use crate::memory::{self, Error};
use crate::source::{self, Source, damaged};

/// Most descriptors of all processes together.
const MAX_DESCRIPTORS: usize = 1 << 20;

/// All that is kept of open files together, names above all.
const MAX_NAME_BYTES: usize = 64 << 20;

/// CRIU's number of files with a path.
const REGULAR: i32 = 1;

/// Open files of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Files {
    /// Its pid.
    pub pid: u32,
    /// By descriptor, in the order of the image; then its working directory and root.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open_files: Vec<FileNode>,
}

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileNode {
    /// CRIU's name of its type; empty for working directory and root.
    pub r#type: String,
    /// Type and number of the descriptor; `cwd` or `root`.
    pub fd: String,
    /// What it is.
    pub path: String,
}

/// Sockets of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sockets {
    /// Its pid.
    pub pid: u32,
    /// By descriptor, in the order of the image.
    pub open_sockets: Vec<SocketNode>,
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketNode {
    /// Its protocol; unix sockets have none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// What it is.
    pub data: SocketData,
    /// Its kind: `STREAM` and so on.
    #[serde(skip)]
    pub kind: String,
}

/// What a socket is; what is empty or 0 has no key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SocketData {
    /// `UNIX`, or the protocol of an internet socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub r#type: String,
    /// Where a unix socket is bound.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// The state of an internet socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Its own address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub src: String,
    /// Its own port.
    #[serde(skip_serializing_if = "is_zero")]
    pub src_port: u16,
    /// The other end's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dst: String,
    /// The other end's port.
    #[serde(skip_serializing_if = "is_zero")]
    pub dst_port: u16,
    /// The size of its buffer for what is sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub send_buf: String,
    /// The size of its buffer for what is received.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub recv_buf: String,
}

fn is_zero(value: &u16) -> bool {
    *value == 0
}

/// A process's descriptors, before it is known what they are.
struct Table {
    pid: u32,
    descriptors: Vec<Descriptor>,
    places: Option<Places>,
}

/// Files and sockets of the processes.
pub(super) fn read(
    checkpoint: &Source,
    living: &[u32],
    wanted: Wanted,
) -> Result<(Vec<Files>, Vec<Sockets>), Error> {
    let mut objects = HashMap::new();
    let mut tables = Vec::with_capacity(living.len());
    for &pid in living {
        let table = table(checkpoint, pid, wanted.files)?;
        for descriptor in &table.descriptors {
            objects.insert(descriptor.file_id, None);
        }
        if let Some(places) = table.places {
            objects.insert(places.cwd, None);
            objects.insert(places.root, None);
        }
        tables.push(table);
        if objects.len() > MAX_DESCRIPTORS {
            return Err(Error::Refused(format!(
                "the checkpoint is unsafe: more than {MAX_DESCRIPTORS} open files"
            )));
        }
    }
    look_up(checkpoint, &mut objects)?;
    let object = |id: u32| objects.get(&id).and_then(Option::as_ref);

    let mut files = Vec::new();
    let mut sockets = Vec::new();
    for table in tables {
        if wanted.sockets {
            let open_sockets: Vec<_> = table
                .descriptors
                .iter()
                .filter_map(|descriptor| socket(object(descriptor.file_id)?))
                .collect();
            if !open_sockets.is_empty() {
                let pid = table.pid;
                sockets.push(Sockets { pid, open_sockets });
            }
        }
        if wanted.files {
            let numbered = table.descriptors.iter().map(|descriptor| {
                let number = descriptor.file_type;
                let r#type = type_name(number).map_or_else(|| number.to_string(), str::to_owned);
                FileNode {
                    fd: format!("{} {}", r#type, descriptor.fd),
                    path: path(
                        number,
                        &r#type,
                        descriptor.file_id,
                        object(descriptor.file_id),
                    ),
                    r#type,
                }
            });
            let places = table.places.into_iter().flat_map(|places| {
                [("cwd", places.cwd), ("root", places.root)].map(|(name, id)| FileNode {
                    r#type: String::new(),
                    fd: name.to_owned(),
                    path: path(REGULAR, "", id, object(id)),
                })
            });
            files.push(Files {
                pid: table.pid,
                open_files: numbered.chain(places).collect(),
            });
        }
    }
    Ok((files, sockets))
}

fn table(checkpoint: &Source, pid: u32, places: bool) -> Result<Table, Error> {
    let ids = match checkpoint.view::<TaskIds>(&checkpoint.image_name(Kind::Ids, pid.into()))? {
        Some(ids) => ids,
        None => {
            let core: Core = memory::image(checkpoint, Kind::Core, pid)?;
            core.ids.ok_or_else(|| source::Error::Missing {
                name: checkpoint.image_name(Kind::Ids, pid.into()),
            })?
        }
    };
    let name = checkpoint.image_name(Kind::Fdinfo, ids.files.into());
    let mut descriptors = Vec::new();
    for descriptor in all::<Descriptor>(checkpoint, &name)? {
        descriptors.push(descriptor.map_err(|error| damaged(&name, error))?);
    }
    Ok(Table {
        pid,
        descriptors,
        places: match places {
            true => Some(memory::image(checkpoint, Kind::Fs, pid)?),
            false => None,
        },
    })
}

fn all<V: View>(
    checkpoint: &Source,
    name: &str,
) -> Result<Reader<V, impl Read + use<V>>, source::Error> {
    checkpoint
        .views(name)?
        .ok_or_else(|| source::Error::Missing {
            name: name.to_owned(),
        })
}

/// Finds what is asked for in `files.img`.
fn look_up(checkpoint: &Source, wanted: &mut HashMap<u32, Option<Object>>) -> Result<(), Error> {
    let name = checkpoint.image_name(Kind::Files, 0);
    let mut bytes = 0;
    for file in all::<OpenFile>(checkpoint, &name)? {
        let file = file.map_err(|error| damaged(&name, error))?;
        let Some(slot) = wanted.get_mut(&file.id) else {
            continue;
        };
        bytes += match &file.object {
            Object::Path { path, .. } => path.len(),
            Object::Unix(socket) => socket.name.len(),
            _ => 0,
        };
        if bytes > MAX_NAME_BYTES {
            return Err(Error::Refused(format!(
                "the checkpoint is unsafe: {name} has names of more than {MAX_NAME_BYTES} bytes"
            )));
        }
        *slot = Some(file.object);
    }
    Ok(())
}

fn path(number: i32, type_name: &str, id: u32, object: Option<&Object>) -> String {
    match (number, object) {
        (REGULAR, Some(Object::Path { path, .. })) => String::from_utf8_lossy(path).into_owned(),
        (REGULAR, _) => "unknown".to_owned(),
        (2, Some(Object::Pipe { pipe_id, .. })) => format!("pipe[{pipe_id}]"),
        (2, _) => "pipe[?]".to_owned(),
        (5, Some(Object::Unix(socket))) => format!(
            "unix[{} ({}) {}]",
            socket.inode,
            socket.peer,
            String::from_utf8_lossy(&socket.name)
        ),
        (5, _) => "unix[?]".to_owned(),
        _ => format!("{type_name}.{id}"),
    }
}

fn socket(object: &Object) -> Option<SocketNode> {
    let kind = |kind: u32| kind_name(kind).map_or_else(|| kind.to_string(), str::to_owned);
    Some(match object {
        Object::Inet(socket) => SocketNode {
            kind: kind(socket.kind),
            ..inet(socket)
        },
        Object::Unix(socket) => SocketNode {
            protocol: String::new(),
            data: SocketData {
                r#type: "UNIX".to_owned(),
                address: String::from_utf8_lossy(&socket.name).into_owned(),
                ..Default::default()
            },
            kind: kind(socket.kind),
        },
        Object::Packet(socket) => other("PACKET", kind(socket.kind), socket.buffers),
        Object::Netlink(socket) => other("NETLINK", String::new(), socket.buffers),
        _ => return None,
    })
}

fn inet(socket: &InetSocket) -> SocketNode {
    let number = socket.protocol;
    let protocol = protocol_name(number).map_or_else(|| number.to_string(), str::to_owned);
    let address = |address: Option<std::net::IpAddr>| {
        address
            .map(|address| address.to_string())
            .unwrap_or_default()
    };
    SocketNode {
        data: SocketData {
            r#type: protocol.clone(),
            address: String::new(),
            state: state_name(socket.state).unwrap_or_default().to_owned(),
            src: address(socket.source),
            src_port: socket.source_port,
            dst: address(socket.destination),
            dst_port: socket.destination_port,
            send_buf: size(socket.buffers.send),
            recv_buf: size(socket.buffers.receive),
        },
        protocol,
        kind: String::new(),
    }
}

fn other(protocol: &str, kind: String, buffers: Buffers) -> SocketNode {
    SocketNode {
        protocol: protocol.to_owned(),
        data: SocketData {
            send_buf: size(buffers.send),
            recv_buf: size(buffers.receive),
            ..Default::default()
        },
        kind,
    }
}

/// As CRIU's tools print the size of a buffer.
fn size(bytes: u32) -> String {
    let float = f64::from(bytes);
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.1} KB", float / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MB", float / 1_048_576.0),
        _ => format!("{:.1} GB", float / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (16384, "16.0 KB"),
            (4_000_000, "3.8 MB"),
            (u32::MAX, "4.0 GB"),
        ] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
