//! The shim's program is replaced, and taken away, under running pods.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Context, Pod, PodContainer};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::lab::Node;
use cryo_e2e::workload::{BUSYBOX, COUNTER};

use crate::pods::shims_of;

/// Where containerd's configuration has the shim.
const PROGRAMS: &str = "/opt/cryo/bin";

/// The file that the shim of a pod runs from, which may have no name any more.
fn program_of(cx: &Context, node: &Node, pod: &Pod) -> anyhow::Result<u64> {
    let shims = shims_of(node, cx.runtime(), &pod.id);
    let pid = shims.first().context("the pod has no shim")?;
    let exe = node.host(&format!("/proc/{pid}/exe"));
    Ok(std::fs::metadata(exe)?.ino())
}

/// Puts a build of the shim there that differs from all others, as an upgrade does: beside
/// the old one, then under its name.
fn install(folder: &Path, shim: &str, original: &[u8], n: u8) -> anyhow::Result<u64> {
    use std::os::unix::fs::PermissionsExt as _;
    let new = folder.join("new");
    std::fs::write(&new, [original, &[n]].concat())?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&new, folder.join(shim))?;
    Ok(std::fs::metadata(folder.join(shim))?.ino())
}

/// What a pod's shim does for a running container.
async fn all_works(cx: &Context, node: &Node, container: &PodContainer) -> anyhow::Result<()> {
    container.count_on(2).await?;
    let id = container.id.as_str();
    let ctr = async |args: &[&str]| {
        let command = [&["ctr", "--namespace", "k8s.io"], args].concat();
        node.exec(&command).await?.success()
    };
    let exec_id = cx.id("e");
    let exec = [
        "--namespace",
        "k8s.io",
        "task",
        "exec",
        "--exec-id",
        &exec_id,
        id,
    ];
    let text = node.ctr_script(&exec, "echo hello").await?.success()?;
    ensure!(text == "hello\n", "{text}");
    ctr(&["task", "metrics", id]).await?;
    let archive = format!("{}/archive.tar", cx.folder(node, "archive")?);
    container.cri.checkpoint(id, &archive).await?;
    container.count_on(2).await?;
    Ok(())
}

async fn ends(container: &PodContainer) -> anyhow::Result<()> {
    container.cri.stop(&container.id, 0).await?;
    let status = container.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    container.cri.remove(&container.id).await?;
    Ok(())
}

pub(crate) async fn of_the_shim_under_running_pods(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let shim = cx.runtime().shim();
    let original = std::fs::read(node.host(PROGRAMS).join(shim))?;
    let folder = node.host(&cx.cover(node, PROGRAMS).await?);
    let command = ["sh", "-c", COUNTER];

    let first = install(&folder, shim, &original, 1)?;
    let old = cx.pod(node, cx.runtime().handler()).await?;
    let one = old.run("one", BUSYBOX, &command).await?;
    one.count_to(2).await?;
    ensure!(program_of(&cx, node, &old)? == first, "not the first build");

    // Replaced: the pod keeps its shim, a new one has the new one.
    let second = install(&folder, shim, &original, 2)?;
    all_works(&cx, node, &one).await?;
    let two = old.run("two", BUSYBOX, &command).await?;
    let new = cx.pod(node, cx.runtime().handler()).await?;
    let other = new.run("other", BUSYBOX, &command).await?;
    all_works(&cx, node, &two).await?;
    all_works(&cx, node, &other).await?;
    ensure!(program_of(&cx, node, &old)? == first, "not the first build");
    ensure!(
        program_of(&cx, node, &new)? == second,
        "not the second build"
    );

    // Taken away: what runs goes on, what is new says why not.
    std::fs::remove_file(folder.join(shim))?;
    all_works(&cx, node, &one).await?;
    ends(&two).await?;
    let three = old.run("three", BUSYBOX, &command).await?;
    three.count_to(2).await?;
    let refused = match cx.pod(node, cx.runtime().handler()).await {
        Ok(_) => anyhow::bail!("a pod without a shim"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(refused.contains(shim), "{refused}");

    // And there is one again, which a containerd that comes back needs.
    let third = install(&folder, shim, &original, 3)?;
    node.restart_containerd(true).await?;
    for container in [&one, &three, &other] {
        all_works(&cx, node, container).await?;
    }
    let newest = cx.pod(node, cx.runtime().handler()).await?;
    ensure!(
        program_of(&cx, node, &newest)? == third,
        "not the third build"
    );
    for container in [&one, &three, &other] {
        ends(container).await?;
    }
    for pod in [&old, &new, &newest] {
        pod.cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
        pod.cri
            .remove_pod(&pod.id)
            .await
            .context("RemovePodSandbox")?;
    }
    Ok(())
}
