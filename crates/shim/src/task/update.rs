//! Update: other limits for a container that lives.
//!
//! They last as long as its cgroups. A restore has a spec of its own, which the
//! client has brought up to date, and goes by that.

use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::any::Any;

use super::context::{Context, from_engine};
use super::state::Phase;
use crate::rpc::TaskError;

/// The limits in a request: the OCI runtime specification's `LinuxResources` as JSON.
pub(super) fn resources(any: Option<&Any>) -> Result<LinuxResources, TaskError> {
    let any = any.ok_or_else(|| {
        TaskError::InvalidArgument("an update needs resources; there are none".to_owned())
    })?;
    if any.type_url.rsplit('/').next() != Some("LinuxResources") {
        return Err(TaskError::InvalidArgument(format!(
            "resources of type {:?} are not known: send the runtime specification's LinuxResources",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value).map_err(|e| {
        TaskError::InvalidArgument(format!("the resources are no LinuxResources: {e}"))
    })
}

/// Whether there is something to limit.
pub(super) fn check(phase: Phase) -> Result<(), TaskError> {
    let remedy = match phase {
        Phase::Created | Phase::Running | Phase::Paused => return Ok(()),
        Phase::Prepared => "start it first",
        Phase::Stopped(_) => "there is no process left",
    };
    Err(TaskError::FailedPrecondition(format!(
        "cannot update a {phase} container: {remedy}"
    )))
}

/// Writes the limits. Blocks.
pub(super) fn run(context: &Context, resources: &LinuxResources) -> Result<(), TaskError> {
    let engine = &context.shared.engine;
    engine
        .update(&context.target(), resources)
        .map_err(from_engine)
}
