//! The `delete` command: cleans up after a shim that died.
//!
//! containerd calls it for the container that the shim was started for. When
//! that is a pod's sandbox, the other containers of the pod are cleaned up too:
//! nobody else will, and their exits are told to containerd, or it would take
//! them for running for ever.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use cryo_engine::Engine;

use super::context::{Record, state_dir};
use super::state::Exit;
use crate::rpc::TaskError;

/// The status of a container whose end nobody saw: killed.
const KILLED: u32 = 128 + 9;

/// A container that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Its id.
    pub id: String,
    /// How it is said to have ended.
    pub exit: Exit,
}

/// Removes a container and, if others share its shim as members of its group,
/// those. Nothing there is fine. The first of the answer is `id` itself.
///
/// # Errors
///
/// The first thing that stays; everything else is removed.
pub fn run(
    state_root: &Path,
    namespace: &str,
    id: &str,
    engine: &dyn Engine,
) -> Result<Vec<Removed>, TaskError> {
    let mut first = None;
    let mut removed = vec![Removed {
        id: id.to_owned(),
        exit: killed(),
    }];
    for record in records(&state_root.join(namespace)) {
        let member = record.group == id && record.id != id;
        if record.id != id && !member {
            continue;
        }
        // A restored container has no engine state; then the hooks are ours.
        let state = state_dir(state_root, namespace, &record.id);
        let restored = !state.join("engine").exists();
        if let Err(error) = record.remove_all(&state, engine, restored) {
            first.get_or_insert(error);
        }
        if member {
            removed.push(Removed {
                id: record.id,
                exit: killed(),
            });
        }
    }
    first.map_or(Ok(removed), Err)
}

fn killed() -> Exit {
    Exit {
        status: KILLED,
        at: SystemTime::now(),
    }
}

fn records(dir: &Path) -> Vec<Record> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Record::load(&e.path()).ok().flatten())
        .collect()
}
