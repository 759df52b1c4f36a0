//! Restores whose memory comes afterwards.
//!
//! Nothing here is timed. What fills the memory is a process, which a hook of the restore stops
//! (SIGSTOP) before it fills what nobody has touched: from then on it is held until a test lets it
//! go on.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::{CheckpointOptions, State};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Node, parent};
use cryo_e2e::patience::until;
use cryo_e2e::workload::{PYTHON, goes_on, heap, numbers};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tonic::Code;

use crate::debug::state_of;
use crate::failures::explained;

const MIB: u64 = 1 << 20;

/// A python program with a checkpoint of it, which has ended.
struct Frozen {
    container: Container,
    image: String,
    counted: Vec<u64>,
    digest: String,
}

async fn frozen(cx: &Context, node: &Node, program: &str) -> anyhow::Result<Frozen> {
    let container = cx
        .container(node, PYTHON, &["python3", "-c", program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    let digest = output
        .until(|text| {
            let line = text.lines().find(|l| l.starts_with("ready "))?;
            (numbers(text).len() > 2).then(|| line.trim_start_matches("ready ").to_owned())
        })
        .await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let counted = numbers(&output.complete().await?);
    Ok(Frozen {
        container,
        image,
        counted,
        digest,
    })
}

/// Has its next restore fill memory afterwards.
async fn make_lazy(container: &Container) -> anyhow::Result<()> {
    container
        .edit_spec(|spec| spec["annotations"]["restore.cryo/lazy-pages"] = json!("true"))
        .await
}

/// Has it held from the start on, once it has got the container's memory and waits for more to do.
async fn hold(container: &Container) -> anyhow::Result<()> {
    let script = format!(
        "for p in /proc/[0-9]*; do \
           [ \"$(cat $p/comm)\" = cryo-memory ] || continue; \
           shim=$(sed -n 's/^PPid:[[:space:]]*//p' $p/status); \
           grep -q {} /proc/$shim/cmdline || continue; \
           until ls -l $p/fd | grep -q userfaultfd && grep -q '^State:.S' $p/status; \
             do sleep 0.01; done; \
           kill -STOP ${{p#/proc/}}; \
         done; true",
        container.id
    );
    let hook =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]);
    container
        .edit_spec(|spec| spec["hooks"] = json!({ "poststart": hook }))
        .await
}

/// The process that fills its memory.
fn server(container: &Container) -> anyhow::Result<Pid> {
    let shims = container.node.shims_of(&container.id);
    let all = container.node.processes("cryo-memory");
    let mut ours = all
        .into_iter()
        .filter(|pid| parent(*pid).is_some_and(|p| shims.contains(&p)));
    let pid = ours.next().context("nothing fills its memory")?;
    Pid::from_raw(pid.cast_signed()).context("no pid")
}

async fn memory(container: &Container) -> anyhow::Result<Value> {
    Ok(state_of(container).await?["memory"].take())
}

/// How far it is, once the shim has heard how much there is to do.
async fn begun(container: &Container) -> anyhow::Result<Value> {
    loop {
        let memory = memory(container).await?;
        ensure!(memory["phase"] == "filling", "{memory}");
        if memory["all_bytes"] != 0 {
            return Ok(memory);
        }
    }
}

/// The digest of its memory, when it is asked.
async fn digest(container: &Container, output: &Output) -> anyhow::Result<String> {
    container.api.kill(&container.id, 10).await?;
    output
        .until(|text| {
            let line = text.lines().find(|l| l.starts_with("digest "))?;
            Some(line.trim_start_matches("digest ").to_owned())
        })
        .await
}

async fn is_filled(container: &Container) -> anyhow::Result<Value> {
    loop {
        let memory = memory(container).await?;
        if memory["phase"] != "filling" {
            ensure!(memory["phase"] == "filled", "{memory}");
            return Ok(memory);
        }
    }
}

pub(crate) async fn it_runs_before_its_memory_is_there(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let Frozen {
        container,
        image,
        counted,
        digest: before,
    } = frozen(&cx, node, &heap(256)).await?;
    make_lazy(&container).await?;
    hold(&container).await?;
    let output = container.create_from(Some(&image)).await?;
    let pid = container.start().await?;
    // Started, and next to nothing is there yet.
    let told = begun(&container).await?;
    ensure!(told["all_bytes"].as_u64() > Some(256 * MIB), "{told}");
    ensure!(told["left_bytes"].as_u64() > Some(192 * MIB), "{told}");
    container.expect(State::Running).await?;
    let exec = container.exec("e", "echo 7", false).await?;
    exec.count_to(1).await?;
    container.finish_exec("e").await?;
    let resident = fs::read_to_string(node.host(&format!("/proc/{pid}/statm")))?;
    let pages: u64 = resident
        .split_whitespace()
        .nth(1)
        .context("no size")?
        .parse()?;
    ensure!(pages * 4096 < 64 * MIB, "{pages} pages are there");
    // As CRI does after a start.
    fs::remove_dir_all(node.host(&image))?;
    let server = server(&container)?;
    let protection = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    let server_pid = server.as_raw_nonzero().get().cast_unsigned();
    let shim = parent(server_pid).context("no shim")?;
    ensure!(protection(server_pid)? == protection(shim)?);
    kill_process(server, Signal::CONT)?;
    goes_on(&counted, &output.count_to(3).await?)?;
    ensure!(digest(&container, &output).await? == before);
    let told = is_filled(&container).await?;
    ensure!(told["left_bytes"] == 0 && told["held"] == 0, "{told}");
    ensure!(told["server"] == Value::Null, "{told}");
    container.kill_and_delete().await?;
    Ok(())
}

/// A program that, when asked, forks three children that look at all of its memory, and meanwhile
/// throws a part of that away, moves the rest and unmaps half of it.
const CHANGES: &str = "\
import mmap, os, signal, time, zlib
MIB = 1 << 20
SIZE = 64 * MIB
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block = os.urandom(MIB)
for n in range(64): memory[n * MIB:(n + 1) * MIB] = block[n:] + block[:n]
def digest(end):
    sum = 0
    for at in range(0, end, MIB): sum = zlib.crc32(memory[at:at + MIB], sum)
    return sum
half, most, whole = digest(SIZE // 2), digest(SIZE // 4 * 3), digest(SIZE)
def child():
    pid = os.fork()
    if pid == 0: os._exit(0 if digest(SIZE) == whole else 1)
    return pid
def change(*_):
    children = [child() for _ in range(3)]
    memory.madvise(mmap.MADV_DONTNEED, SIZE // 4 * 3, SIZE // 4)
    zero = not any(memory[SIZE // 4 * 3:SIZE // 4 * 3 + MIB]) and not any(memory[SIZE - MIB:])
    memory.resize(SIZE * 2)
    moved = digest(SIZE // 4 * 3) == most and not any(memory[SIZE * 2 - MIB:])
    memory.resize(SIZE // 2)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    print('changed', zero, moved, digest(SIZE // 2) == half, *ends, flush=True)
signal.signal(signal.SIGUSR1, change)
print('ready', whole, flush=True)
i = 0
while True:
    print(i, flush=True)
    i += 1
    time.sleep(0.05)
";

/// Started again, with what fills its memory held.
async fn held(cx: &Context, node: &Node, program: &str) -> anyhow::Result<(Frozen, Output, Pid)> {
    let frozen = frozen(cx, node, program).await?;
    make_lazy(&frozen.container).await?;
    hold(&frozen.container).await?;
    let output = frozen.container.create_from(Some(&frozen.image)).await?;
    frozen.container.start().await?;
    let told = begun(&frozen.container).await?;
    ensure!(told["left_bytes"].as_u64() > Some(48 * MIB), "{told}");
    let server = server(&frozen.container)?;
    Ok((frozen, output, server))
}

async fn ends(process: Pid) -> anyhow::Result<()> {
    until("what fills the memory ends", || {
        let gone = !std::path::Path::new(&format!("/proc/{}", process.as_raw_nonzero())).exists();
        Ok(gone.then_some(()))
    })
    .await
}

pub(crate) async fn forks_and_moves_find_their_memory(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (frozen, output, server) = held(&cx, node, CHANGES).await?;
    let container = &frozen.container;
    container.api.kill(&container.id, 10).await?;
    kill_process(server, Signal::CONT)?;
    let changed = output
        .until(|text| {
            text.lines()
                .find(|l| l.starts_with("changed"))
                .map(str::to_owned)
        })
        .await?;
    ensure!(changed == "changed True True True 0 0 0", "{changed}");
    goes_on(&frozen.counted, &output.count_on(3).await?)?;
    let told = is_filled(container).await?;
    ensure!(told["held"] == 0, "{told}");
    container.kill_and_delete().await?;
    ends(server).await
}

pub(crate) async fn a_checkpoint_waits_for_the_memory(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (frozen, output, server) = held(&cx, node, &heap(64)).await?;
    let container = &frozen.container;
    let image = cx.folder(node, "again")?;
    let options = || CheckpointOptions {
        image_path: image.clone(),
        exit: true,
        ..Default::default()
    };
    let answer = container
        .api
        .checkpoint_within(&container.id, options(), Duration::from_secs(5))
        .await;
    explained(
        &cx,
        answer,
        &[Code::Unavailable],
        &["still to come", "lazy-pages"],
    )?;
    ensure!(
        fs::read_dir(node.host(&image))?.next().is_none(),
        "files were left"
    );
    kill_process(server, Signal::CONT)?;
    // Frozen or not makes no difference to who fills.
    container.api.pause(&container.id).await?;
    is_filled(container).await?;
    container.api.resume(&container.id).await?;
    output.count_on(2).await?;
    container.api.checkpoint(&container.id, options()).await?;
    container.finish().await?;
    let counted = numbers(&output.complete().await?);
    goes_on(&frozen.counted, &counted)?;
    // All at once this time, and then lazily from what was filled lazily.
    for lazy in [false, true] {
        container
            .edit_spec(|spec| {
                spec["annotations"]["restore.cryo/lazy-pages"] = json!(lazy.to_string());
                spec["hooks"] = json!({});
            })
            .await?;
        let output = container.create_from(Some(&image)).await?;
        container.start().await?;
        goes_on(&counted, &output.count_to(2).await?)?;
        ensure!(digest(container, &output).await? == frozen.digest);
        container.kill_and_delete().await?;
    }
    Ok(())
}

pub(crate) async fn a_delete_ends_the_server(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (frozen, _output, server) = held(&cx, node, &heap(64)).await?;
    let code = frozen.container.kill_and_delete().await?;
    ensure!(code == 137, "{code}");
    ends(server).await
}

pub(crate) async fn the_end_of_the_server_is_the_containers(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (frozen, output, server) = held(&cx, node, &heap(64)).await?;
    let container = &frozen.container;
    // It waits for its memory when that is lost.
    container.api.kill(&container.id, 10).await?;
    kill_process(server, Signal::KILL)?;
    let code = container.finish().await?;
    ensure!(code == 137, "{code}");
    let text = output.complete().await?;
    ensure!(!text.contains("digest"), "it saw its memory: {text}");
    let log = fs::read_to_string(node.log())?;
    let line = log
        .lines()
        .find(|l| l.contains("the container is killed") && l.contains(&container.id));
    let line = line.context("the log does not say why")?;
    ensure!(
        line.contains("the memory server ended with status 137"),
        "{line}"
    );
    let told = node
        .exec(&["cryoctl", "failures", "--format", "json"])
        .await?
        .success()?;
    ensure!(told.contains("the memory server ended"), "{told}");
    // It can be had again.
    container
        .edit_spec(|spec| spec["hooks"] = json!({}))
        .await?;
    let output = container.create_from(Some(&frozen.image)).await?;
    container.start().await?;
    ensure!(digest(container, &output).await? == frozen.digest);
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn the_shim_killed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (frozen, _output, server) = held(&cx, node, &heap(64)).await?;
    let container = &frozen.container;
    let events = cx.events(node).await?;
    ensure!(node.kill_shims_of(&container.id)? > 0, "no shim");
    // containerd runs `delete`, which ends the container.
    let exit = events.wait_for(&container.id, "/tasks/exit").await?;
    ensure!(exit.exit == Some((container.id.clone(), 137)), "{exit:?}");
    kill_process(server, Signal::CONT)?;
    ends(server).await
}

pub(crate) async fn a_memory_limit_ends_it(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let frozen = frozen(&cx, node, &heap(128)).await?;
    let container = &frozen.container;
    make_lazy(container).await?;
    container
        .edit_spec(|spec| spec["linux"]["resources"]["memory"]["limit"] = json!(64 * MIB))
        .await?;
    let output = container.create_from(Some(&frozen.image)).await?;
    container.start().await?;
    container.api.kill(&container.id, 10).await.ok();
    let code = container.finish().await?;
    ensure!(code == 137, "{code}");
    let text = output.complete().await?;
    ensure!(!text.contains("digest"), "it saw all of its memory: {text}");
    Ok(())
}

pub(crate) async fn what_cannot_be_is_refused_at_once(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let frozen = frozen(&cx, node, &heap(1)).await?;
    let container = &frozen.container;
    make_lazy(container).await?;
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    container
        .edit_spec(|spec| {
            if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({"type": "user"}));
            }
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        })
        .await?;
    let request = container.create_request(Some(&frozen.image)).await?;
    container.api.create(request).await?;
    let answer = container.api.start(&container.id).await;
    let words = ["lazy-pages", "user namespace", "leave the option out"];
    explained(&cx, answer, &[Code::FailedPrecondition], &words)?;
    container.api.delete(&container.id).await?;
    Ok(())
}
