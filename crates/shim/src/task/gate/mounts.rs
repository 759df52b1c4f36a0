//! Which mounts and devices a container may have, by its specification. Pure.
//!
//! | mount | rule |
//! |---|---|
//! | `/` | the root file system that containerd mounted, read-only if the spec says so |
//! | of the spec | its type, or for a bind the very directory or file; no flag less than the spec's |
//! | below a recursive bind | as on the node, below its source |
//! | below the cgroup mount | the container's cgroups; all of v2's, without a cgroup namespace |
//! | masked path | must be there, and show nothing of `/proc` or `/sys` |
//! | read-only path | must be there, and be read-only |
//! | `/dev/console`, devices of the spec | a terminal; that device |
//! | any other | none; with CAP_SYS_ADMIN, which could have mounted it: file systems that hold nothing of the node, and parts of what is accounted for |
//!
//! Device nodes in a tmpfs that CRIU filled: those that every container has, those of the spec,
//! and those that its device cgroup allows to use.

use std::path::{Path, PathBuf};

use cryo_engine::spec::{self, Namespace};
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, Spec};

use super::Violation;
use super::tasks::Membership;
use super::view::{Device, Flags, Mount, Node, Place, View};

/// Who the violations are about.
const WHO: &str = "the mount namespace";

/// Types of file systems that hold nothing of the node's. What `/proc` and `/sys` show is bounded
/// by the namespaces, which are checked.
const HARMLESS: &[&str] = &[
    "tmpfs", "ramfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// The devices that every container may use (runtime-spec, "Default Devices").
const DEFAULT_DEVICES: &[(u32, u32)] = &[
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

/// The major numbers of pseudoterminals.
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// The rules for one container.
#[derive(Debug)]
pub(super) struct MountPolicy {
    expected: Vec<Expected>,
    masked: Vec<PathBuf>,
    read_only: Vec<PathBuf>,
    devices: Vec<DeviceRule>,
    mounts_itself: bool,
    /// The spec asks for a cgroup namespace, so a cgroup mount shows the container's alone.
    own_cgroups: bool,
    /// Mounts of our own namespace, for recursive binds.
    ours: Vec<Mount>,
}

/// A mount that the spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    /// Where, links resolved.
    pub(super) at: PathBuf,
    pub(super) what: What,
    pub(super) flags: Flags,
}

/// What is to be seen there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// This file or directory of the node.
    Bind {
        source: PathBuf,
        identity: Option<(u64, u64)>,
        recursive: bool,
    },
    /// A file system of this type.
    FileSystem(String),
    /// The container's cgroups.
    Cgroups,
    /// This device.
    Device(Node),
    /// A terminal.
    Console,
}

/// Which devices may be used; of several that match the last counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeviceRule {
    allow: bool,
    block: Option<bool>,
    major: Option<u32>,
    minor: Option<u32>,
}

impl MountPolicy {
    /// `expected` has what the spec mounts, the root file system first.
    pub(super) fn new(
        spec: &Spec,
        mut expected: Vec<Expected>,
        mounts_itself: bool,
        ours: Vec<Mount>,
    ) -> Self {
        let linux = spec.linux().as_ref();
        let paths =
            |paths: Option<&Vec<String>>| paths.into_iter().flatten().map(PathBuf::from).collect();
        if spec::terminal(spec) {
            expected.push(Expected {
                at: "/dev/console".into(),
                what: What::Console,
                flags: Flags::default(),
            });
        }
        let mut devices = Vec::new();
        let resources = linux.and_then(|l| l.resources().as_ref());
        for rule in resources
            .and_then(|r| r.devices().as_ref())
            .into_iter()
            .flatten()
        {
            let access = rule.access().as_deref().unwrap_or("rwm");
            // To make a node of it is not to use it.
            if rule.allow() && !access.contains(['r', 'w']) {
                continue;
            }
            devices.push(DeviceRule {
                allow: rule.allow(),
                block: is_block(rule.typ().unwrap_or_default()),
                major: rule.major().and_then(|n| u32::try_from(n).ok()),
                minor: rule.minor().and_then(|n| u32::try_from(n).ok()),
            });
        }
        for device in linux
            .and_then(|l| l.devices().as_ref())
            .into_iter()
            .flatten()
        {
            let (Ok(major), Ok(minor)) =
                (u32::try_from(device.major()), u32::try_from(device.minor()))
            else {
                continue;
            };
            let block = is_block(device.typ());
            devices.push(DeviceRule {
                allow: true,
                block,
                major: Some(major),
                minor: Some(minor),
            });
            expected.push(Expected {
                at: device.path().clone(),
                what: What::Device(Node {
                    block: block == Some(true),
                    major,
                    minor,
                }),
                flags: Flags::default(),
            });
        }
        // In a user namespace these are binds too.
        for (name, minor) in [
            ("null", 3),
            ("zero", 5),
            ("full", 7),
            ("random", 8),
            ("urandom", 9),
        ] {
            expected.push(default_device(name, 1, minor));
        }
        expected.push(default_device("tty", 5, 0));
        Self {
            expected,
            masked: paths(linux.and_then(|l| l.masked_paths().as_ref())),
            read_only: paths(linux.and_then(|l| l.readonly_paths().as_ref())),
            devices,
            mounts_itself,
            own_cgroups: spec::namespace(spec, LinuxNamespaceType::Cgroup) != Namespace::Host,
            ours,
        }
    }

    /// The paths that a [`View`] for [`Self::judge`] has to have looked at.
    pub(super) fn places(&self) -> Vec<PathBuf> {
        let expected = self.expected.iter().map(|e| &e.at);
        expected
            .chain(&self.masked)
            .chain(&self.read_only)
            .cloned()
            .collect()
    }

    /// Judges a mount namespace. `placed` are the container's cgroups.
    pub(super) fn judge(&self, view: &View, placed: &[Membership]) -> Result<(), Violation> {
        let (expected, rest) = view
            .places
            .split_at(self.expected.len().min(view.places.len()));
        let (masked, read_only) = rest.split_at(self.masked.len().min(rest.len()));
        for (n, mount) in view.mounts.iter().enumerate() {
            let (before, after) = view.mounts.split_at(n);
            self.judge_mount(mount, before, after, expected, placed)?;
        }
        for (path, place) in self.masked.iter().zip(masked) {
            let top = view.mounts.iter().rev().find(|m| m.at == *path);
            if place.is_some() && !top.is_some_and(masks) {
                return Err(violation(path, "not masked", "masked"));
            }
        }
        for (path, place) in self.read_only.iter().zip(read_only) {
            if place.is_some_and(|p| !p.read_only) {
                return Err(violation(path, "writable", "read-only"));
            }
        }
        match view.devices.iter().find(|d| !self.allows(d.node)) {
            Some(Device { path, node }) => {
                let kind = if node.block { "block" } else { "character" };
                let found = format!("{kind} device {}:{}", node.major, node.minor);
                Err(violation(path, &found, "the devices of the specification"))
            }
            None => Ok(()),
        }
    }

    /// Judges one mount, between those `before` it, which are all accounted for, and itself and
    /// those `after` it.
    fn judge_mount(
        &self,
        mount: &Mount,
        before: &[Mount],
        after: &[Mount],
        places: &[Option<Place>],
        placed: &[Membership],
    ) -> Result<(), Violation> {
        let found = format!(
            "a {} mount of {}{}",
            mount.kind,
            mount.root.display(),
            told(mount.flags)
        );
        // Of several mounts at one path only the last was looked at.
        let same = |mounts: &[Mount]| mounts.iter().filter(|m| m.at == mount.at).count();
        let on_top = same(after) == 1;
        let alone = on_top && same(before) == 0;
        let mut allowed = None;
        for (expected, place) in self.expected.iter().zip(places) {
            if expected.at != mount.at {
                continue;
            }
            let cgroups = self.shows_cgroups(mount, placed);
            match fits(mount, expected, place.as_ref().filter(|_| on_top), cgroups) {
                Ok(()) => return Ok(()),
                Err(why) => allowed = Some(why),
            }
        }
        if let Some(allowed) = allowed {
            return Err(violation(&mount.at, &found, &allowed));
        }
        let harmless = HARMLESS.contains(&mount.kind.as_str());
        let known = (self.masked.contains(&mount.at) && masks(mount))
            || (self.read_only.contains(&mount.at)
                && mount.flags.read_only
                && part_of_any(mount, before))
            || self.below_cgroups(mount, placed)
            || self.recursive(mount)
            || (self.mounts_itself && (harmless || (alone && part_of_any(mount, before))));
        if known {
            Ok(())
        } else {
            Err(violation(&mount.at, &found, "none there"))
        }
    }

    /// Whether it shows the container's cgroups of one hierarchy, `placed`. Without a namespace a
    /// mount of v2 shows all of it, as at a start.
    fn shows_cgroups(&self, mount: &Mount, placed: &[Membership]) -> bool {
        let below = |p: &Membership| mount.root.starts_with(&p.path);
        match mount.kind.as_str() {
            "cgroup" => placed.iter().any(below),
            "cgroup2" if self.own_cgroups => {
                placed.iter().any(|p| p.hierarchy.is_empty() && below(p))
            }
            "cgroup2" => true,
            _ => false,
        }
    }

    /// Whether it is one hierarchy in the folder that holds them all.
    fn below_cgroups(&self, mount: &Mount, placed: &[Membership]) -> bool {
        self.shows_cgroups(mount, placed)
            && self.expected.iter().any(|e| {
                e.what == What::Cgroups
                && mount.at.starts_with(&e.at)
                // libcontainer mounts those of cgroup v1 writable, whatever the spec says.
                && !mount.flags.weaker_than(Flags {
                    read_only: e.flags.read_only && mount.kind == "cgroup2",
                    ..e.flags
                })
            })
    }

    /// Whether a recursive bind brought it along.
    fn recursive(&self, mount: &Mount) -> bool {
        self.expected.iter().any(|e| {
            let What::Bind {
                source,
                recursive: true,
                ..
            } = &e.what
            else {
                return false;
            };
            let Ok(inside) = mount.at.strip_prefix(&e.at) else {
                return false;
            };
            let there = source.join(inside);
            self.ours
                .iter()
                .any(|m| m.at == there && m.device == mount.device && m.root == mount.root)
        })
    }

    fn allows(&self, node: Node) -> bool {
        let usual =
            DEFAULT_DEVICES.contains(&(node.major, node.minor)) || TERMINALS.contains(&node.major);
        if usual && !node.block {
            return true;
        }
        self.devices
            .iter()
            .rev()
            .find(|r| {
                r.block.is_none_or(|b| b == node.block)
                    && r.major.is_none_or(|n| n == node.major)
                    && r.minor.is_none_or(|n| n == node.minor)
            })
            .is_some_and(|r| r.allow)
    }
}

fn default_device(name: &str, major: u32, minor: u32) -> Expected {
    Expected {
        at: Path::new("/dev").join(name),
        what: What::Device(Node {
            block: false,
            major,
            minor,
        }),
        flags: Flags::default(),
    }
}

/// `None` for both kinds.
fn is_block(kind: LinuxDeviceType) -> Option<bool> {
    match kind {
        LinuxDeviceType::B => Some(true),
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::P => Some(false),
        LinuxDeviceType::A => None,
    }
}

/// Whether a mount is what was asked for; if not, what that was.
/// `cgroups`: whether it shows those that it may.
fn fits(
    mount: &Mount,
    expected: &Expected,
    place: Option<&Place>,
    cgroups: bool,
) -> Result<(), String> {
    let top = Path::new("/");
    let (right, name) = match &expected.what {
        What::Bind {
            source, identity, ..
        } => (
            identity.is_some() && place.map(|p| p.identity) == *identity,
            format!("{} of the node", source.display()),
        ),
        What::FileSystem(kind) => (
            mount.kind == *kind && mount.root == top,
            format!("a {kind} mount of /"),
        ),
        // The folder that the v1 hierarchies are mounted in is never read-only.
        What::Cgroups if mount.kind == "tmpfs" && mount.root == top => return Ok(()),
        What::Cgroups => (
            mount.kind == "cgroup2" && cgroups,
            "the container's cgroups".to_owned(),
        ),
        What::Device(node) => (
            place.is_some_and(|p| p.node == Some(*node)),
            format!("device {}:{}", node.major, node.minor),
        ),
        What::Console => (mount.kind == "devpts", "a terminal".to_owned()),
    };
    if right && !mount.flags.weaker_than(expected.flags) {
        Ok(())
    } else {
        Err(format!("{name}{}", told(expected.flags)))
    }
}

/// Whether a mount covers what is below it without showing anything of the kernel's. What hides a
/// file is `/dev/null`, from the container's own `/dev` or the node's; a directory, an empty tmpfs.
fn masks(mount: &Mount) -> bool {
    match mount.kind.as_str() {
        "tmpfs" => true,
        "devtmpfs" => mount.root == Path::new("/null"),
        _ => false,
    }
}

/// Whether a mount shows only what one of the others does.
fn part_of_any(mount: &Mount, others: &[Mount]) -> bool {
    others
        .iter()
        .any(|m| m.device == mount.device && mount.root.starts_with(&m.root))
}

impl Flags {
    /// The flags among the options of a mount of the spec; of opposites the last counts.
    pub(super) fn of_options<'a>(options: impl IntoIterator<Item = &'a String>) -> Self {
        let mut flags = Self::default();
        for option in options {
            match option.as_str() {
                "ro" | "rro" => flags.read_only = true,
                "rw" => flags.read_only = false,
                "nosuid" => flags.nosuid = true,
                "suid" => flags.nosuid = false,
                "nodev" => flags.nodev = true,
                "dev" => flags.nodev = false,
                "noexec" => flags.noexec = true,
                "exec" => flags.noexec = false,
                _ => {}
            }
        }
        flags
    }

    fn weaker_than(self, other: Self) -> bool {
        (other.read_only && !self.read_only)
            || (other.nosuid && !self.nosuid)
            || (other.nodev && !self.nodev)
            || (other.noexec && !self.noexec)
    }
}

fn told(flags: Flags) -> String {
    let mut text = String::new();
    for (set, name) in [
        (flags.read_only, "ro"),
        (flags.nosuid, "nosuid"),
        (flags.nodev, "nodev"),
        (flags.noexec, "noexec"),
    ] {
        if set {
            text.push(if text.is_empty() { ' ' } else { ',' });
            text.push_str(name);
        }
    }
    text
}

fn violation(path: &Path, found: &str, allowed: &str) -> Violation {
    Violation {
        who: WHO.to_owned(),
        property: format!("{}", path.display()),
        found: found.to_owned(),
        allowed: allowed.to_owned(),
    }
}

#[cfg(test)]
mod tests;
