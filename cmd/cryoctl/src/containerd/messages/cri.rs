//! Messages of CRI, with only the fields that are used. Field numbers: kubernetes/cri-api
//! `pkg/apis/runtime/v1/api.proto`.

use std::collections::HashMap;

use prost::Message;

/// CRI: `ContainerStatusRequest` and `PodSandboxStatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriStatusRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(bool, tag = "2")]
    pub(crate) verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriContainerStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<CriContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriContainerStatus {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<CriContainerName>,
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(int64, tag = "4")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "5")]
    pub(crate) started_at: i64,
    #[prost(message, optional, tag = "8")]
    pub(crate) image: Option<CriImage>,
    #[prost(string, tag = "9")]
    pub(crate) image_ref: String,
    #[prost(map = "string, string", tag = "12")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "13")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, repeated, tag = "14")]
    pub(crate) mounts: Vec<CriMount>,
    #[prost(string, tag = "15")]
    pub(crate) log_path: String,
    #[prost(string, tag = "17")]
    pub(crate) image_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriContainerName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint32, tag = "2")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriImage {
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriMount {
    #[prost(string, tag = "1")]
    pub(crate) container_path: String,
    #[prost(string, tag = "2")]
    pub(crate) host_path: String,
    #[prost(bool, tag = "3")]
    pub(crate) readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<CriSandboxStatus>,
    #[prost(map = "string, string", tag = "2")]
    pub(crate) info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriSandboxStatus {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) metadata: Option<CriSandboxName>,
    /// 0 is ready.
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriSandboxName {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
    #[prost(uint32, tag = "4")]
    pub(crate) attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriListSandboxesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<CriSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<CriSandboxName>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(string, tag = "3")]
    pub(crate) log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<CriLinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriLinuxSandbox {
    #[prost(string, tag = "1")]
    pub(crate) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) security_context: Option<CriSandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriSandboxSecurity {
    #[prost(message, optional, tag = "1")]
    pub(crate) namespace_options: Option<CriNamespaces>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct CriNamespaces {
    #[prost(int32, tag = "1")]
    pub(crate) network: i32,
    #[prost(int32, tag = "2")]
    pub(crate) pid: i32,
    #[prost(int32, tag = "3")]
    pub(crate) ipc: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriLinuxContainer {
    #[prost(message, optional, tag = "2")]
    pub(crate) security_context: Option<CriContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriContainerSecurity {
    #[prost(message, optional, tag = "3")]
    pub(crate) namespace_options: Option<CriNamespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<CriContainerName>,
    #[prost(message, optional, tag = "2")]
    pub(crate) image: Option<CriImage>,
    #[prost(message, repeated, tag = "7")]
    pub(crate) mounts: Vec<CriMount>,
    #[prost(map = "string, string", tag = "9")]
    pub(crate) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "10")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(string, tag = "11")]
    pub(crate) log_path: String,
    #[prost(message, optional, tag = "15")]
    pub(crate) linux: Option<CriLinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriCreateContainer {
    #[prost(string, tag = "1")]
    pub(crate) pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<CriContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pub(crate) sandbox_config: Option<CriSandboxConfig>,
}

/// CRI: `StatusRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriVerbose {
    #[prost(bool, tag = "1")]
    pub(crate) verbose: bool,
}

/// CRI: `StatusResponse`, its details.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CriDetails {
    #[prost(map = "string, string", tag = "2")]
    pub(crate) info: HashMap<String, String>,
}
