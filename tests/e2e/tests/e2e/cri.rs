//! CRI CheckpointContainer, and CRI's restore from its archive.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Context, Pod, PodContainer};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::lab::Node;
use cryo_e2e::patience::until;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{BUSYBOX, FILE_COUNTER, consecutive};

/// An archive of a checkpoint.
pub(crate) struct Archive {
    pub(crate) path: String,
    /// The last number before the checkpoint was asked for.
    before: u64,
    /// The numbers in its container.log. CRI takes the log when the container runs on
    /// already, so it may have numbers that came after the dump.
    log: Vec<u64>,
}

/// A counter in a pod.
pub(crate) async fn counter(
    cx: &Context,
    node: &Node,
    handler: &str,
) -> anyhow::Result<PodContainer> {
    counter_in(&cx.pod(node, handler).await?).await
}

/// A counter in this pod.
pub(crate) async fn counter_in(pod: &Pod) -> anyhow::Result<PodContainer> {
    let container = pod
        .run("counter", BUSYBOX, &["sh", "-c", FILE_COUNTER])
        .await?;
    container.count_to(4).await?;
    Ok(container)
}

/// Checkpoints into an archive and ends the container.
pub(crate) async fn archive(cx: &Context, container: &PodContainer) -> anyhow::Result<Archive> {
    let path = format!("{}/checkpoint.tar", cx.folder(&container.node, "archive")?);
    let counted = container.numbers();
    let before = *counted.last().context("nothing counted")?;
    container
        .cri
        .checkpoint(&container.id, &path)
        .await
        .context("CheckpointContainer")?;
    let status = container.status().await?;
    ensure!(
        status.state() == ContainerState::Running,
        "{:?} after the checkpoint",
        status.state()
    );
    let numbers = container.count_on(2).await?;
    consecutive(numbers.get(counted.len() - 1..).unwrap_or_default())?;
    container.cri.stop(&container.id, 0).await?;
    let log = archived_log(&container.node, &path)?;
    Ok(Archive { path, before, log })
}

/// The numbers in the archive's container.log.
fn archived_log(node: &Node, path: &str) -> anyhow::Result<Vec<u64>> {
    let mut archive = tar::Archive::new(File::open(node.host(path))?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.to_string_lossy() == "container.log" {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text)?;
            let text = cryo_e2e::workload::cri_log(&text);
            return Ok(cryo_e2e::workload::numbers(&text));
        }
    }
    anyhow::bail!("no container.log in {path}")
}

fn entries(node: &Node, path: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut archive = tar::Archive::new(File::open(node.host(path))?);
    let mut names = BTreeSet::new();
    for entry in archive.entries()? {
        names.insert(entry?.path()?.to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Restores the archive in a new pod and checks that it goes on. CRI puts the archive's
/// log before the new output.
pub(crate) async fn restored(
    cx: &Context,
    node: &Node,
    handler: &str,
    path: &str,
    archive: &Archive,
) -> anyhow::Result<PodContainer> {
    restored_in(&cx.pod(node, handler).await?, path, archive).await
}

/// As [`restored`], in this pod.
pub(crate) async fn restored_in(
    pod: &Pod,
    path: &str,
    archive: &Archive,
) -> anyhow::Result<PodContainer> {
    let container = pod.run("counter", path, &[]).await?;
    container.wait_for(ContainerState::Running).await?;
    let numbers = container.count_to(archive.log.len() + 4).await?;
    let (old, new) = numbers.split_at(archive.log.len());
    ensure!(
        old == archive.log,
        "the log of before is not in front: {old:?}, was {:?}",
        archive.log
    );
    consecutive(new)?;
    let next = *new.first().context("nothing counted")?;
    let last = *old.last().context("nothing counted before")?;
    ensure!(
        archive.before < next && next <= last + 1,
        "went on with {next}; had counted to {} before the checkpoint and to {last} after it",
        archive.before
    );
    let path = pod
        .node
        .host(&container.bundle())
        .join("rootfs")
        .join("count");
    // Empty while the shell is between open and write.
    let count: u64 = until("a number in /count", || {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().parse().ok())
    })
    .await?;
    ensure!(count >= next, "/count is {count} and {next} was written");
    Ok(container)
}

pub(crate) async fn archive_has_what_the_kubelet_wants(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = counter(&cx, node, cx.runtime().handler()).await?;
    let archive = archive(&cx, &container).await?;
    ensure!(archive.log.len() >= 4, "{:?}", archive.log);
    let names = entries(node, &archive.path)?;
    for wanted in [
        "spec.dump",
        "config.dump",
        "status.dump",
        "rootfs-diff.tar",
        "container.log",
        "dump.log",
        "stats-dump",
        "checkpoint/inventory.img",
        "checkpoint/descriptors.json",
    ] {
        ensure!(names.contains(wanted), "{wanted} is not in {names:?}");
    }
    Ok(())
}

pub(crate) async fn checkpointctl_reads_the_archive(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = counter(&cx, node, cx.runtime().handler()).await?;
    let path = archive(&cx, &container).await?.path;
    let shown = node
        .exec(&["checkpointctl", "show", &path])
        .await?
        .success()?;
    ensure!(shown.contains("counter"), "{shown}");
    let inspected = node
        .exec(&["checkpointctl", "inspect", "--all", &path])
        .await?
        .success()?;
    for wanted in ["counter", "Process tree", "sh", "CRIU dump statistics"] {
        ensure!(inspected.contains(wanted), "{wanted} is not in {inspected}");
    }
    Ok(())
}

pub(crate) async fn restored_in_a_new_pod_goes_on(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = cx.runtime().handler();
    let container = counter(&cx, node, handler).await?;
    let archive = archive(&cx, &container).await?;
    let container = restored(&cx, node, handler, &archive.path, &archive).await?;
    container.cri.stop(&container.id, 0).await?;
    let status = container.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    container.cri.remove(&container.id).await?;
    Ok(())
}

pub(crate) async fn restored_on_another_node_goes_on(cx: Context) -> anyhow::Result<()> {
    let (a, b) = (cx.a()?, cx.b()?);
    let handler = cx.runtime().handler();
    let container = counter(&cx, a, handler).await?;
    let archive = archive(&cx, &container).await?;
    let arrived = format!("{}/checkpoint.tar", cx.folder(b, "arrived")?);
    a.copy_to(&archive.path, b, &arrived).await?;
    restored(&cx, b, handler, &arrived, &archive).await?;
    Ok(())
}

pub(crate) async fn restored_is_checkpointed_again(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = cx.runtime().handler();
    let container = counter(&cx, node, handler).await?;
    let first = archive(&cx, &container).await?;
    let container = restored(&cx, node, handler, &first.path, &first).await?;
    let second = archive(&cx, &container).await?;
    restored(&cx, node, handler, &second.path, &second).await?;
    Ok(())
}

pub(crate) async fn the_own_runtime_name_checkpoints_and_restores(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = match cx.runtime() {
        Runtime::Cryo => "cryo-own",
        Runtime::Runc => "runc",
    };
    let container = counter(&cx, node, handler).await?;
    let archive = archive(&cx, &container).await?;
    restored(&cx, node, handler, &archive.path, &archive).await?;
    Ok(())
}
