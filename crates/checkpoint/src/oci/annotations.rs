//! What the annotations of a checkpoint image say, in the words of each engine.
//!
//! One table of facts, three dialects. Readers look for one marker each: containerd up to 2.3 for
//! `org.criu.checkpoint.container.name` in the index, CRI-O for
//! `io.kubernetes.cri-o.annotations.checkpoint.name` and Podman for
//! `io.podman.annotations.checkpoint.runtime.name` in the manifest.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Digest;
use super::model::Platform;
use crate::convert::nanoseconds;
use crate::dump_log::Versions;
use crate::layout;

/// Before the name of a fact, in the dialect that checkpointctl and containerd read.
pub const CRIU: &str = "org.criu.checkpoint.";
/// Before Podman's name of a fact.
pub const PODMAN: &str = "io.podman.annotations.checkpoint.";
/// CRI-O's marker; its value is the container's name.
pub const CRIO_NAME: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";

/// Longest value of a fact that is taken from a checkpoint.
const MAX_VALUE_BYTES: usize = 4096;

/// The facts that an image may state: the name in [`CRIU`]'s dialect, and in Podman's.
pub const FACTS: [(&str, Option<&str>); 21] = [
    ("cgroup.version", Some("cgroups.version")),
    ("conmon.version", Some("conmon.version")),
    ("container.name", Some("name")),
    ("criu.version", Some("criu.version")),
    ("distribution.name", Some("distribution.name")),
    ("distribution.version", Some("distribution.version")),
    ("engine.name", None),
    // Podman's podman.version, if Podman is the engine.
    ("engine.version", None),
    ("host.arch", Some("host.arch")),
    ("host.kernel", Some("host.kernel")),
    ("pod.id", None),
    ("pod.name", None),
    ("pod.namespace", None),
    ("pod.uid", None),
    ("rawImageName", Some("rawImageName")),
    ("rootfsImageID", Some("rootfsImageID")),
    ("rootfsImageName", Some("rootfsImageName")),
    ("rootfsImageSha", None),
    ("rootfsImageUserRequested", None),
    ("runtime.name", Some("runtime.name")),
    ("runtime.version", Some("runtime.version")),
];

/// Why a fact cannot be stated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no fact of that name.
    #[error("{0:?} is none of the facts that an image states: {names}", names = names())]
    Unknown(String),
    /// The checkpoint itself says otherwise.
    #[error("the checkpoint says {name} is {said:?}, not {given:?}")]
    Contradiction {
        /// The fact.
        name: &'static str,
        /// What the checkpoint says.
        said: String,
        /// What was to be stated.
        given: String,
    },
    /// A file of the checkpoint is no JSON of the form that engines write.
    #[error("the checkpoint is damaged: {name} cannot be decoded")]
    BadJson {
        /// The file.
        name: &'static str,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
}

fn names() -> String {
    FACTS.map(|(name, _)| name).join(", ")
}

/// What is known of a checkpoint; nothing in it was made up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    known: BTreeMap<&'static str, String>,
    checkpointed: Option<String>,
}

/// The keys of `config.dump` that are facts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    name: Option<String>,
    rootfs_image: Option<String>,
    rootfs_image_name: Option<String>,
    rootfs_image_ref: Option<String>,
    // Podman's, in the words of its container configuration.
    #[serde(rename = "rootfsImageID")]
    rootfs_image_id: Option<String>,
    raw_image_name: Option<String>,
    runtime: Option<String>,
    checkpointed_time: Option<String>,
}

/// The annotations of `spec.dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
}

impl Facts {
    /// What `config.dump` and `spec.dump` say.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`].
    pub fn of(config: &[u8], spec: &[u8]) -> Result<Self, Error> {
        let config: Config = json(layout::CONFIG_DUMP, config)?;
        let spec: Spec = json(layout::SPEC_DUMP, spec)?;
        let annotation = |keys: &[&str]| {
            let mut values = keys.iter().filter_map(|key| spec.annotations.get(*key));
            values.find(|value| !value.is_empty()).cloned()
        };
        let manager = annotation(&[layout::ANNOTATION_MANAGER]);
        let engine = match manager.as_deref() {
            Some("libpod") => "Podman",
            Some("cri-o") => "CRI-O",
            _ => "containerd",
        };
        // containerd's config.dump may have the container's id for its name.
        let name = annotation(&[
            "io.kubernetes.cri.container-name",
            "io.kubernetes.container.name",
        ]);
        let sha = config
            .rootfs_image_ref
            .iter()
            .chain(&config.rootfs_image_name)
            .filter_map(|text| text.get(text.find("sha256:")?..)?.parse::<Digest>().ok())
            .map(|digest| digest.to_string())
            .next();
        let mut facts = Self {
            // Readers of an image refuse one whose time is none.
            checkpointed: config
                .checkpointed_time
                .filter(|time| nanoseconds(time).is_some()),
            ..Self::default()
        };
        let raw = config
            .raw_image_name
            .or_else(|| config.rootfs_image.clone())
            .or_else(|| config.rootfs_image_name.clone());
        for (fact, value) in [
            ("engine.name", Some(engine.to_owned())),
            ("container.name", name.or(config.name)),
            (
                "pod.name",
                annotation(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]),
            ),
            (
                "pod.id",
                annotation(&[
                    "io.kubernetes.cri.sandbox-id",
                    "io.kubernetes.cri-o.SandboxID",
                ]),
            ),
            (
                "pod.namespace",
                annotation(&[
                    "io.kubernetes.cri.sandbox-namespace",
                    "io.kubernetes.pod.namespace",
                ]),
            ),
            (
                "pod.uid",
                annotation(&["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"]),
            ),
            ("rawImageName", raw),
            ("rootfsImageUserRequested", config.rootfs_image),
            ("rootfsImageName", config.rootfs_image_name),
            (
                "rootfsImageID",
                config.rootfs_image_ref.or(config.rootfs_image_id),
            ),
            ("rootfsImageSha", sha),
            ("runtime.name", config.runtime),
        ] {
            facts.learn(fact, value);
        }
        Ok(facts)
    }

    /// What CRIU's log of the dump says.
    pub fn learn_versions(&mut self, versions: Versions) {
        self.learn("criu.version", versions.criu);
        self.learn("host.kernel", versions.kernel);
    }

    /// Which machine its images are of, in the words of Rust or uname.
    pub fn learn_architecture(&mut self, architecture: &str) {
        let platform = Platform::linux(architecture);
        self.learn("host.arch", Some(platform.architecture));
    }

    fn learn(&mut self, name: &'static str, value: Option<String>) {
        if let Some(value) = value
            && (1..=MAX_VALUE_BYTES).contains(&value.len())
        {
            self.known.entry(name).or_insert(value);
        }
    }

    /// States a fact that the checkpoint does not have.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`], and [`Error::Contradiction`] when the checkpoint says otherwise.
    pub fn state(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let name = FACTS
            .iter()
            .map(|(known, _)| *known)
            .find(|known| *known == name)
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        let said = self.known.entry(name).or_insert_with(|| value.to_owned());
        if said == value {
            return Ok(());
        }
        Err(Error::Contradiction {
            name,
            said: said.clone(),
            given: value.to_owned(),
        })
    }

    /// One fact.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.known.get(name).map(String::as_str)
    }

    /// The names of the facts that nothing is known of.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        let names = FACTS.iter().map(|(name, _)| *name);
        names.filter(|name| !self.known.contains_key(name))
    }

    /// When the checkpoint was made, RFC 3339 in the words of the engine.
    pub fn checkpointed(&self) -> Option<&str> {
        self.checkpointed.as_deref()
    }

    /// The machine the image is for, if that is known.
    pub fn platform(&self) -> Option<Platform> {
        self.get("host.arch").map(Platform::linux)
    }

    /// The annotations, of all dialects.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        for (name, podman) in FACTS {
            let Some(value) = self.known.get(name) else {
                continue;
            };
            annotations.insert(format!("{CRIU}{name}"), value.clone());
            if let Some(podman) = podman {
                annotations.insert(format!("{PODMAN}{podman}"), value.clone());
            }
        }
        if let Some(name) = self.get("container.name") {
            annotations.insert(CRIO_NAME.to_owned(), name.to_owned());
        }
        if self.get("engine.name") == Some("Podman")
            && let Some(version) = self.get("engine.version")
        {
            annotations.insert(format!("{PODMAN}podman.version"), version.to_owned());
        }
        annotations
    }
}

fn json<T: for<'de> Deserialize<'de>>(name: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::BadJson { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_pods_container() {
        let config = format!(
            r#"{{"id":"c0ffee","name":"c0ffee","rootfsImage":"busybox:1",
            "rootfsImageName":"localhost:5000/busybox@sha256:{HEX}",
            "rootfsImageRef":"localhost:5000/busybox@sha256:{HEX}","runtime":"io.containerd.runc.v2",
            "checkpointedTime":"2026-03-13T21:43:06Z"}}"#
        );
        let spec = r#"{"annotations":{"io.kubernetes.cri.container-name":"counter",
            "io.kubernetes.cri.sandbox-name":"pod","io.kubernetes.cri.sandbox-namespace":"ns",
            "io.kubernetes.cri.sandbox-uid":"uid","io.kubernetes.cri.sandbox-id":"id"}}"#;
        let mut facts = Facts::of(config.as_bytes(), spec.as_bytes()).unwrap();
        facts.learn_versions(Versions::in_log(
            "(00.000000) Version: 4.2.1 (gitid 0)\n\
             (00.000005) Running on node-a Linux 6.18.5 #1 SMP x86_64\n",
        ));
        facts.learn_architecture("x86_64");
        let annotations = facts.annotations();
        for (key, value) in [
            ("org.criu.checkpoint.engine.name", "containerd"),
            ("org.criu.checkpoint.container.name", "counter"),
            ("org.criu.checkpoint.pod.name", "pod"),
            ("org.criu.checkpoint.pod.namespace", "ns"),
            ("org.criu.checkpoint.pod.uid", "uid"),
            ("org.criu.checkpoint.pod.id", "id"),
            ("org.criu.checkpoint.rootfsImageUserRequested", "busybox:1"),
            ("org.criu.checkpoint.criu.version", "4.2.1"),
            ("org.criu.checkpoint.host.kernel", "6.18.5"),
            ("org.criu.checkpoint.host.arch", "amd64"),
            ("io.kubernetes.cri-o.annotations.checkpoint.name", "counter"),
            ("io.podman.annotations.checkpoint.name", "counter"),
            (
                "io.podman.annotations.checkpoint.runtime.name",
                "io.containerd.runc.v2",
            ),
        ] {
            assert_eq!(
                annotations.get(key).map(String::as_str),
                Some(value),
                "{key}"
            );
        }
        let sha = format!("sha256:{HEX}");
        assert_eq!(facts.get("rootfsImageSha"), Some(sha.as_str()));
        assert_eq!(facts.checkpointed(), Some("2026-03-13T21:43:06Z"));
        assert_eq!(
            facts.missing().collect::<Vec<_>>(),
            [
                "cgroup.version",
                "conmon.version",
                "distribution.name",
                "distribution.version",
                "engine.version",
                "runtime.version"
            ]
        );
    }

    #[test]
    fn what_is_stated_may_not_contradict() {
        let spec = br#"{"annotations":{"io.container.manager":"libpod"}}"#;
        let mut facts = Facts::of(br#"{"runtime":"runc","name":""}"#, spec).unwrap();
        facts.state("engine.version", "5.6.0").unwrap();
        facts.state("engine.name", "Podman").unwrap();
        assert!(matches!(
            facts.state("runtime.name", "crun"),
            Err(Error::Contradiction { .. })
        ));
        assert!(matches!(
            facts.state("weather", "x"),
            Err(Error::Unknown(_))
        ));
        let annotations = facts.annotations();
        assert_eq!(
            annotations["io.podman.annotations.checkpoint.podman.version"],
            "5.6.0"
        );
        assert!(
            !annotations.contains_key(CRIO_NAME),
            "an empty name is none"
        );
    }

    #[test]
    fn all_facts_are_in_the_table_once() {
        let mut names = FACTS.map(|(name, _)| name).to_vec();
        names.dedup();
        assert!(names.is_sorted() && names.len() == 21);
    }

    #[test]
    fn hostile_files_are_errors() {
        assert!(Facts::of(b"", b"{}").is_err());
        assert!(Facts::of(b"{}", br#"{"annotations":7}"#).is_err());
        let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(5000));
        assert_eq!(
            Facts::of(long.as_bytes(), b"{}")
                .unwrap()
                .get("container.name"),
            None
        );
    }
}
