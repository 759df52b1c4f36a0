//! Output through fifos, files and loggers, readers that are slow or stuck, input and
//! its end.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::Node;
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER, goes_on, numbers};

pub(crate) async fn a_mebibyte_of_output_is_complete(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "yes 0123456789abcde | head -c 1048576";
    let (container, output) = cx.shell(node, script).await?;
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    let text = output.complete().await?;
    ensure!(
        text == "0123456789abcde\n".repeat(65536),
        "{} bytes came, or others",
        text.len()
    );
    Ok(())
}

pub(crate) async fn stderr_is_apart_from_stdout(cx: Context) -> anyhow::Result<()> {
    let (container, output) = cx.shell(cx.a()?, "echo out; echo err >&2").await?;
    container.finish().await?;
    ensure!(output.complete().await? == "out\n", "{output:?}");
    ensure!(output.complete_stderr().await? == "err\n", "{output:?}");
    Ok(())
}

pub(crate) async fn piped_stdin_reaches_its_end_through_ctr(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let id = cx.id("run");
    cx.adopt(node, &id)?;
    // More than all fifos and buffers between hold: ctr forgets CloseIO when the input
    // ends before the task is made.
    // Its digest comes back and not the text: ctr 2.1.9 closes the fifo of stdout when it
    // hears of the exit, read to its end or not (either shim, a busy machine).
    let text = "a line of input\n".repeat(65536);
    let command = [
        "ctr",
        "run",
        "--rm",
        "--runtime",
        cx.runtime().containerd_name(),
        BUSYBOX,
        &id,
        "md5sum",
    ];
    let finished = node
        .exec_with_stdin(&command, Some(text.as_bytes()))
        .await?;
    ensure!(finished.code == 0, "{}: {}", finished.code, finished.stderr);
    let wanted = "968f513eb3d1d96a628c6970b07433ab  -\n";
    ensure!(finished.stdout == wanted, "{}", finished.stdout);
    Ok(())
}

pub(crate) async fn close_io_ends_stdin(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx
        .container(node, BUSYBOX, &["sh", "-c", "cat; echo ended"])
        .await?;
    let output = Output::open(node, &container.id)?;
    let mut request = container.create_request(None).await?;
    request.stdin = output.path("stdin");
    request.stdout = output.path("stdout");
    request.stderr = output.path("stderr");
    container.api.create(request).await?;
    let mut stdin = output.stdin()?;
    container.start().await?;
    stdin.write_all(b"hello\n")?;
    output
        .until(|text| text.contains("hello\n").then_some(()))
        .await?;
    // The shim holds a write end of its own, so that clients may come and go: closing
    // ours is not the end, CloseIO is.
    drop(stdin);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    ensure!(!output.stdout().contains("ended"), "{output:?}");
    container.api.close_stdin(&container.id, "").await?;
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    ensure!(output.complete().await? == "hello\nended\n", "{output:?}");
    Ok(())
}

pub(crate) async fn close_io_ends_the_stdin_of_an_exec(cx: Context) -> anyhow::Result<()> {
    let container = cx
        .container(cx.a()?, BUSYBOX, &["sh", "-c", "cat; sleep 1000"])
        .await?;
    let _output = container.create().await?;
    container.start().await?;
    let output = container.exec("e", "cat; echo ended", true).await?;
    let mut stdin = output.stdin()?;
    stdin.write_all(b"hello\n")?;
    output
        .until(|text| text.contains("hello\n").then_some(()))
        .await?;
    drop(stdin);
    // Another client comes: the first one's end was not the end.
    let mut stdin = output.stdin()?;
    stdin.write_all(b"again\n")?;
    output
        .until(|text| text.contains("again\n").then_some(()))
        .await?;
    container.api.close_stdin(&container.id, "e").await?;
    drop(stdin);
    let code = container.finish_exec("e").await?;
    ensure!(code == 0, "exit code {code}");
    let text = output.complete().await?;
    ensure!(text == "hello\nagain\nended\n", "{text}");
    container.expect(State::Running).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn no_stdio_is_no_error(cx: Context) -> anyhow::Result<()> {
    let container = cx
        .container(cx.a()?, BUSYBOX, &["sh", "-c", "echo lost; cat; exit 6"])
        .await?;
    let request = container.create_request(None).await?;
    container.api.create(request).await?;
    container.start().await?;
    let code = container.finish().await?;
    ensure!(code == 6, "exit code {code}");

    let (container, _output) = cx.shell(cx.a()?, COUNTER).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_hundred_mebibytes_are_unharmed(cx: Context) -> anyhow::Result<()> {
    let script = "head -c 104857600 /dev/urandom > /data; cat /data; cat > /dev/null";
    let container = cx
        .container(cx.a()?, BUSYBOX, &["sh", "-c", script])
        .await?;
    let output = Output::open(&container.node, &container.id)?;
    let mut request = container.create_request(None).await?;
    request.stdin = output.path("stdin");
    request.stdout = output.path("stdout");
    request.stderr = output.path("stderr");
    container.api.create(request).await?;
    container.start().await?;
    // It waits for the end of its input, so that /data can be read.
    let end = Instant::now() + PATIENCE;
    while output.received() < 100 << 20 {
        ensure!(Instant::now() < end, "{} bytes came", output.received());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wanted = std::fs::read(container.in_rootfs("/data"))?;
    container.api.close_stdin(&container.id, "").await?;
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    let came = output.complete_bytes().await?;
    ensure!(came.len() == wanted.len(), "{} bytes came", came.len());
    ensure!(came == wanted, "other bytes came");
    Ok(())
}

pub(crate) async fn a_slow_reader_gets_all(cx: Context) -> anyhow::Result<()> {
    // As much as the pipes and buffers between hold, so that it ends unread.
    const BYTES: usize = 130 << 10;
    let node = cx.a()?;
    let script = format!("yes 0123456789abcde | head -c {BYTES}");
    let container = cx.container(node, BUSYBOX, &["sh", "-c", &script]).await?;
    let folder = cx.folder(node, "fifo")?;
    let fifo = format!("{folder}/stdout");
    node.exec(&["mkfifo", &fifo]).await?.success()?;
    let mut reader = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(node.host(&fifo))?;
    let mut request = container.create_request(None).await?;
    request.stdout = fifo;
    // The Go shim knows no stdout alone.
    let rest = Output::open(node, &container.id)?;
    request.stderr = rest.path("stderr");
    container.api.create(request).await?;
    container.start().await?;
    container.wait_for(State::Stopped).await?;
    let slow = tokio::task::spawn_blocking(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 4 << 10]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(all),
                Ok(n) => all.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    let all = slow.await??;
    let wanted = "0123456789abcde\n".repeat(BYTES / 16);
    ensure!(all == wanted.as_bytes(), "{} of {BYTES} bytes", all.len());
    Ok(())
}

pub(crate) async fn a_stuck_reader_holds_its_own_container_only(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let group = format!("io.containerd.runc.v2.group={}", cx.id("group"));
    let flags = ["--annotation", group.as_str()];
    let script = ["sh", "-c", COUNTER];
    let other = cx.container_with(node, &flags, BUSYBOX, &script).await?;
    let output = other.create().await?;
    other.start().await?;

    let stuck = cx.container_with(node, &flags, BUSYBOX, &["yes"]).await?;
    let folder = cx.folder(node, "fifo")?;
    let fifo = format!("{folder}/stdout");
    node.exec(&["mkfifo", &fifo]).await?.success()?;
    // It has it open, and never reads.
    let reader = File::options()
        .read(true)
        .write(true)
        .open(node.host(&fifo))?;
    let mut request = stuck.create_request(None).await?;
    request.stdout = fifo;
    let rest = Output::open(node, &stuck.id)?;
    request.stderr = rest.path("stderr");
    stuck.api.create(request).await?;
    let pid = stuck.start().await?;
    let waits_at = node.host(&format!("/proc/{pid}/wchan"));
    let end = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&waits_at)?.contains("pipe_write") {
        ensure!(Instant::now() < end, "the output is not stuck");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    output.count_on(3).await?;
    for container in [&stuck, &other] {
        container.expect(State::Running).await?;
        let exec = container.exec("e", "echo hello", false).await?;
        let code = container.finish_exec("e").await?;
        ensure!(code == 0, "exit code {code}");
        ensure!(exec.complete().await? == "hello\n", "{exec:?}");
        container.api.pause(&container.id).await?;
        container.api.resume(&container.id).await?;
        ensure!(container.api.pids(&container.id).await?.len() < 4, "pids");
    }
    // What nobody reads is given up, after a while in which the other one goes on.
    let before = output.numbers().len();
    let deleted = tokio::time::timeout(PATIENCE, stuck.kill_and_delete());
    let code = deleted.await.context("Delete waits for the reader")??;
    ensure!(code == 137, "exit code {code}");
    ensure!(
        output.numbers().len() > before + 20,
        "the other one was held"
    );
    drop(reader);
    output.count_on(3).await?;
    other.kill_and_delete().await?;
    Ok(())
}

/// A logger: what comes from stdout and stderr goes to `FOLDER/ID.out` and `.err`.
const LOGGER: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
to=$2/$CONTAINER_ID
echo "$CONTAINER_NAMESPACE $*" >>"$to.args"
cat <&4 >>"$to.err" 5>&- &
exec 4<&-
printf x >&5
exec 5>&-
cat <&3 >>"$to.out"
wait
"#;

/// The logger on a node, and the folder that it writes to.
struct Logger {
    folder: String,
    host: PathBuf,
}

impl Logger {
    fn new(cx: &Context, node: &Node) -> anyhow::Result<Self> {
        let folder = cx.folder(node, "logger")?;
        let host = node.host(&folder);
        let script = host.join("logger");
        std::fs::write(&script, LOGGER)?;
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        Ok(Self { folder, host })
    }

    fn address(&self, scheme: &str) -> String {
        format!("{scheme}://{0}/logger?to={0}", self.folder)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.host.join(name)).unwrap_or_default()
    }

    async fn until<T>(&self, name: &str, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.read(name);
            if let Some(found) = find(&text) {
                return Ok(found);
            }
            ensure!(Instant::now() < end, "{name} has {text:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Makes the task with a logger, from a checkpoint if there is one.
async fn create_logged(
    container: &Container,
    address: &str,
    checkpoint: Option<&str>,
    terminal: bool,
) -> anyhow::Result<()> {
    let mut request = container.create_request(checkpoint).await?;
    request.stdout = address.into();
    if !terminal {
        request.stderr = address.into();
    }
    request.terminal = terminal;
    container.api.create(request).await?;
    Ok(())
}

pub(crate) async fn ctr_logs_to_a_file_and_to_a_logger(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let logger = Logger::new(&cx, node)?;
    let mut schemes = vec!["file", "binary"];
    if !cx.differs("the Go shim of containerd 2.1 knows no binary-v2") {
        schemes.push("binary-v2");
    }
    for scheme in schemes {
        let id = cx.id(scheme);
        let container = cx.adopt(node, &id)?;
        let address = match scheme {
            "file" => format!("file://{}/{id}.out", logger.folder),
            _ => logger.address(scheme),
        };
        let script = "yes out | head -c 400000; echo err >&2; exit 3";
        node.ctr(&[
            "run",
            "-d",
            "--log-uri",
            &address,
            "--runtime",
            cx.runtime().containerd_name(),
            BUSYBOX,
            &id,
            "sh",
            "-c",
            script,
        ])
        .await?;
        let code = container.finish().await?;
        ensure!(code == 3, "exit code {code}");
        let out = "out\n".repeat(100_000);
        if scheme == "file" {
            let text = logger.read(&format!("{id}.out"));
            // Both streams go there, each whole.
            ensure!(text.len() == out.len() + 4, "{} bytes", text.len());
            ensure!(text.contains("err\n"), "no stderr");
            continue;
        }
        // Delete has waited for the logger; the Go shim tells it to end at once.
        if !cx.differs("Delete ends the logger by SIGTERM, read to the end or not") {
            let text = logger.read(&format!("{id}.out"));
            ensure!(text == out, "{} bytes", text.len());
            let text = logger.read(&format!("{id}.err"));
            ensure!(text == "err\n", "{text:?}");
        }
        let args = logger.read(&format!("{id}.args"));
        ensure!(args == format!("default to {}\n", logger.folder), "{args}");
    }
    ensure!(loggers(node, &logger.folder).is_empty(), "a logger stays");
    Ok(())
}

/// The loggers that run there, zombies too.
fn loggers(node: &Node, folder: &str) -> Vec<u32> {
    let shells = node.processes("logger");
    let of_folder = |pid: &u32| {
        std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(folder) || line.is_empty())
    };
    shells.into_iter().filter(of_folder).collect()
}

pub(crate) async fn a_restored_container_has_a_logger(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let logger = Logger::new(&cx, node)?;
    let address = logger.address("binary");
    let container = cx.container(node, BUSYBOX, &["sh", "-c", COUNTER]).await?;
    let out = format!("{}.out", container.id);
    create_logged(&container, &address, None, false).await?;
    container.start().await?;
    logger
        .until(&out, |text| (numbers(text).len() > 3).then_some(()))
        .await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let before = numbers(&logger.read(&out));

    create_logged(&container, &address, Some(&image), false).await?;
    container.start().await?;
    let all = logger
        .until(&out, |text| {
            let all = numbers(text);
            (all.len() > before.len() + 2).then_some(all)
        })
        .await?;
    goes_on(&before, all.get(before.len()..).unwrap_or_default())?;
    // An exec has a logger of its own.
    container
        .exec_to("second", "echo exec; echo err >&2", |request| {
            request.stdout.clone_from(&address);
            request.stderr.clone_from(&address);
        })
        .await?;
    container.finish_exec("second").await?;
    ensure!(logger.read("second.out") == "exec\n", "stdout");
    ensure!(logger.read("second.err") == "err\n", "stderr");
    container.kill_and_delete().await?;
    ensure!(loggers(node, &logger.folder).is_empty(), "a logger stays");
    Ok(())
}

pub(crate) async fn a_terminal_has_a_logger(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let logger = Logger::new(&cx, node)?;
    let script = [
        "sh",
        "-c",
        "test -t 1 && test -t 2 && echo one; echo two >&2",
    ];
    let container = cx
        .container_with(node, &["--tty"], BUSYBOX, &script)
        .await?;
    create_logged(&container, &logger.address("binary"), None, true).await?;
    container.start().await?;
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    let out = format!("{}.out", container.id);
    // The terminal ends its lines as terminals do.
    logger
        .until(&out, |text| (text == "one\r\ntwo\r\n").then_some(()))
        .await?;
    let end = Instant::now() + PATIENCE;
    while !loggers(node, &logger.folder).is_empty() {
        ensure!(Instant::now() < end, "the logger stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) async fn a_logger_that_does_not_start_is_an_error(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx.container(node, BUSYBOX, &["true"]).await?;
    for address in ["binary:///nonexistent/logger", "binary:///bin/false"] {
        if address.ends_with("false")
            && cx.differs("a binary:// logger that fails at once is taken for ready")
        {
            continue;
        }
        let error = match create_logged(&container, address, None, false).await {
            Ok(()) => anyhow::bail!("a container with {address}"),
            Err(error) => format!("{error:#}"),
        };
        let wanted = if address.ends_with("false") {
            "/bin/false ended with status 1 before it was ready"
        } else {
            "no such file"
        };
        ensure!(
            error.to_lowercase().contains(&wanted.to_lowercase()),
            "{error}"
        );
        ensure!(!node.host(&container.bundle()).exists(), "the bundle stays");
    }
    Ok(())
}
