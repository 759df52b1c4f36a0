//! The `delete` command: cleans up after a shim that died.
//!
//! containerd calls it for the container that the shim was started for. When
//! that is a pod's sandbox, the other containers of the pod are cleaned up too:
//! nobody else will, and their exits are told to containerd, or it would take
//! them for running for ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cryo_engine::Engine;
use cryo_engine::cgroup::Cgroups;

use super::context::{KILL_LIMIT, Record, state_dir};
use super::state::Exit;
use crate::rpc::TaskError;

/// The status of a container whose end nobody saw: killed.
const KILLED: u32 = 128 + 9;

/// A container that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub id: String,
    /// How it is said to have ended.
    pub exit: Exit,
}

/// The containers that a dead shim served.
#[derive(Debug)]
pub struct Group {
    id: String,
    /// With where their state is.
    records: Vec<(PathBuf, Record)>,
}

impl Group {
    /// The container `id` and, if others share its shim as members of its group, those.
    #[must_use]
    pub fn find(state_root: &Path, namespace: &str, id: &str) -> Self {
        let of_group = |record: &Record| record.id == id || record.group == id;
        let records = records(&state_root.join(namespace))
            .into_iter()
            .filter(of_group)
            .map(|record| (state_dir(state_root, namespace, &record.id), record))
            .collect();
        Self {
            id: id.to_owned(),
            records,
        }
    }

    /// Kills all processes of all of them; those besides `id` itself that have ended by it. Blocks.
    #[must_use]
    pub fn kill(&self) -> Vec<Ended> {
        let kill = |record: &Record, limit| {
            Cgroups::at(&record.cgroup_path).and_then(|cgroups| cgroups.kill(limit))
        };
        for (_, record) in &self.records {
            // Waited for below, all together.
            let _ = kill(record, Duration::ZERO);
        }
        let mut ended = Vec::new();
        for (_, record) in &self.records {
            match kill(record, KILL_LIMIT) {
                Ok(()) if record.id != self.id => ended.push(Ended {
                    id: record.id.clone(),
                    exit: killed(),
                }),
                Ok(()) => {}
                Err(error) => tracing::warn!(id = record.id, %error, "it does not end"),
            }
        }
        ended
    }

    /// Removes what they have on this machine. Nothing there is fine. Blocks.
    ///
    /// # Errors
    ///
    /// The first thing that stays; everything else is removed.
    pub fn remove(&self, engine: &dyn Engine) -> Result<(), TaskError> {
        let mut first = None;
        for (state, record) in &self.records {
            // A restored container has no engine state; then the hooks are ours.
            let restored = !state.join("engine").exists();
            if let Err(error) = record.remove_all(state, engine, restored) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// An end by SIGKILL, now.
#[must_use]
pub fn killed() -> Exit {
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
