//! Taking checkpoints of running containers: stop all, take each, let all go on.

use std::fs;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use cryo_checkpoint::layout;
use cryo_criu_image::Reader;
use cryo_criu_image::stats::DumpStats;
use tonic::Code;

use super::output::Output;
use crate::containerd::messages::{CheckpointOptions, CheckpointTask, Empty, Id, State};
use crate::containerd::{Client, LIMIT, Refused};
use crate::interrupt::{Interrupt, Interrupted};
use crate::procfs::Shim;
use crate::shiminfo;
use crate::target::Found;

/// Where the layer is, in the work directory.
pub(super) const CHANGES: &str = layout::ROOTFS_DIFF;

/// What is asked of each.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) exit: bool,
    /// The memory is fetched after the answer, and a container ends only then.
    pub(super) lazy: bool,
    /// For all of it.
    pub(super) limit: Duration,
    /// `NAME=VALUE`
    pub(super) options: Vec<String>,
}

impl Asked {
    /// What has become of a container after a checkpoint that ends it.
    pub(super) fn end(&self) -> &'static str {
        if self.lazy {
            "the container is stopped and its memory is served; a Resume lets it go on"
        } else {
            "the container has ended"
        }
    }
}

/// A checkpoint whose parts are in the work directory of its output.
#[derive(Debug)]
pub(super) struct Taken {
    /// From the request to the answer.
    pub(super) took: Duration,
    /// What criu says of it.
    pub(super) stats: Option<DumpStats>,
}

/// Takes them. Whatever happens, none is left stopped that was not before.
///
/// # Errors
///
/// [`Interrupted`], or the first that failed.
pub(super) async fn take(
    client: &Client,
    found: &[Found],
    outputs: &[Output],
    asked: &Asked,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Taken>> {
    for one in found {
        check_shim(client, one, &asked.options).await?;
    }
    let mut session = Session {
        client,
        asked,
        interrupt,
        end: Instant::now() + asked.limit,
        stopped: Vec::new(),
    };
    let taken = session.take_all(found, outputs).await;
    let copied = outputs.iter().any(Output::is_archive);
    let resumed = session.resume_all(copied).await;
    let taken = taken?;
    resumed?;
    Ok(taken)
}

/// Another shim would not understand the options, nor give a dump up; one of an older cryo may not
/// see the options.
async fn check_shim(client: &Client, one: &Found, options: &[String]) -> anyhow::Result<()> {
    let id = &one.record.id;
    let task = client.task(id).await?;
    if !matches!(task.status(), State::Running | State::Paused) {
        bail!(
            "the container {} does not run: it is {}",
            one.title(),
            task.status().name()
        );
    }
    match Shim::of(task.pid) {
        Some(shim) if !shim.is_cryo() => bail!(
            "the container {} is not one of cryo: its shim is {}; use `ctr task checkpoint`",
            one.title(),
            shim.program.display()
        ),
        Some(_) if options.is_empty() => Ok(()),
        Some(shim) => shiminfo::check_running(&shim, &one.title()),
        None => Err(anyhow!(
            "the process {} of {id} cannot be looked at",
            task.pid
        )),
    }
}

struct Session<'a> {
    client: &'a Client,
    asked: &'a Asked,
    interrupt: &'a Interrupt,
    end: Instant,
    /// Those that we have stopped.
    stopped: Vec<String>,
}

impl Session<'_> {
    async fn take_all(
        &mut self,
        found: &[Found],
        outputs: &[Output],
    ) -> anyhow::Result<Vec<Taken>> {
        for one in found {
            self.interrupt.check()?;
            self.stop(one).await?;
        }
        let mut all = Vec::new();
        for (one, output) in found.iter().zip(outputs) {
            let taken = self
                .dump(one, output)
                .await
                .map_err(|error| self.after_others(error, found, all.len()))?;
            all.push(taken);
            if output.is_archive() {
                self.changes(one, output).await?;
            }
        }
        Ok(all)
    }

    /// With --exit, those before it are gone.
    fn after_others(&self, error: anyhow::Error, found: &[Found], done: usize) -> anyhow::Error {
        if !self.asked.exit || done == 0 {
            return error;
        }
        let gone: Vec<_> = found.iter().take(done).map(Found::title).collect();
        let gone = gone.join(", ");
        error.context(if self.asked.lazy {
            format!("the memory of {gone} is served")
        } else {
            format!("after {gone} had ended")
        })
    }

    async fn stop(&mut self, one: &Found) -> anyhow::Result<()> {
        let id = &one.record.id;
        let what = || format!("cannot stop {}", one.title());
        let method = "/containerd.services.tasks.v1.Tasks/Pause";
        let asked: Result<Empty, _> = self.client.call(what, method, Id::of(id)).await;
        match asked {
            Ok(_) => self.stopped.push(id.clone()),
            // Stopped by somebody else, who wants it so.
            Err(_) if self.client.task(id).await?.status() == State::Paused => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn dump(&mut self, one: &Found, output: &Output) -> anyhow::Result<Taken> {
        self.interrupt.check()?;
        let id = &one.record.id;
        let options = CheckpointOptions {
            exit: self.asked.exit,
            image_path: path(&output.image_dir())?,
            work_path: path(output.work())?,
            cryo: self.asked.options.clone(),
        };
        let request = CheckpointTask {
            container_id: id.clone(),
            options: Some(options.any()),
        };
        let began = Instant::now();
        let method = "/containerd.services.tasks.v1.Tasks/Checkpoint";
        let what = || format!("cannot checkpoint {}", one.title());
        let limit = self.end.saturating_duration_since(began);
        let dump = self.client.call_within(limit, what, method, request);
        let mut dump = std::pin::pin!(dump);
        let done: Result<Empty, Refused> = tokio::select! {
            done = &mut dump => done,
            () = self.interrupt.wait() => {
                // The shim gives the checkpoint of a container up that is to go on.
                let (done, ()) = tokio::join!(dump, self.resume(id));
                match done {
                    // Too late: it has ended, and all that is left of it is this.
                    Ok(answer) if self.asked.exit && !self.asked.lazy => Ok(answer),
                    _ => {
                        remove_images(output);
                        return Err(Interrupted.into());
                    }
                }
            }
        };
        done.map_err(|error| {
            // Which of us noticed it first decides about the words: a call that is over may even
            // look like a broken connection.
            let late = Instant::now() >= self.end;
            if late || matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled) {
                return anyhow::Error::from(error).context(format!(
                    "it was given up after {} s, and the container goes on: allow more with --deadline",
                    self.asked.limit.as_secs()
                ));
            }
            error.into()
        })?;
        if self.asked.exit {
            self.stopped.retain(|other| other != id);
        }
        Ok(Taken {
            took: began.elapsed(),
            stats: stats(output)?,
        })
    }

    /// Takes what the container changed in its root file system.
    async fn changes(&mut self, one: &Found, output: &Output) -> anyhow::Result<()> {
        let path = output.work().join(CHANGES);
        let mut file =
            File::create_new(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let record = &one.record;
        // After a dump there is always time for that much.
        let limit = self
            .end
            .saturating_duration_since(Instant::now())
            .max(LIMIT);
        let work =
            self.client
                .write_changes(&record.snapshotter, &record.snapshot_key, limit, &mut file);
        if self.asked.exit {
            return work.await.with_context(|| {
                let kept = output.keep_work();
                format!(
                    "{}; the images of its checkpoint are in {}",
                    self.asked.end(),
                    kept.display()
                )
            });
        }
        tokio::select! {
            done = work => done,
            () = self.interrupt.wait() => Err(Interrupted.into()),
        }
    }

    /// Lets one go on, whatever its state; what cannot be is left to [`Session::resume_all`].
    async fn resume(&self, id: &str) {
        let method = "/containerd.services.tasks.v1.Tasks/Resume";
        let what = || format!("cannot resume {id}");
        // The end of a dump that is given up may take a moment.
        let asked = self
            .client
            .call_within::<_, Empty>(3 * LIMIT, what, method, Id::of(id))
            .await;
        // Asked again at the end.
        let _ = asked;
    }

    /// `copied` are files too, that had to stay as they were.
    async fn resume_all(&mut self, copied: bool) -> anyhow::Result<()> {
        let mut first = Ok(());
        for id in std::mem::take(&mut self.stopped) {
            let method = "/containerd.services.tasks.v1.Tasks/Resume";
            let what = || format!("cannot resume {id}");
            let asked: Result<Empty, _> = self
                .client
                .call_within(3 * LIMIT, what, method, Id::of(&id))
                .await;
            let Err(error) = asked else {
                continue;
            };
            let what = match self.client.task(&id).await.map(|task| task.status()) {
                Ok(State::Paused) => format!(
                    "the container {id} is still paused: `ctr --namespace {} task resume {id}`",
                    self.client.namespace()
                ),
                // By the shim, at the deadline, or by somebody else.
                Ok(State::Running) if copied => format!(
                    "the container {id} was resumed before its files were copied, which may not fit its memory: make the checkpoint again, and allow more with --deadline"
                ),
                _ => continue,
            };
            first = first.and(Err(anyhow::Error::from(error).context(what)));
        }
        first
    }
}

/// The shim leaves no parts of a dump that failed; of one that was done and is not wanted, all.
fn remove_images(output: &Output) {
    if !output.is_archive() {
        // It was empty or not there before, and holds nothing but images.
        let _ = fs::remove_dir_all(output.image_dir());
    }
}

fn path(path: &std::path::Path) -> anyhow::Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8, as containerd wants it", path.display()))?;
    Ok(text.to_owned())
}

/// A pre-dump has none.
fn stats(output: &Output) -> anyhow::Result<Option<DumpStats>> {
    let path = output.work().join(layout::STATS_DUMP);
    let Ok(file) = File::open(&path) else {
        return Ok(None);
    };
    let mut entries = Reader::<DumpStats, _>::new(layout::STATS_DUMP, file)?;
    Ok(entries.next().transpose()?)
}
