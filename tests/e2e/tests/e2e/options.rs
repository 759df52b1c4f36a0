//! Each option of a checkpoint and of a restore: refused without it, done with it.
//!
//! `docs/options.md` has the options. What they are set by is in the first tests; the others set
//! them by annotations, because that is what a pod has.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::containerd::{CheckpointOptions, State};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Finished, Node, NodeConfig};
use cryo_e2e::patience::until;
use cryo_e2e::workload::{COUNTER, PYTHON, goes_on, heap, numbers};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::checkpoint::{flat_names, is_checkpoint};
use crate::failures::{explained, refused, unharmed};

/// A python program: what it has made, then twenty times a second how that is, and a number.
fn program(setup: &str) -> String {
    format!(
        "import os, socket, sys, time, zlib\n\
         {setup}\n\
         i = 0\n\
         while True:\n\
         \x20   print(status(), flush=True)\n\
         \x20   print(i, flush=True)\n\
         \x20   i += 1\n\
         \x20   time.sleep(0.05)\n"
    )
}

/// Something that CRIU takes only when it is told to.
struct Thing<'a> {
    /// Python that makes it, and `status()`.
    setup: &'a str,
    /// What `status()` says of a whole one.
    whole: &'a str,
    /// Flags of `ctr container create`.
    flags: &'a [&'a str],
}

impl Thing<'_> {
    /// A container with it, and with these annotations; counting.
    async fn run(
        &self,
        cx: &Context,
        node: &Node,
        annotations: &[&str],
    ) -> anyhow::Result<(Container, Output)> {
        let program = program(self.setup);
        let mut flags = self.flags.to_vec();
        for annotation in annotations {
            flags.extend(["--annotation", annotation]);
        }
        let container = cx
            .container_with(node, &flags, PYTHON, &["python3", "-c", &program])
            .await?;
        let output = container.create().await?;
        container.start().await?;
        says(&output, self.whole).await?;
        Ok((container, output))
    }

    /// Checks that a checkpoint without the option is refused, and that it names `word`.
    async fn is_refused(&self, cx: &Context, node: &Node, word: &str) -> anyhow::Result<()> {
        let (container, output) = self.run(cx, node, &[]).await?;
        is_refused(cx, &container, &output, &[word]).await?;
        container.kill_and_delete().await?;
        Ok(())
    }

    /// Checks that with the annotations it is checkpointed and comes back whole.
    async fn comes_back(
        &self,
        cx: &Context,
        node: &Node,
        annotations: &[&str],
    ) -> anyhow::Result<Container> {
        let (container, output) = self.run(cx, node, annotations).await?;
        let (image, before) = freeze(cx, &container, &output).await?;
        let output = container.create_from(Some(&image)).await?;
        container.start().await?;
        goes_on(&before, &output.count_to(3).await?)?;
        says(&output, self.whole).await?;
        Ok(container)
    }
}

/// Waits until the program has said this, and three numbers.
async fn says(output: &Output, word: &str) -> anyhow::Result<()> {
    output
        .until(|text| (numbers(text).len() > 2 && text.lines().any(|l| l == word)).then_some(()))
        .await
        .with_context(|| format!("wait for {word:?}"))
}

/// Checkpoints with exit into a folder of its own; the folder, and what was counted.
async fn freeze(
    cx: &Context,
    container: &Container,
    output: &Output,
) -> anyhow::Result<(String, Vec<u64>)> {
    let image = cx.folder(&container.node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    Ok((image, before))
}

/// Checks that a checkpoint is refused with these words and leaves nothing.
async fn is_refused(
    cx: &Context,
    container: &Container,
    output: &Output,
    words: &[&str],
) -> anyhow::Result<()> {
    let image = cx.folder(&container.node, "image")?;
    let answer = container
        .api
        .checkpoint(
            &container.id,
            CheckpointOptions {
                image_path: image.clone(),
                ..Default::default()
            },
        )
        .await;
    explained(cx, answer, &[Code::FailedPrecondition], words)?;
    ensure!(
        flat_names(&container.node.host(&image))?.is_empty(),
        "files were left"
    );
    unharmed(container, output).await
}

/// A python program in the node that runs until its folder is gone or [`Client::stop`].
struct Client {
    go: std::path::PathBuf,
    done: JoinHandle<anyhow::Result<Finished>>,
}

impl Client {
    /// Starts it; `{go}` in the program is the file that it has to look for.
    fn run(cx: &Context, node: &Node, program: &str) -> anyhow::Result<Self> {
        let go = format!("{}/go", cx.folder(node, "client")?);
        std::fs::write(node.host(&go), "")?;
        let program = format!(
            "import os, socket, sys, time\n{}",
            program.replace("{go}", &go)
        );
        let there = node.clone();
        let done = tokio::spawn(async move {
            there
                .exec(&["timeout", "200", "python3", "-c", &program])
                .await
        });
        Ok(Self {
            go: node.host(&go),
            done,
        })
    }

    /// Tells it to send nothing until this is called with `false`.
    fn hold(&self, on: bool) -> std::io::Result<()> {
        let file = self.go.with_file_name("go-not");
        if on {
            std::fs::write(file, "")
        } else {
            std::fs::remove_file(file)
        }
    }

    /// Tells it to end; what it said, if all went well.
    async fn stop(self) -> anyhow::Result<String> {
        std::fs::remove_file(&self.go)?;
        self.done.await??.success()
    }
}

/// What the client of a connection does: a byte goes there and has to come back.
fn pings(port: &str) -> String {
    format!(
        "s = socket.create_connection(('127.0.0.1', {port}))\n\
         s.settimeout(0.2)\n\
         s.send(b'x')\n\
         while os.path.exists('{{go}}'):\n\
         \x20   try: got = s.recv(1)\n\
         \x20   except TimeoutError: continue\n\
         \x20   if got != b'x': sys.exit('the connection was closed')\n\
         \x20   time.sleep(0.02)\n\
         \x20   while os.path.exists('{{go}}-not'): time.sleep(0.02)\n\
         \x20   s.send(b'x')\n"
    )
}

/// One connection, whose bytes go back.
const ECHO: &str = "\
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
print('port', server.getsockname()[1], flush=True)
peer = server.accept()[0]
peer.setblocking(False)
def status():
    try:
        data = peer.recv(100)
        if not data: return 'ended'
        peer.send(data)
        return 'echo'
    except BlockingIOError: return 'quiet'
    except OSError: return 'ended'
";

/// A container in the node's network with a connection to a client in the node.
async fn connected(
    cx: &Context,
    node: &Node,
    annotations: &[&str],
) -> anyhow::Result<(Container, Output, Client)> {
    let program = program(ECHO);
    let mut flags = vec!["--net-host"];
    for annotation in annotations {
        flags.extend(["--annotation", annotation]);
    }
    let container = cx
        .container_with(node, &flags, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    let port = output
        .until(|t| Some(t.lines().next()?.strip_prefix("port ")?.to_owned()))
        .await?;
    let client = Client::run(cx, node, &pings(&port))?;
    says(&output, "echo").await?;
    Ok((container, output, client))
}

// ---- who sets them -----------------------------------------------------------------------

const LOCKS: Thing<'_> = Thing {
    setup: "import fcntl\n\
            held = open('/tmp/lock', 'w')\n\
            fcntl.flock(held, fcntl.LOCK_EX)\n\
            def status():\n\
            \x20   other = open('/tmp/lock')\n\
            \x20   try: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
            \x20   except OSError: return 'held'\n\
            \x20   return 'lost'",
    whole: "held",
    flags: &[],
};

pub(crate) async fn unknown_and_foreign_annotations_end_a_create(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    for (annotation, word) in [
        ("checkpoint.cryo/file-lock=true", "file-locks"),
        ("checkpoint.cryo/file-locks=perhaps", "perhaps"),
        (
            "checkpoint.cryo/config-file=/tmp/evil.conf",
            "no such option",
        ),
        ("checkpoint.cryo/action-script=/tmp/evil", "no such option"),
        ("checkpoint.cryo/page-server=192.0.2.1:1", "node's owner"),
        ("checkpoint.cryo/parent-path=../../other", "request"),
        ("checkpoint.cryo/manage-cgroups=full", "node's owner"),
        ("checkpoint.cryo/lazy-pages=true", "not fill memory"),
        ("restore.cryo/libdir=/tmp/plugins", "no such option"),
        (
            "restore.cryo/lsm-profile=apparmor:unconfined",
            "node's owner",
        ),
        ("restore.cryo/lazy-pages=true", "not fill memory"),
        ("restore.cryo/shell-job=true", "terminal"),
    ] {
        let container = cx
            .container_with(node, &["--annotation", annotation], PYTHON, &["true"])
            .await?;
        let request = container.create_request(None).await?;
        let answer = container.api.create(request).await;
        let (name, _) = annotation.split_once('=').context("=")?;
        explained(&cx, answer, &[Code::InvalidArgument], &[name, word])
            .with_context(|| annotation.to_owned())?;
        refused(
            container.api.get(&container.id).await,
            &[Code::NotFound],
            "the task of the refused create",
        )?;
    }
    Ok(())
}

pub(crate) async fn the_request_an_annotation_and_the_node_set_them(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    LOCKS.is_refused(&cx, node, "file-locks").await?;
    LOCKS
        .comes_back(&cx, node, &["checkpoint.cryo/file-locks=true"])
        .await?
        .kill_and_delete()
        .await?;
    {
        let _config = NodeConfig::set(node, "[checkpoint]\nfile-locks = true\n")?;
        LOCKS
            .comes_back(&cx, node, &[])
            .await?
            .kill_and_delete()
            .await?;
        // The annotation goes over it, and the request over both.
        let (container, output) = LOCKS
            .run(&cx, node, &["checkpoint.cryo/file-locks=false"])
            .await?;
        is_refused(&cx, &container, &output, &["file-locks"]).await?;
        let options = CheckpointOptions {
            image_path: cx.folder(node, "image")?,
            file_locks: true,
            ..Default::default()
        };
        container.api.checkpoint(&container.id, options).await?;
        unharmed(&container, &output).await?;
        container.kill_and_delete().await?;
    }
    {
        let _config = NodeConfig::set(node, "[checkpoint]\nfile-locks = true\nghost-limt = 1\n")?;
        let (container, output) = cx.shell(node, COUNTER).await?;
        output.count_to(2).await?;
        let words = [
            "/etc/cryo/config.toml",
            "line 3",
            "ghost-limt",
            "ghost-limit",
        ];
        is_refused(&cx, &container, &output, &words).await?;
        container.kill_and_delete().await?;
    }
    Ok(())
}

pub(crate) async fn a_pods_annotations_reach_them(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let archive = |name: &str| anyhow::Ok(format!("{}/{name}.tar", cx.folder(node, "archive")?));
    let program = program(LOCKS.setup);
    for (annotations, works) in [
        (&[][..], false),
        (&[("checkpoint.cryo/file-locks", "true")], true),
    ] {
        let pod = cx.pod_with(node, "cryo", annotations).await?;
        let container = pod
            .run("locks", PYTHON, &["python3", "-c", &program])
            .await?;
        container.count_to(2).await?;
        let to = archive("locks")?;
        let answer = node.cri().checkpoint(&container.id, &to).await;
        if works {
            answer?;
        } else {
            explained(
                &cx,
                answer,
                &[Code::FailedPrecondition, Code::Unknown],
                &["file-locks"],
            )?;
        }
        container.count_on(2).await?;
    }
    let bad = cx
        .pod_with(node, "cryo", &[("restore.cryo/no-such", "1")])
        .await;
    let Err(error) = bad else {
        bail!("a pod with an annotation that is not known runs");
    };
    ensure!(
        format!("{error:?}").contains("restore.cryo/no-such"),
        "{error:?}"
    );
    Ok(())
}

/// runc and crun honour this annotation: what it names then runs as root on the node.
pub(crate) async fn an_annotation_that_names_a_configuration_is_not_heard(
    cx: Context,
) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let node = cx.a()?;
    let folder = cx.folder(node, "evil")?;
    let (config, script, seen) = (
        format!("{folder}/criu.conf"),
        format!("{folder}/script"),
        node.host(&folder).join("seen"),
    );
    std::fs::write(node.host(&config), format!("action-script {script}\n"))?;
    std::fs::write(
        node.host(&script),
        format!("#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >>{folder}/seen\n"),
    )?;
    std::fs::set_permissions(node.host(&script), std::fs::Permissions::from_mode(0o755))?;
    let annotation = format!("org.criu.config={config}");
    let thing = Thing {
        setup: "def status(): return 'here'",
        whole: "here",
        flags: &["--annotation", &annotation],
    };
    thing
        .comes_back(&cx, node, &[])
        .await?
        .kill_and_delete()
        .await?;
    let heard = std::fs::read_to_string(&seen).unwrap_or_default();
    if cx.differs("runc reads the CRIU configuration that org.criu.config names, and CRIU runs its action script as root") {
        ensure!(heard.contains("pre-dump"), "the script of the test does not work: {heard:?}");
        return Ok(());
    }
    ensure!(heard.is_empty(), "the action script ran: {heard}");
    Ok(())
}

// ---- files -------------------------------------------------------------------------------

pub(crate) async fn link_remap(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "kept = open('/tmp/a', 'w+')\n\
                kept.write('kept')\n\
                kept.flush()\n\
                os.link('/tmp/a', '/tmp/b')\n\
                os.unlink('/tmp/a')\n\
                def status():\n\
                \x20   kept.seek(0)\n\
                \x20   same = os.fstat(kept.fileno()).st_ino == os.stat('/tmp/b').st_ino\n\
                \x20   return kept.read() if same else 'another file'",
        whole: "kept",
        flags: &[],
    };
    thing.is_refused(&cx, node, "link-remap").await?;
    let container = thing
        .comes_back(&cx, node, &["checkpoint.cryo/link-remap=true"])
        .await?;
    let left: Vec<_> = std::fs::read_dir(container.in_rootfs("tmp"))?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    ensure!(left == ["b"], "{left:?}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn ghost_limit(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "ghost = open('/tmp/ghost', 'w+b')\n\
                ghost.write(os.urandom(2 << 20))\n\
                ghost.flush()\n\
                os.unlink('/tmp/ghost')\n\
                def digest():\n\
                \x20   ghost.seek(0)\n\
                \x20   return zlib.crc32(ghost.read())\n\
                first = digest()\n\
                def status(): return 'same' if digest() == first else 'another'",
        whole: "same",
        flags: &[],
    };
    thing.is_refused(&cx, node, "ghost").await?;
    thing
        .comes_back(&cx, node, &["checkpoint.cryo/ghost-limit=4M"])
        .await?
        .kill_and_delete()
        .await?;
    Ok(())
}

pub(crate) async fn ext_unix_sk(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let folder = cx.folder(node, "peer")?;
    // In the container's network namespace, or CRIU could not tell what it is; and the container
    // sees it where the peer is bound to, where CRIU looks for it.
    let peer = Client::run(
        &cx,
        node,
        &format!(
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
             s.bind('{folder}/s')\n\
             s.settimeout(0.2)\n\
             said = open('{folder}/said', 'w', buffering=1)\n\
             while os.path.exists('{{go}}'):\n\
             \x20   try: said.write(s.recv(16).decode() + '\\n')\n\
             \x20   except TimeoutError: pass\n"
        ),
    )?;
    there(&node.host(&folder).join("said")).await?;
    let mount = format!("type=bind,src={folder},dst={folder},options=rbind:rw");
    let setup = format!(
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         peer.connect('{folder}/s')\n\
         def status():\n\
         \x20   peer.send(str(i).encode())\n\
         \x20   return 'sent'"
    );
    let thing = Thing {
        setup: &setup,
        whole: "sent",
        flags: &["--net-host", "--mount", &mount],
    };
    thing.is_refused(&cx, node, "ext-unix-sk").await?;
    let (container, output) = thing
        .run(&cx, node, &["checkpoint.cryo/ext-unix-sk=true"])
        .await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    let after = output.count_to(3).await?;
    goes_on(&before, &after)?;
    container.kill_and_delete().await?;
    peer.stop().await?;
    let said = numbers(&std::fs::read_to_string(node.host(&folder).join("said"))?);
    ensure!(
        before.iter().chain(&after).all(|n| said.contains(n)),
        "counted {before:?} and {after:?}, the peer got {said:?}"
    );

    // The new container may say no.
    let strict = cx
        .container_with(
            node,
            &[
                "--net-host",
                "--mount",
                &mount,
                "--annotation",
                "restore.cryo/ext-unix-sk=false",
            ],
            PYTHON,
            &["true"],
        )
        .await?;
    refuses_to_start(&cx, &strict, &image, &["ext-unix-sk"]).await
}

// ---- connections -------------------------------------------------------------------------

pub(crate) async fn tcp_established(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output, client) = connected(&cx, node, &[]).await?;
    is_refused(&cx, &container, &output, &["tcp-established"]).await?;
    client.stop().await?;
    container.kill_and_delete().await?;

    for lock in ["auto", "nftables", "iptables", "skip"] {
        survives(&cx, node, lock)
            .await
            .with_context(|| format!("network-lock {lock}"))?;
    }
    Ok(())
}

/// A connection outlives its server's checkpoint and restore, held still by `lock`.
async fn survives(cx: &Context, node: &Node, lock: &str) -> anyhow::Result<()> {
    let checkpoint = format!("checkpoint.cryo/network-lock={lock}");
    let restore = format!("restore.cryo/network-lock={lock}");
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        &checkpoint,
        &restore,
    ];
    let (container, output, client) = connected(cx, node, &annotations).await?;
    // Without a lock, a packet that finds no socket ends the connection.
    let unlocked = lock == "skip";
    if unlocked {
        client.hold(true)?;
        output
            .until(|t| {
                let said = t.lines().filter(|l| l.parse::<u64>().is_err());
                (said.rev().take(5).all(|l| l == "quiet")).then_some(())
            })
            .await
            .context("the client is quiet")?;
    }
    let (image, before) = freeze(cx, &container, &output).await?;
    let (nft, iptables) = locks(node).await?;
    match lock {
        "skip" => ensure!(!nft && !iptables, "locked"),
        "iptables" => ensure!(iptables && !nft, "nft {nft}, iptables {iptables}"),
        _ => ensure!(nft && !iptables, "nft {nft}, iptables {iptables}"),
    }
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    if unlocked {
        client.hold(false)?;
    }
    says(&output, "echo").await?;
    client.stop().await?;
    let (nft, iptables) = locks(node).await?;
    ensure!(!nft && !iptables, "left: nft {nft}, iptables {iptables}");
    container.kill_and_delete().await?;
    Ok(())
}

/// Whether CRIU holds packets back on the node by nftables, and by iptables.
async fn locks(node: &Node) -> anyhow::Result<(bool, bool)> {
    let nft = node.exec(&["nft", "list", "tables"]).await?.success()?;
    let iptables = node.exec(&["iptables-save"]).await?.success()?;
    // The mark of CRIU's own packets.
    Ok((nft.contains("CRIU"), iptables.contains("0xc114")))
}

pub(crate) async fn tcp_close(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    // Closed by the checkpoint: nothing of the connection is in it.
    let annotations = ["checkpoint.cryo/tcp-close=true"];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let names = flat_names(&node.host(&image))?;
    ensure!(
        !names.iter().any(|n| n.starts_with("tcp-stream-")),
        "{names:?}"
    );
    refuses_to_start(&cx, &container, &image, &["tcp-close"]).await?;
    let flags = ["--net-host", "--annotation", "restore.cryo/tcp-close=true"];
    let container = cx.container_with(node, &flags, PYTHON, &["true"]).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "ended").await?;
    container.kill_and_delete().await?;

    // Closed by the restore.
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        "restore.cryo/tcp-close=true",
    ];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "ended").await?;
    let (nft, iptables) = locks(node).await?;
    ensure!(!nft && !iptables, "left: nft {nft}, iptables {iptables}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn tcp_established_can_be_refused_by_a_restore(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let annotations = [
        "checkpoint.cryo/tcp-established=true",
        "checkpoint.cryo/network-lock=skip",
        "restore.cryo/tcp-established=false",
    ];
    let (container, output, _client) = connected(&cx, node, &annotations).await?;
    let (image, _) = freeze(&cx, &container, &output).await?;
    refuses_to_start(&cx, &container, &image, &["tcp-established"]).await
}

pub(crate) async fn tcp_skip_in_flight(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "server = socket.socket()\n\
                server.bind(('127.0.0.1', 0))\n\
                server.listen()\n\
                print('port', server.getsockname()[1], flush=True)\n\
                def status(): return 'listening' if server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else 'not'",
        whole: "listening",
        flags: &["--net-host"],
    };
    for (annotations, works) in [
        (&[][..], false),
        (&["checkpoint.cryo/tcp-skip-in-flight=true"], true),
    ] {
        let (container, output) = thing.run(&cx, node, annotations).await?;
        let port = output
            .until(|t| Some(t.lines().next()?.strip_prefix("port ")?.to_owned()))
            .await?;
        // Nobody accepts it.
        let marker = cx.folder(node, "connected")?;
        let client = Client::run(
            &cx,
            node,
            &format!(
                "s = socket.create_connection(('127.0.0.1', {port}))\n\
                 open('{marker}/yes', 'w')\n\
                 while os.path.exists('{{go}}'): time.sleep(0.02)\n"
            ),
        )?;
        there(&node.host(&marker).join("yes")).await?;
        if works {
            let (image, before) = freeze(&cx, &container, &output).await?;
            let output = container.create_from(Some(&image)).await?;
            container.start().await?;
            goes_on(&before, &output.count_to(3).await?)?;
            says(&output, "listening").await?;
        } else {
            is_refused(&cx, &container, &output, &["tcp-skip-in-flight"]).await?;
        }
        client.stop().await?;
        container.kill_and_delete().await?;
    }
    Ok(())
}

/// Waits for a file.
async fn there(path: &std::path::Path) -> anyhow::Result<()> {
    until(&path.display().to_string(), || {
        Ok(path.exists().then_some(()))
    })
    .await
}

pub(crate) async fn empty_ns(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "def status(): return ' '.join(sorted(name for _, name in socket.if_nameindex()))",
        whole: "lo",
        flags: &[],
    };
    // A device of a kind that CRIU does not know.
    let add = async |container: &Container| {
        let pid = container.api.get(&container.id).await?.pid.to_string();
        node.exec(&[
            "nsenter", "-t", &pid, "-n", "ip", "link", "add", "odd0", "type", "ifb",
        ])
        .await?
        .success()
    };
    let (container, output) = thing.run(&cx, node, &[]).await?;
    add(&container).await?;
    is_refused(&cx, &container, &output, &["empty-ns"]).await?;
    let image = cx.folder(node, "image")?;
    let options = CheckpointOptions {
        exit: true,
        image_path: image.clone(),
        empty_namespaces: vec!["network".into()],
        ..Default::default()
    };
    container.api.checkpoint(&container.id, options).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    let names = flat_names(&node.host(&image))?;
    ensure!(!names.iter().any(|n| n.starts_with("netdev-")), "{names:?}");
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    says(&output, "lo").await?;
    container.kill_and_delete().await?;

    // As annotations.
    let annotations = [
        "checkpoint.cryo/empty-ns=network",
        "restore.cryo/empty-ns=network",
    ];
    let (container, output) = thing.run(&cx, node, &annotations).await?;
    add(&container).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;

    // The node's network is not the container's to leave out.
    let flags = ["--net-host", "--annotation", annotations[0]];
    let container = cx
        .container_with(node, &flags, PYTHON, &["sh", "-c", COUNTER])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    is_refused(&cx, &container, &output, &["empty-ns", "of its own"]).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn shell_job(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let folder = cx.folder(node, "terminal")?;
    // A terminal of the node, handed in.
    let client = Client::run(
        &cx,
        node,
        &format!(
            "import pty\n\
             master, slave = pty.openpty()\n\
             server = socket.socket(socket.AF_UNIX)\n\
             server.bind('{folder}/s')\n\
             server.listen()\n\
             server.settimeout(0.2)\n\
             open('{folder}/ready', 'w')\n\
             while os.path.exists('{{go}}'):\n\
             \x20   try: peer = server.accept()[0]\n\
             \x20   except TimeoutError: continue\n\
             \x20   socket.send_fds(peer, [b'x'], [slave])\n\
             \x20   peer.close()\n"
        ),
    )?;
    there(&node.host(&folder).join("ready")).await?;
    let mount = format!("type=bind,src={folder},dst=/mnt,options=rbind:rw");
    let thing = Thing {
        setup: "server = socket.socket(socket.AF_UNIX)\n\
                server.connect('/mnt/s')\n\
                terminal = socket.recv_fds(server, 1, 1)[1][0]\n\
                server.close()\n\
                def status(): return 'terminal' if os.isatty(terminal) else 'none'",
        whole: "terminal",
        flags: &["--mount", &mount],
    };
    thing.is_refused(&cx, node, "shell-job").await?;
    let (container, output) = thing
        .run(&cx, node, &["checkpoint.cryo/shell-job=true"])
        .await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    // There is nobody to give it back to.
    refuses_to_start(&cx, &container, &image, &["terminal"]).await?;
    client.stop().await?;
    Ok(())
}

// ---- memory, cgroups, time, LSM ----------------------------------------------------------

pub(crate) async fn memory_that_is_not_tracked_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let tracked = node
        .exec(&["criu", "check", "--feature", "mem_dirty_track"])
        .await?
        .code
        == 0;
    let thing = Thing {
        setup: "def status(): return 'here'",
        whole: "here",
        flags: &[],
    };
    let (container, output) = thing
        .run(&cx, node, &["checkpoint.cryo/pre-dump=true"])
        .await?;
    let folder = cx.folder(node, "image")?;
    if tracked {
        let first = format!("{folder}/first");
        container.checkpoint(&first, false).await?;
        unharmed(&container, &output).await?;
        let names = flat_names(&node.host(&first))?;
        ensure!(!names.contains("files.img"), "more than memory: {names:?}");
    } else {
        is_refused(
            &cx,
            &container,
            &output,
            &["pre-dump", "CONFIG_MEM_SOFT_DIRTY"],
        )
        .await?;
    }
    container.kill_and_delete().await?;

    let (container, output) = thing.run(&cx, node, &[]).await?;
    container
        .checkpoint(&format!("{folder}/full"), false)
        .await?;
    let options = CheckpointOptions {
        image_path: format!("{folder}/next"),
        parent_path: "../full".into(),
        ..Default::default()
    };
    let answer = container.api.checkpoint(&container.id, options).await;
    let words = if tracked {
        // A full checkpoint says nothing of what changes after it.
        ["cannot be a parent", "pre-dump"]
    } else {
        ["parent_path", "CONFIG_MEM_SOFT_DIRTY"]
    };
    explained(&cx, answer, &[Code::FailedPrecondition], &words)?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn auto_dedup_of_a_restore(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let program = heap(16);
    let container = cx
        .container(node, PYTHON, &["python3", "-c", &program])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(3).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let taken = || -> anyhow::Result<u64> {
        let mut blocks = 0;
        for entry in std::fs::read_dir(node.host(&image))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                blocks += entry.metadata()?.blocks();
            }
        }
        Ok(blocks * 512)
    };
    let full = taken()?;
    ensure!(full > 16 << 20, "{full} bytes of memory");
    for (config, left) in [("", full), ("[restore]\nauto-dedup = true\n", full / 4)] {
        let _config = NodeConfig::set(node, config)?;
        let output = container.create_from(Some(&image)).await?;
        container.start().await?;
        goes_on(&before, &output.count_to(3).await?)?;
        container.kill_and_delete().await?;
        let found = taken()?;
        ensure!(
            found <= left,
            "{config:?}: {found} of {full} bytes are left"
        );
        ensure!(
            !config.is_empty() || found == full,
            "{found} of {full} bytes are left"
        );
    }
    Ok(())
}

pub(crate) async fn page_server(cx: Context) -> anyhow::Result<()> {
    const PORT: u16 = 27_099;
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let config = format!("[checkpoint]\npage-server = \"127.0.0.1:{PORT}\"\n");
    let _config = NodeConfig::set(node, &config)?;

    is_refused(&cx, &container, &output, &[])
        .await
        .context("nobody listens")?;

    let pages = cx.folder(node, "pages")?;
    let (there, to, port) = (node.clone(), pages.clone(), PORT.to_string());
    let server = tokio::spawn(async move {
        there
            .exec(&[
                "timeout",
                "200",
                "criu",
                "page-server",
                "--images-dir",
                &to,
                "--address",
                "127.0.0.1",
                "--port",
                &port,
            ])
            .await
    });
    let listens = format!("0100007F:{PORT:04X} 00000000:0000 0A");
    until("the page server listens", || {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", node.pid()))?;
        Ok(table.contains(&listens).then_some(()))
    })
    .await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    server.await??.success()?;
    let memory = |n: &String| n.starts_with("pages-");
    let names = flat_names(&node.host(&image))?;
    ensure!(!names.iter().any(memory), "memory is here: {names:?}");
    let arrived = flat_names(&node.host(&pages))?;
    ensure!(
        arrived.iter().any(memory),
        "memory is not there: {arrived:?}"
    );
    for name in arrived.iter().filter(|n| n.starts_with("page")) {
        std::fs::copy(node.host(&pages).join(name), node.host(&image).join(name))?;
    }
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn manage_cgroups(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let folder = cx.folder(node, "image")?;
    let mut sizes = Vec::new();
    for mode in ["ignore", "soft"] {
        let options = CheckpointOptions {
            exit: mode == "soft",
            image_path: format!("{folder}/{mode}"),
            cgroups_mode: mode.into(),
            ..Default::default()
        };
        container.api.checkpoint(&container.id, options).await?;
        let image = node.host(&format!("{folder}/{mode}/cgroup.img"));
        sizes.push(std::fs::metadata(&image)?.len());
    }
    ensure!(sizes[1] > sizes[0], "nothing more about cgroups: {sizes:?}");
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    // Whatever is in it, the restored one goes where its specification says.
    let output = container
        .create_from(Some(&format!("{folder}/soft")))
        .await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    let _config = NodeConfig::set(node, "[restore]\nmanage-cgroups = \"soft\"\n")?;
    refuses_to_start(
        &cx,
        &container,
        &format!("{folder}/soft"),
        &["manage-cgroups", "line 2"],
    )
    .await
}

/// Checks that a restore is refused with these words.
async fn refuses_to_start(
    cx: &Context,
    container: &Container,
    image: &str,
    words: &[&str],
) -> anyhow::Result<()> {
    container.create_from(Some(image)).await?;
    let answer = container.api.start(&container.id).await;
    explained(cx, answer, &[Code::FailedPrecondition], words)?;
    container.api.delete(&container.id).await.ok();
    Ok(())
}

pub(crate) async fn an_lsm_that_is_not_in_use_is_named(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let (image, before) = freeze(&cx, &container, &output).await?;
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    ensure!(
        !node.host("/sys/fs/selinux/enforce").exists()
            && !apparmor.is_ok_and(|text| text.starts_with('Y')),
        "this machine has an LSM that containers use: this test is of those that have none"
    );
    for (key, value, lsm) in [
        ("lsm-profile", "apparmor:cryo", "apparmor"),
        (
            "lsm-profile",
            "selinux:system_u:system_r:container_t:s0",
            "selinux",
        ),
        (
            "lsm-mount-context",
            "system_u:object_r:container_file_t:s0",
            "selinux",
        ),
    ] {
        let _config = NodeConfig::set(node, &format!("[restore]\n{key} = \"{value}\"\n"))?;
        refuses_to_start(&cx, &container, &image, &[key, lsm, "not in use"]).await?;
    }
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    goes_on(&before, &output.count_to(3).await?)?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn timeout(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let thing = Thing {
        setup: "def status(): return 'here'",
        whole: "here",
        flags: &[],
    };
    thing
        .comes_back(&cx, node, &["checkpoint.cryo/timeout=60"])
        .await?
        .expect(State::Running)
        .await
}
