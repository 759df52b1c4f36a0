//! Pods and their containers, by CRI.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::Context;
use crate::cri::{
    ContainerConfig, ContainerMetadata, ContainerSecurityContext, ContainerState, ContainerStatus,
    CreateContainerRequest, Cri, ImageSpec, KUBELET_NAMESPACES, LinuxContainerConfig,
    LinuxContainerResources, LinuxSandboxConfig, SandboxConfig, SandboxMetadata,
    SandboxSecurityContext,
};
use crate::lab::Node;
use crate::patience::PATIENCE;

impl Context {
    /// Runs a pod sandbox under the handler.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod(&self, node: &Node, handler: &str) -> anyhow::Result<Pod> {
        self.pod_as(node, handler, |_| {}).await
    }

    /// As [`Context::pod`], with annotations.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod_with(
        &self,
        node: &Node,
        handler: &str,
        annotations: &[(&str, &str)],
    ) -> anyhow::Result<Pod> {
        self.pod_as(node, handler, |config| {
            for &(name, value) in annotations {
                config.annotations.insert(name.into(), value.into());
            }
        })
        .await
    }

    /// As [`Context::pod`], with its config changed.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn pod_as(
        &self,
        node: &Node,
        handler: &str,
        change: impl FnOnce(&mut SandboxConfig),
    ) -> anyhow::Result<Pod> {
        let name = self.id("pod");
        let logs = self.folder(node, "logs")?;
        let mut config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: "e2e".into(),
                attempt: 0,
            }),
            hostname: "e2e".into(),
            log_directory: logs.clone(),
            linux: Some(LinuxSandboxConfig {
                cgroup_parent: String::new(),
                security_context: Some(SandboxSecurityContext {
                    namespace_options: Some(KUBELET_NAMESPACES),
                }),
            }),
            ..Default::default()
        };
        change(&mut config);
        let id = node
            .cri()
            .run_pod(config.clone(), handler)
            .await
            .with_context(|| format!("RunPodSandbox {name} under {handler}"))?;
        self.adopt_pod(node, &id);
        Ok(Pod {
            node: node.clone(),
            cri: node.cri(),
            id,
            config,
            logs,
        })
    }
}

/// A pod sandbox.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The node it is on.
    pub node: Node,
    /// CRI.
    pub cri: Cri,
    /// Its id.
    pub id: String,
    config: SandboxConfig,
    logs: String,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct PodContainer {
    /// The node it is on.
    pub node: Node,
    /// CRI.
    pub cri: Cri,
    /// Its id.
    pub id: String,
    /// Its log on the host.
    pub log: PathBuf,
}

impl Pod {
    /// Creates a container; `image` may be a checkpoint's path, then `command` has no
    /// meaning.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn create(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<PodContainer> {
        self.create_within(name, image, command, 0).await
    }

    /// As [`Pod::create`], with a limit of memory in bytes; 0 is none.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn create_within(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
        memory: i64,
    ) -> anyhow::Result<PodContainer> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.into(),
            }),
            command: command.iter().map(|&s| s.into()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: (memory > 0).then_some(LinuxContainerResources {
                    memory_limit_in_bytes: memory,
                }),
                security_context: Some(ContainerSecurityContext {
                    namespace_options: Some(KUBELET_NAMESPACES),
                }),
            }),
            ..Default::default()
        };
        let id = self
            .cri
            .create(CreateContainerRequest {
                pod_sandbox_id: self.id.clone(),
                config: Some(config),
                sandbox_config: Some(self.config.clone()),
            })
            .await
            .with_context(|| format!("CreateContainer {name} from {image}"))?;
        Ok(PodContainer {
            node: self.node.clone(),
            cri: self.cri.clone(),
            id,
            log: self.node.host(&self.logs).join(format!("{name}.log")),
        })
    }

    /// A container that somebody else made in this pod; `log` is the name of its log without
    /// its suffix.
    pub fn container(&self, id: &str, log: &str) -> PodContainer {
        PodContainer {
            node: self.node.clone(),
            cri: self.cri.clone(),
            id: id.into(),
            log: self.node.host(&self.logs).join(format!("{log}.log")),
        }
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// CRI's answers.
    pub async fn run(
        &self,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> anyhow::Result<PodContainer> {
        let container = self.create(name, image, command).await?;
        container.start().await?;
        Ok(container)
    }
}

impl PodContainer {
    /// Starts it.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn start(&self) -> anyhow::Result<()> {
        self.cri
            .start(&self.id)
            .await
            .with_context(|| format!("StartContainer {}", self.id))
    }

    /// CRI's status of it.
    ///
    /// # Errors
    /// CRI's answer.
    pub async fn status(&self) -> anyhow::Result<ContainerStatus> {
        self.cri
            .status(&self.id)
            .await
            .context("ContainerStatus")?
            .status
            .context("ContainerStatus answered without a status")
    }

    /// Waits until CRI says it is in this state.
    ///
    /// # Errors
    /// When it is not within [`PATIENCE`].
    pub async fn wait_for(&self, wanted: ContainerState) -> anyhow::Result<ContainerStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if status.state() == wanted {
                return Ok(status);
            }
            ensure!(
                Instant::now() < end,
                "{} stays {:?}, wanted {wanted:?}: {} {}",
                self.id,
                status.state(),
                status.reason,
                status.message
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its log's text so far.
    pub fn output(&self) -> String {
        crate::workload::cri_log(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The numbers a counter wrote into its log so far.
    pub fn numbers(&self) -> Vec<u64> {
        crate::workload::numbers(&self.output())
    }

    /// Waits until its log has at least `n` numbers.
    ///
    /// # Errors
    /// When it has not within [`PATIENCE`].
    pub async fn count_to(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let numbers = self.numbers();
            if numbers.len() >= n {
                return Ok(numbers);
            }
            ensure!(
                Instant::now() < end,
                "{} counted {} of {n}",
                self.id,
                numbers.len()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until its log has `n` more numbers than now.
    ///
    /// # Errors
    /// As [`PodContainer::count_to`].
    pub async fn count_on(&self, n: usize) -> anyhow::Result<Vec<u64>> {
        let now = self.numbers().len();
        self.count_to(now + n).await
    }

    /// Its bundle's path in the node.
    pub fn bundle(&self) -> String {
        format!(
            "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}",
            self.id
        )
    }
}
