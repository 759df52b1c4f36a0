//! Which containers a live command is about: by id, or by the name of their pod.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::containerd::messages::Container;
use crate::containerd::{Client, Socket};

/// containerd's namespace of what CRI makes.
pub(crate) const CRI_NAMESPACE: &str = "k8s.io";

/// The pod of a container, and its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodOf {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Its name in the pod; none is the pod's own first container.
    pub(crate) container: Option<String>,
}

impl PodOf {
    /// As CRI wrote it into the specification.
    pub(crate) fn read(spec: &Value) -> Option<Self> {
        let annotation = |name: &str| {
            let value = spec
                .get("annotations")?
                .get(format!("io.kubernetes.cri.{name}"))?;
            value.as_str().map(str::to_owned)
        };
        Some(Self {
            namespace: annotation("sandbox-namespace")?,
            pod: annotation("sandbox-name")?,
            container: annotation("container-name"),
        })
    }

    fn is(&self, wanted: &PodName, container: Option<&str>) -> bool {
        let app = self.container.as_deref();
        self.pod == wanted.pod
            && wanted
                .namespace
                .as_ref()
                .is_none_or(|n| *n == self.namespace)
            && app.is_some_and(|app| container.is_none_or(|wanted| wanted == app))
    }
}

/// A pod, as `[NAMESPACE/]NAME`.
#[derive(Debug, Clone)]
pub(crate) struct PodName {
    namespace: Option<String>,
    pod: String,
}

impl From<&str> for PodName {
    fn from(text: &str) -> Self {
        match text.split_once('/') {
            Some((namespace, pod)) => Self {
                namespace: Some(namespace.to_owned()),
                pod: pod.to_owned(),
            },
            None => Self {
                namespace: None,
                pod: text.to_owned(),
            },
        }
    }
}

/// Flags that name running containers.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The container's id.
    #[arg(required_unless_present = "pod", conflicts_with = "pod")]
    pub(crate) container: Option<String>,

    /// All containers of this pod, or the one that --name names.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub(crate) pod: Option<String>,

    /// One container of the pod, by its name there.
    #[arg(long, requires = "pod")]
    pub(crate) name: Option<String>,

    /// containerd's namespace [default: default; with --pod: k8s.io].
    #[arg(long, short)]
    pub(crate) namespace: Option<String>,

    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// The record of a container, with its specification.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) record: Container,
    pub(crate) spec: Value,
}

impl Found {
    pub(crate) fn of(record: Container) -> anyhow::Result<Self> {
        let bytes = record.spec.as_ref().map(|spec| &spec.value[..]);
        let spec = serde_json::from_slice(bytes.unwrap_or_default())
            .with_context(|| format!("the specification of {} cannot be read", record.id))?;
        Ok(Self { record, spec })
    }

    /// The pod that it is of. A restored one has another container's name in its annotations.
    pub(crate) fn pod(&self) -> Option<PodOf> {
        let mut pod = PodOf::read(&self.spec)?;
        let metadata = self
            .record
            .extensions
            .get("io.cri-containerd.container.metadata");
        let metadata = metadata.and_then(|m| serde_json::from_slice::<Value>(&m.value).ok());
        let name = metadata
            .as_ref()
            .and_then(|m| m.pointer("/Metadata/Config/metadata/name"));
        if let Some(name) = name.and_then(Value::as_str) {
            pod.container = Some(name.to_owned());
        }
        Some(pod)
    }

    /// What to call it in a message.
    pub(crate) fn title(&self) -> String {
        match self.pod() {
            Some(PodOf {
                namespace,
                pod,
                container: Some(name),
            }) => format!("{name} of the pod {namespace}/{pod}"),
            _ => self.record.id.clone(),
        }
    }
}

impl Target {
    /// containerd, in the namespace of the containers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let namespace = self.namespace.as_deref().unwrap_or(match self.pod {
            Some(_) => CRI_NAMESPACE,
            None => "default",
        });
        Client::connect(&self.socket.address, namespace).await
    }

    /// The containers, by name: one, or those of a pod that run.
    ///
    /// # Errors
    ///
    /// When there is none, or a name fits more than one pod.
    pub(crate) async fn find(&self, client: &Client) -> anyhow::Result<Vec<Found>> {
        if let Some(id) = &self.container {
            return Ok(vec![Found::of(client.container(id).await?)?]);
        }
        let wanted = PodName::from(self.pod.as_deref().unwrap_or_default());
        let running: Vec<String> = client
            .tasks()
            .await?
            .into_iter()
            .filter(|task| task.pid != 0)
            .map(|task| task.id)
            .collect();
        let mut found = Vec::new();
        for record in client.containers().await? {
            if !running.contains(&record.id) {
                continue;
            }
            let one = Found::of(record)?;
            let pod = one.pod();
            if let Some(pod) = pod.filter(|pod| pod.is(&wanted, self.name.as_deref())) {
                found.push((pod, one));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.container.cmp(&b.container));
        let mut spaces: Vec<_> = found.iter().map(|(pod, _)| pod.namespace.clone()).collect();
        spaces.sort();
        spaces.dedup();
        match (&spaces[..], &self.name) {
            ([_], _) => Ok(found.into_iter().map(|(_, one)| one).collect()),
            ([], Some(name)) => bail!(
                "no container {name} of a pod {} runs here: `cryoctl ps` lists those that do",
                wanted.pod
            ),
            ([], None) => bail!(
                "no container of a pod {} runs here: `cryoctl ps` lists those that do",
                wanted.pod
            ),
            (several, _) => bail!(
                "there are pods {} in {}: write NAMESPACE/NAME",
                wanted.pod,
                several.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_told_by_their_annotations() {
        let spec = json!({"annotations": {
            "io.kubernetes.cri.sandbox-name": "p",
            "io.kubernetes.cri.sandbox-namespace": "shop",
            "io.kubernetes.cri.container-name": "c",
        }});
        let pod = PodOf::read(&spec).unwrap();
        assert!(pod.is(&"p".into(), None));
        assert!(pod.is(&"shop/p".into(), Some("c")));
        assert!(!pod.is(&"shop/p".into(), Some("d")));
        assert!(!pod.is(&"other/p".into(), None));
        assert!(!pod.is(&"q".into(), None));
        // The sandbox itself is no container to be checkpointed.
        let sandbox = PodOf {
            container: None,
            ..pod
        };
        assert!(!sandbox.is(&"p".into(), None));
        assert_eq!(PodOf::read(&json!({})), None);
    }
}
