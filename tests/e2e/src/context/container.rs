//! Containers of containerd's API.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{NAMESPACE, Output};
use crate::containerd::{
    Any, Api, CheckpointOptions, CreateTaskRequest, ExecRequest, RuncOptions, State,
};
use crate::lab::Node;
use crate::patience::PATIENCE;

/// A container and its task, on one node.
#[derive(Clone, Debug)]
pub struct Container {
    /// The node it is on.
    pub node: Node,
    /// containerd's API.
    pub api: Api,
    /// Its id.
    pub id: String,
}

impl Container {
    /// Creates the task with fifos of our own and reads its output.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn create(&self) -> anyhow::Result<Output> {
        self.create_from(None).await
    }

    /// Creates the task from the checkpoint in this folder of the node.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn create_from(&self, image_path: Option<&str>) -> anyhow::Result<Output> {
        let output = Output::open(&self.node, &self.id)?;
        let mut request = self.create_request(image_path).await?;
        request.stdout = output.path("stdout");
        request.stderr = output.path("stderr");
        self.api
            .create(request)
            .await
            .with_context(|| format!("create the task of {}", self.id))?;
        Ok(output)
    }

    /// Changes the spec that the next task is created with.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn edit_spec(&self, edit: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        let mut record = self.api.container(&self.id).await?;
        let spec = record.spec.as_mut().context("a container without a spec")?;
        let mut value = serde_json::from_slice(&spec.value).context("the spec")?;
        edit(&mut value);
        spec.value = value.to_string().into_bytes();
        self.api.set_spec(record).await.context("set the spec")
    }

    /// The request that creates the task, without stdio.
    ///
    /// # Errors
    /// When the container or its snapshot is not known.
    pub async fn create_request(
        &self,
        image_path: Option<&str>,
    ) -> anyhow::Result<CreateTaskRequest> {
        let record = self.api.container(&self.id).await?;
        let rootfs = self
            .api
            .mounts(&record.snapshotter, &record.snapshot_key)
            .await?;
        let options = image_path.map(|path| {
            RuncOptions {
                criu_image_path: path.into(),
                ..Default::default()
            }
            .any()
        });
        Ok(CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            options,
            ..Default::default()
        })
    }

    /// Starts the task; its pid in the node.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn start(&self) -> anyhow::Result<u32> {
        self.api
            .start(&self.id)
            .await
            .with_context(|| format!("start {}", self.id))
    }

    /// The task's state.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn state(&self) -> anyhow::Result<State> {
        self.api
            .state(&self.id)
            .await
            .with_context(|| format!("state of {}", self.id))
    }

    /// Checks the task's state.
    ///
    /// # Errors
    /// When it is another.
    pub async fn expect(&self, wanted: State) -> anyhow::Result<()> {
        let state = self.state().await?;
        ensure!(
            state == wanted,
            "{} is {state:?}, wanted {wanted:?}",
            self.id
        );
        Ok(())
    }

    /// Checkpoints the task into a folder of the node through the plain API.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn checkpoint(&self, image_path: &str, exit: bool) -> anyhow::Result<()> {
        self.api
            .checkpoint(
                &self.id,
                CheckpointOptions {
                    exit,
                    image_path: image_path.into(),
                    ..Default::default()
                },
            )
            .await
            .with_context(|| format!("checkpoint {}", self.id))?;
        Ok(())
    }

    /// Starts a shell script as another process of the task, with its output read and, if
    /// asked for, its stdin from there.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn exec(&self, exec_id: &str, script: &str, stdin: bool) -> anyhow::Result<Output> {
        let output = Output::open(&self.node, &format!("{}-{exec_id}", self.id))?;
        self.exec_to(exec_id, script, |request| {
            if stdin {
                request.stdin = output.path("stdin");
            }
            request.stdout = output.path("stdout");
            request.stderr = output.path("stderr");
        })
        .await?;
        Ok(output)
    }

    /// As [`Container::exec`], with the streams that `set` gives it.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn exec_to(
        &self,
        exec_id: &str,
        script: &str,
        set: impl FnOnce(&mut ExecRequest),
    ) -> anyhow::Result<()> {
        let process = serde_json::json!({
            "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
        });
        let mut request = ExecRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.into(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
            }),
            ..Default::default()
        };
        set(&mut request);
        self.api.exec(request).await.context("exec")?;
        self.api
            .start_exec(&self.id, exec_id)
            .await
            .context("start the exec")?;
        Ok(())
    }

    /// Waits for the end of an exec, then deletes it; its exit status.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn finish_exec(&self, exec_id: &str) -> anyhow::Result<u32> {
        let code = self.api.wait_exec(&self.id, exec_id).await?;
        self.api.delete_exec(&self.id, exec_id).await?;
        Ok(code)
    }

    /// Waits for the end of the task, then deletes it; its exit status.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn finish(&self) -> anyhow::Result<u32> {
        let waited = self.api.wait(&self.id).await.context("wait")?;
        let deleted = self.api.delete(&self.id).await.context("delete")?;
        ensure!(
            waited == deleted.exit_status,
            "Wait says {waited}, Delete says {}",
            deleted.exit_status
        );
        Ok(waited)
    }

    /// Kills the task, waits for its end and deletes it.
    ///
    /// # Errors
    /// The API's answers.
    pub async fn kill_and_delete(&self) -> anyhow::Result<u32> {
        self.api.kill(&self.id, 9).await.context("kill")?;
        self.finish().await
    }

    /// Its bundle's path in the node.
    pub fn bundle(&self) -> String {
        format!(
            "/run/containerd/io.containerd.runtime.v2.task/{NAMESPACE}/{}",
            self.id
        )
    }

    /// A path in its root file system, as seen from the host.
    pub fn in_rootfs(&self, path: &str) -> PathBuf {
        self.node
            .host(&self.bundle())
            .join("rootfs")
            .join(path.trim_start_matches('/'))
    }

    /// Waits until the task's process is in this state.
    ///
    /// # Errors
    /// When it is not within [`PATIENCE`].
    pub async fn wait_for(&self, wanted: State) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.state().await?;
            if state == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{} stays {state:?}, wanted {wanted:?}",
                self.id
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
