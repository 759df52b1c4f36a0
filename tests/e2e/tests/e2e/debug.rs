//! What an operator sees of a shim, and where the option `Root` puts its state.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, ensure};
use cryo_e2e::context::{Container, Context};
use cryo_e2e::lab::Node;
use cryo_e2e::patience::until;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use rustix::process::{Pid, Signal, kill_process};

/// `curl --unix-socket PATH http://shim/`; the lab has no curl.
const GET: &str = r#"
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(10)
peer.connect(sys.argv[1])
peer.sendall(b"GET / HTTP/1.1\r\nHost: shim\r\n\r\n")
while data := peer.recv(65536):
    sys.stdout.buffer.write(data)
"#;

/// What a container's shim says of it.
pub(crate) async fn state_of(container: &Container) -> anyhow::Result<serde_json::Value> {
    let socket = format!("/run/cryo/default/{}@debug", container.id);
    Ok(state(&container.node, &socket).await?["containers"][0].take())
}

async fn state(node: &Node, path: &str) -> anyhow::Result<serde_json::Value> {
    let answer = node.exec(&["python3", "-c", GET, path]).await?.success()?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    Ok(serde_json::from_str(body)?)
}

pub(crate) async fn the_state_is_told(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let _exec = container.exec("e", "sleep 1000", false).await?;
    let socket = format!("/run/cryo/default/{}@debug", container.id);
    let mode = std::fs::metadata(node.host(&socket))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let told = state(node, &socket).await?;
    ensure!(told["shim"]["namespace"] == "default", "{told:#}");
    let seen = &told["containers"][0];
    ensure!(seen["id"] == container.id.as_str(), "{told:#}");
    ensure!(seen["phase"] == "running", "{told:#}");
    ensure!(seen["pid"] == container.api.get(&container.id).await?.pid);
    let streams = seen["streams"].as_array().context("no streams")?;
    let stdout = streams.iter().find(|s| s["name"] == "stdout");
    let stdout = stdout.context("no stdout")?;
    ensure!(stdout["address"] == output.path("stdout"), "{told:#}");
    ensure!(stdout["copied_bytes"].as_u64() > Some(5), "{told:#}");
    ensure!(seen["execs"][0]["phase"] == "running", "{told:#}");

    let shim = told["shim"]["pid"].as_u64().context("no pid")?;
    ensure!(signal(node, &container, shim)? == 1, "no shim {shim}");
    let wanted = format!("container {}: running", container.id);
    until("SIGUSR1 is answered in the log", || {
        let log = std::fs::read_to_string(node.log())?;
        Ok(log.contains(&wanted).then_some(()))
    })
    .await?;
    output.count_on(1).await?;
    container.kill_and_delete().await?;
    let socket = node.host(&socket);
    until("the debug socket goes", || {
        Ok((!socket.exists()).then_some(()))
    })
    .await?;
    Ok(())
}

/// Sends SIGUSR1 to the container's shim, `pid` in the node; how many there are.
fn signal(node: &Node, container: &Container, pid: u64) -> anyhow::Result<usize> {
    let mut sent = 0;
    for shim in node.processes("containerd-shim-cryo-v2") {
        let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap_or_default();
        let inner = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|ids| ids.split_whitespace().last()?.parse().ok());
        let line = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
        let own = line
            .split(|b| *b == 0)
            .any(|w| w == container.id.as_bytes());
        if inner == Some(pid)
            && own
            && let Some(shim) = Pid::from_raw(shim.cast_signed())
        {
            kill_process(shim, Signal::USR1)?;
            sent += 1;
        }
    }
    Ok(sent)
}

pub(crate) async fn the_option_root_moves_the_state(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let root = cx.folder(node, "root")?;
    let options = format!("{}/options.toml", cx.folder(node, "options")?);
    std::fs::write(node.host(&options), format!("Root = '{root}'\n"))?;
    let flags = ["--runtime-config-path", options.as_str()];
    for killed in [false, true] {
        let command = ["sh", "-c", COUNTER];
        let container = cx.container_with(node, &flags, BUSYBOX, &command).await?;
        let output = container.create().await?;
        container.start().await?;
        output.count_to(2).await?;
        let state = node.host(&format!("{root}/default/{}", container.id));
        ensure!(state.join("task.json").exists(), "no state in {root}");
        let usual = node.host(&format!("/run/cryo/default/{}", container.id));
        ensure!(!usual.exists(), "there is state in /run/cryo");
        if killed {
            // Then it is `delete` that has to find it.
            ensure!(node.kill_shims_of(&container.id)? == 1);
            until("`delete` removes the state", || {
                Ok((!state.exists()).then_some(()))
            })
            .await?;
        } else {
            let code = container.kill_and_delete().await?;
            ensure!(code == 137, "exit code {code}");
            ensure!(!state.exists(), "the state stays");
        }
    }
    let left: Vec<_> = std::fs::read_dir(node.host(&format!("{root}/default")))?
        .flatten()
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
