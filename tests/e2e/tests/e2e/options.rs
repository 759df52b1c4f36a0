//! Each option of a checkpoint and of a restore: refused without it, done with it.
//!
//! `docs/options.md` has the options. What they are set by is in the first tests; the others set
//! them by annotations, because that is what a pod has.

mod memory;
mod network;

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::containerd::{CheckpointOptions, State};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{Finished, Node, NodeConfig};
use cryo_e2e::patience::until;
use cryo_e2e::workload::{COUNTER, PYTHON, goes_on, numbers};
use tokio::task::JoinHandle;
use tonic::Code;

pub(crate) use self::memory::{
    auto_dedup_of_a_restore, memory_that_is_not_tracked_is_refused, page_server,
};
pub(crate) use self::network::{
    empty_ns, tcp_close, tcp_established, tcp_established_can_be_refused_by_a_restore,
    tcp_skip_in_flight,
};
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
        ("checkpoint.cryo/lazy-pages=true", "only the request"),
        ("restore.cryo/libdir=/tmp/plugins", "no such option"),
        (
            "restore.cryo/lsm-profile=apparmor:unconfined",
            "node's owner",
        ),
        ("restore.cryo/lazy-pages=perhaps", "perhaps"),
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

/// Waits for a file.
async fn there(path: &std::path::Path) -> anyhow::Result<()> {
    until(&path.display().to_string(), || {
        Ok(path.exists().then_some(()))
    })
    .await
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

// ---- cgroups, time, LSM -----------------------------------------------------------------

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
