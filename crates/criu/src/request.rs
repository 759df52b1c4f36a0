//! What is asked of CRIU: typed options, and the request that says them.
//!
//! Making the request is pure: [`DumpOptions::request`] and [`RestoreOptions::request`] take
//! the numbers of descriptors and touch nothing.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use cryo_sys::spawn::MountPlan;

pub use crate::proto::{CgMode, NetworkLockMethod};
use crate::proto::{
    CgroupRoot, CriuOpts, CriuReq, InheritFd, JoinNamespace, PageServerInfo, ReqType,
};

/// The name under which a network namespace given from outside goes in an image.
///
/// runc's, so that its checkpoints and ours can be exchanged.
pub const EXTERNAL_NETNS: &str = "extRootNetNS";
/// The same for a pid namespace.
pub const EXTERNAL_PIDNS: &str = "extRootPidNS";

/// `CLONE_NEWNET`, the only namespace that CRIU can leave empty.
const EMPTY_NETNS: u32 = 0x4000_0000;

/// No capability of the processor is required; that the field is there makes CRIU write
/// `cpuinfo.img`. A restore reads that only if its request has the field, and ours has not: CRIU
/// would refuse a processor with more features too.
const CPU_IMAGE_ALONE: u32 = 0;

/// The first number given to a descriptor in the criu process; 3 is the RPC socket.
pub(crate) const FIRST_PASSED_FD: RawFd = 4;

/// Something outside the container that an image only names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct External(String);

impl External {
    /// At a dump: the mount at `destination`, under the name `key`. At a restore: the mount
    /// named `key` comes from the host path `value`.
    ///
    /// # Errors
    ///
    /// [`BadOption`] for a key that CRIU would cut at its first `]`.
    pub fn mount(key: &str, value: &str) -> Result<Self, BadOption> {
        if key.is_empty() || key.contains(']') {
            return Err(BadOption {
                option: "external",
                what: format!("mount {key:?} is empty or has a \"]\", which criu cannot name"),
            });
        }
        Ok(Self(format!("mnt[{key}]:{value}")))
    }

    /// At a dump: every mount that comes from outside, with slaves and shared ones.
    #[must_use]
    pub fn auto_mounts() -> Self {
        Self("mnt[]:sm".to_owned())
    }

    /// At a dump: the network namespace with this inode number, named [`EXTERNAL_NETNS`].
    #[must_use]
    pub fn netns(inode: u64) -> Self {
        Self(format!("net[{inode}]:{EXTERNAL_NETNS}"))
    }

    /// At a dump: the pid namespace with this inode number, named [`EXTERNAL_PIDNS`].
    #[must_use]
    pub fn pidns(inode: u64) -> Self {
        Self(format!("pid[{inode}]:{EXTERNAL_PIDNS}"))
    }

    /// At a dump: the file with this mount id and inode number, in CRIU's `file[..]` form.
    #[must_use]
    pub fn file(mount_id: u32, inode: u64) -> Self {
        Self(format!("file[{mount_id:x}:{inode:x}]"))
    }

    /// At a dump: the terminal with this device and inode number, in CRIU's `tty[..]` form.
    #[must_use]
    pub fn tty(rdev: u64, device: u64) -> Self {
        Self(format!("tty[{rdev:x}:{device:x}]"))
    }

    /// At a dump: the unix socket with this inode number.
    #[must_use]
    pub fn unix_socket(inode: u64) -> Self {
        Self(format!("unix[{inode}]"))
    }

    /// CRIU's text of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A namespace that the restored tree joins instead of making its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JoinKind {
    /// IPC.
    Ipc,
    /// Network.
    Net,
    /// Time.
    Time,
    /// User.
    User,
    /// Host name.
    Uts,
}

impl JoinKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Net => "net",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }
}

/// A namespace to join at a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinNs {
    /// Which kind.
    pub kind: JoinKind,
    /// A file that is the namespace, as `/proc/PID/ns/ipc`.
    pub path: PathBuf,
    /// For a user namespace: `UID,GID` to become in it.
    pub extra: Option<String>,
}

/// A user namespace that exists already, and CRIU in it as its root.
///
/// CRIU can make a user namespace, and fill it, but not enter one: a tree in a new one may not
/// enter the namespaces of an old one, as those of a pod are. So it is started inside, where it
/// has power over these and nothing else, and is told that it is not the node's root. The images
/// have to say of the tree that it is in the user namespace of CRIU.
///
/// The paths are those that CRIU sees there, by the [`MountPlan`]; it has to be able to read the
/// images, and to write into the work directory.
#[derive(Debug)]
pub struct Inside {
    /// The namespace.
    pub user_namespace: OwnedFd,
    /// The directory with the images.
    pub images: PathBuf,
    /// The work directory.
    pub work_dir: PathBuf,
}

/// Where a dump puts a container's cgroup, or a restore finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgRoot {
    /// The controller; none is the default for all.
    pub controller: Option<String>,
    /// The path in its hierarchy.
    pub path: String,
}

/// What takes the memory pages of a dump, in place of files.
#[derive(Debug)]
pub enum PageServer {
    /// The other end of a connected stream socket.
    Socket(OwnedFd),
    /// A `criu page-server` there.
    At(SocketAddr),
}

/// A dump. The descriptors are used for the time of the call only.
#[derive(Debug)]
pub struct DumpOptions {
    /// The root of the tree to dump.
    pub pid: i32,
    /// The directory that receives the images.
    pub images: OwnedFd,
    /// A directory of its own for this operation: CRIU's working directory, with the log and
    /// the statistics. Not the image directory, and nobody else can write to it: CRIU follows
    /// links there.
    pub work_dir: PathBuf,
    /// The log's name in the work directory.
    pub log_file: String,
    /// CRIU's log level, 0 to 4. 2 (warnings) tells causes; 4 costs a tenth of the time.
    pub log_level: u8,
    /// The container's root directory, as this process sees it.
    pub root: Option<PathBuf>,
    /// The tree runs on after the dump; otherwise CRIU kills it.
    pub leave_running: bool,
    /// Dump established TCP connections.
    pub tcp_established: bool,
    /// Dump established TCP connections as closed ones.
    pub tcp_close: bool,
    /// Leave out TCP connections that are being established.
    pub tcp_skip_in_flight: bool,
    /// Dump unix sockets whose peer is outside.
    pub ext_unix_sk: bool,
    /// The tree shares a session or terminal with the outside.
    pub shell_job: bool,
    /// Dump file locks.
    pub file_locks: bool,
    /// Link files that are deleted but have another name, to find them again.
    pub link_remap: bool,
    /// Dump terminals whose master is outside.
    pub orphan_pts_master: bool,
    /// The largest deleted file that goes into the images; CRIU's default is 1 MiB.
    pub ghost_limit_bytes: Option<u32>,
    /// Dump the network namespace as an empty one.
    pub empty_netns: bool,
    /// What is outside the container.
    pub external: Vec<External>,
    /// The freezer cgroup (v1) or cgroup (v2) directory of the tree.
    pub freeze_cgroup: Option<PathBuf>,
    /// What to do with cgroups; we place tasks ourselves.
    pub cgroups: CgMode,
    /// Where the container's cgroup tree starts.
    pub cgroup_roots: Vec<CgRoot>,
    /// How the network is held still; CRIU's default is iptables.
    pub network_lock: Option<NetworkLockMethod>,
    /// Seconds for the freezing alone; CRIU's default is 10.
    pub timeout_s: Option<u32>,
    /// The images of the pre-dump before, relative to the image directory.
    pub parent_images: Option<PathBuf>,
    /// Track memory changes from here on, for a later dump.
    pub track_mem: bool,
    /// Punch what is dumped again out of the parent images.
    pub auto_dedup: bool,
    /// Leave memory to be asked for by a page server.
    pub lazy_pages: bool,
    /// What takes the memory pages.
    pub page_server: Option<PageServer>,
    /// Do not compare files' permissions at a later restore.
    pub skip_file_rwx_check: bool,
}

impl DumpOptions {
    /// A dump of `pid` into `images` that ends the tree, with everything optional off.
    #[must_use]
    pub fn new(pid: i32, images: OwnedFd, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            pid,
            images,
            work_dir: work_dir.into(),
            log_file: "dump.log".to_owned(),
            log_level: 2,
            root: None,
            leave_running: false,
            tcp_established: false,
            tcp_close: false,
            tcp_skip_in_flight: false,
            ext_unix_sk: false,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            orphan_pts_master: false,
            ghost_limit_bytes: None,
            empty_netns: false,
            external: Vec::new(),
            freeze_cgroup: None,
            cgroups: CgMode::Ignore,
            cgroup_roots: Vec::new(),
            network_lock: None,
            timeout_s: None,
            parent_images: None,
            track_mem: false,
            auto_dedup: false,
            lazy_pages: false,
            page_server: None,
            skip_file_rwx_check: false,
        }
    }

    /// The request, with `work_dir_fd` a number in this process.
    ///
    /// # Errors
    ///
    /// [`BadOption`] for what the protocol cannot say.
    pub fn request(&self, work_dir_fd: RawFd) -> Result<CriuReq, BadOption> {
        let opts = CriuOpts {
            images_dir_fd: self.images.as_raw_fd(),
            pid: Some(positive(self.pid)?),
            leave_running: flag(self.leave_running),
            ext_unix_sk: flag(self.ext_unix_sk),
            tcp_established: flag(self.tcp_established),
            shell_job: flag(self.shell_job),
            file_locks: flag(self.file_locks),
            log_level: Some(self.log_level.into()),
            log_file: Some(log_name(&self.log_file)?),
            ps: self.page_server.as_ref().map(page_server),
            notify_scripts: Some(true),
            root: path_option("root", self.root.as_deref())?,
            parent_img: path_option("parent_images", self.parent_images.as_deref())?,
            track_mem: flag(self.track_mem),
            auto_dedup: flag(self.auto_dedup),
            work_dir_fd: Some(work_dir_fd),
            link_remap: flag(self.link_remap),
            cpu_cap: Some(CPU_IMAGE_ALONE),
            manage_cgroups_mode: Some(self.cgroups.into()),
            cg_root: cg_roots(&self.cgroup_roots),
            ghost_limit: self.ghost_limit_bytes,
            external: externals(&self.external),
            empty_ns: self.empty_netns.then_some(EMPTY_NETNS),
            freeze_cgroup: path_option("freeze_cgroup", self.freeze_cgroup.as_deref())?,
            timeout: self.timeout_s,
            tcp_close: flag(self.tcp_close),
            tcp_skip_in_flight: flag(self.tcp_skip_in_flight),
            lazy_pages: flag(self.lazy_pages),
            orphan_pts_master: flag(self.orphan_pts_master),
            network_lock: self.network_lock.map(Into::into),
            skip_file_rwx_check: flag(self.skip_file_rwx_check),
            ..CriuOpts::default()
        };
        Ok(CriuReq {
            opts: Some(opts),
            ..CriuReq::of(ReqType::Dump)
        })
    }

    /// The request for a pre-dump: memory alone, and the tree runs on.
    ///
    /// # Errors
    ///
    /// [`BadOption`] for what the protocol cannot say, or what CRIU would abort on.
    pub fn pre_dump_request(&self, work_dir_fd: RawFd) -> Result<CriuReq, BadOption> {
        if !self.track_mem {
            return Err(BadOption {
                option: "track_mem",
                what: "a pre-dump without it makes no sense to criu".to_owned(),
            });
        }
        Ok(CriuReq {
            // A plain PRE_DUMP waits for the dump on the same connection.
            r#type: ReqType::SinglePreDump.into(),
            ..self.request(work_dir_fd)?
        })
    }
}

/// A restore. The descriptors are used for the time of the call only.
#[derive(Debug)]
pub struct RestoreOptions {
    /// The directory with the images.
    pub images: OwnedFd,
    /// As for a dump.
    pub work_dir: PathBuf,
    /// The log's name in the work directory.
    pub log_file: String,
    /// CRIU's log level, 0 to 4.
    pub log_level: u8,
    /// The container's new root: a mount point whose parent is not covered; see `mounts`.
    pub root: Option<PathBuf>,
    /// Mounts that only CRIU and what it restores see.
    pub mounts: Option<MountPlan>,
    /// The restored root task becomes a child of this process, not of CRIU.
    pub rst_sibling: bool,
    /// Restore established TCP connections.
    pub tcp_established: bool,
    /// Restore established TCP connections as closed.
    pub tcp_close: bool,
    /// Accept unix sockets whose peer is outside.
    pub ext_unix_sk: bool,
    /// The tree shares a session or terminal with the outside.
    pub shell_job: bool,
    /// Restore file locks.
    pub file_locks: bool,
    /// The images have links to deleted files.
    pub link_remap: bool,
    /// Use any path to a device if its own is gone.
    pub evasive_devices: bool,
    /// Hand over the masters of restored terminals by a notification.
    pub orphan_pts_master: bool,
    /// What is outside the container.
    pub external: Vec<External>,
    /// Descriptors that take the place of what the images name so: `pipe:[123]`,
    /// [`EXTERNAL_NETNS`].
    pub inherit_fds: Vec<(String, OwnedFd)>,
    /// Namespaces to join.
    pub join_ns: Vec<JoinNs>,
    /// The cgroup namespace of the worker, which what it restores inherits: CRIU makes none
    /// under [`CgMode::Ignore`].
    pub cgroup_namespace: Option<OwnedFd>,
    /// The time namespace of the worker, which what it restores inherits: CRIU makes none where
    /// it runs [inside](Self::inside) of a user namespace.
    pub time_namespace: Option<OwnedFd>,
    /// Run CRIU inside of the user namespace that the container is to be in.
    pub inside: Option<Inside>,
    /// What to do with cgroups.
    pub cgroups: CgMode,
    /// Where the container's cgroup tree goes.
    pub cgroup_roots: Vec<CgRoot>,
    /// Make the network namespace empty.
    pub empty_netns: bool,
    /// How the network was held still at the dump.
    pub network_lock: Option<NetworkLockMethod>,
    /// Fill memory through `lazy-pages.socket` in the work directory.
    pub lazy_pages: bool,
    /// Punch restored pages out of the images.
    pub auto_dedup: bool,
    /// `apparmor:NAME` or `selinux:CONTEXT` in place of the image's.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts in place of the image's.
    pub lsm_mount_context: Option<String>,
    /// Skip kernel settings that do not exist here.
    pub weak_sysctls: bool,
    /// Do not compare files' permissions.
    pub skip_file_rwx_check: bool,
}

impl RestoreOptions {
    /// A restore of `images`, as a child of this process, with everything optional off.
    #[must_use]
    pub fn new(images: OwnedFd, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            images,
            work_dir: work_dir.into(),
            log_file: "restore.log".to_owned(),
            log_level: 2,
            root: None,
            mounts: None,
            rst_sibling: true,
            tcp_established: false,
            tcp_close: false,
            ext_unix_sk: false,
            shell_job: false,
            file_locks: false,
            link_remap: false,
            evasive_devices: true,
            orphan_pts_master: false,
            external: Vec::new(),
            inherit_fds: Vec::new(),
            join_ns: Vec::new(),
            cgroup_namespace: None,
            time_namespace: None,
            inside: None,
            cgroups: CgMode::Ignore,
            cgroup_roots: Vec::new(),
            empty_netns: false,
            network_lock: None,
            lazy_pages: false,
            auto_dedup: false,
            lsm_profile: None,
            lsm_mount_context: None,
            weak_sysctls: false,
            skip_file_rwx_check: false,
        }
    }

    /// The request, with `work_dir_fd` a number in this process. The inherited descriptors get
    /// numbers in the criu process from 4 on, in their order.
    ///
    /// # Errors
    ///
    /// [`BadOption`] for what the protocol cannot say.
    pub fn request(&self, work_dir_fd: RawFd) -> Result<CriuReq, BadOption> {
        let join_ns = self
            .join_ns
            .iter()
            .map(|j| {
                Ok(JoinNamespace {
                    ns: j.kind.as_str().to_owned(),
                    ns_file: path_text("join_ns", &j.path)?,
                    extra_opt: j.extra.clone(),
                })
            })
            .collect::<Result<_, _>>()?;
        let inside = self.inside.as_ref();
        let opts = CriuOpts {
            // Which CRIU opens as ours, and in there it may not.
            images_dir_fd: inside.map_or(self.images.as_raw_fd(), |_| -1),
            images_dir: path_option("inside.images", inside.map(|i| i.images.as_path()))?,
            unprivileged: flag(inside.is_some()),
            ext_unix_sk: flag(self.ext_unix_sk),
            tcp_established: flag(self.tcp_established),
            evasive_devices: flag(self.evasive_devices),
            shell_job: flag(self.shell_job),
            file_locks: flag(self.file_locks),
            log_level: Some(self.log_level.into()),
            log_file: Some(log_name(&self.log_file)?),
            notify_scripts: Some(true),
            root: path_option("root", self.root.as_deref())?,
            auto_dedup: flag(self.auto_dedup),
            work_dir_fd: inside.is_none().then_some(work_dir_fd),
            link_remap: flag(self.link_remap),
            manage_cgroups_mode: Some(self.cgroups.into()),
            cg_root: cg_roots(&self.cgroup_roots),
            rst_sibling: flag(self.rst_sibling),
            inherit_fd: self
                .inherit_fds
                .iter()
                .zip(FIRST_PASSED_FD..)
                .map(|((key, _), fd)| InheritFd {
                    key: key.clone(),
                    fd,
                })
                .collect(),
            external: externals(&self.external),
            empty_ns: self.empty_netns.then_some(EMPTY_NETNS),
            join_ns,
            weak_sysctls: flag(self.weak_sysctls),
            lazy_pages: flag(self.lazy_pages),
            orphan_pts_master: flag(self.orphan_pts_master),
            tcp_close: flag(self.tcp_close),
            lsm_profile: self.lsm_profile.clone(),
            lsm_mount_context: self.lsm_mount_context.clone(),
            network_lock: self.network_lock.map(Into::into),
            skip_file_rwx_check: flag(self.skip_file_rwx_check),
            ..CriuOpts::default()
        };
        Ok(CriuReq {
            opts: Some(opts),
            ..CriuReq::of(ReqType::Restore)
        })
    }
}

/// An option that cannot be put into a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad option {option}: {what}")]
pub struct BadOption {
    /// Which one.
    pub option: &'static str,
    /// What is wrong with it.
    pub what: String,
}

fn page_server(server: &PageServer) -> PageServerInfo {
    match server {
        PageServer::Socket(_) => PageServerInfo {
            fd: Some(FIRST_PASSED_FD),
            ..PageServerInfo::default()
        },
        PageServer::At(at) => PageServerInfo {
            address: Some(at.ip().to_string()),
            port: Some(at.port().into()),
            ..PageServerInfo::default()
        },
    }
}

fn flag(on: bool) -> Option<bool> {
    on.then_some(true)
}

fn positive(pid: i32) -> Result<i32, BadOption> {
    // 0 would make CRIU dump the process that asks: us.
    if pid > 0 {
        return Ok(pid);
    }
    Err(BadOption {
        option: "pid",
        what: format!("{pid} is no process"),
    })
}

fn log_name(name: &str) -> Result<String, BadOption> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(BadOption {
            option: "log_file",
            what: format!("{name:?} is not a plain file name"),
        });
    }
    Ok(name.to_owned())
}

fn path_text(option: &'static str, path: &Path) -> Result<String, BadOption> {
    path.to_str().map(str::to_owned).ok_or_else(|| BadOption {
        option,
        what: format!("{} is not UTF-8", path.display()),
    })
}

fn path_option(option: &'static str, path: Option<&Path>) -> Result<Option<String>, BadOption> {
    path.map(|p| path_text(option, p)).transpose()
}

fn externals(external: &[External]) -> Vec<String> {
    external.iter().map(|e| e.as_str().to_owned()).collect()
}

fn cg_roots(roots: &[CgRoot]) -> Vec<CgroupRoot> {
    roots
        .iter()
        .map(|r| CgroupRoot {
            ctrl: r.controller.clone(),
            path: r.path.clone(),
        })
        .collect()
}
