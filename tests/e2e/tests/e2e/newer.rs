//! cryoctl beside a newer checkpointctl than Debian's: one with `diff` and `plugin`, run as
//! `newer-checkpointctl` (`hack/lab tools`).
//!
//! It reads CRIU 4's images as they are. What is different on purpose is listed in
//! `docs/cryoctl.md`; whatever else differs is an error.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Finished, Node};
use cryo_e2e::workload::PYTHON;
use serde_json::Value;

use crate::podman;

pub(crate) const TOOLS: &[&str] = &["newer-checkpointctl"];

const THEIRS: &str = "newer-checkpointctl";
/// A link to ours of this name is in the archives' folder.
const LINK: &str = "checkpointctl";

/// Prints 1, and 2 once SIGUSR1 has come and it has other files, sockets and children. Without pairs
/// of unnamed sockets: theirs takes them for one.
const PROGRAM: &str = r#"exec("
import os, signal, socket, subprocess, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def bound(kind, address, family=socket.AF_INET):
    s = socket.socket(family, kind); s.bind(address); return s
tcp = bound(socket.SOCK_STREAM, ('127.0.0.1', 5000)); tcp.listen(5)
udp = bound(socket.SOCK_DGRAM, ('0.0.0.0', 5001))
path = bound(socket.SOCK_STREAM, '/tmp/sock', socket.AF_UNIX); path.listen(1)
abstract = bound(socket.SOCK_DGRAM, '\\0abstract', socket.AF_UNIX)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
file = open('/tmp/file', 'w+')
old = subprocess.Popen(['sleep', '1000'])
same = subprocess.Popen([sys.executable, '-c', 'import os, signal; signal.sigwait([signal.SIGUSR1]); os.execvp(\"sleep\", [\"sleep\", \"1001\"])'])
open('/tmp/pid', 'w').write(str(os.getpid()))
print(1, flush=True)
signal.sigwait([signal.SIGUSR1])
same.send_signal(signal.SIGUSR1)
more = b'x' * (4 << 20)
file.close(); file = open('/tmp/a-file-whose-name-is-longer-than-38-characters', 'w')
udp.close(); udp = bound(socket.SOCK_DGRAM, ('127.0.0.1', 5003))
other = bound(socket.SOCK_DGRAM, '/tmp/other', socket.AF_UNIX)
new = subprocess.Popen(['sleep', '1002'])
old.kill(); old.wait()
while b'1001' not in open('/proc/%d/cmdline' % same.pid, 'rb').read(): time.sleep(0.05)
while b'1002' not in open('/proc/%d/cmdline' % new.pid, 'rb').read(): time.sleep(0.05)
print(2, flush=True)
time.sleep(1000)
")"#;

/// Podman's archives of it, in three compressions, and one of another container.
const PODMAN: &str = r#"
program=$3
printed() {
	for _ in $(seq 600); do
		if podman logs program | grep -qx "$1"; then return; fi
		sleep 0.1
	done
	return 1
}
podman pull -q --tls-verify=false localhost:5000/python:1 >/dev/null
podman run -d --name program --network none -e EMPTY= localhost:5000/python:1 python3 -c "$program" >/dev/null
printed 1
podman container checkpoint --leave-running -c none -e "$dir/a.tar" program >/dev/null
podman kill -s USR1 program >/dev/null
printed 2
podman container checkpoint --leave-running -c zstd -e "$dir/b.tar.zst" program >/dev/null
podman container checkpoint --leave-running -c gzip -e "$dir/b.tar.gz" program >/dev/null
podman container checkpoint -c none -e "$dir/b.tar" program >/dev/null
podman run -d --name other --network none localhost:5000/python:1 sleep 1000 >/dev/null
podman container checkpoint -c none -e "$dir/other.tar" other >/dev/null
"#;

/// The program on one line: `exec` gives the escapes back their meaning.
fn program() -> String {
    PROGRAM
        .trim()
        .replace("(\"\n", "(\"")
        .replace("\n\")", "\")")
        .replace('\n', "\\n")
}

/// Both programs in the folder of the archives.
struct Both {
    node: Node,
    folder: String,
}

impl Both {
    async fn of(node: &Node, folder: &str) -> anyhow::Result<Self> {
        let link = format!("{folder}/{LINK}");
        let command = ["ln", "-s", "/opt/cryo/bin/cryoctl", &link];
        node.exec(&command).await?.success()?;
        Ok(Self {
            node: node.clone(),
            folder: folder.to_owned(),
        })
    }

    async fn run(&self, program: &str, line: &str) -> anyhow::Result<Finished> {
        let script = format!("cd '{}' && {program} {line}", self.folder);
        self.node.exec(&["bash", "-c", &script]).await
    }

    /// Both succeed and print the same. What theirs prints in another order on each run is put in
    /// order by `normal`, or it is run until it has the right one.
    async fn same(&self, line: &str, normal: impl Fn(&str) -> String) -> anyhow::Result<()> {
        let ours = self.run(&format!("./{LINK}"), line).await?.success()?;
        let ours = normal(&ours);
        let mut theirs = String::new();
        for _ in 0..40 {
            theirs = normal(&self.run(THEIRS, line).await?.success()?);
            if theirs == ours {
                return Ok(());
            }
        }
        let first = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
        anyhow::bail!("{line}: differs first in {first:?}:\n{theirs}\n{ours}")
    }

    /// Both fail in the same way; with the same first line if `text`.
    async fn fails(&self, line: &str, text: bool) -> anyhow::Result<()> {
        let theirs = self.run(THEIRS, line).await?;
        let ours = self.run(&format!("./{LINK}"), line).await?;
        for (whose, one) in [("theirs", &theirs), ("ours", &ours)] {
            ensure!(
                one.code == 1 && one.stdout.is_empty() && one.stderr.starts_with("Error: "),
                "{line}: {whose}: {} {:?} {:?}",
                one.code,
                one.stdout,
                one.stderr
            );
        }
        let first = |one: &Finished| one.stderr.lines().next().map(str::to_owned);
        ensure!(
            !text || first(&theirs) == first(&ours),
            "{line}: {:?} {:?}",
            theirs.stderr,
            ours.stderr
        );
        Ok(())
    }
}

/// What is different on purpose in trees and tables: control characters, netlink's name, the types of
/// unix sockets, the times
/// of a `diff`, and durations in ms that end in zeros.
fn text(said: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in said.lines() {
        let mut escaped = String::new();
        for c in line.chars() {
            match c.is_control() {
                true => escaped.extend(c.escape_default()),
                false => escaped.push(c),
            }
        }
        let mut line = escaped.replace("[IP]  ↑", "[NETLINK]  ↑");
        for kind in ["STREAM", "DGRAM"] {
            line = line.replace(&format!("[UNIX ({kind})]"), "[UNIX ()]");
        }
        if line.starts_with("  Created: ") {
            "  Created: -".clone_into(&mut line);
        }
        if let Some((label, time)) = line.split_once(" time: ")
            && let Some(number) = time.strip_suffix(" ms")
            && !number.contains('.')
        {
            line = format!("{label} time: {} ms", number.trim_end_matches('0'));
        }
        // The sockets of a `diff`: names of protocols, and columns that escapes make wider.
        if ["│  + ", "│  - ", "│  = "]
            .iter()
            .any(|mark| line.starts_with(mark))
        {
            let words: Vec<_> = line.split_whitespace().collect();
            line = words.join(" ");
            line = line
                .replace(" UNIX - ", " - ")
                .replace(" NETLINK - ", " IP - ");
        }
        lines.push(line);
    }
    let kinds = kinds(&lines);
    let mut rows: Vec<_> = kinds.into_iter().zip(lines).collect();
    // Rows of a kind have no order in theirs, and so another one may be the last of its branch.
    for group in rows.chunk_by_mut(|(a, _), (b, _)| !a.is_empty() && a == b) {
        for (kind, line) in group.iter_mut() {
            if !kind.is_empty() {
                *line = line.replace('└', "├");
            }
        }
        group.sort_unstable();
    }
    let rows: Vec<_> = rows.into_iter().map(|(_, line)| line).collect();
    rows.join("\n")
}

/// To which list without an order a line belongs, if any: annotations, variables, rows of a `diff`.
fn kinds(lines: &[String]) -> Vec<String> {
    let mut branch = None;
    let mut kinds = Vec::new();
    for line in lines {
        let glyph = branch.and_then(|at| line.chars().nth(at));
        let listed = ["Annotations", "Environment variables"];
        if let Some(title) = listed.iter().find(|title| line.ends_with(*title)) {
            branch = line.chars().count().checked_sub(title.chars().count());
            kinds.push(String::new());
            continue;
        }
        let head = |length| line.chars().take(length).collect::<String>();
        let row = ["│   + ", "│   - ", "│   = "].contains(&head(6).as_str());
        let socket = ["│ + ", "│ - ", "│ = "].contains(&head(4).as_str());
        kinds.push(match () {
            () if matches!(glyph, Some('├' | '└')) => "branch".to_owned(),
            () if row => head(6),
            () if socket && line != "│ = No change" => head(4),
            () => {
                branch = None;
                String::new()
            }
        });
    }
    kinds
}

/// The same of JSON.
fn json(said: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(said) else {
        return format!("no JSON: {said}");
    };
    in_order(&mut value);
    format!("{value:#}")
}

fn in_order(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match key.as_str() {
                    "created" => *value = Value::Null,
                    "protocol" if value == "IP" => *value = Value::from("NETLINK"),
                    _ => in_order(value),
                }
            }
        }
        Value::Array(array) => {
            array.iter_mut().for_each(in_order);
            array.sort_by_cached_key(Value::to_string);
        }
        _ => {}
    }
}

/// Every command over two archives of one container.
async fn compare(both: &Both, a: &str, b: &str) -> anyhow::Result<()> {
    let line = format!("inspect --ps-tree --format json {a}");
    let tree = both.run(&format!("./{LINK}"), &line).await?.success()?;
    let tree: Value = serde_json::from_str(&tree)?;
    let pid = tree[0]["process_tree"]["pid"].as_u64().context("no pid")?;
    for line in [
        format!("show {a}"),
        format!("show {a} {b}"),
        format!("inspect {a}"),
        format!("inspect --stats --mounts --metadata {a} {b}"),
        format!("inspect --all {b}"),
        format!("inspect --ps-tree-cmd --files=false -p {pid} --sockets {a}"),
        format!("memparse {b}"),
        format!("memparse -p {pid} -s /tmp/sock -c 10 {b}"),
        format!("memparse --pid={pid} --search-regex '/tmp/s[a-z]+' {a}"),
        format!("diff {a} {a}"),
        format!("diff --ps-tree-cmd {a} {b}"),
        format!("diff --ps-tree-cmd --files --sockets {a} {b}"),
        format!("diff --ps-tree-cmd --files --sockets --show-unchanged {a} {b}"),
        format!("diff --ps-tree-cmd --ps-tree-env {b} {a}"),
    ] {
        both.same(&line, text).await?;
    }
    for line in [
        format!("inspect --all --format json {a} {b}"),
        format!("inspect --format json {a}"),
        format!("diff --format json {a} {a}"),
        format!("diff --format=json --ps-tree-cmd --files --sockets --show-unchanged {a} {b}"),
        format!("diff --format json --ps-tree-cmd {b} {a}"),
    ] {
        both.same(&line, json).await?;
    }
    // It has to be about something.
    let line = format!("diff --ps-tree-cmd --files --sockets {a} {b}");
    let said = both.run(&format!("./{LINK}"), &line).await?.success()?;
    for part in ["Processes: +1 -1 ~1", "/tmp/a-file-whose", "127.0.0.1:5003"] {
        ensure!(said.contains(part), "{part}: {said}");
    }
    Ok(())
}

async fn of_podman(cx: &Context, runtime: &str) -> anyhow::Result<Both> {
    let node = cx.a()?;
    let folder = cx.folder(node, runtime)?;
    let life = [podman::SETUP, PODMAN].concat();
    let command = ["bash", "-c", &life, "podman", runtime, &folder, &program()];
    node.exec(&command).await?.success()?;
    let both = Both::of(node, &folder).await?;
    compare(&both, "a.tar", "b.tar").await?;
    for packed in ["b.tar.gz", "b.tar.zst"] {
        for line in [
            format!("show {packed}"),
            format!("inspect --all {packed}"),
            format!("diff --ps-tree-cmd --files a.tar {packed}"),
        ] {
            both.same(&line, text).await?;
        }
    }
    both.fails("diff a.tar other.tar", false).await?;
    Ok(both)
}

async fn of_cri(cx: &Context, handler: &str) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, handler).await?;
    let command = ["python3", "-c", &program()];
    let container = pod.run("program", PYTHON, &command).await?;
    let folder = cx.folder(node, handler)?;
    let checkpoint = async |name: &str| {
        let archive = format!("{folder}/{name}");
        container.cri.checkpoint(&container.id, &archive).await
    };
    container.count_to(1).await?;
    checkpoint("a.tar").await.context("the first")?;
    let next = ["sh", "-c", "kill -USR1 $(cat /tmp/pid)"];
    container.cri.exec_sync(&container.id, &next).await?;
    container.count_to(2).await?;
    checkpoint("b.tar").await.context("the second")?;
    let both = Both::of(node, &folder).await?;
    compare(&both, "a.tar", "b.tar").await
}

pub(crate) async fn cryos_archives(cx: Context) -> anyhow::Result<()> {
    of_cri(&cx, cx.runtime().handler()).await
}

pub(crate) async fn runcs_archives(cx: Context) -> anyhow::Result<()> {
    of_cri(&cx, "runc").await
}

pub(crate) async fn podmans_archives_with_crun(cx: Context) -> anyhow::Result<()> {
    of_podman(&cx, "crun").await.map(drop)
}

pub(crate) async fn podmans_archives_and_the_command_line(cx: Context) -> anyhow::Result<()> {
    let both = of_podman(&cx, "runc").await?;
    flags(&both).await?;
    for line in [
        "--nosuch",
        "-x",
        "nosuch",
        "show -x a.tar",
        "inspect --nosuch a.tar",
        "inspect --format xml a.tar",
        "diff --format xml a.tar b.tar",
        "memparse -p 99 a.tar",
    ] {
        both.fails(line, true).await?;
    }
    for line in [
        "show",
        "inspect",
        "memparse",
        "build a.tar",
        "diff",
        "diff a.tar",
        "diff a.tar b.tar other.tar",
        "diff a.tar gone.tar",
        "show gone.tar",
        "inspect -p abc a.tar",
        "inspect -p 99 a.tar",
        "inspect --files=maybe a.tar",
    ] {
        both.fails(line, false).await?;
    }
    plugins(&both).await
}

/// Each flag of theirs, long and short, is in our help of the same command.
async fn flags(both: &Both) -> anyhow::Result<()> {
    let of = |help: &str| -> BTreeSet<String> {
        help.lines()
            .map(str::trim)
            .filter(|line| line.starts_with('-'))
            .flat_map(|line| line.split([' ', ',', '=', '[']).take(3))
            .filter(|word| word.starts_with('-'))
            .map(str::to_owned)
            .collect()
    };
    for command in [
        "",
        "show",
        "inspect",
        "memparse",
        "list",
        "build",
        "diff",
        "plugin",
        "plugin list",
        "completion",
    ] {
        let line = format!("{command} --help");
        let theirs = of(&both.run(THEIRS, &line).await?.success()?);
        let ours = of(&both.run(&format!("./{LINK}"), &line).await?.success()?);
        ensure!(theirs.contains("--help"), "{line}: {theirs:?}");
        ensure!(theirs.is_subset(&ours), "{line}: {theirs:?} {ours:?}");
    }
    Ok(())
}

/// Executables in two folders of PATH, listed and run.
async fn plugins(both: &Both) -> anyhow::Result<()> {
    let make = r#"
mkdir one two
plugin() { printf '#!/bin/sh\n%s\n' "$2" >"$1"; chmod +x "$1"; }
plugin one/checkpointctl-hello 'if [ "$1" = --plugin-description ]; then echo Says hello; echo more; exit 42; fi
echo "hello $#:$*"; exit 7'
plugin one/checkpointctl-zero 'echo zero'
plugin two/checkpointctl-hello 'echo never'
plugin two/checkpointctl-show 'echo never'
plugin two/checkpointctl-silent 'exit 42'
plugin two/checkpointctl-slow 'sleep 5; echo late; exit 42'
plugin two/checkpointctl-passive 'echo never'
chmod -x two/checkpointctl-passive
mkdir two/checkpointctl-folder"#;
    let script = format!("cd '{}'; set -e; {make}", both.folder);
    both.node.exec(&["bash", "-c", &script]).await?.success()?;
    let folder = &both.folder;
    let theirs = format!("/opt/tools/{THEIRS}");
    for (path, line, code) in [
        ("/nowhere", "plugin list", 0),
        ("$PWD/one:/nowhere::$PWD/two", "plugin list", 0),
        ("$PWD/two:$PWD/one", "plugin list", 0),
        ("$PWD/one:$PWD/two", "hello --all 'two words' -h", 7),
        ("$PWD/one:$PWD/two", "zero", 0),
        ("$PWD/one:$PWD/two", "silent", 42),
        ("$PWD/one:$PWD/two", "show a.tar", 0),
    ] {
        let mut said = Vec::new();
        for program in [theirs.as_str(), &format!("{folder}/{LINK}")] {
            let script = format!("cd '{folder}'; PATH=\"{path}:/usr/bin:/bin\" {program} {line}");
            let one = both.node.exec(&["bash", "-c", &script]).await?;
            ensure!(one.code == code, "{program} {line}: {one:?}");
            let text = one.stdout.replace(
                "(not used: a built-in command has this name)",
                "(no description)",
            );
            said.push(text);
        }
        ensure!(said.first() == said.last(), "{path} {line}: {said:#?}");
    }
    Ok(())
}
