//! What checkpoint and restore have in common: CRIU itself, its private work
//! directory, what lies outside of the container, and how failures are told.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cryo_checkpoint::{dump_log, layout};
use cryo_criu::config::{self, Config};
use cryo_criu::{Cause, Criu, CriuError};
use cryo_engine::spec::Bind;
use cryo_engine::{mountpoint, spec};
use oci_spec::runtime::LinuxNamespaceType;

use super::context::Context;
use super::failures;
use crate::rpc::{TaskError, with_causes};

/// The node's configuration, as it is now.
pub(super) fn config(context: &Context) -> Result<Config, TaskError> {
    Config::load(&context.shared.config).map_err(|error| match &error {
        config::Error::Unreadable { path, source } => {
            TaskError::io(format_args!("cannot read {}", path.display()), source)
        }
        _ => TaskError::FailedPrecondition(error.to_string()),
    })
}

/// How long a client may take from the end of its checkpoint to its Resume, as the node's
/// configuration has it now; one that cannot be read has the default.
pub(super) fn resume_within(context: &Context) -> Option<Duration> {
    Config::load(&context.shared.config).map_or(Some(config::RESUME_WITHIN), |c| c.resume_within)
}

/// The CRIU that the node's configuration names, known to be new enough.
pub(super) fn find(config: &Config) -> Result<Criu, TaskError> {
    let criu = Criu::find(config.criu.path.as_deref()).map_err(from_criu)?;
    criu.probe().map_err(from_criu)?;
    Ok(criu)
}

/// CRIU's work directory for one operation; it and what is in it end with this.
#[derive(Debug)]
pub(super) struct WorkDir(PathBuf);

impl WorkDir {
    pub(super) fn create(context: &Context, operation: &str) -> Result<Self, TaskError> {
        let path = context.state_dir().join(format!("criu-{operation}"));
        let made = fs::remove_dir_all(&path)
            .or_else(|e| {
                if e.kind() == io::ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(e)
                }
            })
            .and_then(|()| fs::create_dir_all(&path));
        made.map_err(|e| TaskError::io(format_args!("cannot make {}", path.display()), &e))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Copies the log of a dump to where the client wants it, below who wrote it and where: CRIU
    /// says so itself only where it writes much more, and nothing else in a checkpoint does.
    pub(super) fn hand_over_log(&self, to: &Path, criu: &Criu) -> Result<(), TaskError> {
        let failed =
            |path: &Path, e| TaskError::io(format_args!("cannot write {}", path.display()), &e);
        let version = criu.probe().map_err(from_criu)?.version;
        let node = rustix::system::uname();
        let head = dump_log::head(
            &version.to_string(),
            &node.nodename().to_string_lossy(),
            &node.release().to_string_lossy(),
        );
        fs::create_dir_all(to).map_err(|e| failed(to, e))?;
        let copy = |to: &Path| {
            let mut log = File::open(self.0.join(layout::DUMP_LOG))?;
            let mut copy = File::create(to)?;
            copy.set_permissions(log.metadata()?.permissions())?;
            copy.write_all(head.as_bytes())?;
            io::copy(&mut log, &mut copy)
        };
        let to = to.join(layout::DUMP_LOG);
        copy(&to).map(drop).map_err(|e| failed(&to, e))
    }

    /// Copies log and statistics to where the client wants them.
    pub(super) fn hand_over(&self, to: &Path, names: &[&str]) -> Result<(), TaskError> {
        let failed =
            |path: &Path, e| TaskError::io(format_args!("cannot write {}", path.display()), &e);
        fs::create_dir_all(to).map_err(|e| failed(to, e))?;
        for name in names {
            let to = to.join(name);
            fs::copy(self.0.join(name), &to).map_err(|e| failed(&to, e))?;
        }
        Ok(())
    }

    /// The error that containerd gets, with the log kept for those who want more.
    pub(super) fn failed(&self, context: &Context, operation: &str, error: CriuError) -> TaskError {
        let log = self.0.join(format!("{operation}.log"));
        if matches!(error, CriuError::Died { .. }) {
            remove_mount_roots();
        }
        let diagnosis = error.failure().map(|f| f.diagnosis.clone());
        let error = from_criu(error);
        let record = failures::record(
            operation,
            &context.shared.namespace,
            context.id(),
            diagnosis.as_ref(),
            &error.to_string(),
        );
        match failures::keep(Path::new(failures::DIR), &record, Some(&log)) {
            Some(log) => error.with_note(&format!("full log: {}", log.display())),
            None => error,
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a work directory stays");
        }
    }
}

/// CRIU mounts a container's roots below a folder in `/tmp`, in its own mount
/// namespace; a CRIU that was killed leaves the folder. One that nobody's mount
/// table names is nobody's.
fn remove_mount_roots() {
    let tables: Vec<String> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| fs::read_to_string(e.path().join("mountinfo")).ok())
        .collect();
    for entry in fs::read_dir("/tmp").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".criu.mntns.") && !tables.iter().any(|t| t.contains(&*name)) {
            // Only an empty folder goes.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// A mount of the container that shows something of the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outside {
    /// Where it is in the container, links resolved: CRIU's key for it.
    pub(super) key: String,
    /// What it shows on this host.
    pub(super) source: String,
}

/// All mounts that CRIU must not dump or restore by itself; first the binds, in the order of
/// [`spec::binds`].
pub(super) fn outside_mounts(context: &Context) -> Result<Vec<Outside>, TaskError> {
    let rootfs = context.record.rootfs();
    let mut found = Vec::new();
    for bind in spec::binds(&context.spec) {
        let key = mountpoint::resolve(&rootfs, &bind.destination).map_err(|e| {
            TaskError::io(
                format_args!("cannot resolve the mount {}", bind.destination.display()),
                &e,
            )
        })?;
        found.push(Outside {
            key: text(&key)?,
            source: text(&bind.source)?,
        });
    }
    for bind in outside_cgroups(context) {
        found.push(Outside {
            key: text(&bind.destination)?,
            source: text(&bind.source)?,
        });
    }
    // In a user namespace nobody can make devices: they are the node's, and so is the /dev/null
    // that masks a file. CRIU passes over those that are not there.
    if spec::namespace(&context.spec, LinuxNamespaceType::User) != spec::Namespace::Host {
        let masks = spec::masked(&context.spec)
            .map(|path| (path, Path::new("/dev/null")))
            // A directory is masked by a tmpfs, which is the container's own.
            .filter(|(path, _)| match path.strip_prefix("/") {
                Ok(inside) if !of_the_kernel(path) => !rootfs.join(inside).is_dir(),
                _ => !path.is_dir(),
            });
        let devices = spec::devices(&context.spec);
        for (key, source) in masks.chain(devices.iter().map(|d| (d.as_path(), d.as_path()))) {
            found.push(Outside {
                key: text(key)?,
                source: text(source)?,
            });
        }
    }
    Ok(found)
}

/// The cgroup mounts that CRIU cannot make.
///
/// v1 is shown by binds unless the container has a cgroup namespace. A user namespace may mount no
/// cgroups, unless it made that cgroup namespace itself, and a restored one has not.
fn outside_cgroups(context: &Context) -> Vec<Bind> {
    let has = |kind| spec::namespace(&context.spec, kind) != spec::Namespace::Host;
    let (users, own) = (
        has(LinuxNamespaceType::User),
        has(LinuxNamespaceType::Cgroup),
    );
    let cgroups = &context.cgroups;
    let Some(destination) = spec::cgroup_mount(&context.spec) else {
        return Vec::new();
    };
    if !cgroups.only_v2() && (users || !own) {
        return spec::cgroup_binds(&destination, cgroups);
    }
    if !cgroups.only_v2() || !users {
        return Vec::new();
    }
    let whole = cgroups.dirs().map(|(hierarchy, dir)| Bind {
        destination: destination.clone(),
        source: if own {
            dir
        } else {
            hierarchy.mountpoint.clone()
        },
    });
    whole.collect()
}

/// Whether a container sees there what this host does.
fn of_the_kernel(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/sys")
}

fn text(path: &Path) -> Result<String, TaskError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        TaskError::InvalidArgument(format!(
            "the path {} is not UTF-8, CRIU cannot be told of it",
            path.display()
        ))
    })
}

/// CRIU's error in the words and the code of the Task service.
pub(super) fn from_criu(error: CriuError) -> TaskError {
    let text = with_causes(&error);
    match &error {
        CriuError::NotFound { .. } | CriuError::TooOld { .. } => {
            TaskError::FailedPrecondition(text)
        }
        CriuError::BadOption(_) => TaskError::InvalidArgument(text),
        CriuError::DeadlineExceeded { .. } => TaskError::DeadlineExceeded(text),
        CriuError::Cancelled { .. } => TaskError::Canceled(text),
        CriuError::Refused { .. } => TaskError::Aborted(text),
        _ => match error.failure().map(|f| f.diagnosis.cause) {
            Some(Cause::DiskFull) => TaskError::ResourceExhausted(text),
            Some(Cause::FreezeTimeout) => TaskError::Unavailable(text),
            Some(Cause::Unknown | Cause::Killed) | None => TaskError::Internal(text),
            // Something about the container or the node has to change first.
            Some(_) => TaskError::FailedPrecondition(text),
        },
    }
}
