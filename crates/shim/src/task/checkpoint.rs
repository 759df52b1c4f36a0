//! Checkpoint: a container becomes image files, and goes on as it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cryo_checkpoint::descriptors::{Descriptors, StdioKey};
use cryo_checkpoint::layout;
use cryo_criu::options::Checkpoint as Options;
use cryo_criu::preflight::{self, Report};
use cryo_criu::request::{CgMode, NetworkLockMethod};
use cryo_criu::{Cause, Control, CriuError, DumpOptions, External};
use cryo_criu_image::inventory::Inventory;
use cryo_criu_image::{Kind, Reader};
use cryo_engine::{mountpoint, spec};
use oci_spec::runtime::LinuxNamespaceType;
use rustix::process::Pid;

use super::container::CheckpointRequest;
use super::context::{Context, FREEZE_LIMIT, internal};
use super::criu::{self, WorkDir};
use super::transfer::{self, Transfer};
use super::{portable, settings};
use crate::rpc::TaskError;

/// How long the look for what is in the way may take; a container of a hundred processes takes
/// some milliseconds, on a busy machine a hundred, and one that is made to be tedious takes this.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(2);

/// Dumps the container whose first process is `pid`. Blocks.
///
/// Frozen before or not, afterwards it is as it was, unless `request.exit` ends
/// it. Image files are written only whole: a failure removes them.
///
/// With `lazy-pages` they are whole when `ready` is called, and it goes on until the memory was
/// fetched too. A failure after that leaves the images, which are the client's by then.
///
/// # Errors
///
/// FailedPrecondition when something about the container or the node has to
/// change first, ResourceExhausted for a full disk, else the cause.
pub(super) fn run(
    context: &Context,
    pid: Pid,
    paused: bool,
    request: &CheckpointRequest,
    ready: impl FnOnce(Arc<Transfer>, Pid),
) -> Result<(), TaskError> {
    if let Some(memory) = context.memory.get() {
        // CRIU cannot dump what is not there yet.
        memory.wait(request.deadline, request.client_gone.as_deref())?;
    }
    let config = criu::config(context)?;
    let criu = criu::find(&config)?;
    let options = settings::of_checkpoint(context, &config, &request.options, &criu)?;
    let seen = preflight(context, pid, &options)?;
    let images = Images::create(&request.images)?;
    refuse_impossible(request, &options)?;
    let server = transfer::listen(&options, request.exit)?;
    let work = WorkDir::create(context, "dump")?;
    let descriptors = images.path.join(layout::DESCRIPTORS);
    stdio_of(pid)
        .and_then(|d| fs::write(&descriptors, d))
        .map_err(|e| TaskError::io(format_args!("cannot write {}", descriptors.display()), &e))?;

    let external = externals(context, pid)?;
    // A stopped process and cgroup v1's freezer do not go together: CRIU then stops one process
    // after the other, and looks for new ones until there is none.
    let freeze = !seen.as_ref().is_some_and(|seen| seen.stopped);
    let dump = || {
        let frozen = Frozen::new(context, paused, freeze)?;
        // Frozen, so that no connection can be made from here on.
        let connections = options.tcp_established
            && !options.tcp_close
            && (!freeze || seen.as_ref().is_none_or(Report::has_connections));
        let asked = options.apply(DumpOptions {
            root: Some(context.record.rootfs()),
            leave_running: !request.exit,
            orphan_pts_master: true,
            external: external.clone(),
            freeze_cgroup: freeze
                .then(|| context.cgroups.freezer_dir())
                .transpose()
                .map_err(internal)?,
            // The lock is for connections; taking it costs frozen time.
            network_lock: Some(if connections {
                NetworkLockMethod::Nftables
            } else {
                NetworkLockMethod::Skip
            }),
            ..DumpOptions::new(pid.as_raw_nonzero().get(), images.open()?, work.path())
        });
        let control = Control {
            deadline: request.deadline,
            abort: request.client_gone.as_deref(),
            ..Control::default()
        };
        Ok::<_, TaskError>(if options.lazy_pages {
            let serving = criu.dump_lazily(asked, &mut (), &control);
            serving.map(|serving| Some((serving, frozen)))
        } else if options.pre_dump {
            criu.pre_dump(asked, &mut (), &control).map(|()| None)
        } else {
            criu.dump(asked, &mut (), &control).map(|_| None)
        })
    };
    let mut result = dump()?;
    if result.as_ref().is_err_and(freeze_was_missed) {
        tracing::warn!(
            id = context.id(),
            "the freezer missed a task: trying once more"
        );
        images.clear(layout::DESCRIPTORS)?;
        result = dump()?;
    }
    // containerd removes a folder of its own as soon as nobody waits for its answer any more.
    if !descriptors.exists() {
        if let Some(client) = &request.client_gone {
            client.trigger();
        }
        return Err(TaskError::Aborted(format!(
            "the image directory {} was removed while the checkpoint was made: ask once more",
            request.images.display()
        )));
    }
    let lazily = result.map_err(|e| match work.failed(context, "dump", e) {
        full @ TaskError::ResourceExhausted(_) => {
            full.with_note(&format!("images: {}", request.images.display()))
        }
        other => other,
    })?;
    if !options.pre_dump
        && options.manage_cgroups == CgMode::Ignore
        && let Err(error) = portable::inherit_cgroups(&request.images)
    {
        tracing::warn!(%error, "other runtimes may not be able to restore this checkpoint");
    }

    let (Some((serving, mut frozen)), Some(server)) = (lazily, server) else {
        if let Some(to) = &request.work {
            work.hand_over_log(to, &criu)?;
            work.hand_over(to, &[layout::STATS_DUMP])?;
        }
        images.keep();
        return Ok(());
    };
    let memory = transfer::open(context, &images.path)?;
    if let Some(to) = &request.work {
        // CRIU writes statistics at its end.
        work.hand_over_log(to, &criu)?;
    }
    let transfer = Arc::new(Transfer::new()?);
    let limit = Duration::from_secs(options.serve_timeout_s.into());
    images.keep();
    ready(Arc::clone(&transfer), serving.pid());
    let served = transfer::serve(context, pid, serving, server, &memory, &transfer, limit);
    frozen.before &= !transfer.thaws();
    served
}

/// The image directory; removed again, with what is in it, unless kept.
#[derive(Debug)]
struct Images {
    path: PathBuf,
    /// It was there before, so only its content is ours.
    was_there: bool,
    kept: bool,
}

impl Images {
    fn create(path: &Path) -> Result<Self, TaskError> {
        let was_there = path.exists();
        let failed = |e| {
            TaskError::io(
                format_args!("cannot make the image directory {}", path.display()),
                &e,
            )
        };
        fs::create_dir_all(path).map_err(failed)?;
        if fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(TaskError::AlreadyExists(format!(
                "the image directory {} is not empty: remove it, or name another",
                path.display()
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            was_there,
            kept: false,
        })
    }

    fn open(&self) -> Result<std::os::fd::OwnedFd, TaskError> {
        fs::File::open(&self.path)
            .map(Into::into)
            .map_err(|e| TaskError::io(format_args!("cannot open {}", self.path.display()), &e))
    }

    /// Removes the remains of a failed try, but for one file.
    fn clear(&self, but: &str) -> Result<(), TaskError> {
        let cleared = fs::read_dir(&self.path).and_then(|entries| {
            let mut others = entries.flatten().filter(|e| e.file_name() != but);
            others.try_for_each(|e| fs::remove_file(e.path()))
        });
        cleared.map_err(|e| TaskError::io(format_args!("cannot clear {}", self.path.display()), &e))
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let removed = if self.was_there {
            fs::read_dir(&self.path).and_then(|entries| {
                entries
                    .flatten()
                    .try_for_each(|e| fs::remove_file(e.path()))
            })
        } else {
            fs::remove_dir_all(&self.path)
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "parts of a failed checkpoint stay");
        }
    }
}

/// The v1 freezer can call a cgroup frozen while a task of it, in an
/// uninterruptible sleep just then, is not: CRIU then waits for it in vain.
fn freeze_was_missed(error: &CriuError) -> bool {
    error
        .failure()
        .is_some_and(|f| f.diagnosis.cause == Cause::FreezeTimeout)
}

/// The container is frozen, or not, while this lives. Afterwards it is frozen or not as
/// it was before, whatever CRIU has done in between.
struct Frozen<'a> {
    context: &'a Context,
    before: bool,
}

impl<'a> Frozen<'a> {
    fn new(context: &'a Context, before: bool, freeze: bool) -> Result<Self, TaskError> {
        let frozen = Self { context, before };
        match (before, freeze) {
            // CRIU looks every 100 ms only whether it has frozen a cgroup.
            (false, true) => context.cgroups.freeze(FREEZE_LIMIT),
            (true, false) => context.cgroups.thaw(FREEZE_LIMIT),
            _ => Ok(()),
        }
        .map_err(internal)?;
        Ok(frozen)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let cgroups = &self.context.cgroups;
        let result = if self.before {
            cgroups.freeze(FREEZE_LIMIT)
        } else {
            cgroups.thaw(FREEZE_LIMIT)
        };
        if let Err(error) = result
            // One that ended may have lost its cgroup with it.
            && !error.is_gone()
        {
            let wanted = if self.before { "frozen" } else { "thawed" };
            tracing::error!(%error, "the container is not {wanted} as it was");
        }
    }
}

/// What the options say of this one request.
fn refuse_impossible(request: &CheckpointRequest, options: &Options) -> Result<(), TaskError> {
    if options.pre_dump && request.exit {
        return Err(TaskError::InvalidArgument(
            "a checkpoint with pre-dump holds memory alone and cannot end the container: ask without exit, and end it with the next one".to_owned(),
        ));
    }
    if let Some(parent) = &options.parent_path {
        let parent = request.images.join(parent);
        if !parent.is_dir() {
            return Err(TaskError::FailedPrecondition(format!(
                "there is no parent checkpoint {}: name it as seen from the image directory, or make a full checkpoint",
                parent.display()
            )));
        }
        if !is_tracked(&parent) {
            return Err(TaskError::FailedPrecondition(format!(
                "the checkpoint {} cannot be a parent, since memory was not tracked at its time: name one that was made with pre-dump or with a parent of its own",
                parent.display()
            )));
        }
    }
    Ok(())
}

/// CRIU writes the uptime only where it tracks memory, and wants it of a parent: by
/// it, it tells a process from another one that has the same id since.
fn is_tracked(images: &Path) -> bool {
    let name = Kind::Inventory.file_name(0);
    let inventory = fs::File::open(images.join(&name))
        .ok()
        .and_then(|file| Reader::<Inventory, _>::new(name, file).ok()?.single().ok());
    inventory.is_some_and(|i| i.dump_uptime_us.is_some())
}

/// Refuses, before anything is touched, what CRIU could not dump or could not restore.
fn preflight(context: &Context, pid: Pid, options: &Options) -> Result<Option<Report>, TaskError> {
    let frozen_together = context.cgroups.pids().map_err(internal)?;
    let checked = preflight::check(pid, &frozen_together, &options.into(), PREFLIGHT_LIMIT);
    let report = match checked {
        Ok(report) => report,
        Err(error) => {
            // CRIU looks for itself, and will say it in its words.
            tracing::warn!(%error, "cannot look for what is in the way of a checkpoint");
            return Ok(None);
        }
    };
    if let Some(refusal) = report.refusal() {
        return Err(TaskError::FailedPrecondition(format!(
            "cannot checkpoint: {refusal}"
        )));
    }
    if report.incomplete {
        tracing::warn!("not all of the container was looked at for what is in the way");
    }
    for lost in &report.warnings {
        tracing::warn!("lost by this checkpoint: {lost}");
    }
    Ok(Some(report))
}

fn externals(context: &Context, pid: Pid) -> Result<Vec<External>, TaskError> {
    let mut external = Vec::new();
    for mount in criu::outside_mounts(context)? {
        external.push(External::mount(&mount.key, &mount.key).map_err(internal)?);
    }
    for (kind, file, make) in [
        (
            LinuxNamespaceType::Network,
            "net",
            External::netns as fn(u64) -> External,
        ),
        (LinuxNamespaceType::Pid, "pid", External::pidns),
    ] {
        if let spec::Namespace::Path(_) = spec::namespace(&context.spec, kind) {
            let path = format!("/proc/{}/ns/{file}", pid.as_raw_nonzero());
            let (_, inode) = mountpoint::open_namespace(Path::new(&path))
                .map_err(|e| TaskError::io(format_args!("cannot open {path}"), &e))?;
            external.push(make(inode));
        }
    }
    Ok(external)
}

/// What the first process has as its streams: a restore puts new ones there.
fn stdio_of(pid: Pid) -> io::Result<String> {
    let link = |n: u32| {
        fs::read_link(format!("/proc/{}/fd/{n}", pid.as_raw_nonzero()))
            .map(|target| StdioKey::parse(&target.to_string_lossy()))
            // Closed by the container.
            .unwrap_or_else(|_| StdioKey::Path("/dev/null".to_owned()))
    };
    Descriptors([link(0), link(1), link(2)])
        .to_json()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_vanish_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let images = Images::create(&path).unwrap();
        fs::write(path.join("core-1.img"), "x").unwrap();
        drop(images);
        assert!(!path.exists());

        fs::create_dir_all(&path).unwrap();
        let images = Images::create(&path).unwrap();
        fs::write(path.join("core-1.img"), "x").unwrap();
        drop(images);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

        let images = Images::create(&path).unwrap();
        fs::write(path.join("core-1.img"), "x").unwrap();
        images.keep();
        assert!(path.join("core-1.img").exists());
        let error = Images::create(&path).unwrap_err();
        assert!(matches!(&error, TaskError::AlreadyExists(_)), "{error}");
        assert!(path.join("core-1.img").exists());
    }
}
