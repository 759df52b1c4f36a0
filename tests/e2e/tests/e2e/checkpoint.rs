//! Checkpoints of ordinary containers, through the API and through `ctr`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::{CheckpointOptions, State};
use cryo_e2e::context::Context;
use cryo_e2e::lab::Node;
use cryo_e2e::patience::until;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{COUNTER, consecutive, numbers};

/// The names in a folder of a node; an error when something in it is no regular file.
pub(crate) fn flat_names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure!(
            entry.file_type()?.is_file(),
            "{name} is no regular file: {:?}",
            entry.file_type()?
        );
        names.insert(name);
    }
    Ok(names)
}

/// Checks that a folder of the node holds a checkpoint.
pub(crate) fn is_checkpoint(node: &Node, folder: &str) -> anyhow::Result<BTreeSet<String>> {
    let names = flat_names(&node.host(folder))?;
    for wanted in ["inventory.img", "pstree.img", "descriptors.json"] {
        ensure!(names.contains(wanted), "{wanted} is not in {names:?}");
    }
    ensure!(
        names.iter().any(|n| n.starts_with("pages-")),
        "no pages in {names:?}"
    );
    Ok(names)
}

pub(crate) async fn from_running_leaves_running(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    container.expect(State::Running).await?;
    let pid = container.api.get(&container.id).await?.pid;
    ensure!(!node.frozen(pid)?, "frozen after the checkpoint");
    is_checkpoint(node, &image)?;
    consecutive(&output.count_on(5).await?)?;
    ensure!(
        !events.topics(&container.id).iter().any(|t| t == "exit"),
        "{:?}",
        events.topics(&container.id)
    );
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn with_exit_stops(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    let code = container.finish().await?;
    ensure!(code == 137, "exit code {code}");
    is_checkpoint(node, &image)?;
    consecutive(&numbers(&output.complete().await?))?;
    let wanted: &[&str] = if cx.differs("the Go shim publishes no TaskCheckpointed") {
        &["create", "start", "exit"]
    } else {
        &["create", "start", "checkpointed", "exit"]
    };
    crate::ended_with(&cx, &events, &container.id, wanted).await
}

pub(crate) async fn of_a_paused_task_leaves_it_paused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let pid = container.api.get(&container.id).await?.pid;
    container.api.pause(&container.id).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    container.expect(State::Paused).await?;
    if !cx.differs("runc thaws a paused container when the dump ends, the shim still says PAUSED") {
        ensure!(node.frozen(pid)?, "thawed by the checkpoint");
    }
    container.api.resume(&container.id).await.ok();
    container.wait_for(State::Running).await?;
    consecutive(&output.count_on(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn of_stopped_processes_leaves_them_stopped(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // One of the container's own; and one of an exec, which is not dumped, but in its cgroups.
    let script = format!("sleep 1000 & echo $! > /child; kill -STOP $!; {COUNTER}");
    let (container, output) = cx.shell(node, &script).await?;
    output.count_to(2).await?;
    let exec = ["task", "exec", "-d", "--exec-id", "stops", &container.id];
    let stops = ["sh", "-c", "echo $$ > /exec; kill -STOP $$"];
    node.ctr(&[&exec[..], &stops].concat()).await?;
    let stopped = async |look: &str| -> anyhow::Result<()> {
        let both =
            "[ \"$(cat /proc/$(cat /child)/stat /proc/$(cat /exec)/stat | grep -c ') T ')\" = 2 ]";
        // At first they may be on their way to it.
        let script = match look {
            "before" => format!("until {both}; do sleep 0.1; done"),
            _ => both.to_owned(),
        };
        container.exec(look, &script, false).await?;
        ensure!(
            container.finish_exec(look).await? == 0,
            "{look}: not stopped"
        );
        Ok(())
    };
    stopped("before").await?;

    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    stopped("after").await?;
    output.count_on(2).await?;

    let pid = container.api.get(&container.id).await?.pid;
    container.api.pause(&container.id).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    container.expect(State::Paused).await?;
    ensure!(node.frozen(pid)?, "thawed by the checkpoint");
    container.api.resume(&container.id).await?;
    stopped("resumed").await?;
    consecutive(&output.count_on(2).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn through_ctr_leaves_running(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let said = node.ctr(&["task", "checkpoint", &container.id]).await?;
    for name in said.split_whitespace() {
        cx.image(node, name);
    }
    container.expect(State::Running).await?;
    consecutive(&output.count_on(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn through_ctr_with_exit_stops(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let said = node
        .ctr(&["task", "checkpoint", "--exit", &container.id])
        .await?;
    for name in said.split_whitespace() {
        cx.image(node, name);
    }
    container.wait_for(State::Stopped).await?;
    consecutive(&numbers(&output.complete().await?))?;
    container.finish().await?;
    Ok(())
}

pub(crate) async fn folder_is_flat_and_logs_go_to_the_work_path(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = format!("{}/not/yet/there", cx.folder(node, "image")?);
    let work = cx.folder(node, "work")?;
    container
        .api
        .checkpoint(
            &container.id,
            CheckpointOptions {
                image_path: image.clone(),
                work_path: work.clone(),
                ..Default::default()
            },
        )
        .await
        .context("checkpoint")?;
    let names = is_checkpoint(node, &image)?;
    for log in ["dump.log", "stats-dump", "restore.log"] {
        ensure!(!names.contains(log), "{log} is in the image folder");
    }
    let work = flat_names(&node.host(&work))?;
    for log in ["dump.log", "stats-dump"] {
        ensure!(
            work.contains(log),
            "{log} is not in the work path: {work:?}"
        );
    }
    let descriptors = std::fs::read(node.host(&image).join("descriptors.json"))?;
    let descriptors: Vec<String> = serde_json::from_slice(&descriptors)?;
    ensure!(descriptors.len() == 3, "{descriptors:?}");
    ensure!(
        descriptors.iter().skip(1).all(|d| d.starts_with("pipe:[")),
        "{descriptors:?}"
    );
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn ten_in_a_row_leak_nothing(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    let fds = |container: &str| -> usize { shim_fds(node, cx.runtime(), container).iter().sum() };
    // The first may open what stays open.
    container.checkpoint(&format!("{image}/0"), false).await?;
    let before = fds(&container.id);
    ensure!(before > 0, "no shim found");
    for n in 1..=10 {
        container.checkpoint(&format!("{image}/{n}"), false).await?;
    }
    if !cx.differs("the Go shim's files stay open until Go's garbage collector comes by") {
        let what = format!("the shim has the {before} files open that it had after one checkpoint");
        let as_before = || Ok((fds(&container.id) <= before).then_some(()));
        until(&what, as_before).await?;
    }
    consecutive(&output.count_on(2).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

/// How many files each process has open whose command line names this shim and this id.
fn shim_fds(node: &Node, runtime: Runtime, id: &str) -> Vec<usize> {
    let Ok(processes) = std::fs::read_dir(node.host("/proc")) else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| {
            let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&bytes).into_owned();
            let own = line.contains(runtime.shim()) && line.split('\0').any(|w| w == id);
            own.then(|| {
                std::fs::read_dir(entry.path().join("fd"))
                    .ok()
                    .map(Iterator::count)
            })?
        })
        .collect()
}

pub(crate) async fn of_many_at_once(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(cx.shell(node, COUNTER).await?);
    }
    let image = cx.folder(node, "image")?;
    let mut tasks = tokio::task::JoinSet::new();
    for (container, output) in all {
        let image = format!("{image}/{}", container.id);
        let node = node.clone();
        tasks.spawn(async move {
            output.count_to(2).await?;
            container.checkpoint(&image, false).await?;
            is_checkpoint(&node, &image)?;
            container.expect(State::Running).await?;
            consecutive(&output.count_on(2).await?)?;
            container.kill_and_delete().await
        });
    }
    while let Some(done) = tasks.join_next().await {
        let code = done??;
        ensure!(code == 137, "exit code {code}");
    }
    Ok(())
}
