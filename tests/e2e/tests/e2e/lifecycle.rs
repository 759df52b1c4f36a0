//! Create, start, state, wait, kill, delete, pids, pause and resume.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::Context;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use tonic::Code;

use crate::failures::refused;

pub(crate) async fn exit_codes_come_through_ctr(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for code in [0, 3] {
        let id = cx.id("run");
        cx.adopt(node, &id)?;
        let script = format!("echo out; echo err >&2; exit {code}");
        let runtime = cx.runtime().containerd_name();
        let run = ["run", "--rm", "--runtime", runtime, BUSYBOX, &id];
        let finished = node.ctr_script(&run, &script).await?;
        ensure!(finished.code == code, "wanted {code}: {finished:?}");
        ensure!(finished.stdout == "out\n", "{finished:?}");
        ensure!(finished.stderr == "err\n", "{finished:?}");
    }
    Ok(())
}

pub(crate) async fn a_signal_is_128_and_its_number(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for (name, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        // As pid 1 only signals with a handler count, so a child dies and the shell tells.
        let script = format!("sh -c 'kill -{name} $$'; exit $?");
        let (child, _output) = cx.shell(node, &script).await?;
        let code = child.finish().await?;
        ensure!(code == 128 + number, "{name} in a child: {code}");
    }
    // From outside SIGKILL reaches pid 1.
    let (container, _output) = cx.shell(node, "sleep 100").await?;
    let code = container.kill_and_delete().await?;
    ensure!(code == 137, "SIGKILL from outside: {code}");
    Ok(())
}

pub(crate) async fn short_lived_processes_start_before_they_exit(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    for _ in 0..20 {
        let container = cx.container(node, BUSYBOX, &["true"]).await?;
        let request = container.create_request(None).await?;
        container.api.create(request).await?;
        let wait = tokio::spawn({
            let container = container.clone();
            async move { container.api.wait(&container.id).await }
        });
        container.start().await?;
        let code = wait.await??;
        ensure!(code == 0, "exit code {code}");
        container.api.delete(&container.id).await?;
        crate::ended_with(&cx, &events, &container.id, &["create", "start", "exit"]).await?;
    }
    Ok(())
}

pub(crate) async fn events_come_in_order(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    container.api.pause(&container.id).await?;
    container.api.resume(&container.id).await?;
    container.kill_and_delete().await?;
    let wanted = ["create", "start", "paused", "resumed", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await?;
    let exit = events.wait_for(&container.id, "/tasks/exit").await?.exit;
    ensure!(
        exit == Some((container.id.clone(), 137)),
        "the exit's id has to be the container's own: {exit:?}"
    );
    Ok(())
}

pub(crate) async fn twenty_containers_at_once(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?);
    }
    let mut starting = tokio::task::JoinSet::new();
    for container in all {
        starting.spawn(async move {
            let output = container.create().await?;
            container.start().await?;
            output.count_to(3).await?;
            anyhow::Ok((container, output))
        });
    }
    let mut running = Vec::new();
    while let Some(started) = starting.join_next().await {
        running.push(started??);
    }
    let mut pids = std::collections::BTreeSet::new();
    for (container, _) in &running {
        container.expect(State::Running).await?;
        pids.insert(container.api.get(&container.id).await?.pid);
    }
    ensure!(pids.len() == 20, "{} pids of 20 containers", pids.len());
    let mut ending = tokio::task::JoinSet::new();
    for (container, output) in running {
        ending.spawn(async move {
            let code = container.kill_and_delete().await?;
            let text = output.complete().await?;
            cryo_e2e::workload::consecutive(&cryo_e2e::workload::numbers(&text))?;
            anyhow::Ok(code)
        });
    }
    while let Some(ended) = ending.join_next().await {
        let code = ended??;
        ensure!(code == 137, "exit code {code}");
    }
    Ok(())
}

pub(crate) async fn kill_ends_a_container(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let (container, output) = cx.shell(node, script).await?;
    output
        .until(|text| text.contains("ready").then_some(()))
        .await?;
    container.api.kill(&container.id, 15).await?;
    let code = container.api.wait(&container.id).await?;
    ensure!(code == 7, "the handler of SIGTERM says 7, exit code {code}");
    container.expect(State::Stopped).await?;
    refused(
        container.api.kill(&container.id, 15).await,
        &[Code::NotFound],
        "kill of a stopped task",
    )?;
    container.api.delete(&container.id).await?;

    let (container, _output) = cx.shell(node, "trap '' TERM; sleep 100").await?;
    let code = container.kill_and_delete().await?;
    ensure!(code == 137, "SIGKILL: {code}");
    Ok(())
}

pub(crate) async fn pause_stops_and_resume_goes_on(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let pid = container.api.get(&container.id).await?.pid;
    container.api.pause(&container.id).await?;
    container.expect(State::Paused).await?;
    ensure!(node.frozen(pid)?, "paused and not frozen");
    // What was on its way when it stopped arrives; then nothing does for four numbers' time.
    let (mut count, mut since) = (output.numbers().len(), Instant::now());
    until("it counts no more while it is paused", || {
        let now = output.numbers().len();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > Duration::from_millis(400)).then_some(()))
    })
    .await?;
    let arrived = output.numbers().len();
    ensure!(
        arrived == count,
        "counted from {count} to {arrived} while paused"
    );
    container.api.resume(&container.id).await?;
    container.expect(State::Running).await?;
    ensure!(!node.frozen(pid)?, "resumed and frozen");
    let numbers = output.count_on(3).await?;
    cryo_e2e::workload::consecutive(&numbers)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_paused_container_can_be_killed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    container.api.pause(&container.id).await?;
    container.api.kill(&container.id, 9).await?;
    if cx.differs(
        "SIGKILL to a container frozen by the v1 freezer acts only after a resume; cryo thaws it",
    ) {
        container.api.resume(&container.id).await.ok();
    }
    let code = container.finish().await?;
    ensure!(code == 137, "exit code {code}");
    Ok(())
}

pub(crate) async fn every_process_is_signalled_and_killed_when_paused(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "echo 0; sleep 1000; echo 1; while :; do sleep 1000; done";
    let (container, output) = cx.shell(node, script).await?;
    output.count_to(1).await?;
    let id = container.id.as_str();
    let kill_all = async |signal| {
        let command = ["ctr", "task", "kill", "--all", "--signal", signal, id];
        node.exec(&command).await
    };
    if !cx.differs("runc takes all for the first process; cryo signals every one") {
        // Pid 1 does not act on it; its child does.
        kill_all("SIGTERM").await?.success()?;
        output.count_to(2).await?;
    }
    container.api.pause(id).await?;
    kill_all("SIGKILL").await?.success()?;
    if cx.differs(
        "SIGKILL to a container frozen by the v1 freezer acts only after a resume; cryo thaws it",
    ) {
        container.api.resume(id).await.ok();
    }
    let code = container.api.wait(id).await?;
    ensure!(code == 137, "exit code {code}");
    if !cx.differs("a signal to all of no processes is no error") {
        let again = kill_all("SIGKILL").await?;
        ensure!(again.code != 0, "a signal to no process: {again:?}");
        let text = &again.stderr;
        ensure!(text.contains("process already finished"), "{again:?}");
    }
    container.api.delete(id).await?;
    Ok(())
}

pub(crate) async fn pids_lists_every_process(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "sleep 100 & sleep 100 & echo ready; wait";
    let (container, output) = cx.shell(node, script).await?;
    output
        .until(|text| text.contains("ready").then_some(()))
        .await?;
    let init = container.api.get(&container.id).await?.pid;
    let pids = container.api.pids(&container.id).await?;
    ensure!(pids.len() == 3, "{pids:?} where three processes are");
    ensure!(pids.contains(&init), "{pids:?} without init {init}");
    for pid in &pids {
        let comm = std::fs::read_to_string(node.host(&format!("/proc/{pid}/comm")))
            .with_context(|| format!("pid {pid} is not one of the node"))?;
        // An applet is /proc/self/exe until it names itself.
        ensure!(
            ["sh", "sleep", "exe"].contains(&comm.trim()),
            "{pid} is {comm}"
        );
    }
    let table = node.ctr(&["task", "ps", &container.id]).await?;
    ensure!(table.lines().count() == 4, "{table}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_running_task_is_not_deleted(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(1).await?;
    let error = container
        .api
        .delete(&container.id)
        .await
        .err()
        .context("a running task was deleted")?;
    if !cx.differs("the Go shim answers Unknown (\"cannot delete a running process\")") {
        ensure!(error.code() == Code::FailedPrecondition, "{error:?}");
    }
    ensure!(error.message().contains("running"), "{error:?}");
    container.expect(State::Running).await?;
    output.count_on(2).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn start_answers_once_the_program_runs(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for _ in 0..8 {
        let container = cx.container(node, BUSYBOX, &["sleep", "100"]).await?;
        let _output = container.create().await?;
        let pid = container.start().await?;
        container.api.pause(&container.id).await?;
        let exe = std::fs::read_link(node.host(&format!("/proc/{pid}/exe")))?;
        ensure!(exe.ends_with("busybox"), "it is still {}", exe.display());
        // Else CRIU would find a file that is not of the container.
        let image = cx.folder(node, "image")?;
        container.checkpoint(&image, true).await?;
        container.finish().await?;
    }
    Ok(())
}

pub(crate) async fn start_twice_is_refused(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(1).await?;
    let answer = container.api.start(&container.id).await;
    if cx.differs("the Go shim answers Unknown (\"cannot start a running process\")") {
        ensure!(answer.is_err(), "started twice");
    } else {
        refused(answer, &[Code::FailedPrecondition], "start twice")?;
    }
    container.expect(State::Running).await?;
    output.count_on(2).await?;
    container.api.kill(&container.id, 9).await?;
    container.api.wait(&container.id).await?;
    let answer = container.api.start(&container.id).await;
    ensure!(answer.is_err(), "a stopped task was started");
    container.expect(State::Stopped).await?;
    container.api.delete(&container.id).await?;
    Ok(())
}

pub(crate) async fn create_twice_already_exists(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(1).await?;
    let request = container.create_request(None).await?;
    refused(
        container.api.create(request).await,
        &[Code::AlreadyExists],
        "create twice",
    )?;
    container.expect(State::Running).await?;
    output.count_on(2).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn unknown_ids_are_not_found(cx: Context) -> anyhow::Result<()> {
    let api = cx.a()?.api(cryo_e2e::context::NAMESPACE)?;
    let not_found = &[Code::NotFound];
    refused(api.get("nobody").await, not_found, "get")?;
    refused(api.start("nobody").await, not_found, "start")?;
    refused(api.kill("nobody", 9).await, not_found, "kill")?;
    refused(api.delete("nobody").await, not_found, "delete")?;
    refused(api.wait("nobody").await, not_found, "wait")?;
    refused(api.pids("nobody").await, not_found, "pids")?;
    refused(api.pause("nobody").await, not_found, "pause")?;
    refused(
        api.checkpoint("nobody", Default::default()).await,
        not_found,
        "checkpoint",
    )?;

    // These reach the shim: the container is there, the process is not.
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(1).await?;
    refused(
        container.api.start_exec(&container.id, "nobody").await,
        &[Code::NotFound],
        "start of an unknown exec",
    )?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_created_task_is_deleted_without_a_start(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["sleep", "100"]).await?;
    let _output = container.create().await?;
    container.expect(State::Created).await?;
    let pid = container.api.get(&container.id).await?.pid;
    ensure!(pid > 0, "a created task has a process");
    let pids = container.api.pids(&container.id).await?;
    ensure!(pids.contains(&pid), "{pids:?} without {pid}");
    container.api.kill(&container.id, 9).await?;
    let code = container.finish().await?;
    ensure!(code == 137, "exit code {code}");
    ensure!(
        !node.host(&container.bundle()).exists(),
        "the bundle is still there"
    );
    Ok(())
}

pub(crate) async fn wait_answers_until_the_delete(cx: Context) -> anyhow::Result<()> {
    let (container, _output) = cx.shell(cx.a()?, "exit 5").await?;
    for _ in 0..3 {
        let code = container.api.wait(&container.id).await?;
        ensure!(code == 5, "exit code {code}");
    }
    let process = container.api.get(&container.id).await?;
    ensure!(process.status() == State::Stopped, "{process:?}");
    ensure!(process.exit_status == 5, "{process:?}");
    ensure!(process.exited_at.is_some(), "{process:?}");
    container.api.delete(&container.id).await?;
    refused(
        container.api.wait(&container.id).await,
        &[Code::NotFound],
        "wait after delete",
    )
}

pub(crate) async fn a_resize_without_a_terminal_is_no_error(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(1).await?;
    container.api.resize_pty(&container.id).await?;
    container.expect(State::Running).await?;
    output.count_on(2).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_command_that_does_not_exist_is_an_error(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["/no/such/command"]).await?;
    let request = container.create_request(None).await?;
    let error = match container.api.create(request).await {
        Err(error) => error,
        Ok(_) => container
            .api
            .start(&container.id)
            .await
            .err()
            .context("a command that does not exist was started")?,
    };
    ensure!(
        error.message().contains("no/such/command"),
        "the command is not named: {error:?}"
    );
    Ok(())
}

pub(crate) async fn the_bundle_names_the_shim(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, _output) = cx.shell(node, COUNTER).await?;
    let path = node.host(&container.bundle()).join("shim-binary-path");
    let shim = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(shim.starts_with('/'), "{shim} is not absolute");
    ensure!(
        shim.ends_with(cx.runtime().shim()),
        "{shim} is not {}",
        cx.runtime().shim()
    );
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn orphans_end_with_their_container(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "(setsid sleep 1000 &) ; (setsid sleep 1000 &); echo ready; sleep 0.1; exit 4";
    let (container, output) = cx.shell(node, script).await?;
    output
        .until(|text| text.contains("ready").then_some(()))
        .await?;
    let code = container.finish().await?;
    ensure!(code == 4, "exit code {code}");
    Ok(())
}
