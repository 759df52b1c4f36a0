//! The kernel, criu, and what else is of the node alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use cryo_criu::config::{self, Config};
use cryo_criu::{Criu, CriuError, Probe};

use super::judge_program;
use crate::finding::Finding;
use crate::nodeinfo;
use crate::text;

/// What is asked of the kernel by number: names and bits of capabilities that criu and the shim
/// use.
const CAPABILITIES: [(&str, u32); 9] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SETUID", 7),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
];

/// Where checkpoints and what belongs to them go, and what for.
const DISKS: [(&str, &str); 3] = [
    ("/var/lib/cryo", "restores and logs of failures"),
    (
        "/var/lib/containerd",
        "root file systems and checkpoints on their way",
    ),
    ("/var/lib/kubelet/checkpoints", "checkpoints of the kubelet"),
];

/// Less room than this is told.
const LITTLE_BYTES: u64 = 1 << 30;

pub(super) fn look(all: &mut Vec<Finding>) {
    all.push(rights());
    let configured = match Config::load(config::PATH.as_ref()) {
        Ok(config) => {
            all.push(Finding::ok(
                "config",
                match Path::new(config::PATH).exists() {
                    true => format!("{} is read", config::PATH),
                    false => format!("there is no {}: the defaults are used", config::PATH),
                },
            ));
            config.criu.path
        }
        Err(error) => {
            all.push(Finding::error(
                "config",
                error.to_string(),
                "correct the file, or remove it for the defaults: each checkpoint and restore reads it",
            ));
            None
        }
    };
    criu(configured.as_deref(), all);
    kernel(all);
    all.push(network_lock());
    for (path, what) in DISKS {
        if let Some(finding) = disk(path, what) {
            all.push(finding);
        }
    }
}

fn rights() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    judge_rights(set.unwrap_or_default())
}

fn judge_rights(set: u64) -> Finding {
    const RESOURCE: u32 = 24;
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(_, bit)| set & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() && set & (1 << RESOURCE) == 0 {
        return Finding::warning(
            "rights",
            "CAP_SYS_RESOURCE is not here: limits of restored processes cannot be raised",
            "run this as root of the node, if it is to be otherwise",
        );
    }
    if missing.is_empty() {
        return Finding::ok("rights", "all capabilities that are needed are here");
    }
    Finding::error(
        "rights",
        format!("not here: {}", missing.join(", ")),
        "run this as root; containerd and its shims need these too",
    )
}

fn criu(configured: Option<&Path>, all: &mut Vec<Finding>) {
    let found = Criu::find(configured).and_then(|criu| Ok((criu.probe()?, criu)));
    let (probe, criu) = match found {
        Ok(found) => found,
        Err(error) => {
            let remedy = match &error {
                CriuError::NotFound { .. } => {
                    "install criu 4.0 or newer, or name it in /etc/cryo/config.toml: [criu] path = \"...\""
                }
                CriuError::TooOld { .. } => "install criu 4.0 or newer",
                _ => "run `criu check` as root: it says more",
            };
            return all.push(Finding::error("criu", error.to_string(), remedy));
        }
    };
    let path = criu.binary();
    all.push(Finding::ok(
        "criu",
        format!("{} is {}", path.display(), probe.version),
    ));
    judge_program("criu-file", path, all);
    all.push(check(path));
    features(&probe, all);
}

/// What criu itself finds.
fn check(criu: &Path) -> Finding {
    let done = Command::new(criu).arg("check").env_clear().output();
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            return Finding::error(
                "criu-check",
                format!("{} cannot be run: {error}", criu.display()),
                "install criu anew",
            );
        }
    };
    if done.status.success() {
        return Finding::ok("criu-check", "criu finds the kernel good");
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let first = said.lines().find(|line| line.contains("Error"));
    Finding::error(
        "criu-check",
        format!(
            "criu misses something: {}",
            first
                .or(said.lines().next())
                .unwrap_or("it does not say what")
        ),
        "use a kernel with CONFIG_CHECKPOINT_RESTORE and what else `criu check` names; see https://criu.org/Linux_kernel",
    )
}

fn features(probe: &Probe, all: &mut Vec<Finding>) {
    all.push(if probe.mem_track {
        Finding::ok("memory-tracking", "changes of memory can be tracked")
    } else {
        Finding::warning(
            "memory-tracking",
            "changes of memory cannot be tracked: pre-dump and parent-path are refused",
            "use a kernel with CONFIG_MEM_SOFT_DIRTY, if you need them",
        )
    });
    all.push(if probe.lazy_pages && nodeinfo::has_userfaultfd() {
        Finding::ok("userfaultfd", "memory can be filled on demand")
    } else {
        Finding::warning(
            "userfaultfd",
            "memory cannot be filled on demand",
            "use a kernel with CONFIG_USERFAULTFD, if you need lazy restores",
        )
    });
}

fn kernel(all: &mut Vec<Finding>) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    all.push(match version(&release) {
        Some(version) if version >= (5, 13) => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::warning(
            "kernel",
            format!("Linux {release} is older than what cryo is tested with"),
            "use Linux 6.1 or newer",
        ),
    });
    let machine = uname.machine().to_string_lossy().into_owned();
    all.push(match machine.as_str() {
        "x86_64" | "aarch64" => Finding::ok("architecture", machine),
        _ => Finding::warning(
            "architecture",
            format!("cryo is not tested on {machine}"),
            "expect surprises, and tell us",
        ),
    });
    let mode = nodeinfo::cgroup_mode();
    let freezer = mode == "v2" || Path::new("/sys/fs/cgroup/freezer").is_dir();
    all.push(if freezer {
        Finding::ok("cgroup", format!("{mode}, with a freezer"))
    } else {
        Finding::error(
            "cgroup",
            format!("{mode}, without a freezer: containers cannot be stopped"),
            "mount the freezer hierarchy, or start the kernel with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)",
        )
    });
    let lsms = nodeinfo::lsms();
    if !lsms.is_empty() {
        all.push(Finding::note(
            "lsm",
            format!(
                "in use: {}; a checkpoint is restored under the profile that it had",
                lsms.join(", ")
            ),
        ));
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What holds packets of kept connections back. CRIU brings nftables itself; `nft` is for who has
/// to clean up by hand.
fn network_lock() -> Finding {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let has = |program| super::in_path(path, program).is_some();
    match (has("nft"), has("iptables-restore")) {
        (true, true) => Finding::ok("network-lock", "nftables and iptables"),
        (true, false) => Finding::ok("network-lock", "nftables"),
        (false, true) => Finding::warning(
            "network-lock",
            "iptables alone: keeping connections needs network-lock = \"iptables\"",
            "install nftables, or set it in /etc/cryo/config.toml",
        ),
        (false, false) => Finding::warning(
            "network-lock",
            "neither nftables nor iptables: connections cannot be kept (tcp-established)",
            "install nftables",
        ),
    }
}

/// Of the nearest directory that is there; nothing for what this node does not use.
fn disk(path: &str, what: &str) -> Option<Finding> {
    let used = Path::new(path);
    if !used.exists() && path != "/var/lib/cryo" {
        return None;
    }
    let there = used.ancestors().find(|dir| dir.exists())?;
    let room = rustix::fs::statvfs(there).ok()?;
    Some(judge_disk(
        path,
        what,
        room.f_bavail.saturating_mul(room.f_frsize),
    ))
}

fn judge_disk(path: &str, what: &str, free: u64) -> Finding {
    let free_text = text::bytes(free);
    if free < LITTLE_BYTES {
        return Finding::warning(
            "disk",
            format!("{path} has {free_text} left for {what}"),
            "make room: a checkpoint is as large as the memory of its container",
        );
    }
    Finding::ok("disk", format!("{path} has {free_text} left for {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(judge_rights(u64::MAX).severity, Severity::Ok);
        let finding = judge_rights(!(1 << 21));
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.text.contains("CAP_SYS_ADMIN"), "{finding:?}");
        assert_eq!(judge_disk("/x", "y", 2 << 30).severity, Severity::Ok);
        let finding = judge_disk("/x", "y", 2 << 20);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.text.contains("2.0 MiB"), "{finding:?}");
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.18.5-cloud"), Some((6, 18)));
        assert_eq!(version("x"), None);
    }
}
