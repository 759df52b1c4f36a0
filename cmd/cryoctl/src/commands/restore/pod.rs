//! A container of a pod, by containerd's CRI.

use std::collections::HashMap;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use super::Restore;
use super::source::Source;
use crate::containerd::messages::{
    CriContainerConfig, CriContainerName, CriContainerSecurity, CriCreateContainer, CriImage,
    CriLinuxContainer, CriLinuxSandbox, CriListSandboxesResponse, CriMount, CriNamespaces,
    CriSandboxConfig, CriSandboxName, CriSandboxSecurity, CriSandboxStatusResponse,
    CriStatusRequest, Empty, Id,
};
use crate::containerd::{Client, Refused};
use crate::target::PodOf;

/// `PodSandboxStatus`, the JSON of its details.
#[derive(Debug, Deserialize)]
struct Details {
    config: Config,
}

/// The JSON of a `PodSandboxConfig`, what CreateContainer looks at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    metadata: Metadata,
    hostname: String,
    log_directory: String,
    labels: HashMap<String, String>,
    annotations: HashMap<String, String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    uid: String,
    namespace: String,
    attempt: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    cgroup_parent: String,
    security_context: Security,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Security {
    namespace_options: Namespaces,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespaces {
    network: i32,
    pid: i32,
    ipc: i32,
}

/// Destinations that CRI mounts by itself.
const OF_CRI: [&str; 4] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/dev/shm",
];

pub(super) async fn restore(
    asked: &Restore,
    client: &Client,
    source: &Source,
    pod: &str,
) -> anyhow::Result<String> {
    let spec = source
        .spec
        .as_ref()
        .context("the archive has no spec.dump")?;
    let of = PodOf::read(spec).and_then(|pod| pod.container);
    let name = asked.name.clone().or(of);
    let name =
        name.context("the checkpoint is of no pod's container: name the new one with --name")?;
    let mounts = mounts(spec, &asked.mount)?;
    let annotations = asked.options.annotations()?.into_iter().collect();
    let sandbox = sandbox(client, pod).await?;
    let config = config(client, &sandbox).await?;
    let namespaces = CriNamespaces {
        pid: pid_mode(spec),
        network: config.linux.security_context.namespace_options.network,
        ipc: config.linux.security_context.namespace_options.ipc,
    };
    let container = CriContainerConfig {
        metadata: Some(CriContainerName {
            name: name.clone(),
            attempt: 0,
        }),
        image: Some(CriImage {
            image: source
                .archive()
                .to_str()
                .context("the archive's name is not UTF-8, as containerd wants it")?
                .to_owned(),
        }),
        mounts,
        annotations,
        log_path: format!("{name}.log"),
        linux: Some(CriLinuxContainer {
            security_context: Some(CriContainerSecurity {
                namespace_options: Some(namespaces),
            }),
        }),
        ..CriContainerConfig::default()
    };
    let request = CriCreateContainer {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config.message()),
    };
    let what = || {
        format!(
            "CRI does not make a container of {}",
            source.named.display()
        )
    };
    let method = "/runtime.v1.RuntimeService/CreateContainer";
    let made: Id = client
        .call_within(asked.limit(), what, method, request)
        .await
        .map_err(hint)?;
    let method = "/runtime.v1.RuntimeService/StartContainer";
    let what = || "CRI does not restore it".to_owned();
    let started: Result<Empty, _> = client
        .call_within(asked.limit(), what, method, Id::of(&made.id))
        .await;
    if let Err(error) = started {
        let method = "/runtime.v1.RuntimeService/RemoveContainer";
        let what = || format!("cannot remove {}", made.id);
        let removed: Result<Empty, _> = client.call(what, method, Id::of(&made.id)).await;
        return Err(match removed {
            Ok(_) => error.into(),
            Err(left) => anyhow::Error::from(error).context(format!("something is left: {left}")),
        });
    }
    Ok(format!("{}\n", made.id))
}

/// A containerd whose CRI does not restore takes the archive for an image.
fn hint(error: Refused) -> anyhow::Error {
    let unknown = error.to_string().contains("invalid reference format");
    let error = anyhow::Error::from(error);
    if unknown {
        return error.context(
            "this containerd does not restore by CRI: 2.2.7 and 2.3.4 need enable_experimental_restore_via_create = true, 2.4 has none",
        );
    }
    error
}

/// The id of a pod's sandbox.
async fn sandbox(client: &Client, pod: &str) -> anyhow::Result<String> {
    let method = "/runtime.v1.RuntimeService/ListPodSandbox";
    let what = || "CRI does not list the pods".to_owned();
    let all: CriListSandboxesResponse = client.call(what, method, Empty {}).await?;
    let fits = |(id, name): (&str, &CriSandboxName)| match pod.split_once('/') {
        Some((namespace, pod)) => name.namespace == namespace && name.name == pod,
        None => id == pod || name.name == pod || (pod.len() >= 8 && id.starts_with(pod)),
    };
    let mut ready = all.items.into_iter().filter(|sandbox| {
        let name = sandbox.metadata.clone().unwrap_or_default();
        sandbox.state == 0 && fits((&sandbox.id, &name))
    });
    match (ready.next(), ready.next()) {
        (Some(one), None) => Ok(one.id),
        (None, _) => bail!("no pod {pod} is ready here"),
        _ => bail!(
            "there is more than one pod {pod}: write NAMESPACE/NAME, or the id of its sandbox"
        ),
    }
}

async fn config(client: &Client, sandbox: &str) -> anyhow::Result<Config> {
    let method = "/runtime.v1.RuntimeService/PodSandboxStatus";
    let what = || format!("CRI does not tell of the pod {sandbox}");
    let request = CriStatusRequest {
        id: sandbox.to_owned(),
        verbose: true,
    };
    let status: CriSandboxStatusResponse = client.call(what, method, request).await?;
    let info = status
        .info
        .get("info")
        .map(String::as_str)
        .unwrap_or_default();
    let details: Details = serde_json::from_str(info)
        .with_context(|| format!("what CRI tells of the pod {sandbox} cannot be read"))?;
    Ok(details.config)
}

impl Config {
    fn message(self) -> CriSandboxConfig {
        let options = self.linux.security_context.namespace_options;
        CriSandboxConfig {
            metadata: Some(CriSandboxName {
                name: self.metadata.name,
                uid: self.metadata.uid,
                namespace: self.metadata.namespace,
                attempt: self.metadata.attempt,
            }),
            hostname: self.hostname,
            log_directory: self.log_directory,
            labels: self.labels,
            annotations: self.annotations,
            linux: Some(CriLinuxSandbox {
                cgroup_parent: self.linux.cgroup_parent,
                security_context: Some(CriSandboxSecurity {
                    namespace_options: Some(CriNamespaces {
                        network: options.network,
                        pid: options.pid,
                        ipc: options.ipc,
                    }),
                }),
            }),
        }
    }
}

/// `POD` 0, `CONTAINER` 1, `NODE` 2.
fn pid_mode(spec: &Value) -> i32 {
    let all = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    let pid = all
        .into_iter()
        .flatten()
        .find(|n| n.get("type").and_then(Value::as_str) == Some("pid"));
    match pid {
        None => 2,
        Some(pid) if pid.get("path").is_some() => 0,
        Some(_) => 1,
    }
}

/// Each mount that the container had has to be there again, from wherever.
fn mounts(spec: &Value, given: &[String]) -> anyhow::Result<Vec<CriMount>> {
    let mut mounts = Vec::new();
    for text in given {
        let mut parts = text.split(':');
        let (source, destination) = (parts.next(), parts.next());
        match (source, destination, parts.next(), parts.next()) {
            (Some(source), Some(destination), end @ (None | Some("ro")), None)
                if source.starts_with('/') && destination.starts_with('/') =>
            {
                mounts.push(CriMount {
                    container_path: destination.to_owned(),
                    host_path: source.to_owned(),
                    readonly: end.is_some(),
                });
            }
            _ => bail!(
                "--mount {text}: write SOURCE:DESTINATION or SOURCE:DESTINATION:ro, with absolute paths"
            ),
        }
    }
    let binds = spec
        .get("mounts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let missing: Vec<_> = binds
        .filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind"))
        .filter_map(|mount| mount.get("destination")?.as_str())
        .filter(|to| !OF_CRI.contains(to) && !mounts.iter().any(|m| m.container_path == *to))
        .collect();
    if !missing.is_empty() {
        bail!(
            "the container had mounts at {}: give each with --mount SOURCE:DESTINATION",
            missing.join(", ")
        );
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_mount_has_to_be_given() {
        let spec = json!({"mounts": [
            {"destination": "/etc/hosts", "type": "bind", "source": "/x"},
            {"destination": "/data", "type": "bind", "source": "/evil"},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ]});
        let error = mounts(&spec, &[]).unwrap_err().to_string();
        assert!(
            error.contains("/data") && !error.contains("hosts"),
            "{error}"
        );
        let all = mounts(&spec, &["/srv/data:/data:ro".to_owned()]).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].host_path, "/srv/data");
        assert!(all[0].readonly);
        for bad in ["/a", "a:/b", "/a:b", "/a:/b:rw", "/a:/b:ro:x"] {
            assert!(mounts(&json!({}), &[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_pid_namespace_is_as_it_was() {
        let spec = |namespaces: Value| json!({"linux": {"namespaces": namespaces}});
        assert_eq!(pid_mode(&spec(json!([{"type": "pid"}]))), 1);
        assert_eq!(pid_mode(&spec(json!([{"type": "pid", "path": "/p"}]))), 0);
        assert_eq!(pid_mode(&spec(json!([]))), 2);
    }
}
