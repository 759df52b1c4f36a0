//! containerd goes away and comes back under running containers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Context, Output};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::lab::{parent, pids};
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER, consecutive, goes_on, numbers};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{criu, debug};

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

/// A container in each phase, then containerd is killed and comes back: each is in its
/// phase, and goes on from there.
pub(crate) async fn every_phase_outlives_a_killed_containerd(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let image = cx.folder(node, "image")?;
    let (prepared, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    prepared.checkpoint(&image, true).await?;
    prepared.finish().await?;
    let before = numbers(&output.complete().await?);
    let prepared_output = prepared.create_from(Some(&image)).await?;

    let created = cx.container(node, BUSYBOX, &["sleep", "1000"]).await?;
    let _created_output = created.create().await?;
    let (running, running_output) = cx.shell(node, COUNTER).await?;
    let (paused, paused_output) = cx.shell(node, COUNTER).await?;
    let (dumped, dumped_output) = cx.shell(node, COUNTER).await?;
    for output in [&running_output, &paused_output, &dumped_output] {
        output.count_to(2).await?;
    }
    paused.api.pause(&paused.id).await?;
    let (stopped, _stopped_output) = cx.shell(node, "exit 5").await?;
    stopped.wait_for(State::Stopped).await?;

    // As every client does, ctr pauses, checkpoints and would resume.
    let half = cx.folder(node, "half")?;
    let client = {
        let (node, id, half) = (node.clone(), dumped.id.clone(), half.clone());
        tokio::spawn(async move {
            let command = ["ctr", "task", "checkpoint", "--image-path", &half, &id];
            node.exec(&command).await
        })
    };
    let criu = criu::hold_dump(&dumped, &half).await?;
    let killed = node.stop_containerd(true).await;
    criu::let_go(criu)?;
    killed?;
    client.await??.failure()?;
    node.start_containerd().await?;

    for (container, state) in [
        (&prepared, State::Created),
        (&created, State::Created),
        (&running, State::Running),
        (&paused, State::Paused),
        (&stopped, State::Stopped),
    ] {
        container.expect(state).await?;
    }
    dumped.wait_for(State::Running).await?;
    let left = std::fs::read_dir(node.host(&half)).map_or(0, Iterator::count);
    ensure!(left == 0, "{left} files of half a checkpoint");
    paused.api.resume(&paused.id).await?;
    prepared.start().await?;
    goes_on(&before, &prepared_output.count_to(2).await?)?;
    created.start().await?;
    for output in [&running_output, &paused_output, &dumped_output] {
        consecutive(&output.count_on(3).await?)?;
    }
    // The one whose checkpoint was cut off can be checkpointed.
    let whole = cx.folder(node, "whole")?;
    dumped.checkpoint(&whole, false).await?;
    ensure!(node.host(&whole).join("inventory.img").exists());
    let code = stopped.finish().await?;
    ensure!(code == 5, "exit code {code}");
    for container in [&prepared, &created, &running, &paused, &dumped] {
        let code = container.kill_and_delete().await?;
        ensure!(code == 137, "exit code {code}");
    }
    Ok(())
}

/// Also what is created, and restored, but never started goes away.
pub(crate) async fn what_never_ran_is_deleted_after_it(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let image = cx.folder(node, "image")?;
    let (prepared, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    prepared.checkpoint(&image, true).await?;
    prepared.finish().await?;
    let _prepared_output = prepared.create_from(Some(&image)).await?;
    let created = cx.container(node, BUSYBOX, &["true"]).await?;
    let _created_output: Output = created.create().await?;

    node.restart_containerd(true).await?;

    prepared.expect(State::Created).await?;
    created.expect(State::Created).await?;
    prepared.api.delete(&prepared.id).await?;
    created.kill_and_delete().await?;
    Ok(())
}

/// A Pause that has to wait, as an exec is just starting, and whose containerd is killed meanwhile.
pub(crate) async fn a_pause_that_nobody_waits_for_is_undone(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let shims = node.shims_of(&container.id);
    let zygotes: Vec<Pid> = pids()
        .filter(|pid| parent(*pid).is_some_and(|parent| shims.contains(&parent)))
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"cryo-zygote"))
        })
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect();
    ensure!(zygotes.len() == 1, "{zygotes:?}");
    let signal = |signal| kill_process(zygotes[0], signal);

    signal(Signal::STOP)?;
    let other = container.clone();
    let exec = tokio::spawn(async move { other.exec("slow", "sleep 1000", false).await });
    let has = async |what: &str, wanted: Value| {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = debug::state_of(&container).await?;
            if state.pointer(what) == Some(&wanted) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{what} is not {wanted}: {state:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let held_up = async {
        has("/execs/0/phase", "starting".into()).await?;
        let (api, id) = (container.api.clone(), container.id.clone());
        let pause = tokio::spawn(async move { api.pause(&id).await });
        has("/requests_waiting", 1.into()).await?;
        node.stop_containerd(true).await?;
        Ok::<_, anyhow::Error>(pause)
    }
    .await;
    // It runs on whatever happened.
    let started = node.start_containerd().await;
    signal(Signal::CONT)?;
    let pause = held_up?;
    started?;
    ensure!(pause.await?.is_err(), "the pause was answered");
    ensure!(exec.await?.is_err(), "the exec was answered");

    // The exec is running once the pause may begin.
    has("/execs/0/phase", "running".into()).await?;
    has("/requests_waiting", 0.into()).await?;
    container.wait_for(State::Running).await?;
    consecutive(&output.count_on(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}
