//! How the containerd that runs has configured its CRI: not what its files say by now.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tonic::Code;

use super::Client;
use super::messages::{CriDetails, CriVerbose};
use crate::procfs;

/// CRI's configuration, what is needed of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Cri {
    pub(crate) containerd: Runtimes,
    /// Newer releases can switch it off.
    #[serde(alias = "enableCRIU", alias = "enable_criu")]
    pub(crate) enable_criu: Option<bool>,
}

/// The runtimes, by the names of their handlers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Runtimes {
    pub(crate) runtimes: BTreeMap<String, Runtime>,
}

/// A runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Runtime {
    #[serde(rename(deserialize = "runtimeType"))]
    pub(crate) runtime_type: String,
    #[serde(rename(deserialize = "runtimePath"))]
    pub(crate) runtime_path: String,
    #[serde(rename(deserialize = "PodAnnotations"))]
    pub(crate) pod_annotations: Option<Vec<String>>,
    #[serde(rename(deserialize = "ContainerAnnotations"))]
    pub(crate) container_annotations: Option<Vec<String>>,
    #[serde(skip_serializing)]
    pub(crate) options: Option<Options>,
}

/// A runtime's options that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct Options {
    pub(crate) systemd_cgroup: bool,
}

impl Runtime {
    /// Whether it is cryo, in either way of being installed.
    pub(crate) fn is_cryo(&self) -> bool {
        self.runtime_type == OWN_NAME || self.shim_path().is_some()
    }

    /// The path of cryo's shim, where the configuration has one.
    pub(crate) fn shim_path(&self) -> Option<PathBuf> {
        let path = [&self.runtime_path, &self.runtime_type]
            .into_iter()
            .find(|path| path.starts_with('/') && path.ends_with(procfs::NAME));
        path.map(PathBuf::from)
    }
}

/// The runtime name under which containerd looks for our shim in its PATH.
pub(crate) const OWN_NAME: &str = "io.containerd.cryo.v2";

impl Client {
    /// The configuration of CRI; none where containerd has it switched off.
    ///
    /// # Errors
    ///
    /// When containerd does not answer, or it cannot be read.
    pub(crate) async fn cri(&self) -> anyhow::Result<Option<Cri>> {
        let method = "/runtime.v1.RuntimeService/Status";
        let what = || "CRI does not tell its configuration".to_owned();
        let details: Result<CriDetails, _> =
            self.call(what, method, CriVerbose { verbose: true }).await;
        match details {
            Ok(details) => {
                let config = details.info.get("config").map(String::as_str);
                Ok(Some(serde_json::from_str(config.unwrap_or("{}"))?))
            }
            Err(error) if error.code() == Code::Unimplemented => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_being_installed_are_seen() {
        let cri: Cri = serde_json::from_str(
            r#"{"containerd": {"runtimes": {
                "one": {"runtimeType": "io.containerd.runc.v2",
                        "runtimePath": "/opt/containerd-shim-cryo-v2",
                        "PodAnnotations": ["a"], "options": {"SystemdCgroup": true}},
                "two": {"runtimeType": "io.containerd.cryo.v2", "options": null},
                "three": {"runtimeType": "/x/containerd-shim-cryo-v2"},
                "runc": {"runtimeType": "io.containerd.runc.v2", "PodAnnotations": null}
            }}, "other": 1}"#,
        )
        .unwrap();
        let all = &cri.containerd.runtimes;
        let ours: Vec<_> = all
            .iter()
            .filter(|(_, r)| r.is_cryo())
            .map(|(n, _)| n)
            .collect();
        assert_eq!(ours, ["one", "three", "two"]);
        assert!(all["one"].options.as_ref().unwrap().systemd_cgroup);
        assert_eq!(all["two"].shim_path(), None);
        assert_eq!(
            all["three"].shim_path().unwrap(),
            PathBuf::from("/x/containerd-shim-cryo-v2")
        );
    }
}
