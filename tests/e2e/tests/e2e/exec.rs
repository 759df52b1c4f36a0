//! Processes that are exec'd into running and restored containers, and terminals.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cryo_e2e::containerd::{Any, ExecRequest, State};
use cryo_e2e::context::{Container, Context, Output};
use cryo_e2e::lab::{self, Finished};
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::workload::{BUSYBOX, COUNTER, goes_on, numbers};
use tonic::Code;

/// Whether the process that asks is where and what the container's first one is; prints
/// what differs.
const SAME_AS_INIT: &str = r#"
for n in cgroup ipc mnt net pid time user uts; do
    [ "$(readlink /proc/self/ns/$n)" = "$(readlink /proc/1/ns/$n)" ] || echo "namespace $n"
done
[ "$(cat /proc/self/cgroup)" = "$(cat /proc/1/cgroup)" ] || echo cgroups
[ "$(cat /proc/self/uid_map)" = "$(cat /proc/1/uid_map)" ] || echo uid_map
[ "$(cat /proc/self/oom_score_adj)" = "$(cat /proc/1/oom_score_adj)" ] || echo oom_score_adj
what='Cap|Seccomp:|NoNewPrivs|SigBlk|Groups|[UG]id|Umask'
[ "$(grep -E "$what" /proc/self/status)" = "$(grep -E "$what" /proc/1/status)" ] || {
    grep -E "$what" /proc/self/status
    grep -E "$what" /proc/1/status
}
ls /proc/self/fd | sed 's/^[0123]$//' | grep .
true
"#;

/// Runs a shell script in a container's task through `ctr`.
async fn exec(
    container: &Container,
    exec_id: &str,
    flags: &[&str],
    script: &str,
) -> anyhow::Result<Finished> {
    let mut command = vec!["task", "exec", "--exec-id", exec_id];
    command.extend(flags);
    command.push(&container.id);
    if flags.contains(&"-d") {
        let ctr = [&["ctr"], &command[..], &["sh", "-c", script]].concat();
        return container.node.exec(&ctr).await;
    }
    container.node.ctr_script(&command, script).await
}

/// A container with these flags of `ctr`, running.
async fn running(cx: &Context, flags: &[&str]) -> anyhow::Result<Container> {
    running_command(cx, flags, &["sleep", "1000"]).await
}

async fn running_command(
    cx: &Context,
    flags: &[&str],
    command: &[&str],
) -> anyhow::Result<Container> {
    let node = cx.a()?;
    let id = cx.id("run");
    let container = cx.adopt(node, &id)?;
    let mut args = vec![
        "run",
        "-d",
        "--null-io",
        "--runtime",
        cx.runtime().containerd_name(),
    ];
    args.extend(flags);
    args.extend([BUSYBOX, &id]);
    args.extend(command);
    node.ctr(&args).await?;
    Ok(container)
}

async fn is_as_init(container: &Container) -> anyhow::Result<()> {
    let differs = exec(container, "same", &[], SAME_AS_INIT)
        .await?
        .success()?;
    ensure!(differs.is_empty(), "not as the first process:\n{differs}");
    Ok(())
}

pub(crate) async fn output_and_exit_codes_come_through_ctr(cx: Context) -> anyhow::Result<()> {
    let container = running(&cx, &[]).await?;
    for code in [0, 7] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let finished = exec(&container, &format!("e{code}"), &[], &script).await?;
        ensure!(finished.code == code, "{finished:?}");
        ensure!(finished.stdout == "out\n", "{finished:?}");
        ensure!(finished.stderr == "err\n", "{finished:?}");
    }
    container.expect(State::Running).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn environment_cwd_and_user(cx: Context) -> anyhow::Result<()> {
    let container = running(&cx, &["--env", "A=1", "--env", "PATH=/bin"]).await?;
    let cwd = if cx.differs("a missing cwd of an exec is an error, and not made") {
        "/tmp"
    } else {
        "/made/for/it"
    };
    let flags = ["--cwd", cwd, "--user", "1000:2000"];
    let script = "echo $A $PATH $HOME; pwd; id -u; id -g; echo again > /dev/stdout";
    let text = exec(&container, "e", &flags, script).await?.success()?;
    ensure!(
        text == format!("1 /bin /\n{cwd}\n1000\n2000\nagain\n"),
        "{text}"
    );
    container.kill_and_delete().await?;
    Ok(())
}

/// What a container may do, as far as it is up to flags of `ctr`.
#[derive(Clone, Copy, Debug)]
struct Rights {
    seccomp: bool,
    own_users: bool,
    new_privs: bool,
    admin: bool,
}

impl Rights {
    /// Every combination.
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|n| Self {
            seccomp: n & 1 != 0,
            own_users: n & 2 != 0,
            new_privs: n & 4 != 0,
            admin: n & 8 != 0,
        })
    }

    fn flags(self) -> Vec<&'static str> {
        let users = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
        let mut flags = Vec::new();
        for (there, some) in [
            (self.seccomp, &["--seccomp"][..]),
            (self.own_users, &users),
            (self.new_privs, &["--allow-new-privs"]),
            (self.admin, &["--cap-add", "CAP_SYS_ADMIN"]),
        ] {
            flags.extend(if there { some } else { &[] });
        }
        flags
    }

    /// Whether it is restored as well. CRIU does not dump the masked paths of a
    /// user namespace yet.
    fn restores(self) -> bool {
        !self.own_users
    }

    /// Whether execs of root and of another user have these rights and no other.
    async fn are_those_of(self, container: &Container, when: &str) -> anyhow::Result<()> {
        is_as_init(container).await?;
        let script = "cat /proc/self/status /proc/self/uid_map /proc/self/gid_map";
        for user in ["0", "1000"] {
            let id = format!("{when}-{user}");
            let text = exec(container, &id, &["--user", user], script)
                .await?
                .success()?;
            let value = |name: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(name));
                line.map(|l| l.trim_start_matches(':').trim().to_owned())
                    .with_context(|| format!("no {name} in {text}"))
            };
            let set = |name| anyhow::Ok(u64::from_str_radix(&value(name)?, 16)?);
            let admin = |set: u64| set & (1 << 21) != 0;
            ensure!(
                value("Seccomp")? == if self.seccomp { "2" } else { "0" },
                "{text}"
            );
            ensure!(
                value("NoNewPrivs")? == if self.new_privs { "0" } else { "1" },
                "{text}"
            );
            ensure!(text.contains(" 100000 ") == self.own_users, "{text}");
            ensure!(text.contains(" 200000 ") == self.own_users, "{text}");
            ensure!(admin(set("CapBnd")?) == self.admin, "{text}");
            ensure!(set("CapInh")? == 0 && set("CapAmb")? == 0, "{text}");
            for of_user in [set("CapEff")?, set("CapPrm")?] {
                // One who is not root has no capabilities.
                let wanted = if user == "0" { set("CapBnd")? } else { 0 };
                ensure!(of_user == wanted, "{text}");
            }
            ensure!(
                value("Uid")?.split_whitespace().all(|id| id == user),
                "{text}"
            );
        }
        Ok(())
    }
}

pub(crate) async fn rights_and_places_are_the_containers(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    for rights in Rights::all() {
        let flags = rights.flags();
        // A sleep that was interrupted by a checkpoint ends early; a shell that forks blocks signals.
        let container =
            running_command(&cx, &flags, &["sh", "-c", "while :; do sleep 1000; done"]).await?;
        let said = rights.are_those_of(&container, "started").await;
        said.with_context(|| format!("started: {rights:?}"))?;
        if !rights.restores() {
            container.kill_and_delete().await?;
            continue;
        }
        let image = cx.folder(node, "image")?;
        container.checkpoint(&image, true).await?;
        container.finish().await?;
        let _output = container.create_from(Some(&image)).await?;
        container.start().await?;
        let said = rights.are_those_of(&container, "restored").await;
        said.with_context(|| format!("restored: {rights:?}"))?;
        container.kill_and_delete().await?;
    }
    Ok(())
}

pub(crate) async fn in_a_restored_container(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    output.count_to(1).await?;
    // Among others its time namespace is not the one that its spec says.
    is_as_init(&container).await?;
    let finished = exec(&container, "e", &[], "exit 9").await?;
    ensure!(finished.code == 9, "{finished:?}");
    output.count_on(2).await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn failures_say_why_and_leave_nothing(cx: Context) -> anyhow::Result<()> {
    let container = running(&cx, &[]).await?;
    let node = &container.node;
    exec(&container, "warm", &[], "true").await?.success()?;
    let before = at_rest(&container).await?;
    for n in 0..3 {
        let (id, cwd) = (format!("f{n}"), format!("c{n}"));
        let command = [
            "ctr",
            "task",
            "exec",
            "--exec-id",
            &id,
            &container.id,
            "nosuch",
        ];
        let text = node.exec(&command).await?.failure()?;
        ensure!(
            text.contains("nosuch") && text.contains("executable file not found in $PATH"),
            "{text}"
        );
        let flags = ["--cwd", "/bin/sh"];
        let text = exec(&container, &cwd, &flags, "true").await?.failure()?;
        ensure!(text.contains("/bin/sh"), "{text}");
    }
    let files = !cx.differs("its open files grow until Go's garbage collector comes by");
    // What ends just now may take its moment.
    let end = Instant::now() + PATIENCE;
    loop {
        let after = left_of(&container).await?;
        if (&after.0, after.1) == (&before.0, before.1) && (!files || after.2 == before.2) {
            break;
        }
        ensure!(Instant::now() < end, "{before:?} became {after:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    container.kill_and_delete().await?;
    Ok(())
}

/// What is left once nothing is ending any more: the same in ten looks, one after another.
async fn at_rest(container: &Container) -> anyhow::Result<Left> {
    let end = Instant::now() + PATIENCE;
    let (mut last, mut same) = (left_of(container).await?, 0);
    while same < 10 {
        ensure!(Instant::now() < end, "{last:?} changes for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = left_of(container).await?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// The container's processes, the shim's children and how many files the shim has open.
type Left = (Vec<u32>, usize, usize);

async fn left_of(container: &Container) -> anyhow::Result<Left> {
    let shims = container.node.processes("containerd-shim");
    let shim = shims
        .into_iter()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains(&container.id))
        })
        .context("the container's shim is not found")?;
    let children = lab::pids()
        .filter(|p| lab::parent(*p) == Some(shim))
        .count();
    let files = std::fs::read_dir(format!("/proc/{shim}/fd"))?.count();
    Ok((container.api.pids(&container.id).await?, children, files))
}

pub(crate) async fn ids_and_states_are_checked(cx: Context) -> anyhow::Result<()> {
    let container = cx.container(cx.a()?, BUSYBOX, &["sleep", "1000"]).await?;
    let request = container.create_request(None).await?;
    container.api.create(request).await?;
    let exec = |id: &str| {
        ExecRequest {
        container_id: container.id.clone(),
        exec_id: id.into(),
        spec: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: br#"{"args":["sleep","1000"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#
                .to_vec(),
        }),
        ..Default::default()
    }
    };
    let api = &container.api;
    let created = api.exec(exec("early")).await;
    if !cx.differs("code Unknown for an exec in a container that is not started") {
        let error = created.err().context("exec in a created container")?;
        ensure!(error.code() == Code::FailedPrecondition, "{error:?}");
    }
    container.start().await?;
    api.exec(exec("e")).await?;
    let error = api
        .exec(exec("e"))
        .await
        .err()
        .context("the same id twice")?;
    ensure!(error.code() == Code::AlreadyExists, "{error:?}");
    let pid = api.start_exec(&container.id, "e").await?;
    ensure!(api.pids(&container.id).await?.contains(&pid), "no {pid}");
    let table = container.node.ctr(&["task", "ps", &container.id]).await?;
    ensure!(
        table
            .lines()
            .any(|l| l.contains(&pid.to_string()) && l.contains('e')),
        "{table}"
    );
    let error = api
        .start_exec(&container.id, "none")
        .await
        .err()
        .context("an exec that was never declared")?;
    ensure!(error.code() == Code::NotFound, "{error:?}");
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn their_exits_come_before_the_containers(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let events = cx.events(node).await?;
    let container = running(&cx, &[]).await?;
    for id in ["e1", "e2"] {
        exec(&container, id, &["-d"], "sleep 1000")
            .await?
            .success()?;
    }
    let code = container.kill_and_delete().await?;
    ensure!(code == 137, "exit code {code}");
    let wanted = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "exit",
    ];
    crate::ended_with(&cx, &events, &container.id, &wanted).await
}

pub(crate) async fn terminals_have_their_clients_size(cx: Context) -> anyhow::Result<()> {
    let container = running(&cx, &[]).await?;
    let node = &container.node;
    let id = cx.id("run");
    cx.adopt(node, &id)?;
    // The size comes after the start, so the shell waits for it.
    let inside = "until [ \"$(stty size 2>/dev/null)\" = \"31 91\" ]; do sleep 0.05; done; \
                  tty; echo done; exit 5";
    let runtime = cx.runtime().containerd_name();
    let exec = format!(
        "ctr task exec -t --exec-id t {} sh -c '{inside}'",
        container.id
    );
    let run = format!("ctr run -t --rm --runtime {runtime} {BUSYBOX} {id} sh -c '{inside}'");
    for command in [exec, run] {
        let command = format!("stty rows 31 cols 91; {command}");
        let finished = node
            .exec(&["timeout", "100", "script", "-qec", &command, "/dev/null"])
            .await?;
        ensure!(finished.code == 5, "{finished:?}");
        let lines: Vec<_> = finished.stdout.split_whitespace().collect();
        ensure!(
            lines.iter().any(|l| l.ends_with("/dev/pts/0")) && lines.contains(&"done"),
            "{finished:?}"
        );
    }
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_restored_terminal_goes_on(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let script = "trap 'stty size' WINCH; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";
    let container = cx
        .container_with(node, &["--tty"], BUSYBOX, &["sh", "-c", script])
        .await?;
    let create = async |checkpoint: Option<&str>| -> anyhow::Result<Output> {
        let output = Output::open(node, &container.id)?;
        let mut request = container.create_request(checkpoint).await?;
        request.stdout = output.path("stdout");
        request.terminal = true;
        container.api.create(request).await?;
        container.start().await?;
        Ok(output)
    };
    let before = create(None).await?;
    before.count_to(3).await?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, true).await?;
    container.finish().await?;
    let counted = numbers(&before.complete().await?);
    let after = create(Some(&image)).await?;
    goes_on(&counted, &after.count_to(3).await?)?;
    container.api.resize_pty(&container.id).await?;
    after
        .until(|text| text.contains("25 80").then_some(()))
        .await?;
    container.kill_and_delete().await?;
    Ok(())
}

pub(crate) async fn a_checkpoint_leaves_them_running(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let (container, output) = cx.shell(node, COUNTER).await?;
    output.count_to(1).await?;
    exec(&container, "bg", &["-d"], "exec sleep 1000")
        .await?
        .success()?;
    let image = cx.folder(node, "image")?;
    container.checkpoint(&image, false).await?;
    container.expect(State::Running).await?;
    output.count_on(2).await?;
    let text = exec(&container, "e", &[], "ps").await?.success()?;
    ensure!(
        text.contains("sleep 1000"),
        "the exec'd process is gone:\n{text}"
    );
    container.kill_and_delete().await?;
    // Only what belongs to the first process is in the images.
    let output = container.create_from(Some(&image)).await?;
    container.start().await?;
    output.count_to(1).await?;
    container.kill_and_delete().await?;
    Ok(())
}
