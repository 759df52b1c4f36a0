//! The forgeries, and how it is seen that one took effect.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use cryo_e2e::images::{Message, edit, inherit};
use cryo_e2e::lab::Node;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// One forgery.
pub(super) struct Attack {
    /// As the table names it.
    pub(super) name: &'static str,
    /// Forges the images in this folder.
    pub(super) forge: fn(&Path) -> anyhow::Result<()>,
    /// Whether a restored container has what was asked for.
    pub(super) effect: fn(&Restored<'_>) -> anyhow::Result<bool>,
    pub(super) cryo: Outcome,
    pub(super) runc: Outcome,
}

/// What comes of a forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is refused; the error has these words.
    Refused(&'static str),
    /// It is restored, but not as it asked.
    NoEffect,
    /// It gets what it asked for.
    TakesEffect,
    /// It is not tried, for this reason.
    NotTried(&'static str),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused("") => f.write_str("refused"),
            Self::Refused(words) => write!(f, "refused: `{words}`"),
            Self::NoEffect => f.write_str("no effect"),
            Self::TakesEffect => f.write_str("**takes effect**"),
            Self::NotTried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// The first process of a container that was restored from a forgery.
pub(super) struct Restored<'a> {
    pub(super) node: &'a Node,
    pub(super) pid: u32,
}

impl Restored<'_> {
    fn proc(&self, file: &str) -> PathBuf {
        self.node.host(&format!("/proc/{}/{file}", self.pid))
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(self.proc(file)).with_context(|| file.to_owned())
    }

    /// A field of `/proc/PID/status`.
    pub(super) fn status(&self, field: &str) -> anyhow::Result<String> {
        let text = self.read("status")?;
        let found = text
            .lines()
            .find_map(|l| l.strip_prefix(field)?.strip_prefix(":\t"));
        found.map(str::to_owned).with_context(|| field.to_owned())
    }

    /// The options of the mount at a path, if there is one.
    fn mount(&self, path: &str) -> anyhow::Result<Option<String>> {
        let table = self.read("mountinfo")?;
        let line = table.lines().find(|l| l.split(' ').nth(4) == Some(path));
        Ok(line.and_then(|l| l.split(' ').nth(5)).map(str::to_owned))
    }

    fn in_the_nodes(&self, namespace: &str) -> anyhow::Result<bool> {
        let nodes = format!("/proc/{}/ns/{namespace}", self.node.pid());
        Ok(
            std::fs::read_link(self.proc(&format!("ns/{namespace}")))?
                == std::fs::read_link(nodes)?,
        )
    }
}

// Numbers of fields in CRIU's messages.
const CORE_THREAD: u64 = 5;
const THREAD_CREDS: u64 = 10;
const THREAD_SECCOMP: [u64; 2] = [11, 12];
const CREDS_CAPABILITIES: std::ops::RangeInclusive<u64> = 9..=12;
const CREDS_LSM_PROFILE: u64 = 15;
const CREDS_NO_NEW_PRIVS: u64 = 18;
const MOUNT_ID: u64 = 2;
const MOUNT_DEVICE: u64 = 3;
const MOUNT_PARENT: u64 = 4;
const MOUNT_FLAGS: u64 = 5;
const MOUNT_POINT: u64 = 7;
const READ_ONLY: u64 = 1;

/// Where a forged log leads to.
const LOG: &str = "/tmp/hostile.log";

/// The only instruction of a filter: return SECCOMP_RET_ALLOW.
const ALLOW_ALL: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];

/// What the node itself may: more would be the kernel's to refuse.
fn all_capabilities() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:\t"));
    Ok(u64::from_str_radix(line.context("no CapEff")?, 16)?)
}

fn has_all_capabilities(restored: &Restored<'_>) -> anyhow::Result<bool> {
    let effective = u64::from_str_radix(&restored.status("CapEff")?, 16)?;
    Ok(effective == all_capabilities()?)
}

/// The images in a folder with this beginning of their name.
fn images(folder: &Path, prefix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name.ends_with(".img") {
            found.push(folder.join(name));
        }
    }
    ensure!(!found.is_empty(), "no {prefix}*.img");
    found.sort();
    Ok(found)
}

/// Changes what the images of these tasks say of their first thread.
fn threads(cores: Vec<PathBuf>, change: impl Fn(Message) -> Message) -> anyhow::Result<()> {
    for core in cores {
        edit(&core, |messages| {
            messages
                .iter_mut()
                .for_each(|m| m.inside(CORE_THREAD, &change));
        })?;
    }
    Ok(())
}

fn credentials(cores: Vec<PathBuf>, change: impl Fn(Message) -> Message) -> anyhow::Result<()> {
    threads(cores, |mut thread| {
        thread.inside(THREAD_CREDS, &change);
        thread
    })
}

fn with_all_capabilities(cores: Vec<PathBuf>) -> anyhow::Result<()> {
    let all = all_capabilities()?;
    let words = [all & 0xffff_ffff, all >> 32];
    credentials(cores, |creds| {
        CREDS_CAPABILITIES.fold(creds, |creds, set| creds.with(set, &words))
    })
}

/// Puts the tasks into the namespace that CRIU was in at the dump.
fn in_host_namespace(folder: &Path, field: u64) -> anyhow::Result<()> {
    let mut hosts = None;
    // Read by an edit that changes nothing worth telling.
    edit(&folder.join("inventory.img"), |messages| {
        for message in messages {
            message.inside(3, |ids| {
                hosts = ids.number(field);
                ids
            });
            *message = message.clone().with(14, &[0]);
        }
    })?;
    let hosts = hosts.context("the inventory names no namespaces")?;
    for ids in images(folder, "ids-")? {
        edit(&ids, |messages| {
            for message in messages {
                *message = message.clone().with(field, &[hosts]);
            }
        })?;
    }
    Ok(())
}

fn mounts(folder: &Path, change: impl FnOnce(&mut Vec<Message>)) -> anyhow::Result<()> {
    let table = images(folder, "mountpoints-")?.remove(0);
    edit(&table, change)
}

fn writable(folder: &Path, path: &str) -> anyhow::Result<()> {
    mounts(folder, |mounts| {
        for mount in mounts
            .iter_mut()
            .filter(|m| m.text(MOUNT_POINT) == Some(path))
        {
            let flags = mount.number(MOUNT_FLAGS).unwrap_or(0);
            *mount = mount.clone().with(MOUNT_FLAGS, &[flags & !READ_ONLY]);
        }
    })
}

fn without_mount(folder: &Path, path: &str) -> anyhow::Result<()> {
    mounts(folder, |mounts| {
        mounts.retain(|m| m.text(MOUNT_POINT) != Some(path))
    })
}

/// A mount that shows folders of the node.
fn overlay_of_the_node(folder: &Path) -> anyhow::Result<()> {
    mounts(folder, |mounts| {
        let root = mounts.iter().find(|m| m.text(MOUNT_POINT) == Some("/"));
        let parent = root.and_then(|m| m.number(MOUNT_ID)).unwrap_or(0);
        let mount = Message::default()
            .with(1, &[17])
            .with(MOUNT_ID, &[9999])
            .with(MOUNT_DEVICE, &[0x999])
            .with(MOUNT_PARENT, &[parent])
            .with(MOUNT_FLAGS, &[READ_ONLY])
            .with_bytes(6, "/")
            .with_bytes(MOUNT_POINT, "/evil")
            .with_bytes(8, "overlay")
            .with_bytes(9, "lowerdir=/etc:/usr")
            .with(10, &[0])
            .with(11, &[0])
            .with(17, &[0]);
        // CRIU reads them from the leaves to the root.
        mounts.insert(0, mount);
    })
}

/// A block device in the tmpfs at `/run`.
fn device_in_a_tmpfs(folder: &Path) -> anyhow::Result<()> {
    let mut device = None;
    let table = images(folder, "mountpoints-")?.remove(0);
    let whole = std::fs::read(&table)?;
    edit(&table, |mounts| {
        let run = mounts.iter().find(|m| m.text(MOUNT_POINT) == Some("/run"));
        device = run.and_then(|m| m.number(MOUNT_DEVICE));
        mounts.clear();
    })?;
    std::fs::write(&table, whole)?;
    let device = device.context("no mount at /run")?;
    let plain = folder.join("content.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&plain)?);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    archive.append_data(&mut header, "./", std::io::empty())?;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Block);
    header.set_mode(0o666);
    header.set_size(0);
    header.set_device_major(8)?;
    header.set_device_minor(0)?;
    archive.append_data(&mut header, "./disk", std::io::empty())?;
    archive.into_inner()?.sync_all()?;
    let packed = Command::new("gzip").arg("-c").arg(&plain).output()?;
    ensure!(packed.status.success(), "gzip: {packed:?}");
    std::fs::write(
        folder.join(format!("tmpfs-dev-{device}.tar.gz.img")),
        packed.stdout,
    )?;
    std::fs::remove_file(plain)?;
    Ok(())
}

/// Moves the first file of memory pages out of the folder; where it was, and where it is.
fn pages_elsewhere(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let pages = images(folder, "pages-")?.remove(0);
    let elsewhere = folder.with_extension("pages");
    std::fs::rename(&pages, &elsewhere)?;
    Ok((pages, elsewhere))
}

fn node_in_place_of_pages(folder: &Path, kind: FileType, device: u64) -> anyhow::Result<()> {
    let (pages, elsewhere) = pages_elsewhere(folder)?;
    std::fs::remove_file(elsewhere)?;
    mknodat(CWD, &pages, kind, Mode::from_raw_mode(0o600), device)?;
    Ok(())
}

pub(super) const RIGHTS: &[Attack] = &[
    Attack {
        name: "all capabilities",
        forge: |folder| with_all_capabilities(images(folder, "core-")?),
        effect: has_all_capabilities,
        cryo: Outcome::Refused("bounding capabilities: found CAP_"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "all capabilities for a child of the first process",
        forge: |folder| {
            let mut cores = images(folder, "core-")?;
            cores.retain(|c| !c.ends_with("core-1.img"));
            with_all_capabilities(cores)
        },
        effect: |restored| {
            let children = restored.read(&format!("task/{}/children", restored.pid))?;
            let child = children.split_whitespace().next().context("no child")?;
            let child = Restored {
                node: restored.node,
                pid: child.parse()?,
            };
            has_all_capabilities(&child)
        },
        cryo: Outcome::Refused("bounding capabilities: found CAP_"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "no seccomp filter",
        forge: |folder| {
            threads(images(folder, "core-")?, |thread| {
                THREAD_SECCOMP.into_iter().fold(thread, Message::without)
            })
        },
        effect: |restored| Ok(restored.status("Seccomp")? == "0"),
        cryo: Outcome::Refused("seccomp: found mode 0, allowed mode 2 (filters)"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a seccomp filter that allows all",
        forge: |folder| {
            edit(&folder.join("seccomp.img"), |messages| {
                for message in messages {
                    message.inside(1, |filter| filter.with_bytes(1, ALLOW_ALL));
                }
            })
        },
        effect: |restored| Ok(restored.status("Seccomp")? == "2"),
        cryo: Outcome::Refused("seccomp filters: found others, of 1 instructions"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a seccomp filter that allows all in place of the right one, which is there too",
        forge: |folder| {
            let mut last = 0;
            edit(&folder.join("seccomp.img"), |messages| {
                for message in messages {
                    message.inside(1, |filter| {
                        last += 1;
                        filter
                    });
                    message.add_bytes(1, Message::default().with_bytes(1, ALLOW_ALL).encode());
                }
            })?;
            threads(images(folder, "core-")?, |thread| {
                thread.with(THREAD_SECCOMP[1], &[last])
            })
        },
        effect: |restored| Ok(restored.status("Seccomp")? == "2"),
        cryo: Outcome::Refused("seccomp filters: found others, of 1 instructions"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "`no_new_privs` cleared",
        forge: |folder| {
            credentials(images(folder, "core-")?, |c| {
                c.with(CREDS_NO_NEW_PRIVS, &[0])
            })
        },
        effect: |restored| Ok(restored.status("NoNewPrivs")? == "0"),
        cryo: Outcome::Refused("no_new_privs: found 0, allowed 1"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "another profile of the security module",
        forge: |folder| {
            credentials(images(folder, "core-")?, |c| {
                c.with_bytes(CREDS_LSM_PROFILE, "unconfined")
            })
        },
        effect: |restored| Ok(restored.read("attr/current")?.starts_with("unconfined")),
        cryo: Outcome::Refused(""),
        runc: Outcome::Refused(""),
    },
];

pub(super) const NAMESPACES: &[Attack] = &[
    Attack {
        name: "the node's network namespace",
        forge: |folder| in_host_namespace(folder, 6),
        effect: |restored| restored.in_the_nodes("net"),
        cryo: Outcome::Refused("net namespace: found"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "the node's IPC namespace",
        forge: |folder| in_host_namespace(folder, 7),
        effect: |restored| restored.in_the_nodes("ipc"),
        cryo: Outcome::Refused("ipc namespace: found"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "the node's UTS namespace",
        forge: |folder| in_host_namespace(folder, 8),
        effect: |restored| restored.in_the_nodes("uts"),
        cryo: Outcome::Refused("uts namespace: found"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "the node's mount namespace",
        forge: |folder| in_host_namespace(folder, 9),
        effect: |restored| restored.in_the_nodes("mnt"),
        cryo: Outcome::Refused("its processes are in the mount namespace of the node"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "the node's pid namespace",
        forge: |folder| in_host_namespace(folder, 5),
        effect: |restored| restored.in_the_nodes("pid"),
        cryo: Outcome::Refused("its processes are in the pid namespace of the node"),
        runc: Outcome::Refused(""),
    },
    Attack {
        name: "a cgroup of its own choice",
        forge: |folder| {
            edit(&folder.join("cgroup.img"), |messages| {
                for message in messages {
                    message.inside(1, |mut set| {
                        set.inside(2, |member| member.with_bytes(2, "/elsewhere"));
                        set
                    });
                }
            })
        },
        effect: |restored| Ok(restored.read("cgroup")?.contains("/elsewhere")),
        cryo: Outcome::NoEffect,
        runc: Outcome::Refused(""),
    },
];

pub(super) const MOUNTS: &[Attack] = &[
    Attack {
        name: "a mount that shows the node's folders",
        forge: overlay_of_the_node,
        effect: |restored| Ok(restored.proc("root/evil/passwd").exists()),
        cryo: Outcome::Refused("/evil: found a overlay mount of / ro, allowed none there"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a masked file of `/proc` not masked",
        forge: |folder| without_mount(folder, "/proc/keys"),
        effect: |restored| Ok(restored.mount("/proc/keys")?.is_none()),
        cryo: Outcome::Refused("/proc/keys: found not masked, allowed masked"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a masked folder of `/sys` not masked",
        forge: |folder| without_mount(folder, "/sys/firmware"),
        effect: |restored| Ok(restored.mount("/sys/firmware")?.is_none()),
        cryo: Outcome::Refused("/sys/firmware: found not masked, allowed masked"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "`/proc/sys` writable",
        forge: |folder| writable(folder, "/proc/sys"),
        effect: |restored| {
            Ok(restored
                .mount("/proc/sys")?
                .is_some_and(|o| o.starts_with("rw")))
        },
        cryo: Outcome::Refused(
            "/proc/sys: found a proc mount of /sys nosuid,nodev,noexec, allowed",
        ),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a read-only volume writable",
        forge: |folder| writable(folder, "/mnt"),
        effect: |restored| Ok(restored.mount("/mnt")?.is_some_and(|o| o.starts_with("rw"))),
        cryo: Outcome::Refused("/mnt: found a"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "a block device in a tmpfs",
        forge: device_in_a_tmpfs,
        effect: |restored| {
            let disk = std::fs::symlink_metadata(restored.proc("root/run/disk"));
            Ok(disk.is_ok_and(|d| d.file_type().is_block_device()))
        },
        cryo: Outcome::Refused("/run/disk: found block device 8:0, allowed"),
        runc: Outcome::TakesEffect,
    },
];

pub(super) const FILES: &[Attack] = &[
    Attack {
        name: "memory pages by a symbolic link",
        forge: |folder| {
            let (pages, elsewhere) = pages_elsewhere(folder)?;
            let name = elsewhere.file_name().context("a name")?;
            Ok(symlink(Path::new("..").join(name), pages)?)
        },
        effect: |_| Ok(true),
        cryo: Outcome::Refused("is a symbolic link"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "memory pages by a hard link",
        forge: |folder| {
            let (pages, elsewhere) = pages_elsewhere(folder)?;
            Ok(std::fs::hard_link(elsewhere, pages)?)
        },
        effect: |_| Ok(true),
        cryo: Outcome::Refused("is a hard link"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "memory of another checkpoint, by a link to a parent",
        forge: |folder| inherit(folder, &folder.with_extension("parent")),
        effect: |_| Ok(true),
        cryo: Outcome::Refused("parent is a symbolic link"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "memory pages from a device",
        forge: |folder| node_in_place_of_pages(folder, FileType::CharacterDevice, makedev(1, 5)),
        effect: |_| Ok(true),
        cryo: Outcome::Refused("is a device"),
        runc: Outcome::Refused(""),
    },
    Attack {
        name: "memory pages from a fifo",
        forge: |folder| node_in_place_of_pages(folder, FileType::Fifo, 0),
        effect: |_| Ok(true),
        cryo: Outcome::Refused("is a fifo"),
        runc: Outcome::NotTried("CRIU waits for a writer, for ever"),
    },
    Attack {
        name: "a folder in place of memory pages",
        forge: |folder| {
            let (pages, elsewhere) = pages_elsewhere(folder)?;
            std::fs::remove_file(elsewhere)?;
            Ok(std::fs::create_dir(pages)?)
        },
        effect: |_| Ok(true),
        cryo: Outcome::Refused("is a directory"),
        runc: Outcome::Refused(""),
    },
    Attack {
        name: "a file that CRIU does not write",
        forge: |folder| Ok(std::fs::write(folder.join("plugin.so"), "")?),
        // CRIU has no reason to open it.
        effect: |_| Ok(false),
        cryo: Outcome::Refused("plugin.so is no file of a checkpoint"),
        runc: Outcome::NoEffect,
    },
    Attack {
        name: "an image that any user can change",
        forge: |folder| {
            let anybody = std::fs::Permissions::from_mode(0o666);
            Ok(std::fs::set_permissions(
                folder.join("core-1.img"),
                anybody,
            )?)
        },
        effect: |_| Ok(true),
        cryo: Outcome::Refused("core-1.img can be changed by others than root"),
        runc: Outcome::TakesEffect,
    },
    Attack {
        name: "the log of CRIU by a symbolic link",
        forge: |folder| Ok(symlink(LOG, folder.join("restore.log"))?),
        effect: |restored| Ok(restored.node.host(LOG).exists()),
        cryo: Outcome::Refused("is a symbolic link"),
        runc: Outcome::NoEffect,
    },
];
