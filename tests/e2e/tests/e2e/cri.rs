//! CRI CheckpointContainer, and CRI's restore from its archive.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Context, PodContainer};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::lab::Node;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{BUSYBOX, FILE_COUNTER, consecutive, goes_on};

/// A counter in a pod.
async fn counter(cx: &Context, node: &Node, handler: &str) -> anyhow::Result<PodContainer> {
    let pod = cx.pod(node, handler).await?;
    let container = pod
        .run("counter", BUSYBOX, &["sh", "-c", FILE_COUNTER])
        .await?;
    container.count_to(4).await?;
    Ok(container)
}

/// Checkpoints into an archive, ends the container and returns the archive and what was
/// counted up to the checkpoint.
async fn archive(cx: &Context, container: &PodContainer) -> anyhow::Result<(String, Vec<u64>)> {
    let path = format!("{}/checkpoint.tar", cx.folder(&container.node, "archive")?);
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
    consecutive(&container.count_on(2).await?)?;
    container.cri.stop(&container.id, 0).await?;
    let log = archived_log(&container.node, &path)?;
    Ok((path, log))
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
/// log before the new output, so the whole log counts without a gap.
async fn restored(
    cx: &Context,
    node: &Node,
    handler: &str,
    archive: &str,
    before: &[u64],
) -> anyhow::Result<PodContainer> {
    let pod = cx.pod(node, handler).await?;
    let container = pod.run("counter", archive, &[]).await?;
    container.wait_for(ContainerState::Running).await?;
    let numbers = container.count_to(before.len() + 4).await?;
    let (old, new) = numbers.split_at(before.len());
    ensure!(
        old == before,
        "the log of before is not in front: {old:?}, was {before:?}"
    );
    goes_on(old, new)?;
    let path = node.host(&container.bundle()).join("rootfs").join("count");
    let mut count = 0;
    for _ in 0..20 {
        count = std::fs::read_to_string(&path)
            .with_context(|| format!("{}", path.display()))?
            .trim()
            .parse()
            .unwrap_or(0);
        if count > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    ensure!(
        count >= *before.last().context("nothing counted")?,
        "/count is {count}"
    );
    Ok(container)
}

pub(crate) async fn archive_has_what_the_kubelet_wants(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = counter(&cx, node, cx.runtime().handler()).await?;
    let (path, before) = archive(&cx, &container).await?;
    ensure!(before.len() >= 4, "{before:?}");
    let names = entries(node, &path)?;
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
    let (path, _) = archive(&cx, &container).await?;
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
    let (path, before) = archive(&cx, &container).await?;
    let container = restored(&cx, node, handler, &path, &before).await?;
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
    let (path, before) = archive(&cx, &container).await?;
    let arrived = format!("{}/checkpoint.tar", cx.folder(b, "arrived")?);
    a.copy_to(&path, b, &arrived).await?;
    restored(&cx, b, handler, &arrived, &before).await?;
    Ok(())
}

pub(crate) async fn restored_is_checkpointed_again(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = cx.runtime().handler();
    let container = counter(&cx, node, handler).await?;
    let (first, before) = archive(&cx, &container).await?;
    let container = restored(&cx, node, handler, &first, &before).await?;
    let (second, before) = archive(&cx, &container).await?;
    restored(&cx, node, handler, &second, &before).await?;
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
    let (path, before) = archive(&cx, &container).await?;
    restored(&cx, node, handler, &path, &before).await?;
    Ok(())
}
