//! What a test has in its hands: containers, pods and their output. Whatever it makes is
//! registered here and removed after it, however it ended.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::containerd::{
    Any, Api, CheckpointOptions, CreateTaskRequest, ExecRequest, RuncOptions, State,
};
use crate::cri::{
    ContainerConfig, ContainerMetadata, ContainerSecurityContext, ContainerState, ContainerStatus,
    CreateContainerRequest, Cri, ImageSpec, KUBELET_NAMESPACES, LinuxContainerConfig,
    LinuxContainerResources, LinuxSandboxConfig, SandboxConfig, SandboxMetadata,
    SandboxSecurityContext,
};
use crate::events::Events;
use crate::lab::{FIFOS, Lab, Node, SCRATCH};
use crate::patience::{PATIENCE, until};
use crate::runtime::Runtime;

/// containerd's namespace of everything that is not a pod.
pub const NAMESPACE: &str = "default";

/// A test's hands.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    test: String,
    runtime: Runtime,
    lab: Arc<Lab>,
    next: AtomicU32,
    made: Mutex<Vec<Made>>,
    differences: Mutex<Vec<String>>,
}

/// Something to be removed after the test.
#[derive(Clone, Debug)]
enum Made {
    Container { node: Node, id: String },
    Pod { node: Node, id: String },
    Image { node: Node, name: String },
    Folder { path: PathBuf },
    Mount { node: Node, path: String },
    Undone { node: Node, script: String },
}

impl Context {
    /// The hands of the test called `test`.
    pub fn new(test: &str, runtime: Runtime, lab: Arc<Lab>) -> Self {
        Self {
            inner: Arc::new(Inner {
                test: test.replace("::", "-").replace('_', "-"),
                runtime,
                lab,
                next: AtomicU32::new(0),
                made: Mutex::new(Vec::new()),
                differences: Mutex::new(Vec::new()),
            }),
        }
    }

    /// The shim under test.
    pub fn runtime(&self) -> Runtime {
        self.inner.runtime
    }

    /// The first node.
    pub fn a(&self) -> anyhow::Result<&Node> {
        self.inner.lab.node(0)
    }

    /// The second node.
    pub fn b(&self) -> anyhow::Result<&Node> {
        self.inner.lab.node(1)
    }

    /// Whether the peer runs and differs here, which is noted with its reason and printed
    /// at the end. Only cryo is held to what stands in the other branch.
    pub fn differs(&self, reason: &str) -> bool {
        let peer = self.inner.runtime == Runtime::Runc;
        if peer {
            let mut noted = lock(&self.inner.differences);
            if !noted.iter().any(|r| r == reason) {
                noted.push(reason.into());
            }
        }
        peer
    }

    /// The differences met so far.
    pub fn differences(&self) -> Vec<String> {
        lock(&self.inner.differences).clone()
    }

    /// An id that no other test uses.
    pub fn id(&self, what: &str) -> String {
        let n = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let mut id = format!("{}-{what}{n}", self.inner.test);
        // containerd's limit is 76.
        if id.len() > 70 {
            id = id.split_off(id.len() - 70);
        }
        id.trim_start_matches('-').to_owned()
    }

    /// A fresh folder on the node's disk; the path is the node's.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, node: &Node, what: &str) -> anyhow::Result<String> {
        let path = format!("{SCRATCH}/{}", self.id(what));
        std::fs::create_dir_all(node.host(&path)).with_context(|| path.clone())?;
        self.made(Made::Folder {
            path: node.host(&path),
        });
        Ok(path)
    }

    /// A fresh tmpfs of this size, for disks that fill up; the path is the node's.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn small_disk(&self, node: &Node, size: &str) -> anyhow::Result<String> {
        let path = self.folder(node, "disk")?;
        let options = format!("size={size}");
        node.exec(&["mount", "-t", "tmpfs", "-o", &options, "small", &path])
            .await?
            .success()?;
        self.made(Made::Mount {
            node: node.clone(),
            path: path.clone(),
        });
        Ok(path)
    }

    /// Binds a fresh folder over a path of the node, which comes back after the test; the
    /// folder's path is the node's.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub async fn cover(&self, node: &Node, path: &str) -> anyhow::Result<String> {
        let folder = self.folder(node, "cover")?;
        node.exec(&["mount", "--bind", &folder, path])
            .await?
            .success()?;
        self.made(Made::Mount {
            node: node.clone(),
            path: path.into(),
        });
        Ok(folder)
    }

    /// Has a shell script run on the node after the test, which undoes what the test did there.
    pub fn undo(&self, node: &Node, script: String) {
        self.made(Made::Undone {
            node: node.clone(),
            script,
        });
    }

    /// Registers an image for removal.
    pub fn image(&self, node: &Node, name: &str) {
        self.made(Made::Image {
            node: node.clone(),
            name: name.into(),
        });
    }

    /// Makes a container (no task yet) by `ctr container create`.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn container(
        &self,
        node: &Node,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<Container> {
        self.container_with(node, &[], image, command).await
    }

    /// As [`Context::container`] with more flags of `ctr container create`.
    ///
    /// # Errors
    /// When `ctr` fails.
    pub async fn container_with(
        &self,
        node: &Node,
        flags: &[&str],
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<Container> {
        let id = self.id("c");
        let container = self.adopt(node, &id)?;
        let mut args = vec![
            "container",
            "create",
            "--runtime",
            self.inner.runtime.containerd_name(),
        ];
        args.extend(flags);
        args.push(image);
        args.push(&id);
        args.extend(command);
        node.ctr(&args).await?;
        Ok(container)
    }

    /// A container that somebody else makes (`ctr run`, `ctr container restore`); it is
    /// removed after the test.
    ///
    /// # Errors
    /// When the id is not one for containerd's API.
    pub fn adopt(&self, node: &Node, id: &str) -> anyhow::Result<Container> {
        self.made(Made::Container {
            node: node.clone(),
            id: id.into(),
        });
        Ok(Container {
            node: node.clone(),
            api: node.api(NAMESPACE)?,
            id: id.into(),
        })
    }

    /// A busybox shell running `script`, started, with its output read.
    ///
    /// # Errors
    /// When any step fails.
    pub async fn shell(&self, node: &Node, script: &str) -> anyhow::Result<(Container, Output)> {
        let container = self
            .container(node, crate::workload::BUSYBOX, &["sh", "-c", script])
            .await?;
        let output = container.create().await?;
        container.start().await?;
        Ok((container, output))
    }

    /// The events of ordinary containers from now on.
    ///
    /// # Errors
    /// When containerd refuses.
    pub async fn events(&self, node: &Node) -> anyhow::Result<Events> {
        Events::subscribe(&node.api(NAMESPACE)?, NAMESPACE).await
    }

    /// Runs a pod sandbox under the handler.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod(&self, node: &Node, handler: &str) -> anyhow::Result<Pod> {
        self.pod_as(node, handler, |_| {}).await
    }

    /// As [`Context::pod`], with annotations.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod_with(
        &self,
        node: &Node,
        handler: &str,
        annotations: &[(&str, &str)],
    ) -> anyhow::Result<Pod> {
        self.pod_as(node, handler, |config| {
            for &(name, value) in annotations {
                config.annotations.insert(name.into(), value.into());
            }
        })
        .await
    }

    /// As [`Context::pod`], with its config changed.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod_as(
        &self,
        node: &Node,
        handler: &str,
        change: impl FnOnce(&mut SandboxConfig),
    ) -> anyhow::Result<Pod> {
        let name = self.id("pod");
        let logs = self.folder(node, "logs")?;
        let mut config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: "e2e".into(),
                attempt: 0,
            }),
            hostname: "e2e".into(),
            log_directory: logs.clone(),
            linux: Some(LinuxSandboxConfig {
                cgroup_parent: String::new(),
                security_context: Some(SandboxSecurityContext {
                    namespace_options: Some(KUBELET_NAMESPACES),
                }),
            }),
            ..Default::default()
        };
        change(&mut config);
        let id = node
            .cri()
            .run_pod(config.clone(), handler)
            .await
            .with_context(|| format!("RunPodSandbox {name} under {handler}"))?;
        self.adopt_pod(node, &id);
        Ok(Pod {
            node: node.clone(),
            cri: node.cri(),
            id,
            config,
            logs,
        })
    }

    /// Has a pod removed after the test that was made by other means.
    pub fn adopt_pod(&self, node: &Node, id: &str) {
        self.made(Made::Pod {
            node: node.clone(),
            id: id.into(),
        });
    }

    /// Removes a container that somebody else made (`ctr run`), at once.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn clean_up_container(&self, node: &Node, id: &str) -> anyhow::Result<()> {
        remove(Made::Container {
            node: node.clone(),
            id: id.into(),
        })
        .await
    }

    /// Removes everything this test made, newest first.
    ///
    /// # Errors
    /// The first that could not be removed; the others are removed nevertheless.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        let mut first = Ok(());
        loop {
            let Some(made) = lock(&self.inner.made).pop() else {
                return first;
            };
            let what = format!("{made:?}");
            let done = tokio::time::timeout(2 * PATIENCE, remove(made)).await;
            let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("it does not end")));
            if first.is_ok() {
                first = done.with_context(|| {
                    format!("clean up {}", what.chars().take(160).collect::<String>())
                });
            }
        }
    }

    fn made(&self, made: Made) {
        lock(&self.inner.made).push(made);
    }
}

async fn remove(made: Made) -> anyhow::Result<()> {
    match made {
        Made::Container { node, id } => {
            let api = node.api(NAMESPACE)?;
            end_task(&api, &id).await?;
            if let Ok(container) = api.container(&id).await {
                api.remove_container(&id).await?;
                if !container.snapshot_key.is_empty() {
                    api.remove_snapshot(&container.snapshotter, &container.snapshot_key)
                        .await
                        .ok();
                }
            }
        }
        Made::Pod { node, id } => {
            node.cri().stop_pod(&id).await?;
            node.cri().remove_pod(&id).await?;
        }
        Made::Image { node, name } => {
            node.api(NAMESPACE)?.remove_image(&name).await.ok();
        }
        Made::Folder { path } => match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        },
        Made::Mount { node, path } => {
            node.exec(&["umount", &path]).await?.success()?;
        }
        Made::Undone { node, script } => {
            node.exec(&["sh", "-c", &script]).await?.success()?;
        }
    }
    Ok(())
}

/// Ends and deletes a task in whatever state it is.
async fn end_task(api: &Api, id: &str) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while let Ok(state) = api.state(id).await {
        ensure!(
            Instant::now() < end,
            "the task {id} does not go, in state {state:?}"
        );
        match state {
            State::Stopped | State::Unknown => {
                api.delete(id).await.ok();
            }
            State::Paused | State::Pausing => {
                api.resume(id).await.ok();
                api.kill(id, 9).await.ok();
            }
            State::Created => {
                api.kill(id, 9).await.ok();
                api.delete(id).await.ok();
            }
            State::Running => {
                api.kill(id, 9).await.ok();
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A container and its task, on one node.
#[derive(Clone, Debug)]
pub struct Container {
    /// The node it is on.
    pub node: Node,
    /// containerd's API.
    pub api: Api,
    /// Its id.
    pub id: String,
}

impl Container {
    /// Creates the task with fifos of our own and reads its output.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn create(&self) -> anyhow::Result<Output> {
        self.create_from(None).await
    }

    /// Creates the task from the checkpoint in this folder of the node.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn create_from(&self, image_path: Option<&str>) -> anyhow::Result<Output> {
        let output = Output::open(&self.node, &self.id)?;
        let mut request = self.create_request(image_path).await?;
        request.stdout = output.path("stdout");
        request.stderr = output.path("stderr");
        self.api
            .create(request)
            .await
            .with_context(|| format!("create the task of {}", self.id))?;
        Ok(output)
    }

    /// Changes the spec that the next task is created with.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn edit_spec(&self, edit: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let mut record = self.api.container(&self.id).await?;
        let spec = record.spec.as_mut().context("a container without a spec")?;
        let mut value = serde_json::from_slice(&spec.value).context("the spec")?;
        edit(&mut value);
        spec.value = value.to_string().into_bytes();
        self.api.set_spec(record).await.context("set the spec")
    }

    /// The request that creates the task, without stdio.
    ///
    /// # Errors
    /// When the container or its snapshot is not known.
    pub async fn create_request(
        &self,
        image_path: Option<&str>,
    ) -> anyhow::Result<CreateTaskRequest> {
        let record = self.api.container(&self.id).await?;
        let rootfs = self
            .api
            .mounts(&record.snapshotter, &record.snapshot_key)
            .await?;
        let options = image_path.map(|path| {
            RuncOptions {
                criu_image_path: path.into(),
                ..Default::default()
            }
            .any()
        });
        Ok(CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            options,
            ..Default::default()
        })
    }

    /// Starts the task; its pid in the node.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn start(&self) -> anyhow::Result<u32> {
        self.api
            .start(&self.id)
            .await
            .with_context(|| format!("start {}", self.id))
    }

    /// The task's state.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn state(&self) -> anyhow::Result<State> {
        self.api
            .state(&self.id)
            .await
            .with_context(|| format!("state of {}", self.id))
    }

    /// Checks the task's state.
    ///
    /// # Errors
    /// When it is another.
    pub async fn expect(&self, wanted: State) -> anyhow::Result<()> {
        let state = self.state().await?;
        ensure!(
            state == wanted,
            "{} is {state:?}, wanted {wanted:?}",
            self.id
        );
        Ok(())
    }

    /// Checkpoints the task into a folder of the node through the plain API.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn checkpoint(&self, image_path: &str, exit: bool) -> anyhow::Result<()> {
        self.api
            .checkpoint(
                &self.id,
                CheckpointOptions {
                    exit,
                    image_path: image_path.into(),
                    ..Default::default()
                },
            )
            .await
            .with_context(|| format!("checkpoint {}", self.id))?;
        Ok(())
    }

    /// Starts a shell script as another process of the task, with its output read and, if
    /// asked for, its stdin from there.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn exec(&self, exec_id: &str, script: &str, stdin: bool) -> anyhow::Result<Output> {
        let output = Output::open(&self.node, &format!("{}-{exec_id}", self.id))?;
        self.exec_to(exec_id, script, |request| {
            if stdin {
                request.stdin = output.path("stdin");
            }
            request.stdout = output.path("stdout");
            request.stderr = output.path("stderr");
        })
        .await?;
        Ok(output)
    }

    /// As [`Container::exec`], with the streams that `set` gives it.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn exec_to(
        &self,
        exec_id: &str,
        script: &str,
        set: impl FnOnce(&mut ExecRequest),
    ) -> anyhow::Result<()> {
        let process = serde_json::json!({
            "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
        });
        let mut request = ExecRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
            ..Default::default()
        };
        set(&mut request);
        self.api.exec(request).await.context("exec")?;
        self.api
            .start_exec(&self.id, exec_id)
            .await
            .context("start the exec")?;
        Ok(())
    }

    /// Waits for the end of an exec, then deletes it; its exit status.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn finish_exec(&self, exec_id: &str) -> anyhow::Result<u32> {
        let code = self.api.wait_exec(&self.id, exec_id).await?;
        self.api.delete_exec(&self.id, exec_id).await?;
        Ok(code)
    }

    /// Waits for the end of the task, then deletes it; its exit status.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn finish(&self) -> anyhow::Result<u32> {
        let waited = self.api.wait(&self.id).await.context("wait")?;
        let deleted = self.api.delete(&self.id).await.context("delete")?;
        ensure!(
            waited == deleted.exit_status,
            "Wait says {waited}, Delete says {}",
            deleted.exit_status
        );
        Ok(waited)
    }

    /// Kills the task, waits for its end and deletes it.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn kill_and_delete(&self) -> anyhow::Result<u32> {
        self.api.kill(&self.id, 9).await.context("kill")?;
        self.finish().await
    }

    /// Its bundle's path in the node.
    pub fn bundle(&self) -> String {
        format!(
            "/run/containerd/io.containerd.runtime.v2.task/{NAMESPACE}/{}",
            self.id
        )
    }

    /// A path in its root file system, as seen from the host.
    pub fn in_rootfs(&self, path: &str) -> PathBuf {
        self.node
            .host(&self.bundle())
            .join("rootfs")
            .join(path.trim_start_matches('/'))
    }

    /// Waits until the task's process is in this state.
    ///
    /// # Errors
    /// When it is not within [`PATIENCE`].
    pub async fn wait_for(&self, wanted: State) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.state().await?;
            if state == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{} stays {state:?}, wanted {wanted:?}",
                self.id
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What a container writes to its stdout and stderr, read as it comes.
#[derive(Debug)]
pub struct Output {
    folder: String,
    host: PathBuf,
    stdout: Stream,
    stderr: Stream,
}

#[derive(Clone, Debug, Default)]
struct Stream(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
}

static NEXT_OUTPUT: AtomicU32 = AtomicU32::new(0);

impl Output {
    /// Makes the fifos and starts to read them.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(node: &Node, id: &str) -> anyhow::Result<Self> {
        let n = NEXT_OUTPUT.fetch_add(1, Ordering::Relaxed);
        let folder = format!("{FIFOS}/{id}-{n}");
        let host = node.host(&folder);
        std::fs::create_dir_all(&host)?;
        for name in ["stdin", "stdout", "stderr"] {
            make_fifo(&host.join(name))?;
        }
        let stdout = Stream::read(host.join("stdout"));
        let stderr = Stream::read(host.join("stderr"));
        Ok(Self {
            folder,
            host,
            stdout,
            stderr,
        })
    }

    /// The path in the node of `stdin`, `stdout` or `stderr`.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Opens the fifo of stdin for writing, as containerd's client does.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn stdin(&self) -> anyhow::Result<File> {
        Ok(File::options()
            .read(true)
            .write(true)
            .open(self.host.join("stdin"))?)
    }

    /// All of stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// How many bytes of stdout came so far.
    pub fn received(&self) -> usize {
        lock(&self.stdout.0).bytes.len()
    }

    /// All of stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The numbers a counter wrote so far.
    pub fn numbers(&self) -> Vec<u64> {
        crate::workload::numbers(&self.stdout())
    }

    /// Waits until at least `n` numbers were written.
    ///
    /// # Errors
    /// When they are not within [`PATIENCE`].
    pub async fn count_to(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        self.until(|text| {
            let numbers = crate::workload::numbers(text);
            (numbers.len() >= n).then_some(numbers)
        })
        .await
        .with_context(|| format!("wait for {n} numbers"))
    }

    /// Waits until `n` more numbers were written than now.
    ///
    /// # Errors
    /// As [`Output::count_to`].
    pub async fn count_on(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let now = self.numbers().len();
        self.count_to(now + n).await
    }

    /// Waits until stdout has something that `find` finds.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`]; the end of the output is in the text.
    pub async fn until<T>(&self, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.stdout();
            if let Some(found) = find(&text) {
                return Ok(found);
            }
            if Instant::now() > end {
                let tail: String = text.chars().rev().take(80).collect();
                let tail: String = tail.chars().rev().collect();
                bail!(
                    "waited in vain; stdout ends {tail:?}, stderr is {:?}",
                    self.stderr()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until stdout is at its end and returns all of it.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub async fn complete(&self) -> anyhow::Result<String> {
        let bytes = self.complete_bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// As [`Output::complete`], for what is no text.
    ///
    /// # Errors
    /// As [`Output::complete`].
    pub async fn complete_bytes(&self) -> anyhow::Result<Vec<u8>> {
        self.stdout.complete().await
    }

    /// Waits until stderr is at its end and returns all of it.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`].
    pub async fn complete_stderr(&self) -> anyhow::Result<String> {
        let bytes = self.stderr.complete().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // A reader that nobody ever wrote to hangs in open(2): let it go.
        for name in ["stdout", "stderr"] {
            if let Ok(mut end) = File::options()
                .write(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(self.host.join(name))
            {
                end.flush().ok();
            }
        }
        std::fs::remove_dir_all(&self.host).ok();
    }
}

impl Stream {
    fn read(path: PathBuf) -> Self {
        let stream = Self::default();
        let sink = stream.clone();
        std::thread::spawn(move || {
            if let Ok(mut fifo) = File::open(path) {
                let mut buffer = [0; 64 << 10];
                while let Ok(n) = fifo.read(&mut buffer) {
                    if n == 0 {
                        break;
                    }
                    if let Some(bytes) = buffer.get(..n) {
                        lock(&sink.0).bytes.extend_from_slice(bytes);
                    }
                }
            }
            lock(&sink.0).ended = true;
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0).bytes).into_owned()
    }

    async fn complete(&self) -> anyhow::Result<Vec<u8>> {
        until("the end of the output", || {
            let mut received = lock(&self.0);
            Ok(received.ended.then(|| std::mem::take(&mut received.bytes)))
        })
        .await
        .with_context(|| format!("{} bytes came", lock(&self.0).bytes.len()))
    }
}

fn make_fifo(path: &Path) -> anyhow::Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("mkfifo {}", path.display()))
}

/// A pod sandbox.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The node it is on.
    pub node: Node,
    /// CRI.
    pub cri: Cri,
    /// Its id.
    pub id: String,
    config: SandboxConfig,
    logs: String,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct PodContainer {
    /// The node it is on.
    pub node: Node,
    /// CRI.
    pub cri: Cri,
    /// Its id.
    pub id: String,
    /// Its log on the host.
    pub log: PathBuf,
}

impl Pod {
    /// Creates a container; `image` may be a checkpoint's path, then `command` has no
    /// meaning.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn create(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<PodContainer> {
        self.create_within(name, image, command, 0).await
    }

    /// As [`Pod::create`], with a limit of memory in bytes; 0 is none.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn create_within(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
        memory: i64,
    ) -> anyhow::Result<PodContainer> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.into(),
            }),
            command: command.iter().map(|&s| s.into()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: (memory > 0).then_some(LinuxContainerResources {
                    memory_limit_in_bytes: memory,
                }),
                security_context: Some(ContainerSecurityContext {
                    namespace_options: Some(KUBELET_NAMESPACES),
                }),
            }),
            ..Default::default()
        };
        let id = self
            .cri
            .create(CreateContainerRequest {
                pod_sandbox_id: self.id.clone(),
                config: Some(config),
                sandbox_config: Some(self.config.clone()),
            })
            .await
            .with_context(|| format!("CreateContainer {name} from {image}"))?;
        Ok(PodContainer {
            node: self.node.clone(),
            cri: self.cri.clone(),
            id,
            log: self.node.host(&self.logs).join(format!("{name}.log")),
        })
    }

    /// A container that somebody else made in this pod; `log` is the name of its log without
    /// its suffix.
    pub fn container(&self, id: &str, log: &str) -> PodContainer {
        PodContainer {
            node: self.node.clone(),
            cri: self.cri.clone(),
            id: id.into(),
            log: self.node.host(&self.logs).join(format!("{log}.log")),
        }
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// CRI's answers.
    pub async fn run(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<PodContainer> {
        let container = self.create(name, image, command).await?;
        container.start().await?;
        Ok(container)
    }
}

impl PodContainer {
    /// Starts it.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.cri
            .start(&self.id)
            .await
            .with_context(|| format!("StartContainer {}", self.id))
    }

    /// CRI's status of it.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn status(&self) -> anyhow::Result<ContainerStatus> {
        self.cri
            .status(&self.id)
            .await
            .context("ContainerStatus")?
            .status
            .context("ContainerStatus answered without a status")
    }

    /// Waits until CRI says it is in this state.
    ///
    /// # Errors
    /// When it is not within [`PATIENCE`].
    pub async fn wait_for(&self, wanted: ContainerState) -> anyhow::Result<ContainerStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if status.state() == wanted {
                return Ok(status);
            }
            ensure!(
                Instant::now() < end,
                "{} stays {:?}, wanted {wanted:?}: {} {}",
                self.id,
                status.state(),
                status.reason,
                status.message
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its log's text so far.
    pub fn output(&self) -> String {
        crate::workload::cri_log(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The numbers a counter wrote into its log so far.
    pub fn numbers(&self) -> Vec<u64> {
        crate::workload::numbers(&self.output())
    }

    /// Waits until its log has at least `n` numbers.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`].
    pub async fn count_to(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let numbers = self.numbers();
            if numbers.len() >= n {
                return Ok(numbers);
            }
            ensure!(
                Instant::now() < end,
                "{} counted {} of {n}",
                self.id,
                numbers.len()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until its log has `n` more numbers than now.
    ///
    /// # Errors
    /// As [`PodContainer::count_to`].
    pub async fn count_on(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let now = self.numbers().len();
        self.count_to(now + n).await
    }

    /// Its bundle's path in the node.
    pub fn bundle(&self) -> String {
        format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}",
            self.id
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
