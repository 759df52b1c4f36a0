//! Checkpoints that inherit memory from earlier ones.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, symlink};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::CheckpointOptions;
use cryo_e2e::context::{Container, Context};
use cryo_e2e::images::inherit;
use cryo_e2e::lab::NodeConfig;
use cryo_e2e::workload::numbers;
use tonic::Code;

use crate::failures::explained;
use crate::restore::{comes_back, remembering};

/// Why pre-dumps cannot be had on this machine.
pub(crate) fn no_soft_dirty() -> Option<&'static str> {
    // A page that was just written is dirty since ever, if the kernel counts.
    let page = vec![1u8; 2 * 4096];
    let entry = (page.as_ptr().addr() + 4096) / 4096 * 8;
    let mut bits = [0; 8];
    let read =
        File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut bits, entry as u64));
    let tracked = read.is_ok() && u64::from_ne_bytes(bits) >> 55 & 1 == 1;
    (!tracked)
        .then_some("this kernel has no CONFIG_MEM_SOFT_DIRTY; `make test-vm` has one that has")
}

/// Refused, as a prepared restore is at its start.
async fn is_refused(
    cx: &Context,
    container: &Container,
    image: &str,
    words: &[&str],
) -> anyhow::Result<()> {
    let _output = container.create_from(Some(image)).await?;
    let answer = container.api.start(&container.id).await;
    explained(cx, answer, &[Code::FailedPrecondition], words)?;
    container.api.delete(&container.id).await?;
    Ok(())
}

pub(crate) async fn a_chain_restores_where_the_node_allows_it(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output, digest) = remembering(&cx, node, 8).await?;
    let store = cx.folder(node, "store")?;
    let last = format!("{store}/last");
    container.checkpoint(&last, true).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    // Soft-dirty pages are not everywhere; the form of their images is.
    let at = |name: &str| node.host(&store).join(name);
    inherit(&at("last"), &at("middle"))?;
    inherit(&at("middle"), &at("first"))?;

    is_refused(
        &cx,
        &container,
        &last,
        &["parent is a symbolic link", "`parents` under [restore]"],
    )
    .await?;
    let other = cx.folder(node, "other")?;
    {
        let _config = NodeConfig::set(node, &format!("[restore]\nparents = \"{other}\"\n"))?;
        is_refused(
            &cx,
            &container,
            &last,
            &["not in that which `parents` names"],
        )
        .await?;
    }
    let _config = NodeConfig::set(node, &format!("[restore]\nparents = \"{store}\"\n"))?;
    comes_back(&container, &last, &before, &digest).await?;

    // Out of the middle somebody else's memory is reached for.
    let link = at("middle").join("parent");
    std::fs::remove_file(&link)?;
    std::fs::rename(at("first"), node.host(&other).join("first"))?;
    let name = node.host(&other);
    let name = name.file_name().context("a name")?.to_string_lossy();
    symlink(format!("../../{name}/first"), &link)?;
    is_refused(
        &cx,
        &container,
        &last,
        &["does not lead to a directory beside it"],
    )
    .await?;
    std::fs::remove_file(&link)?;
    is_refused(
        &cx,
        &container,
        &last,
        &["in its parent middle", "that are not in it"],
    )
    .await
}

/// Where the kernel tracks memory, CRIU's own chain: two pre-dumps and a checkpoint.
pub(crate) async fn pre_dumps_and_what_changed_since(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output, digest) = remembering(&cx, node, 8).await?;
    let store = cx.folder(node, "store")?;
    {
        let _config = NodeConfig::set(node, "[checkpoint]\npre-dump = true\n")?;
        for (name, parent) in [("first", ""), ("second", "../first")] {
            let options = CheckpointOptions {
                image_path: format!("{store}/{name}"),
                parent_path: parent.into(),
                ..Default::default()
            };
            container.api.checkpoint(&container.id, options).await?;
            output.count_on(2).await?;
        }
    }
    let last = format!("{store}/last");
    let options = CheckpointOptions {
        exit: true,
        image_path: last.clone(),
        parent_path: "../second".into(),
        ..Default::default()
    };
    container.api.checkpoint(&container.id, options).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    let memory = |name: &str| -> anyhow::Result<u64> {
        let entries = std::fs::read_dir(node.host(&store).join(name))?.flatten();
        let pages = entries.filter(|e| e.file_name().to_string_lossy().starts_with("pages-"));
        Ok(pages.map(|e| e.metadata().map_or(0, |m| m.len())).sum())
    };
    let (first, then) = (memory("first")?, memory("last")?);
    ensure!(
        then < first / 2,
        "{first} bytes at first and {then} at last"
    );
    let _config = NodeConfig::set(node, &format!("[restore]\nparents = \"{store}\"\n"))?;
    comes_back(&container, &last, &before, &digest).await
}
