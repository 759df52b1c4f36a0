//! From requests to commands. Pure.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::api;

use crate::rpc::TaskError;
use crate::task::container::CheckpointRequest;
use crate::task::process::ExecRequest;
use crate::task::settings::CheckpointOptions;
use crate::task::stdio::Paths;

/// Ids become parts of paths.
pub(super) fn check_id(id: &str) -> Result<(), TaskError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.chars().all(fine) {
        return Err(TaskError::InvalidArgument(format!(
            "id {id:?} is not usable: letters, digits and _.+- are allowed, 255 at most"
        )));
    }
    Ok(())
}

pub(super) fn checkpoint_request(
    request: &api::CheckpointTaskRequest,
    timeout_nano: i64,
) -> Result<CheckpointRequest, TaskError> {
    let options = CheckpointOptions::read(request.options.as_ref())?;
    let images = [&request.path, &options.image_path]
        .into_iter()
        .find(|p| !p.is_empty())
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
        .ok_or_else(|| {
            TaskError::InvalidArgument("a checkpoint needs an absolute image path".to_owned())
        })?;
    Ok(CheckpointRequest {
        images,
        work: (!options.work_path.is_empty()).then(|| PathBuf::from(&options.work_path)),
        exit: options.exit,
        options: options.layer()?,
        deadline: u64::try_from(timeout_nano)
            .ok()
            .filter(|n| *n > 0)
            .map(|n| Instant::now() + Duration::from_nanos(n)),
        client_gone: None,
    })
}

pub(super) fn exec_request(request: api::ExecProcessRequest) -> Result<ExecRequest, TaskError> {
    check_id(&request.exec_id)?;
    let wrong = |e: &dyn std::fmt::Display| {
        TaskError::InvalidArgument(format!("the process to exec cannot be decoded: {e}"))
    };
    let spec = request.spec.into_option().unwrap_or_default();
    let mut process: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&spec.value).map_err(|e| wrong(&e))?;
    // The request decides, not what the specification was copied from.
    process.insert("terminal".to_owned(), request.terminal.into());
    Ok(ExecRequest {
        process: serde_json::to_vec(&process).map_err(|e| wrong(&e))?,
        id: request.exec_id,
        paths: Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        terminal: request.terminal,
    })
}

#[cfg(test)]
mod tests;
