//! A real kubelet on a node of its own. It has no API server: its pods are static, and its
//! containerd's default handler is the runtime under test.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Finished, Lab, Node, lab, node_names};
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, consecutive, numbers};
use serde_json::{Value, json};

/// The programs that these tests need.
pub(crate) const TOOLS: &[&str] = &["kubelet"];

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const FROZEN: &str = "localhost:5000/frozen-by-kubelet:1";

/// The handler whose runtime has `SystemdCgroup = true`; the kubelet's driver of cgroups goes with it.
const SYSTEMD: &str = "cryo-systemd";

/// A counter whose number is also in its root filesystem. It is alive as long as `/alive` is there.
const COUNTER: &str =
    "touch /alive; i=0; while :; do i=$((i+1)); echo $i; echo $i >/count; sleep 0.1; done";

/// The kubelet of a node.
struct Kubelet<'a> {
    node: &'a Node,
}

impl<'a> Kubelet<'a> {
    async fn start(node: &'a Node, handler: &str) -> anyhow::Result<Self> {
        lab(&["kubelet", node.name(), handler]).await?.success()?;
        Ok(Self { node })
    }

    async fn ask(&self, method: &str, path: &str) -> anyhow::Result<Finished> {
        let command = ["/opt/lab/kubelet", method, path];
        self.node.exec(&command).await
    }

    /// Puts a static pod of one container, `counter`, and waits until it is ready.
    async fn run(&self, name: &str, image: &str) -> anyhow::Result<Value> {
        // Moved into place: the kubelet must not see half of it.
        let manifest = self.node.host("/etc/kubernetes/manifest.new");
        std::fs::write(&manifest, serde_json::to_vec_pretty(&pod(name, image))?)?;
        std::fs::rename(manifest, self.manifest(name))?;
        self.wait_for(name, "it is ready", |pod| {
            container(pod)["ready"] == Value::Bool(true)
        })
        .await
    }

    /// Takes the pod away and waits until containerd has nothing of it.
    async fn remove(&self, name: &str) -> anyhow::Result<()> {
        std::fs::remove_file(self.manifest(name))?;
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let pods = self.pods().await?;
            let listed = self.node.ctr(&["-n", "k8s.io", "task", "ls", "-q"]).await?;
            if !pods.iter().any(|pod| is(pod, name)) && listed.trim().is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{name} does not go: {listed}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let said = self.ask("GET", "/pods").await?.success()?;
        let list: Value = serde_json::from_str(&said)?;
        // No pods are `null`.
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    async fn wait_for(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let pods = self.pods().await?;
            let pod = pods.into_iter().find(|pod| is(pod, name));
            match pod {
                Some(pod) if condition(&pod) => return Ok(pod),
                pod if Instant::now() > end => {
                    let status = pod.map(|pod| pod["status"].to_string());
                    bail!("waited in vain until of {name} {what}: {status:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn logs(&self, name: &str) -> anyhow::Result<Vec<u64>> {
        let path = self.container_path("containerLogs", name);
        Ok(numbers(&self.ask("GET", &path).await?.success()?))
    }

    /// The logs once they have a number of at least this.
    async fn logs_to(&self, name: &str, number: u64) -> anyhow::Result<Vec<u64>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let logs = self.logs(name).await?;
            if logs.last().is_some_and(|last| *last >= number) {
                return Ok(logs);
            }
            ensure!(Instant::now() < end, "no {number} in {logs:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the kubelet has this of the counter; it looks every ten seconds or so.
    async fn measures(&self, metric: &str) -> anyhow::Result<()> {
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let metrics = self.ask("GET", "/metrics/resource").await?.success()?;
            let mut lines = metrics.lines().filter(|l| l.starts_with(metric));
            if lines.any(|l| l.contains(r#"container="counter""#)) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no {metric} of the counter");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// `/WHAT/default/POD/counter` of the kubelet's API.
    fn container_path(&self, what: &str, name: &str) -> String {
        format!("/{what}/default/{name}-{}/counter", self.node.name())
    }

    fn manifest(&self, name: &str) -> std::path::PathBuf {
        self.node.host(&format!("{MANIFESTS}/{name}.json"))
    }
}

fn pod(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "counter",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", COUNTER],
                "readinessProbe": probe("/count"),
                "livenessProbe": probe("/alive"),
                "volumeMounts": [
                    { "name": "disk", "mountPath": "/disk" },
                    { "name": "memory", "mountPath": "/memory" },
                ],
            }],
            "volumes": [
                { "name": "disk", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory" } },
            ],
        },
    })
}

fn probe(file: &str) -> Value {
    json!({ "exec": { "command": ["test", "-e", file] }, "periodSeconds": 1, "failureThreshold": 1 })
}

/// Whether this is the static pod of that name: the kubelet puts the node's behind it.
fn is(pod: &Value, name: &str) -> bool {
    let full = pod["metadata"]["name"].as_str().unwrap_or_default();
    full.strip_prefix(name).is_some_and(|r| r.starts_with('-'))
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

pub(crate) async fn runs_probes_checkpoints_and_restores(cx: Context) -> anyhow::Result<()> {
    let lab = node_of_its_own().await?;
    let kubelet = Kubelet::start(lab.node(0)?, cx.runtime().handler()).await?;
    let done = life(&kubelet).await;
    ended(lab, done)
}

pub(crate) async fn checkpoints_in_slices_of_systemd(_: Context) -> anyhow::Result<()> {
    let lab = node_of_its_own().await?;
    let kubelet = Kubelet::start(lab.node(0)?, SYSTEMD).await?;
    let done = life_in_slices(&kubelet).await;
    ended(lab, done)
}

async fn node_of_its_own() -> anyhow::Result<Lab> {
    let name = format!("{}-kubelet", node_names().first().context("no nodes")?);
    Lab::up(&[&name]).await
}

/// Takes the node down; what was done there, with what the kubelet said where that failed.
fn ended(lab: Lab, done: anyhow::Result<()>) -> anyhow::Result<()> {
    let log = std::fs::read_to_string(lab.node(0)?.log().with_file_name("kubelet.log"));
    lab.down()?;
    done.map_err(|e| match log {
        Ok(log) => e.context(errors_of(&log)),
        Err(_) => e,
    })
}

/// The kubelet makes the slices, cryo the scopes in them.
async fn life_in_slices(kubelet: &Kubelet<'_>) -> anyhow::Result<()> {
    let pod = kubelet.run("counter", BUSYBOX).await?;
    let last = *kubelet
        .logs_to("counter", 4)
        .await?
        .last()
        .context("none")?;
    let uid = &pod["metadata"]["annotations"]["kubernetes.io/config.hash"];
    let uid = uid.as_str().context("a static pod without a hash")?;
    let id = container(&pod)["containerID"].as_str().unwrap_or_default();
    let id = id.trim_start_matches("containerd://");
    let scope = format!(
        "/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/\
         cri-containerd-{id}.scope"
    );
    let processes = kubelet.node.host(&format!("{scope}/cgroup.procs"));
    let processes = std::fs::read_to_string(&processes).context(scope)?;
    ensure!(!processes.is_empty(), "the counter is elsewhere");

    let checkpoint = kubelet.container_path("checkpoint", "counter");
    let answer = kubelet.ask("POST", &checkpoint).await?.success()?;
    ensure!(answer.contains(".tar"), "no archive named: {answer}");
    consecutive(&kubelet.logs_to("counter", last + 5).await?)?;
    kubelet.remove("counter").await
}

async fn life(kubelet: &Kubelet<'_>) -> anyhow::Result<()> {
    // Ready is what the exec probe says.
    kubelet.run("counter", BUSYBOX).await?;
    consecutive(&kubelet.logs_to("counter", 4).await?)?;
    let run = kubelet.container_path("run", "counter");
    let end = Instant::now() + PATIENCE;
    let count = loop {
        let cat = format!("{run}?cmd=cat%20/count");
        let said = kubelet.ask("POST", &cat).await?.success()?;
        // Empty while the shell is between open and write.
        if !said.trim().is_empty() {
            break said.trim().parse::<u64>().context(said)?;
        }
        ensure!(Instant::now() < end, "/count stays empty");
    };
    ensure!(count >= 4, "{count} in /count");

    for metric in [
        "container_memory_working_set_bytes",
        "container_cpu_usage_seconds_total",
    ] {
        kubelet.measures(metric).await?;
    }

    // A liveness probe that fails has the container started again.
    let kill = format!("{run}?cmd=rm%20/alive");
    kubelet.ask("POST", &kill).await?.success()?;
    let again = |pod: &Value| {
        let container = container(pod);
        container["restartCount"] == 1 && container["ready"] == true
    };
    let again = kubelet.wait_for("counter", "it is started again", again);
    let again = again.await?;
    let code = &container(&again)["lastState"]["terminated"]["exitCode"];
    ensure!(code == 137, "exit code {code}");
    kubelet.logs_to("counter", 4).await?;

    let checkpoint = kubelet.container_path("checkpoint", "counter");
    let before = kubelet.logs("counter").await?;
    let answer = kubelet.ask("POST", &checkpoint).await?.success()?;
    let answer: Value = serde_json::from_str(&answer)?;
    let archive = answer["items"][0].as_str().context("no archive named")?;
    let last = before.last().copied().unwrap_or_default();
    consecutive(&kubelet.logs_to("counter", last + 5).await?)?;

    let inspect = ["checkpointctl", "inspect", "--all", archive];
    let shown = kubelet.node.exec(&inspect).await?.success()?;
    ensure!(shown.contains("counter"), "{shown}");
    kubelet.remove("counter").await?;

    // As an image, the archive is a container's to be started from.
    let build = ["cryoctl", "build", archive, FROZEN];
    kubelet.node.exec(&build).await?.success()?;
    let pod = kubelet.run("woken", FROZEN).await?;
    ensure!(container(&pod)["restartCount"] == 0, "{}", container(&pod));
    let numbers = kubelet.logs_to("woken", last + 10).await?;
    // The archive's log comes first; it may have a few that came after the dump.
    let woke = numbers.windows(2).position(|w| w[1] != w[0] + 1);
    let (old, new) = numbers.split_at(woke.map_or(numbers.len(), |at| at + 1));
    consecutive(old)?;
    consecutive(new)?;
    let next = new.first().copied().unwrap_or(last + 1);
    ensure!(
        next > last,
        "went on with {next}, had counted to {last}: {numbers:?}"
    );
    kubelet.remove("woken").await?;

    let refused = kubelet.ask("POST", &checkpoint).await?.failure()?;
    ensure!(refused.contains("404"), "{refused}");
    Ok(())
}

/// The last errors of a kubelet's log.
fn errors_of(log: &str) -> String {
    let errors: Vec<&str> = log.lines().filter(|l| l.starts_with(['E', 'F'])).collect();
    let last = errors.len().saturating_sub(5);
    format!("the kubelet said: {}", errors[last..].join("\n"))
}
