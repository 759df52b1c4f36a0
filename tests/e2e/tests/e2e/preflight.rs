//! What is in the way of a checkpoint is told before anything is frozen, by the shim and by
//! `cryoctl check`; what is not in the way is not refused.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::CheckpointOptions;
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::Node;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{PYTHON, consecutive};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;

use crate::checkpoint::is_checkpoint;
use crate::failures::unharmed;

/// Makes objects on demand, in a child of a counter.
pub(crate) const OBJECTS: &str = include_str!("objects.py");

/// An object that [`OBJECTS`] makes, what `cryoctl check` calls the obstacle, and words that the
/// refusal has.
type Row = (&'static str, &'static str, &'static [&'static str]);

#[rustfmt::skip]
const IN_THE_WAY: &[Row] = &[
    ("io_uring", "io-uring", &["fd ", "io_uring", "turn io_uring off"]),
    ("userfaultfd", "userfaultfd", &["fd ", "userfaultfd"]),
    ("perf-event", "perf-event", &["fd ", "performance counter"]),
    ("bpf", "bpf", &["fd ", "BPF"]),
    ("seccomp-notify", "seccomp-notify", &["fd ", "seccomp"]),
    ("landlock", "landlock-ruleset", &["fd ", "Landlock"]),
    ("fscontext", "kernel-object", &["fd ", "[fscontext]"]),
    ("fuse", "device", &["fd ", "/tmp/fuse", "device"]),
    ("secret-memory", "secret-memory", &["memfd_secret"]),
    ("huge-memfd", "huge-pages", &["fd ", "/memfd:huge"]),
    ("huge-mapping", "huge-pages", &["mapping ", "/anon_hugepage"]),
    ("message-queue", "outside-file", &["fd ", "/queue"]),
    ("open-tree", "outside-file", &["fd "]),
    ("deleted-large", "ghost-too-big", &["fd ", "deleted", "ghost-limit"]),
    ("deleted-mapped", "ghost-too-big", &["mapping ", "ghost-limit"]),
    ("deleted-linked", "link-remap", &["fd ", "link-remap"]),
    ("flock", "file-lock", &["fd ", "/tmp/lock", "file-locks"]),
    ("posix-lock", "file-lock", &["fd ", "/tmp/lock", "file-locks"]),
    ("lease", "file-lock", &["fd ", "/tmp/lease", "file-locks"]),
    ("unix-datagram", "outside-datagram", &["fd ", "/outside-2.sock", "ext-unix-sk"]),
    ("unix-stream", "outside-unix", &["fd ", "/outside-1.sock"]),
    ("unix-elsewhere", "outside-unix", &["fd ", "unix"]),
    ("foreign-socket", "foreign-socket", &["fd ", "network namespace"]),
    ("tcp", "tcp-connected", &["fd ", "TCP 127.0.0.1:", "connected to 127.0.0.1:", "tcp-established"]),
    ("tcp-in-flight", "tcp-in-flight", &["fd ", "listening", "tcp-skip-in-flight"]),
    ("mptcp", "mptcp", &["fd ", "MPTCP", "GODEBUG=multipathtcp=0"]),
    ("vsock", "unknown-socket", &["fd ", "VSOCK"]),
    ("xdp", "unknown-socket", &["fd ", "XDP"]),
    ("corked-udp", "corked-udp", &["fd ", "corked"]),
    ("netlink-queue", "netlink-queue", &["fd ", "netlink"]),
    ("pidfd", "outside-pidfd", &["fd ", "pidfd"]),
    ("traced", "traced", &["traced"]),
    ("nested-pid", "nested-namespace", &["pid:["]),
    ("nested-user", "nested-namespace", &["user:["]),
    ("nested-uts", "nested-namespace", &["uts:["]),
    ("nested-ipc", "nested-namespace", &["ipc:["]),
    ("nested-cgroup", "nested-namespace", &["cgroup:["]),
    ("nested-time", "nested-namespace", &["time:["]),
    ("nested-net", "nested-netns", &["net:["]),
    ("empty-namespace", "empty-namespace", &["fd ", "net:["]),
    ("deadline", "scheduling", &["scheduling"]),
    ("thread-files", "thread-files", &["thread "]),
    ("thread-directory", "thread-directory", &["thread "]),
    ("thread-namespace", "thread-namespace", &["thread "]),
    ("semaphore", "semaphore-eventfd", &["fd ", "eventfd"]),
    ("odd-name", "file-lock", &["a\\n\\u{1b}[31m\\u{202e}b"]),
    ("many", "file-lock", &["more"]),
];

/// Starts the counter with flags of `ctr container create`.
pub(crate) async fn objects(
    cx: &Context,
    node: &Node,
    flags: &[&str],
) -> anyhow::Result<(Container, Output)> {
    let container = cx
        .container_with(node, flags, PYTHON, &["python3", "-c", OBJECTS])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(1).await?;
    Ok((container, output))
}

/// Has an object made, in place of the one before; why not, if this machine cannot.
pub(crate) async fn order(
    container: &Container,
    output: &Output,
    name: &str,
) -> anyhow::Result<Result<(), String>> {
    let file = container.in_rootfs("/order");
    let new = container.in_rootfs("/order.new");
    std::fs::write(&new, name)?;
    std::fs::rename(&new, &file)?;
    let (ready, cannot) = (format!("ready {name}"), format!("cannot {name}: "));
    output
        .until(|text| {
            text.lines().find_map(|line| {
                if line == ready {
                    return Some(Ok(()));
                }
                line.strip_prefix(&cannot).map(|why| Err(why.to_owned()))
            })
        })
        .await
        .with_context(|| format!("make {name}"))
}

/// `cryoctl check` of a container: its exit code and what it says.
async fn check(container: &Container, flags: &[&str]) -> anyhow::Result<(i32, Value)> {
    let mut command = vec!["/opt/cryo/bin/cryoctl", "check", "--format", "json"];
    command.extend(flags);
    command.push(&container.id);
    let done = container.node.exec(&command).await?;
    let said = serde_json::from_str(&done.stdout)
        .with_context(|| format!("cryoctl says {:?} {:?}", done.stdout, done.stderr))?;
    Ok((done.code, said))
}

/// The names of the obstacles or warnings that `cryoctl check` told.
fn names<'a>(said: &'a Value, list: &str) -> Vec<&'a str> {
    let list = said.get(list).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|f| f.get("problem")?.as_str())
        .collect()
}

/// Checks that a checkpoint is refused before it begins, in words that have all of these.
async fn refused(
    cx: &Context,
    container: &Container,
    options: CheckpointOptions,
    words: &[&str],
) -> anyhow::Result<()> {
    let images = cx.folder(&container.node, "image")?;
    let options = CheckpointOptions {
        image_path: images.clone(),
        ..options
    };
    let answer = container.api.checkpoint(&container.id, options).await;
    let Err(status) = answer else {
        anyhow::bail!("the checkpoint was not refused");
    };
    let text = status.message();
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    // Before CRIU: it would be "criu dump failed".
    ensure!(text.contains("cannot checkpoint: process "), "{text}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in: {text}");
    }
    ensure!(text.len() < 3000, "{} bytes: {text}", text.len());
    ensure!(!text.contains(char::is_control), "{text:?}");
    let left = std::fs::read_dir(container.node.host(&images))?.count();
    ensure!(left == 0, "{left} files of a refused checkpoint");
    Ok(())
}

/// A process that is in the container and not in the tree of its first; it has unix sockets.
async fn outsider(container: &Container) -> anyhow::Result<()> {
    let exec = ["task", "exec", "-d", "--exec-id", "outsider"];
    let program = ["python3", "-c", OBJECTS, "outside"];
    let command = [&exec[..], &[&container.id], &program].concat();
    container.node.ctr(&command).await?;
    let ready = container.in_rootfs("/outsider");
    until("the process from outside is ready", || {
        Ok(ready.exists().then_some(()))
    })
    .await
}

/// A socket of another network namespace, with a name in the container.
fn elsewhere(container: &Container) -> anyhow::Result<UnixDatagram> {
    // A socket's path has a hundred characters.
    let root = std::fs::File::open(container.in_rootfs("/"))?;
    let path = format!("/proc/self/fd/{}/elsewhere.sock", root.as_raw_fd());
    Ok(UnixDatagram::bind(path)?)
}

pub(crate) async fn obstacles_are_told_by_name(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--privileged"]).await?;
    outsider(&container).await?;
    let _elsewhere = elsewhere(&container)?;
    for (object, problem, words) in IN_THE_WAY {
        if let Err(why) = order(&container, &output, object).await? {
            println!("not on this machine: {object}: {why}");
            continue;
        }
        let told = async {
            refused(&cx, &container, CheckpointOptions::default(), words).await?;
            let (code, said) = check(&container, &[]).await?;
            ensure!(code == 1, "cryoctl's exit code is {code}: {said}");
            ensure!(names(&said, "obstacles").contains(problem), "{said}");
            println!("{object}: a look takes {}", &said["took_us"]);
            anyhow::Ok(())
        };
        told.await.context(*object)?;
    }
    // Through all of it.
    unharmed(&container, &output).await?;
    consecutive(&output.numbers())?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn what_criu_can_save_is_not_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--privileged"]).await?;
    if let Err(why) = order(&container, &output, "fine").await? {
        anyhow::bail!("fine: {why}");
    }
    for line in output.stdout().lines().filter(|l| l.starts_with("cannot ")) {
        println!("not on this machine: {line}");
    }
    // A look is a small part of what it spares. The quickest of some: it is short enough to be
    // interrupted on a busy machine, for longer than it takes.
    let mut look = u64::MAX;
    for _ in 0..5 {
        let (code, said) = check(&container, &[]).await?;
        ensure!(code == 0 && names(&said, "obstacles").is_empty(), "{said}");
        let took = said.get("took_us").and_then(Value::as_u64);
        look = look.min(took.context("took_us")?);
    }
    let begin = Instant::now();
    let images = cx.folder(node, "image")?;
    container.checkpoint(&images, false).await?;
    let dump = begin.elapsed();
    is_checkpoint(node, &images)?;
    println!(
        "a look takes {look} µs, a checkpoint {} µs",
        dump.as_micros()
    );
    ensure!(
        u128::from(look) * 2 < dump.as_micros(),
        "{look} µs, {dump:?}"
    );

    // Loss that a program has to expect is told, and refuses nothing.
    if let Err(why) = order(&container, &output, "udp-queue").await? {
        anyhow::bail!("udp-queue: {why}");
    }
    let (code, said) = check(&container, &[]).await?;
    ensure!(code == 0, "{said}");
    ensure!(names(&said, "warnings") == ["udp-queue"], "{said}");
    container
        .checkpoint(&cx.folder(node, "image")?, false)
        .await?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn options_allow_what_they_name(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--privileged"]).await?;
    outsider(&container).await?;
    let rows: [(&str, &str, CheckpointOptions); 3] = [
        (
            "tcp",
            "tcp-established",
            CheckpointOptions {
                open_tcp: true,
                ..Default::default()
            },
        ),
        (
            "flock",
            "file-locks",
            CheckpointOptions {
                file_locks: true,
                ..Default::default()
            },
        ),
        (
            "unix-datagram",
            "ext-unix-sk",
            CheckpointOptions {
                external_unix_sockets: true,
                ..Default::default()
            },
        ),
    ];
    for (object, option, options) in rows {
        if let Err(why) = order(&container, &output, object).await? {
            anyhow::bail!("{object}: {why}");
        }
        let (code, said) = check(&container, &["--allow", option]).await?;
        ensure!(code == 0, "{object}: {said}");
        let images = cx.folder(node, "image")?;
        let options = CheckpointOptions {
            image_path: images.clone(),
            ..options
        };
        let done = container.api.checkpoint(&container.id, options).await;
        done.with_context(|| object.to_owned())?;
        is_checkpoint(node, &images)?;
    }
    // Of two obstacles an option takes away one.
    if let Err(why) = order(&container, &output, "tcp-in-flight").await? {
        anyhow::bail!("tcp-in-flight: {why}");
    }
    let options = CheckpointOptions {
        open_tcp: true,
        ..Default::default()
    };
    refused(&cx, &container, options, &["tcp-skip-in-flight"]).await?;
    // What no option of the request is for, cryoctl is told of all the same.
    for (object, flags) in [
        (
            "tcp-in-flight",
            ["--allow", "tcp-established,tcp-skip-in-flight"],
        ),
        ("deleted-linked", ["--allow", "link-remap"]),
        ("deleted-large", ["--ghost-limit", "10000000"]),
        ("thread-files", ["--allow", "lossy"]),
        ("semaphore", ["--allow", "lossy"]),
    ] {
        if let Err(why) = order(&container, &output, object).await? {
            anyhow::bail!("{object}: {why}");
        }
        let (code, said) = check(&container, &flags).await?;
        ensure!(code == 0, "{object}: {said}");
    }
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;

    // Nor are annotations the request's.
    let flags = [
        "--annotation",
        "checkpoint.cryo/lossy=true",
        "--annotation",
        "checkpoint.cryo/ghost-limit=10M",
    ];
    let flags = [&["--privileged"][..], &flags].concat();
    let (container, output) = objects(&cx, node, &flags).await?;
    for object in [
        "thread-files",
        "thread-directory",
        "semaphore",
        "deleted-large",
    ] {
        if let Err(why) = order(&container, &output, object).await? {
            anyhow::bail!("{object}: {why}");
        }
        let images = cx.folder(node, "image")?;
        container.checkpoint(&images, false).await.context(object)?;
        is_checkpoint(node, &images)?;
    }
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// What is read of `inventory.img`.
#[derive(Clone, PartialEq, prost::Message)]
struct Inventory {
    #[prost(uint32, tag = "11")]
    network_lock: u32,
}

/// CRIU's numbers.
const NFTABLES: u32 = 1;
const NO_LOCK: u32 = 2;

pub(crate) async fn the_lock_is_for_connections(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--privileged"]).await?;
    // Listening and closed sockets are no connections.
    for (object, lock) in [
        ("tcp-closed", NO_LOCK),
        ("tcp", NFTABLES),
        ("nothing", NO_LOCK),
    ] {
        if let Err(why) = order(&container, &output, object).await? {
            anyhow::bail!("{object}: {why}");
        }
        let images = cx.folder(node, "image")?;
        let options = CheckpointOptions {
            image_path: images.clone(),
            open_tcp: true,
            ..Default::default()
        };
        container.api.checkpoint(&container.id, options).await?;
        let image = std::fs::read(node.host(&images).join("inventory.img"))?;
        // Magic number and length come first.
        let inventory = Inventory::decode(image.get(8..).unwrap_or_default())?;
        ensure!(inventory.network_lock == lock, "{object}: {inventory:?}");
    }
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_user_whose_limits_are_secret(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--user", "1000"]).await?;
    let (code, said) = check(&container, &[]).await?;
    let own = node.exec(&["cat", "/proc/self/status"]).await?.success()?;
    let capabilities = own.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.context("CapEff")?.trim(), 16)?;
    if capabilities & (1 << 24) == 0 {
        ensure!(code == 1, "{said}");
        ensure!(names(&said, "obstacles") == ["other-user"], "{said}");
        let options = CheckpointOptions::default();
        refused(
            &cx,
            &container,
            options,
            &["another user", "CAP_SYS_RESOURCE"],
        )
        .await?;
    } else {
        println!("this machine has CAP_SYS_RESOURCE: nothing is to be refused");
        ensure!(code == 0, "{said}");
        container
            .checkpoint(&cx.folder(node, "image")?, false)
            .await?;
    }
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn the_host_s_namespaces(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &["--privileged", "--net-host"]).await?;
    // Inside of the node, whose network namespace is the host's for it.
    if let Err(why) = order(&container, &output, "tun").await? {
        println!("not on this machine: tun: {why}");
    } else {
        let (code, said) = check(&container, &[]).await?;
        ensure!(code == 1, "{said}");
        ensure!(names(&said, "obstacles") == ["tun-without-netns"], "{said}");
        refused(&cx, &container, CheckpointOptions::default(), &["/tmp/tun"]).await?;
    }
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn cryoctl_says_what_it_cannot_check(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for (arguments, words) in [
        (
            &["no-such-container"][..],
            "no container no-such-container runs",
        ),
        (
            &["-a", "/run/nobody.sock", "x"],
            "cannot connect to containerd",
        ),
        (&["--pid", "0"], "0 is no process"),
        (&[], "required"),
    ] {
        let mut command = vec!["/opt/cryo/bin/cryoctl", "check"];
        command.extend(arguments);
        let done = node.exec(&command).await?;
        ensure!(done.code == 2, "{arguments:?}: exit code {}", done.code);
        ensure!(done.stdout.is_empty(), "{}", done.stdout);
        ensure!(
            done.stderr.contains(words),
            "{arguments:?}: {}",
            done.stderr
        );
    }
    // Any process tree, in words.
    let done = node
        .exec(&[
            "/opt/cryo/bin/cryoctl",
            "check",
            "--pid",
            "1",
            "--allow",
            "shell-job",
        ])
        .await?;
    ensure!(done.code <= 1 && !done.stdout.is_empty(), "{done:?}");
    Ok(())
}
