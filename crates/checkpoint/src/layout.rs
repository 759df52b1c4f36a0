//! Names of files in image directories and archives: who writes them and who reads them.
//!
//! CRIU's own names are [`cryo_criu_image::Kind::file_name`].

/// The statistics of a dump, by CRIU, in its work directory. In an archive at the top level.
/// Read by `checkpointctl inspect --stats`; containerd up to 2.1.8, 2.2.4 and 2.3.1 fails a CRI
/// checkpoint that lacks it.
pub const STATS_DUMP: &str = "stats-dump";

/// CRIU's log of a dump, in its work directory. In an archive at the top level. For humans.
pub const DUMP_LOG: &str = "dump.log";

/// CRIU's log of a restore, in its work directory. For humans. Where that is the image directory,
/// CRIU writes through whatever link bears the name; ours never is.
pub const RESTORE_LOG: &str = "restore.log";

/// What descriptors 0 to 2 of the container were, in the image directory; see
/// [`crate::descriptors`]. By runc, crun and cryo, for the restore.
pub const DESCRIPTORS: &str = "descriptors.json";

/// The link to the previous image directory of an incremental dump, by CRIU. Refused: containerd
/// does not carry it, and it may point anywhere.
pub const PARENT: &str = "parent";

/// The directory of an archive that holds the image directory. Tools want it as an entry of its
/// own, with this name and a slash.
pub const CHECKPOINT_DIR: &str = "checkpoint";

/// What the engine knew of the container: id, name, image, runtime and times, as JSON. By
/// containerd's CRI, CRI-O and Podman; every tool reads it.
pub const CONFIG_DUMP: &str = "config.dump";

/// The container's OCI runtime specification. By all three engines; its annotations tell which
/// of them, the pod and its namespace.
pub const SPEC_DUMP: &str = "spec.dump";

/// The CRI status of the container, as JSON. By containerd, which reads it at a restore.
pub const STATUS_DUMP: &str = "status.dump";

/// containerd's own record of the container's status. By containerd.
pub const STATUS: &str = "status";

/// The container's log so far. By containerd, which gives it to the restored container.
pub const CONTAINER_LOG: &str = "container.log";

/// What the container changed in its root file system. By all three engines: containerd's is a
/// gzipped image layer despite the name, the others' plain.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";

/// Paths that the container deleted from its root file system, as a JSON array. By CRI-O and
/// Podman; containerd's [`ROOTFS_DIFF`] has whiteouts instead.
pub const DELETED_FILES: &str = "deleted.files";

/// Addresses of the container, as JSON. By Podman.
pub const NETWORK_STATUS: &str = "network.status";

/// Bind mounts to be recreated, as JSON. By CRI-O.
pub const BIND_MOUNTS: &str = "bind.mounts";

/// Annotation in [`SPEC_DUMP`] that names the engine: `libpod` or `cri-o`; containerd sets none.
pub const ANNOTATION_MANAGER: &str = "io.container.manager";

/// What makes a directory or an archive an OCI layout.
pub const OCI_LAYOUT: &str = "oci-layout";

/// The index of an OCI layout, which leads to its images.
pub const OCI_INDEX: &str = "index.json";

/// Where the blobs of an OCI layout are, by the digits of their SHA-256.
pub const OCI_BLOBS: &str = "blobs/sha256/";
