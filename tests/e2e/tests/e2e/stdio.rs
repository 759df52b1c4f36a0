//! Output through fifos, input and its end.

use std::io::Write as _;

use anyhow::ensure;
use cryo_e2e::context::{Context, Output};
use cryo_e2e::workload::{BUSYBOX, COUNTER};

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
    ensure!(output.stderr() == "err\n", "{output:?}");
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
    container.api.close_stdin(&container.id).await?;
    let code = container.finish().await?;
    ensure!(code == 0, "exit code {code}");
    ensure!(output.complete().await? == "hello\nended\n", "{output:?}");
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
