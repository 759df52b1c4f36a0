//! Images that `cryoctl` builds of checkpoints, and the engines that restore from them.

mod killed;

use anyhow::{Context as _, bail, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::lab::Node;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::workload::consecutive;
use serde_json::Value;

use crate::cri::{archive, counter, restored};
use crate::podman;

pub(crate) use self::killed::a_killed_writer_leaves_nothing_half_made;

/// A life in Podman: a counter is checkpointed, an image of it built, and that restored from a
/// registry, to which it was pushed from a layout, and from an archive, each with its compression.
/// Prints the last number before, and the numbers after each restore.
const PODMAN: &str = r#"
image=$3 of_layout=$4 of_archive=$5
until_counted() { # until_counted N: at least N lines
	for _ in $(seq 300); do
		if (($(podman logs counter | wc -l) >= $1)); then return; fi
		sleep 0.1
	done
	echo "counted $(podman logs counter | wc -l) of $1" >&2
	return 1
}
restored() { # restored IMAGE
	podman container restore "$1" >/dev/null
	until_counted 3
	podman logs counter | tr '\n' ' '
	echo
	podman rm -f -t 0 counter >/dev/null
}
podman pull -q --tls-verify=false localhost:5000/busybox:1 >/dev/null
podman run -d --name counter --network none localhost:5000/busybox:1 \
	sh -c 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done' >/dev/null
until_counted 4
podman container checkpoint -e "$dir/checkpoint.tar.zst" counter >/dev/null
podman logs counter | tail -n 1
podman rm counter >/dev/null
cryoctl convert --to containerd "$dir/checkpoint.tar.zst" "$dir/containerd.tar" 2>/dev/null
for command in show "inspect --all"; do
	checkpointctl $command "$dir/containerd.tar" | grep containerd >/dev/null
done
cryoctl build --compression "$of_layout" "$dir/checkpoint.tar.zst" "oci:$dir/layout"
cryoctl push "oci:$dir/layout" "$image"
cryoctl build --compression "$of_archive" "$dir/checkpoint.tar.zst" "oci-archive:$dir/image.tar:counter"
podman pull -q --tls-verify=false "$image" >/dev/null
restored "$image"
podman rmi -f "$image" >/dev/null
podman load -q -i "$dir/image.tar" >/dev/null
restored localhost/counter:latest
"#;

/// The digest that cryoctl prints when it has made an image.
async fn cryoctl(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = vec!["cryoctl"];
    command.extend(arguments);
    let said = node.exec(&command).await?.success()?;
    let digest = said.trim().rsplit(' ').next().unwrap_or_default();
    ensure!(digest.starts_with("sha256:"), "{said}");
    Ok(digest.to_owned())
}

/// What is said of a checkpoint, but for its form.
async fn summary(node: &Node, path: &str) -> anyhow::Result<Value> {
    let command = ["cryoctl", "summary", "--format", "json", path];
    let mut summary: Value = serde_json::from_str(&node.exec(&command).await?.success()?)?;
    summary.as_object_mut().context("no object")?.remove("form");
    Ok(summary)
}

/// Removes images, and what nothing needs any more.
async fn remove(node: &Node, namespace: &str, names: &[&str]) -> anyhow::Result<()> {
    let mut command = vec!["-n", namespace, "images", "rm", "--sync"];
    command.extend(names);
    node.ctr(&command).await.map(drop)
}

/// A way of an image into a registry and out of it: its tag there, where it is made, with which
/// compression, and whether CRI pulls it, or cryoctl.
type Way = (&'static str, &'static str, &'static [&'static str], bool);

const GZIP: &[&str] = &["--compression", "gzip"];
const ZSTD: &[&str] = &["--compression", "zstd", "--level", "1"];
const WAYS: [Way; 4] = [
    ("straight", "docker://", &[], true),
    ("layout", "oci:", GZIP, true),
    ("archive", "oci-archive:", ZSTD, true),
    ("pulled", "oci:", GZIP, false),
];

pub(crate) async fn cri_restores_from_a_registry(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let own = cx.runtime().handler();
    goes_through_a_registry(&cx, node, own, &WAYS).await?;
    if cx.runtime() == Runtime::Cryo {
        goes_through_a_registry(&cx, node, "runc", &WAYS[..1]).await?;
    }
    Ok(())
}

async fn goes_through_a_registry(
    cx: &Context,
    node: &Node,
    handler: &str,
    ways: &[Way],
) -> anyhow::Result<()> {
    let container = counter(cx, node, handler).await?;
    let archive = archive(cx, &container).await?;
    let expected = summary(node, &archive.path).await?;
    let folder = cx.folder(node, "made")?;
    for &(tag, kind, compression, by_cri) in ways {
        let image = format!("localhost:5000/{}:{tag}", cx.id(handler));
        let (made, kept) = match kind {
            "docker://" => (format!("{kind}{image}"), format!("{folder}/{tag}-copy")),
            _ => (format!("{kind}{folder}/{tag}"), format!("{folder}/{tag}")),
        };
        let build = [&["build", &archive.path, &made], compression].concat();
        let digest = cryoctl(node, &build).await?;
        let other = match kind {
            "docker://" => cryoctl(node, &["pull", &image, &format!("oci:{kept}")]).await?,
            _ => cryoctl(node, &["push", &made, &image]).await?,
        };
        ensure!(other == digest, "{tag}: {other} was made of {digest}");
        let found = summary(node, &kept).await?;
        ensure!(found == expected, "{tag}: {found} of {expected}");
        if by_cri {
            node.cri().pull(&image).await.context("PullImage")?;
        } else {
            ensure!(cryoctl(node, &["pull", &image]).await? == digest);
        }
        let done = restored(cx, node, handler, &image, &archive).await;
        done.context(tag)?;
        remove(node, "k8s.io", &[&image]).await?;
    }
    Ok(())
}

/// A checkpoint alone shows what a lesser node than the one it was made on lacks.
async fn says_what_it_was_made_on(
    cx: &Context,
    node: &Node,
    path: &str,
    by: &str,
) -> anyhow::Result<()> {
    let mut info: Value =
        serde_json::from_str(&node.exec(&["cryoctl", "node-info"]).await?.success()?)?;
    let lesser = format!("{}/lesser.json", cx.folder(node, &format!("lesser-{by}"))?);
    let verify = async |info: &Value| -> anyhow::Result<Vec<(String, String, String)>> {
        std::fs::write(node.host(&lesser), info.to_string())?;
        let command = [
            "cryoctl", "verify", path, "--node", &lesser, "--format", "json",
        ];
        let said: Value = serde_json::from_str(&node.exec(&command).await?.success()?)?;
        let findings = said["findings"].as_array().context("no findings")?;
        let text =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let told = findings.iter().filter(|f| f["severity"] != "ok");
        Ok(told
            .map(|f| (text(f, "name"), text(f, "severity"), text(f, "text")))
            .collect())
    };
    let alike = verify(&info).await?;
    ensure!(alike.iter().all(|f| f.1 == "note"), "{by}: {alike:?}");

    let features = info["cpu"]["features"]
        .as_array_mut()
        .context("no features")?;
    // Every x86-64 processor that a lab runs on has it.
    features.retain(|feature| feature != "ssse3");
    let had = info["kernel"]["release"].clone();
    info["kernel"]["release"] = "4.18.0".into();
    info["criu"]["version"] = "4.1".into();
    let told = verify(&info).await?;
    let warned = |name: &str, of: &str| {
        told.iter()
            .any(|f| f.0 == name && f.1 == "warning" && f.2.contains(of))
    };
    ensure!(
        warned("kernel", had.as_str().context("no release")?),
        "{by}: {told:?}"
    );
    ensure!(warned("criu", "4.1"), "{by}: {told:?}");
    // runc does not ask for it.
    let knows_processor = by == "cryo" && info["architecture"] == "x86_64";
    ensure!(
        warned("processor-origin", "ssse3") == knows_processor,
        "{by}: {told:?}"
    );
    Ok(())
}

/// What one runtime has checkpointed the other restores.
pub(crate) async fn each_runtime_restores_the_others(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for (from, to) in [("cryo", "runc"), ("runc", "cryo")] {
        let container = counter(&cx, node, from).await?;
        let archive = archive(&cx, &container).await?;
        says_what_it_was_made_on(&cx, node, &archive.path, from).await?;
        let image = format!("localhost:5000/{}:1", cx.id(from));
        let destination = format!("docker://{image}");
        cryoctl(node, &["build", &archive.path, &destination]).await?;
        node.cri().pull(&image).await.context("PullImage")?;
        let by_image = restored(&cx, node, to, &image, &archive).await;
        by_image.with_context(|| format!("an image of {from} by {to}"))?;
        let by_archive = restored(&cx, node, to, &archive.path, &archive).await;
        by_archive.with_context(|| format!("an archive of {from} by {to}"))?;
        remove(node, "k8s.io", &[&image]).await?;
    }
    Ok(())
}

pub(crate) async fn converted_archives_are_read_and_restored(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = cx.runtime().handler();
    let container = counter(&cx, node, handler).await?;
    let mut archive = archive(&cx, &container).await?;
    let folder = cx.folder(node, "converted")?;
    let convert = async |to: &str, from: &str| -> anyhow::Result<String> {
        let path = format!("{folder}/{to}.tar");
        let command = ["cryoctl", "convert", "--to", to, from, &path];
        node.exec(&command).await?.success()?;
        Ok(path)
    };
    let mut path = archive.path.clone();
    for (to, engine) in [
        ("podman", "Podman"),
        ("cri-o", "CRI-O"),
        ("containerd", "containerd"),
    ] {
        path = convert(to, &path).await?;
        let shown = node.exec(&["checkpointctl", "show", &path]).await?;
        let shown = shown.success()?;
        ensure!(
            shown.contains(engine) && shown.contains("counter"),
            "{shown}"
        );
        let inspect = ["checkpointctl", "inspect", "--all", &path];
        let inspected = node.exec(&inspect).await?.success()?;
        for wanted in ["Process tree", "Overview of mounts", engine] {
            ensure!(inspected.contains(wanted), "{to}: {inspected}");
        }
    }
    // Through all three layouts and back, and it still is what it was.
    archive.path = path;
    restored(&cx, node, handler, &archive.path, &archive).await?;
    Ok(())
}

pub(crate) async fn containerds_store_keeps_and_gives_an_image(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let handler = cx.runtime().handler();
    let container = counter(&cx, node, handler).await?;
    let archive = archive(&cx, &container).await?;
    let image = format!("localhost:5000/{}:1", cx.id("stored"));
    let other = format!("localhost:5000/{}:2", cx.id("other"));
    // In a namespace without CRI, which names each image once more. The same twice, and another,
    // whose removal makes containerd collect what nobody needs.
    let build = ["build", "--namespace", "default", &archive.path];
    let digest = cryoctl(node, &[&build[..], &[&image]].concat()).await?;
    ensure!(cryoctl(node, &[&build[..], &[&image]].concat()).await? == digest);
    let annotated = [&build[..], &[&other, "--annotation", "a=b"]].concat();
    let second = cryoctl(node, &annotated).await?;
    let leases = node.ctr(&["leases", "ls", "-q"]).await?;
    ensure!(!leases.contains("cryoctl"), "a lease is left: {leases}");
    remove(node, "default", &[&other]).await?;
    let content = ["content", "ls", "-q"];
    let blobs = node.ctr(&content).await?;
    ensure!(blobs.contains(&digest), "{digest} was collected");
    ensure!(!blobs.contains(&second), "{second} was not collected");
    remove(node, "default", &[&image]).await?;
    let blobs = node.ctr(&content).await?;
    ensure!(!blobs.contains(&digest), "{digest} was not collected");

    ensure!(cryoctl(node, &["build", &archive.path, &image]).await? == digest);
    restored(&cx, node, handler, &image, &archive).await?;

    // From there to a registry, and back under another name.
    ensure!(cryoctl(node, &["push", &image]).await? == digest);
    ensure!(cryoctl(node, &["pull", &image, &other]).await? == digest);
    let folder = cx.folder(node, "layout")?;
    let to = format!("oci:{folder}");
    ensure!(cryoctl(node, &["pull", &format!("containerd:{other}"), &to]).await? == digest);
    let expected = summary(node, &archive.path).await?;
    for path in [folder, format!("containerd:{image}")] {
        let found = summary(node, &path).await?;
        ensure!(found == expected, "{path}: {found} of {expected}");
    }
    remove(node, "k8s.io", &[&image, &other]).await
}

pub(crate) async fn podman_restores_from_an_image(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for (name, runtime, of_layout, of_archive) in [
        ("runc", "runc", "gzip", "zstd"),
        ("crun", "/opt/lab/crun", "zstd", "gzip"),
    ] {
        let folder = cx.folder(node, name)?;
        let image = format!("localhost:5000/{}:1", cx.id(name));
        let life = [podman::SETUP, PODMAN].concat();
        let script = ["bash", "-c", &life, "podman", runtime, &folder, &image];
        let script = [&script[..], &[of_layout, of_archive]].concat();
        let said = node.exec(&script).await?.success().context(name)?;
        let runs: Vec<Vec<u64>> = said
            .lines()
            .filter(|line| !line.contains("sha256:"))
            .map(|line| line.split_whitespace().map(str::parse).collect())
            .collect::<Result<_, _>>()
            .with_context(|| said.clone())?;
        let [before, of_registry, of_archive] = runs.as_slice() else {
            bail!("{name}: {said}");
        };
        for run in [of_registry, of_archive] {
            let all = [before.as_slice(), run].concat();
            consecutive(&all).with_context(|| format!("{name}: {said}"))?;
        }
    }
    Ok(())
}
