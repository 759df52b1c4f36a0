//! Checkpoint.
use super::container::CheckpointRequest;
use super::context::Context;
use crate::rpc::TaskError;
use rustix::process::Pid;
/// x
pub fn run(_: &Context, _: Pid, _: bool, _: &CheckpointRequest) -> Result<(), TaskError> {
    Err(TaskError::Unimplemented("not yet".into()))
}
