//! `core-PID.img`: what a thread may do. [`crate::task::Core`] is another view of the message.

use crate::msg::{CredsEntry, SecurityEntry};
use crate::{At, Error, Kind, View};

/// What a thread may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Its users, groups and capabilities; older images have them in `creds-PID.img` only.
    pub credentials: Option<Credentials>,
    /// How its system calls are filtered: 0 not, 1 strictly, 2 by a filter.
    pub seccomp_mode: Option<i32>,
    /// The first of its filters, by its position in `seccomp.img`.
    pub seccomp_filter: Option<u32>,
}

/// Users, groups and capabilities, as the container sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective, saved and file system user.
    pub users: [u32; 4],
    /// Real, effective, saved and file system group.
    pub groups: [u32; 4],
    /// Its other groups.
    pub more_groups: Vec<u32>,
    /// Inheritable capabilities, bit N for the capability N.
    pub inheritable: u64,
    /// Permitted capabilities.
    pub permitted: u64,
    /// Effective capabilities.
    pub effective: u64,
    /// The most that it may ever have.
    pub bounding: u64,
    /// Ambient capabilities.
    pub ambient: u64,
    /// Flags of `prctl(PR_SET_SECUREBITS)`.
    pub securebits: u32,
    /// Whether programs that it runs cannot give it more.
    pub no_new_privileges: bool,
    /// The label of the security module.
    pub lsm_profile: Option<Vec<u8>>,
}

impl View for Security {
    type Wire = SecurityEntry;

    const KIND: Kind = Kind::Core;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let Some(thread) = wire.thread_core else {
            return Ok(Self {
                credentials: None,
                seccomp_mode: None,
                seccomp_filter: None,
            });
        };
        Ok(Self {
            credentials: thread
                .creds
                .map(|creds| Credentials::from_wire(creds, at))
                .transpose()?,
            seccomp_mode: thread.seccomp_mode,
            seccomp_filter: thread.seccomp_filter,
        })
    }
}

impl Credentials {
    fn from_wire(wire: CredsEntry, at: At<'_>) -> Result<Self, Error> {
        Ok(Self {
            users: [
                at.need(wire.uid, "creds.uid")?,
                at.need(wire.euid, "creds.euid")?,
                at.need(wire.suid, "creds.suid")?,
                at.need(wire.fsuid, "creds.fsuid")?,
            ],
            groups: [
                at.need(wire.gid, "creds.gid")?,
                at.need(wire.egid, "creds.egid")?,
                at.need(wire.sgid, "creds.sgid")?,
                at.need(wire.fsgid, "creds.fsgid")?,
            ],
            more_groups: wire.groups,
            inheritable: capabilities(&wire.cap_inh, at, "creds.cap_inh")?,
            permitted: capabilities(&wire.cap_prm, at, "creds.cap_prm")?,
            effective: capabilities(&wire.cap_eff, at, "creds.cap_eff")?,
            bounding: capabilities(&wire.cap_bnd, at, "creds.cap_bnd")?,
            ambient: capabilities(&wire.cap_amb, at, "creds.cap_amb")?,
            securebits: at.need(wire.secbits, "creds.secbits")?,
            no_new_privileges: wire.no_new_privs.unwrap_or_default() != 0,
            lsm_profile: wire.lsm_profile,
        })
    }
}

/// Words of 32 bits, the lowest first.
fn capabilities(words: &[u32], at: At<'_>, field: &'static str) -> Result<u64, Error> {
    match *words {
        [] => Ok(0),
        [low] => Ok(low.into()),
        [low, high] => Ok(u64::from(high) << 32 | u64::from(low)),
        _ => Err(at.bad_value(field, format_args!("{} words", words.len()))),
    }
}
