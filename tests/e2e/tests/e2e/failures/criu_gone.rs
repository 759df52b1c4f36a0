//! A CRIU that is not there, is too old, or is killed.

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Node, NodeConfig};
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::{COUNTER, numbers};
use rustix::process::Signal;
use tonic::Code;

use super::{checkpoint, does_not_restore, explained, frozen, large, refused, restores, unharmed};
use crate::checkpoint::{flat_names, is_checkpoint};
use crate::criu::{self, Met};

pub(crate) async fn criu_missing(cx: Context) -> anyhow::Result<()> {
    let path = "/opt/no-such/criu";
    other_criu(&cx, path, &[path]).await
}

pub(crate) async fn criu_too_old(cx: Context) -> anyhow::Result<()> {
    let path = old_criu(&cx, cx.a()?)?;
    other_criu(&cx, &path, &[&path, "3.10"]).await
}

/// The path of a criu that is too old.
pub(crate) fn old_criu(cx: &Context, node: &Node) -> anyhow::Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = format!("{}/criu", cx.folder(node, "old")?);
    // The real one cannot be made older; this one only answers as criu 3.10 does when it
    // is asked for its version, on the socket of `criu swrk` and on the command line.
    let script = r#"#!/usr/bin/env python3
import socket, sys
if "swrk" in sys.argv:
    peer = socket.socket(fileno=int(sys.argv[-1]))
    # The request's first field is its type; 10 is VERSION, 9 is FEATURE_CHECK.
    while request := peer.recv(65536):
        body = [82, 4, 8, 3, 16, 10] if request[1] == 10 else [66, 0]
        peer.send(bytes([8, request[1], 16, 1, *body]))
else:
    print("Version: 3.10")
"#;
    std::fs::write(node.host(&path), script)?;
    std::fs::set_permissions(node.host(&path), std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Another criu than the node's, or one that is not there, until this is dropped. cryo has it from
/// the node's configuration; the Go shim takes the one in PATH.
enum OtherCriu {
    Configured(#[expect(dead_code, reason = "held for its drop")] NodeConfig),
    InPath(std::path::PathBuf),
}

impl OtherCriu {
    fn set(cx: &Context, node: &Node, path: &str) -> anyhow::Result<Self> {
        if cx.runtime() == Runtime::Cryo {
            let config = format!("[criu]\npath = \"{path}\"\n");
            return Ok(Self::Configured(NodeConfig::set(node, &config)?));
        }
        let criu = node.host("/usr/sbin/criu");
        std::fs::rename(&criu, criu.with_extension("away"))?;
        let other = Self::InPath(criu.clone());
        if node.host(path).exists() {
            std::fs::copy(node.host(path), criu)?;
        }
        Ok(other)
    }
}

impl Drop for OtherCriu {
    fn drop(&mut self) {
        if let Self::InPath(criu) = self {
            std::fs::rename(criu.with_extension("away"), criu).ok();
        }
    }
}

async fn other_criu(cx: &Context, path: &str, words: &[&str]) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (old, good, before) = frozen(cx, node).await?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let image = cx.folder(node, "image")?;
    {
        let _other = OtherCriu::set(cx, node, path)?;
        let answer = checkpoint(&container, &image).await;
        explained(cx, answer, &[Code::FailedPrecondition], words)?;
        unharmed(&container, &output).await?;
        does_not_restore(cx, &old, &good, &[Code::FailedPrecondition], words).await?;
    }
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    container.kill_and_delete().await?;
    restores(&old, &good, &before).await
}

/// Checks that the node keeps the failure of a container, with this cause and a remedy.
pub(super) fn kept(node: &Node, id: &str, cause: &str) -> anyhow::Result<()> {
    let mut causes = Vec::new();
    for entry in std::fs::read_dir(node.host("/var/lib/cryo/failures"))? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if name.contains(id) && name.ends_with(".json") {
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
            ensure!(record["remedy"].is_string(), "no remedy in {record}");
            causes.push(record["cause"].clone());
        }
    }
    ensure!(causes == [cause], "kept of {id}: {causes:?}");
    Ok(())
}

pub(crate) async fn criu_killed_in_a_dump(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = large(&cx, node, 400).await?;
    let mut image = cx.folder(node, "image")?;
    let mut answer = None;
    for _ in 0..criu::TRIES {
        let folder = node.host(&image);
        let dump = checkpoint(&container, &image);
        match criu::meet(Signal::KILL, &container, || criu::has_pages(&folder), dump).await? {
            Met::InTime(Err(refused), _) => {
                answer = Some(Err::<(), _>(refused));
                break;
            }
            Met::TooLate(Err(refused)) => return Err(refused).context("a dump that was not met"),
            Met::InTime(Ok(()), _) | Met::TooLate(Ok(())) => image = cx.folder(node, "image")?,
        }
    }
    explained(
        &cx,
        answer.context("every dump was over before it was met")?,
        &[Code::Internal, Code::Unavailable, Code::Aborted],
        &["criu", "kill"],
    )?;
    if cx.differs("runc leaves the tasks that criu had seized and frozen as they are") {
        return Ok(());
    }
    kept(node, &container.id, "criu was killed")?;
    unharmed(&container, &output).await?;
    let left = flat_names(&node.host(&image)).unwrap_or_default();
    ensure!(left.is_empty(), "a partial checkpoint was left: {left:?}");
    container.checkpoint(&image, false).await?;
    is_checkpoint(node, &image)?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn criu_killed_in_a_restore(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = large(&cx, node, 400).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);

    let mut answer = None;
    for _ in 0..criu::TRIES {
        let request = container.create_request(Some(&image)).await?;
        container.api.create(request).await?;
        let restore = container.api.start(&container.id);
        let half = || criu::has_processes(node, &container.id);
        match criu::meet(Signal::KILL, &container, half, restore).await? {
            Met::InTime(Err(refused), _) => {
                answer = Some(Err::<(), _>(refused));
                break;
            }
            Met::TooLate(Err(refused)) => {
                return Err(refused).context("a restore that was not met");
            }
            Met::InTime(Ok(_), _) | Met::TooLate(Ok(_)) => {
                container.kill_and_delete().await?;
            }
        }
    }
    explained(
        &cx,
        answer.context("every restore was over before it was met")?,
        &[Code::Internal, Code::Unavailable, Code::Aborted],
        &["criu", "kill"],
    )?;
    container.api.delete(&container.id).await.ok();
    refused(
        container.api.get(&container.id).await,
        &[Code::NotFound],
        "the task of the failed restore",
    )?;
    is_checkpoint(node, &image)?;
    restores(&container, &image, &before).await
}
