//! The lab as seen from the host: nodes brought up and taken down by `hack/lab`, commands
//! run in them, their files and sockets reached through `/proc/PID/root`.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::containerd::Api;
use crate::cri::Cri;
use crate::patience::PATIENCE;
use crate::rpc::Client;
use crate::runtime::Runtime;

/// The tests' own nodes: a developer's `node-a` is left alone.
const NODES: &str = "e2e-a,e2e-b";

/// The nodes' names: those of `CRYO_E2E_NODES`, so that two runs can share a lab.
pub fn node_names() -> Vec<String> {
    let names = std::env::var("CRYO_E2E_NODES").unwrap_or_else(|_| NODES.into());
    names.split(',').map(str::to_owned).collect()
}

/// The folder in a node under which the tests keep what they make (on disk).
pub const SCRATCH: &str = "/var/tmp/cryo-e2e";

/// The folder in a node for fifos (tmpfs).
pub const FIFOS: &str = "/run/cryo-e2e";

/// The lab with its nodes up.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Node>,
    guard: Option<Guard>,
    _lock: File,
}

impl Lab {
    /// Why the lab cannot be used here, if so: a sentence with the remedy.
    pub fn missing(runtime: Runtime) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root (namespaces, mounts, cgroups): run it with sudo".into());
        }
        let script = lab_script();
        if !script.exists() {
            return Some(format!("{} does not exist", script.display()));
        }
        if runtime == Runtime::Cryo {
            let shim = binaries().join(runtime.shim());
            if !shim.exists() {
                return Some(format!(
                    "{} does not exist: cargo build, or point CRYO_BIN_DIR at it",
                    shim.display()
                ));
            }
        }
        None
    }

    /// Brings the nodes up. They go down with the value, and also when this process is
    /// killed: a guard process waits for its end. `CRYO_E2E_KEEP=1` leaves them up.
    ///
    /// # Errors
    /// When a node does not come up; what the lab said is in the text.
    pub async fn up(names: &[&str]) -> anyhow::Result<Self> {
        let lock = lock(names)?;
        let keep = std::env::var_os("CRYO_E2E_KEEP").is_some();
        let guard = if keep {
            None
        } else {
            Some(Guard::watch(names, &lock)?)
        };
        let mut args = vec!["up"];
        args.extend(names);
        lab(&args).await?.success()?;
        let mut nodes = Vec::new();
        for name in names {
            nodes.push(Node::attach(name).await?);
        }
        Ok(Self {
            nodes,
            guard,
            _lock: lock,
        })
    }

    /// The node with this index.
    pub fn node(&self, index: usize) -> anyhow::Result<&Node> {
        self.nodes.get(index).context("the lab has no such node")
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Takes the nodes down and waits for it.
    ///
    /// # Errors
    /// When the lab could not take them down.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.guard.take().map_or(Ok(()), Guard::finish)
    }
}

/// One run at a time has these nodes; another waits for its end.
fn lock(names: &[&str]) -> anyhow::Result<File> {
    let folder = lab_folder();
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}.lock", names.join("+")));
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("{}", path.display()))?;
    if file.try_lock().is_err() {
        println!(
            "another run has {}: waiting for its end",
            names.join(" and ")
        );
        file.lock()?;
    }
    Ok(file)
}

/// A process of its own session that takes the nodes down when its standard input ends,
/// which the kernel sees to whatever becomes of us.
#[derive(Debug)]
struct Guard {
    child: std::process::Child,
}

impl Guard {
    /// The guard's standard output is the lock, which it thereby holds to its own end.
    fn watch(names: &[&str], lock: &File) -> anyhow::Result<Self> {
        let child = std::process::Command::new("setsid")
            .args(["sh", "-c", r#"cat >/dev/null; exec "$0" down "$@""#])
            .arg(lab_script())
            .args(names)
            .stdin(Stdio::piped())
            .stdout(lock.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()
            .context("start the guard that takes the lab down")?;
        Ok(Self { child })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "hack/lab down: {status}: {}", said.trim());
        Ok(())
    }
}

/// What a command wrote and how it ended.
#[derive(Clone, Debug)]
#[must_use = "check how the command ended"]
pub struct Finished {
    /// The command, for error texts.
    pub command: String,
    /// Exit code; 128+n for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a command that succeeded.
    ///
    /// # Errors
    /// When it did not; all it said is in the text.
    pub fn success(self) -> anyhow::Result<String> {
        ensure!(
            self.code == 0,
            "{}: exit code {}: {} {}",
            self.command,
            self.code,
            self.stderr.trim(),
            self.stdout.trim()
        );
        Ok(self.stdout)
    }

    /// What a command that had to fail said.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn failure(self) -> anyhow::Result<String> {
        ensure!(
            self.code != 0,
            "{}: succeeded where it had to fail: {}",
            self.command,
            self.stdout.trim()
        );
        Ok(format!("{}\n{}", self.stderr.trim(), self.stdout.trim()))
    }
}

/// One node of the lab.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    pid: u32,
    root: PathBuf,
    rpc: Client,
}

impl Node {
    /// A node that is up.
    ///
    /// # Errors
    /// When it is not, or its containerd does not answer within [`PATIENCE`].
    pub async fn attach(name: &str) -> anyhow::Result<Self> {
        let pid: u32 = lab(&["pid", name])
            .await?
            .success()?
            .trim()
            .parse()
            .context("hack/lab pid")?;
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let rpc = Client::lazy(&root.join("run/containerd/containerd.sock"))?;
        let node = Self {
            name: name.into(),
            pid,
            root,
            rpc,
        };
        node.ready().await?;
        std::fs::create_dir_all(node.host(SCRATCH))?;
        std::fs::create_dir_all(node.host(FIFOS))?;
        Ok(node)
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's pid of its first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until containerd and its CRI plugin answer.
    ///
    /// # Errors
    /// When they do not within [`PATIENCE`].
    pub async fn ready(&self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.cri().version().await {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > end => {
                    bail!("containerd of {} does not answer: {e}", self.name)
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Whether its first process is systemd (`LAB_INIT` of `hack/lab`).
    pub fn has_systemd(&self) -> bool {
        self.host("/run/systemd/system").is_dir()
    }

    /// The path on the host of a path in the node.
    pub fn host(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// containerd's API in a namespace.
    pub fn api(&self, namespace: &str) -> anyhow::Result<Api> {
        Ok(Api::new(self.rpc.in_namespace(namespace)?))
    }

    /// CRI.
    pub fn cri(&self) -> Cri {
        Cri::new(self.rpc.clone())
    }

    /// Runs a command in the node.
    ///
    /// # Errors
    /// When it could not be run; its own failure is in the answer.
    pub async fn exec(&self, command: &[&str]) -> anyhow::Result<Finished> {
        self.exec_with_stdin(command, None).await
    }

    /// Runs a command in the node with bytes on its standard input, then its end.
    ///
    /// # Errors
    /// As [`Node::exec`].
    pub async fn exec_with_stdin(
        &self,
        command: &[&str],
        stdin: Option<&[u8]>,
    ) -> anyhow::Result<Finished> {
        let mut args = vec!["exec", self.name.as_str(), "--"];
        args.extend(command);
        run(&args, stdin).await
    }

    /// Runs `ctr` in the node and returns its output.
    ///
    /// # Errors
    /// When it failed.
    pub async fn ctr(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = vec!["ctr"];
        command.extend(args);
        self.exec(&command).await?.success()
    }

    /// Runs `ctr ARGS sh -c SCRIPT` where `ctr` passes a container's streams on; how the script ended,
    /// and what it wrote. It does not end before all of that has arrived here: ctr, on a busy machine,
    /// throws away what it has not read when it hears of an exit.
    ///
    /// # Errors
    /// When it could not be run; its own failure is in the answer.
    pub async fn ctr_script(&self, args: &[&str], script: &str) -> anyhow::Result<Finished> {
        const END: &str = "--end of the script--\n";
        let script = format!(
            "(\n{script}\n)\ncode=$?; echo '{end}'; echo '{end}' >&2; read -r _; exit $code",
            end = END.trim_end()
        );
        let command = [
            &["exec", self.name.as_str(), "--", "ctr"],
            args,
            &["sh", "-c", &script],
        ]
        .concat();
        let mut child = started(&command, Stdio::piped())?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let mut stdout = child.stdout.take().context("stdout")?;
        let mut stderr = child.stderr.take().context("stderr")?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        tokio::try_join!(
            read_to(&mut stdout, &mut out, END),
            read_to(&mut stderr, &mut err, END)
        )?;
        // One that did not come to its script has ended already.
        stdin.write_all(b"\n").await.ok();
        tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replacen(END, "", 1);
        Ok(Finished {
            command: format!("hack/lab {}", command.join(" ")),
            code: code(child.wait().await?),
            stdout: text(out),
            stderr: text(err),
        })
    }

    /// Ends containerd (by SIGTERM, or SIGKILL) and starts it again.
    ///
    /// # Errors
    /// When it did not come back.
    pub async fn restart_containerd(&self, kill: bool) -> anyhow::Result<()> {
        self.stop_containerd(kill).await?;
        self.start_containerd().await
    }

    /// Ends containerd, by SIGTERM or SIGKILL; containers and their shims live on.
    ///
    /// # Errors
    /// When it did not end.
    pub async fn stop_containerd(&self, kill: bool) -> anyhow::Result<()> {
        let mut args = vec!["stop-containerd"];
        if kill {
            args.push("--kill");
        }
        args.push(&self.name);
        lab(&args).await?.success()?;
        Ok(())
    }

    /// Starts a containerd that was ended.
    ///
    /// # Errors
    /// When it did not come back.
    pub async fn start_containerd(&self) -> anyhow::Result<()> {
        lab(&["start-containerd", &self.name]).await?.success()?;
        self.ready().await
    }

    /// containerd's log on the host.
    pub fn log(&self) -> PathBuf {
        lab_folder()
            .join("nodes")
            .join(&self.name)
            .join("log/containerd.log")
    }

    /// The host pids of the node's processes with this name (`comm`, 15 characters).
    pub fn processes(&self, comm: &str) -> Vec<u32> {
        let comm = comm.get(..15).unwrap_or(comm);
        let Ok(own) = pid_namespace(self.pid) else {
            return Vec::new();
        };
        pids()
            .filter(|pid| pid_namespace(*pid).is_ok_and(|ns| ns == own))
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim_end() == comm)
            })
            .collect()
    }

    /// The host pids of the shims whose command line names this container or sandbox.
    pub fn shims_of(&self, id: &str) -> Vec<u32> {
        let mut shims = self.processes("containerd-shim");
        shims.retain(|shim| {
            let line = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|word| word == id.as_bytes())
        });
        shims
    }

    /// Kills the shims whose command line names this container or sandbox; answers how many.
    ///
    /// # Errors
    /// When one cannot be killed.
    pub fn kill_shims_of(&self, id: &str) -> anyhow::Result<usize> {
        let shims = self.shims_of(id);
        for shim in &shims {
            if let Some(shim) = rustix::process::Pid::from_raw(shim.cast_signed()) {
                rustix::process::kill_process(shim, rustix::process::Signal::KILL)?;
            }
        }
        Ok(shims.len())
    }

    /// Whether the container process `pid` (a pid of the node) sits in a frozen cgroup.
    ///
    /// # Errors
    /// When the process or its cgroup cannot be read.
    pub fn frozen(&self, pid: u32) -> anyhow::Result<bool> {
        let cgroups = std::fs::read_to_string(self.host(&format!("/proc/{pid}/cgroup")))
            .with_context(|| format!("cgroups of process {pid}"))?;
        for line in cgroups.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            let path = path.trim_start_matches('/');
            if controllers == "freezer" {
                let file = Path::new("/sys/fs/cgroup/freezer")
                    .join(path)
                    .join("freezer.state");
                let state = std::fs::read_to_string(&file)
                    .with_context(|| format!("{}", file.display()))?;
                if state.trim() != "THAWED" {
                    return Ok(true);
                }
            }
            if controllers.is_empty() {
                for mount in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
                    let file = Path::new(mount).join(path).join("cgroup.events");
                    if let Ok(events) = std::fs::read_to_string(file)
                        && events.contains("frozen 1")
                    {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Copies a file or folder of this node to another.
    ///
    /// # Errors
    /// When the lab could not copy it.
    pub async fn copy_to(&self, path: &str, other: &Self, target: &str) -> anyhow::Result<()> {
        let from = format!("{}:{path}", self.name);
        let to = format!("{}:{target}", other.name);
        lab(&["cp", &from, &to]).await?.success()?;
        Ok(())
    }
}

/// Another `/etc/cryo/config.toml` on a node, until it is dropped. Only for tests that run alone.
#[derive(Debug)]
pub struct NodeConfig {
    file: PathBuf,
    before: Option<Vec<u8>>,
}

impl NodeConfig {
    /// Puts `text` in its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(node: &Node, text: &str) -> anyhow::Result<Self> {
        let file = node.host("/etc/cryo/config.toml");
        let before = std::fs::read(&file).ok();
        std::fs::create_dir_all(node.host("/etc/cryo"))?;
        std::fs::write(&file, text)?;
        Ok(Self { file, before })
    }
}

impl Drop for NodeConfig {
    fn drop(&mut self) {
        match &self.before {
            Some(bytes) => std::fs::write(&self.file, bytes).ok(),
            None => std::fs::remove_file(&self.file).ok(),
        };
    }
}

/// The parent of a process, of the host's pids.
pub fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|l| l.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()
}

/// Every process the host sees.
pub fn pids() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn pid_namespace(pid: u32) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid"))
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the lab is.
pub fn lab_folder() -> PathBuf {
    std::env::var_os("LAB_DIR").map_or_else(|| repository().join(".lab"), PathBuf::from)
}

fn lab_script() -> PathBuf {
    repository().join("hack/lab")
}

/// Where the binaries under test are.
pub fn binaries() -> PathBuf {
    std::env::var_os("CRYO_BIN_DIR")
        .map_or_else(|| repository().join("target/debug"), PathBuf::from)
}

/// Runs `hack/lab` with these arguments.
///
/// # Errors
/// When it could not be run.
pub async fn lab(args: &[&str]) -> anyhow::Result<Finished> {
    run(args, None).await
}

/// The whole of a program that works in the lab with these tools.
///
/// # Errors
/// When the lab or a tool cannot be had here; the work's own.
pub fn work_with(
    tools: &[&str],
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if let Some(reason) = Lab::missing(Runtime::Cryo) {
        bail!(reason);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            for tool in tools {
                make_tool(tool).await?;
            }
            work.await
        })
}

/// Sees to it that a Go program is in the nodes' PATH, which may take minutes.
///
/// # Errors
/// When it is not and cannot be built; `hack/lab` says what is missing.
pub async fn make_tool(name: &str) -> anyhow::Result<()> {
    let finished = lab(&["tools", name]).await?;
    let said = finished.stderr.lines().last().unwrap_or_default();
    ensure!(
        finished.code == 0,
        "{}",
        said.strip_prefix("lab: ").unwrap_or(said)
    );
    Ok(())
}

fn started(args: &[&str], stdin: Stdio) -> anyhow::Result<tokio::process::Child> {
    tokio::process::Command::new(lab_script())
        .args(args)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start hack/lab")
}

/// The exit code; 128+n for a signal.
fn code(status: std::process::ExitStatus) -> i32 {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    status.code().unwrap_or(128 + signal.unwrap_or(0))
}

/// Reads as far as `end`, or to the end of the stream.
async fn read_to(
    stream: &mut (impl AsyncRead + Unpin),
    into: &mut Vec<u8>,
    end: &str,
) -> std::io::Result<()> {
    while !into.ends_with(end.as_bytes()) && stream.read_buf(into).await? > 0 {}
    Ok(())
}

async fn run(args: &[&str], stdin: Option<&[u8]>) -> anyhow::Result<Finished> {
    let input = match stdin {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut child = started(args, input)?;
    // Beside the reading of its output, which may come before the input is at its end.
    let pipe = child.stdin.take();
    let feed = async {
        if let (Some(bytes), Some(mut pipe)) = (stdin, pipe) {
            // A command that ends without reading all of it is no failure of ours.
            pipe.write_all(bytes).await.ok();
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output?;
    Ok(Finished {
        command: format!("hack/lab {}", args.join(" ")),
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
