//! Forged checkpoints: each asks for something that the new container's specification does not
//! give. cryo refuses before anything of the container has run, says what it was, and leaves
//! nothing behind; `docs/hostile-checkpoints.md` has the table, with runc's answers beside.

mod forgeries;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Container, Context};
use cryo_e2e::lab::{Node, NodeConfig, repository};
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{BUSYBOX, COUNTER, goes_on, numbers};
use tonic::{Code, Status};

use self::forgeries::{Attack, FILES, MOUNTS, NAMESPACES, Outcome, RIGHTS, Restored};
use crate::checkpoint::is_checkpoint;

pub(crate) async fn more_rights_are_refused(cx: Context) -> anyhow::Result<()> {
    all_of(&cx, RIGHTS).await
}

pub(crate) async fn the_nodes_namespaces_are_refused(cx: Context) -> anyhow::Result<()> {
    all_of(&cx, NAMESPACES).await
}

pub(crate) async fn other_mounts_are_refused(cx: Context) -> anyhow::Result<()> {
    all_of(&cx, MOUNTS).await
}

pub(crate) async fn what_is_no_plain_file_is_refused(cx: Context) -> anyhow::Result<()> {
    all_of(&cx, FILES).await
}

pub(crate) async fn root_for_a_user_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (_, image, _) = frozen(&cx, node).await?;
    // The images are as they were: root's. It is the specification that names a user.
    let attack = Attack {
        name: "root where the specification has a user",
        forge: |_| Ok(()),
        effect: |restored| Ok(restored.status("Uid")?.starts_with("0\t")),
        cryo: Outcome::Refused("user id: found 0, allowed 1000"),
        runc: Outcome::TakesEffect,
    };
    let user = container(&cx, node, &["--user", "1000:1000"]).await?;
    try_one(&cx, &user, &image, &attack).await
}

/// Honest filters, but of another profile than the restored container's.
pub(crate) async fn filters_of_another_profile_are_for_the_node_to_accept(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen(&cx, node).await?;
    container
        .edit_spec(|spec| {
            spec["linux"]["seccomp"] = serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
                "syscalls": [{ "names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            });
        })
        .await?;
    {
        let _output = container.create_from(Some(&image)).await?;
        let answer = container.api.start(&container.id).await;
        container.api.delete(&container.id).await?;
        let status = answer.err().context("another filter was taken")?;
        refused(&status, Outcome::Refused("seccomp filters: found others"))?;
        refused(
            &status,
            Outcome::Refused("`seccomp = \"any\"` under [restore]"),
        )?;
    }
    let _config = NodeConfig::set(node, "[restore]\nseccomp = \"any\"\n")?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

/// What all of them are forged from: a filter, a read-only volume, a process beside the first.
async fn container(cx: &Context, node: &Node, flags: &[&str]) -> anyhow::Result<Container> {
    let volume = cx.folder(node, "volume")?;
    let mount = format!("type=bind,src={volume},dst=/mnt,options=rbind:ro");
    let flags: Vec<_> = ["--seccomp", "--mount", &mount]
        .iter()
        .chain(flags)
        .copied()
        .collect();
    let script = format!("mkdir -p /evil; while :; do sleep 1; done & {COUNTER}");
    cx.container_with(node, &flags, BUSYBOX, &["sh", "-c", &script])
        .await
}

/// A checkpoint, the container that it was, and what that had counted.
async fn frozen(cx: &Context, node: &Node) -> anyhow::Result<(Container, String, Vec<u64>)> {
    let container = container(cx, node, &[]).await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    is_checkpoint(node, &image)?;
    let counted = numbers(&output.complete().await?);
    Ok((container, image, counted))
}

async fn all_of(cx: &Context, attacks: &[Attack]) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, image, before) = frozen(cx, node).await?;
    let mut failures = Vec::new();
    for attack in attacks {
        if let Err(error) = try_one(cx, &container, &image, attack).await {
            failures.push(format!("{}: {error:#}", attack.name));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    // What was not forged is restored.
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

async fn try_one(
    cx: &Context,
    container: &Container,
    image: &str,
    attack: &Attack,
) -> anyhow::Result<()> {
    let row = format!("| {} | {} | {} |", attack.name, attack.cryo, attack.runc);
    let page = std::fs::read_to_string(repository().join("docs/hostile-checkpoints.md"))?;
    ensure!(
        page.lines().any(|l| l == row),
        "not in docs/hostile-checkpoints.md: {row}"
    );

    let wanted = match cx.runtime() {
        Runtime::Cryo => attack.cryo,
        Runtime::Runc => attack.runc,
    };
    if let Outcome::NotTried(why) = wanted {
        cx.differs(why);
        return Ok(());
    }
    let node = &container.node;
    let forged = cx.folder(node, "forged")?;
    for entry in std::fs::read_dir(node.host(image))? {
        let entry = entry?;
        std::fs::copy(entry.path(), node.host(&forged).join(entry.file_name()))?;
    }
    (attack.forge)(&node.host(&forged))?;

    let output = container.create_from(Some(&forged)).await?;
    let outcome = match container.api.start(&container.id).await {
        Err(status) => {
            // containerd's service does not delete a task whose start failed; its clients do.
            container.api.delete(&container.id).await.ok();
            if cx.runtime() == Runtime::Cryo {
                refused(&status, wanted)?;
                ensure!(
                    output.numbers().is_empty(),
                    "it ran: {:?}",
                    output.numbers()
                );
                nothing_is_left(container).await?;
            }
            if matches!(wanted, Outcome::Refused(_)) {
                wanted
            } else {
                Outcome::Refused("")
            }
        }
        Ok(pid) => {
            let effect = (attack.effect)(&Restored { node, pid })?;
            container.api.kill(&container.id, 9).await.ok();
            container.finish().await?;
            if effect {
                Outcome::TakesEffect
            } else {
                Outcome::NoEffect
            }
        }
    };
    std::fs::remove_file(node.host(&forged).with_extension("pages")).ok();
    std::fs::remove_dir_all(node.host(&forged).with_extension("parent")).ok();
    ensure!(outcome == wanted, "{outcome}, wanted {wanted}");
    Ok(())
}

fn refused(status: &Status, wanted: Outcome) -> anyhow::Result<()> {
    let Outcome::Refused(words) = wanted else {
        return Ok(());
    };
    let codes = [
        Code::PermissionDenied,
        Code::FailedPrecondition,
        Code::Internal,
    ];
    ensure!(codes.contains(&status.code()), "{status:?}");
    ensure!(
        status.message().contains(words),
        "no {words:?} in: {}",
        status.message()
    );
    Ok(())
}

/// No process, mount or cgroup has the container's name any more.
async fn nothing_is_left(container: &Container) -> anyhow::Result<()> {
    let node = &container.node;
    let mut left = Vec::new();
    for entry in std::fs::read_dir(node.host("/proc"))?.flatten() {
        let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroups
            .lines()
            .any(|l| l.ends_with(&format!("/{}", container.id)))
        {
            left.push(format!("process {}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", node.pid()))?;
    left.extend(
        mounts
            .lines()
            .filter(|l| l.contains(&container.id))
            .map(str::to_owned),
    );
    let found = node
        .exec(&["find", "/sys/fs/cgroup", "-name", &container.id])
        .await?;
    left.extend(found.stdout.lines().map(str::to_owned));
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
