//! containerd goes away and comes back under running containers.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::Context;
use cryo_e2e::cri::ContainerState;
use cryo_e2e::workload::{BUSYBOX, COUNTER, consecutive, goes_on};

pub(crate) async fn containers_live_through_sigterm(cx: Context) -> anyhow::Result<()> {
    live_through(&cx, false).await
}

pub(crate) async fn containers_live_through_sigkill(cx: Context) -> anyhow::Result<()> {
    live_through(&cx, true).await
}

async fn live_through(cx: &Context, kill: bool) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (counter, output) = cx.shell(node, COUNTER).await?;
    let (paused, paused_output) = cx.shell(node, COUNTER).await?;
    let created = cx.container(node, BUSYBOX, &["sleep", "100"]).await?;
    let _created_output = created.create().await?;
    output.count_to(2).await?;
    paused_output.count_to(2).await?;
    paused.api.pause(&paused.id).await?;
    let pid = counter.api.get(&counter.id).await?.pid;

    node.restart_containerd(kill).await?;

    counter.expect(State::Running).await?;
    paused.expect(State::Paused).await?;
    created.expect(State::Created).await?;
    ensure!(
        counter.api.get(&counter.id).await?.pid == pid,
        "another pid"
    );
    consecutive(&output.count_on(3).await?)?;
    let events = cx.events(node).await?;
    paused.api.resume(&paused.id).await?;
    consecutive(&paused_output.count_on(2).await?)?;
    created.start().await?;
    for container in [&counter, &paused, &created] {
        container.api.kill(&container.id, 9).await?;
        let code = container.finish().await?;
        ensure!(code == 137, "exit code {code}");
        // The shim's connection for events is of the containerd before: it has to make
        // another.
        let exit = events.wait_for(&container.id, "/tasks/exit").await?;
        ensure!(exit.exit == Some((container.id.clone(), 137)), "{exit:?}");
        if !cx.differs(crate::DELETE_EVENT_LOST) {
            events.wait_for(&container.id, "/tasks/delete").await?;
        }
    }
    Ok(())
}

pub(crate) async fn an_exit_while_containerd_is_away_is_seen(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let go = cx.folder(node, "go")?;
    let script = "while ! test -e /go/now; do sleep 0.05; done; exit 5";
    let mount = format!("type=bind,src={go},dst=/go,options=rbind:ro");
    let container = cx
        .container_with(node, &["--mount", &mount], BUSYBOX, &["sh", "-c", script])
        .await?;
    let _output = container.create().await?;
    container.start().await?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let app = pod
        .run("app", BUSYBOX, &["sh", "-c", "sleep 1; exit 6"])
        .await?;

    node.stop_containerd(true).await?;
    std::fs::write(node.host(&go).join("now"), "")?;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    node.start_containerd().await?;

    if !cx.differs(
        "at a start of containerd the Go shim cannot list the pids of a container that has \
         exited: its task is thrown away and the exit code lost",
    ) {
        container.wait_for(State::Stopped).await?;
        let code = container.finish().await?;
        ensure!(code == 5, "exit code {code}");
    }
    let status = app.wait_for(ContainerState::Exited).await?;
    let wanted = if cx.differs("and CRI makes 255 of it") {
        255
    } else {
        6
    };
    ensure!(status.exit_code == wanted, "exit code {}", status.exit_code);
    Ok(())
}

pub(crate) async fn pods_live_through_sigkill(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let one = pod.run("one", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let two = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    one.count_to(2).await?;
    two.count_to(2).await?;

    node.restart_containerd(true).await?;

    for container in [&one, &two] {
        let status = container.status().await?;
        ensure!(
            status.state() == ContainerState::Running,
            "{:?} after the restart: {} {}",
            status.state(),
            status.reason,
            status.message
        );
        container.count_on(3).await?;
    }
    one.cri.stop(&one.id, 0).await.context("StopContainer")?;
    let status = one.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "exit code {}", status.exit_code);
    one.cri.remove(&one.id).await.context("RemoveContainer")?;
    two.count_on(2).await?;
    // A third joins the same shim.
    let three = pod.run("three", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    three.count_to(2).await?;
    Ok(())
}

pub(crate) async fn restored_containers_live_through_it(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let before = cryo_e2e::workload::numbers(&output.complete().await?);
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(2).await?)?;

    node.restart_containerd(true).await?;

    container.expect(State::Running).await?;
    goes_on(&before, &output.count_on(3).await?)?;
    let code = container.kill_and_delete().await?;
    ensure!(code == 137, "exit code {code}");
    Ok(())
}
