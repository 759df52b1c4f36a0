//! The memory in a checkpoint of a real process: as checkpointctl shows it, as gdb shows it, and
//! what becomes of it.

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Context, PodContainer};
use cryo_e2e::lab::Node;
use cryo_e2e::reference::older_archive;
use cryo_e2e::workload::{BUSYBOX, PYTHON};
use serde_json::{Value, json};

/// What the program has in memory, and nowhere in its arguments.
const MARK: &str = "memory of a checkpoint";

/// A program of three threads that tells the address of [`MARK`] and that of a MiB, of which it
/// changes the third and fourth page at each SIGUSR1.
const PROGRAM: &str = "\
import array, signal, threading, time
mark = array.array('B', bytes(reversed(b'tniopkcehc a fo yromem')) + bytes(1))
text = array.array('B', b'0123456789abcdef' * 65536)
start = (text.buffer_info()[0] + 4095) // 4096 * 4096
def change(*_):
    at = start - text.buffer_info()[0] + 2 * 4096
    text[at + 5] ^= 1
    text[at + 4096 + 5] ^= 1
    print(3, flush=True)
signal.signal(signal.SIGUSR1, change)
for _ in range(2):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print(mark.buffer_info()[0], flush=True)
print(start, flush=True)
while True:
    time.sleep(1000)
";

struct Checkpoint {
    archive: String,
    folder: String,
    /// Where [`MARK`] is.
    address: u64,
    /// Where the pages begin of which some are changed.
    start: u64,
}

async fn checkpoint(cx: &Context, node: &Node) -> anyhow::Result<(PodContainer, Checkpoint)> {
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let container = pod
        .run("memory", PYTHON, &["python3", "-c", PROGRAM])
        .await?;
    let numbers = container.count_to(2).await?;
    let folder = cx.folder(node, "memory")?;
    let archive = format!("{folder}/checkpoint.tar");
    container
        .cri
        .checkpoint(&container.id, &archive)
        .await
        .context("CheckpointContainer")?;
    let checkpoint = Checkpoint {
        archive,
        folder,
        address: *numbers.first().context("no address")?,
        start: *numbers.get(1).context("no second address")?,
    };
    Ok((container, checkpoint))
}

async fn run(node: &Node, command: &[&str]) -> anyhow::Result<String> {
    node.exec(command).await?.success()
}

/// The output of both programs, the same to the byte; of a written file its digest is part of it.
pub(crate) async fn same(node: &Node, line: &[&str], archive: &str) -> anyhow::Result<()> {
    let mut outputs = Vec::new();
    for program in ["checkpointctl", "cryoctl"] {
        let command = [&[program, "memparse"], line, &[archive]].concat();
        let mut output = run(node, &command).await?;
        if let Some(at) = line.iter().position(|word| *word == "-o") {
            let file = line.get(at + 1).context("no file")?;
            output.push_str(&run(node, &["sha256sum", file]).await?);
        }
        outputs.push(output);
    }
    let [theirs, ours] = <[String; 2]>::try_from(outputs).unwrap_or_default();
    ensure!(theirs.len() > 40, "{line:?}: {theirs}");
    let first = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
    ensure!(
        theirs == ours,
        "{line:?}: {} and {} bytes; differs first in {first:?}",
        theirs.len(),
        ours.len()
    );
    Ok(())
}

pub(crate) async fn memparse_is_as_checkpointctls(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (_container, checkpoint) = checkpoint(&cx, node).await?;
    let older = older_archive(node, &checkpoint.archive, &checkpoint.folder).await?;
    let lines: [&[&str]; 6] = [
        &[],
        &["-p", "1", "-s", MARK],
        &["--pid=1", "--search=PATH", "--context=10"],
        &["-p", "1", "-s", "PATH?", "-c", "3"],
        &["-p", "1", "-r", "chec[a-z]oint", "-c", "7"],
        &["-p", "1", "-s", "this is nowhere in it"],
    ];
    for line in lines {
        same(node, line, &older).await?;
    }
    // Hexdumps of a small process: of MiB, checkpointctl takes half a minute.
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let small = pod.run("small", BUSYBOX, &["sleep", "1000"]).await?;
    let folder = cx.folder(node, "small")?;
    let archive = format!("{folder}/checkpoint.tar");
    small.cri.checkpoint(&small.id, &archive).await?;
    let small = older_archive(node, &archive, &folder).await?;
    let file = format!("{folder}/hexdump");
    for line in [&["--pid", "1"][..], &["-p", "1", "-o", &file]] {
        same(node, line, &small).await?;
    }
    // What the archive is as CRIU wrote it makes no difference to us.
    let sizes = |path: &str| {
        let path = path.to_owned();
        async move { run(node, &["cryoctl", "memparse", "--format", "json", &path]).await }
    };
    let (new, old) = (sizes(&checkpoint.archive).await?, sizes(&older).await?);
    ensure!(
        new.replace("checkpoint.tar", "older.tar") == old,
        "{new} {old}"
    );
    Ok(())
}

pub(crate) async fn gdb_opens_a_core_file(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (_container, checkpoint) = checkpoint(&cx, node).await?;
    let core = format!("{}/core", checkpoint.folder);
    let archive = checkpoint.archive.as_str();
    let said = run(node, &["cryoctl", "core", "-p", "1", "-o", &core, archive]).await?;
    ensure!(said.contains("3 threads"), "{said}");

    // The address that the program told, by the search and in the debugger.
    let found = [
        "cryoctl", "memparse", "-p", "1", "-s", MARK, "--format", "json", archive,
    ];
    let found = run(node, &found).await?;
    let address = format!("{:#x}", checkpoint.address);
    ensure!(
        found.contains(&format!("\"address\":\"{address}\"")),
        "{address}: {found}"
    );
    let string = format!("x/s {address}");
    let gdb = run(
        node,
        &[
            "gdb",
            "-nx",
            "-batch",
            "-iex",
            "set auto-load off",
            "-ex",
            "info threads",
            "-ex",
            &string,
            "-ex",
            "info registers rip",
            "-ex",
            "thread apply all bt",
            "-ex",
            "info auxv",
            "/usr/bin/python3",
            &core,
        ],
    )
    .await?;
    ensure!(gdb.contains(MARK), "{gdb}");
    ensure!(gdb.matches("LWP").count() >= 3, "{gdb}");
    // All sleep in the C library: its frames have names only if registers, stacks, the link map
    // and the mapped files are right.
    let frames = gdb
        .lines()
        .filter(|line| line.starts_with("#0 ") && line.contains("libc"));
    ensure!(frames.count() >= 3, "{gdb}");
    ensure!(gdb.contains("AT_PAGESZ"), "{gdb}");
    Ok(())
}

pub(crate) async fn diff_finds_the_pages_that_changed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, checkpoint) = checkpoint(&cx, node).await?;
    let signal = ["sh", "-c", "kill -USR1 1 && echo changed > /tmp/changed"];
    container.cri.exec_sync(&container.id, &signal).await?;
    // It says so when it has.
    container.count_to(3).await?;
    let later = format!("{}/later.tar", checkpoint.folder);
    container.cri.checkpoint(&container.id, &later).await?;

    let earlier = checkpoint.archive.as_str();
    let command = [
        "cryoctl",
        "diff",
        "--memory",
        "--credentials",
        "--mounts",
        "--rootfs",
    ];
    let command = [&command[..], &["--format", "json", earlier, &later]].concat();
    let diff: Value = serde_json::from_str(&run(node, &command).await?)?;
    let areas = diff["memory_areas"][0]["areas"].as_array();
    let touched: Vec<(u64, u64)> = areas
        .context("no areas")?
        .iter()
        .flat_map(|area| area["touched"].as_array().into_iter().flatten())
        .filter_map(|range| {
            let (start, end) = range.as_str()?.split_once('-')?;
            Some((
                u64::from_str_radix(start, 16).ok()?,
                u64::from_str_radix(end, 16).ok()?,
            ))
        })
        .collect();
    // Of the pages of that MiB, those two and no other.
    let (start, end) = (checkpoint.start, checkpoint.start + (1 << 20) - 2 * 4096);
    let of_it: Vec<_> = touched
        .iter()
        .filter(|range| range.0 < end && range.1 > start)
        .collect();
    ensure!(
        of_it == [&(start + 2 * 4096, start + 4 * 4096)],
        "{start:x}: {of_it:x?} of {touched:x?}"
    );
    ensure!(diff["credential_changes"] == json!([]), "{diff}");
    ensure!(diff["mount_changes"] == json!([]), "{diff}");
    let files = diff["rootfs_changes"].as_array().context("no files")?;
    let changed = files.iter().find(|file| file["name"] == "/tmp/changed");
    let changed = changed.context("/tmp/changed is not among the changes")?;
    ensure!(
        changed["before"].is_null()
            && changed["after"]
                .as_str()
                .is_some_and(|line| line.contains(" 8 bytes ")),
        "{changed}"
    );
    Ok(())
}
