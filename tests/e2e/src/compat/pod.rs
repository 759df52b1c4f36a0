//! A container of a pod, made with crictl and the mounts that the kubelet makes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use super::{Case, Kind, Outcome, Row, copy, first_folder, has_line, second_folder};
use crate::context::Context;
use crate::crictl::Crictl;
use crate::lab::Node;
use crate::patience::PATIENCE;
use crate::workload::PYTHON;

pub(super) async fn run_pod(
    cx: &Context,
    case: &Case,
    only: Option<&str>,
) -> anyhow::Result<Vec<Row>> {
    let node = cx.a()?;
    let crictl = Crictl::new(cx, node);
    let users = matches!(case.kind, Kind::PodOfUsers);
    let first = Volumes::first(cx, node, users.then_some(100_000)).await?;
    let pod = crictl.pod(first.pod_config("first")).await?;
    let text = case.text(only);
    let id = pod
        .start("app", PYTHON, &["python3", "-c", &text], first.mounts())
        .await?;
    logged(&crictl, &id, "ready").await?;
    let archive = format!("{}/checkpoint.tar", cx.folder(node, "archive")?);
    let exported = crictl
        .run(&["checkpoint", "--export", &archive, &id])
        .await?;
    if exported.code != 0 {
        let said = exported.failure()?;
        return Ok(case.rows(|_| Outcome::NotCheckpointed(said.clone())));
    }
    crictl.output(&["stop", "--timeout", "0", &id]).await?;
    let second = first.second(cx, node, users.then_some(300_000)).await?;
    let pod = crictl.pod(second.pod_config("second")).await?;
    let id = match pod.start("app", &archive, &[], second.mounts()).await {
        Ok(id) => id,
        Err(error) => return Ok(case.rows(|_| Outcome::NotRestored(format!("{error:#}")))),
    };
    // The program ends on it, and with its pid namespace sometimes `kill` before that has returned:
    // whether the signal came is told by the log, not by the exit code.
    let killed = crictl
        .run(&["exec", "-s", &id, "kill", "-USR1", "1"])
        .await?;
    match logged(&crictl, &id, "done").await {
        Ok(logs) => Ok(case.judged(&logs)),
        Err(error) => Ok(case.rows(|_| Outcome::Lost(format!("{error:#}; {}", killed.stderr)))),
    }
}

/// The volumes of a pod: on disk, a service account's secret, and one in memory.
struct Volumes {
    folder: String,
    secret: String,
    memory: String,
    /// The first of the node's users that are the pod's, if it has its own.
    users: Option<u32>,
}

impl Volumes {
    async fn first(cx: &Context, node: &Node, users: Option<u32>) -> anyhow::Result<Self> {
        let volumes = Self {
            folder: first_folder(cx, node)?,
            secret: cx.tmpfs(node, "size=1m").await?,
            memory: cx.tmpfs(node, "size=1m").await?,
            users,
        };
        volumes.mark(node, "first")?;
        std::fs::create_dir(node.host(&volumes.folder).join("disk"))?;
        std::fs::write(node.host(&volumes.folder).join("termination-log"), "")?;
        Ok(volumes)
    }

    async fn second(&self, cx: &Context, node: &Node, users: Option<u32>) -> anyhow::Result<Self> {
        let volumes = Self {
            folder: second_folder(cx, node, &self.folder).await?,
            secret: cx.tmpfs(node, "size=1m").await?,
            memory: cx.tmpfs(node, "size=1m").await?,
            users,
        };
        volumes.mark(node, "second")?;
        copy(node, &self.memory, &volumes.memory).await?;
        Ok(volumes)
    }

    fn mark(&self, node: &Node, which: &str) -> anyhow::Result<()> {
        let token = node.host(&self.secret).join("token");
        Ok(std::fs::write(token, format!("{which}\n"))?)
    }

    fn pod_config(&self, which: &str) -> Value {
        json!({
            "hostname": format!("{which}-host"),
            "dns_config": { "searches": [format!("{which}.example")] },
            "linux": self.linux(&[]),
        })
    }

    fn mappings(&self) -> Option<Value> {
        let mapping = |id| json!([{ "host_id": id, "container_id": 0, "length": 65536 }]);
        self.users.map(mapping)
    }

    /// The security context that pod and container have in common, and `more` of it.
    fn linux(&self, more: &[(&str, Value)]) -> Value {
        let mut context = json!({});
        if let Some(all) = self.mappings() {
            let users = json!({ "mode": 0, "uids": all, "gids": all });
            context["namespace_options"] = json!({ "userns_options": users });
            for (key, value) in more {
                context[key] = value.clone();
            }
        }
        json!({ "security_context": context })
    }

    fn mounts(&self) -> Value {
        let mount = |path: &str, source: String, readonly: bool| {
            let mut mount = json!({
                "container_path": path, "host_path": source, "readonly": readonly,
            });
            if let Some(all) = self.mappings() {
                mount["uidMappings"] = all.clone();
                mount["gidMappings"] = all;
            }
            mount
        };
        let folder = &self.folder;
        // The runtime's default profile.
        let seccomp = [("seccomp", json!({ "profile_type": 0 }))];
        json!({ "linux": self.linux(&seccomp), "mounts": [
            mount("/etc/hosts", format!("{folder}/which"), false),
            mount("/dev/termination-log", format!("{folder}/termination-log"), false),
            mount("/var/run/secrets", self.secret.clone(), true),
            mount("/disk", format!("{folder}/disk"), false),
            mount("/memory", self.memory.clone(), false),
        ] })
    }
}

/// Waits until a container's log has this line; the log.
async fn logged(crictl: &Crictl, id: &str, line: &str) -> anyhow::Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let logs = crictl.output(&["logs", id]).await?;
        if has_line(&logs, line) {
            return Ok(logs);
        }
        ensure!(
            Instant::now() < end,
            "no {line:?} in the log of {id}: {logs}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
