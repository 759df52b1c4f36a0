//! cryoctl with running containers: checkpoint, restore, ps, doctor, install.

mod install;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::State;
use cryo_e2e::context::{Container, Context};
use cryo_e2e::cri::ContainerState;
use cryo_e2e::lab::{Finished, Node, NodeConfig, parent};
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER, FILE_COUNTER, PYTHON, goes_on, numbers};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) use self::install::{doctor_finds_what_is_wrong, installed_used_and_uninstalled};
use crate::criu;
use crate::failures::unharmed;
use crate::preflight::{objects, order};

const CRYOCTL: &str = "/opt/cryo/bin/cryoctl";

/// Runs cryoctl in the node.
async fn cryoctl(node: &Node, arguments: &[&str]) -> anyhow::Result<Finished> {
    node.exec(&[&[CRYOCTL], arguments].concat()).await
}

async fn json(node: &Node, arguments: &[&str]) -> anyhow::Result<(i32, Value)> {
    let done = cryoctl(node, arguments).await?;
    let said = serde_json::from_str(&done.stdout)
        .with_context(|| format!("{arguments:?}: {} {}", done.stdout, done.stderr))?;
    Ok((done.code, said))
}

/// Waits until a file of the node has at least `n` numbers.
async fn count_in(node: &Node, file: &str, n: usize) -> anyhow::Result<Vec<u64>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(node.host(file)).unwrap_or_default();
        let found = numbers(&text);
        if found.len() >= n {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "{file} has not {n} numbers: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn names(node: &Node, folder: &str) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<_> = std::fs::read_dir(node.host(folder))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// A counter that talks to itself by TCP.
const TALKER: &str = "\
import socket, time
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
peer = server.accept()[0]
i = 0
while True:
    print(i, flush=True)
    open('/count', 'w').write(str(i))
    i += 1
    time.sleep(0.05)
";

pub(crate) async fn a_checkpoint_with_options_goes_on(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let container = cx
        .container(node, PYTHON, &["python3", "-c", TALKER])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    let folder = cx.folder(node, "out")?;
    let archive = format!("{folder}/c.tar");

    // Without the option it is refused, by the shim's own look, and nothing is left.
    let refused = cryoctl(node, &["checkpoint", &container.id, "-e", &archive]).await?;
    let text = refused.failure()?;
    ensure!(text.contains("tcp-established"), "{text}");
    unharmed(&container, &output).await?;
    ensure!(
        names(node, &folder)?.is_empty(),
        "{:?}",
        names(node, &folder)?
    );

    let flags = [
        "--tcp-close",
        "--ghost-limit=2M",
        "--print-stats",
        "-e",
        &archive,
    ];
    let command = [&["checkpoint", &container.id], &flags[..]].concat();
    let (code, stats) = json(node, &command).await?;
    ensure!(code == 0, "{stats}");
    ensure!(
        stats["podman_checkpoint_duration"].as_u64() > Some(0),
        "{stats}"
    );
    let one = &stats["container_statistics"][0];
    ensure!(one["Id"] == container.id.as_str(), "{stats}");
    ensure!(
        one["criu_statistics"]["pages_written"].as_u64() > Some(0),
        "{stats}"
    );
    unharmed(&container, &output).await?;
    ensure!(
        names(node, &folder)? == ["c.tar"],
        "{:?}",
        names(node, &folder)?
    );

    // Once more to the same place is no way to lose the first.
    let text = cryoctl(node, &command).await?.failure()?;
    ensure!(text.contains("there already"), "{text}");

    // With the end of the container, from a file that only the option's value can make.
    let last = format!("{folder}/last.tar");
    let command = [
        "checkpoint",
        &container.id,
        "--tcp-close",
        "--exit",
        "-e",
        &last,
    ];
    let said = cryoctl(node, &command).await?.success()?;
    ensure!(said.trim() == last, "{said}");
    container.wait_for(State::Stopped).await?;
    container.finish().await?;
    let before = numbers(&output.complete().await?);
    let told = cryoctl(node, &["summary", &last]).await?.success()?;
    ensure!(
        told.contains(&container.id) && told.contains("rootfs diff"),
        "{told}"
    );

    let second = cx.adopt(node, &cx.id("restored"))?;
    let log = format!("{folder}/log");
    let flags = ["--tcp-close", "--log", &log, "--print-stats"];
    let command = [&["restore", &last, "--id", &second.id], &flags[..]].concat();
    let (code, stats) = json(node, &command).await?;
    ensure!(code == 0, "{stats}");
    let criu = &stats["container_statistics"][0]["criu_statistics"];
    ensure!(criu["pages_restored"].as_u64() > Some(0), "{stats}");
    goes_on(&before, &count_in(node, &log, 3).await?)?;
    // What it had changed in its root file system came along.
    let pid = node
        .api(cryo_e2e::context::NAMESPACE)?
        .get(&second.id)
        .await?
        .pid;
    let count = std::fs::read_to_string(format!("/proc/{}/root/proc/{pid}/root/count", node.pid()));
    ensure!(
        count?
            .parse::<u64>()
            .is_ok_and(|n| n >= before.len() as u64 - 1)
    );

    // And again: what had no reader is no hindrance.
    let again = format!("{folder}/again.tar");
    cryoctl(node, &["checkpoint", &second.id, "--exit", "-e", &again])
        .await?
        .success()?;
    second.finish().await?;
    let third = cx.adopt(node, &cx.id("third"))?;
    let unpacked = cx.folder(node, "unpacked")?;
    node.exec(&["tar", "-xf", &again, "-C", &unpacked])
        .await?
        .success()?;
    cryoctl(node, &["restore", &unpacked, "--id", &third.id])
        .await?
        .success()?;
    third.expect(State::Running).await?;
    let fourth = cx.adopt(node, &cx.id("fourth"))?;
    let images = format!("{unpacked}/checkpoint");
    let alone = ["restore", &images, "--id", &fourth.id];
    let text = cryoctl(node, &alone).await?.failure()?;
    ensure!(text.contains("--like"), "{text}");
    cryoctl(node, &[&alone[..], &["--like", &third.id]].concat())
        .await?
        .success()?;
    fourth.expect(State::Running).await?;
    let text = cryoctl(node, &["restore", &again, "--id", &third.id])
        .await?
        .failure()?;
    ensure!(text.contains("already"), "{text}");
    third.expect(State::Running).await?;
    Ok(())
}

pub(crate) async fn a_pod_by_its_name(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let one = pod.run("one", BUSYBOX, &["sh", "-c", FILE_COUNTER]).await?;
    let two = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    one.count_to(2).await?;
    two.count_to(2).await?;
    let (_, all) = json(node, &["ps", "--namespace", "k8s.io", "--format", "json"]).await?;
    let row = all
        .as_array()
        .and_then(|all| all.iter().find(|row| row["id"] == one.id.as_str()))
        .context("ps does not list the container")?;
    ensure!(
        row["pod"]["namespace"] == "e2e" && row["pod"]["container"] == "one",
        "{row}"
    );
    ensure!(
        row["can_checkpoint"] == true && row["state"] == "running",
        "{row}"
    );
    let name = row["pod"]["name"]
        .as_str()
        .context("the pod's name")?
        .to_owned();

    let folder = cx.folder(node, "out")?;
    let both = format!("e2e/{name}");
    let said = cryoctl(node, &["checkpoint", "--pod", &both, "--export", &folder])
        .await?
        .success()?;
    ensure!(said.lines().count() == 2, "{said}");
    let found = names(node, &folder)?;
    ensure!(
        found.len() == 2 && found[0].starts_with(&format!("checkpoint-{name}_e2e-one-")),
        "{found:?}"
    );
    one.count_on(2).await?;
    two.count_on(2).await?;
    for bad in [
        ["--pod", "e2e/no-such-pod"],
        ["--pod", &format!("other/{name}")],
        ["no-such-container", "--namespace=k8s.io"],
    ] {
        let text = cryoctl(node, &[&["checkpoint"], &bad[..]].concat())
            .await?
            .failure()?;
        ensure!(text.contains("no container"), "{bad:?}: {text}");
    }

    let archive = format!("{folder}/one.tar");
    let flags = ["--name", "one", "--exit", "--export", &archive];
    cryoctl(
        node,
        &[&["checkpoint", "--pod", &name], &flags[..]].concat(),
    )
    .await?
    .success()?;
    one.wait_for(ContainerState::Exited).await?;
    let before = one.numbers();
    two.count_on(2).await?;
    // As the reference reads it.
    let shown = node
        .exec(&["checkpointctl", "show", &archive])
        .await?
        .success()?;
    ensure!(
        shown.contains("one") && shown.contains("containerd"),
        "{shown}"
    );

    let text = cryoctl(node, &["restore", &archive, "--id", "x"])
        .await?
        .failure()?;
    ensure!(text.contains("--pod"), "{text}");
    let other = cx.pod(node, cx.runtime().handler()).await?;
    let id = cryoctl(
        node,
        &["restore", &archive, "--pod", &other.id, "--tcp-close"],
    )
    .await?
    .success()?;
    let restored = other.container(id.trim(), "one");
    // containerd gives it the old log, and the rest goes behind it.
    let all = restored.count_to(before.len() + 3).await?;
    goes_on(&before, &all[before.len()..])?;
    let text = cryoctl(
        node,
        &["restore", &archive, "--pod", &other.id, "--auto-dedup"],
    )
    .await?
    .failure()?;
    ensure!(text.contains("/etc/cryo/config.toml"), "{text}");
    Ok(())
}

pub(crate) async fn one_container_of_a_pods_archive(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let pod = cx.pod(node, cx.runtime().handler()).await?;
    let one = pod.run("one", BUSYBOX, &["sh", "-c", FILE_COUNTER]).await?;
    let two = pod.run("two", BUSYBOX, &["sh", "-c", COUNTER]).await?;
    one.count_to(2).await?;
    two.count_to(2).await?;
    let (alone, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let folder = cx.folder(node, "out")?;
    for (id, namespace, name) in [
        (&one.id, "k8s.io", "one"),
        (&two.id, "k8s.io", "two"),
        (&alone.id, "default", "three"),
    ] {
        let archive = format!("{folder}/{name}.tar");
        let checkpoint = ["checkpoint", id, "--exit", "--export", &archive];
        let checkpoint = [&checkpoint[..], &["--namespace", namespace]].concat();
        cryoctl(node, &checkpoint).await?.success()?;
    }
    one.wait_for(ContainerState::Exited).await?;
    two.wait_for(ContainerState::Exited).await?;
    alone.wait_for(State::Stopped).await?;
    alone.finish().await?;
    let before = [
        one.numbers(),
        two.numbers(),
        numbers(&output.complete().await?),
    ];

    // The same as an archive of archives, compressed or not, and unpacked.
    let script = r#"
        set -e
        cd "$0"
        tar -cf pod.tar one.tar two.tar three.tar
        for name in one two three; do
            mkdir -p "pod/$name"
            tar -xf "$name.tar" -C "pod/$name"
        done
        tar -C pod -czf pod.tar.gz one two three"#;
    node.exec(&["bash", "-c", script, &folder])
        .await?
        .success()?;
    let other = cx.pod(node, cx.runtime().handler()).await?;
    let into = ["--pod", &other.id];
    let pod_tar = format!("{folder}/pod.tar");
    let text = cryoctl(node, &[&["restore", &pod_tar], &into[..]].concat())
        .await?
        .failure()?;
    ensure!(text.contains("one, three, two"), "{text}");
    for (form, container, before, name) in [
        ("pod.tar", "one", &before[0], "a"),
        ("pod.tar.gz", "two", &before[1], "b"),
        ("pod", "one", &before[0], "c"),
    ] {
        let path = format!("{folder}/{form}");
        let choice = ["restore", &path, "--container", container, "--name", name];
        let id = cryoctl(node, &[&choice[..], &into].concat()).await?;
        let id = id.success().with_context(|| form.to_owned())?;
        let restored = other.container(id.trim(), name);
        let all = restored.count_to(before.len() + 3).await?;
        goes_on(before, &all[before.len()..]).with_context(|| form.to_owned())?;
    }
    // In no pod, one that was in none.
    for form in ["pod.tar", "pod"] {
        let copy = cx.adopt(node, &cx.id("copy"))?;
        let (path, log) = (format!("{folder}/{form}"), format!("{folder}/{form}.log"));
        let choice = ["restore", &path, "--container", "three", "--id", &copy.id];
        let done = cryoctl(node, &[&choice[..], &["--log", &log]].concat()).await?;
        done.success().with_context(|| form.to_owned())?;
        goes_on(&before[2], &count_in(node, &log, 3).await?)?;
    }
    Ok(())
}

pub(crate) async fn a_checkpoint_that_asks_for_too_much_is_refused(
    cx: Context,
) -> anyhow::Result<()> {
    let node = cx.a()?;
    let folder = cx.folder(node, "out")?;
    let share = format!("type=bind,src={folder},dst=/share,options=rbind:rw");
    let flags = ["--cap-add", "CAP_SYS_TIME", "--mount", &share];
    let container = cx
        .container_with(node, &flags, BUSYBOX, &["sh", "-c", COUNTER])
        .await?;
    let output = container.create().await?;
    container.start().await?;
    output.count_to(2).await?;
    let archive = format!("{folder}/c.tar");
    cryoctl(node, &["checkpoint", &container.id, "-e", &archive])
        .await?
        .success()?;
    let copy = cx.adopt(node, &cx.id("copy"))?;
    let command = ["restore", &archive, "--id", &copy.id];
    let text = cryoctl(node, &command).await?.failure()?;
    for word in [&*folder, "CAP_SYS_TIME", "--trust", "--like"] {
        ensure!(text.contains(word), "{word}: {text}");
    }
    let api = node.api(cryo_e2e::context::NAMESPACE)?;
    ensure!(api.container(&copy.id).await.is_err(), "something was made");
    cryoctl(node, &[&command[..], &["--trust"]].concat())
        .await?
        .success()?;
    copy.expect(State::Running).await?;

    // What is cut short makes nothing.
    let cut = format!("{folder}/cut.tar");
    let whole = std::fs::read(node.host(&archive))?;
    std::fs::write(node.host(&cut), &whole[..whole.len() / 2])?;
    let third = cx.id("third");
    let text = cryoctl(node, &["restore", &cut, "--id", &third])
        .await?
        .failure()?;
    ensure!(text.contains("cut.tar"), "{text}");
    ensure!(api.container(&third).await.is_err(), "something was made");
    // An image that is not here.
    let flags = ["--image", "localhost:5000/none:1", "--trust"];
    let command = [&["restore", &archive, "--id", &third], &flags[..]].concat();
    let text = cryoctl(node, &command).await?.failure()?;
    ensure!(text.contains("images pull"), "{text}");
    ensure!(api.container(&third).await.is_err(), "something was made");
    Ok(())
}

pub(crate) async fn ps_tells_what_is_in_the_way(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = objects(&cx, node, &[]).await?;
    let ps = async || -> anyhow::Result<(Value, String)> {
        let (code, all) = json(node, &["ps", "--namespace", "default", "--format", "json"]).await?;
        ensure!(code == 0, "{all}");
        let row = all.as_array().into_iter().flatten();
        let mut row = row.filter(|row| row["id"] == container.id.as_str());
        let row = row.next().context("ps does not list it")?.clone();
        let text = cryoctl(node, &["ps", "--namespace", "default"])
            .await?
            .success()?;
        let line = text.lines().find(|line| line.contains(&container.id));
        Ok((row, line.context("ps does not list it")?.to_owned()))
    };
    let (row, line) = ps().await?;
    ensure!(
        row["can_checkpoint"] == true && line.ends_with(" yes"),
        "{row} {line}"
    );
    ensure!(row["processes"].as_u64() >= Some(1), "{row}");
    ensure!(row["memory_bytes"].as_u64() > Some(1 << 20), "{row}");
    if let Err(why) = order(&container, &output, "flock").await? {
        anyhow::bail!("this machine has no file locks: {why}");
    }
    let (row, line) = ps().await?;
    ensure!(row["can_checkpoint"] == false, "{row}");
    let obstacle = &row["findings"]["obstacles"][0];
    ensure!(
        obstacle["problem"] == "file-lock" && obstacle["option"] == "file-locks",
        "{row}"
    );
    ensure!(line.ends_with("file-lock"), "{line}");
    container.api.pause(&container.id).await?;
    let (row, _) = ps().await?;
    ensure!(row["state"] == "paused", "{row}");
    container.api.resume(&container.id).await?;
    // What another shim runs is none of ours.
    let text = cryoctl(node, &["ps", "--address", "/nonexistent.sock"])
        .await?
        .failure()?;
    ensure!(text.contains("/nonexistent.sock"), "{text}");
    Ok(())
}

/// Starts a checkpoint to `c.tar` in this folder and holds its criu up.
async fn held_up(
    container: &Container,
    folder: &str,
    flags: &[&str],
) -> anyhow::Result<(Pid, tokio::task::JoinHandle<anyhow::Result<Finished>>)> {
    let archive = format!("{folder}/c.tar");
    let command = [&["checkpoint", &container.id, "-e", &archive], flags].concat();
    let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
    let node = container.node.clone();
    let client = tokio::spawn(async move {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        cryoctl(&node, &command).await
    });
    let end = Instant::now() + PATIENCE;
    let work = loop {
        if let Some(work) = names(&container.node, folder)?.pop() {
            break work;
        }
        ensure!(Instant::now() < end, "cryoctl does not begin");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let images = format!("{folder}/{work}/checkpoint");
    Ok((criu::hold_dump(container, &images).await?, client))
}

pub(crate) async fn ctrl_c_and_the_deadline_give_it_up(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let folder = cx.folder(node, "out")?;
    for (flags, signal) in [
        (["--leave-running", "--deadline=60"], Some(Signal::INT)),
        (["--exit", "--deadline=60"], Some(Signal::TERM)),
        (["--exit", "--deadline=2"], None),
    ] {
        let (criu, client) = held_up(&container, &folder, &flags).await?;
        let wanted = match signal {
            Some(signal) => {
                for pid in node.processes("cryoctl") {
                    let pid = Pid::from_raw(pid.cast_signed()).context("cryoctl's pid")?;
                    kill_process(pid, signal)?;
                }
                (130, "interrupted")
            }
            None => {
                // Counted by the shim from before criu ran.
                tokio::time::sleep(Duration::from_secs(2)).await;
                (1, "--deadline")
            }
        };
        // What is to end the container must not be let go before it is given up, which nothing
        // shows: the shim ends a criu that does not listen.
        if !(flags.contains(&"--exit") && signal.is_some()) {
            criu::let_go(criu)?;
        }
        let done = client.await??;
        ensure!(
            done.code == wanted.0 && done.stderr.contains(wanted.1),
            "{flags:?}: {done:?}"
        );
        ensure!(done.stdout.is_empty(), "{done:?}");
        container.wait_for(State::Running).await?;
        unharmed(&container, &output).await?;
        ensure!(
            names(node, &folder)?.is_empty(),
            "{:?}",
            names(node, &folder)?
        );
    }
    let archive = format!("{folder}/c.tar");
    cryoctl(node, &["checkpoint", &container.id, "-e", &archive])
        .await?
        .success()?;
    unharmed(&container, &output).await?;
    // A pause that was there before stays.
    container.api.pause(&container.id).await?;
    let second = format!("{folder}/d.tar");
    cryoctl(node, &["checkpoint", &container.id, "-e", &second])
        .await?
        .success()?;
    container.expect(State::Paused).await?;
    container.api.resume(&container.id).await?;
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

/// A cryoctl that stands still after its dump for longer than the node allows.
pub(crate) async fn a_copy_that_comes_too_late_is_refused(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let _config = NodeConfig::set(node, "[checkpoint]\nresume-within = 1\n")?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let folder = cx.folder(node, "out")?;
    let (criu, client) = held_up(&container, &folder, &["--leave-running"]).await?;
    let cryoctl = *node.processes("cryoctl").first().context("no cryoctl")?;
    // The nsenter that started it stops when its child does.
    let nsenter = parent(cryoctl).context("cryoctl has no parent")?;
    let signal = |pid: u32, signal| {
        let pid = Pid::from_raw(pid.cast_signed()).context("no such pid")?;
        kill_process(pid, signal).context("signal cryoctl")
    };
    signal(cryoctl, Signal::STOP)?;
    criu::let_go(criu)?;
    let resumed = container.wait_for(State::Running).await;
    signal(cryoctl, Signal::CONT)?;
    signal(nsenter, Signal::CONT)?;
    resumed?;
    let done = client.await??;
    ensure!(
        done.code == 1
            && done.stderr.contains("before its files were copied")
            && done.stderr.contains("within 1 s"),
        "{done:?}"
    );
    ensure!(names(node, &folder)?.is_empty(), "parts of it were left");
    unharmed(&container, &output).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn verify_tells_what_is_in_the_way(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(2).await?;
    let folder = cx.folder(node, "out")?;
    let archive = format!("{folder}/c.tar");
    cryoctl(node, &["checkpoint", &container.id, "-e", &archive])
        .await?
        .success()?;
    container.kill_and_delete().await?;
    let verify = async |path: &str, flags: &[&str]| -> anyhow::Result<(i32, Value)> {
        let command = [&["verify", path, "--format", "json"], flags].concat();
        let (code, said) = json(node, &command).await?;
        ensure!(
            (code == 0) == (said["restorable"] == true),
            "{code}: {said}"
        );
        Ok((code, said))
    };
    let finding = |said: &Value, name: &str| -> anyhow::Result<Value> {
        let mut all = said["findings"].as_array().into_iter().flatten();
        let found = all.find(|finding| finding["name"] == name && finding["severity"] != "ok");
        found.cloned().with_context(|| format!("no {name}: {said}"))
    };
    let (code, said) = verify(&archive, &[]).await?;
    ensure!(code == 0, "{said}");

    // Other nodes.
    let (_, mut info) = json(node, &["node-info"]).await?;
    let other = format!("{folder}/other.json");
    let save = |info: &Value| std::fs::write(node.host(&other), info.to_string());
    info["hostname"] = "elsewhere".into();
    let features = info["cpu"]["features"]
        .as_array_mut()
        .context("no features")?;
    features.push("avx1024".into());
    save(&info)?;
    let (code, said) = verify(&archive, &["--origin", &other]).await?;
    let text = finding(&said, "processor-origin")?["text"].to_string();
    ensure!(code == 0 && text.contains("avx1024"), "{said}");
    info["architecture"] = "aarch64".into();
    info["criu"] = Value::Null;
    save(&info)?;
    let (code, said) = verify(&archive, &["--node", &other]).await?;
    ensure!(code == 1 && said["node"] == "elsewhere", "{said}");
    finding(&said, "architecture")?;
    finding(&said, "criu")?;

    // Damaged ones, each in its own way.
    let unpacked = cx.folder(node, "unpacked")?;
    let images = format!("{unpacked}/checkpoint");
    node.exec(&["tar", "-xf", &archive, "-C", &unpacked])
        .await?
        .success()?;
    let (code, said) = verify(&unpacked, &[]).await?;
    ensure!(code == 0, "{said}");
    let pages = node.host(&format!("{images}/pages-1.img"));
    let length = std::fs::metadata(&pages)?.len();
    std::fs::File::options()
        .write(true)
        .open(&pages)?
        .set_len(length - 4096)?;
    let (code, said) = verify(&unpacked, &[]).await?;
    let text = finding(&said, "integrity")?["text"].to_string();
    ensure!(code == 1 && text.contains("pages-1.img"), "{said}");
    std::fs::remove_file(&pages)?;
    let (code, said) = verify(&images, &[]).await?;
    let text = finding(&said, "completeness")?["text"].to_string();
    ensure!(code == 1 && text.contains("pages-1.img"), "{said}");
    let files = node.host(&format!("{images}/files.img"));
    let mut bytes = std::fs::read(&files)?;
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&files, bytes)?;
    let (code, said) = verify(&images, &[]).await?;
    let text = finding(&said, "integrity")?["text"].to_string();
    ensure!(code == 1 && text.contains("files.img"), "{said}");
    let text = cryoctl(node, &["verify", &other]).await?.failure()?;
    ensure!(text.contains("not a tar archive"), "{text}");
    Ok(())
}
