//! The screens of commands that need a node, in `docs/live.md` and `docs/images.md`.
//!
//! Each `console` block of the pages is run, in their order, on a node that has what [`stage`] puts there.
//! `CRYO_BLESS=1 cargo test -p cryo-e2e --test e2e -- screens` writes the pages anew.

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::cri::SandboxConfig;
use cryo_e2e::lab::{Node, repository};
use cryo_e2e::screens::Page;
use cryo_e2e::workload::{BUSYBOX, COUNTER, PYTHON};

use crate::preflight::{OBJECTS, order};

const PAGES: [&str; 2] = ["docs/live.md", "docs/images.md"];

/// Images that the pages make in containerd's store.
const IMAGES: [&str; 1] = ["localhost:5000/frozen:1"];

/// Where the pages' commands run, as the pages have it.
const SHOWN: &str = "/root";

/// A started container of this id.
async fn started(
    cx: &Context,
    node: &Node,
    id: &str,
    flags: &[&str],
    command: &[&str],
) -> anyhow::Result<(Container, Output)> {
    let container = cx.adopt(node, id)?;
    let create = [
        "container",
        "create",
        "--runtime",
        cx.runtime().containerd_name(),
    ];
    node.ctr(&[&create, flags, &[command[0], id], &command[1..]].concat())
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    Ok((container, output))
}

/// ```text
/// d1             a container that counts
/// d3             one that holds a file lock
/// shop/p2/c1     one of a pod
/// c.tar          a checkpoint of one that has more than an ordinary one
/// p2.tar         a checkpoint of c1
/// ```
/// and a failure: that of a checkpoint of d1 on a disk that is too small.
async fn stage(cx: &Context, node: &Node, folder: &str) -> anyhow::Result<()> {
    let failures = "/var/lib/cryo/failures";
    node.exec(&["mkdir", "-p", failures]).await?.success()?;
    cx.cover(node, failures).await?;
    for image in IMAGES {
        cx.image(node, image);
    }
    cx.adopt(node, "d2")?;
    let counter = [BUSYBOX, "sh", "-c", COUNTER];
    started(cx, node, "d1", &[], &counter).await?;
    let (d3, output) = started(cx, node, "d3", &[], &[PYTHON, "python3", "-c", OBJECTS]).await?;
    if let Err(why) = order(&d3, &output, "flock").await? {
        bail!("this machine has no file locks: {why}");
    }
    let disk = cx.tmpfs(node, "size=64k").await?;
    let line = format!("cryoctl checkpoint d1 --image-dir {disk}/images");
    let full = prints(node, folder, &line).await?;
    ensure!(full.contains("No space left"), "{full}");

    let data = "type=bind,src=/srv,dst=/share,options=rbind:rw";
    let flags = ["--cap-add", "CAP_SYS_TIME", "--mount", data];
    let (c, _) = started(cx, node, "c", &flags, &counter).await?;
    prints(node, folder, "cryoctl checkpoint c --export c.tar").await?;
    c.kill_and_delete().await?;

    let short = |config: &mut SandboxConfig| {
        if let Some(metadata) = &mut config.metadata {
            metadata.name = "p2".into();
        }
    };
    let pod = cx.pod_as(node, cx.runtime().handler(), short).await?;
    let c1 = pod.run("c1", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    c1.count_to(2).await?;
    prints(node, folder, "cryoctl checkpoint --pod p2 --export p2.tar").await?;
    Ok(())
}

/// What a command line prints in this folder of the node.
async fn prints(node: &Node, folder: &str, line: &str) -> anyhow::Result<String> {
    let script = format!("cd {folder} && {line}");
    let done = node.exec(&["sh", "-c", &script]).await?;
    let text = done.stdout + &done.stderr;
    Ok(text.replace(folder, SHOWN).replace(node.name(), "node-a"))
}

pub(crate) async fn of_live_commands_are_what_is_printed(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let folder = cx.folder(node, "screens")?;
    stage(&cx, node, &folder).await?;
    let undo = "/opt/cryo/bin/cryoctl uninstall --force";
    cx.undo(node, undo.to_owned());
    let mut stale = Vec::new();
    for name in PAGES {
        let path = repository().join(name);
        let text = std::fs::read_to_string(&path).context(name)?;
        let page = Page::cut(&text)?;
        let mut printed = Vec::new();
        for command in page.commands() {
            printed.push(prints(node, &folder, command).await?);
        }
        ensure!(!printed.is_empty(), "{name} has no screens");
        let wanted = page.with(&printed)?;
        if wanted == text {
            continue;
        }
        if std::env::var_os("CRYO_BLESS").is_some() {
            std::fs::write(&path, &wanted)?;
        } else {
            stale.push(format!("{name}:\n{}", differences(&text, &wanted)));
        }
    }
    ensure!(
        stale.is_empty(),
        "run `CRYO_BLESS=1 cargo test -p cryo-e2e --test e2e -- screens`, these are stale: {}",
        stale.join("\n")
    );
    Ok(())
}

/// The lines that only one of the texts has.
fn differences(old: &str, new: &str) -> String {
    let only = |mark: &str, one: &str, other: &str| -> Vec<String> {
        let lines = one
            .lines()
            .filter(|line| !other.lines().any(|l| l == *line));
        lines.map(|line| format!("{mark} {line}")).collect()
    };
    [only("-", old, new), only("+", new, old)]
        .concat()
        .join("\n")
}
