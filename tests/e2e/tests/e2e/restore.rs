//! Restores of ordinary containers: the counting goes on from the next number.

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::Node;
use cryo_e2e::machine::has_other_users;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{BUSYBOX, COUNTER, FILE_COUNTER, PYTHON, goes_on, heap, numbers};
use serde_json::{Value, json};

use crate::checkpoint::is_checkpoint;

/// A counter that was checkpointed with exit: the container, the folder of the
/// checkpoint, what was counted.
async fn frozen_counter(
    cx: &Context,
    node: &Node,
) -> anyhow::Result<(Container, String, Vec<u64>)> {
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    let counted = freeze(&container, output, &image).await?;
    Ok((container, image, counted))
}

/// Checkpoints with exit and deletes the task; what it counted in all.
async fn freeze(container: &Container, output: Output, image: &str) -> anyhow::Result<Vec<u64>> {
    container.checkpoint(image, true).await?;
    container.finish().await?;
    is_checkpoint(&container.node, image)?;
    Ok(numbers(&output.complete().await?))
}

pub(crate) async fn under_the_same_id_after_exit(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen_counter(&cx, node).await?;
    let events = cx.events(node).await?;
    let output = container.create_from(Some(&image)).await?;
    let pid = container.start().await?;
    ensure!(pid > 0, "restored with pid 0");
    let process = container.api.get(&container.id).await?;
    ensure!(process.status() == State::Running, "{process:?}");
    ensure!(process.pid == pid, "{process:?}, Start said {pid}");
    goes_on(&before, &output.count_to(5).await?)?;
    let pids = container.api.pids(&container.id).await?;
    ensure!(pids.contains(&pid), "{pids:?} without {pid}");
    let code = container.kill_and_delete().await?;
    ensure!(code == 137, "exit code {code}");
    goes_on(&before, &numbers(&output.complete().await?))?;
    let wanted = ["create", "start", "exit"];
    crate::ended_with(&cx, &events, &container.id, &wanted).await
}

pub(crate) async fn under_a_new_id_through_ctr(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (old, output) = cx.shell(node, FILE_COUNTER).await?;
    output.count_to(5).await?;
    let name = format!("localhost/{}:1", cx.id("image"));
    cx.image(node, &name);
    node.ctr(&[
        "container",
        "checkpoint",
        "--rw",
        "--image",
        "--task",
        &old.id,
        &name,
    ])
    .await?;
    old.expect(State::Running).await?;
    output.count_on(2).await?;
    // The restored spec has the old one's cgroup, which has to be empty.
    old.kill_and_delete().await?;
    let new_id = cx.id("new");
    let new = cx.adopt(node, &new_id)?;
    node.ctr(&["container", "restore", "--rw", "--live", &new_id, &name])
        .await?;
    new.expect(State::Running).await?;
    // The number is in the file that was written before: the file system came along.
    let count = |container: &Container| -> anyhow::Result<u64> {
        let path = container.in_rootfs("count");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim().parse().context("the count")
    };
    // Empty while the shell is between open and write.
    let first = until("/count in the restored container", || Ok(count(&new).ok())).await?;
    ensure!(first >= 4, "started again: {first}");
    until("the restored one counts", || {
        Ok(count(&new).ok().filter(|now| *now > first + 2))
    })
    .await?;
    new.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn create_runs_nothing_until_start(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen_counter(&cx, node).await?;
    let output = container.create_from(Some(&image)).await?;
    let process = container.api.get(&container.id).await?;
    ensure!(process.status() == State::Created, "{process:?}");
    ensure!(process.pid == 0, "{process:?}");
    ensure!(
        container.in_rootfs("bin/busybox").exists(),
        "the root file system is not mounted yet"
    );
    // What containerd does between: it unpacks the changes of the file system.
    std::fs::write(container.in_rootfs("unpacked"), "between")?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    ensure!(output.numbers().is_empty(), "ran before its start");
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    ensure!(
        container.in_rootfs("unpacked").exists(),
        "the start hid what was unpacked"
    );
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn prepared_and_deleted_leaves_nothing(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen_counter(&cx, node).await?;
    {
        let _output = container.create_from(Some(&image)).await?;
        container.api.delete(&container.id).await?;
        ensure!(
            !node.host(&container.bundle()).exists(),
            "the bundle is still there"
        );
    }
    is_checkpoint(node, &image)?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn can_be_waited_for_and_killed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "trap 'exit 9' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";
    let (container, output) = cx.shell(node, script).await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    let before = freeze(&container, output, &image).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    let wait = tokio::spawn({
        let container = container.clone();
        async move { container.api.wait(&container.id).await }
    });
    goes_on(&before, &output.count_to(3).await?)?;
    container.api.pause(&container.id).await?;
    container.expect(State::Paused).await?;
    container.api.resume(&container.id).await?;
    output.count_on(2).await?;
    container.api.kill(&container.id, 15).await?;
    let code = wait.await??;
    ensure!(code == 9, "the handler of SIGTERM says 9, exit code {code}");
    container.finish().await?;
    Ok(())
}

pub(crate) async fn a_second_checkpoint_restores_too(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, mut counted) = frozen_counter(&cx, node).await?;
    let mut image = image;
    for _ in 0..3 {
        let output = container.create_from(Some(&image)).await?;
        container.start().await?;
        output.count_to(3).await?;
        image = cx.folder(node, "image")?;
        let more = freeze(&container, output, &image).await?;
        goes_on(&counted, &more)?;
        counted.extend(more);
    }
    Ok(())
}

/// A counter in a cgroup namespace of its own, restored twice: it and an exec see their cgroup as
/// the root, and its mounts show nothing above.
pub(crate) async fn a_cgroup_namespace_is_kept(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx
        .container(node, BUSYBOX, &["/bin/sh", "-c", COUNTER])
        .await?;
    container
        .edit_spec(|spec| {
            let list = |value: &mut Value, item| value.as_array_mut().map(|list| list.push(item));
            list(
                &mut spec["linux"]["namespaces"],
                json!({ "type": "cgroup" }),
            );
            let mount = json!({
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            });
            list(&mut spec["mounts"], mount);
        })
        .await?;
    let mut output = container.create().await?;
    container.start().await?;
    let mut counted = Vec::new();
    let look = "cat /proc/self/cgroup /proc/1/cgroup; grep cgroup /proc/self/mountinfo | cut -d ' ' -f 4,5 | sort";
    let mut seen = None;
    for round in 0..3 {
        let lines = output.count_to(3).await?;
        if let Some(last) = counted.last().copied() {
            goes_on(&[last], &lines)?;
        }
        let exec = container.exec("look", look, false).await?;
        container.finish_exec("look").await?;
        let found = exec.complete().await?;
        ensure!(found.lines().count() >= 3, "{found}");
        ensure!(!found.contains(&container.id), "{found}");
        ensure!(!found.contains(".."), "{found}");
        match &seen {
            None => seen = Some(found),
            Some(first) => ensure!(*first == found, "restored, {round}: {found}\nnot {first}"),
        }
        let image = cx.folder(node, "image")?;
        counted = freeze(&container, output, &image).await?;
        output = container.create_from(Some(&image)).await?;
        container.start().await?;
    }
    container.kill_and_delete().await?;
    Ok(())
}

/// A counter with this much memory of its own, and the digest of that.
pub(crate) async fn remembering(
    cx: &Context,
    node: &Node,
    mib: usize,
) -> anyhow::Result<(Container, Output, String)> {
    let program = heap(mib);
    let container = cx
        .container(node, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    let digest = output
        .until(|text| {
            let line = text.lines().find(|l| l.starts_with("ready "))?;
            (numbers(text).len() > 2).then(|| line.trim_start_matches("ready ").to_owned())
        })
        .await?;
    Ok((container, output, digest))
}

/// Restores it and compares its memory.
pub(crate) async fn comes_back(
    container: &Container,
    image: &str,
    before: &[u64],
    digest: &str,
) -> anyhow::Result<()> {
    let output = container.create_from(Some(image)).await?;
    container.start().await?;
    goes_on(before, &output.count_to(3).await?)?;
    container.api.kill(&container.id, 10).await?;
    let found = output
        .until(|text| {
            let line = text.lines().find(|l| l.starts_with("digest "))?;
            Some(line.trim_start_matches("digest ").to_owned())
        })
        .await?;
    ensure!(found == digest, "the memory was {digest} and is {found}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn memory_is_the_same(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output, digest) = remembering(&cx, node, 64).await?;
    let image = cx.folder(node, "image")?;
    let before = freeze(&container, output, &image).await?;
    comes_back(&container, &image, &before, &digest).await
}

pub(crate) async fn many_processes_come_back(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "for n in 1 2 3 4 5 6 7 8; do (while :; do sleep 0.2; done) & done; \
                  i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";
    let (container, output) = cx.shell(node, script).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    let before = freeze(&container, output, &image).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    let pids = container.api.pids(&container.id).await?;
    ensure!(pids.len() >= 9, "{} of nine processes", pids.len());
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn on_another_node(cx: Context) -> anyhow::Result<()> {
    let (a, b) = (cx.a()?, cx.b()?);
    let (old, image, before) = frozen_counter(&cx, a).await?;
    let arrived = format!("{}/image", cx.folder(b, "arrived")?);
    a.copy_to(&image, b, &arrived).await?;
    // Another id means another bundle, root file system and cgroup.
    let container = cx.container(b, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    ensure!(container.id != old.id, "the same id");
    let output = container.create_from(Some(&arrived)).await?;
    let pid = container.start().await?;
    goes_on(&before, &output.count_to(5).await?)?;
    let cgroups = std::fs::read_to_string(b.host(&format!("/proc/{pid}/cgroup")))?;
    for line in cgroups.lines() {
        ensure!(
            !line.ends_with(&old.id),
            "in the cgroup of the container that was checkpointed: {line}"
        );
        let placed = ["freezer", "memory", "pids", "devices", "cpuacct"];
        if placed.iter().any(|c| line.contains(c)) {
            ensure!(
                line.ends_with(&container.id),
                "in a cgroup that the new spec does not name: {line}"
            );
        }
    }
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn twice_from_one_checkpoint(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (one, image, before) = frozen_counter(&cx, node).await?;
    let two = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let one_output = one.create_from(Some(&image)).await?;
    let two_output = two.create_from(Some(&image)).await?;
    let (first, second) = tokio::join!(one.start(), two.start());
    first?;
    second?;
    goes_on(&before, &one_output.count_to(3).await?)?;
    goes_on(&before, &two_output.count_to(3).await?)?;
    one.kill_and_delete().await?;
    two_output.count_on(2).await?;
    two.kill_and_delete().await?;
    Ok(())
}

/// Containers that may more than usual, or have made something of what they may.
pub(crate) async fn with_rights_of_all_kinds(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // What it mounts by itself, and a process that it starts in a namespace of its own making.
    let mounts =
        format!("mkdir -p /own && mount -t tmpfs own /own && mount --bind /own /mnt; {COUNTER}");
    let cases: [(&[&str], &str); 6] = [
        (&["--net-host"], COUNTER),
        (&["--privileged"], COUNTER),
        (&["--read-only"], COUNTER),
        (&["--rootfs-propagation", "rslave"], COUNTER),
        (&["--cap-add", "CAP_SYS_ADMIN"], &mounts),
        (
            &["--cap-drop", "CAP_SETUID", "--cap-drop", "CAP_SETGID"],
            COUNTER,
        ),
    ];
    for (flags, script) in cases {
        let container = cx
            .container_with(node, flags, BUSYBOX, &["sh", "-c", script])
            .await
            .with_context(|| format!("{flags:?}"))?;
        let output = container.create().await?;
        container.start().await?;
        output.count_to(3).await?;
        let image = cx.folder(node, "image")?;
        let before = freeze(&container, output, &image)
            .await
            .with_context(|| format!("{flags:?}"))?;
        let output = container.create_from(Some(&image)).await?;
        container
            .start()
            .await
            .with_context(|| format!("{flags:?}"))?;
        goes_on(&before, &output.count_to(3).await?)?;
        container.kill_and_delete().await?;
    }
    Ok(())
}

/// Why another user's container cannot be checkpointed here: CRIU asks for the limits of each
/// process.
pub(crate) fn no_cap_sys_resource() -> Option<&'static str> {
    (!has_other_users())
        .then_some("this machine has no CAP_SYS_RESOURCE; it is run by `make test-vm`")
}

pub(crate) async fn of_other_users(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // The first process's user, and one that the container's root gives a child.
    let child =
        format!("python3 -c 'import os, time; os.setuid(4321); time.sleep(1000)' & {COUNTER}");
    let cases: [(&[&str], &str, &str, &[&str]); 2] = [
        (&["--user", "1000:1001"], BUSYBOX, COUNTER, &["1000"]),
        (&[], PYTHON, &child, &["0", "4321"]),
    ];
    for (flags, image, script, users) in cases {
        let container = cx
            .container_with(node, flags, image, &["sh", "-c", script])
            .await?;
        let output = container.create().await?;
        container.start().await?;
        output.count_to(3).await?;
        let folder = cx.folder(node, "image")?;
        let before = freeze(&container, output, &folder).await?;
        let output = container.create_from(Some(&folder)).await?;
        container.start().await?;
        goes_on(&before, &output.count_to(3).await?)?;
        let mut found = Vec::new();
        for pid in container.api.pids(&container.id).await? {
            let status = std::fs::read_to_string(node.host(&format!("/proc/{pid}/status")))?;
            let uids = status.lines().find_map(|l| l.strip_prefix("Uid:\t"));
            found.extend(uids.and_then(|u| u.split('\t').next()).map(str::to_owned));
        }
        for user in users {
            ensure!(found.iter().any(|f| f == user), "{user} of {found:?}");
        }
        container.kill_and_delete().await?;
    }
    Ok(())
}

/// What an exec has left behind in the container is part of its tree.
pub(crate) async fn with_a_process_that_an_exec_left(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let left = [
        "task",
        "exec",
        "--exec-id",
        "left",
        &container.id,
        "sh",
        "-c",
        "(while :; do sleep 1; done) >/dev/null 2>&1 </dev/null &",
    ];
    node.ctr(&left).await?;
    let image = cx.folder(node, "image")?;
    let before = freeze(&container, output, &image).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    ensure!(
        container.api.pids(&container.id).await?.len() >= 2,
        "only its own processes"
    );
    container.kill_and_delete().await?;
    Ok(())
}
