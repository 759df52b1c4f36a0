//! Bad input and failure: a code, a sentence, the container as it was, nothing left.

mod criu_gone;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::containerd::{CheckpointOptions, State};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Node, NodeConfig};
use cryo_e2e::patience::{PATIENCE, until};
use cryo_e2e::workload::{BUSYBOX, COUNTER, PYTHON, consecutive, goes_on, heap, numbers};
use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

use self::criu_gone::kept;
pub(crate) use self::criu_gone::{
    criu_killed_in_a_dump, criu_killed_in_a_restore, criu_missing, criu_too_old, old_criu,
};
use crate::checkpoint::{flat_names, is_checkpoint};
use crate::criu::{self, Met};

/// Checks that a call was refused with one of these codes.
pub(crate) fn refused<T>(
    answer: Result<T, Status>,
    wanted: &[Code],
    what: &str,
) -> anyhow::Result<()> {
    match answer {
        Ok(_) => bail!("{what} was not refused"),
        Err(status) if wanted.contains(&status.code()) => Ok(()),
        Err(status) => bail!("{what}: {status:?}, wanted {wanted:?}"),
    }
}

/// Checks that a call failed with a code that says something, and with a sentence that
/// names every one of `words`. The Go shim is let off with any error.
pub(crate) fn explained<T>(
    cx: &Context,
    answer: Result<T, Status>,
    codes: &[Code],
    words: &[&str],
) -> anyhow::Result<()> {
    let Err(status) = answer else {
        bail!("succeeded where it had to fail");
    };
    if cx.differs("the Go shim answers Unknown with runc's last log line, for every cause") {
        return Ok(());
    }
    ensure!(
        codes.contains(&status.code()),
        "code {:?}, wanted one of {codes:?}: {}",
        status.code(),
        status.message()
    );
    let text = status.message().to_lowercase();
    for word in words {
        ensure!(
            text.contains(&word.to_lowercase()),
            "{word:?} is not in the message: {}",
            status.message()
        );
    }
    for nonsense in ["errno 0", "rlimit"] {
        ensure!(!text.contains(nonsense), "{nonsense:?} in: {text}");
    }
    Ok(())
}

/// Checks that the container runs, is not frozen and goes on counting without a gap.
pub(crate) async fn unharmed(container: &Container, output: &Output) -> anyhow::Result<()> {
    container.expect(State::Running).await?;
    let pid = container.api.get(&container.id).await?.pid;
    ensure!(!container.node.frozen(pid)?, "left frozen");
    consecutive(&output.count_on(3).await?).context("after the failure")
}

async fn checkpoint(container: &Container, image: &str) -> Result<(), Status> {
    let options = CheckpointOptions {
        image_path: image.into(),
        ..Default::default()
    };
    container
        .api
        .checkpoint(&container.id, options)
        .await
        .map(|_| ())
}

pub(crate) async fn checkpoint_of_a_created_task_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let output = container.create().await?;
    let image = cx.folder(node, "image")?;
    let answer = checkpoint(&container, &image).await;
    if cx.differs("runc checkpoints a created container, its init included") {
        return Ok(());
    }
    explained(&cx, answer, &[Code::FailedPrecondition], &["created"])?;
    ensure!(
        flat_names(&node.host(&image))?.is_empty(),
        "files were left"
    );
    container.expect(State::Created).await?;
    container.start().await?;
    output.count_to(2).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn checkpoint_of_a_stopped_task_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, _output) = cx.shell(node, "exit 2").await?;
    container.api.wait(&container.id).await?;
    let image = cx.folder(node, "image")?;
    let answer = checkpoint(&container, &image).await;
    explained(
        &cx,
        answer,
        &[Code::FailedPrecondition, Code::NotFound],
        &["stopped"],
    )?;
    container.expect(State::Stopped).await?;
    let code = container.finish().await?;
    ensure!(code == 2, "exit code {code}");
    Ok(())
}

/// A counter's checkpoint, and the container that is gone.
async fn frozen(cx: &Context, node: &Node) -> anyhow::Result<(Container, String, Vec<u64>)> {
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let counted = numbers(&output.complete().await?);
    is_checkpoint(node, &image)?;
    Ok((container, image, counted))
}

/// Creates from `image` and starts, which has to fail at one of the two; nothing may be
/// left, and a restore from `good` has to work afterwards.
async fn does_not_restore(
    cx: &Context,
    container: &Container,
    image: &str,
    codes: &[Code],
    words: &[&str],
) -> anyhow::Result<()> {
    let request = container.create_request(Some(image)).await?;
    let created = container.api.create(request).await;
    let answer = match created {
        Ok(_) => container.api.start(&container.id).await.map(|_| ()),
        Err(status) => Err(status),
    };
    explained(cx, answer, codes, words)?;
    // containerd's service does not delete a task whose start failed; its clients do.
    container.api.delete(&container.id).await.ok();
    refused(
        container.api.get(&container.id).await,
        &[Code::NotFound],
        "the task of the failed restore",
    )?;
    ensure!(
        !container.node.host(&container.bundle()).exists(),
        "the bundle is still there"
    );
    Ok(())
}

async fn restores(container: &Container, image: &str, before: &[u64]) -> anyhow::Result<()> {
    let output = container.create_from(Some(image)).await?;
    container.start().await?;
    goes_on(before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

const BAD_IMAGE: &[Code] = &[
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::DataLoss,
];

pub(crate) async fn restore_from_a_missing_folder(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let missing = cx.folder(node, "missing")?;
    std::fs::remove_dir(node.host(&missing))?;
    does_not_restore(&cx, &container, &missing, BAD_IMAGE, &[&missing]).await?;
    if !cx.differs("runc makes the folder that it cannot find") {
        ensure!(!node.host(&missing).exists(), "the folder was made");
    }
    Ok(())
}

pub(crate) async fn restore_from_an_empty_folder(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let empty = cx.folder(node, "empty")?;
    does_not_restore(&cx, &container, &empty, BAD_IMAGE, &["inventory.img"]).await
}

pub(crate) async fn restore_from_a_truncated_inventory(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen(&cx, node).await?;
    let inventory = node.host(&image).join("inventory.img");
    let whole = std::fs::read(&inventory)?;
    std::fs::write(&inventory, whole.get(..9).unwrap_or_default())?;
    does_not_restore(&cx, &container, &image, BAD_IMAGE, &["inventory"]).await?;
    std::fs::write(&inventory, &whole)?;
    restores(&container, &image, &before).await
}

pub(crate) async fn restore_without_the_pages(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen(&cx, node).await?;
    let folder = node.host(&image);
    let mut pages = Vec::new();
    for name in flat_names(&folder)? {
        if name.starts_with("pages-") {
            pages.push((folder.join(&name), std::fs::read(folder.join(&name))?));
            std::fs::remove_file(folder.join(&name))?;
        }
    }
    ensure!(!pages.is_empty(), "the checkpoint has no pages");
    does_not_restore(&cx, &container, &image, BAD_IMAGE, &["pages"]).await?;
    for (path, bytes) in pages {
        std::fs::write(path, bytes)?;
    }
    restores(&container, &image, &before).await
}

pub(crate) async fn disk_full_during_a_dump(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = format!("{}/image", cx.tmpfs(node, "size=64k").await?);
    let answer = checkpoint(&container, &image).await;
    explained(&cx, answer, &[Code::ResourceExhausted], &["no space"])?;
    unharmed(&container, &output).await?;
    if !cx.differs("runc leaves what it had written on the full disk") {
        let left = flat_names(&node.host(&image)).unwrap_or_default();
        ensure!(left.is_empty(), "left on the full disk: {left:?}");
    }
    // And with room it works.
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn image_folder_that_cannot_be_made(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let file = format!("{}/file", cx.folder(node, "image")?);
    std::fs::write(node.host(&file), "in the way")?;
    let image = format!("{file}/below");
    let answer = checkpoint(&container, &image).await;
    explained(
        &cx,
        answer,
        &[Code::InvalidArgument, Code::FailedPrecondition],
        &[&image],
    )?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// A python process with this much memory, running.
async fn large(cx: &Context, node: &Node, mib: usize) -> anyhow::Result<(Container, Output)> {
    let program = heap(mib);
    let container = cx
        .container(node, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    Ok((container, output))
}

pub(crate) async fn a_deadline_does_not_leave_the_container_frozen(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = large(&cx, node, 400).await?;
    // As containerd's client does it: pause, checkpoint, resume, all under one deadline, which comes
    // in the middle of a dump that stands still.
    let mut image = cx.folder(node, "image")?;
    let mut answer = None;
    for _ in 0..criu::TRIES {
        container.api.pause(&container.id).await?;
        let options = CheckpointOptions {
            image_path: image.clone(),
            ..Default::default()
        };
        let dump = container
            .api
            .checkpoint_within(&container.id, options, Duration::from_secs(4));
        let folder = node.host(&image);
        match criu::meet(Signal::STOP, &container, || criu::has_pages(&folder), dump).await? {
            Met::InTime(met, criu) => {
                criu::let_go(criu).ok();
                answer = Some(met);
                break;
            }
            Met::TooLate(done) => {
                done?;
                container.api.resume(&container.id).await?;
                image = cx.folder(node, "image")?;
            }
        }
    }
    refused(
        answer.context("every dump was over before it was met")?,
        // Unknown: the connection's own end of the call came first.
        &[Code::DeadlineExceeded, Code::Cancelled, Code::Unknown],
        "a dump that does not end before its deadline",
    )?;
    // Whoever paused it has lost its deadline too: nobody resumes.
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    ensure!(
        !node.host(&image).join("inventory.img").exists(),
        "a partial checkpoint was left"
    );
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_deadline_before_the_resume_thaws(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    container.api.pause(&container.id).await?;
    let options = CheckpointOptions {
        image_path: image.clone(),
        ..Default::default()
    };
    let deadline = Duration::from_secs(8);
    container
        .api
        .checkpoint_within(&container.id, options, deadline)
        .await?;
    // The client is gone before its Resume, and its deadline passes.
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    is_checkpoint(node, &image)?;
    container.kill_and_delete().await?;
    Ok(())
}

/// Checkpoints through `ctr` while criu is held up, as a client that can be killed.
struct HeldUp {
    criu: Pid,
    client: tokio::task::JoinHandle<anyhow::Result<cryo_e2e::lab::Finished>>,
}

impl HeldUp {
    /// `timeout` is the client's own, 0 for none. Without a folder containerd makes one.
    async fn checkpoint(
        container: &Container,
        image: Option<&str>,
        timeout: &'static str,
    ) -> anyhow::Result<Self> {
        let (node, id) = (container.node.clone(), container.id.clone());
        let to = image.map(|image| format!("--image-path={image}"));
        let client = tokio::spawn(async move {
            let mut command = vec!["ctr", "--timeout", timeout, "task", "checkpoint"];
            command.extend(to.as_deref());
            command.push(&id);
            node.exec(&command).await
        });
        let criu = match image {
            Some(image) => criu::hold_dump(container, image).await?,
            None => criu::hold_dump_somewhere(container).await?,
        };
        Ok(Self { criu, client })
    }

    fn let_go(&self) -> anyhow::Result<()> {
        criu::let_go(self.criu)
    }
}

pub(crate) async fn a_second_checkpoint_at_once_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    let first = HeldUp::checkpoint(&container, Some(&image), "0").await?;
    let second = cx.folder(node, "second")?;
    let answer = checkpoint(&container, &second).await;
    first.let_go()?;
    explained(
        &cx,
        answer,
        &[Code::Aborted],
        &["checkpoint", "under way", "try again"],
    )?;
    // The first is not disturbed.
    first.client.await??.success()?;
    is_checkpoint(node, &image)?;
    ensure!(
        flat_names(&node.host(&second))?.is_empty(),
        "files of the refused checkpoint were left"
    );
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    container.checkpoint(&second, false).await?;
    is_checkpoint(node, &second)?;
    container.kill_and_delete().await?;
    Ok(())
}

/// Checkpoints through `ctr`, which is killed in the dump; what the dump left is in the folder.
async fn killed_in_a_dump(
    cx: &Context,
    container: &Container,
    timeout: &'static str,
) -> anyhow::Result<String> {
    let image = cx.folder(&container.node, "image")?;
    killed_in_a_dump_to(container, Some(&image), timeout).await?;
    Ok(image)
}

async fn killed_in_a_dump_to(
    container: &Container,
    image: Option<&str>,
    timeout: &'static str,
) -> anyhow::Result<()> {
    let node = &container.node;
    let held_up = HeldUp::checkpoint(container, image, timeout).await?;
    let clients = node.processes("ctr");
    for pid in &clients {
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            kill_process(pid, Signal::KILL)?;
        }
    }
    if image.is_none() {
        // It is containerd's, which takes it away when it has seen its client go.
        let removed = || Ok(containerds_folders(node)?.is_empty().then_some(()));
        let removed = until("containerd removes its folder", removed).await;
        held_up.let_go()?;
        removed?;
    } else {
        held_up.let_go()?;
    }
    ensure!(!clients.is_empty(), "no ctr was seen");
    let _killed = held_up.client.await?;
    Ok(())
}

/// The folders of checkpoints that containerd itself has made.
fn containerds_folders(node: &Node) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(node.host("/tmp"))?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|n| n.starts_with("ctrd-checkpoint")).collect())
}

/// Checkpoints once more.
async fn checkpoints_again(cx: &Context, container: &Container) -> anyhow::Result<()> {
    let again = cx.folder(&container.node, "again")?;
    container.checkpoint(&again, false).await?;
    is_checkpoint(&container.node, &again)?;
    Ok(())
}

/// containerd does not say that its client is gone: what is left is the client's deadline.
pub(crate) async fn the_client_killed_in_a_dump(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, COUNTER).await?;
    output.count_to(2).await?;
    killed_in_a_dump(&cx, &container, "6s").await?;
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    checkpoints_again(&cx, &container).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// Nobody can tell its pause from one that a user wants.
pub(crate) async fn a_client_without_a_deadline_killed_before_its_resume(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = killed_in_a_dump(&cx, &container, "0").await?;
    // The dump is done, and nobody resumes.
    until("the dump ends", || {
        let done = node.processes("criu").is_empty() && is_checkpoint(node, &image).is_ok();
        Ok(done.then_some(()))
    })
    .await?;
    container.expect(State::Paused).await?;
    node.ctr(&["task", "resume", &container.id]).await?;
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    checkpoints_again(&cx, &container).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// What tells of the client's end is that containerd removes the folder that it made.
pub(crate) async fn a_client_killed_in_a_dump_to_containerds_folder(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    killed_in_a_dump_to(&container, None, "0").await?;
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    let left = containerds_folders(node)?;
    ensure!(left.is_empty(), "parts of the checkpoint stay: {left:?}");
    checkpoints_again(&cx, &container).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_client_that_never_resumes_has_a_limit(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let _config = NodeConfig::set(node, "[checkpoint]\nresume-within = \"1s\"\n")?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = killed_in_a_dump(&cx, &container, "0").await?;
    container.wait_for(State::Running).await?;
    unharmed(&container, &output).await?;
    is_checkpoint(node, &image)?;
    kept(
        node,
        &container.id,
        "the client of its checkpoint did not resume it within 1 s",
    )?;
    // One that was only slow learns that it came too late.
    explained(
        &cx,
        container.api.resume(&container.id).await,
        &[Code::FailedPrecondition],
        &["resumed", "within 1 s", "may not fit the checkpoint"],
    )?;
    checkpoints_again(&cx, &container).await?;

    // Paused for something else, which the checkpoint has nothing to do with.
    container.api.pause(&container.id).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let by_hand = cx.folder(node, "by-hand")?;
    container.checkpoint(&by_hand, false).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    container.expect(State::Paused).await?;
    container.api.resume(&container.id).await?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn the_shim_killed(cx: Context) -> anyhow::Result<()> {
    shim_killed(&cx, false).await
}

/// What a dead shim left frozen is found, thawed and ended.
pub(crate) async fn the_shim_killed_while_frozen(cx: Context) -> anyhow::Result<()> {
    shim_killed(&cx, true).await
}

async fn shim_killed(cx: &Context, frozen: bool) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    if frozen {
        container.api.pause(&container.id).await?;
    }
    let pid = container.api.get(&container.id).await?.pid;
    let killed = node.kill_shims_of(&container.id)?;
    ensure!(killed > 0, "the shim of {} was not found", container.id);
    // containerd runs the binary's `delete`, which ends the container and cleans up.
    let exit = events.wait_for(&container.id, "/tasks/exit").await?;
    ensure!(exit.exit == Some((container.id.clone(), 137)), "{exit:?}");
    // containerd forgets the task right after it has told of its end.
    let end = Instant::now() + PATIENCE;
    while container.api.get(&container.id).await.is_ok() {
        ensure!(Instant::now() < end, "the task of a dead shim stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    refused(
        container.api.get(&container.id).await,
        &[Code::NotFound],
        "the task of a dead shim",
    )?;
    let process = node.host(&format!("/proc/{pid}"));
    until("the container ends with its shim", || {
        Ok((!process.exists()).then_some(()))
    })
    .await?;
    ensure!(
        !node.host(&container.bundle()).exists(),
        "the bundle is still there"
    );
    Ok(())
}
