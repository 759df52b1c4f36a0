//! Every kind of container restores: cases that make objects in a container, checkpoint it with
//! exit, restore it as another container, and look at each object there.
//!
//! A case is a Python program (`programs/`, with `driver.py` in front) and the spec it runs under
//! (`cases.rs`). Each generator of the program is a row: an object, and what is looked at after the
//! restore. A row that is not kept with cryo needs its reason in the case. `docs/compatibility.md`
//! is [`page()`] of a run with cryo and one with the peer.

mod cases;
mod page;
mod pod;
mod served;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

pub use cases::CASES;
pub use page::page;
use served::Served;

use crate::containerd::{CheckpointOptions, Mount};
use crate::context::{Container, Context, Output};
use crate::lab::Node;
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
    /// Which of its forms it has on this machine, as a sentence, where it has more than one.
    pub form: fn() -> Option<&'static str>,
    spec: fn(&mut Value, &Ground),
    open_tcp: bool,
    file_locks: bool,
    terminal: bool,
    /// Another container runs beside it, whose namespaces the spec can name.
    neighbour: bool,
    /// An exec runs during the checkpoint.
    exec: bool,
    /// Its programs are the node's, not an image's.
    node_programs: bool,
    /// Why it is not run with the peer.
    not_with_peer: Option<&'static str>,
    /// Objects that are not kept with cryo, and why.
    known: &'static [(&'static str, &'static str)],
    /// Whether that is so of an object on this machine.
    known_here: fn(&str) -> bool,
}

/// How a container is made.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Through containerd's own API; the restored one has a root file system made anew.
    Task,
    /// Through crictl, with the mounts that the kubelet makes; the archive brings the changes of
    /// the root file system along.
    Pod,
    /// The same in a user namespace of the pod's (`hostUsers: false`), with other users of the node
    /// at the restore, as the kubelet gives them out.
    PodOfUsers,
    /// A real program that serves a client outside of it, which is the case's program.
    Served(&'static Served),
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
    /// It is as it was, where `/etc/criu/runc.conf` of the node has the option. Peer only.
    KeptByNode,
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
    /// Whether its restore needs an option too.
    const fn has_options(&self) -> bool {
        self.open_tcp || self.file_locks || matches!(self.kind, Kind::Served(_))
    }

    /// The program, with all of its objects or one alone.
    fn text(&self, only: Option<&str>) -> String {
        // JSON's strings are Python's.
        let only = Value::from(only.unwrap_or_default());
        format!("{DRIVER}\n\n{}\n\nmain({only})\n", self.program)
    }

    /// The program of a client outside of the container, with what it is told.
    fn client(&self, prelude: &str) -> String {
        format!("{DRIVER}\n\n{prelude}\n\n{}\n\nmain('')\n", self.program)
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

/// Runs a case with the peer, on its terms: where a container as a whole is not checkpointed or
/// restored, with each of the objects in one of its own; and where its restore should have had
/// options, which it takes from the node alone, once more with those.
///
/// # Errors
/// As [`run`].
pub async fn run_peer(cx: &Context, case: &Case) -> anyhow::Result<Vec<Row>> {
    if let Some(why) = case.not_with_peer {
        return Ok(case.rows(|_| Outcome::NotCheckpointed(why.into())));
    }
    let without = divided(cx, case).await?;
    if !case.has_options() || without.iter().all(|row| row.outcome == Outcome::Kept) {
        return Ok(without);
    }
    let _options = RuncConf::set(&[cx.a()?, cx.b()?])?;
    let mut rows = divided(cx, case).await?;
    for (row, without) in rows.iter_mut().zip(without) {
        if row.outcome == Outcome::Kept && without.outcome != Outcome::Kept {
            row.outcome = Outcome::KeptByNode;
        }
    }
    Ok(rows)
}

/// All objects in one container or, where that is not checkpointed or restored, each in its own.
async fn divided(cx: &Context, case: &Case) -> anyhow::Result<Vec<Row>> {
    let rows = run_with(cx, case, None).await?;
    if !is_whole_failure(&rows) || matches!(case.kind, Kind::Served(_)) {
        return Ok(rows);
    }
    let mut rows = Vec::new();
    for (object, _) in case.objects() {
        let ran = run_with(cx, case, Some(&object)).await?;
        rows.extend(ran.into_iter().filter(|row| row.object == object));
    }
    Ok(rows)
}

/// Whether the container of these rows was not checkpointed, or not restored.
fn is_whole_failure(rows: &[Row]) -> bool {
    rows.iter().all(|row| {
        matches!(
            row.outcome,
            Outcome::NotCheckpointed(_) | Outcome::NotRestored(_)
        )
    })
}

/// `/etc/criu/runc.conf` on nodes, with the options that the cases have, until it is dropped.
struct RuncConf(Vec<PathBuf>);

impl RuncConf {
    fn set(nodes: &[&Node]) -> anyhow::Result<Self> {
        let mut files = Self(Vec::new());
        for node in nodes {
            std::fs::create_dir_all(node.host("/etc/criu"))?;
            let file = node.host("/etc/criu/runc.conf");
            std::fs::write(&file, "tcp-established\nfile-locks\n")?;
            files.0.push(file);
        }
        Ok(files)
    }
}

impl Drop for RuncConf {
    fn drop(&mut self) {
        for file in &self.0 {
            std::fs::remove_file(file).ok();
        }
    }
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
        Kind::Pod | Kind::PodOfUsers => pod::run_pod(cx, case, only).await,
        Kind::Served(served) => served::run_served(cx, case, served).await,
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
        .edit_spec(|spec| {
            if case.node_programs {
                node_programs(spec);
            }
            (case.spec)(spec, ground);
        })
        .await?;
    let output = Output::open(&container.node, &container.id)?;
    let mut request = container.create_request(image).await?;
    if case.node_programs {
        request.rootfs = vec![empty_root(cx, &container.node)?];
    }
    request.stdout = output.path("stdout");
    if case.terminal {
        request.terminal = true;
    } else {
        request.stderr = output.path("stderr");
    }
    container.api.create(request).await.context("create")?;
    Ok((container, output))
}

/// A new root that is empty, for the node's programs to be mounted in.
fn empty_root(cx: &Context, node: &Node) -> anyhow::Result<Mount> {
    let root = cx.folder(node, "root")?;
    for folder in ["usr", "etc", "data", "tmp", "run", "proc", "dev", "sys"] {
        std::fs::create_dir(node.host(&root).join(folder))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), node.host(&root).join(link))?;
    }
    Ok(Mount {
        kind: "bind".into(),
        source: root,
        options: vec!["rbind".into(), "rw".into()],
        ..Default::default()
    })
}

/// Mounts the node's programs in it.
fn node_programs(spec: &mut Value) {
    cases::bind(spec, "/usr", "/usr", "ro");
    cases::bind(spec, "/etc", "/etc", "ro");
    let tmp = json!({
        "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"],
    });
    cases::push(&mut spec["mounts"], tmp);
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|line| line.trim_end() == wanted)
}

fn first_folder(cx: &Context, node: &Node) -> anyhow::Result<String> {
    let folder = cx.folder(node, "first")?;
    std::fs::create_dir(node.host(&folder).join("inner"))?;
    mark(node, &folder, "first")?;
    // Whoever the container's user is.
    let all = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(node.host(&folder), all)?;
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
        let here = (case.known_here)(&row.object);
        let reason = case.reason(&row.object).filter(|_| here);
        match (&row.outcome, reason) {
            (Outcome::Kept, None) => {}
            (Outcome::Kept, Some(_)) => {
                wrong.push(format!("the reason is of no use any more: {}", row.object))
            }
            (_, Some(_)) => {}
            // Said once for all of them.
            (outcome @ (Outcome::NotCheckpointed(_) | Outcome::NotRestored(_)), None) => {
                let all = format!("its container: {outcome:?}");
                if wrong.last() != Some(&all) {
                    wrong.push(all);
                }
            }
            (outcome, None) => wrong.push(format!("{}: {outcome:?}", row.object)),
        }
    }
    wrong
}

impl Case {
    fn reason(&self, object: &str) -> Option<&'static str> {
        self.known
            .iter()
            .find(|(known, _)| *known == object)
            .map(|(_, reason)| *reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::page::cell;

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
