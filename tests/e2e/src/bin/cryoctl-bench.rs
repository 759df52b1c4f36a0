//! `cryoctl` beside Debian's checkpointctl on the checkpoint of a process with much memory, in one
//! run on one lab node: a Markdown table. `make bench-cryoctl`, or `cargo run --release -p cryo-e2e
//! --bin cryoctl-bench [MIB] [ROUNDS] [LIMIT_S] [CASE...]`, as root; a case is part of a row's name.
//!
//! Rounds alternate between the two. The first one warms both up and is not counted, but where
//! checkpointctl takes minutes: that is run once. A command that takes longer than the limit is
//! ended and counted with the limit: its ratio is then a lower bound.
//!
//! A hexdump's file is on a tmpfs of huge pages: it is five times the memory's size, and elsewhere
//! what is measured is how fast the machine finds pages for it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Lab, Node, binaries};
use cryo_e2e::reference::older_archive;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::PYTHON;
use serde_json::Value;

/// The bench's own node.
const NODE: &str = "e2e-bench-ctl";

const PROGRAMS: [&str; 2] = ["cryoctl", "checkpointctl"];

/// What is searched for: it stands in the memory once, and in no argument.
const MARK: &str = "NEEDLE_IN_THE_HAYSTACK";

/// Half of the memory is random, a quarter is text, a quarter zeros that were written.
const PROGRAM: &str = "\
import os, sys, time
mib = int(sys.argv[1])
text = (b'the quick brown fox jumps over the lazy dog; ' * 23302)[:1 << 20]
heap = bytearray(mib << 20)
for i in range(mib):
    kind = i % 4
    heap[i << 20:(i + 1) << 20] = os.urandom(1 << 20) if kind < 2 else text if kind == 2 else bytes(1 << 20)
mark = bytes(reversed(b'KCATSYAH_EHT_NI_ELDEEN'))
at = (mib * 7 // 10 << 20) + 500
heap[at:at + len(mark)] = mark
del mark
print(1, flush=True)
time.sleep(100000)
";

/// Runs a command in the node and prints what it took: exit code (none if it was ended), seconds,
/// seconds of the processors, peak resident KiB.
const MEASURE: &str = "\
import json, os, subprocess, sys, time
limit = float(sys.argv[1])
began = time.monotonic()
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
ended = False
while True:
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid:
        break
    if not ended and time.monotonic() - began > limit:
        child.kill()
        ended = True
    time.sleep(0.0005)
seconds = time.monotonic() - began
code = None if ended else os.waitstatus_to_exitcode(status)
print(json.dumps([code, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
";

struct Case {
    what: &'static str,
    arguments: &'static [&'static str],
    /// checkpointctl takes minutes: it is run once.
    once: bool,
}

/// `OUTPUT` is a file on a tmpfs.
const CASES: [Case; 7] = [
    Case {
        what: "show",
        arguments: &["show"],
        once: false,
    },
    Case {
        what: "inspect --all",
        arguments: &["inspect", "--all"],
        once: false,
    },
    Case {
        what: "memparse (sizes)",
        arguments: &["memparse"],
        once: false,
    },
    Case {
        what: "memparse --search, a literal",
        arguments: &["memparse", "-p", "1", "-s", MARK],
        once: false,
    },
    Case {
        what: "memparse --search-regex",
        arguments: &["memparse", "-p", "1", "-r", "NEEDLE_[A-Z]+_THE_HAY[A-Z]+"],
        once: false,
    },
    Case {
        what: "hexdump to stdout",
        arguments: &["memparse", "-p", "1"],
        once: true,
    },
    Case {
        what: "hexdump to a file",
        arguments: &["memparse", "-p", "1", "-o", "OUTPUT"],
        once: true,
    },
];

#[derive(Debug)]
struct Settings {
    mib: u64,
    rounds: usize,
    limit_s: u64,
    cases: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut number = |default: u64| -> anyhow::Result<u64> {
        let word = words.next();
        word.map_or(Ok(default), |word| {
            word.parse()
                .context("usage: cryoctl-bench [MIB] [ROUNDS] [LIMIT_S] [CASE...]")
        })
    };
    let settings = Settings {
        mib: number(1024)?,
        rounds: usize::try_from(number(3)?)?,
        limit_s: number(900)?,
        cases: words.collect(),
    };
    if let Some(reason) = Lab::missing(Runtime::Cryo) {
        anyhow::bail!(reason);
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(&settings))
}

async fn run(settings: &Settings) -> anyhow::Result<()> {
    let lab = Arc::new(Lab::up(&[NODE]).await?);
    let cx = Context::new("bench-ctl", Runtime::Cryo, Arc::clone(&lab));
    let measured = measure(&cx, settings).await;
    let cleaned = cx.clean_up().await;
    drop(cx);
    measured?;
    cleaned?;
    if let Some(lab) = Arc::into_inner(lab) {
        lab.down()?;
    }
    Ok(())
}

async fn measure(cx: &Context, settings: &Settings) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let mib = settings.mib.to_string();
    let container = pod
        .create("memory", PYTHON, &["python3", "-c", PROGRAM, &mib])
        .await?;
    container.start().await?;
    let end = Instant::now() + Duration::from_secs(300);
    while container.numbers().is_empty() {
        ensure!(Instant::now() < end, "the program was not ready in 300 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let folder = cx.folder(node, "archive")?;
    let archive = format!("{folder}/checkpoint.tar");
    container.cri.checkpoint(&container.id, &archive).await?;
    container.cri.stop(&container.id, 0).await?;
    let older = older_archive(node, &archive, &folder).await?;
    node.exec(&["rm", &archive]).await?.success()?;
    let output = format!("{}/hexdump", cx.tmpfs(node, "huge=always").await?);

    println!(
        "{} MiB; medians of {}, hexdumps of checkpointctl once; binaries from {}.\n",
        settings.mib,
        settings.rounds,
        binaries().display()
    );
    println!(
        "| what | cryoctl, s | checkpointctl, s | times faster | processor time, times less | cryoctl, peak MiB | checkpointctl, peak MiB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let wanted = |case: &&Case| {
        let mut words = settings.cases.iter();
        settings.cases.is_empty() || words.any(|word| case.what.contains(word.as_str()))
    };
    for case in CASES.iter().filter(wanted) {
        let row = one_case(node, case, settings, &older, &output).await;
        node.exec(&["rm", "-f", &output]).await?.success()?;
        println!("{}", row?);
    }
    Ok(())
}

/// What one command took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    ended: bool,
    seconds: f64,
    processor_s: f64,
    peak_mib: f64,
}

async fn one_case(
    node: &Node,
    case: &Case,
    settings: &Settings,
    archive: &str,
    output: &str,
) -> anyhow::Result<String> {
    let mut taken: [Vec<Taken>; 2] = Default::default();
    for round in 0..=settings.rounds {
        for index in [round % 2, 1 - round % 2] {
            let Some(program) = PROGRAMS.get(index) else {
                continue;
            };
            let single = case.once && *program != "cryoctl";
            if single && round > 0 {
                continue;
            }
            let mut command = vec![*program];
            command.extend(case.arguments.iter().map(|word| match *word {
                "OUTPUT" => output,
                word => word,
            }));
            command.push(archive);
            eprint!("\r\x1b[K{}, round {round}: {program}", case.what);
            let one = time(node, &command, settings.limit_s).await?;
            if let Some(taken) = taken.get_mut(index)
                && (round > 0 || single)
            {
                taken.push(one);
            }
        }
    }
    eprint!("\r\x1b[K");
    let [ours, theirs] = taken;
    let ended = theirs.iter().any(|one| one.ended);
    let of = |all: &[Taken], what: fn(&Taken) -> f64| median(all.iter().map(what).collect());
    let [our_s, their_s] = [&ours, &theirs].map(|all| of(all, |one| one.seconds));
    let [our_cpu, their_cpu] = [&ours, &theirs].map(|all| of(all, |one| one.processor_s));
    let [our_peak, their_peak] = [&ours, &theirs].map(|all| of(all, |one| one.peak_mib));
    let more = if ended { "> " } else { "" };
    Ok(format!(
        "| {} | {our_s:.3} | {more}{their_s:.3} | {more}{:.0} | {more}{:.0} | {our_peak:.1} | {their_peak:.1} |",
        case.what,
        their_s / our_s,
        their_cpu / our_cpu.max(0.001),
    ))
}

async fn time(node: &Node, command: &[&str], limit_s: u64) -> anyhow::Result<Taken> {
    let limit = limit_s.to_string();
    let mut whole = vec!["python3", "-c", MEASURE, &limit];
    whole.extend(command);
    let printed = node.exec(&whole).await?.success()?;
    let values: Vec<Value> = serde_json::from_str(printed.trim())?;
    let number = |index: usize| {
        values
            .get(index)
            .and_then(Value::as_f64)
            .context("no number")
    };
    let code = values.first().and_then(Value::as_i64);
    ensure!(code.is_none_or(|code| code == 0), "{command:?}: {printed}");
    Ok(Taken {
        ended: code.is_none(),
        seconds: number(1)?,
        processor_s: number(2)?,
        peak_mib: number(3)? / 1024.0,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
