//! What belongs to a container for all of its life, and what is kept on disk
//! so that somebody else can clean up after a shim that died.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cryo_engine::cgroup::Cgroups;
use cryo_engine::systemd::Scope;
use cryo_engine::{Enclosed, Engine, Target, spec};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::memory::Slot;
use super::reaper::Reaper;
use super::rootfs;
use super::settings::Annotations;
use super::stdio::{Owner, Paths};
use crate::events::EventSink;
use crate::options::RuntimeOptions;
use crate::rpc::{TaskError, with_causes};

/// Where running containers' state is, below it one folder per namespace.
pub const STATE_ROOT: &str = "/run/cryo";

/// How long a freeze or thaw may take.
pub(super) const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// How long killed processes get to disappear.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What all containers of a shim share.
#[derive(Debug)]
pub struct Shared {
    /// containerd's namespace.
    pub namespace: String,
    /// Makes and starts containers.
    pub engine: Arc<dyn Engine>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Waits for children.
    pub reaper: Reaper,
    /// `/run/cryo`.
    pub state_root: PathBuf,
    /// `/etc/cryo/config.toml`.
    pub config: PathBuf,
}

/// One container, as it was asked for.
#[derive(Debug)]
pub struct Context {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// What is kept on disk.
    pub record: Record,
    /// Its `config.json`.
    pub spec: Spec,
    /// Its control groups.
    pub cgroups: Cgroups,
    /// Where its streams go.
    pub paths: Paths,
    /// What the node's configuration says about its runtime.
    pub options: RuntimeOptions,
    /// What its annotations say about checkpoints and restores.
    pub annotations: Annotations,
    /// The image directory it is to be restored from.
    pub checkpoint: Option<PathBuf>,
    /// What fills its memory after a lazy restore.
    pub memory: Slot,
}

impl Context {
    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// What the engine needs to know.
    #[must_use]
    pub fn target(&self) -> Target {
        self.record.target(&self.state_dir())
    }

    /// Whose the streams of a process are: of the container's first one, or of
    /// an exec's, with its user as it is in the container.
    #[must_use]
    pub fn owner_of<'a>(&'a self, process: &'a str, user: (u32, u32)) -> Owner<'a> {
        Owner {
            id: process,
            namespace: &self.shared.namespace,
            reaper: &self.shared.reaper,
            user: self
                .options
                .stdio_owner(user, spec::outside(&self.spec, user)),
        }
    }

    /// Has systemd make the container's scope, if it is to have one. The scope
    /// goes with what comes back, unless a process of the container is in it. Blocks.
    ///
    /// # Errors
    ///
    /// What systemd or the kernel refuses.
    pub fn enclose(&self) -> Result<Option<Enclosed>, TaskError> {
        let scope = self.record.scope.as_ref();
        scope
            .map(|_| self.shared.engine.enclose(&self.target()))
            .transpose()
            .map_err(from_engine)
    }

    /// Kills what is in the container's cgroups and removes them. Blocks.
    ///
    /// # Errors
    ///
    /// What stays.
    pub fn remove_cgroups(&self) -> Result<(), TaskError> {
        self.cgroups.kill(KILL_LIMIT).map_err(internal)?;
        if self.record.scope.is_some() {
            let engine = &self.shared.engine;
            engine.end_scope(&self.target()).map_err(from_engine)?;
        }
        self.cgroups.remove().map_err(internal)
    }

    /// `/run/cryo/NAMESPACE/ID`
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.shared.state_root, &self.shared.namespace, self.id())
    }
}

/// Where a container's state is.
#[must_use]
pub fn state_dir(root: &Path, namespace: &str, id: &str) -> PathBuf {
    root.join(namespace).join(id)
}

/// What `delete` needs to know when the shim is gone: `task.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where its cgroups are: its `linux.cgroupsPath`, or that of its scope.
    pub cgroup_path: PathBuf,
    /// The scope that systemd keeps for it, with `SystemdCgroup`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// What shares the shim: the id of the pod's sandbox, or its own.
    pub group: String,
}

impl Record {
    const FILE: &'static str = "task.json";

    /// The mounted root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    fn target(&self, state_dir: &Path) -> Target {
        Target {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            root: state_dir.join("engine"),
            scope: self.scope.clone(),
        }
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(state_dir)?;
        let new = state_dir.join("task.json.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, state_dir.join(Self::FILE))
    }

    /// Reads the record of a container; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be read.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(state_dir.join(Self::FILE)) {
            Ok(data) => Ok(Some(serde_json::from_slice(&data)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes everything the container has on this machine: processes,
    /// engine state (`poststop` hooks run), cgroups, mounts, state. Whatever is
    /// missing is fine, so this can be repeated. Blocks.
    ///
    /// # Errors
    ///
    /// The first thing that stays; the rest is removed all the same.
    pub fn remove_all(
        &self,
        state_dir: &Path,
        engine: &dyn Engine,
        restored: bool,
    ) -> Result<(), TaskError> {
        let mut first: Option<TaskError> = None;
        let mut note = |result: Result<(), TaskError>| {
            if let Err(error) = result {
                tracing::warn!(id = self.id, %error, "something of the container stays");
                first.get_or_insert(error);
            }
        };
        let target = self.target(state_dir);
        let cgroups = Cgroups::at(&self.cgroup_path);
        if let Ok(cgroups) = &cgroups {
            note(cgroups.kill(KILL_LIMIT).map_err(internal));
            // libcontainer gives up before cgroups that the container made itself.
            note(cgroups.remove_below().map_err(internal));
        }
        if self.scope.is_some() {
            note(engine.end_scope(&target).map_err(from_engine));
        }
        if restored {
            note(
                engine
                    .hooks(&target, &[cryo_engine::HookPhase::Poststop], 0)
                    .map_err(from_engine),
            );
        } else {
            note(engine.delete(&target).map_err(from_engine));
        }
        if let Ok(cgroups) = &cgroups {
            note(cgroups.remove().map_err(internal));
        }
        note(rootfs::unmount(&self.rootfs()));
        if let Err(e) = std::fs::remove_dir_all(state_dir)
            && e.kind() != io::ErrorKind::NotFound
        {
            note(Err(TaskError::io(
                format_args!("cannot remove {}", state_dir.display()),
                &e,
            )));
        }
        first.map_or(Ok(()), Err)
    }
}

/// An engine's error in the words and the code of the Task service.
#[must_use]
pub fn from_engine(error: cryo_engine::Error) -> TaskError {
    use cryo_engine::FailureKind;
    let text = with_causes(&error);
    match error.kind() {
        FailureKind::Spec => TaskError::InvalidArgument(text),
        FailureKind::Exists => TaskError::AlreadyExists(text),
        FailureKind::State => TaskError::FailedPrecondition(text),
        FailureKind::Other => TaskError::Internal(text),
    }
}

/// A spec's error likewise.
#[must_use]
pub fn from_spec(error: spec::Error) -> TaskError {
    TaskError::InvalidArgument(with_causes(&error))
}

/// Any other error likewise.
pub fn internal(error: impl std::error::Error) -> TaskError {
    TaskError::Internal(with_causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("ns/id");
        assert_eq!(Record::load(&state).unwrap(), None);
        let record = Record {
            id: "id".to_owned(),
            bundle: "/b".into(),
            cgroup_path: "/ns/id".into(),
            scope: Scope::parse(Path::new("a-b.slice:c:d"), "id").ok(),
            group: "pod".to_owned(),
        };
        record.save(&state).unwrap();
        assert_eq!(Record::load(&state).unwrap(), Some(record));
        std::fs::write(state.join(Record::FILE), "{").unwrap();
        assert!(Record::load(&state).is_err());
    }
}
