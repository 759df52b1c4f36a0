//! Where memory is written to, and what of it.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::CheckpointOptions;
use cryo_e2e::context::Context;
use cryo_e2e::lab::NodeConfig;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{COUNTER, PYTHON, goes_on, heap};
use tonic::Code;

use super::{Thing, freeze, is_refused};
use crate::checkpoint::flat_names;
use crate::failures::{explained, unharmed};

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
