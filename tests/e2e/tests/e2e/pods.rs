//! Pods through CRI: one shim for all containers of a pod.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::cri::ContainerState;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use cryo_e2e::{lab::Node, runtime::Runtime};

/// The processes of the node that serve this pod: command lines with the shim's name and
/// the sandbox's id.
pub(crate) fn shims_of(node: &Node, runtime: Runtime, pod: &str) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir(node.host("/proc")) else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = bytes
                .split(|b| *b == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let own = words.first()?.ends_with(runtime.shim());
            (own && words.iter().any(|w| w == pod)).then_some(pid)
        })
        .collect()
}

pub(crate) async fn two_containers_share_one_shim(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let before = shims_of(node, cx.runtime(), &pod.id);
    ensure!(!before.is_empty(), "no shim of the pod {}", pod.id);
    let one = pod.run("one", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let two = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    one.count_to(3).await?;
    two.count_to(3).await?;
    let after = shims_of(node, cx.runtime(), &pod.id);
    ensure!(after == before, "shims {before:?} before, {after:?} after");
    for container in [&one, &two] {
        let strangers = shims_of(node, cx.runtime(), &container.id);
        ensure!(strangers.is_empty(), "a shim of its own: {strangers:?}");
    }
    one.cri.stop(&one.id, 0).await.context("StopContainer")?;
    let status = one.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    one.cri.remove(&one.id).await.context("RemoveContainer")?;
    two.count_on(3).await?;
    ensure!(two.status().await?.state() == ContainerState::Running);
    Ok(())
}

pub(crate) async fn exit_codes_and_logs_reach_cri(cx: Context) -> anyhow::Result<()> {
    let pod = cx.pod(cx.a()?, cx.runtime().handler()).await?;
    let script = "echo out; echo err >&2; exit 3";
    let container = pod.run("three", BUSYBOX, &["sh", "-c", script]).await?;
    let status = container.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 3, "exit code {}", status.exit_code);
    let log = std::fs::read_to_string(&container.log)?;
    ensure!(log.contains("stdout F out\n"), "{log}");
    ensure!(log.contains("stderr F err\n"), "{log}");
    let zero = pod.run("zero", BUSYBOX, &["true"]).await?;
    let status = zero.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 0, "exit code {}", status.exit_code);
    let listed = zero.cri.list().await?;
    ensure!(
        listed
            .iter()
            .any(|c| c.id == zero.id && c.state() == ContainerState::Exited),
        "the container is not listed as exited"
    );
    Ok(())
}

pub(crate) async fn every_bundle_of_a_pod_names_the_shim(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let container = pod.run("app", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
    let sandbox = std::fs::read_to_string(node.host(tasks).join(&pod.id).join("shim-binary-path"))?;
    ensure!(sandbox.ends_with(cx.runtime().shim()), "{sandbox}");
    let own = node.host(&container.bundle()).join("shim-binary-path");
    if cx.differs("the Go shim writes no shim-binary-path into the bundles of a pod's containers") {
        return Ok(());
    }
    let app = std::fs::read_to_string(&own).with_context(|| own.display().to_string())?;
    ensure!(app == sandbox, "{app} and {sandbox}");
    Ok(())
}

pub(crate) async fn the_own_runtime_name_runs_pods(cx: Context) -> anyhow::Result<()> {
    let handler = match cx.runtime() {
        Runtime::Cryo => "cryo-own",
        Runtime::Runc => "runc",
    };
    let pod = cx.pod(cx.a()?, handler).await?;
    let container = pod.run("app", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    container.count_to(3).await?;
    container.cri.stop(&container.id, 0).await?;
    let status = container.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    Ok(())
}

pub(crate) async fn a_pod_that_is_stopped_ends_its_containers(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let status = pod
        .cri
        .pod_status(&pod.id)
        .await?
        .status
        .unwrap_or_default();
    ensure!(status.state == 0, "the pod is not ready: {status:?}");
    let ip = status.network.unwrap_or_default().ip;
    ensure!(!ip.is_empty(), "the pod has no address");
    let container = pod.run("app", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    container.count_to(2).await?;
    pod.cri.stop_pod(&pod.id).await?;
    container.wait_for(ContainerState::Exited).await?;
    let status = pod
        .cri
        .pod_status(&pod.id)
        .await?
        .status
        .unwrap_or_default();
    ensure!(status.state == 1, "the pod is still ready: {status:?}");
    pod.cri.remove_pod(&pod.id).await?;
    let shims = shims_of(node, cx.runtime(), &pod.id);
    ensure!(shims.is_empty(), "the removed pod has shims: {shims:?}");
    Ok(())
}

pub(crate) async fn a_killed_shim_ends_its_pod(cx: Context) -> anyhow::Result<()> {
    // It is to be done within five seconds, for which a busy machine has more than one chance.
    let mut took = Vec::new();
    for _ in 0..4 {
        took.push(killed_shim_ends_pod(&cx).await?);
        if took.iter().any(|took| took.as_secs() < 5) {
            return Ok(());
        }
    }
    anyhow::bail!("{took:?}")
}

/// How long it takes until CRI has both containers of a pod as exited whose shim is killed.
async fn killed_shim_ends_pod(cx: &Context) -> anyhow::Result<Duration> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let one = pod.run("one", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let two = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    one.count_to(2).await?;
    two.count_to(2).await?;
    let killed = node.kill_shims_of(&pod.id)?;
    ensure!(killed == 1, "{killed} shims of the pod {}", pod.id);
    // containerd asks nobody about the app containers: `delete` of the sandbox ends
    // them and tells it so.
    let start = Instant::now();
    for container in [&one, &two] {
        let status = container.wait_for(ContainerState::Exited).await?;
        // 255 is CRI's own word for an exit that it did not see.
        ensure!(
            [137, 255].contains(&status.exit_code),
            "exit code {}",
            status.exit_code
        );
    }
    let took = start.elapsed();
    for container in [&one, &two] {
        container
            .cri
            .stop(&container.id, 0)
            .await
            .context("StopContainer")?;
        container
            .cri
            .remove(&container.id)
            .await
            .context("RemoveContainer")?;
    }
    Ok(took)
}
