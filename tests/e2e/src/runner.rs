//! A small test runner with libtest's command line and output: `hack/lab` nodes are
//! brought up once for all tests, tests run a few at a time, those that disturb the whole
//! node run alone after the others, and what is skipped or differs says why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::audit::{self, Census};
use crate::context::Context;
use crate::lab::{Lab, Node, make_tool, node_names};
use crate::runtime::Runtime;

type TestFuture = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// How long a test may take, unless it says otherwise: longer than it waits for any one thing, so that
/// it can say what that was.
const LIMIT: Duration = Duration::from_secs(300);

/// The name of the check after all tests.
const AUDIT: &str = "audit::nothing_is_left_behind";

/// One test.
pub struct Test {
    name: &'static str,
    run: Arc<dyn Fn(Context) -> TestFuture + Send + Sync>,
    alone: bool,
    limit: Duration,
    tools: &'static [&'static str],
    systemd: Option<bool>,
    lacking: fn() -> Option<&'static str>,
    difference: Option<Difference>,
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Test").field("name", &self.name).finish()
    }
}

/// How a whole test differs on the peer.
#[derive(Clone, Copy, Debug)]
struct Difference {
    /// Whether it is run there, and has to fail.
    run: bool,
    reason: &'static str,
}

impl Test {
    /// A test that runs beside others.
    pub fn new<F, R>(name: &'static str, run: F) -> Self
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self {
            name,
            run: Arc::new(move |cx| Box::pin(run(cx))),
            alone: false,
            limit: LIMIT,
            tools: &[],
            systemd: None,
            lacking: || None,
            difference: None,
        }
    }

    /// Runs after the others, by itself: it restarts containerd or hunts processes.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// May take this long.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Needs these programs of `hack/lab tools`; where one cannot be had, the test is
    /// ignored with that reason.
    #[must_use]
    pub fn needs(mut self, tools: &'static [&'static str]) -> Self {
        self.tools = tools;
        self
    }

    /// Needs something of this machine; where `lacking` names a reason, the test is ignored with it.
    #[must_use]
    pub fn needs_here(mut self, lacking: fn() -> Option<&'static str>) -> Self {
        self.lacking = lacking;
        self
    }

    /// Needs nodes whose first process is systemd, which those of `hack/vm` are.
    #[must_use]
    pub fn with_systemd(mut self) -> Self {
        self.systemd = Some(true);
        self
    }

    /// Has a meaning only on nodes without systemd, which those of a machine's lab are.
    #[must_use]
    pub fn without_systemd(mut self) -> Self {
        self.systemd = Some(false);
        self
    }

    /// Is run against the peer and has to fail there, for this reason.
    #[must_use]
    pub fn fails_on_runc(mut self, reason: &'static str) -> Self {
        self.difference = Some(Difference { run: true, reason });
        self
    }

    /// Has no meaning against the peer, for this reason.
    #[must_use]
    pub fn not_on_runc(mut self, reason: &'static str) -> Self {
        self.difference = Some(Difference { run: false, reason });
        self
    }
}

/// Makes a [`Test`] of a function under its path.
#[macro_export]
macro_rules! test {
    ($($path:ident)::+) => {
        $crate::runner::Test::new(
            concat!($("::", stringify!($path)),+).trim_start_matches("::"),
            $($path)::+,
        )
    };
}

/// What libtest's command line can say, as far as it makes sense here.
#[derive(Debug, Default)]
struct Arguments {
    filters: Vec<String>,
    skips: Vec<String>,
    exact: bool,
    list: bool,
    threads: Option<usize>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => {
                    (flag.to_owned(), Some(value.to_owned()))
                }
                _ => (word, None),
            };
            match flag.as_str() {
                "--list" => arguments.list = true,
                "--exact" => arguments.exact = true,
                "--skip" => arguments.skips.extend(value.or_else(|| words.next())),
                "--test-threads" => {
                    arguments.threads = value.or_else(|| words.next()).and_then(|n| n.parse().ok());
                }
                "--format" | "--color" | "--logfile" | "-Z" => {
                    if value.is_none() {
                        words.next();
                    }
                }
                other if other.starts_with('-') => {}
                _ => arguments.filters.push(flag),
            }
        }
        arguments
    }

    fn wants(&self, name: &str) -> bool {
        let hit = |wanted: &String| {
            if self.exact {
                name == wanted
            } else {
                name.contains(wanted.as_str())
            }
        };
        (self.filters.is_empty() || self.filters.iter().any(hit)) && !self.skips.iter().any(hit)
    }
}

#[derive(Debug)]
enum Outcome {
    Passed(Duration),
    Failed(anyhow::Error),
    Ignored(String),
}

/// Runs the tests as the command line asks; the process's exit code.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let total = tests.len() + 1;
    let chosen: Vec<Test> = tests
        .into_iter()
        .filter(|t| arguments.wants(t.name))
        .collect();
    if arguments.list {
        for test in &chosen {
            println!("{}: test", test.name);
        }
        if arguments.wants(AUDIT) {
            println!("{AUDIT}: test");
        }
        return ExitCode::SUCCESS;
    }
    let audit = !chosen.is_empty() || arguments.wants(AUDIT);
    let count = chosen.len() + usize::from(audit);
    println!(
        "\nrunning {count} test{}",
        if count == 1 { "" } else { "s" }
    );
    let start = Instant::now();
    let runtime = match Runtime::from_env() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    if let Some(reason) = Lab::missing(runtime) {
        for test in &chosen {
            report.add(test.name, Outcome::Ignored(reason.clone()));
        }
        if audit {
            report.add(AUDIT, Outcome::Ignored(reason));
        }
    } else if audit {
        run_all(chosen, runtime, arguments.threads.unwrap_or(3), &mut report);
    }
    report.print(total - count, start.elapsed(), runtime)
}

fn run_all(tests: Vec<Test>, runtime: Runtime, threads: usize, report: &mut Report) {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let tokio = match built {
        Ok(tokio) => tokio,
        Err(e) => return report.add("lab::up", Outcome::Failed(e.into())),
    };
    tokio.block_on(async {
        let started = Instant::now();
        let names = node_names();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let lab = match Lab::up(&names).await {
            Ok(lab) => Arc::new(lab),
            Err(e) => return report.add("lab::up", Outcome::Failed(e)),
        };
        if let Err(e) = warm_up(runtime, &lab).await {
            report.add("lab::warm_up", Outcome::Failed(e));
        }
        println!(
            "lab up and warm in {:.1} s",
            started.elapsed().as_secs_f64()
        );
        let tests = with_their_nodes(tests, lab.nodes(), report);
        let tests = with_their_tools(tests, report).await;
        let before = census(lab.nodes()).await;
        run_in(&lab, tests, runtime, threads.max(1), report).await;
        let audit = match before {
            Ok(before) => audit_all(lab.nodes(), &before, runtime).await,
            Err(e) => Err(e),
        };
        match audit {
            Ok(differences) => report.take(AUDIT, differences, Outcome::Passed(Duration::ZERO)),
            Err(e) => report.add(AUDIT, Outcome::Failed(e)),
        }
        if let Some(lab) = Arc::into_inner(lab)
            && let Err(e) = lab.down()
        {
            report.add("lab::down", Outcome::Failed(e));
        }
    });
    tokio.shutdown_background();
}

/// Tests for other nodes or machines than these are reported as ignored; the others come back.
fn with_their_nodes(tests: Vec<Test>, nodes: &[Node], report: &mut Report) -> Vec<Test> {
    let systemd = nodes.iter().all(Node::has_systemd);
    let mut able = Vec::new();
    for test in tests {
        let reason = match test.systemd {
            Some(false) if systemd => Some("the nodes have systemd; it is run by `make test`"),
            Some(true) if !systemd => {
                Some("needs a node with systemd and cgroup v2 alone; it is run by `make test-vm`")
            }
            _ => None,
        };
        match reason {
            Some(reason) => report.add(test.name, Outcome::Ignored(reason.into())),
            None => able.push(test),
        }
    }
    able
}

/// Makes the tools that the tests need. Those whose tools cannot be had are reported as
/// ignored; the others come back.
async fn with_their_tools(tests: Vec<Test>, report: &mut Report) -> Vec<Test> {
    let mut reasons: BTreeMap<&str, Option<String>> = BTreeMap::new();
    for tool in tests.iter().flat_map(|test| test.tools) {
        if !reasons.contains_key(tool) {
            let made = make_tool(tool).await;
            reasons.insert(tool, made.err().map(|e| format!("{e:#}")));
        }
    }
    let mut able = Vec::new();
    for test in tests {
        let lacking = (test.lacking)().map(str::to_owned);
        let mut missing = test.tools.iter().filter_map(|t| reasons.get(t)?.clone());
        match lacking.or_else(|| missing.next()) {
            Some(reason) => report.add(test.name, Outcome::Ignored(reason)),
            None => able.push(test),
        }
    }
    able
}

/// Runs a container and a pod on every node, so that the folders and cgroups that stay
/// for the next ones are there before the first census.
async fn warm_up(runtime: Runtime, lab: &Arc<Lab>) -> anyhow::Result<()> {
    let cx = Context::new("warm_up", runtime, Arc::clone(lab));
    let mut result = Ok(());
    for node in lab.nodes() {
        let (container, pod) =
            tokio::join!(cx.shell(node, "true"), cx.pod(node, runtime.handler()));
        if let Ok((container, _)) = &container {
            container.finish().await.ok();
        }
        result = result.and(container.map(|_| ())).and(pod.map(|_| ()));
    }
    result.and(cx.clean_up().await)
}

async fn census(nodes: &[Node]) -> anyhow::Result<Vec<Census>> {
    let mut all = Vec::new();
    for node in nodes {
        all.push(Census::take(node).await?);
    }
    Ok(all)
}

/// Fails when something was left behind; what the peer is known to leave comes back.
async fn audit_all(
    nodes: &[Node],
    before: &[Census],
    runtime: Runtime,
) -> anyhow::Result<Vec<String>> {
    const OF_RUNC: [(&str, &str); 2] = [
        (
            "file /run/containerd/s/",
            "the Go shim's delete leaves the socket of a shim that was killed",
        ),
        (
            "file /tmp/.criu.mntns.",
            "runc lets CRIU begin with images that name no mount or pid namespace: its folder stays",
        ),
    ];
    let mut lines = Vec::new();
    let mut known = BTreeSet::new();
    for (node, before) in nodes.iter().zip(before) {
        for left in audit::left_behind(node, before).await? {
            let of_runc = OF_RUNC.iter().find(|(what, _)| left.starts_with(what));
            match of_runc.filter(|_| runtime == Runtime::Runc) {
                Some((_, why)) => known.extend([(*why).to_owned()]),
                None => lines.push(format!("{}: {left}", node.name())),
            }
        }
    }
    if lines.is_empty() {
        return Ok(known.into_iter().collect());
    }
    Err(anyhow!("left behind:\n  {}", lines.join("\n  ")))
}

async fn run_in(
    lab: &Arc<Lab>,
    tests: Vec<Test>,
    runtime: Runtime,
    threads: usize,
    report: &mut Report,
) {
    let (alone, beside): (Vec<_>, Vec<_>) = tests.into_iter().partition(|t| t.alone);
    let places = Arc::new(Semaphore::new(threads));
    let mut running = JoinSet::new();
    for test in beside {
        let lab = Arc::clone(lab);
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire_owned().await;
            one(&test, runtime, &lab).await
        });
    }
    while let Some(done) = running.join_next().await {
        match done {
            Ok((name, differences, outcome)) => report.take(name, differences, outcome),
            Err(e) => report.add("runner", Outcome::Failed(e.into())),
        }
    }
    for test in alone {
        let (name, differences, outcome) = one(&test, runtime, lab).await;
        report.take(name, differences, outcome);
    }
}

async fn one(
    test: &Test,
    runtime: Runtime,
    lab: &Arc<Lab>,
) -> (&'static str, Vec<String>, Outcome) {
    let difference = test.difference.filter(|_| runtime == Runtime::Runc);
    if let Some(Difference { run: false, reason }) = difference {
        return (
            test.name,
            vec![reason.into()],
            Outcome::Ignored(format!("no meaning with runc: {reason}")),
        );
    }
    let cx = Context::new(test.name, runtime, Arc::clone(lab));
    let start = Instant::now();
    let logs = log_lengths(lab.nodes());
    // As a task of its own, so that a panic ends the test and not the run.
    let task = tokio::spawn((test.run)(cx.clone()));
    let abort = task.abort_handle();
    let mut result = match tokio::time::timeout(test.limit, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(e)) => Err(anyhow!("panicked: {e}")),
        Err(_) => {
            abort.abort();
            Err(anyhow!("not done within {} s", test.limit.as_secs()))
        }
    };
    let took = start.elapsed();
    let cleaned = cx.clean_up().await;
    if result.is_ok() {
        result = cleaned;
    }
    let mut differences = cx.differences();
    let outcome = match (result, difference) {
        (Ok(()), None) => Outcome::Passed(took),
        (Ok(()), Some(known)) => Outcome::Failed(anyhow!(
            "known to fail with runc and passed: {}",
            known.reason
        )),
        (Err(_), Some(known)) => {
            differences.push(known.reason.into());
            Outcome::Ignored(format!("fails with runc, as known: {}", known.reason))
        }
        (Err(e), None) => Outcome::Failed(anyhow!(
            "{e:#}\n{}",
            log_since(lab.nodes(), &logs).join("\n")
        )),
    };
    (test.name, differences, outcome)
}

fn log_lengths(nodes: &[Node]) -> Vec<u64> {
    nodes
        .iter()
        .map(|node| std::fs::metadata(node.log()).map_or(0, |m| m.len()))
        .collect()
}

/// Lines of containerd's log that say nothing about a failed test.
const NOISE: [&str; 4] = [
    "level=info",
    "level=debug",
    // CRI looks at checkpoint images of `ctr`.
    "Failed to handle event name",
    // The Go shim's delete after a create that was refused.
    "failed to read init pid file",
];

/// The last lines of containerd's logs since then that are warnings or errors.
fn log_since(nodes: &[Node], lengths: &[u64]) -> Vec<String> {
    let mut lines = Vec::new();
    for (node, length) in nodes.iter().zip(lengths) {
        let Ok(bytes) = std::fs::read(node.log()) else {
            continue;
        };
        let start = usize::try_from(*length).unwrap_or(0).min(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned();
        let notable: Vec<&str> = text
            .lines()
            .filter(|line| !NOISE.iter().any(|noise| line.contains(noise)))
            .collect();
        let skipped = notable.len().saturating_sub(12);
        for line in notable.into_iter().skip(skipped) {
            let short: String = line.chars().take(600).collect();
            lines.push(format!("  {}: {short}", node.name()));
        }
    }
    lines
}

#[derive(Debug, Default)]
struct Report {
    passed: usize,
    ignored: usize,
    failed: Vec<(&'static str, anyhow::Error)>,
    differences: BTreeMap<&'static str, Vec<String>>,
}

impl Report {
    fn take(&mut self, name: &'static str, differences: Vec<String>, outcome: Outcome) {
        if !differences.is_empty() {
            self.differences.insert(name, differences);
        }
        self.add(name, outcome);
    }

    fn add(&mut self, name: &'static str, outcome: Outcome) {
        match outcome {
            Outcome::Passed(took) => {
                println!("test {name} ... ok ({:.2}s)", took.as_secs_f64());
                self.passed += 1;
            }
            Outcome::Ignored(reason) => {
                println!("test {name} ... ignored, {reason}");
                self.ignored += 1;
            }
            Outcome::Failed(e) => {
                println!("test {name} ... FAILED");
                self.failed.push((name, e));
            }
        }
    }

    fn print(self, filtered: usize, took: Duration, runtime: Runtime) -> ExitCode {
        if !self.failed.is_empty() {
            println!("\nfailures:");
            for (name, error) in &self.failed {
                println!("\n---- {name} ----\n{error:#}");
            }
        }
        if !self.differences.is_empty() {
            println!("\nknown differences of {}:", runtime.name());
            for (name, reasons) in &self.differences {
                for reason in reasons {
                    println!("    {name}: {reason}");
                }
            }
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {filtered} filtered out; \
             finished in {:.2}s\n",
            if self.failed.is_empty() {
                "ok"
            } else {
                "FAILED"
            },
            self.passed,
            self.failed.len(),
            self.ignored,
            took.as_secs_f64()
        );
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Arguments {
        Arguments::parse(words.iter().map(|&w| w.to_owned()))
    }

    #[test]
    fn filters_are_parts_of_names_unless_exact() {
        assert!(parse(&["exit"]).wants("lifecycle::exit_codes"));
        assert!(!parse(&["--exact", "exit"]).wants("lifecycle::exit_codes"));
        assert!(!parse(&["--skip", "exit"]).wants("lifecycle::exit_codes"));
        assert!(parse(&[]).wants("anything"));
    }

    #[test]
    fn values_of_flags_are_not_filters() {
        let arguments = parse(&["--test-threads", "1", "--format=pretty", "--nocapture"]);
        assert_eq!(arguments.threads, Some(1));
        assert!(arguments.filters.is_empty());
    }
}
