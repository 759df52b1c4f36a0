//! Stats, OOM kills, and other limits for a running container.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Container, Context};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use serde_json::Value;
use tonic::Code;

use crate::failures::refused;

const MIB: u64 = 1 << 20;

/// Takes memory until it is killed for it.
const GLUTTON: &str = "x=a; while :; do x=$x$x; done";

/// What `ctr task metrics` has of a task, in either version of cgroups.
#[derive(Debug)]
struct Metrics(Value);

impl Metrics {
    async fn of(container: &Container) -> anyhow::Result<Self> {
        let args = ["task", "metrics", "--format", "json", &container.id];
        let text = container.node.ctr(&args).await?;
        Ok(Self(serde_json::from_str(&text).with_context(|| text)?))
    }

    /// The first of these that is there; a number that is missing is 0.
    fn number(&self, paths: [&str; 2]) -> u64 {
        let mut numbers = paths.iter().filter_map(|p| self.0.pointer(p)?.as_u64());
        numbers.next().unwrap_or(0)
    }

    fn memory(&self) -> u64 {
        self.number(["/memory/usage/usage", "/memory/usage"])
    }

    fn memory_limit(&self) -> u64 {
        self.number(["/memory/usage/limit", "/memory/usage_limit"])
    }

    fn cpu(&self) -> u64 {
        self.number(["/cpu/usage/total", "/cpu/usage_usec"])
    }

    fn pids(&self) -> u64 {
        self.number(["/pids/current", "/pids/current"])
    }

    fn pids_limit(&self) -> u64 {
        self.number(["/pids/limit", "/pids/limit"])
    }

    fn oom_kills(&self) -> u64 {
        self.number(["/memory_oom_control/oom_kill", "/memory_events/oom_kill"])
    }

    fn of_live(&self) -> anyhow::Result<()> {
        ensure!(self.memory() > 0, "no memory: {self:?}");
        ensure!(self.cpu() > 0, "no processor time: {self:?}");
        ensure!(self.pids() > 0, "no processes: {self:?}");
        Ok(())
    }
}

pub(crate) async fn are_there_until_the_delete(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let flags = ["--memory-limit", "104857600"];
    let command = ["sh", "-c", COUNTER];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    let output = container.create().await?;
    let created = Metrics::of(&container).await.context("created")?;
    ensure!(created.memory_limit() == 100 * MIB, "{created:?}");
    container.start().await?;
    output.count_to(3).await?;
    let running = Metrics::of(&container).await.context("running")?;
    running.of_live()?;
    container.api.pause(&container.id).await?;
    let paused = Metrics::of(&container).await.context("paused")?;
    paused.of_live()?;
    ensure!(paused.cpu() >= running.cpu(), "{running:?} {paused:?}");
    container.api.resume(&container.id).await?;
    container.api.kill(&container.id, 9).await?;
    container.api.wait(&container.id).await?;
    let stopped = Metrics::of(&container).await.context("stopped")?;
    ensure!(stopped.cpu() >= paused.cpu(), "{paused:?} {stopped:?}");
    ensure!(stopped.pids() == 0, "{stopped:?}");
    container.api.delete(&container.id).await?;
    ensure!(
        Metrics::of(&container).await.is_err(),
        "metrics of a deleted task"
    );
    Ok(())
}

pub(crate) async fn of_a_restored_container(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let output = container.create_from(Some(&image)).await?;
    if !cx.differs("a task that is to be restored has no metrics before its start") {
        Metrics::of(&container).await.context("before the start")?;
    }
    container.start().await?;
    output.count_to(3).await?;
    if !cx.differs("no metrics and no OOM events of restored containers since containerd 2.2") {
        Metrics::of(&container).await?.of_live()?;
    }
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn an_oom_kill_is_told_before_the_exit(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let flags = ["--memory-limit", "16777216"];
    let command = ["sh", "-c", GLUTTON];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    let _output = container.create().await?;
    container.start().await?;
    let code = container.api.wait(&container.id).await?;
    ensure!(code == 137, "exit code {code}");
    let metrics = Metrics::of(&container).await?;
    ensure!(metrics.oom_kills() == 1, "{metrics:?}");
    container.api.delete(&container.id).await?;
    let wanted = ["create", "start", "oom", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await
}

pub(crate) async fn an_oom_kill_after_a_restore_is_told(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let flags = ["--memory-limit", "16777216"];
    let script = format!("echo 0; while [ ! -e /go ]; do sleep 0.1; done; {GLUTTON}");
    let command = ["sh", "-c", &script];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(1).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let events = cx.events(node).await?;
    let _output = container.create_from(Some(&image)).await?;
    container.start().await?;
    std::fs::write(container.in_rootfs("go"), "")?;
    let code = container.finish().await?;
    ensure!(code == 137, "exit code {code}");
    if cx.differs("no metrics and no OOM events of restored containers since containerd 2.2") {
        return Ok(());
    }
    let wanted = ["create", "start", "oom", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await
}

pub(crate) async fn each_oom_kill_of_a_child_is_told_once(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let flags = ["--memory-limit", "16777216"];
    // The next is not before this one was told: of two between two looks, the shim would tell once.
    let script = format!(
        "for i in 1 2 3; do sh -c '{GLUTTON}'; echo $i; \
         while [ ! -e /go$i ]; do sleep 0.1; done; done; exit 5"
    );
    let command = ["sh", "-c", &script];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    let output = container.create().await?;
    container.start().await?;
    for kill in 1..=3 {
        output.count_to(kill).await?;
        until(&format!("{kill} OOM kills are told"), || {
            let told = events.topics(&container.id);
            let kills = told.iter().filter(|topic| *topic == "oom").count();
            Ok((kills >= kill).then_some(()))
        })
        .await?;
        std::fs::write(container.in_rootfs(&format!("go{kill}")), "")?;
    }
    let code = container.finish().await?;
    ensure!(code == 5, "exit code {code}");
    let wanted = ["create", "start", "oom", "oom", "oom", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await
}

pub(crate) async fn cri_says_oom_killed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let command = ["sh", "-c", GLUTTON];
    let container = pod
        .create_within("glutton", BUSYBOX, &command, 16 * 1024 * 1024)
        .await?;
    container.start().await?;
    let status = container.wait_for(ContainerState::Exited).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    ensure!(status.reason == "OOMKilled", "{status:?}");
    Ok(())
}

pub(crate) async fn limits_go_up_and_down(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(1).await?;
    let api = &container.api;
    // As the kubelet asks, memory and swap in one; down below and up above what is there.
    for mib in [64, 32, 256, 128, 128] {
        let bytes = mib * MIB;
        let json = format!(r#"{{"memory":{{"limit":{bytes},"swap":{bytes}}}}}"#);
        api.update(&container.id, &json)
            .await
            .with_context(|| format!("to {mib} MiB"))?;
        let metrics = Metrics::of(&container).await?;
        ensure!(metrics.memory_limit() == bytes, "{mib}: {metrics:?}");
    }
    // No limit any more, and down again.
    api.update(&container.id, r#"{"memory":{"limit":-1}}"#)
        .await?;
    let metrics = Metrics::of(&container).await?;
    ensure!(metrics.memory_limit() > 1 << 60, "{metrics:?}");
    let json = r#"{"memory":{"limit":67108864},"pids":{"limit":50},
        "cpu":{"shares":512,"period":50000,"quota":20000}}"#;
    container.api.pause(&container.id).await?;
    api.update(&container.id, json).await.context("paused")?;
    container.api.resume(&container.id).await?;
    let metrics = Metrics::of(&container).await?;
    ensure!(metrics.memory_limit() == 64 * MIB, "{metrics:?}");
    ensure!(metrics.pids_limit() == 50, "{metrics:?}");
    output.count_on(3).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn an_update_keeps_what_it_does_not_name(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "while :; do (echo x >/dev/null) && echo 1 || echo broken; sleep 0.05; done";
    let flags = ["--memory-limit", "67108864"];
    let command = ["sh", "-c", script];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    let output = container.create().await?;
    // A created container takes an update as well.
    container.api.update(&container.id, "{}").await?;
    container.start().await?;
    output.count_to(2).await?;
    // Clients send the devices of the spec along, "deny all" first.
    let json = r#"{"devices":[{"allow":false,"access":"rwm"}],"cpu":{"shares":100}}"#;
    for _ in 0..5 {
        container.api.update(&container.id, json).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let metrics = Metrics::of(&container).await?;
    ensure!(metrics.memory_limit() == 64 * MIB, "{metrics:?}");
    output.count_on(3).await?;
    container.kill_and_delete().await?;
    let text = output.complete().await?;
    ensure!(!text.contains("broken"), "without its devices: {text}");
    Ok(())
}

pub(crate) async fn updates_that_cannot_be_are_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(1).await?;
    let coded = !cx.differs("any failure of an update has the code Unknown");
    let codes = |code| {
        if coded {
            vec![code]
        } else {
            vec![Code::Unknown]
        }
    };
    // Of v1 or of v2: those that are there.
    let id = &container.id;
    let limits = format!(
        "cd /sys/fs/cgroup; cat */default/{id}/pids.max */default/{id}/cpu.shares \
         */default/{id}/cpuset.cpus default/{id}/pids.max default/{id}/cpu.weight 2>/dev/null; true"
    );
    let limits = async || node.exec(&["sh", "-c", &limits]).await?.success();
    let before = limits().await?;
    ensure!(before.contains("max"), "{before}");
    for (json, what) in [
        (
            r#"{"cpu":{"quota":1,"shares":77},"pids":{"limit":4321}}"#,
            "a quota of a microsecond",
        ),
        (
            r#"{"cpu":{"cpus":"4711","shares":77},"pids":{"limit":4321}}"#,
            "a processor that is not there",
        ),
    ] {
        let answer = container.api.update(&container.id, json).await;
        refused(answer, &codes(Code::InvalidArgument), what)?;
        let after = limits().await?;
        ensure!(after == before, "{what}: {before:?} became {after:?}");
    }
    container.expect(State::Running).await?;
    container.api.kill(&container.id, 9).await?;
    container.api.wait(&container.id).await?;
    let answer = container
        .api
        .update(&container.id, r#"{"pids":{"limit":9}}"#);
    refused(answer.await, &codes(Code::FailedPrecondition), "stopped")?;
    container.api.delete(&container.id).await?;
    let answer = container.api.update(&container.id, "{}").await;
    refused(answer, &[Code::NotFound], "an update after the delete")
}
