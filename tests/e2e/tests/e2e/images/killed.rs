//! cryoctl killed as it writes into containerd's store.

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Finished, Node};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, copy};
use tokio::net::{UnixListener, UnixStream};

use super::cryoctl;
use crate::cri::{archive, counter};

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Runs cryoctl with a socket between it and containerd, and kills it once it has sent so many
/// bytes. Gives how many it has sent.
async fn killed_after(
    node: &Node,
    folder: &str,
    limit: u64,
    arguments: &[&str],
) -> anyhow::Result<(u64, Finished)> {
    let socket = format!("{folder}/containerd.sock");
    let listener = UnixListener::bind(node.host(&socket))?;
    let command = [&["cryoctl"], arguments, &["--address", &socket]].concat();
    let between = async {
        let (client, _) = listener.accept().await?;
        let pid = client.peer_cred()?.pid().context("who is it?")?;
        let server = UnixStream::connect(node.host(CONTAINERD)).await?;
        let (requests, mut back) = client.into_split();
        let (mut answers, mut server) = server.into_split();
        let answers = tokio::spawn(async move { copy(&mut answers, &mut back).await });
        let sent = copy(&mut requests.take(limit), &mut server).await?;
        if sent == limit {
            kill_process(Pid::from_raw(pid).context("its pid")?, Signal::KILL)?;
        }
        drop(server);
        answers.abort();
        anyhow::Ok(sent)
    };
    let (done, sent) = tokio::join!(node.exec(&command), between);
    std::fs::remove_file(node.host(&socket))?;
    let done = done?;
    Ok((sent.with_context(|| format!("{done:?}"))?, done))
}

/// What a namespace of containerd's has.
struct Store<'a> {
    node: &'a Node,
    namespace: &'a str,
}

impl Store<'_> {
    async fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let namespace = ["-n", self.namespace];
        self.node.ctr(&[&namespace, arguments].concat()).await
    }

    /// An image that has a name has all of its blobs, and is unpacked.
    async fn nothing_half_made(&self, image: &str, copy: &str) -> anyhow::Result<bool> {
        let names = self.ctr(&["images", "ls", "-q"]).await?;
        if !names.lines().any(|name| name == image) {
            return Ok(false);
        }
        let complete = self.ctr(&["images", "check", "-q"]).await?;
        ensure!(complete.contains(image), "{image} is named and incomplete");
        let (from, to) = (format!("containerd:{image}"), format!("oci:{copy}"));
        let pull = ["cryoctl", "pull", "-n", self.namespace, &from, &to];
        self.node.exec(&pull).await?.success()?;
        Ok(true)
    }

    /// Removes the image; then containerd has nothing of it, nor of those who were killed.
    async fn remove(&self, image: &str) -> anyhow::Result<()> {
        let script = r#"
            set -e
            ctr() { command ctr -n "$0" "$@"; }
            ctr images rm --sync "$1" >/dev/null
            ctr leases ls -q
            ctr images ls -q
            ctr content ls -q
            ctr content active | tail -n +2
            ctr snapshots ls | tail -n +2"#;
        let command = ["bash", "-c", script, self.namespace, image];
        let left = self.node.exec(&command).await?.success()?;
        ensure!(left.trim().is_empty(), "this is left: {left}");
        Ok(())
    }
}

pub(crate) async fn a_killed_writer_leaves_nothing_half_made(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = counter(&cx, node, cx.runtime().handler()).await?;
    let archive = archive(&cx, &container).await?.path;
    let folder = cx.folder(node, "killed")?;
    let layout = format!("oci:{folder}/layout");
    let expected = cryoctl(node, &["build", &archive, &layout]).await?;
    let namespace = cx.id("store");
    let image = format!("localhost:5000/{namespace}:1");
    let store = Store {
        node,
        namespace: &namespace,
    };
    cx.undo(node, format!("ctr namespaces rm {namespace}"));

    // As it begins, within the layer, and so many bytes before the end, of which a run has a few
    // more or less.
    let ends = [2400, 1500, 1000, 600, 300, 60];
    for (from, ends) in [
        (["build", archive.as_str()], &ends[..]),
        (["pull", layout.as_str()], &ends[3..]),
    ] {
        let command = [&from[..], &[&image, "-n", &namespace]].concat();
        let (all, done) = killed_after(node, &folder, u64::MAX, &command).await?;
        ensure!(done.success()?.contains(&expected), "{from:?}");
        store.remove(&image).await?;

        let mut named = 0;
        let limits = ends.iter().map(|bytes| all.saturating_sub(*bytes));
        for limit in [300, all / 2].into_iter().chain(limits) {
            let at = format!("{from:?} killed at {limit} of {all}");
            let (sent, done) = killed_after(node, &folder, limit, &command).await?;
            ensure!(sent == limit && done.code != 0, "{at}: {sent} {done:?}");
            let copy = format!("{folder}/copy");
            let whole = store.nothing_half_made(&image, &copy).await;
            named += usize::from(whole.with_context(|| at.clone())?);

            let again = cryoctl(node, &command).await.with_context(|| at.clone())?;
            ensure!(again == expected, "{at}: {again} instead of {expected}");
            ensure!(store.nothing_half_made(&image, &copy).await?, "{at}");
            store.remove(&image).await.context(at)?;
        }
        ensure!(
            (1..=ends.len()).contains(&named),
            "{from:?}: {named} had a name"
        );
    }
    Ok(())
}
