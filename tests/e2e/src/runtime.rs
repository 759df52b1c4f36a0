//! Which shim the suite is pointed at.

use anyhow::bail;

/// The shim under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `containerd-shim-cryo-v2`.
    Cryo,
    /// containerd's own `containerd-shim-runc-v2` with runc: the peer.
    Runc,
}

impl Runtime {
    /// From `CRYO_E2E_RUNTIME`; cryo when it is not set.
    ///
    /// # Errors
    /// When the variable names neither of the two.
    pub fn from_env() -> anyhow::Result<Self> {
        match std::env::var("CRYO_E2E_RUNTIME").as_deref() {
            Err(_) | Ok("" | "cryo") => Ok(Self::Cryo),
            Ok("runc") => Ok(Self::Runc),
            Ok(other) => bail!("CRYO_E2E_RUNTIME is {other:?}, wanted cryo or runc"),
        }
    }

    /// As `CRYO_E2E_RUNTIME` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cryo => "cryo",
            Self::Runc => "runc",
        }
    }

    /// The runtime name that containerd's API and `ctr --runtime` want.
    pub fn containerd_name(self) -> &'static str {
        match self {
            Self::Cryo => "io.containerd.cryo.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    /// The CRI handler of the recommended installation.
    pub fn handler(self) -> &'static str {
        match self {
            Self::Cryo => "cryo",
            Self::Runc => "runc",
        }
    }

    /// The shim's file name.
    pub fn shim(self) -> &'static str {
        match self {
            Self::Cryo => "containerd-shim-cryo-v2",
            Self::Runc => "containerd-shim-runc-v2",
        }
    }

    /// The programs of the node that it consists of.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Cryo => &["/opt/cryo/bin/containerd-shim-cryo-v2"],
            Self::Runc => &["/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc"],
        }
    }
}
