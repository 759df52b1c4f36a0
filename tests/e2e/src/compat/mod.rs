//! Every kind of container restores: cases that make objects in a container, checkpoint it with
//! exit, restore it as another container, and look at each object there.
//!
//! A case is a Python program (`programs/`, with `driver.py` in front) and the spec it runs under
//! (`cases.rs`). Each generator of the program is a row: an object, and what is looked at after the
//! restore. A row that is not kept with cryo needs its reason in the case. `docs/compatibility.md`
//! is [`page`] of a run with cryo and one with the peer.

mod cases;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

pub use cases::CASES;

use crate::containerd::CheckpointOptions;
use crate::context::{Container, Context, Output};
use crate::crictl::Crictl;
use crate::lab::Node;
use crate::patience::PATIENCE;
use crate::workload::{BUSYBOX, PYTHON};

const DRIVER: &str = include_str!("programs/driver.py");

/// The signal that has a program look at its objects.
const USR1: u32 = 10;

/// One container, with objects in it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The test's name.
    pub name: &'static str,
    /// The page's name of it.
    pub title: &'static str,
    program: &'static str,
    /// How it is made.
    pub kind: Kind,
    spec: fn(&mut Value, &Ground),
    open_tcp: bool,
    file_locks: bool,
    terminal: bool,
    /// Another container runs beside it, whose namespaces the spec can name.
    neighbour: bool,
    /// An exec runs during the checkpoint.
    exec: bool,
    /// Objects that are not kept with cryo, and why.
    known: &'static [(&'static str, &'static str)],
}

/// How a container is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Through containerd's own API; the restored one has a root file system made anew.
    Task,
    /// Through crictl, with the mounts that the kubelet makes; the archive brings the changes of
    /// the root file system along.
    Pod,
}

/// What a container's spec is made of.
#[derive(Debug)]
pub struct Ground {
    /// Whether this is the container that is checkpointed, not the restored one.
    first: bool,
    /// A folder of the node: `which` and `inner/which` say `first` or `second`, all else in it
    /// the restored one has from the first.
    folder: String,
    /// The first process of the neighbour, 0 without one.
    neighbour: u32,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it was.
    Kept,
    /// The checkpoint was refused, or failed.
    NotCheckpointed(String),
    /// The restore was refused, or failed.
    NotRestored(String),
    /// The container runs, the object is not as it was.
    Lost(String),
}

/// An object of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    case: &'static str,
    object: String,
    checked: String,
    outcome: Outcome,
}

impl Case {
    /// The program, with all of its objects or one alone.
    fn text(&self, only: Option<&str>) -> String {
        // JSON's strings are Python's.
        let only = Value::from(only.unwrap_or_default());
        format!("{DRIVER}\n\n{}\n\nmain({only})\n", self.program)
    }

    /// The objects of its program, with what is looked at.
    fn objects(&self) -> Vec<(String, String)> {
        self.program
            .lines()
            .filter_map(|line| line.strip_prefix("    \"")?.strip_suffix('"'))
            .filter_map(|row| row.split_once(" | "))
            .map(|(object, checked)| (object.into(), checked.into()))
            .collect()
    }

    fn rows(&self, outcome: impl Fn(&str) -> Outcome) -> Vec<Row> {
        let objects = self.objects().into_iter();
        objects
            .map(|(object, checked)| Row {
                case: self.title,
                outcome: outcome(&object),
                object,
                checked,
            })
            .collect()
    }

    /// The rows as the program's output has them.
    fn judged(&self, output: &str) -> Vec<Row> {
        self.rows(|object| {
            for line in output.lines() {
                let said = |word: &str| {
                    line.trim_end()
                        .strip_prefix(word)?
                        .strip_prefix(object)?
                        .strip_prefix(" | ")
                };
                if said("kept ").is_some() {
                    return Outcome::Kept;
                }
                if let Some(rest) = said("lost ") {
                    let why = rest.split_once(" | ").map_or(rest, |(_, why)| why);
                    return Outcome::Lost(why.into());
                }
            }
            Outcome::Lost("its program did not look at it".into())
        })
    }
}

/// Runs a case, with all of its objects in one container; its rows.
///
/// # Errors
/// When the container does not come as far as its checkpoint.
pub async fn run(cx: &Context, case: &Case) -> anyhow::Result<Vec<Row>> {
    run_with(cx, case, None).await
}

/// Runs a case with each of its objects in a container of its own, for where they cannot be
/// checkpointed or restored together; its rows.
///
/// # Errors
/// As [`run`].
pub async fn run_one_by_one(cx: &Context, case: &Case) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (object, _) in case.objects() {
        let ran = run_with(cx, case, Some(&object)).await?;
        rows.extend(ran.into_iter().filter(|row| row.object == object));
    }
    Ok(rows)
}

/// Whether the container of these rows was not checkpointed, or not restored.
#[must_use]
pub fn is_whole_failure(rows: &[Row]) -> bool {
    rows.iter().all(|row| {
        matches!(
            row.outcome,
            Outcome::NotCheckpointed(_) | Outcome::NotRestored(_)
        )
    })
}

async fn run_with(cx: &Context, case: &Case, only: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let (neighbour, _output) = match case.neighbour {
        true => {
            let script = "while :; do sleep 0.1; done";
            let container = cx
                .container(cx.a()?, BUSYBOX, &["sh", "-c", script])
                .await?;
            let output = container.create().await?;
            (container.start().await?, Some(output))
        }
        false => (0, None),
    };
    match case.kind {
        Kind::Task => run_task(cx, case, neighbour, only).await,
        Kind::Pod => run_pod(cx, case, only).await,
    }
}

async fn run_task(
    cx: &Context,
    case: &Case,
    neighbour: u32,
    only: Option<&str>,
) -> anyhow::Result<Vec<Row>> {
    let node = cx.a()?;
    let first = Ground {
        first: true,
        folder: first_folder(cx, node)?,
        neighbour,
    };
    let (old, output) = task(cx, case, &case.text(only), &first, None).await?;
    old.start().await?;
    output
        .until(|text| has_line(text, "ready").then_some(()))
        .await?;
    let exec = match case.exec {
        true => Some(
            old.exec("during", "sleep 1000; : of-an-exec", false)
                .await?,
        ),
        false => None,
    };
    let image = cx.folder(node, "image")?;
    let options = CheckpointOptions {
        exit: true,
        open_tcp: case.open_tcp,
        file_locks: case.file_locks,
        image_path: image.clone(),
        ..Default::default()
    };
    if let Err(error) = old.api.checkpoint(&old.id, options).await {
        return Ok(case.rows(|_| Outcome::NotCheckpointed(error.message().into())));
    }
    if exec.is_some() {
        old.finish_exec("during").await?;
    }
    old.finish().await?;
    let second = Ground {
        first: false,
        folder: second_folder(cx, node, &first.folder).await?,
        neighbour,
    };
    let (new, output) = task(cx, case, &case.text(only), &second, Some(&image)).await?;
    if let Err(error) = new.api.start(&new.id).await {
        return Ok(case.rows(|_| Outcome::NotRestored(error.message().into())));
    }
    new.api.kill(&new.id, USR1).await.context("kill")?;
    let done = output.until(|text| has_line(text, "done").then_some(()));
    if let Err(error) = done.await {
        return Ok(case.rows(|_| Outcome::Lost(format!("{error:#}"))));
    }
    new.finish().await?;
    Ok(case.judged(&output.complete().await?))
}

/// A container with its task created.
async fn task(
    cx: &Context,
    case: &Case,
    text: &str,
    ground: &Ground,
    image: Option<&str>,
) -> anyhow::Result<(Container, Output)> {
    let command = ["python3", "-c", text];
    let container = cx.container(cx.a()?, PYTHON, &command).await?;
    container
        .edit_spec(|spec| (case.spec)(spec, ground))
        .await?;
    let output = Output::open(&container.node, &container.id)?;
    let mut request = container.create_request(image).await?;
    request.stdout = output.path("stdout");
    if case.terminal {
        request.terminal = true;
    } else {
        request.stderr = output.path("stderr");
    }
    container.api.create(request).await.context("create")?;
    Ok((container, output))
}

async fn run_pod(cx: &Context, case: &Case, only: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let node = cx.a()?;
    let crictl = Crictl::new(cx, node);
    let first = Volumes::first(cx, node).await?;
    let pod = crictl.pod(first.pod_config("first")).await?;
    let text = case.text(only);
    let id = pod
        .start("app", PYTHON, &["python3", "-c", &text], first.mounts())
        .await?;
    logged(&crictl, &id, "ready").await?;
    let archive = format!("{}/checkpoint.tar", cx.folder(node, "archive")?);
    let exported = crictl
        .run(&["checkpoint", "--export", &archive, &id])
        .await?;
    if exported.code != 0 {
        let said = exported.failure()?;
        return Ok(case.rows(|_| Outcome::NotCheckpointed(said.clone())));
    }
    crictl.output(&["stop", "--timeout", "0", &id]).await?;
    let second = first.second(cx, node).await?;
    let pod = crictl.pod(second.pod_config("second")).await?;
    let id = match pod.start("app", &archive, &[], second.mounts()).await {
        Ok(id) => id,
        Err(error) => return Ok(case.rows(|_| Outcome::NotRestored(format!("{error:#}")))),
    };
    // The program ends on it, and with its pid namespace sometimes `kill` before that has returned:
    // whether the signal came is told by the log, not by the exit code.
    let killed = crictl
        .run(&["exec", "-s", &id, "kill", "-USR1", "1"])
        .await?;
    match logged(&crictl, &id, "done").await {
        Ok(logs) => Ok(case.judged(&logs)),
        Err(error) => Ok(case.rows(|_| Outcome::Lost(format!("{error:#}; {}", killed.stderr)))),
    }
}

/// The volumes of a pod: on disk, a service account's secret, and one in memory.
struct Volumes {
    folder: String,
    secret: String,
    memory: String,
}

impl Volumes {
    async fn first(cx: &Context, node: &Node) -> anyhow::Result<Self> {
        let volumes = Self {
            folder: first_folder(cx, node)?,
            secret: cx.small_disk(node, "1m").await?,
            memory: cx.small_disk(node, "1m").await?,
        };
        volumes.mark(node, "first")?;
        std::fs::create_dir(node.host(&volumes.folder).join("disk"))?;
        std::fs::write(node.host(&volumes.folder).join("termination-log"), "")?;
        Ok(volumes)
    }

    async fn second(&self, cx: &Context, node: &Node) -> anyhow::Result<Self> {
        let volumes = Self {
            folder: second_folder(cx, node, &self.folder).await?,
            secret: cx.small_disk(node, "1m").await?,
            memory: cx.small_disk(node, "1m").await?,
        };
        volumes.mark(node, "second")?;
        copy(node, &self.memory, &volumes.memory).await?;
        Ok(volumes)
    }

    fn mark(&self, node: &Node, which: &str) -> anyhow::Result<()> {
        let token = node.host(&self.secret).join("token");
        Ok(std::fs::write(token, format!("{which}\n"))?)
    }

    fn pod_config(&self, which: &str) -> Value {
        json!({
            "hostname": format!("{which}-host"),
            "dns_config": { "searches": [format!("{which}.example")] },
        })
    }

    fn mounts(&self) -> Value {
        let mount = |path: &str, source: String, readonly: bool| {
            json!({
                "container_path": path, "host_path": source, "readonly": readonly,
            })
        };
        let folder = &self.folder;
        json!({ "mounts": [
            mount("/etc/hosts", format!("{folder}/which"), false),
            mount("/dev/termination-log", format!("{folder}/termination-log"), false),
            mount("/var/run/secrets", self.secret.clone(), true),
            mount("/disk", format!("{folder}/disk"), false),
            mount("/memory", self.memory.clone(), false),
        ] })
    }
}

/// Waits until a container's log has this line; the log.
async fn logged(crictl: &Crictl, id: &str, line: &str) -> anyhow::Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let logs = crictl.output(&["logs", id]).await?;
        if has_line(&logs, line) {
            return Ok(logs);
        }
        ensure!(
            Instant::now() < end,
            "no {line:?} in the log of {id}: {logs}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| line.trim_end() == wanted)
}

fn first_folder(cx: &Context, node: &Node) -> anyhow::Result<String> {
    let folder = cx.folder(node, "first")?;
    std::fs::create_dir(node.host(&folder).join("inner"))?;
    mark(node, &folder, "first")?;
    Ok(folder)
}

async fn second_folder(cx: &Context, node: &Node, first: &str) -> anyhow::Result<String> {
    let folder = cx.folder(node, "second")?;
    copy(node, first, &folder).await?;
    mark(node, &folder, "second")?;
    Ok(folder)
}

fn mark(node: &Node, folder: &str, which: &str) -> anyhow::Result<()> {
    for file in ["which", "inner/which"] {
        std::fs::write(node.host(folder).join(file), format!("{which}\n"))?;
    }
    Ok(())
}

/// Copies what is in a folder of the node into another.
async fn copy(node: &Node, from: &str, to: &str) -> anyhow::Result<()> {
    let from = format!("{from}/.");
    node.exec(&["cp", "-a", &from, to]).await?.success()?;
    Ok(())
}

/// What is wrong with a case's rows with cryo. Empty when nothing is.
#[must_use]
pub fn judge(case: &Case, rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows {
        match (&row.outcome, case.reason(&row.object)) {
            (Outcome::Kept, None) => {}
            (Outcome::Kept, Some(_)) => {
                wrong.push(format!("the reason is of no use any more: {}", row.object))
            }
            (_, Some(_)) => {}
            (outcome, None) => wrong.push(format!("{}: {outcome:?}", row.object)),
        }
    }
    wrong
}

/// `docs/compatibility.md`.
#[must_use]
pub fn page(cryo: &[Row], peer: &[Row]) -> String {
    let mut page = String::from(
        "# Compatibility

What is in a container, and whether it is there after a checkpoint with exit and a restore as
another container. `make compatibility` writes this page: it runs the cases of
`tests/e2e/src/compat/` with cryo and with the Go shim with runc, in the lab. It fails when a row
fails with cryo whose reason the case does not have. `make test` runs the cases with cryo alone.

The objects of a case are in one container. Where the peer does not checkpoint or restore that, each
of them has a container of its own with the peer.
",
    );
    for case in CASES {
        writeln!(page, "\n## {}\n", case.title).ok();
        page.push_str("| object | looked at after the restore | checkpoint | restore | state | peer | why |\n|---|---|---|---|---|---|---|\n");
        for row in cryo.iter().filter(|row| row.case == case.title) {
            let other = peer
                .iter()
                .find(|other| other.case == row.case && other.object == row.object);
            let [checkpoint, restore, state] = row.outcome.words();
            let (peer, says) = other.map_or(("-", ""), |other| other.outcome.in_short());
            let mut why = case.reason(&row.object).unwrap_or_default().to_owned();
            if !says.is_empty() {
                let says: String = says.chars().take(160).collect();
                write!(why, "{}Peer: {says}", if why.is_empty() { "" } else { " " }).ok();
            }
            writeln!(
                page,
                "| {} | {} | {checkpoint} | {restore} | {state} | {peer} | {} |",
                cell(&row.object),
                cell(&row.checked),
                cell(&why)
            )
            .ok();
        }
    }
    page
}

impl Case {
    fn reason(&self, object: &str) -> Option<&'static str> {
        self.known
            .iter()
            .find(|(known, _)| *known == object)
            .map(|(_, reason)| *reason)
    }
}

impl Outcome {
    /// Checkpoint, restore, state.
    fn words(&self) -> [&'static str; 3] {
        match self {
            Self::Kept => ["yes", "yes", "kept"],
            Self::NotCheckpointed(_) => ["no", "-", "-"],
            Self::NotRestored(_) => ["yes", "no", "-"],
            Self::Lost(_) => ["yes", "yes", "lost"],
        }
    }

    fn in_short(&self) -> (&'static str, &str) {
        match self {
            Self::Kept => ("kept", ""),
            Self::NotCheckpointed(why) => ("no checkpoint", why),
            Self::NotRestored(why) => ("no restore", why),
            Self::Lost(why) => ("lost", why),
        }
    }
}

fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../../docs/compatibility.md");

    #[test]
    fn the_page_has_todays_rows() {
        for case in CASES {
            assert!(!case.objects().is_empty(), "{} has no objects", case.name);
            for (object, checked) in case.objects() {
                let row = format!("| {} | {} |", cell(&object), cell(&checked));
                let row = PAGE.lines().find(|line| line.starts_with(&row));
                let why = case.reason(&object).unwrap_or_default();
                assert!(
                    row.is_some_and(|row| row.contains(&cell(why))),
                    "docs/compatibility.md is old: `make compatibility`; it lacks {object:?}"
                );
            }
        }
    }

    #[test]
    fn reasons_are_of_objects() {
        for case in CASES {
            for (object, _) in case.known {
                assert!(
                    case.objects().iter().any(|(o, _)| o == object),
                    "{}: no object {object:?}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn output_is_judged_by_object() {
        let case = CASES.iter().find(|c| c.name == "compat::locks").unwrap();
        let [(a, seen), (b, _)] = &case.objects()[..] else {
            panic!("two locks")
        };
        let rows = case.judged(&format!("ready\nkept {a} | {seen}\r\nlost {b} | x | why\n"));
        assert_eq!(rows[0].outcome, Outcome::Kept);
        assert_eq!(rows[1].outcome, Outcome::Lost("why".into()));
        assert_eq!(judge(case, &rows).len(), 1);
        let rows = case.judged("done\n");
        assert!(matches!(rows[0].outcome, Outcome::Lost(_)));
    }
}
