//! The part of CRI v1 that the tests call. Field numbers: kubernetes/cri-api
//! `pkg/apis/runtime/v1/api.proto`.
#![allow(
    missing_docs,
    reason = "the messages are documented where they come from"
)]

use std::collections::HashMap;

use prost::Message;
use tonic::Status;

use crate::containerd::Empty;
use crate::rpc::Client;

#[derive(Clone, PartialEq, Message)]
pub struct VersionResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// `POD` 0, `CONTAINER` 1, `NODE` 2.
#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub network: i32,
    #[prost(int32, tag = "2")]
    pub pid: i32,
    #[prost(int32, tag = "3")]
    pub ipc: i32,
}

/// As the kubelet asks by default: network and ipc of the pod, pids of the container.
pub const KUBELET_NAMESPACES: NamespaceOption = NamespaceOption {
    network: 0,
    pid: 1,
    ipc: 0,
};

#[derive(Clone, PartialEq, Message)]
pub struct SandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxSandboxConfig {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    pub config: Option<SandboxConfig>,
    #[prost(string, tag = "2")]
    pub runtime_handler: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerSecurityContext {
    #[prost(message, optional, tag = "3")]
    pub namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerResources {
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<ContainerSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VolumeMount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<VolumeMount>,
    #[prost(map = "string, string", tag = "9")]
    pub labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "10")]
    pub annotations: HashMap<String, String>,
    #[prost(string, tag = "11")]
    pub log_path: String,
    #[prost(message, optional, tag = "15")]
    pub linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pub pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub sandbox_config: Option<SandboxConfig>,
}

/// An id as field 1, which is the whole of many requests and answers.
#[derive(Clone, PartialEq, Message)]
pub struct Id {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct StopContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(int64, tag = "2")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// CRI's container states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(enumeration = "ContainerState", tag = "3")]
    pub state: i32,
    #[prost(int32, tag = "7")]
    pub exit_code: i32,
    #[prost(string, tag = "10")]
    pub reason: String,
    #[prost(string, tag = "11")]
    pub message: String,
    #[prost(map = "string, string", tag = "13")]
    pub annotations: HashMap<String, String>,
    #[prost(string, tag = "15")]
    pub log_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<ContainerStatus>,
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxNetwork {
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// `state` is 0 for ready.
#[derive(Clone, PartialEq, Message)]
pub struct SandboxStatus {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(message, optional, tag = "5")]
    pub network: Option<SandboxNetwork>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<SandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CheckpointContainerRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, tag = "2")]
    pub location: String,
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(string, repeated, tag = "2")]
    pub cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    pub timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct UpdateContainerResourcesRequest {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub linux: Option<LinuxContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
pub struct UInt64Value {
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct MemoryUsage {
    #[prost(message, optional, tag = "2")]
    pub working_set_bytes: Option<UInt64Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStats {
    #[prost(message, optional, tag = "3")]
    pub memory: Option<MemoryUsage>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatsResponse {
    #[prost(message, optional, tag = "1")]
    pub stats: Option<ContainerStats>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListedContainer {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    #[prost(enumeration = "ContainerState", tag = "6")]
    pub state: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<ListedContainer>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub image: Option<Id>,
}

/// CRI's runtime and image services.
#[derive(Clone, Debug)]
pub struct Cri {
    rpc: Client,
}

/// Unary calls, each answering with the server's status as the error.
impl Cri {
    pub fn new(rpc: Client) -> Self {
        Self { rpc }
    }

    pub async fn version(&self) -> Result<VersionResponse, Status> {
        self.rpc
            .call("/runtime.v1.RuntimeService/Version", Id::default())
            .await
    }

    pub async fn run_pod(&self, config: SandboxConfig, handler: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.into(),
        };
        let answer: Id = self
            .rpc
            .call("/runtime.v1.RuntimeService/RunPodSandbox", request)
            .await?;
        Ok(answer.id)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/StopPodSandbox",
                Id { id: id.into() },
            )
            .await?;
        Ok(())
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/RemovePodSandbox",
                Id { id: id.into() },
            )
            .await?;
        Ok(())
    }

    pub async fn pod_status(&self, id: &str) -> Result<SandboxStatusResponse, Status> {
        let request = StatusRequest {
            id: id.into(),
            verbose: true,
        };
        self.rpc
            .call("/runtime.v1.RuntimeService/PodSandboxStatus", request)
            .await
    }

    pub async fn create(&self, request: CreateContainerRequest) -> Result<String, Status> {
        let answer: Id = self
            .rpc
            .call("/runtime.v1.RuntimeService/CreateContainer", request)
            .await?;
        Ok(answer.id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/StartContainer",
                Id { id: id.into() },
            )
            .await?;
        Ok(())
    }

    pub async fn stop(&self, id: &str, timeout_s: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout: timeout_s,
        };
        let _: Empty = self
            .rpc
            .call("/runtime.v1.RuntimeService/StopContainer", request)
            .await?;
        Ok(())
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let _: Empty = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/RemoveContainer",
                Id { id: id.into() },
            )
            .await?;
        Ok(())
    }

    pub async fn status(&self, id: &str) -> Result<ContainerStatusResponse, Status> {
        let request = StatusRequest {
            id: id.into(),
            verbose: true,
        };
        self.rpc
            .call("/runtime.v1.RuntimeService/ContainerStatus", request)
            .await
    }

    pub async fn exec_sync(&self, id: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(|&word| word.into()).collect(),
            timeout: 30,
        };
        self.rpc
            .call("/runtime.v1.RuntimeService/ExecSync", request)
            .await
    }

    pub async fn stats(&self, id: &str) -> Result<Option<ContainerStats>, Status> {
        let answer: ContainerStatsResponse = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/ContainerStats",
                Id { id: id.into() },
            )
            .await?;
        Ok(answer.stats)
    }

    pub async fn update(&self, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
        };
        let _: Empty = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/UpdateContainerResources",
                request,
            )
            .await?;
        Ok(())
    }

    pub async fn list(&self) -> Result<Vec<ListedContainer>, Status> {
        let answer: ListContainersResponse = self
            .rpc
            .call(
                "/runtime.v1.RuntimeService/ListContainers",
                Empty::default(),
            )
            .await?;
        Ok(answer.containers)
    }

    pub async fn checkpoint(&self, id: &str, location: &str) -> Result<(), Status> {
        let request = CheckpointContainerRequest {
            container_id: id.into(),
            location: location.into(),
            timeout: 0,
        };
        let _: Empty = self
            .rpc
            .call("/runtime.v1.RuntimeService/CheckpointContainer", request)
            .await?;
        Ok(())
    }

    pub async fn image_present(&self, image: &str) -> Result<bool, Status> {
        let request = ImageRequest {
            image: Some(ImageSpec {
                image: image.into(),
            }),
        };
        let answer: ImageStatusResponse = self
            .rpc
            .call("/runtime.v1.ImageService/ImageStatus", request)
            .await?;
        Ok(answer.image.is_some())
    }

    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        let request = ImageRequest {
            image: Some(ImageSpec {
                image: image.into(),
            }),
        };
        let answer: Id = self
            .rpc
            .call("/runtime.v1.ImageService/PullImage", request)
            .await?;
        Ok(answer.id)
    }
}
