//! Messages of what containerd keeps: content, images, leases, snapshots. Field numbers:
//! `containerd/api/services/{content,images,leases,snapshots,diff}/v1`.

use std::collections::HashMap;

use prost::Message;

use super::{Descriptor, Mount};

/// A blob, without its bytes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Content {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) size: i64,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) labels: HashMap<String, String>,
}

/// The answer of Info.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContentInfo {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Content>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateContent {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Content>,
    #[prost(message, optional, tag = "2")]
    pub(crate) mask: Option<FieldMask>,
}

/// `google.protobuf.FieldMask`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    pub(crate) paths: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContent {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContentPart {
    #[prost(int64, tag = "1")]
    pub(crate) offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

/// `WriteAction`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Action {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteContent {
    #[prost(enumeration = "Action", tag = "1")]
    pub(crate) action: i32,
    #[prost(string, tag = "2")]
    pub(crate) reference: String,
    #[prost(int64, tag = "3")]
    pub(crate) total: i64,
    #[prost(string, tag = "4")]
    pub(crate) expected: String,
    #[prost(int64, tag = "5")]
    pub(crate) offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) data: Vec<u8>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContentWritten {
    #[prost(int64, tag = "4")]
    pub(crate) offset: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
}

/// The answer of Get, and the request of Create.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OneImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    pub(crate) mask: Option<FieldMask>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(map = "string, string", tag = "3")]
    pub(crate) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListLeasesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) leases: Vec<Lease>,
}

/// What a lease is to hold.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AddResource {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) resource: Option<Resource>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) kind: String,
}

/// Of Prepare and View, which have a parent, and of Mounts, Remove and Stat, which do not.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Snapshot {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mounts {
    #[prost(message, repeated, tag = "1")]
    pub(crate) mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatSnapshotResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<SnapshotInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotInfo {
    #[prost(string, tag = "2")]
    pub(crate) parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Diff {
    #[prost(message, repeated, tag = "1")]
    pub(crate) left: Vec<Mount>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) right: Vec<Mount>,
    #[prost(string, tag = "3")]
    pub(crate) media_type: String,
    #[prost(string, tag = "4")]
    pub(crate) reference: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DiffResponse {
    #[prost(message, optional, tag = "3")]
    pub(crate) diff: Option<Descriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CommitSnapshot {
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, tag = "3")]
    pub(crate) key: String,
}

/// A request of Diff/Apply.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Apply {
    #[prost(message, optional, tag = "1")]
    pub(crate) layer: Option<Descriptor>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) mounts: Vec<Mount>,
}
