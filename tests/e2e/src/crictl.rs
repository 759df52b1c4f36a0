//! Pods and containers through the real crictl in a node (`hack/lab tools crictl`), from the
//! JSON that crictl reads.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::context::Context;
use crate::lab::{Finished, Node};

/// The Go programs that this needs (`hack/lab tools`).
pub const TOOLS: &[&str] = &["crictl"];

/// crictl in one node.
#[derive(Clone, Debug)]
pub struct Crictl {
    cx: Context,
    node: Node,
}

/// A pod that crictl runs.
#[derive(Clone, Debug)]
pub struct CrictlPod {
    crictl: Crictl,
    /// Its id.
    pub id: String,
    config: String,
}

impl Crictl {
    /// crictl in the node; what it makes is removed after the test.
    #[must_use]
    pub fn new(cx: &Context, node: &Node) -> Self {
        Self {
            cx: cx.clone(),
            node: node.clone(),
        }
    }

    /// Runs crictl.
    ///
    /// # Errors
    /// When it could not be run; its own failure is in the answer.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<Finished> {
        self.run_with_stdin(args, None).await
    }

    /// Runs crictl with bytes on its standard input, then its end.
    ///
    /// # Errors
    /// As [`Crictl::run`].
    pub async fn run_with_stdin(
        &self,
        args: &[&str],
        stdin: Option<&[u8]>,
    ) -> anyhow::Result<Finished> {
        let command = [&["crictl", "--timeout", "30s"], args].concat();
        self.node.exec_with_stdin(&command, stdin).await
    }

    /// What crictl printed.
    ///
    /// # Errors
    /// When it failed.
    pub async fn output(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run(args).await?.success()
    }

    /// What `crictl COMMAND ARGS` printed as JSON.
    ///
    /// # Errors
    /// When it failed, or printed something else.
    pub async fn json(&self, command: &str, args: &[&str]) -> anyhow::Result<Value> {
        let words = [&[command, "--output", "json"], args].concat();
        let text = self.output(&words).await?;
        serde_json::from_str(&text).with_context(|| format!("crictl {words:?}: {text}"))
    }

    /// `crictl runp` of a pod as the kubelet asks for one, with these changes to its config.
    ///
    /// # Errors
    /// What crictl says.
    pub async fn pod(&self, changes: Value) -> anyhow::Result<CrictlPod> {
        self.pod_under(self.cx.runtime().handler(), changes).await
    }

    /// As [`Crictl::pod`], under another handler of the runtime.
    ///
    /// # Errors
    /// What crictl says.
    pub async fn pod_under(&self, handler: &str, changes: Value) -> anyhow::Result<CrictlPod> {
        let name = self.cx.id("pod");
        let mut config = json!({
            "metadata": { "name": name, "uid": format!("uid-{name}"), "namespace": "e2e" },
            "log_directory": self.cx.folder(&self.node, "logs")?,
            "linux": {
                // crictl's statistics of a pod are those of its cgroup.
                "cgroup_parent": "/k8s.io",
                "security_context": { "namespace_options": { "pid": 1 } },
            },
        });
        merge(&mut config, changes);
        let config = self.write("pod.json", &config)?;
        let id = self.output(&["runp", "-r", handler, &config]).await?;
        let id = id.trim().to_owned();
        self.cx.adopt_pod(&self.node, &id);
        Ok(CrictlPod {
            crictl: self.clone(),
            id,
            config,
        })
    }

    fn write(&self, name: &str, value: &Value) -> anyhow::Result<String> {
        let path = format!("{}/{name}", self.cx.folder(&self.node, "config")?);
        std::fs::write(self.node.host(&path), value.to_string())?;
        Ok(path)
    }
}

impl CrictlPod {
    /// `crictl create`, with these changes to the container's config; its id.
    ///
    /// # Errors
    /// What crictl says.
    pub async fn create(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
        changes: Value,
    ) -> anyhow::Result<String> {
        let mut config = json!({
            "metadata": { "name": name },
            "image": { "image": image },
            "command": command,
            "log_path": format!("{name}.log"),
            "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
        });
        merge(&mut config, changes);
        let config = self.crictl.write("container.json", &config)?;
        let id = self
            .crictl
            .output(&["create", &self.id, &config, &self.config])
            .await?;
        Ok(id.trim().to_owned())
    }

    /// `crictl create` and `crictl start`; the container's id.
    ///
    /// # Errors
    /// What crictl says.
    pub async fn start(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
        changes: Value,
    ) -> anyhow::Result<String> {
        let id = self.create(name, image, command, changes).await?;
        self.crictl.output(&["start", &id]).await?;
        Ok(id)
    }
}

/// Puts `changes` over `value`, object into object.
fn merge(value: &mut Value, changes: Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(value.entry(key).or_insert(Value::Null), change);
            }
        }
        (_, Value::Null) => {}
        (value, changes) => *value = changes,
    }
}
