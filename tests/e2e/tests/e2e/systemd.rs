//! The runtime option `SystemdCgroup`: containers in scopes that systemd makes. Such nodes are
//! in the virtual machine (`hack/vm`); on others the option is refused.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::{RuncOptions, State};
use cryo_e2e::context::{Container, Context, Output, Pod};
use cryo_e2e::crictl::Crictl;
use cryo_e2e::lab::Node;
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER, goes_on, numbers};
use serde_json::{Value, json};
use tonic::Code;

use crate::cri;
use crate::failures::refused;

/// The handler whose runtime has `SystemdCgroup = true`.
const HANDLER: &str = "cryo-systemd";

const MIB: u64 = 1 << 20;

/// A scope as systemd and the kernel see it.
struct Scope<'a> {
    node: &'a Node,
    unit: String,
    folder: PathBuf,
    slice: String,
}

impl<'a> Scope<'a> {
    /// The unit below these slices.
    fn new(node: &'a Node, slices: &str, unit: &str) -> Self {
        Self {
            node,
            unit: unit.to_owned(),
            folder: node.host("/sys/fs/cgroup").join(slices).join(unit),
            slice: slices.split('/').next().unwrap_or_default().to_owned(),
        }
    }

    async fn property(&self, name: &str) -> anyhow::Result<String> {
        let args = ["systemctl", "show", "--value", "-p", name, &self.unit];
        Ok(self.node.exec(&args).await?.success()?.trim().to_owned())
    }

    fn file(&self, name: &str) -> anyhow::Result<String> {
        let path = self.folder.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    fn processes(&self) -> anyhow::Result<usize> {
        Ok(self.file("cgroup.procs")?.lines().count())
    }

    /// Checks the limit of memory, in the kernel and in systemd.
    async fn memory_is(&self, bytes: u64) -> anyhow::Result<()> {
        let (kernel, systemd) = (self.file("memory.max")?, self.property("MemoryMax").await?);
        ensure!(kernel == bytes.to_string(), "memory.max: {kernel}");
        ensure!(systemd == kernel, "MemoryMax={systemd}");
        Ok(())
    }

    /// Checks that systemd knows no such unit and the cgroup is gone.
    async fn is_gone(&self) -> anyhow::Result<()> {
        let args = [
            "systemctl",
            "list-units",
            "--all",
            "--plain",
            "--no-legend",
            &self.unit,
        ];
        let units = self.node.exec(&args).await?.success()?;
        ensure!(units.trim().is_empty(), "the unit stays: {units}");
        ensure!(!self.folder.exists(), "{} stays", self.folder.display());
        Ok(())
    }

    /// Ends the slice at the top, as the kubelet does with those of its pods.
    async fn stop_slice(&self) -> anyhow::Result<()> {
        let args = ["systemctl", "stop", &self.slice];
        self.node.exec(&args).await?.success()?;
        Ok(())
    }
}

pub(crate) async fn pods_live_in_scopes_of_their_slice(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    let slices = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
    let parent = json!({ "linux": { "cgroup_parent": format!("/{slices}") } });
    let pod = crictl.pod_under(HANDLER, parent).await?;
    let sandbox = Scope::new(node, slices, &format!("cri-containerd-{}.scope", pod.id));
    ensure!(sandbox.processes()? == 1, "the sandbox is elsewhere");

    let limits = json!({ "linux": { "resources": {
        "memory_limit_in_bytes": 64 * MIB, "cpu_period": 50_000, "cpu_quota": 20_000, "cpu_shares": 512,
    } } });
    let id = pod
        .start("app", BUSYBOX, &["sleep", "1000"], limits)
        .await?;
    let scope = Scope::new(node, slices, &format!("cri-containerd-{id}.scope"));
    scope.memory_is(64 * MIB).await?;
    ensure!(
        scope.file("cpu.max")? == "20000 50000",
        "{}",
        scope.file("cpu.max")?
    );
    for (property, wanted) in [
        ("CPUQuotaPerSecUSec", "400ms".to_owned()),
        ("CPUWeight", scope.file("cpu.weight")?),
        ("Delegate", "yes".to_owned()),
        ("Slice", "kubepods-burstable-pod1_2.slice".to_owned()),
        ("ActiveState", "active".to_owned()),
    ] {
        let value = scope.property(property).await?;
        ensure!(value == wanted, "{property}={value}, wanted {wanted}");
    }

    crictl
        .output(&[
            "exec",
            "-s",
            &id,
            "sh",
            "-c",
            "sleep 1000 >/dev/null 2>&1 &",
        ])
        .await?;
    ensure!(scope.processes()? == 2, "an exec is elsewhere");
    let stats = crictl.json("stats", &[&id]).await?;
    let used = stats.pointer("/stats/0/memory/workingSetBytes/value");
    let used = used.and_then(Value::as_str).unwrap_or("0");
    ensure!(used != "0", "{stats}");

    // What systemd writes by itself must not undo an update.
    let bytes = (32 * MIB).to_string();
    crictl.output(&["update", "--memory", &bytes, &id]).await?;
    scope.memory_is(32 * MIB).await?;
    node.exec(&["systemctl", "daemon-reload"])
        .await?
        .success()?;
    scope.memory_is(32 * MIB).await?;
    ensure!(
        scope.file("cpu.max")? == "20000 50000",
        "{}",
        scope.file("cpu.max")?
    );

    crictl.output(&["rm", "--force", &id]).await?;
    scope.is_gone().await?;
    crictl.output(&["stopp", &pod.id]).await?;
    crictl.output(&["rmp", &pod.id]).await?;
    sandbox.is_gone().await?;
    scope.stop_slice().await
}

/// A pod in a slice of this name, with the slices above it.
async fn pod_in_slice(cx: &Context, node: &Node, slice: &str) -> anyhow::Result<(Pod, String)> {
    let slices = format!("e2e_cri.slice/e2e_cri-{slice}.slice");
    let parent = format!("/{slices}");
    let pod = cx
        .pod_as(node, HANDLER, |config| {
            if let Some(linux) = &mut config.linux {
                linux.cgroup_parent = parent;
            }
        })
        .await?;
    Ok((pod, slices))
}

/// The scope that containerd's CRI names for a container or a sandbox.
fn scope_of_cri<'a>(node: &'a Node, slices: &str, id: &str) -> Scope<'a> {
    Scope::new(node, slices, &format!("cri-containerd-{id}.scope"))
}

pub(crate) async fn an_archive_is_restored_into_the_slice_of_its_new_pod(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (first, slices) = pod_in_slice(&cx, node, "first").await?;
    let container = cri::counter_in(&first).await?;
    let scope = scope_of_cri(node, &slices, &container.id);
    ensure!(scope.processes()? > 0, "the counter is elsewhere");
    let archive = cri::archive(&cx, &container).await?;
    scope.is_gone().await?;

    let (second, slices) = pod_in_slice(&cx, node, "second").await?;
    let container = cri::restored_in(&second, &archive.path, &archive).await?;
    let scope = scope_of_cri(node, &slices, &container.id);
    ensure!(
        scope.processes()? > 0,
        "the restored counter is not in {}",
        scope.folder.display()
    );
    for (property, wanted) in [
        ("Slice", "e2e_cri-second.slice"),
        ("Delegate", "yes"),
        ("ActiveState", "active"),
    ] {
        let value = scope.property(property).await?;
        ensure!(value == wanted, "{property}={value}, wanted {wanted}");
    }
    for pod in [&first, &second] {
        pod.cri.stop_pod(&pod.id).await?;
        pod.cri.remove_pod(&pod.id).await?;
    }
    scope.is_gone().await?;
    scope_of_cri(node, &slices, &second.id).is_gone().await?;
    scope.stop_slice().await
}

/// Creates the container's task in its scope, from a checkpoint if there is one.
async fn create(container: &Container, image: Option<&str>) -> anyhow::Result<Output> {
    let output = Output::open(&container.node, &container.id)?;
    let mut request = container.create_request(image).await?;
    request.stdout = output.path("stdout");
    request.stderr = output.path("stderr");
    let options = RuncOptions {
        systemd_cgroup: true,
        criu_image_path: image.unwrap_or_default().into(),
        ..Default::default()
    };
    request.options = Some(options.any());
    container.api.create(request).await.context("create")?;
    Ok(output)
}

/// A container of 64 MiB whose scope is in a slice in a slice.
async fn container<'a>(
    cx: &Context,
    node: &'a Node,
    script: &str,
) -> anyhow::Result<(Container, Scope<'a>)> {
    let flags = ["--memory-limit", "67108864"];
    let command = ["sh", "-c", script];
    let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
    // Of its own: the slice is stopped after the test.
    let slice = container.id.replace('-', "_");
    let path = format!("{slice}-e2e.slice:cryo:{}", container.id);
    container
        .edit_spec(|spec| spec["linux"]["cgroupsPath"] = path.into())
        .await?;
    let unit = format!("cryo-{}.scope", container.id);
    let slices = format!("{slice}.slice/{slice}-e2e.slice");
    let scope = Scope::new(node, &slices, &unit);
    Ok((container, scope))
}

pub(crate) async fn a_checkpoint_is_restored_into_a_new_scope(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, scope) = container(&cx, node, COUNTER).await?;
    let output = create(&container, None).await?;
    container.start().await?;
    output.count_to(3).await?;
    scope.memory_is(64 * MIB).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    scope.is_gone().await?;
    let before = numbers(&output.complete().await?);

    let output = create(&container, Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    scope.memory_is(64 * MIB).await?;
    let exec = container.exec("e", "sleep 1000 & echo 1", false).await?;
    exec.count_to(1).await?;
    let inside = scope.processes()?;
    ensure!(inside >= 2, "{inside} processes in the scope");
    container.api.pause(&container.id).await?;
    ensure!(scope.file("cgroup.freeze")? == "1", "not frozen");
    container.api.resume(&container.id).await?;
    let json = format!(r#"{{"memory":{{"limit":{}}}}}"#, 32 * MIB);
    container.api.update(&container.id, &json).await?;
    scope.memory_is(32 * MIB).await?;
    // Once more, and without an end.
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    output.count_on(2).await?;
    container.kill_and_delete().await?;
    scope.is_gone().await?;
    scope.stop_slice().await
}

pub(crate) async fn an_oom_kill_is_told(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let glutton = "x=a; while :; do x=$x$x; done";
    let (container, scope) = container(&cx, node, glutton).await?;
    let _output = create(&container, None).await?;
    container.start().await?;
    let code = container.finish().await?;
    ensure!(code == 137, "exit code {code}");
    scope.is_gone().await?;
    let wanted = ["create", "start", "oom", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await?;
    scope.stop_slice().await
}

pub(crate) async fn a_shim_that_is_killed_leaves_no_scope(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, scope) = container(&cx, node, COUNTER).await?;
    let output = create(&container, None).await?;
    container.start().await?;
    output.count_to(1).await?;
    let killed = node.kill_shims_of(&container.id)?;
    ensure!(killed > 0, "the shim of {} was not found", container.id);
    let end = Instant::now() + PATIENCE;
    while container.state().await.is_ok_and(|s| s != State::Stopped) || scope.folder.exists() {
        ensure!(Instant::now() < end, "it lives on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scope.is_gone().await?;
    scope.stop_slice().await
}

pub(crate) async fn paths_that_are_none_are_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, _) = container(&cx, node, COUNTER).await?;
    for path in [
        "/default/x",
        "test.slice:../x:y",
        "x:y",
        "test.slice:a:b.slice",
    ] {
        container
            .edit_spec(|spec| spec["linux"]["cgroupsPath"] = path.into())
            .await?;
        let answer = create(&container, None).await.map(drop);
        let error = answer.err().with_context(|| format!("{path} is taken"))?;
        let text = format!("{error:#}");
        ensure!(text.contains("linux.cgroupsPath"), "{path}: {text}");
    }
    Ok(())
}

pub(crate) async fn without_systemd_the_option_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let wanted = "SystemdCgroup needs systemd";
    let remedy = "cgroupDriver to cgroupfs";
    let error = cx.pod(node, HANDLER).await.err().context("a pod runs")?;
    let text = format!("{error:#}");
    ensure!(text.contains(wanted) && text.contains(remedy), "{text}");

    let (container, _) = container(&cx, node, COUNTER).await?;
    let mut request = container.create_request(None).await?;
    let options = RuncOptions {
        systemd_cgroup: true,
        ..Default::default()
    };
    request.options = Some(options.any());
    let answer = container.api.create(request).await;
    refused(answer, &[Code::FailedPrecondition], wanted)
}
