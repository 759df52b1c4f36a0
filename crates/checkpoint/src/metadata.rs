//! What the engine knew of the container: `config.dump`, `spec.dump` and `network.status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layout;
use crate::source::{Error, Source};

/// Who wrote an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// containerd, or whoever else does not say.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
}

impl Engine {
    /// Its name as its makers write it, and as checkpointctl does.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "CRI-O",
            Self::Podman => "Podman",
        }
    }

    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
        }
    }
}

/// What the engine knew. Texts are as they stand in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Who wrote the archive.
    pub engine: Engine,
    /// The container's id.
    pub id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// The image it was made from.
    pub image: Option<String>,
    /// The same by digest.
    pub image_ref: Option<String>,
    /// The runtime it ran by.
    pub runtime: Option<String>,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// When it was checkpointed, RFC 3339.
    pub checkpointed: Option<String>,
    /// Its pod.
    pub pod: Option<String>,
    /// Its pod's namespace.
    pub namespace: Option<String>,
    /// Its address, where the engine says one.
    pub ip: Option<String>,
    /// Its networks, of Podman.
    pub networks: Vec<Network>,
    /// The annotations of its specification.
    pub annotations: BTreeMap<String, String>,
    /// The mounts of its specification.
    pub mounts: Vec<Mount>,
}

/// A network of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The container's interfaces in it, by name.
    pub interfaces: BTreeMap<String, Interface>,
}

/// An interface of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its address, and the length of the prefix after a slash.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
}

/// A mount of the specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Where it is.
    pub destination: String,
    /// The type of its file system, or `bind`.
    pub r#type: String,
    /// What is mounted.
    pub source: String,
}

/// `config.dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    id: Option<String>,
    name: Option<String>,
    rootfs_image_name: Option<String>,
    rootfs_image_ref: Option<String>,
    runtime: Option<String>,
    created_time: Option<String>,
    checkpointed_time: Option<String>,
}

/// `spec.dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
    mounts: Vec<Mount>,
}

/// A value of `network.status`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NetworkStatus {
    interfaces: BTreeMap<String, InterfaceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InterfaceStatus {
    subnets: Vec<Subnet>,
    mac_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subnet {
    ipnet: String,
    gateway: String,
}

/// The annotation in which CRI-O has the name of the container.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CrioMetadata {
    name: String,
}

impl Metadata {
    /// Of a checkpoint; `None` of images alone.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`], and those of reading.
    pub fn of(source: &Source) -> Result<Option<Self>, Error> {
        let spec: Option<Spec> = source.json(layout::SPEC_DUMP)?;
        let config: Option<Config> = source.json(layout::CONFIG_DUMP)?;
        if spec.is_none() && config.is_none() {
            return Ok(None);
        }
        let Spec {
            annotations,
            mounts,
        } = spec.unwrap_or_default();
        let config = config.unwrap_or_default();
        let annotation = |key: &str| annotations.get(key).cloned();
        let engine = match annotations
            .get(layout::ANNOTATION_MANAGER)
            .map(String::as_str)
        {
            Some("libpod") => Engine::Podman,
            Some("cri-o") => Engine::CriO,
            _ => Engine::Containerd,
        };
        let mut metadata = Self {
            engine,
            id: config.id,
            name: config.name,
            image: config.rootfs_image_name,
            image_ref: config.rootfs_image_ref,
            runtime: config.runtime,
            created: config.created_time,
            checkpointed: config.checkpointed_time,
            pod: None,
            namespace: None,
            ip: None,
            networks: Vec::new(),
            mounts,
            annotations: BTreeMap::new(),
        };
        match engine {
            // Its config.dump has the id of the container as its name.
            Engine::Containerd => {
                let name = annotation("io.kubernetes.cri.container-name");
                metadata.name = name.or(metadata.name);
                metadata.pod = annotation("io.kubernetes.cri.sandbox-name");
                metadata.namespace = annotation("io.kubernetes.cri.sandbox-namespace");
            }
            Engine::CriO => {
                let name = annotation("io.kubernetes.cri-o.Metadata")
                    .and_then(|text| serde_json::from_str::<CrioMetadata>(&text).ok())
                    .map(|own| own.name)
                    .or_else(|| annotation("io.kubernetes.container.name"));
                metadata.name = name.or(metadata.name);
                metadata.created = annotation("io.kubernetes.cri-o.Created").or(metadata.created);
                metadata.ip = annotation("io.kubernetes.cri-o.IP.0");
                metadata.pod = annotation("io.kubernetes.pod.name");
                metadata.namespace = annotation("io.kubernetes.pod.namespace");
            }
            Engine::Podman => metadata.networks = networks(source)?,
        }
        metadata.annotations = annotations;
        Ok(Some(metadata))
    }
}

/// What Podman 4 and later write; older ones have a list of other things there.
fn networks(source: &Source) -> Result<Vec<Network>, Error> {
    let status: Option<serde_json::Value> = source.json(layout::NETWORK_STATUS)?;
    let status = status
        .and_then(|value| serde_json::from_value::<BTreeMap<String, NetworkStatus>>(value).ok());
    let interface = |found: InterfaceStatus| {
        let mut interface = Interface {
            mac: found.mac_address,
            ..Default::default()
        };
        for subnet in found.subnets {
            if !subnet.ipnet.is_empty() {
                interface.ip = subnet.ipnet;
            }
            if !subnet.gateway.is_empty() {
                interface.gateway = subnet.gateway;
            }
        }
        interface
    };
    let networks = status.unwrap_or_default().into_iter();
    Ok(networks
        .map(|(name, status)| Network {
            name,
            interfaces: status
                .interfaces
                .into_iter()
                .map(|(name, found)| (name, interface(found)))
                .collect(),
        })
        .collect())
}
