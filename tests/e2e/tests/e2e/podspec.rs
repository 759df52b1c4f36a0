//! What a pod's spec asks of a runtime and critest does not look at: devices and their rules,
//! masked paths, shared memory, the container's own cgroups in each pid mode.
//!
//! Host network, ipc and pid, sysctls, propagation of volumes, recursive read-only mounts,
//! capabilities, users and seccomp's default profile are critest's (`conformance::critest`).

use anyhow::ensure;
use cryo_e2e::context::Context;
use cryo_e2e::crictl::Crictl;
use cryo_e2e::workload::BUSYBOX;
use serde_json::{Value, json};

/// Runs scripts in a container that have to succeed, or to fail with these words.
async fn check(
    crictl: &Crictl,
    id: &str,
    words: &str,
    scripts: &[(bool, &str)],
) -> anyhow::Result<()> {
    for (allowed, script) in scripts {
        let done = crictl.run(&["exec", "-s", id, "sh", "-c", script]).await?;
        if *allowed {
            done.success()?;
        } else {
            let said = done.failure()?;
            ensure!(said.contains(words), "{script}: {said}");
        }
    }
    Ok(())
}

pub(crate) async fn devices_have_their_rules(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    for (rule, read, write) in [("rw", true, true), ("r", true, false), ("w", false, true)] {
        let changes = json!({
            "devices": [
                { "container_path": "/dev/given", "host_path": "/dev/fuse", "permissions": rule },
            ],
            "linux": { "security_context": { "capabilities": { "add_capabilities": ["MKNOD"] } } },
        });
        let id = pod
            .start(rule, BUSYBOX, &["sleep", "1000"], changes)
            .await?;
        let scripts = [
            (true, "[ \"$(stat -c %t:%T /dev/given)\" = a:e5 ]"),
            (read, "true </dev/given"),
            (write, "true >/dev/given"),
            // Made in the container: a device that was not given to it, and one that all have.
            (false, "mknod /loop c 10 237 && true </loop"),
            (true, "mknod /null c 1 3 && echo x >/null"),
        ];
        check(&crictl, &id, "Operation not permitted", &scripts).await?;
    }
    Ok(())
}

pub(crate) async fn masked_and_read_only_paths(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    let changes = json!({ "linux": { "security_context": {
        "masked_paths": ["/etc/passwd", "/home", "/nowhere"],
        "readonly_paths": ["/mnt", "/etc/group"],
    } } });
    let id = pod
        .start("app", BUSYBOX, &["sleep", "1000"], changes)
        .await?;
    let scripts = [
        (true, "[ -c /etc/passwd ] && [ -z \"$(cat /etc/passwd)\" ]"),
        (true, "[ -z \"$(ls -A /home)\" ]"),
        (false, "touch /home/file"),
        (false, "touch /mnt/file"),
        (false, "echo x >>/etc/group"),
        (true, "grep -q root /etc/group"),
        (true, "touch /tmp/file"),
    ];
    check(&crictl, &id, "Read-only file system", &scripts).await
}

pub(crate) async fn shared_memory_is_the_pods(cx: Context) -> anyhow::Result<()> {
    let crictl = Crictl::new(&cx, cx.a()?);
    let pod = crictl.pod(Value::Null).await?;
    let sleep = ["sleep", "1000"];
    let one = pod.start("one", BUSYBOX, &sleep, Value::Null).await?;
    let two = pod.start("two", BUSYBOX, &sleep, Value::Null).await?;
    let script = "echo of one >/dev/shm/word && df -k /dev/shm | tail -n1";
    let size = crictl
        .output(&["exec", "-s", &one, "sh", "-c", script])
        .await?;
    ensure!(size.contains(" 65536 "), "{size}");
    let word = crictl
        .output(&["exec", "-s", &two, "cat", "/dev/shm/word"])
        .await?;
    ensure!(word.trim_end() == "of one", "{word:?}");
    Ok(())
}

/// CRI's pid modes `POD` 0, `CONTAINER` 1, `NODE` 2.
pub(crate) async fn own_cgroups_are_seen_in_each_pid_mode(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    for (mode, processes) in [(0, 2), (1, 1), (2, 3)] {
        let namespaces = json!({ "linux": { "security_context": {
            "namespace_options": { "pid": mode },
        } } });
        let pod = crictl.pod(namespaces.clone()).await?;
        let mut changes = namespaces;
        let bytes = 48 << 20;
        changes["linux"]["resources"] = json!({ "memory_limit_in_bytes": bytes });
        let id = pod
            .start("app", BUSYBOX, &["sleep", "1000"], changes)
            .await?;
        let script =
            "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max";
        let limit = crictl
            .output(&["exec", "-s", &id, "sh", "-c", script])
            .await?;
        ensure!(
            limit.trim() == bytes.to_string(),
            "pid mode {mode}: {limit}"
        );
        // The container's, the pod's or the node's first process, and what else is to be seen.
        let script = "tr '\\0' ' ' </proc/1/cmdline; echo; ls -d /proc/[0-9]* | wc -l";
        let seen = crictl
            .output(&["exec", "-s", &id, "sh", "-c", script])
            .await?;
        let (first, count) = seen.split_once('\n').unwrap_or_default();
        let wanted = match mode {
            0 => "/pause",
            1 => "sleep",
            _ if node.has_systemd() => "/usr/lib/systemd/systemd",
            _ => "/usr/bin/tini",
        };
        ensure!(first.starts_with(wanted), "pid mode {mode}: {seen}");
        let count: usize = count.trim().parse()?;
        ensure!(count > processes, "pid mode {mode}: {seen}");
        let script = "cd /sys/fs/cgroup; [ ! -d memory ] || cd memory; mkdir x";
        check(&crictl, &id, "Read-only file system", &[(false, script)]).await?;
    }
    Ok(())
}

pub(crate) async fn cgroups_made_by_a_container_go_with_it(cx: Context) -> anyhow::Result<()> {
    let node = cx.a()?;
    let crictl = Crictl::new(&cx, node);
    let privileged = json!({ "linux": { "security_context": { "privileged": true } } });
    let pod = crictl.pod(privileged.clone()).await?;
    let id = pod
        .start("app", BUSYBOX, &["sleep", "1000"], privileged)
        .await?;
    // On v2 the privileged see all of the node's cgroups.
    let script = "cd /sys/fs/cgroup; if [ -d memory ]; then cd memory; \
        else cd \".$(sed -n s/^0:://p /proc/self/cgroup)\"; fi; mkdir -p own/below; \
        sleep 1000 >/dev/null 2>&1 & echo $! >own/below/cgroup.procs";
    check(&crictl, &id, "", &[(true, script)]).await?;
    crictl.output(&["rm", "--force", &id]).await?;
    let left = node
        .exec(&[
            "find",
            "/sys/fs/cgroup",
            "-type",
            "d",
            "-path",
            &format!("*{id}*"),
        ])
        .await?
        .success()?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}
