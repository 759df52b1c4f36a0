//! What the fuzz targets (`tests/fuzz`) call and nobody else may. It is there only in their builds, so that the
//! interface of the crate stays as it is.

use std::path::Path;

use oci_spec::runtime::Spec;

use crate::cgroup::{Cgroups, Hierarchy};
pub use crate::exec::fuzz_plan as exec_plan;
use crate::spec;

/// [`crate::adapt::adapt`] on a machine with these hierarchies.
///
/// # Errors
///
/// Why the spec is refused.
pub fn adapt(spec: &mut Spec, hierarchies: Vec<Hierarchy>) -> Result<(), spec::Error> {
    let cgroups = Cgroups::within(Path::new("/ns/id"), hierarchies)
        .unwrap_or_else(|e| unreachable!("the path is usable: {e}"));
    crate::adapt::adapt(spec, Path::new("/bundle"), &cgroups)
}
