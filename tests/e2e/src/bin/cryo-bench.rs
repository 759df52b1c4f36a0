//! cryo beside the Go shim with runc, in one run on one lab node: interleaved medians as a
//! Markdown table. `cargo run --release -p cryo-e2e --bin cryo-bench [times|memory] [ROUNDS]`, as
//! root. Times need a machine that does nothing else, memory does not.
//!
//! The binaries measured are those in `CRYO_BIN_DIR`; build them with `--release` and point
//! it at `target/release`, else debug builds are measured.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cryo_e2e::containerd::{CheckpointOptions, CreateTaskRequest};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Lab, Node, binaries};
use cryo_e2e::runtime::Runtime;
use cryo_e2e::shims::Usage;
use cryo_e2e::workload::{BUSYBOX, COUNTER, PYTHON};

/// The bench's own node.
const NODE: &str = "e2e-bench";

/// Rounds when the command line names no number.
const ROUNDS: usize = 20;

/// A python process whose frozen time is measured.
struct Still {
    /// Its memory.
    heap_mib: usize,
    /// TCP connections are allowed.
    open_tcp: bool,
    /// It has one, with itself.
    connected: bool,
    checkpoint: &'static str,
    still: &'static str,
}

const STILL: [Still; 4] = [
    Still {
        heap_mib: 0,
        open_tcp: false,
        connected: false,
        checkpoint: "checkpoint of an idle container (leave running), ms",
        still: "... of it an idle container stood still, ms",
    },
    Still {
        heap_mib: 64,
        open_tcp: false,
        connected: false,
        checkpoint: "checkpoint of 64 MiB (leave running), ms",
        still: "... of it the application stood still, ms",
    },
    Still {
        heap_mib: 0,
        open_tcp: true,
        connected: false,
        checkpoint: "checkpoint with TCP allowed and no connection, ms",
        still: "... of it stood still without a connection, ms",
    },
    Still {
        heap_mib: 0,
        open_tcp: true,
        connected: true,
        checkpoint: "checkpoint with a TCP connection, ms",
        still: "... of it stood still with a connection, ms",
    },
];

const MIB: f64 = (1 << 20) as f64;

const BOTH: [Runtime; 2] = [Runtime::Cryo, Runtime::Runc];

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Parts {
    times: bool,
    memory: bool,
}

fn main() -> anyhow::Result<()> {
    let mut parts = Parts {
        times: true,
        memory: true,
    };
    let mut rounds = ROUNDS;
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "times" => parts.memory = false,
            "memory" => parts.times = false,
            number => {
                rounds = number
                    .parse()
                    .context("usage: cryo-bench [times|memory] [ROUNDS]")?;
            }
        }
    }
    if let Some(reason) = Lab::missing(Runtime::Cryo) {
        anyhow::bail!(reason);
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(parts, rounds))
}

async fn run(parts: Parts, rounds: usize) -> anyhow::Result<()> {
    let lab = Arc::new(Lab::up(&[NODE]).await?);
    let mut table = Table::default();
    // Round 0 warms both up and is not counted.
    for round in 0..=rounds {
        let order = if round % 2 == 0 {
            [Runtime::Cryo, Runtime::Runc]
        } else {
            [Runtime::Runc, Runtime::Cryo]
        };
        for runtime in order {
            let cx = Context::new(&format!("bench-{round}"), runtime, Arc::clone(&lab));
            let mut sample = Sample::default();
            let measured = one_round(&cx, parts, &mut sample).await;
            let cleaned = cx.clean_up().await;
            measured.with_context(|| format!("round {round} of {}", runtime.name()))?;
            cleaned?;
            if round > 0 {
                table.add(runtime, sample);
            }
        }
        eprint!("\rround {round} of {rounds}");
    }
    eprintln!();
    table.print(rounds);
    if let Some(lab) = Arc::into_inner(lab) {
        lab.down()?;
    }
    Ok(())
}

/// What one round measured: a name with a unit, and the number.
#[derive(Debug, Default)]
struct Sample(Vec<(&'static str, f64)>);

impl Sample {
    fn time(&mut self, what: &'static str, since: Instant) {
        self.0.push((what, since.elapsed().as_secs_f64() * 1e3));
    }

    /// Resident, proportional and private memory, and threads, under these names.
    fn memory(&mut self, names: [&'static str; 4], usage: &Usage) {
        let mib = |kib: u64| kib as f64 * 1024.0 / MIB;
        let values = [
            mib(usage.rss_kib),
            mib(usage.pss_kib),
            mib(usage.private_kib),
            usage.threads as f64,
        ];
        self.0.extend(names.into_iter().zip(values));
    }
}

async fn one_round(cx: &Context, parts: Parts, sample: &mut Sample) -> anyhow::Result<()> {
    let node = cx.a()?;
    if parts.times {
        lifecycle(cx, node, sample).await?;
        checkpoint_and_restore(cx, node, sample).await?;
        for what in &STILL {
            frozen_time(cx, node, what, sample).await?;
        }
        pod_times(cx, node, sample).await?;
    }
    if parts.memory {
        memory(cx, node, sample).await?;
    }
    Ok(())
}

/// A request with our fifos as stdio, made before anything is timed.
async fn prepared(
    container: &Container,
    image: Option<&str>,
) -> anyhow::Result<(CreateTaskRequest, Output)> {
    let output = Output::open(&container.node, &container.id)?;
    let mut request = container.create_request(image).await?;
    request.stdout = output.path("stdout");
    request.stderr = output.path("stderr");
    Ok((request, output))
}

async fn lifecycle(cx: &Context, node: &Node, sample: &mut Sample) -> anyhow::Result<()> {
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let (request, output) = prepared(&container, None).await?;
    let start = Instant::now();
    container.api.create(request).await?;
    container.start().await?;
    sample.time("create to running, ms", start);
    output.count_to(1).await?;
    sample.time("create to first output, ms", start);

    let start = Instant::now();
    container.api.kill(&container.id, 9).await?;
    container.api.wait(&container.id).await?;
    sample.time("kill to exit, ms", start);
    let start = Instant::now();
    container.api.delete(&container.id).await?;
    sample.time("delete, ms", start);
    Ok(())
}

async fn checkpoint_and_restore(
    cx: &Context,
    node: &Node,
    sample: &mut Sample,
) -> anyhow::Result<()> {
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let (request, output) = prepared(&container, None).await?;
    container.api.create(request).await?;
    container.start().await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    let options = CheckpointOptions {
        image_path: image.clone(),
        exit: true,
        ..Default::default()
    };
    let start = Instant::now();
    container.api.checkpoint(&container.id, options).await?;
    sample.time("checkpoint of a busybox counter (exit), ms", start);
    container.finish().await?;

    let (request, output) = prepared(&container, Some(&image)).await?;
    let start = Instant::now();
    container.api.create(request).await?;
    container.start().await?;
    sample.time("restore of it, ms", start);
    output.count_to(1).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// Python that notes the longest pause between two looks at the clock and prints it in
/// milliseconds at SIGUSR1.
fn clock_watcher(heap_mib: usize, connected: bool) -> String {
    let connected = if connected { "True" } else { "False" };
    format!(
        "import os, signal, socket, time\n\
         heap = os.urandom({heap_mib} << 20)\n\
         if {connected}:\n\
         \x20   server = socket.create_server(('127.0.0.1', 0))\n\
         \x20   both = socket.create_connection(server.getsockname()), server.accept()\n\
         longest = 0.0\n\
         def tell(*_):\n\
         \x20   print('longest', longest * 1e3, flush=True)\n\
         signal.signal(signal.SIGUSR1, tell)\n\
         print('ready', flush=True)\n\
         last = time.monotonic()\n\
         while True:\n\
         \x20   now = time.monotonic()\n\
         \x20   longest = max(longest, now - last)\n\
         \x20   last = now\n\
         \x20   time.sleep(0.001)\n"
    )
}

async fn frozen_time(
    cx: &Context,
    node: &Node,
    what: &Still,
    sample: &mut Sample,
) -> anyhow::Result<()> {
    let program = clock_watcher(what.heap_mib, what.connected);
    let flags = ["--cap-add", "CAP_NET_ADMIN"];
    let container = cx
        .container_with(node, &flags, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output
        .until(|text| text.contains("ready").then_some(()))
        .await?;
    let options = CheckpointOptions {
        image_path: cx.folder(node, "image")?,
        open_tcp: what.open_tcp,
        ..Default::default()
    };
    let start = Instant::now();
    container.api.checkpoint(&container.id, options).await?;
    sample.time(what.checkpoint, start);
    tokio::time::sleep(Duration::from_millis(50)).await;
    container.api.kill(&container.id, 10).await?;
    let longest: f64 = output
        .until(|text| {
            let line = text.lines().find(|l| l.starts_with("longest "))?;
            line.trim_start_matches("longest ").parse().ok()
        })
        .await?;
    sample.0.push((what.still, longest));
    container.kill_and_delete().await?;
    Ok(())
}

async fn pod_times(cx: &Context, node: &Node, sample: &mut Sample) -> anyhow::Result<()> {
    let start = Instant::now();
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    sample.time("RunPodSandbox, ms", start);
    let start = Instant::now();
    let app = pod.run("app", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    sample.time("CreateContainer and StartContainer, ms", start);
    app.count_to(1).await?;
    Ok(())
}

/// The memory of what serves a pod, at rest, on a node that has another one: so the program's own
/// pages are shared, as on a node in use, and what is private is what one more pod costs.
async fn memory(cx: &Context, node: &Node, sample: &mut Sample) -> anyhow::Result<()> {
    let handler = cx.runtime().handler();
    let neighbour = cx.pod(node, handler).await?;
    neighbour.run("app", BUSYBOX, &["sleep", "1000"]).await?;

    let pod = cx.pod(node, handler).await?;
    pod.run("one", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let usage = Usage::at_rest(node, &pod.id).await?;
    sample.memory(
        [
            "shim of a pod of 1, RSS, MiB",
            "shim of a pod of 1, PSS, MiB",
            "shim of a pod of 1, private, MiB",
            "shim of a pod of 1, threads",
        ],
        &usage,
    );
    for name in ["two", "three"] {
        pod.run(name, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    }
    let usage = Usage::at_rest(node, &pod.id).await?;
    sample.memory(
        [
            "shim of a pod of 3, RSS, MiB",
            "shim of a pod of 3, PSS, MiB",
            "shim of a pod of 3, private, MiB",
            "shim of a pod of 3, threads",
        ],
        &usage,
    );

    let mut bytes = 0;
    for program in cx.runtime().programs() {
        bytes += std::fs::metadata(node.host(program))
            .with_context(|| format!("{program} of the node"))?
            .len();
    }
    sample.0.push(("programs on disk, MiB", bytes as f64 / MIB));
    Ok(())
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<(&'static str, [Vec<f64>; 2])>,
}

impl Table {
    fn add(&mut self, runtime: Runtime, sample: Sample) {
        let column = usize::from(runtime != BOTH[0]);
        for (what, value) in sample.0 {
            let at = self.rows.iter().position(|(name, _)| *name == what);
            let at = at.unwrap_or_else(|| {
                self.rows.push((what, Default::default()));
                self.rows.len() - 1
            });
            if let Some(values) = self.rows.get_mut(at).and_then(|r| r.1.get_mut(column)) {
                values.push(value);
            }
        }
    }

    fn print(&self, rounds: usize) {
        println!(
            "Interleaved medians of {rounds}; binaries from {}.\n",
            binaries().display()
        );
        println!("| what | cryo | Go shim + runc | cryo / Go |");
        println!("| --- | ---: | ---: | ---: |");
        for (what, [cryo, runc]) in &self.rows {
            let (cryo, runc) = (median(cryo), median(runc));
            println!("| {what} | {cryo:.1} | {runc:.1} | {:.2} |", cryo / runc);
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
    }
}
