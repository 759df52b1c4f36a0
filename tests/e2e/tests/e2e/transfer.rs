//! Checkpoints with `lazy-pages`: memory that is fetched after the answer.

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Finished, Node};
use cryo_e2e::patience::until;
use cryo_e2e::workload::{COUNTER, PYTHON, goes_on, numbers};
use rustix::process::{Pid, Signal, kill_process};

use crate::failures::unharmed;

/// It knows what is in its memory, and counts into a file as long as that is so.
const REMEMBERS: &str = "\
import mmap, os, time
memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pages = range(0, len(memory), 4096)
for page in pages:
    memory[page:page + 8] = page.to_bytes(8, 'little')
if os.fork() == 0:
    while all(memory[page:page + 8] == page.to_bytes(8, 'little') for page in pages):
        time.sleep(0.05)
i = 0
while all(memory[page:page + 8] == page.to_bytes(8, 'little') for page in pages):
    with open('/count', 'a') as file:
        file.write(f'{i}\\n')
    i += 1
    time.sleep(0.05)
";

async fn cryoctl(node: &Node, arguments: &[&str]) -> anyhow::Result<Finished> {
    node.exec(&[&["/opt/cryo/bin/cryoctl"], arguments].concat())
        .await
}

/// Has the memory of a container served at an address.
async fn serve(
    container: &Container,
    folder: &str,
    at: &str,
    more: &[&str],
) -> anyhow::Result<Finished> {
    let asked = [
        "checkpoint",
        &container.id,
        "--lazy-pages",
        "--page-server",
        at,
        "--exit",
        "--image-dir",
        folder,
    ];
    cryoctl(&container.node, &[&asked[..], more].concat()).await
}

/// A connection that comes and goes.
async fn knock(node: &Node, port: u16) -> anyhow::Result<Finished> {
    let script = format!("import socket; socket.create_connection(('127.0.0.1', {port})).close()");
    node.exec(&["python3", "-c", &script]).await
}

/// It goes on as if nothing had been, and nobody is let in any more.
async fn given_up(container: &Container, output: &Output, port: u16) -> anyhow::Result<()> {
    container.wait_for(State::Running).await?;
    unharmed(container, output).await?;
    let refused = knock(&container.node, port).await?.failure()?;
    ensure!(refused.contains("refused"), "{refused}");
    Ok(())
}

pub(crate) async fn criu_fetches_it_on_the_other_node(cx: Context) -> anyhow::Result<()> {
    let (a, b) = (cx.a()?, cx.b()?);
    let container = cx
        .container(a, PYTHON, &["python3", "-c", REMEMBERS])
        .await?;
    container.create().await?;
    container.start().await?;
    let counted = |path: std::path::PathBuf| {
        move |n: usize| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let found = numbers(&text);
            Ok((found.len() >= n).then_some(found))
        }
    };
    let here = counted(container.in_rootfs("/count"));
    until("it counts", || here(5)).await?;

    let script = format!(
        "ip -4 -o addr show dev to-{} | {{ read -r _ _ _ own _; echo \"$own\"; }}",
        b.name()
    );
    let own = a.exec(&["sh", "-c", &script]).await?.success()?;
    let (own, port) = (own.trim(), 27_101);
    let images = format!("{}/images", cx.folder(a, "lazy")?);
    serve(&container, &images, &format!("{own}:{port}"), &[])
        .await?
        .success()?;
    container.expect(State::Paused).await?;
    let before = here(0)?.context("no count")?;

    // runc restores it, whose processes criu's own daemon fills.
    let bundle = cx.folder(b, "bundle")?;
    a.copy_to(&images, b, &format!("{bundle}/images")).await?;
    a.copy_to(
        &format!("{}/config.json", container.bundle()),
        b,
        &format!("{bundle}/config.json"),
    )
    .await?;
    cx.undo(
        b,
        format!(
            "runc delete -f {id}; umount {bundle}/rootfs; ctr snapshots rm {bundle}/rootfs",
            id = container.id
        ),
    );
    let restore = format!(
        "set -e; cd {bundle}; mkdir rootfs work
         ctr image mount --rw {PYTHON} {bundle}/rootfs
         sed -i 's#\"path\":\"[^\"]*rootfs\"#\"path\":\"rootfs\"#' config.json
         cd work
         criu lazy-pages --images-dir {bundle}/images --work-dir . \
           --page-server --address {own} --port {port} -v4 -o lazy.log >daemon 2>&1 &
         trap 'kill $! 2>/dev/null || :' EXIT
         until test -S lazy-pages.socket; do kill -0 $! || {{ cat daemon lazy.log; exit 1; }}; sleep 0.01; done
         runc restore --image-path {bundle}/images --work-path {bundle}/work --lazy-pages \
           --manage-cgroups-mode ignore --bundle {bundle} --detach {id} </dev/null >restored 2>&1 ||
           {{ cat restored; tail -n 30 restore.log lazy.log; exit 1; }}
         wait $! || {{ cat daemon; tail -n 30 lazy.log; exit 1; }}",
        id = container.id
    );
    b.exec(&["bash", "-c", &restore]).await?.success()?;

    // It is there, with all of its memory, and not here any more.
    ensure!(container.api.wait(&container.id).await? == 137);
    container.expect(State::Stopped).await?;
    let there = counted(b.host(&format!("{bundle}/rootfs/count")));
    let after = until("it counts on", || there(5)).await?;
    goes_on(&before, &after)?;
    ensure!(here(0)? == Some(before), "it counts in both places");
    let status = b
        .exec(&["runc", "ps", "-f", "json", &container.id])
        .await?
        .success()?;
    ensure!(
        status.matches(',').count() == 1,
        "not two processes: {status}"
    );
    container.api.delete(&container.id).await?;
    Ok(())
}

pub(crate) async fn meanwhile_each_call_has_its_answer(cx: Context) -> anyhow::Result<()> {
    const PORT: u16 = 27_102;
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let folder = cx.folder(node, "lazy")?;
    let at = format!("127.0.0.1:{PORT}");

    let archive = format!("{folder}/c.tar");
    let no_exit = ["checkpoint", &container.id, "--lazy-pages", "-e", &archive];
    let text = cryoctl(node, &no_exit).await?.failure()?;
    ensure!(text.contains("ask with exit"), "{text}");
    let images = format!("{folder}/1");
    for (more, why) in [
        (&["--tcp-established"], "tcp-close"),
        (&["--link-remap"], "link-remap"),
    ] {
        let text = serve(&container, &images, &at, more).await?.failure()?;
        ensure!(text.contains(why), "{text}");
    }
    let text = serve(&container, &images, "192.0.2.1:1", &[])
        .await?
        .failure()?;
    ensure!(
        text.contains("cannot serve memory at 192.0.2.1:1"),
        "{text}"
    );
    unharmed(&container, &output).await?;

    serve(&container, &images, &at, &[]).await?.success()?;
    let api = &container.api;
    let still = async || -> anyhow::Result<()> {
        container.expect(State::Paused).await?;
        ensure!(!api.pids(&container.id).await?.is_empty());
        Ok(())
    };
    still().await?;
    // A connection that comes and goes is not the end, as it is to criu's server.
    knock(node, PORT).await?.success()?;
    let text = api.pause(&container.id).await.err().context("paused")?;
    ensure!(text.message().contains("transfer of the memory"), "{text}");
    let again = serve(&container, &format!("{folder}/2"), "127.0.0.1:1", &[]).await?;
    let text = again.failure()?;
    ensure!(text.contains("transfer of the memory"), "{text}");
    ensure!(api.delete(&container.id).await.is_err(), "deleted");
    still().await?;
    node.restart_containerd(true).await?;
    still().await?;

    api.resume(&container.id).await?;
    given_up(&container, &output, PORT).await?;
    // And another one works.
    container.checkpoint(&format!("{folder}/3"), true).await?;
    ensure!(api.wait(&container.id).await? == 137);
    api.delete(&container.id).await?;
    let output = container.create_from(Some(&format!("{folder}/3"))).await?;
    container.start().await?;
    output.count_to(3).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn what_ends_it_lets_the_container_go_on(cx: Context) -> anyhow::Result<()> {
    const PORT: u16 = 27_103;
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let folder = cx.folder(node, "lazy")?;
    let at = format!("127.0.0.1:{PORT}");

    serve(
        &container,
        &format!("{folder}/1"),
        &at,
        &["--serve-timeout", "1"],
    )
    .await?
    .success()?;
    given_up(&container, &output, PORT)
        .await
        .context("its time")?;

    serve(&container, &format!("{folder}/2"), &at, &[])
        .await?
        .success()?;
    let criu = node.processes("criu");
    ensure!(criu.len() == 1, "{criu:?}");
    for pid in criu {
        let pid = Pid::from_raw(pid.cast_signed()).context("no pid")?;
        kill_process(pid, Signal::KILL)?;
    }
    given_up(&container, &output, PORT)
        .await
        .context("criu killed")?;

    serve(&container, &format!("{folder}/3"), &at, &[])
        .await?
        .success()?;
    container.api.kill(&container.id, 9).await?;
    ensure!(container.api.wait(&container.id).await? == 137);
    container.api.delete(&container.id).await?;
    ensure!(node.processes("criu").is_empty(), "criu stays");
    knock(node, PORT).await?.failure()?;
    Ok(())
}
