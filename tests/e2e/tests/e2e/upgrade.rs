//! The shim's program is replaced, and taken away, under running pods.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_criu::options::IN_REQUESTS;
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

/// Options in a request, of a pod whose shim is of a build that would not see them.
pub(crate) async fn options_need_a_shim_that_sees_them(cx: Context) -> anyhow::Result<()> {
    const SAYS: &[u8] = IN_REQUESTS.as_bytes();
    let node = cx.a()?;
    let shim = cx.runtime().shim();
    let programs = node.host(PROGRAMS);
    let original = std::fs::read(programs.join(shim))?;
    let cryoctl = std::fs::read(programs.join("cryoctl"))?;
    // The old build is this one, but for what it says of itself.
    let mut old = original.clone();
    let mut said = 0;
    for at in 0..old.len() - SAYS.len() {
        if old[at..].starts_with(SAYS) {
            old[at] = b'C';
            said += 1;
        }
    }
    ensure!(said > 0, "the shim has no {IN_REQUESTS}");

    let folder = node.host(&cx.cover(node, PROGRAMS).await?);
    install(&folder, "cryoctl", &cryoctl, 0)?;
    install(&folder, shim, &old, 0)?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let container = pod.run("one", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    container.count_to(2).await?;
    install(&folder, shim, &original, 0)?;

    let out = cx.folder(node, "out")?;
    let archive = format!("{out}/c.tar");
    let run = async |arguments: &[&str]| {
        node.exec(&[&["/opt/cryo/bin/cryoctl"], arguments].concat())
            .await
    };
    let of_cri = ["checkpoint", "--namespace", "k8s.io", "-e"];
    let checkpoint = [&of_cri[..], &[&archive, container.id.as_str()]].concat();
    let with = [&checkpoint[..], &["--tcp-close"]].concat();
    let refused = run(&with).await?.failure()?;
    ensure!(
        refused.contains("before cryo was upgraded") && refused.contains("annotations"),
        "{refused}"
    );
    ensure!(!node.host(&archive).exists());
    container.count_on(2).await?;
    run(&checkpoint).await?.success()?;
    container.count_on(2).await?;

    // A pod of the new one has nothing in the way.
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let new = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    new.count_to(2).await?;
    let other = format!("{out}/new.tar");
    let with = [&of_cri[..], &[&other, new.id.as_str(), "--tcp-close"]].concat();
    run(&with).await?.success()?;
    new.count_on(2).await?;

    // A restore's shim is the one that containerd would start.
    let plain = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let output = plain.create().await?;
    plain.start().await?;
    output.count_to(2).await?;
    let archive = format!("{out}/plain.tar");
    let checkpoint = ["checkpoint", &plain.id, "-e", &archive, "--exit"];
    run(&checkpoint).await?.success()?;
    install(&folder, shim, &old, 0)?;
    let id = cx.id("restored");
    let restore = ["restore", &archive, "--id", &id, "--trust", "--tcp-close"];
    let refused = run(&restore).await?.failure()?;
    ensure!(refused.contains("would not see these options"), "{refused}");
    let left = node.ctr(&["containers", "ls", "-q"]).await?;
    ensure!(!left.contains(&id), "{left}");
    Ok(())
}
