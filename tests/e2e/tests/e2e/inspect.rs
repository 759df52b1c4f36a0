//! Archives of real containers, as checkpointctl shows them and as cryoctl does.
//!
//! The reference is Debian's checkpointctl 1.3.0. What is different on purpose is listed in
//! `docs/cryoctl.md`, and put into what the reference said before both are compared: whatever else
//! differs is an error.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::Node;
use cryo_e2e::reference::older_archive;
use cryo_e2e::workload::PYTHON;
use serde_json::{Value, json};

use crate::{memory, podman};

/// Sockets and files of many kinds, and a child. On one line, as arguments in a tree are.
const PROGRAM: &str = r#"exec("
import os, select, socket, subprocess, time
tcp = socket.socket(); tcp.bind(('127.0.0.1', 5000)); tcp.listen(5)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('0.0.0.0', 5001))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.bind(('::1', 5002))
path = socket.socket(socket.AF_UNIX); path.bind('/tmp/sock'); path.listen(1)
abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); abstract.bind('\\0abstract')
one, other = socket.socketpair()
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
r, w = os.pipe()
os.mkfifo('/tmp/fifo'); fifo = os.open('/tmp/fifo', os.O_RDWR)
file = open('/tmp/file', 'w+')
poll = select.epoll(); poll.register(r)
event = os.eventfd(3)
child = subprocess.Popen(['sleep', '1000'])
print(1, flush=True)
time.sleep(1000)
")"#;

/// A life in Podman: the program, and its archive uncompressed, by gzip and by zstd.
const PODMAN: &str = r#"
program=$3
podman pull -q --tls-verify=false localhost:5000/python:1 >/dev/null
podman run -d --name program --network none -e EMPTY= -e 'JSON={"a":1}' localhost:5000/python:1 \
	python3 -c "$program" 'two words' '' >/dev/null
for _ in $(seq 300); do
	if [[ $(podman logs program) == 1 ]]; then break; fi
	sleep 0.1
done
# The first one is compared in full: podman leaves files of it behind for the next.
podman container checkpoint --leave-running -c none -e "$dir/program.tar" program >/dev/null
podman container checkpoint --leave-running -c gzip -e "$dir/program.tar.gz" program >/dev/null
podman container checkpoint -c zstd -e "$dir/program.tar.zst" program >/dev/null
"#;

/// The program on one line: `exec` gives the escapes back their meaning.
fn program() -> String {
    PROGRAM
        .trim()
        .replace("(\"\n", "(\"")
        .replace("\n\")", "\")")
        .replace('\n', "\\n")
}

async fn run(node: &Node, command: &[&str]) -> anyhow::Result<String> {
    node.exec(command).await?.success()
}

/// The outputs of these commands, all of which have to succeed.
async fn all(node: &Node, commands: &[String]) -> anyhow::Result<Vec<String>> {
    let script = format!("set -e; {}", commands.join("; printf '\\1'; "));
    let said = run(node, &["bash", "-c", &script]).await?;
    let said: Vec<_> = said.split('\u{1}').map(str::to_owned).collect();
    ensure!(
        said.len() == commands.len(),
        "{} outputs: {said:#?}",
        said.len()
    );
    Ok(said)
}

/// What both say of an archive, and of the same whose images are as CRIU before 4 wrote them.
async fn compare(node: &Node, archive: &str, older: &str) -> anyhow::Result<()> {
    let both = |line: &str| ["checkpointctl", "cryoctl"].map(|program| format!("{program} {line}"));
    let same = [
        format!("show {archive}"),
        format!("show {archive} {older}"),
        format!("inspect {archive}"),
        format!("inspect --mounts --stats {archive} {older}"),
    ];
    let trees = format!("inspect --all {older}");
    let json = format!("inspect --all --format json {older}");
    let lines: Vec<_> = same
        .iter()
        .chain([&trees, &json])
        .flat_map(|line| both(line))
        .collect();
    let said = all(node, &lines).await?;
    let mut pairs = said
        .chunks_exact(2)
        .filter_map(|pair| <&[String; 2]>::try_from(pair).ok());
    for line in &same {
        let pair = pairs.next().context("no output")?;
        let [theirs, ours] = pair
            .each_ref()
            .map(|text| with_reference_times(&without_addresses(text)));
        ensure!(theirs == ours, "{line}:\n{theirs}\n{ours}");
    }
    let [theirs, ours] = pairs.next().context("no tree")?;
    let (theirs, ours) = (expected_tree(theirs), with_reference_times(ours));
    let first = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
    ensure!(theirs == ours, "{first:?} in\n{theirs}\n{ours}");
    ensure!(ours.contains("[UNIX (STREAM)]  /tmp/sock"), "{ours}");
    let [theirs, ours] = pairs.next().context("no JSON")?;
    let expected = expected_json(serde_json::from_str(theirs)?, &node.host(older))?;
    let ours: Value = serde_json::from_str(ours)?;
    ensure!(expected == ours, "{expected:#}\n{ours:#}");
    Ok(())
}

/// A table without the columns IP and MAC, which versions before 1.4 have for several archives.
fn without_addresses(table: &str) -> String {
    let header = table.lines().next().unwrap_or_default();
    let Some((start, end)) = header.find("IP    ").zip(header.find("CHKPT SIZE")) else {
        return table.to_owned();
    };
    let line = |line: &str| {
        let kept = |&(at, _): &(usize, char)| !(start..end).contains(&at);
        let kept: String = line
            .chars()
            .enumerate()
            .filter(kept)
            .map(|(_, c)| c)
            .collect();
        format!("{kept}\n")
    };
    table.lines().map(line).collect()
}

/// The times of a tree as checkpointctl 1.3.0 prints them: it takes `100 ms` for `1.00` and makes
/// `1 ms` of it.
fn with_reference_times(tree: &str) -> String {
    let lines = tree.lines().map(|line| {
        let Some((label, time)) = line.split_once(" time: ") else {
            return line.to_owned();
        };
        let (number, unit) = time.split_once(' ').unwrap_or_default();
        let number = match number.contains('.') || unit == "µs" {
            true => number,
            false => number.trim_end_matches('0'),
        };
        format!("{label} time: {number} {unit}")
    });
    let mut text = lines.collect::<Vec<_>>().join("\n");
    text.push('\n');
    text
}

/// A tree of the reference with what is different on purpose.
fn expected_tree(theirs: &str) -> String {
    let mut lines = Vec::new();
    let mut annotations: Vec<String> = Vec::new();
    let mut within = false;
    for line in theirs.lines() {
        // Another order on each run; ours is sorted.
        if within && line.starts_with("│       ") {
            annotations.push(line.chars().skip(12).collect());
            continue;
        }
        annotations.sort_unstable();
        let last = annotations.len().saturating_sub(1);
        for (index, annotation) in annotations.drain(..).enumerate() {
            let branch = if index == last {
                "└── "
            } else {
                "├── "
            };
            lines.push(format!("│       {branch}{annotation}"));
        }
        within = line.ends_with("└── Annotations");
        let line: String = line
            .chars()
            .map(|c| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            })
            .collect();
        // The last word of an IPv6 address is not the whole address, and netlink has a name.
        let line = line.replace("[UDP]  0:1:::5002", "[UDP]  ::1:5002");
        lines.push(line.replace("[]  ↑", "[NETLINK]  ↑"));
    }
    lines.push(String::new());
    with_reference_times(&lines.join("\n"))
}

/// The JSON of the reference with what is different on purpose.
fn expected_json(mut theirs: Value, archive: &Path) -> anyhow::Result<Value> {
    let container = theirs.get_mut(0).context("no container")?;
    let annotations = json_of(archive, "spec.dump")?;
    let annotations = annotations.get("annotations").cloned().unwrap_or_default();
    // 1.3.0 has it in the tree only; newer ones have it here.
    let mut metadata = json!({ "annotations": annotations });
    for (key, annotation) in [
        ("pod_name", "io.kubernetes.cri.sandbox-name"),
        (
            "kubernetes_namespace",
            "io.kubernetes.cri.sandbox-namespace",
        ),
    ] {
        if let Some(value) = annotations.get(annotation) {
            metadata[key] = value.clone();
        }
    }
    container["metadata"] = metadata;
    let mut processes = vec![&mut container["process_tree"]];
    while let Some(process) = processes.pop() {
        // Newer ones have it.
        process["task_state"] = json!("Alive");
        if let Some(children) = process.get_mut("children").and_then(Value::as_array_mut) {
            processes.extend(children);
        }
    }
    let sockets = container["sockets"].as_array_mut().context("no sockets")?;
    for socket in sockets
        .iter_mut()
        .filter_map(|own| own["open_sockets"].as_array_mut())
        .flatten()
    {
        if socket["data"]["src"] == "0:1::" {
            socket["data"]["src"] = json!("::1");
        }
        if socket.get("protocol").is_none() && socket["data"].get("type").is_none() {
            socket["protocol"] = json!("NETLINK");
        }
    }
    Ok(theirs)
}

fn json_of(archive: &Path, name: &str) -> anyhow::Result<Value> {
    let mut archive = tar::Archive::new(File::open(archive)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        if path.trim_start_matches("./") == name {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            return Ok(serde_json::from_str(&text)?);
        }
    }
    anyhow::bail!("no {name}")
}

async fn of_cri(cx: &Context, handler: &str) -> anyhow::Result<(String, String)> {
    let node = cx.a()?;
    let pod = cx.pod(node, handler).await?;
    let container = pod
        .run(
            "program",
            PYTHON,
            &["python3", "-c", &program(), "two words", ""],
        )
        .await?;
    container.count_to(1).await?;
    let folder = cx.folder(node, handler)?;
    let archive = format!("{folder}/program.tar");
    container
        .cri
        .checkpoint(&container.id, &archive)
        .await
        .context("CheckpointContainer")?;
    let older = older_archive(node, &archive, &folder).await?;
    compare(node, &archive, &older).await?;
    Ok((folder, older))
}

pub(crate) async fn runcs_archives_are_shown_as_by_checkpointctl(
    cx: Context,
) -> anyhow::Result<()> {
    of_cri(&cx, "runc").await.map(drop)
}

pub(crate) async fn cryos_archives_are_shown_as_by_checkpointctl(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (folder, plain) = of_cri(&cx, cx.runtime().handler()).await?;
    // The same in each compression.
    let bytes = std::fs::read(node.host(&plain))?;
    for (suffix, packed) in [
        ("gz", gzip(&bytes)?),
        ("zst", zstd::encode_all(&*bytes, 1)?),
        ("bz2", bzip2(&bytes)?),
        ("xz", xz(&bytes)?),
    ] {
        std::fs::write(node.host(&format!("{folder}/packed.tar.{suffix}")), packed)?;
    }
    let path = |suffix: &str| format!("{folder}/packed.tar.{suffix}");
    let inspect = |path: &str| format!("cryoctl inspect --all {path} | sed s:{path}:ARCHIVE:");
    let mut commands = vec![inspect(&plain)];
    commands.extend(["gz", "zst", "bz2", "xz"].map(|suffix| inspect(&path(suffix))));
    // For the last one it needs the program xz, which the lab has not.
    for suffix in ["gz", "zst", "bz2"] {
        let path = path(suffix);
        commands.extend([
            format!("checkpointctl show {path}"),
            format!("cryoctl show {path}"),
        ]);
    }
    let said = all(node, &commands).await?;
    let (ours, shown) = said.split_at(5);
    for (text, command) in ours.iter().zip(&commands) {
        ensure!(Some(text) == ours.first(), "{command}: {text}");
    }
    for pair in shown.chunks(2) {
        ensure!(pair.first() == pair.last(), "{pair:#?}");
    }

    // What is run as checkpointctl is that.
    let link = format!("{folder}/checkpointctl");
    run(node, &["ln", "-s", "/opt/cryo/bin/cryoctl", &link]).await?;
    let shown = [
        format!("checkpointctl show {plain}"),
        format!("{link} show {plain}"),
    ];
    let said = all(node, &shown).await?;
    ensure!(said.first() == said.last(), "{said:#?}");
    for program in ["checkpointctl", &link] {
        let refused = node.exec(&[program, "inspect", "--wrong", &plain]).await?;
        ensure!(
            refused.code == 1 && refused.stderr.starts_with("Error: "),
            "{program}: {} {}",
            refused.code,
            refused.stderr
        );
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn bzip2(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn xz(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let options = lzma_rust2::XzOptions::with_preset(0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options)?;
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

pub(crate) async fn podmans_archives_are_shown_as_by_checkpointctl(
    cx: Context,
) -> anyhow::Result<()> {
    of_podman(&cx, "runc").await
}

pub(crate) async fn podmans_archives_with_crun_as_well(cx: Context) -> anyhow::Result<()> {
    of_podman(&cx, "crun").await
}

/// What both say of the memory in an archive of [`PROGRAM`].
async fn compare_memory(node: &Node, older: &str, folder: &str) -> anyhow::Result<()> {
    let sizes = run(node, &["cryoctl", "memparse", "--format", "json", older]).await?;
    let sizes: Value = serde_json::from_str(&sizes)?;
    let processes = sizes[0]["processes"].as_array().context("no processes")?;
    // The small one, for the hexdumps: of MiB, checkpointctl takes half a minute.
    let child = processes.iter().find(|process| process["name"] == "sleep");
    let child = child.and_then(|process| process["pid"].as_u64());
    let child = child.with_context(|| format!("no sleep in {sizes}"))?;
    let child = child.to_string();
    let file = format!("{folder}/hexdump");
    let lines: [&[&str]; 7] = [
        &[],
        &["-p", &child],
        &["-p", &child, "-o", &file],
        &["-p", "1", "-s", "two words", "-c", "10"],
        &["-p", &child, "-s", "PATH", "-c", "3"],
        &["-p", "1", "-r", "/tmp/f[a-z]+", "-c", "7"],
        &["-p", "1", "-s", "this is nowhere in it"],
    ];
    for line in lines {
        memory::same(node, line, older).await?;
    }
    Ok(())
}

async fn of_podman(cx: &Context, runtime: &str) -> anyhow::Result<()> {
    let node = cx.a()?;
    let folder = cx.folder(node, runtime)?;
    let life = [podman::SETUP, PODMAN].concat();
    let command = ["bash", "-c", &life, "podman", runtime, &folder, &program()];
    run(node, &command).await?;
    let archive = format!("{folder}/program.tar");
    let older = older_archive(node, &archive, &folder).await?;
    compare(node, &archive, &older).await?;
    compare_memory(node, &older, &folder).await?;
    // Other engines leave nothing in it that `verify` does not know.
    run(node, &["cryoctl", "verify", &archive]).await?;
    let mut commands = Vec::new();
    for suffix in ["gz", "zst"] {
        for program in ["checkpointctl", "cryoctl"] {
            commands.push(format!("{program} show {archive}.{suffix}"));
        }
    }
    let said = all(node, &commands).await?;
    for pair in said.chunks(2) {
        ensure!(pair.first() == pair.last(), "{pair:#?}");
    }
    Ok(())
}
