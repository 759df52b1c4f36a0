//! A soak: many pods' lives with everything that can happen to them, several at a time, in
//! one lab node, and then the question whether anything grew or was left behind.
//! `make soak`, or `cryo-soak [--pods N] [--seed S] [--jobs J]`, as root.
//!
//! The plan is drawn from the seed alone ([`plan`]), so a failure can be looked at again.
//! Two things are compared: the node before and after ([`cryo_e2e::audit`]), and the shim of
//! a pod that lives through all of it, after each quarter ([`growth`]).
#![forbid(unsafe_code)]

mod growth;
mod life;
mod plan;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use cryo_e2e::audit::{self, Census};
use cryo_e2e::context::Context;
use cryo_e2e::lab::Lab;
use cryo_e2e::runtime::Runtime;
use tokio::task::JoinSet;

use crate::growth::Reading;
use crate::life::World;
use crate::plan::{End, Life, Script, Step, Stop, Work};

/// The soak's own node.
const NODE: &str = "soak";

/// How often the shim is read.
const WINDOWS: usize = 4;

#[derive(Debug)]
struct Arguments {
    pods: usize,
    seed: u64,
    jobs: usize,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut arguments = Self {
            pods: 200,
            seed: now,
            jobs: 4,
        };
        while let Some(flag) = words.next() {
            let value: u64 = words
                .next()
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("{flag} needs a number"))?;
            match flag.as_str() {
                "--pods" => arguments.pods = usize::try_from(value)?,
                "--seed" => arguments.seed = value,
                "--jobs" => arguments.jobs = usize::try_from(value)?.max(1),
                _ => bail!("there is no {flag}: cryo-soak [--pods N] [--seed S] [--jobs J]"),
            }
        }
        Ok(arguments)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let runtime = Runtime::from_env()?;
    if let Some(reason) = Lab::missing(runtime) {
        bail!("soak: {reason}");
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(soak(&arguments, runtime))
}

async fn soak(arguments: &Arguments, runtime: Runtime) -> anyhow::Result<ExitCode> {
    let Arguments { pods, seed, jobs } = *arguments;
    println!("soak: {pods} pods' lives, {jobs} at a time; again with --seed {seed} --pods {pods}");
    let start = Instant::now();
    let lab = Arc::new(Lab::up(&[NODE]).await?);
    let node = lab.node(0)?;
    warm_up(runtime, &lab).await.context("warm up")?;
    let before = Census::take(node).await?;

    let cx = Context::new("soak", runtime, Arc::clone(&lab));
    let world = Arc::new(World::new(&cx).await?);
    let mut readings = vec![Reading::take(node, world.pod(), 0, None).await?];
    let mut failures = Vec::new();
    let lives = plan::lives(seed, pods);
    let mut over = 0;
    for window in lives.chunks(pods.div_ceil(WINDOWS).max(1)) {
        failures.extend(all(&world, runtime, &lab, window, over, jobs).await);
        over += window.len();
        readings.push(Reading::take(node, world.pod(), over, readings.first()).await?);
        println!(
            "soak: {over} of {pods} lives, {} failed, {} s",
            failures.len(),
            start.elapsed().as_secs()
        );
    }
    let done = world.done();
    drop(world);
    if let Err(e) = cx.clean_up().await {
        failures.push(format!("the long-lived pod: {e:#}"));
    }
    let mut grown = growth::grown(&readings);
    let left = audit::left_behind(node, &before).await?;
    grown.extend(left.into_iter().map(|left| format!("left behind: {left}")));

    println!("\n{:<32} {:>7}", "what was done", "times");
    for (what, times) in &done {
        println!("{what:<32} {times:>7}");
    }
    println!(
        "\n{:<32} {:>7} {:>7} {:>7} {:>7}",
        "the long-lived shim after", "files", "threads", "private", "RSS KiB"
    );
    for Reading { lives, usage } in &readings {
        println!(
            "{:<32} {:>7} {:>7} {:>7} {:>7}",
            format!("{lives} lives"),
            usage.fds.len(),
            usage.threads,
            usage.private_kib,
            usage.rss_kib
        );
    }
    for failure in &failures {
        println!("\nfailed: {failure}");
    }
    println!("\ngrown or left behind: {}", grown.len());
    for line in &grown {
        println!("    {line}");
    }
    let failed = failures.len() + grown.len();
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; finished in {:.0} s (seed {seed})\n",
        if failed == 0 { "ok" } else { "FAILED" },
        pods.saturating_sub(failures.len()),
        start.elapsed().as_secs_f64()
    );
    if let Some(lab) = Arc::into_inner(lab) {
        lab.down()?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Lives these lives; why those failed that did.
async fn all(
    world: &Arc<World>,
    runtime: Runtime,
    lab: &Arc<Lab>,
    lives: &[Life],
    first: usize,
    jobs: usize,
) -> Vec<String> {
    let mut failures = Vec::new();
    let mut running = JoinSet::new();
    let mut waiting = lives.iter().cloned().zip(first..);
    loop {
        while running.len() < jobs
            && let Some((life, number)) = waiting.next()
        {
            let (world, lab) = (Arc::clone(world), Arc::clone(lab));
            running.spawn(async move { one(&world, runtime, lab, number, &life).await });
        }
        match running.join_next().await {
            None => return failures,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(e))) => {
                println!("soak: {e:#}");
                failures.push(format!("{e:#}"));
            }
            Some(Err(e)) => failures.push(format!("a life panicked: {e}")),
        }
    }
}

async fn one(
    world: &Arc<World>,
    runtime: Runtime,
    lab: Arc<Lab>,
    number: usize,
    life: &Life,
) -> anyhow::Result<()> {
    let cx = Context::new(&format!("life-{number}"), runtime, lab);
    let lived = life::live(world, &cx, life).await;
    let cleaned = world.undisturbed(cx.clean_up()).await;
    lived
        .and(cleaned)
        .with_context(|| format!("life {number}, {life:?}"))
}

/// A life with everything in it, so that what stays for the next ones is there before the
/// first census.
async fn warm_up(runtime: Runtime, lab: &Arc<Lab>) -> anyhow::Result<()> {
    let cx = Context::new("warm-up", runtime, Arc::clone(lab));
    let world = Arc::new(World::new(&cx).await?);
    let everything = Script {
        work: Work::Counter,
        steps: vec![Step::Exec, Step::ExecStdin, Step::Restore],
        stop: Stop::AtOnce,
    };
    let life = Life {
        restart: None,
        containers: vec![everything],
        guest: None,
        visit: Vec::new(),
        end: End::Stopped,
    };
    let lived = one(&world, runtime, Arc::clone(lab), 0, &life).await;
    drop(world);
    lived.and(cx.clean_up().await).map_err(|e| anyhow!("{e:#}"))
}
