//! `cryoctl checkpoint`.

mod archive;
mod live;
mod output;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use cryo_criu::options;

use crate::containerd::block_on;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::options::Flags;
use crate::progress::ProgressArgs;
use crate::stats::{self, Checkpointed};
use crate::target::Target;
use crate::text;
use live::Asked;
use output::Output;

/// Make a checkpoint of a running container, or of the containers of a pod.
///
/// The result is an archive as containerd's CRI writes it: the images of criu, the specification,
/// and what the container changed in its root file system. `cryoctl summary` and checkpointctl
/// read it; `cryoctl restore` and containerd's CRI make a container of it. All containers of a pod are
/// stopped before the first is taken, and go on after the last.
///
/// A container goes on afterwards unless --exit is given. Ctrl-C gives the checkpoint up: the
/// container goes on, and nothing is left. Options go to the shim with the request, whatever the
/// container's annotations and the node's configuration say. Needs root, and a container whose
/// shim is cryo's.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    target: Target,

    /// The archive to write, or an existing directory for it [default: the current directory, as
    /// checkpoint-NAME-TIME.tar].
    #[arg(long, short, value_name = "FILE")]
    export: Option<PathBuf>,

    /// In place of an archive, write criu's images alone into this directory, as `ctr task
    /// checkpoint --image-path` does: for --pre-dump and --parent-path.
    #[arg(long, value_name = "DIR", conflicts_with = "export")]
    image_dir: Option<PathBuf>,

    /// End the container with the checkpoint.
    #[arg(long)]
    exit: bool,

    /// Let the container go on afterwards: so it is without --exit too.
    #[arg(long, short = 'R', conflicts_with = "exit")]
    leave_running: bool,

    /// Seconds that all of it may take. Then it is given up, as by Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86400))]
    deadline: u32,

    /// Print what it took as JSON, as `podman container checkpoint --print-stats` does.
    #[arg(long)]
    print_stats: bool,

    #[command(flatten)]
    progress: ProgressArgs,

    #[command(flatten)]
    options: Flags<options::Checkpoint>,
}

const AFTER_HELP: &str = "\
Examples:
  cryoctl checkpoint c1 --export c1.tar
  cryoctl checkpoint --pod shop/web --name nginx --exit --tcp-established
  cryoctl checkpoint c1 --image-dir /var/tmp/1 --pre-dump
  cryoctl checkpoint c1 --image-dir /var/tmp/2 --parent-path ../1

Exit codes:
  0    it was done; stdout names the archives
  1    it failed, and the container is as it was unless stderr says otherwise
  2    the command line is wrong
  130  it was interrupted: the container goes on, and nothing was written";

impl Checkpoint {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let text = block_on(self.make())?;
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }

    /// Does it; what to print.
    async fn make(&self) -> anyhow::Result<String> {
        let interrupt = Interrupt::listen()?;
        let client = self.target.connect().await?;
        let found = self.target.find(&client).await?;
        if self.image_dir.is_some() && found.len() > 1 {
            bail!(
                "the pod has {} containers: name one with --name for --image-dir",
                found.len()
            );
        }
        let flat = self.image_dir.is_some();
        let given = |option| {
            let value = self.options.get(option);
            value.is_some_and(|value| value != "false")
        };
        for option in ["pre-dump", "parent-path"] {
            if !flat && given(option) {
                bail!("--{option} makes images that refer to others: write them with --image-dir");
            }
        }
        let time = std::time::SystemTime::now();
        let mut outputs = Vec::new();
        for one in &found {
            outputs.push(match &self.image_dir {
                Some(dir) => Output::images(dir)?,
                None => Output::archive(self.export.as_deref(), one, found.len(), time)?,
            });
        }
        let asked = Asked {
            exit: self.exit,
            lazy: given("lazy-pages"),
            limit: Duration::from_secs(self.deadline.into()),
            options: self.options.given(),
        };
        let taken = live::take(&client, &found, &outputs, &asked, &interrupt).await?;
        let mut lines = String::new();
        for (one, output) in found.iter().zip(&outputs) {
            // What ended with its checkpoint has nothing else left.
            let stop = (!self.exit).then_some(&interrupt);
            let written = archive::write(&client, one, output, stop, self.progress).await;
            written.with_context(|| self.what_is_left(&asked, output))?;
            lines.push_str(&text::printable(&output.path().display().to_string()));
            lines.push('\n');
        }
        if self.print_stats {
            let all: Vec<_> = found
                .iter()
                .zip(&taken)
                .map(|(one, taken)| Checkpointed {
                    id: one.record.id.clone(),
                    took: taken.took,
                    criu: taken.stats,
                })
                .collect();
            let whole = time.elapsed().unwrap_or_default();
            return text::pretty(&stats::of_checkpoint(whole, &all));
        }
        Ok(lines)
    }

    fn what_is_left(&self, asked: &Asked, output: &Output) -> String {
        if self.exit {
            let kept = output.keep_work();
            return format!("{}; its checkpoint is in {}", asked.end(), kept.display());
        }
        "the archive was not written".to_owned()
    }
}
