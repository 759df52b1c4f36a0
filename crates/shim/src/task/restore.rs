//! Restore.
use super::context::Context;
use super::stdio::ContainerEnds;
use crate::rpc::TaskError;
use rustix::process::Pid;
/// x
pub fn run(_: &Context, _: ContainerEnds) -> Result<Pid, TaskError> {
    Err(TaskError::Unimplemented("not yet".into()))
}
