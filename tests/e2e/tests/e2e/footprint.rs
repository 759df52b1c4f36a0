//! What a pod's shim takes of the node.

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Context, Pod};
use cryo_e2e::lab::binaries;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::shims::{Usage, threads};
use cryo_e2e::workload::{BUSYBOX, COUNTER};

/// The most threads of a shim with its zygote.
const MAX_THREADS: usize = 4;

/// A pod with this many containers, beside another one as on any node: so the program's own pages
/// are shared, and what is private is what one more pod costs.
async fn pod_of(cx: &Context, runtime: Runtime, containers: usize) -> anyhow::Result<Pod> {
    let node = cx.a()?;
    cx.pod(node, runtime.handler()).await?;
    let pod = cx.pod(node, runtime.handler()).await?;
    for name in ["one", "two", "three"].into_iter().take(containers) {
        pod.run(name, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    }
    Ok(pod)
}

pub(crate) async fn private_memory_is_a_part_of_the_go_shims(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // A debug build has larger tables to relocate.
    let most = if binaries().ends_with("release") {
        0.2
    } else {
        0.6
    };
    for containers in [1, 3] {
        let ours = pod_of(&cx, Runtime::Cryo, containers).await?;
        let peers = pod_of(&cx, Runtime::Runc, containers).await?;
        let ours = Usage::at_rest(node, &ours.id).await?.private_kib;
        let peers = Usage::at_rest(node, &peers.id).await?.private_kib;
        let ratio = ours as f64 / peers as f64;
        ensure!(
            ratio < most,
            "with {containers} containers the shim has {ours} KiB of its own and the Go shim \
             {peers}: {ratio:.2}, wanted below {most}"
        );
    }
    Ok(())
}

pub(crate) async fn threads_are_few_at_rest_and_in_a_checkpoint(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = pod_of(&cx, cx.runtime(), 3).await?;
    let rest = Usage::at_rest(node, &pod.id).await?.threads;
    ensure!(rest <= MAX_THREADS, "{rest} threads at rest");

    let app = pod.run("dumped", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    app.count_to(2).await?;
    let archive = format!("{}/checkpoint.tar", cx.folder(node, "archive")?);
    let checkpoint = app.cri.checkpoint(&app.id, &archive);
    tokio::pin!(checkpoint);
    let mut most = (0, 0);
    loop {
        tokio::select! {
            done = &mut checkpoint => break done.context("CheckpointContainer")?,
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
        }
        most = (most.0 + 1, most.1.max(threads(node, &pod.id)?));
    }
    let (looks, most) = most;
    ensure!(looks > 0, "the checkpoint was never looked at");
    ensure!(most <= MAX_THREADS, "{most} threads in a checkpoint");
    Ok(())
}
