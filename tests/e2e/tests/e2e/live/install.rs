//! What is wrong with a node, and cryo's place in containerd's configuration.

use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::{Node, NodeConfig};
use cryo_e2e::workload::{BUSYBOX, COUNTER};

use super::{cryoctl, json, names};
use crate::failures::old_criu;

/// What doctor says of one thing: its severity and its remedy.
async fn diagnosis(
    node: &Node,
    flags: &[&str],
    name: &str,
) -> anyhow::Result<(i32, String, String)> {
    let command = [&["doctor", "--format", "json"], flags].concat();
    let (code, said) = json(node, &command).await?;
    ensure!((code == 0) == (said["healthy"] == true), "{code}: {said}");
    let all = said["findings"].as_array().context("no findings")?;
    let mut found = all.iter().filter(|finding| finding["name"] == name);
    let finding = found.next().with_context(|| format!("no {name}: {said}"))?;
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok((
        code,
        text("severity"),
        format!("{} {}", text("text"), text("remedy")),
    ))
}

pub(crate) async fn doctor_finds_what_is_wrong(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for name in [
        "criu",
        "criu-check",
        "containerd",
        "runtime",
        "shim",
        "cri-checkpoint",
    ] {
        let (code, severity, text) = diagnosis(node, &[], name).await?;
        ensure!(code == 0 && severity == "ok", "{name}: {severity} {text}");
    }
    let old = old_criu(&cx, node)?;
    for (path, words) in [("/nonexistent/criu", "/nonexistent/criu"), (&*old, "3.10")] {
        let _other = NodeConfig::set(node, &format!("[criu]\npath = \"{path}\"\n"))?;
        let (code, severity, text) = diagnosis(node, &[], "criu").await?;
        ensure!(code == 1 && severity == "error", "{severity} {text}");
        ensure!(
            text.contains(words) && text.contains("install criu"),
            "{text}"
        );
    }
    {
        let _wrong = NodeConfig::set(node, "[checkpoint]\ntcp-closed = true\n")?;
        let (code, severity, text) = diagnosis(node, &[], "config").await?;
        ensure!(
            code == 1 && severity == "error" && text.contains("line 2"),
            "{text}"
        );
    }
    node.stop_containerd(false).await?;
    let down = diagnosis(node, &[], "containerd").await;
    node.start_containerd().await?;
    let (code, severity, text) = down?;
    ensure!(
        code == 1 && severity == "error" && text.contains("start containerd"),
        "{text}"
    );
    let table = cryoctl(node, &["doctor"]).await?.success()?;
    ensure!(table.ends_with("warnings\n"), "{table}");

    let (code, info) = json(node, &["node-info"]).await?;
    ensure!(code == 0 && info["node_info_version"] == 1, "{info}");
    ensure!(
        info["criu"]["version"]
            .as_str()
            .is_some_and(|v| v.starts_with('4')),
        "{info}"
    );
    ensure!(info["containerd"]["runtimes"]["cryo"].is_object(), "{info}");
    Ok(())
}

pub(crate) async fn installed_used_and_uninstalled(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let main = node.host("/etc/containerd/config.toml");
    let drop_in = node.host("/etc/containerd/conf.d/cryo.toml");
    let before = std::fs::read_to_string(&main)?;
    // It imports nothing yet, and is not ours to change unasked.
    let install = ["install", "--handler", "cryo-e2e", "--way", "both"];
    let text = cryoctl(node, &install).await?.failure()?;
    ensure!(text.contains("--add-import"), "{text}");
    let install = [&install[..], &["--add-import"]].concat();
    let dry = cryoctl(node, &[&install[..], &["--dry-run"]].concat())
        .await?
        .success()?;
    ensure!(
        dry.contains("+imports = ") && dry.contains("+  runtime_path = "),
        "{dry}"
    );
    ensure!(!drop_in.exists() && std::fs::read_to_string(&main)? == before);

    let class = format!("{}/class.yaml", cx.folder(node, "out")?);
    let said = cryoctl(node, &[&install[..], &["--runtime-class", &class]].concat()).await?;
    let said = said.success()?;
    ensure!(
        said.contains("written: /etc/containerd/conf.d/cryo.toml"),
        "{said}"
    );
    let class = std::fs::read_to_string(node.host(&class))?;
    ensure!(class.contains("handler: cryo-e2e"), "{class}");
    let again = cryoctl(node, &install).await?.success()?;
    let mut lines = again.lines();
    ensure!(lines.all(|line| line.starts_with("unchanged: ")), "{again}");
    node.restart_containerd(false).await?;
    let used = used(&cx, node).await;
    let gone = cryoctl(node, &["uninstall"]).await?;
    node.restart_containerd(false).await?;
    used?;
    gone.success()?;
    ensure!(std::fs::read_to_string(&main)? == before, "not as it was");
    ensure!(!drop_in.exists(), "the drop-in is there still");
    ensure!(
        !node.host("/etc/cryo/config.toml").exists(),
        "so is the configuration"
    );
    // Of restores of tests before this one, which is alone.
    let kept = names(node, "/var/lib/cryo").unwrap_or_default();
    ensure!(
        kept.iter().all(|name| !name.starts_with("restore-")),
        "{kept:?}"
    );
    nothing_foreign_is_touched(&cx, node).await
}

/// Pods run by both handlers, and hold `uninstall` up.
async fn used(cx: &Context, node: &Node) -> anyhow::Result<()> {
    for handler in ["cryo-e2e", "cryo-e2e-own"] {
        let pod = cx.pod(node, handler).await?;
        let container = pod.run("c", BUSYBOX, &["sh", "-c", COUNTER]).await?;
        container.count_to(2).await?;
        let (code, _, text) = diagnosis(node, &[], "runtime").await?;
        ensure!(code == 0 && text.contains("cryo"), "{text}");
        let text = cryoctl(node, &["uninstall"]).await?.failure()?;
        ensure!(text.contains("shims of cryo run"), "{text}");
    }
    cx.clean_up().await
}

/// Of configurations in a folder of our own, of both versions.
async fn nothing_foreign_is_touched(cx: &Context, node: &Node) -> anyhow::Result<()> {
    let folder = cx.folder(node, "etc")?;
    let (main, drop_in) = (
        format!("{folder}/main.toml"),
        format!("{folder}/conf.d/cryo.toml"),
    );
    let config = format!("{folder}/cryo.toml");
    let paths = [
        "--containerd-config",
        &main,
        "--drop-in",
        &drop_in,
        "--config",
        &config,
    ];
    let install = [&["install"], &paths[..]].concat();
    for version in [2, 3] {
        let imports = format!("version = {version}\nimports = [\"{folder}/conf.d/*.toml\"]\n");
        std::fs::write(node.host(&main), &imports)?;
        cryoctl(node, &install).await?.success()?;
        let text = std::fs::read_to_string(node.host(&drop_in))?;
        ensure!(text.contains(&format!("version = {version}")), "{text}");
        let uninstall = [&["uninstall", "--force"], &paths[..]].concat();
        cryoctl(node, &uninstall).await?.success()?;
        ensure!(std::fs::read_to_string(node.host(&main))? == imports);
        ensure!(!node.host(&drop_in).exists() && !node.host(&config).exists());
    }
    // Another file says something else of the handler: all is as it was.
    let other = format!("{folder}/conf.d/zzz.toml");
    let table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.cryo]";
    std::fs::write(
        node.host(&other),
        format!("version = 3\n{table}\nruntime_type = 'x.y.z'\n"),
    )?;
    let text = cryoctl(node, &install).await?.failure()?;
    ensure!(text.contains("all is as it was"), "{text}");
    ensure!(!node.host(&drop_in).exists() && !node.host(&config).exists());
    // A drop-in of somebody else's.
    std::fs::remove_file(node.host(&other))?;
    std::fs::write(node.host(&drop_in), "version = 3\n")?;
    let text = cryoctl(node, &install).await?.failure()?;
    ensure!(text.contains("is not of `cryoctl install`"), "{text}");
    ensure!(std::fs::read_to_string(node.host(&drop_in))? == "version = 3\n");
    ensure!(!Path::new(&node.host(&config)).exists());
    Ok(())
}
