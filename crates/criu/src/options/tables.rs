//! The options themselves.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use super::{Access, Feature, Kind, Opt, Table, Unit};
use crate::probe::Version;
use crate::request::{CgMode, DumpOptions, NetworkLockMethod, PageServer, RestoreOptions};

/// The options of a checkpoint, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table below says what each one means")]
pub struct Checkpoint {
    pub auto_dedup: bool,
    pub empty_netns: bool,
    pub ext_unix_sk: bool,
    pub file_locks: bool,
    pub ghost_limit_bytes: Option<u32>,
    pub lazy_pages: bool,
    pub link_remap: bool,
    pub lossy: bool,
    pub manage_cgroups: CgMode,
    pub network_lock: Option<NetworkLockMethod>,
    pub page_server: Option<SocketAddr>,
    pub parent_path: Option<PathBuf>,
    pub pre_dump: bool,
    pub serve_timeout_s: u32,
    pub shell_job: bool,
    pub tcp_close: bool,
    pub tcp_established: bool,
    pub tcp_skip_in_flight: bool,
    pub timeout_s: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            auto_dedup: false,
            empty_netns: false,
            ext_unix_sk: false,
            file_locks: false,
            ghost_limit_bytes: None,
            lazy_pages: false,
            link_remap: false,
            lossy: false,
            manage_cgroups: CgMode::Ignore,
            network_lock: None,
            page_server: None,
            parent_path: None,
            pre_dump: false,
            serve_timeout_s: 600,
            shell_job: false,
            tcp_close: false,
            tcp_established: false,
            tcp_skip_in_flight: false,
            timeout_s: 5,
        }
    }
}

impl Checkpoint {
    /// The dump, with these options over what it has: a lock that was chosen goes before the
    /// one that it comes with.
    #[must_use]
    pub fn apply(&self, dump: DumpOptions) -> DumpOptions {
        DumpOptions {
            auto_dedup: self.auto_dedup,
            empty_netns: self.empty_netns,
            ext_unix_sk: self.ext_unix_sk,
            file_locks: self.file_locks,
            ghost_limit_bytes: self.ghost_limit_bytes,
            link_remap: self.link_remap,
            cgroups: self.manage_cgroups,
            network_lock: self.network_lock.or(dump.network_lock),
            lazy_pages: self.lazy_pages,
            // Of a lazy one it is where cryo serves.
            page_server: self
                .page_server
                .filter(|_| !self.lazy_pages)
                .map(PageServer::At)
                .or(dump.page_server),
            // What is tracked from here on can be left out by the next one.
            track_mem: self.pre_dump || self.parent_path.is_some(),
            parent_images: self.parent_path.clone(),
            shell_job: self.shell_job,
            tcp_close: self.tcp_close,
            tcp_established: self.tcp_established && !self.tcp_close,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            timeout_s: Some(self.timeout_s),
            ..dump
        }
    }
}

/// The options of a restore, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table below says what each one means")]
pub struct Restore {
    pub auto_dedup: bool,
    pub empty_netns: bool,
    pub ext_unix_sk: bool,
    pub file_locks: bool,
    pub lazy_pages: bool,
    pub lsm_mount_context: Option<String>,
    pub lsm_profile: Option<String>,
    pub network_lock: Option<NetworkLockMethod>,
    pub parents: Option<PathBuf>,
    pub any_seccomp: bool,
    pub tcp_close: bool,
    pub tcp_established: bool,
}

impl Default for Restore {
    fn default() -> Self {
        Self {
            auto_dedup: false,
            empty_netns: false,
            // The dump has decided what is in the images.
            ext_unix_sk: true,
            file_locks: true,
            lazy_pages: false,
            lsm_mount_context: None,
            lsm_profile: None,
            network_lock: None,
            parents: None,
            any_seccomp: false,
            tcp_close: false,
            tcp_established: true,
        }
    }
}

impl Restore {
    /// The restore, with these options over what it has.
    #[must_use]
    pub fn apply(&self, restore: RestoreOptions) -> RestoreOptions {
        RestoreOptions {
            auto_dedup: self.auto_dedup,
            empty_netns: self.empty_netns,
            ext_unix_sk: self.ext_unix_sk,
            file_locks: self.file_locks,
            lazy_pages: self.lazy_pages,
            lsm_mount_context: self.lsm_mount_context.clone(),
            lsm_profile: self.lsm_profile.clone(),
            network_lock: self.network_lock.or(restore.network_lock),
            tcp_close: self.tcp_close,
            tcp_established: self.tcp_established && !self.tcp_close,
            ..restore
        }
    }
}

const fn criu(major: u32, minor: u32) -> Version {
    Version::new(major, minor, 0)
}

/// The words of `network-lock`, in both tables.
macro_rules! network_locks {
    () => {
        Kind::Word(&[
            ("auto", |o| o.network_lock = None),
            ("iptables", |o| {
                o.network_lock = Some(NetworkLockMethod::Iptables)
            }),
            ("nftables", |o| {
                o.network_lock = Some(NetworkLockMethod::Nftables)
            }),
            ("skip", |o| o.network_lock = Some(NetworkLockMethod::Skip)),
        ])
    };
}

/// The words of `empty-ns`, in both tables.
macro_rules! empty_namespaces {
    () => {
        Kind::Word(&[
            ("none", |o| o.empty_netns = false),
            ("network", |o| o.empty_netns = true),
        ])
    };
}

impl Table for Checkpoint {
    const SECTION: &'static str = "checkpoint";
    const OPTIONS: &'static [Opt<Self>] = &[
        Opt {
            name: "auto-dedup",
            kind: Kind::Flag(|o| &mut o.auto_dedup),
            access: Access::Node,
            field: None,
            default: "false",
            since: criu(1, 2),
            needs: None,
            meaning: "Memory that is taken again is cut out of the images of the parent, which then are of no use alone.",
        },
        Opt {
            name: "empty-ns",
            kind: empty_namespaces!(),
            access: Access::Anyone,
            field: Some("empty_namespaces"),
            default: "none",
            since: criu(2, 0),
            needs: None,
            meaning: "Leave out what is in the container's own network namespace: devices, addresses, routes, rules. Refused where the network is the pod's or the node's.",
        },
        Opt {
            name: "ext-unix-sk",
            kind: Kind::Flag(|o| &mut o.ext_unix_sk),
            access: Access::Anyone,
            field: Some("external_unix_sockets"),
            default: "false",
            since: criu(0, 8),
            needs: None,
            meaning: "Accept unix datagram sockets that are connected to a socket outside. At the restore they are connected again, to the path that the peer was bound to: the container has to see it there.",
        },
        Opt {
            name: "file-locks",
            kind: Kind::Flag(|o| &mut o.file_locks),
            access: Access::Anyone,
            field: Some("file_locks"),
            default: "false",
            since: criu(0, 8),
            needs: None,
            meaning: "Accept file locks. Take care with files that others lock too: between checkpoint and restore nobody holds the lock.",
        },
        Opt {
            name: "ghost-limit",
            kind: Kind::Number {
                unit: Unit::Bytes,
                range: 0..=u32::MAX,
                set: |o, n| o.ghost_limit_bytes = Some(n),
            },
            access: Access::Anyone,
            field: None,
            default: "1M",
            since: criu(1, 7),
            needs: None,
            meaning: "The largest deleted file, still open, whose content goes into the checkpoint.",
        },
        Opt {
            name: "lazy-pages",
            kind: Kind::Flag(|o| &mut o.lazy_pages),
            access: Access::Request,
            field: None,
            default: "false",
            since: criu(4, 0),
            needs: None,
            meaning: "Leave memory with the processes, which stay stopped, and serve it at `page-server` to who restores them; they end when it was fetched. Needs `exit`.",
        },
        Opt {
            name: "link-remap",
            kind: Kind::Flag(|o| &mut o.link_remap),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(1, 2),
            needs: None,
            meaning: "Accept open files that are deleted but have another name: CRIU gives them a new name beside it, `link_remap.N`. It is there for a restore only if the checkpoint ended the container.",
        },
        Opt {
            name: "lossy",
            kind: Kind::Flag(|o| &mut o.lossy),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(0, 3),
            needs: None,
            meaning: "Accept what a restored process silently is without: open files, directories and namespaces of single threads, semaphores of eventfds. [checkpointability.md](checkpointability.md) has them.",
        },
        Opt {
            name: "manage-cgroups",
            kind: Kind::Word(&[
                ("ignore", |o| o.manage_cgroups = CgMode::Ignore),
                ("none", |o| o.manage_cgroups = CgMode::CgNone),
                ("props", |o| o.manage_cgroups = CgMode::Props),
                ("soft", |o| o.manage_cgroups = CgMode::Soft),
                ("full", |o| o.manage_cgroups = CgMode::Full),
                ("strict", |o| o.manage_cgroups = CgMode::Strict),
            ]),
            access: Access::Node,
            field: Some("cgroups_mode"),
            default: "ignore",
            since: criu(1, 7),
            needs: None,
            meaning: "What CRIU writes about cgroups into the checkpoint, for other runtimes; cryo places what it restores itself. All but `ignore` cost frozen time on cgroup v1.",
        },
        Opt {
            name: "network-lock",
            kind: network_locks!(),
            access: Access::Anyone,
            field: None,
            default: "auto",
            since: criu(3, 19),
            needs: None,
            meaning: "How packets of the kept connections are held back while nobody is there to answer them. `auto` is `nftables` where connections are kept, else `skip`. With `skip` nothing is held back: a packet that comes in between ends its connection.",
        },
        Opt {
            name: "page-server",
            kind: Kind::Text {
                form: "`ADDRESS:PORT`, `[ADDRESS]:PORT`",
                set: |o, text| {
                    let at = text.parse().map_err(|_| {
                        "not an address and a port: write them as 192.0.2.7:9876 or [2001:db8::7]:9876"
                    })?;
                    o.page_server = Some(at);
                    Ok(())
                },
            },
            access: Access::Node,
            field: None,
            default: "none",
            since: criu(1, 2),
            needs: None,
            meaning: "A `criu page-server` that takes the memory, unencrypted. The checkpoint has all but `pages-*.img` and `pagemap-*.img`, which the server writes; put them together for a restore. With `lazy-pages`, the address of this node where the memory is served.",
        },
        Opt {
            name: "parent-path",
            kind: Kind::Text {
                form: "`../NAME`, beside the image directory",
                set: |o, text| {
                    let path = Path::new(text);
                    let mut parts = path.components();
                    let beside = [parts.next(), parts.next(), parts.next()];
                    let [Some(Component::ParentDir), Some(Component::Normal(_)), None] = beside
                    else {
                        return Err(
                            "not a directory beside the new image directory, and no other can be restored from: name the parent as ../first",
                        );
                    };
                    o.parent_path = Some(path.to_owned());
                    Ok(())
                },
            },
            access: Access::Request,
            field: Some("parent_path"),
            default: "none",
            since: criu(1, 2),
            needs: Some(Feature::MemTrack),
            meaning: "The images of the checkpoint before: memory that has not changed since is left out. A restore needs both, and `parents`.",
        },
        Opt {
            name: "pre-dump",
            kind: Kind::Flag(|o| &mut o.pre_dump),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(3, 17),
            needs: Some(Feature::MemTrack),
            meaning: "Take memory alone and let the container go on; the next checkpoint names this one as its parent. It cannot be restored by itself.",
        },
        Opt {
            name: "serve-timeout",
            kind: Kind::Number {
                unit: Unit::Seconds,
                range: 1..=86400,
                set: |o, n| o.serve_timeout_s = n,
            },
            access: Access::Node,
            field: None,
            default: "600",
            since: criu(4, 0),
            needs: None,
            meaning: "Seconds that the fetching of memory may take with `lazy-pages`, all in all. Then it is given up, and the container goes on here.",
        },
        Opt {
            name: "shell-job",
            kind: Kind::Flag(|o| &mut o.shell_job),
            access: Access::Anyone,
            field: Some("terminal"),
            default: "false",
            since: criu(0, 8),
            needs: None,
            meaning: "Accept a terminal of the outside that a process was given. Such a checkpoint can be looked at, but not restored. A container's own terminal needs nothing.",
        },
        Opt {
            name: "tcp-close",
            kind: Kind::Flag(|o| &mut o.tcp_close),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(4, 0),
            needs: None,
            meaning: "Accept established TCP connections, without their state: after a restore they are closed. Goes before `tcp-established`.",
        },
        Opt {
            name: "tcp-established",
            kind: Kind::Flag(|o| &mut o.tcp_established),
            access: Access::Anyone,
            field: Some("open_tcp"),
            default: "false",
            since: criu(0, 8),
            needs: None,
            meaning: "Keep established TCP connections. After a restore they go on, if the container's address is the same.",
        },
        Opt {
            name: "tcp-skip-in-flight",
            kind: Kind::Flag(|o| &mut o.tcp_skip_in_flight),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(2, 4),
            needs: None,
            meaning: "Accept connections that are not accepted yet, and leave them out: their clients have to connect again.",
        },
        Opt {
            name: "timeout",
            kind: Kind::Number {
                unit: Unit::Seconds,
                range: 1..=600,
                set: |o, n| o.timeout_s = n,
            },
            access: Access::Anyone,
            field: None,
            default: "5",
            since: criu(2, 4),
            needs: None,
            meaning: "Seconds that CRIU may take to stop all processes. The time for all of it is the request's deadline.",
        },
    ];
}

impl Table for Restore {
    const SECTION: &'static str = "restore";
    const OPTIONS: &'static [Opt<Self>] = &[
        Opt {
            name: "auto-dedup",
            kind: Kind::Flag(|o| &mut o.auto_dedup),
            access: Access::Node,
            field: None,
            default: "false",
            since: criu(1, 2),
            needs: None,
            meaning: "Memory is cut out of the images once it is restored. They can be restored only once.",
        },
        Opt {
            name: "empty-ns",
            kind: empty_namespaces!(),
            access: Access::Anyone,
            field: None,
            default: "none",
            since: criu(2, 0),
            needs: None,
            meaning: "Make the container's own network namespace empty, whatever the checkpoint has of one. Refused where the network is the pod's or the node's.",
        },
        Opt {
            name: "ext-unix-sk",
            kind: Kind::Flag(|o| &mut o.ext_unix_sk),
            access: Access::Anyone,
            field: None,
            default: "true",
            since: criu(0, 8),
            needs: None,
            meaning: "Accept a checkpoint with unix sockets that were connected to the outside.",
        },
        Opt {
            name: "file-locks",
            kind: Kind::Flag(|o| &mut o.file_locks),
            access: Access::Anyone,
            field: None,
            default: "true",
            since: criu(0, 8),
            needs: None,
            meaning: "Take the file locks of the checkpoint again.",
        },
        Opt {
            name: "lazy-pages",
            kind: Kind::Flag(|o| &mut o.lazy_pages),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(3, 5),
            needs: Some(Feature::LazyPages),
            meaning: "The processes run at once, and private memory comes when it is touched, while the rest is filled beside them. Refused with a user namespace.",
        },
        Opt {
            name: "lsm-mount-context",
            kind: Kind::Text {
                form: "an SELinux context",
                set: |o, text| {
                    if text.is_empty() {
                        return Err("an empty context: leave the option out");
                    }
                    o.lsm_mount_context = Some(text.to_owned());
                    Ok(())
                },
            },
            access: Access::Node,
            field: None,
            default: "the checkpoint's",
            since: criu(3, 16),
            needs: None,
            meaning: "The SELinux context of mounts.",
        },
        Opt {
            name: "lsm-profile",
            kind: Kind::Text {
                form: "`apparmor:NAME`, `selinux:CONTEXT`",
                set: |o, text| match text.split_once(':') {
                    Some(("apparmor" | "selinux", name)) if !name.is_empty() => {
                        o.lsm_profile = Some(text.to_owned());
                        Ok(())
                    }
                    _ => Err("not a profile: write apparmor:NAME or selinux:CONTEXT"),
                },
            },
            access: Access::Node,
            field: None,
            default: "the checkpoint's",
            since: criu(3, 12),
            needs: None,
            meaning: "The LSM profile of the processes. Refused where that LSM is not in use.",
        },
        Opt {
            name: "manage-cgroups",
            kind: Kind::Word(&[("ignore", |_| {})]),
            access: Access::Node,
            field: None,
            default: "ignore",
            since: criu(1, 7),
            needs: None,
            meaning: "Only `ignore`: cryo places what it restores where the new container's specification says, and takes no cgroup from a checkpoint.",
        },
        Opt {
            name: "network-lock",
            kind: network_locks!(),
            access: Access::Anyone,
            field: None,
            default: "auto",
            since: criu(3, 19),
            needs: None,
            meaning: "How the checkpoint held packets back. `auto` is `nftables` where it has connections, else `skip`.",
        },
        Opt {
            name: "parents",
            kind: Kind::Text {
                form: "an absolute path",
                set: |o, text| {
                    let path = Path::new(text);
                    if !path.is_absolute() {
                        return Err("not an absolute path");
                    }
                    o.parents = Some(path.to_owned());
                    Ok(())
                },
            },
            access: Access::Node,
            field: None,
            default: "none",
            since: criu(1, 2),
            needs: None,
            meaning: "Restore checkpoints that were made with `parent-path`, if they and their parents are in this directory or beneath it, beside each other, and root alone can change them. Without it they are refused: a link in a checkpoint from elsewhere could lead to somebody else's memory.",
        },
        Opt {
            name: "seccomp",
            kind: Kind::Word(&[
                ("same", |o| o.any_seccomp = false),
                ("any", |o| o.any_seccomp = true),
            ]),
            access: Access::Node,
            field: None,
            default: "same",
            since: criu(1, 6),
            needs: None,
            meaning: "Which seccomp filters a checkpoint may bring where the new container's specification has a profile. `same`: each task has the very filter that this profile makes here. `any`: whatever filter; for checkpoints that are trusted and were made with another profile, runtime or libseccomp.",
        },
        Opt {
            name: "shell-job",
            kind: Kind::Refused(
                "a shim has no terminal that it could hand to what it restores: leave the option out",
            ),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(0, 8),
            needs: None,
            meaning: "Refused: a terminal of the outside cannot be given back.",
        },
        Opt {
            name: "tcp-close",
            kind: Kind::Flag(|o| &mut o.tcp_close),
            access: Access::Anyone,
            field: None,
            default: "false",
            since: criu(3, 12),
            needs: None,
            meaning: "Established TCP connections of the checkpoint are closed: for a second copy, or another address. Goes before `tcp-established`.",
        },
        Opt {
            name: "tcp-established",
            kind: Kind::Flag(|o| &mut o.tcp_established),
            access: Access::Anyone,
            field: None,
            default: "true",
            since: criu(0, 8),
            needs: None,
            meaning: "Accept a checkpoint with established TCP connections.",
        },
    ];
}
