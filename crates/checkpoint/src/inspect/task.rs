//! What a process may do, where it is, and its registers.

use std::collections::BTreeMap;

use cryo_criu_image::inventory::TaskIds;
use cryo_criu_image::registers::{Registers, Thread, X86};
use cryo_criu_image::security::Security;
use serde::{Serialize, Serializer};

/// What a process may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CredentialsNode {
    /// Real, effective, saved and file system user.
    pub users: [u32; 4],
    /// Real, effective, saved and file system group.
    pub groups: [u32; 4],
    /// Its other groups.
    pub supplementary_groups: Vec<u32>,
    /// Names of its effective capabilities.
    pub effective: Vec<String>,
    /// Of those it may take up.
    pub permitted: Vec<String>,
    /// Of those that programs it runs inherit.
    pub inheritable: Vec<String>,
    /// Of those they have at once.
    pub ambient: Vec<String>,
    /// Of the most it may ever have.
    pub bounding: Vec<String>,
    /// Whether programs that it runs cannot give it more.
    pub no_new_privileges: bool,
    /// `disabled`, `strict`, `filter` or `unknown`.
    pub seccomp: &'static str,
    /// The label of the security module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsm_profile: Option<String>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThreadNode {
    /// Its number.
    pub tid: u32,
    /// Its registers in the order of the machine, in hexadecimal.
    #[serde(serialize_with = "as_object")]
    pub registers: Vec<(&'static str, String)>,
}

pub(super) fn namespaces(ids: TaskIds) -> BTreeMap<&'static str, u32> {
    let all = [
        ("pid", ids.pid_ns),
        ("net", ids.net_ns),
        ("ipc", ids.ipc_ns),
        ("uts", ids.uts_ns),
        ("mnt", ids.mnt_ns),
        ("user", ids.user_ns),
        ("cgroup", ids.cgroup_ns),
        ("time", ids.time_ns),
    ];
    all.into_iter()
        .filter_map(|(name, id)| Some((name, id?)))
        .collect()
}

pub(super) fn credentials(security: &Security) -> Option<CredentialsNode> {
    let own = security.credentials.as_ref()?;
    let lossy = |text: &Vec<u8>| String::from_utf8_lossy(text).into_owned();
    Some(CredentialsNode {
        users: own.users,
        groups: own.groups,
        supplementary_groups: own.more_groups.clone(),
        effective: capabilities(own.effective),
        permitted: capabilities(own.permitted),
        inheritable: capabilities(own.inheritable),
        ambient: capabilities(own.ambient),
        bounding: capabilities(own.bounding),
        no_new_privileges: own.no_new_privileges,
        seccomp: match security.seccomp_mode {
            None | Some(0) => "disabled",
            Some(1) => "strict",
            Some(2) => "filter",
            Some(_) => "unknown",
        },
        lsm_profile: own.lsm_profile.as_ref().map(lossy),
    })
}

/// The kernel's names of its capabilities, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capabilities(set: u64) -> Vec<String> {
    (0..64usize)
        .filter(|number| set >> number & 1 == 1)
        .map(|number| match CAPABILITIES.get(number) {
            Some(name) => format!("CAP_{name}"),
            None => format!("CAP_{number}"),
        })
        .collect()
}

pub(super) fn registers(thread: &Thread) -> Vec<(&'static str, String)> {
    match &thread.registers {
        Some(Registers::X86(x86)) => X86::NAMES
            .into_iter()
            .zip(x86.general)
            .map(|(name, value)| (name, format!("{value:016x}")))
            .collect(),
        Some(Registers::Aarch64(arm)) => AARCH64
            .into_iter()
            .zip(arm.general)
            .map(|(name, value)| (name, format!("{value:016x}")))
            .collect(),
        _ => Vec::new(),
    }
}

/// The general registers of 64-bit ARM, in Linux's order.
const AARCH64: [&str; 34] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
    "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27",
    "x28", "x29", "x30", "sp", "pc", "pstate",
];

fn as_object<S: Serializer>(
    registers: &[(&'static str, String)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(registers.iter().map(|(name, value)| (name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names() {
        assert_eq!(capabilities(0), Vec::<String>::new());
        assert_eq!(
            capabilities(1 | 1 << 40 | 1 << 41),
            ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_41"]
        );
    }
}
