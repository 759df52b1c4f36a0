//! Carrying a plan out, and checking each answer on the way.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use cryo_e2e::containerd::{Any, Api, ExecRequest};
use cryo_e2e::context::{Context, Output, Pod, PodContainer};
use cryo_e2e::cri::{ContainerState, ContainerStatus, LinuxContainerResources};
use cryo_e2e::lab::Node;
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::plan::{End, Life, Script, Step, Stop, Work};

const MIB: i64 = 1 << 20;

/// Takes memory until it is killed for it.
const GLUTTON: &str = "x=a; while :; do x=$x$x; done";

/// What all lives share.
#[derive(Debug)]
pub(crate) struct World {
    node: Node,
    api: Api,
    /// The pod that outlives them all, and its container, which one at a time has.
    pod: Pod,
    host: tokio::sync::Mutex<PodContainer>,
    /// Held by each step, and alone by a restart of containerd: pods are in any state at
    /// one, but no call is under way.
    gate: RwLock<()>,
    restarts: AtomicUsize,
    done: Mutex<BTreeMap<String, usize>>,
    next: AtomicUsize,
}

impl World {
    /// The world with its long-lived pod, which is `cx`'s.
    pub(crate) async fn new(cx: &Context) -> anyhow::Result<Self> {
        let node = cx.a()?.clone();
        let pod = cx.pod(&node, cx.runtime().handler()).await?;
        let host = pod.run("host", BUSYBOX, &["sh", "-c", COUNTER]).await?;
        Ok(Self {
            api: node.api("k8s.io")?,
            node,
            pod,
            host: tokio::sync::Mutex::new(host),
            gate: RwLock::new(()),
            restarts: AtomicUsize::new(0),
            done: Mutex::default(),
            next: AtomicUsize::new(0),
        })
    }

    /// The id of the long-lived pod.
    pub(crate) fn pod(&self) -> &str {
        &self.pod.id
    }

    /// What was done so far, and how often.
    pub(crate) fn done(&self) -> BTreeMap<String, usize> {
        lock(&self.done).clone()
    }

    /// Runs one action while containerd is there, and counts it.
    async fn step<T>(
        &self,
        what: &str,
        action: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let answer = self.undisturbed(action).await;
        let answer = answer.with_context(|| what.to_owned())?;
        *lock(&self.done).entry(what.to_owned()).or_default() += 1;
        Ok(answer)
    }

    /// Runs something while containerd is there.
    pub(crate) async fn undisturbed<T>(&self, action: impl Future<Output = T>) -> T {
        let _gate = self.gate.read().await;
        action.await
    }

    /// Checks how a container ended that was seen to live after so many restarts. CRI deletes a task
    /// before it stores its exit code: a containerd that ends between the two knows none.
    fn ended(&self, status: &ContainerStatus, code: i32, restarts: usize) -> anyhow::Result<()> {
        let restarted = self.restarts.load(Ordering::Relaxed) > restarts;
        let lost = restarted && status.exit_code == 255 && status.reason == "Unknown";
        ensure!(lost || status.exit_code == code, "{status:?}");
        if lost {
            let what = "exit code lost in a restart".to_owned();
            *lock(&self.done).entry(what).or_default() += 1;
        }
        Ok(())
    }

    fn number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// One pod's life. What it made and did not remove is `cx`'s.
pub(crate) async fn live(world: &Arc<World>, cx: &Context, life: &Life) -> anyhow::Result<()> {
    if let Some(kill) = life.restart {
        let _gate = world.gate.write().await;
        world.node.restart_containerd(kill).await?;
        world.restarts.fetch_add(1, Ordering::Relaxed);
        let what = if kill { "SIGKILL" } else { "SIGTERM" };
        *lock(&world.done)
            .entry(format!("restart of containerd, {what}"))
            .or_default() += 1;
    }
    let pod = world
        .step("pod", cx.pod(&world.node, cx.runtime().handler()))
        .await?;
    let mut beside = JoinSet::new();
    for container in life.containers.clone() {
        let (world, cx, pod) = (Arc::clone(world), cx.clone(), pod.clone());
        beside.spawn(async move { script(&world, &cx, &pod, &container).await });
    }
    if let Some(guest) = life.guest.clone() {
        let (world, cx) = (Arc::clone(world), cx.clone());
        beside.spawn(async move {
            let done = script(&world, &cx, &world.pod, &guest).await;
            done.context("in the long-lived pod")
        });
    }
    let (here, visitor, visit) = (Arc::clone(world), cx.clone(), life.visit.clone());
    beside.spawn(async move {
        let host = here.host.lock().await;
        for step in visit {
            let done = take(&here, &visitor, &here.pod, &host, step).await;
            done.context("with the long-lived container")?;
        }
        Ok(())
    });
    let mut result = Ok(());
    while let Some(done) = beside.join_next().await {
        let done = done.unwrap_or_else(|e| Err(anyhow!("panicked: {e}")));
        result = result.and(done);
    }
    result?;
    end(world, &pod, life.end).await
}

/// One container's life in this pod.
async fn script(world: &World, cx: &Context, pod: &Pod, script: &Script) -> anyhow::Result<()> {
    let restarts = world.restarts.load(Ordering::Relaxed);
    let name = format!("c{}", world.number());
    let exits = match script.work {
        Work::Exits(code) => format!("exit {code}"),
        _ => String::new(),
    };
    let (program, memory) = match script.work {
        Work::Counter | Work::Created => (COUNTER, 0),
        Work::Glutton => (GLUTTON, 16 * MIB),
        Work::Exits(_) => (exits.as_str(), 0),
    };
    let command = ["sh", "-c", program];
    let create = pod.create_within(&name, BUSYBOX, &command, memory);
    let container = world.step("container", create).await?;
    if script.work != Work::Created {
        world.step("start", container.start()).await?;
    }
    for &step in &script.steps {
        take(world, cx, pod, &container, step).await?;
    }
    let expected = match script.work {
        Work::Exits(code) => Some((i32::from(code), "")),
        Work::Glutton => Some((137, "OOMKilled")),
        Work::Counter | Work::Created => None,
    };
    if let Some((code, reason)) = expected {
        let what = if reason.is_empty() { "exit" } else { "OOM" };
        world
            .step(what, async {
                let status = container.wait_for(ContainerState::Exited).await?;
                world.ended(&status, code, restarts)?;
                let told = reason.is_empty() || status.exit_code != code;
                ensure!(told || status.reason == reason, "{status:?}");
                Ok(())
            })
            .await?;
    }
    stop(world, &container, script).await
}

/// One step of a running container's life.
async fn take(
    world: &World,
    cx: &Context,
    pod: &Pod,
    container: &PodContainer,
    step: Step,
) -> anyhow::Result<()> {
    let (cri, id) = (&container.cri, container.id.as_str());
    match step {
        Step::Exec => {
            let action = exec_sync(container, "echo hello", 0, "hello\n");
            world.step("exec", action).await
        }
        Step::ExecFails(code) => {
            let script = format!("echo no; exit {code}");
            let action = exec_sync(container, &script, code, "no\n");
            world.step("exec, failing", action).await
        }
        Step::ExecMissing => {
            let action = Exec::run(world, id, &["/not/there"], false, None);
            world
                .step("exec, no such program", async {
                    ensure!(action.await.is_err(), "it was started");
                    Ok(())
                })
                .await
        }
        Step::ExecStdin => {
            let action = async {
                let exec = Exec::run(world, id, &["cat"], false, Some(b"to and fro")).await?;
                exec.ended(0, "to and fro").await
            };
            world.step("exec with stdin", action).await
        }
        Step::ExecTerminal => {
            let action = async {
                let script = ["sh", "-c", "test -t 0 && test -t 1 && echo yes"];
                let exec = Exec::run(world, id, &script, true, None).await?;
                exec.ended(0, "yes").await
            };
            world.step("exec on a terminal", action).await
        }
        Step::ExecKilled => {
            let action = async {
                let exec = Exec::run(world, id, &["sleep", "1000"], false, None).await?;
                world.api.kill_exec(id, &exec.name, 9).await?;
                exec.ended(137, "").await
            };
            world.step("exec, killed", action).await
        }
        Step::Stats => {
            let action = async {
                let stats = cri.stats(id).await?.unwrap_or_default();
                let memory = stats.memory.and_then(|m| m.working_set_bytes);
                ensure!(memory.is_some_and(|m| m.value > 0), "no memory in it");
                ensure!(!world.api.pids(id).await?.is_empty(), "no processes");
                Ok(())
            };
            world.step("stats", action).await
        }
        Step::Update => {
            let resources = LinuxContainerResources {
                memory_limit_in_bytes: 256 * MIB,
            };
            let action = async { Ok(cri.update(id, resources).await?) };
            world.step("update", action).await
        }
        Step::Pause => {
            let action = async { Ok(world.api.pause(id).await?) };
            world.step("pause", action).await
        }
        Step::Resume => {
            let action = async { Ok(world.api.resume(id).await?) };
            world.step("resume", action).await
        }
        Step::Checkpoint => checkpoint(world, cx, container).await.map(drop),
        Step::Restore => {
            let archive = checkpoint(world, cx, container).await?;
            let name = format!("c{}", world.number());
            let restore = pod.run(&name, &archive, &[]);
            let restored = world.step("restore", restore).await?;
            let action = async {
                restored.wait_for(ContainerState::Running).await?;
                exec_sync(&restored, "echo hello", 0, "hello\n").await?;
                restored.cri.stop(&restored.id, 0).await?;
                Ok(restored.cri.remove(&restored.id).await?)
            };
            world.step("end of a restored container", action).await
        }
    }
}

async fn checkpoint(
    world: &World,
    cx: &Context,
    container: &PodContainer,
) -> anyhow::Result<String> {
    let folder = cx.folder(&world.node, "archive")?;
    let archive = format!("{folder}/checkpoint.tar");
    let action = async { Ok(container.cri.checkpoint(&container.id, &archive).await?) };
    world.step("checkpoint", action).await?;
    Ok(archive)
}

async fn exec_sync(
    container: &PodContainer,
    script: &str,
    code: u8,
    said: &str,
) -> anyhow::Result<()> {
    let command = ["sh", "-c", script];
    let answer = container.cri.exec_sync(&container.id, &command).await?;
    let stdout = String::from_utf8_lossy(&answer.stdout);
    ensure!(
        answer.exit_code == i32::from(code) && stdout == said,
        "{answer:?}"
    );
    Ok(())
}

/// An exec through containerd's API, with fifos.
#[derive(Debug)]
struct Exec<'a> {
    api: &'a Api,
    container: &'a str,
    name: String,
    output: Output,
}

impl<'a> Exec<'a> {
    /// Starts it, and gives it all of its input.
    async fn run(
        world: &'a World,
        container: &'a str,
        args: &[&str],
        terminal: bool,
        stdin: Option<&[u8]>,
    ) -> anyhow::Result<Self> {
        let name = format!("e{}", world.number());
        let output = Output::open(&world.node, &name)?;
        let path = |wanted: bool, name| match wanted {
            true => output.path(name),
            false => String::new(),
        };
        let process = serde_json::json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "terminal": terminal,
        });
        let request = ExecRequest {
            container_id: container.into(),
            exec_id: name.clone(),
            stdin: path(stdin.is_some(), "stdin"),
            stdout: path(true, "stdout"),
            stderr: path(!terminal, "stderr"),
            terminal,
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
        };
        let api = &world.api;
        // containerd's own client opens it first, too.
        let pipe = stdin.map(|_| output.stdin()).transpose()?;
        api.exec(request).await.context("Exec")?;
        if let Err(error) = api.start_exec(container, &name).await {
            api.delete_exec(container, &name).await.context("Delete")?;
            bail!("Start: {error}");
        }
        if let (Some(mut pipe), Some(stdin)) = (pipe, stdin) {
            pipe.write_all(stdin)?;
            drop(pipe);
            api.close_stdin(container, &name).await.context("CloseIO")?;
        }
        Ok(Self {
            api,
            container,
            name,
            output,
        })
    }

    /// Waits for its end and deletes it.
    async fn ended(self, code: u32, said: &str) -> anyhow::Result<()> {
        let waited = self.api.wait_exec(self.container, &self.name).await?;
        let deleted = self.api.delete_exec(self.container, &self.name).await?;
        ensure!(
            (waited, deleted.exit_status) == (code, code),
            "Wait says {waited}, Delete says {}, wanted {code}",
            deleted.exit_status
        );
        let stdout = self.output.complete().await?;
        ensure!(stdout.contains(said), "it said {stdout:?}");
        Ok(())
    }
}

async fn stop(world: &World, container: &PodContainer, script: &Script) -> anyhow::Result<()> {
    let (cri, id) = (&container.cri, container.id.as_str());
    let runs = script.work == Work::Counter;
    let restarts = world.restarts.load(Ordering::Relaxed);
    match script.stop {
        Stop::Left => return Ok(()),
        Stop::Removed => {}
        Stop::Grace if runs => {
            let action = async { Ok(cri.stop(id, 1).await?) };
            world.step("stop with grace", action).await?;
        }
        Stop::Killed if runs => {
            let action = async {
                let pid = world.api.get(id).await?.pid.to_string();
                world.node.exec(&["kill", "-9", &pid]).await?.success()
            };
            world.step("kill -9 from outside", action).await?;
        }
        _ => {
            let action = async { Ok(cri.stop(id, 0).await?) };
            world.step("stop at once", action).await?;
        }
    }
    if runs && script.stop != Stop::Removed {
        let exited = async {
            let status = container.wait_for(ContainerState::Exited).await?;
            world.ended(&status, 137, restarts)
        };
        world.step("exit", exited).await?;
    }
    let what = if runs && script.stop == Stop::Removed {
        "removal while running"
    } else {
        "removal"
    };
    let action = async { Ok(cri.remove(id).await?) };
    world.step(what, action).await
}

async fn end(world: &World, pod: &Pod, end: End) -> anyhow::Result<()> {
    let (cri, id) = (&pod.cri, pod.id.as_str());
    if end == End::ShimKilled {
        let action = async {
            let killed = world.node.kill_shims_of(id)?;
            ensure!(killed == 1, "{killed} shims of the pod {id}");
            Ok(())
        };
        world.step("kill -9 of the shim", action).await?;
    }
    if end != End::Removed {
        let action = async { Ok(cri.stop_pod(id).await?) };
        world.step("pod stopped", action).await?;
    }
    let action = async {
        let limit = Instant::now() + PATIENCE;
        loop {
            match cri.remove_pod(id).await {
                // Of a killed shim CRI hears later, and has to be asked again until then.
                Err(_) if end == End::ShimKilled && Instant::now() < limit => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                removed => return Ok(removed?),
            }
        }
    };
    world.step("pod removed", action).await
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
