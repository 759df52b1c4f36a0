//! A node's administrator at work: the real crictl against the shim.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::context::Context;
use cryo_e2e::crictl::Crictl;
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER};
use serde_json::{Value, json};

/// Asks crictl until `right` says so of the answer.
async fn wait_for(
    crictl: &Crictl,
    command: &str,
    args: &[&str],
    right: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = crictl.json(command, args).await?;
        if right(&answer) {
            return Ok(answer);
        }
        ensure!(
            Instant::now() < end,
            "crictl {command} {args:?} still says: {answer}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn state(answer: &Value) -> Option<&str> {
    answer.pointer("/status/state")?.as_str()
}

pub(crate) async fn a_life_from_runp_to_rmp(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    let script = "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let id = pod
        .create("app", BUSYBOX, &["sh", "-c", script], Value::Null)
        .await?;
    let inspected = crictl.json("inspect", &[&id]).await?;
    ensure!(
        state(&inspected) == Some("CONTAINER_CREATED"),
        "{inspected}"
    );
    crictl.output(&["start", &id]).await?;
    let listed = crictl.json("ps", &["--pod", &pod.id]).await?;
    ensure!(
        listed.pointer("/containers/0/id") == Some(&json!(id)),
        "{listed}"
    );
    let inspected = crictl.json("inspectp", &[&pod.id]).await?;
    ensure!(state(&inspected) == Some("SANDBOX_READY"), "{inspected}");

    let end = Instant::now() + PATIENCE;
    let logs = loop {
        let logs = crictl.run(&["logs", &id]).await?;
        if !logs.stdout.is_empty() && !logs.stderr.is_empty() {
            break logs;
        }
        ensure!(Instant::now() < end, "{logs:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(logs.stdout == "out\n" && logs.stderr == "err\n", "{logs:?}");

    crictl.output(&["stop", "--timeout", "20", &id]).await?;
    let inspected = crictl.json("inspect", &[&id]).await?;
    ensure!(state(&inspected) == Some("CONTAINER_EXITED"), "{inspected}");
    let code = inspected.pointer("/status/exitCode");
    ensure!(code == Some(&json!(7)), "{inspected}");
    crictl.output(&["rm", &id]).await?;
    crictl.output(&["stopp", &pod.id]).await?;
    let inspected = crictl.json("inspectp", &[&pod.id]).await?;
    ensure!(state(&inspected) == Some("SANDBOX_NOTREADY"), "{inspected}");
    crictl.output(&["rmp", &pod.id]).await?;
    crictl.run(&["inspectp", &pod.id]).await?.failure()?;
    Ok(())
}

pub(crate) async fn exec_and_attach(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    let pod = crictl.pod(Value::Null).await?;
    let id = pod
        .start("app", BUSYBOX, &["sleep", "1000"], Value::Null)
        .await?;
    let script = "echo out; echo err >&2; exit 3";
    let streamed = crictl.run(&["exec", &id, "sh", "-c", script]).await?;
    ensure!(streamed.stdout == "out\n", "{streamed:?}");
    let said = streamed.failure()?;
    ensure!(
        said.contains("err\n") && said.contains("exit code 3"),
        "{said}"
    );
    let echoed = crictl
        .run_with_stdin(&["exec", "-i", &id, "cat"], Some(b"to and fro\n"))
        .await?
        .success()?;
    ensure!(echoed == "to and fro\n", "{echoed:?}");
    // script(1) gives crictl the terminal without which it takes none; the size comes after
    // the start.
    let sized = "tty; until [ \"$(stty size)\" = \"31 91\" ]; do sleep 0.1; done";
    let line = format!("stty cols 91 rows 31; crictl exec -it {id} timeout 100 sh -c '{sized}'");
    let terminal = node
        .exec(&["script", "-qec", &line, "/dev/null"])
        .await?
        .success()?;
    ensure!(terminal.contains("/dev/pts/"), "{terminal:?}");
    let now = crictl.output(&["exec", "-s", &id, "echo", "now"]).await?;
    ensure!(now.trim_end() == "now", "{now:?}");
    let started = Instant::now();
    let late = crictl
        .run(&["exec", "-s", "--timeout", "1", &id, "sleep", "1000"])
        .await?
        .failure()?;
    ensure!(late.contains("DeadlineExceeded"), "{late}");
    ensure!(started.elapsed() < Duration::from_secs(30), "{late}");

    let id = pod
        .start(
            "cat",
            BUSYBOX,
            &["cat"],
            json!({ "stdin": true, "stdin_once": true }),
        )
        .await?;
    let echoed = crictl
        .run_with_stdin(&["attach", "-i", &id], Some(b"over and out\n"))
        .await?
        .success()?;
    ensure!(echoed == "over and out\n", "{echoed:?}");
    let exited = |answer: &Value| state(answer) == Some("CONTAINER_EXITED");
    wait_for(&crictl, "inspect", &[&id], exited).await?;
    Ok(())
}

pub(crate) async fn port_forward(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    let pod = crictl.pod(Value::Null).await?;
    let server =
        "mkdir /www; echo hello from the pod >/www/index.html; exec httpd -f -p 80 -h /www";
    pod.start("web", BUSYBOX, &["sh", "-c", server], Value::Null)
        .await?;
    // Any free port: crictl says which it took.
    let script = r#"
        crictl port-forward "$1" 0:80 >"$2" 2>&1 &
        forward=$!
        trap 'kill $forward' EXIT
        for i in $(seq 200); do
            port=$(sed -n 's/.*127.0.0.1:\([0-9]*\) -> 80.*/\1/p' "$2" | head -n1)
            if [ -n "$port" ] && busybox wget -q -O - "http://127.0.0.1:$port/"; then exit 0; fi
            sleep 0.1
        done
        cat "$2" >&2
        exit 1"#;
    let log = format!("{}/log", cx.folder(node, "forward")?);
    let page = node
        .exec(&["bash", "-c", script, "forward", &pod.id, &log])
        .await?
        .success()?;
    ensure!(page == "hello from the pod\n", "{page:?}");
    Ok(())
}

pub(crate) async fn stats_and_update(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    let limits = json!({ "linux": { "resources": { "memory_limit_in_bytes": 64 << 20 } } });
    let id = pod
        .start("app", BUSYBOX, &["sh", "-c", COUNTER], limits)
        .await?;
    let number = |answer: &Value, at: &str| -> u64 {
        let text = answer.pointer(at).and_then(Value::as_str);
        text.and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    let stats = wait_for(&crictl, "stats", &[&id], |answer| {
        number(answer, "/stats/0/cpu/usageCoreNanoSeconds/value") > 0
            && number(answer, "/stats/0/memory/workingSetBytes/value") > 0
    })
    .await?;
    ensure!(
        number(&stats, "/stats/0/memory/availableBytes/value") < 64 << 20,
        "the limit is not in {stats}"
    );
    wait_for(&crictl, "statsp", &[&pod.id], |answer| {
        number(answer, "/stats/0/linux/cpu/usageCoreNanoSeconds/value") > 0
            && number(answer, "/stats/0/linux/process/processCount/value") > 0
    })
    .await?;
    let bytes = (96_u64 << 20).to_string();
    crictl
        .output(&["update", "--memory", &bytes, "--cpu-share", "256", &id])
        .await?;
    let inspected = crictl.json("inspect", &[&id]).await?;
    ensure!(
        number(&inspected, "/status/resources/linux/memoryLimitInBytes") == 96 << 20,
        "{inspected}"
    );
    let stats = crictl.json("stats", &[&id]).await?;
    let available = number(&stats, "/stats/0/memory/availableBytes/value");
    ensure!(available > 64 << 20, "{available} bytes available: {stats}");
    Ok(())
}

pub(crate) async fn a_checkpoint_is_exported_and_created_from(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    let pod = crictl.pod(Value::Null).await?;
    let id = pod
        .start("app", BUSYBOX, &["sh", "-c", COUNTER], Value::Null)
        .await?;
    let counted = |logs: &str| cryo_e2e::workload::numbers(logs);
    let end = Instant::now() + PATIENCE;
    while counted(&crictl.output(&["logs", &id]).await?).len() < 3 {
        ensure!(Instant::now() < end, "the counter does not count");
    }
    let archive = format!("{}/checkpoint.tar", cx.folder(node, "archive")?);
    crictl
        .output(&["checkpoint", "--export", &archive, &id])
        .await?;
    let before = counted(&crictl.output(&["logs", &id]).await?);
    crictl.output(&["stop", &id]).await?;
    let pod = crictl.pod(Value::Null).await?;
    let id = pod.start("app", &archive, &[], Value::Null).await?;
    // The archive's log is in front of what comes now.
    let end = Instant::now() + PATIENCE;
    loop {
        let numbers = counted(&crictl.output(&["logs", &id]).await?);
        if numbers.len() > before.len() + 3 {
            let last = numbers.last().context("nothing counted")?;
            ensure!(*last >= 3, "began anew: {numbers:?}");
            return Ok(());
        }
        ensure!(Instant::now() < end, "{numbers:?} after {before:?}");
    }
}

pub(crate) async fn inspect_says_oom_killed(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    let limits = json!({ "linux": { "resources": { "memory_limit_in_bytes": 16 << 20 } } });
    let script = "x=x; while :; do x=$x$x; done";
    let id = pod
        .start("glutton", BUSYBOX, &["sh", "-c", script], limits)
        .await?;
    let exited = |answer: &Value| state(answer) == Some("CONTAINER_EXITED");
    let inspected = wait_for(&crictl, "inspect", &[&id], exited).await?;
    let said = (
        inspected.pointer("/status/reason"),
        inspected.pointer("/status/exitCode"),
    );
    ensure!(
        said == (Some(&json!("OOMKilled")), Some(&json!(137))),
        "{inspected}"
    );
    Ok(())
}

pub(crate) async fn events_tell_a_life(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    // crictl watches beside; what it says of other tests' containers is passed over.
    let log = format!("{}/events", cx.folder(node, "events")?);
    let script = "exec crictl events >\"$0\"";
    let command = ["timeout", "250", "sh", "-c", script, &log];
    let watch = node.exec(&command);
    let life = async {
        let pod = crictl.pod(Value::Null).await?;
        // crictl watches from when it tells of something.
        let end = Instant::now() + PATIENCE;
        for n in 0.. {
            let seen = std::fs::metadata(node.host(&log)).is_ok_and(|log| log.len() > 0);
            if seen {
                break;
            }
            ensure!(Instant::now() < end, "crictl tells of nothing");
            let name = format!("before{n}");
            let sleep = ["sleep", "1000"];
            pod.create(&name, BUSYBOX, &sleep, Value::Null).await?;
        }
        let id = pod
            .start("app", BUSYBOX, &["sleep", "1000"], Value::Null)
            .await?;
        crictl.output(&["stop", "--timeout", "0", &id]).await?;
        crictl.output(&["rm", &id]).await?;
        let wanted = ["CREATED", "STARTED", "STOPPED", "DELETED"];
        let end = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(node.host(&log)).unwrap_or_default();
            let told: Vec<String> = serde_json::Deserializer::from_str(&text)
                .into_iter::<Value>()
                .map_while(Result::ok)
                .filter(|event| event.pointer("/containerId") == Some(&json!(id)))
                .filter_map(|event| {
                    let kind = event.pointer("/containerEventType")?.as_str()?;
                    Some(
                        kind.trim_start_matches("CONTAINER_")
                            .trim_end_matches("_EVENT")
                            .to_owned(),
                    )
                })
                .collect();
            if told == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{told:?}, wanted {wanted:?}: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        finished = watch => anyhow::bail!("crictl events ended: {:?}", finished?),
        done = life => done,
    }
}
