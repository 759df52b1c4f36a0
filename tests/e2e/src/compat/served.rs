//! A real program in a container that serves a client outside of it. The client is the case's
//! program: it runs on the first node and loads the server all the while.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::cases::bind;
use super::{Case, Outcome, Row, copy, empty_root, has_line, node_programs};
use crate::containerd::CheckpointOptions;
use crate::context::{Container, Context, Output};
use crate::lab::{Finished, Node};
use crate::network::Network;
use crate::patience::PATIENCE;
use crate::workload::BUSYBOX;

/// What is served, and where.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// The command line, of the node's own programs; `/data` is the volume.
    pub command: fn() -> &'static [&'static str],
    /// Files of the volume.
    pub files: &'static [(&'static str, &'static str)],
    /// It is restored on the second node, with its address.
    pub moves: bool,
}

/// In front of a client: what it is told.
fn prelude(address: &str, folder: &str) -> String {
    format!(
        "ADDRESS, FOLDER = {}, {}\n\
         sys.stdout = open(FOLDER + '/said', 'w')\n\
         def woken():\n\
         \x20   while not os.path.exists(FOLDER + '/go'):\n\
         \x20       if not os.path.exists(FOLDER): os._exit(1)\n\
         \x20       time.sleep(0.02)\n\
         def pid(): return int(read(FOLDER + '/pid'))\n\
         def volume(): return read(FOLDER + '/volume')\n",
        Value::from(address),
        Value::from(folder),
    )
}

pub(super) async fn run_served(
    cx: &Context,
    case: &Case,
    served: &Served,
) -> anyhow::Result<Vec<Row>> {
    let from = cx.a()?;
    let to = if served.moves { cx.b()? } else { from };
    let nodes = if served.moves {
        vec![from, to]
    } else {
        vec![from]
    };
    let network = Network::over(cx, &nodes).await?;
    let namespace = network.namespace(cx, from).await?;
    network.connect(from).await?;
    let volume = cx.folder(from, "volume")?;
    for (name, text) in served.files {
        std::fs::write(from.host(&volume).join(name), text)?;
    }

    let (old, output) = task(cx, from, served, &volume, &namespace, None).await?;
    let pid = old.start().await?;
    let client = Client::start(cx, from, case, &network.address(), pid, &volume)?;
    if let Err(error) = client.says("ready").await {
        bail!("{error:#}; the server said: {}", said(&output));
    }
    let image = cx.folder(from, "image")?;
    let options = CheckpointOptions {
        exit: true,
        open_tcp: true,
        image_path: image.clone(),
        ..Default::default()
    };
    if let Err(error) = old.api.checkpoint(&old.id, options).await {
        return Ok(case.rows(|_| Outcome::NotCheckpointed(error.message().into())));
    }
    old.finish().await?;

    let (mut image, mut volume) = (image, volume);
    if served.moves {
        network.disconnect(from).await?;
        network.namespace(cx, to).await?;
        image = moved(cx, from, &image, to, "image").await?;
        volume = moved(cx, from, &volume, to, "volume").await?;
    } else {
        let other = cx.folder(to, "volume")?;
        copy(to, &volume, &other).await?;
        volume = other;
    }
    let (new, output) = task(cx, to, served, &volume, &namespace, Some(&image)).await?;
    let pid = match new.api.start(&new.id).await {
        Ok(pid) => pid,
        Err(error) => return Ok(case.rows(|_| Outcome::NotRestored(error.message().into()))),
    };
    if served.moves {
        network.connect(to).await?;
    }
    tell(&client.folder, pid, &volume)?;
    client.go()?;
    if let Err(error) = client.says("done").await {
        let said = said(&output);
        return Ok(case.rows(|_| Outcome::Lost(format!("{error:#}; the server said: {said}"))));
    }
    let rows = case.judged(&client.finish().await?);
    new.kill_and_delete().await?;
    Ok(rows)
}

fn said(output: &Output) -> String {
    let text = output.stdout() + &output.stderr();
    let from = text.len().saturating_sub(600);
    text.get(from..).unwrap_or(&text).to_owned()
}

/// The same folder on another node.
async fn moved(
    cx: &Context,
    from: &Node,
    path: &str,
    to: &Node,
    what: &str,
) -> anyhow::Result<String> {
    let target = format!("{}/{what}", cx.folder(to, what)?);
    from.copy_to(path, to, &target).await?;
    Ok(target)
}

/// A container with the node's own programs.
async fn task(
    cx: &Context,
    node: &Node,
    served: &Served,
    volume: &str,
    network: &str,
    image: Option<&str>,
) -> anyhow::Result<(Container, Output)> {
    let container = cx.container(node, BUSYBOX, (served.command)()).await?;
    container
        .edit_spec(|spec| edit(spec, volume, network))
        .await?;
    let output = Output::open(node, &container.id)?;
    let mut request = container.create_request(image).await?;
    request.rootfs = vec![empty_root(cx, node)?];
    request.stdout = output.path("stdout");
    request.stderr = output.path("stderr");
    container.api.create(request).await.context("create")?;
    Ok((container, output))
}

fn edit(spec: &mut Value, volume: &str, network: &str) {
    node_programs(spec);
    bind(spec, volume, "/data", "rw");
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        if namespace["type"] == "network" {
            namespace["path"] = network.into();
        }
    }
}

/// The client, a process of the first node.
struct Client {
    folder: PathBuf,
    done: JoinHandle<anyhow::Result<Finished>>,
}

impl Client {
    fn start(
        cx: &Context,
        node: &Node,
        case: &Case,
        address: &str,
        pid: u32,
        volume: &str,
    ) -> anyhow::Result<Self> {
        let folder = cx.folder(node, "client")?;
        let program = format!("{folder}/client.py");
        std::fs::write(node.host(&program), case.client(&prelude(address, &folder)))?;
        let host = node.host(&folder);
        tell(&host, pid, volume)?;
        let there = node.clone();
        let done = tokio::spawn(async move {
            there
                .exec(&["timeout", "-k", "1", "150", "python3", &program])
                .await
        });
        Ok(Self { folder: host, done })
    }

    /// Has it look at its objects.
    fn go(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.join("go"), "")?)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("said")).unwrap_or_default()
    }

    /// Waits until it has said this line.
    async fn says(&self, line: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while !has_line(&self.said(), line) {
            ensure!(
                Instant::now() < end && !self.done.is_finished(),
                "the client did not come as far as {line:?}; it said {:?}",
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// All that it said.
    async fn finish(self) -> anyhow::Result<String> {
        self.done.await??.success()?;
        Ok(std::fs::read_to_string(self.folder.join("said"))?)
    }
}

/// Tells a client the server's first process and its volume, as the server's node has them.
fn tell(folder: &Path, pid: u32, volume: &str) -> anyhow::Result<()> {
    std::fs::write(folder.join("volume"), volume)?;
    Ok(std::fs::write(folder.join("pid"), pid.to_string())?)
}
