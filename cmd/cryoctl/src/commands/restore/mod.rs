//! `cryoctl restore`.

mod demands;
mod plain;
mod pod;
mod source;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use cryo_criu::options;

use crate::choice::Choice;
use crate::containerd::{Client, Socket, block_on};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::options::Flags;
use crate::progress::ProgressArgs;
use crate::target::CRI_NAMESPACE;
use source::Source;

/// Make a running container of a checkpoint, through containerd.
///
/// CHECKPOINT is an archive of `cryoctl checkpoint` or of containerd's CRI, the same unpacked, an
/// archive of a pod (--container), or a directory of criu's images. The new container has the specification of the checkpoint (or, with
/// --like, that of a container that is here), its image with what was changed in it, and goes on
/// where the other was.
///
/// A checkpoint may come from elsewhere and ask for anything: a specification that wants more
/// of the node than an ordinary container has (its files, devices, namespaces, more
/// capabilities) is refused, with a list, until --trust is given.
///
/// With --pod it becomes a container of that pod, by containerd's CRI, whose restore has to be
/// switched on (docs/live.md). Needs root.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Restore {
    /// The checkpoint.
    checkpoint: PathBuf,

    #[command(flatten)]
    choice: Choice,

    /// The new container's id [default: that of the checkpoint].
    #[arg(long, conflicts_with = "pod")]
    id: Option<String>,

    /// Take specification, image and runtime of this container instead of the checkpoint's.
    #[arg(long, value_name = "CONTAINER", conflicts_with = "pod")]
    like: Option<String>,

    /// The image of the root file system [default: that of the checkpoint].
    #[arg(long, conflicts_with = "pod")]
    image: Option<String>,

    /// The runtime, by name or as the path of its shim.
    #[arg(long, default_value = "io.containerd.cryo.v2", conflicts_with = "pod")]
    runtime: String,

    /// Where the root file system is made.
    #[arg(long, default_value = "overlayfs", conflicts_with = "pod")]
    snapshotter: String,

    /// Append the container's output to this file [default: nowhere].
    #[arg(long, value_name = "FILE", conflicts_with = "pod")]
    log: Option<PathBuf>,

    /// Give a specification what it asks for, whatever that is.
    #[arg(long, conflicts_with_all = ["pod", "like"])]
    trust: bool,

    /// Restore into this pod: the id of its sandbox, or its name.
    #[arg(long, value_name = "ID|[NAMESPACE/]NAME")]
    pod: Option<String>,

    /// The container's name in the pod [default: that of the checkpoint].
    #[arg(long, requires = "pod")]
    name: Option<String>,

    /// A file or directory of the node for a mount of the checkpoint.
    #[arg(long, value_name = "SOURCE:DESTINATION[:ro]", requires = "pod")]
    mount: Vec<String>,

    /// Seconds that all of it may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86400))]
    deadline: u32,

    /// Print what it took as JSON, as `podman container restore --print-stats` does.
    #[arg(long, conflicts_with = "pod")]
    print_stats: bool,

    /// containerd's namespace [default: default; with --pod: k8s.io].
    #[arg(long, short)]
    namespace: Option<String>,

    #[command(flatten)]
    socket: Socket,

    #[command(flatten)]
    progress: ProgressArgs,

    #[command(flatten)]
    options: Flags<options::Restore>,
}

const AFTER_HELP: &str = "\
Examples:
  cryoctl restore c1.tar
  cryoctl restore c1.tar --id c2 --tcp-close --log /var/log/c2.log
  cryoctl restore /var/tmp/images --like c1 --id c2
  cryoctl restore checkpoint-web_shop-nginx.tar --pod shop/web2
  cryoctl restore web.tar --container nginx --pod shop/web2

Exit codes:
  0    the container runs; stdout is its id
  1    it failed, and nothing is left of it; stderr says why
  2    the command line is wrong
  130  it was interrupted: nothing is left";

impl Restore {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let text = block_on(self.make())?;
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }

    async fn make(&self) -> anyhow::Result<String> {
        let interrupt = Interrupt::listen()?;
        let in_pod = self.pod.is_some();
        let source = Source::open(&self.checkpoint, &self.choice, in_pod, self.progress)
            .with_context(|| format!("cannot restore {}", self.checkpoint.display()))?;
        let namespace = self.namespace.as_deref();
        let namespace = namespace.unwrap_or(match self.pod {
            Some(_) => CRI_NAMESPACE,
            None => "default",
        });
        let client = Client::connect(&self.socket.address, namespace).await?;
        match &self.pod {
            Some(pod) => pod::restore(self, &client, &source, pod).await,
            None => plain::restore(self, &client, &source, &interrupt).await,
        }
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.deadline.into())
    }
}
