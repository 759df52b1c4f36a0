//! What this machine's kernel lets its root do, which not all do.

use rustix::thread::{CapabilitySet, capabilities};

/// Whether CRIU may read and set the limits of other users' processes: CAP_SYS_RESOURCE.
#[must_use]
pub fn has_other_users() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}
