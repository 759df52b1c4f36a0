//! From the archive layout of one engine to that of another.
//!
//! CRIU's images are the same in all. What differs are the files around them: which there are,
//! what they are called, and what they have in them. What the other engine has no place for is
//! left out, and what it wants and nobody knows is not made up; both is told in
//! [`Converted::notes`].

pub mod rootfs;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::layout;

/// Annotations by which containerd's CRI and CRI-O say of which pod a container is: the first is
/// containerd's, the second CRI-O's and the kubelet's.
const POD: [(&str, &str); 4] = [
    (
        "io.kubernetes.cri.container-name",
        "io.kubernetes.container.name",
    ),
    ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    (
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.pod.namespace",
    ),
    ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
];

/// The keys of `config.dump` that all three engines have.
const COMMON: [&str; 10] = [
    "id",
    "name",
    "rootfsImage",
    "rootfsImageRef",
    "rootfsImageName",
    "runtime",
    "createdTime",
    "checkpointedTime",
    "restoredTime",
    "restored",
];

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// containerd's CRI.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman.
    Podman,
}

impl Engine {
    /// The one that wrote a `spec.dump`.
    fn of(annotations: &Map<String, Value>) -> Self {
        match annotations
            .get(layout::ANNOTATION_MANAGER)
            .and_then(Value::as_str)
        {
            Some("libpod") => Self::Podman,
            Some("cri-o") => Self::CriO,
            _ => Self::Containerd,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CriO => "CRI-O",
            Self::Podman => "Podman",
        }
    }

    /// Whether it lists deleted files; containerd has whiteouts for them.
    pub fn lists_deleted_files(self) -> bool {
        self != Self::Containerd
    }
}

/// Why a checkpoint cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is no JSON object.
    #[error("the checkpoint is damaged: {name} is no JSON object")]
    BadJson {
        /// The file.
        name: &'static str,
    },
    /// It is in the layout of that engine.
    #[error("the checkpoint is one of {} already", .0.name())]
    Already(Engine),
}

/// The files that say what the container is, as an engine wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The engine that wrote them.
    pub from: Engine,
    /// Names and contents.
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// What could not be translated, a sentence each.
    pub notes: Vec<String>,
}

/// What becomes of a file of the archive that says nothing of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is copied under this name.
    Copied(&'static str),
    /// It is copied under its own.
    Kept,
    /// It is translated with the rest: [`Converted::files`], or the root file system.
    Translated,
    /// It is left out, for this reason.
    LeftOut(&'static str),
}

/// What becomes of a file at the top of an archive.
pub fn fate(name: &str, to: Engine) -> Fate {
    let top = name.split('/').next().unwrap_or_default();
    match (top, to) {
        (
            layout::CONFIG_DUMP
            | layout::SPEC_DUMP
            | layout::STATUS
            | layout::STATUS_DUMP
            | layout::ROOTFS_DIFF
            | layout::DELETED_FILES,
            _,
        ) => Fate::Translated,
        ("ctr.log", Engine::Containerd | Engine::CriO) => Fate::Copied(layout::CONTAINER_LOG),
        (layout::CONTAINER_LOG, Engine::Podman) => Fate::Copied("ctr.log"),
        (layout::NETWORK_STATUS, Engine::Containerd | Engine::CriO) => {
            Fate::LeftOut("the addresses are those of the new pod")
        }
        (layout::BIND_MOUNTS, Engine::Containerd | Engine::Podman) => {
            Fate::LeftOut("the mounts are those of the new container")
        }
        ("volumes", Engine::Containerd | Engine::CriO) => {
            Fate::LeftOut("the engine keeps no volumes with a checkpoint: their content is lost")
        }
        ("devshm-checkpoint.tar", Engine::Containerd | Engine::CriO) => {
            Fate::LeftOut("/dev/shm is the pod's: what was in it is lost")
        }
        ("artifacts", Engine::Containerd | Engine::CriO) => {
            Fate::LeftOut("the engine has no artifacts")
        }
        ("pre-checkpoint", _) => Fate::LeftOut("incremental checkpoints cannot be restored"),
        _ => Fate::Kept,
    }
}

/// Translates what says what the container is. `runtime` is the one that shall restore it, for
/// engines that want it named.
///
/// # Errors
///
/// All of [`Error`].
pub fn metadata(to: Engine, config: &[u8], spec: &[u8], runtime: &str) -> Result<Converted, Error> {
    let mut config = object(layout::CONFIG_DUMP, config)?;
    let mut spec = object(layout::SPEC_DUMP, spec)?;
    let mut annotations = match spec.remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        None | Some(Value::Null) => Map::new(),
        Some(_) => {
            return Err(Error::BadJson {
                name: layout::SPEC_DUMP,
            });
        }
    };
    let from = Engine::of(&annotations);
    if from == to {
        return Err(Error::Already(to));
    }
    let mut notes = mounts(&spec, to);

    // What the pod is, whoever says it.
    let text = |map: &Map<String, Value>, key: &str| {
        let value = map.get(key).and_then(Value::as_str)?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let mut pod: Vec<Option<String>> = POD
        .iter()
        .map(|(cri, kubelet)| text(&annotations, cri).or_else(|| text(&annotations, kubelet)))
        .collect();
    let name = text(&config, "name").unwrap_or_default();
    let of_pod = pod.get(1).is_some_and(Option::is_some);
    if let Some(first @ None) = pod.first_mut() {
        *first = Some(name.clone());
    }
    if !of_pod && to != Engine::Podman {
        notes.push("it was in no pod: the pod and its namespace stay empty".to_owned());
    }
    annotations.remove(layout::ANNOTATION_MANAGER);
    annotations.retain(|key, _| {
        !key.starts_with("io.kubernetes.cri-o.") && !key.starts_with("io.kubernetes.cri.")
    });
    for ((cri, kubelet), value) in POD.iter().zip(&pod) {
        let key = if to == Engine::Containerd {
            cri
        } else {
            kubelet
        };
        annotations.remove(*kubelet);
        if let (Some(value), true) = (value, of_pod || to != Engine::Podman) {
            annotations.insert((*key).to_owned(), json!(value));
        }
    }
    let short = pod.first().cloned().flatten().unwrap_or_default();

    // Who made it, and of which image.
    match to {
        Engine::Containerd => {}
        Engine::CriO => {
            annotations.insert(layout::ANNOTATION_MANAGER.to_owned(), json!("cri-o"));
            let metadata = json!({"name": short, "attempt": 0});
            for (key, value) in [
                ("Metadata", metadata.to_string()),
                ("Annotations", "{}".to_owned()),
                ("Labels", "{}".to_owned()),
                ("ContainerType", "container".to_owned()),
            ] {
                annotations.insert(format!("io.kubernetes.cri-o.{key}"), json!(value));
            }
        }
        Engine::Podman => {
            annotations.insert(layout::ANNOTATION_MANAGER.to_owned(), json!("libpod"));
            notes.push(format!(
                "config.dump is Podman's whole configuration of a container, of which {} knows a part: \
                 tools can read the archive, 'podman container restore' may want more",
                from.name()
            ));
        }
    }
    let image = config
        .get("rootfsImageName")
        .or_else(|| config.get("rootfsImage"))
        .cloned()
        .unwrap_or(Value::Null);
    if from == Engine::Podman && text(&config, "rootfsImageRef").is_none() {
        config.insert("rootfsImageRef".to_owned(), image.clone());
        notes.push("the image is known by its name, not by the digest of its manifest".to_owned());
    }
    config.entry("rootfsImage").or_insert(image);
    config.insert(
        "runtime".to_owned(),
        match to {
            Engine::Containerd => json!("io.containerd.runc.v2"),
            _ => json!(runtime),
        },
    );
    config.retain(|key, _| COMMON.contains(&key.as_str()));

    let mut files = BTreeMap::new();
    match to {
        Engine::Containerd => {
            let created = text(&config, "createdTime").and_then(|time| nanoseconds(&time));
            if created.is_none() {
                notes.push("it is not known when the container was made".to_owned());
            }
            let created = created.unwrap_or(0);
            let image = config.get("rootfsImageName").cloned().unwrap_or_default();
            let status = json!({
                "Version": "v1", "Pid": 0, "CreatedAt": created, "StartedAt": created,
                "FinishedAt": 0, "ExitCode": 0, "Reason": "", "Message": "",
            });
            let of_cri = json!({
                "id": config.get("id"), "metadata": {"name": short}, "state": 1,
                "created_at": created, "started_at": created,
                "image": {"image": image}, "image_ref": config.get("rootfsImageRef"),
            });
            files.insert(layout::STATUS, bytes(&status));
            files.insert(layout::STATUS_DUMP, bytes(&of_cri));
        }
        Engine::CriO => {}
        Engine::Podman => {
            files.insert(layout::NETWORK_STATUS, b"null".to_vec());
            config.insert("rawImageName".to_owned(), json!(config.get("rootfsImage")));
        }
    }
    spec.insert("annotations".to_owned(), Value::Object(annotations));
    let spec = Value::Object(spec);
    if to == Engine::Podman {
        config.insert("spec".to_owned(), spec.clone());
    }
    files.insert(layout::CONFIG_DUMP, bytes(&Value::Object(config)));
    files.insert(layout::SPEC_DUMP, bytes(&spec));
    Ok(Converted { from, files, notes })
}

/// What has to be mounted into the new container, since CRIU looks for it, and which the engine
/// does not by itself.
fn mounts(spec: &Map<String, Value>, to: Engine) -> Vec<String> {
    let by_itself: &[&str] = match to {
        Engine::Podman => &[
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
            "/run/.containerenv",
        ],
        _ => &[
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
        ],
    };
    let mounts = spec.get("mounts").and_then(Value::as_array);
    let missing: Vec<&str> = mounts
        .into_iter()
        .flatten()
        .filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind"))
        .filter_map(|mount| mount.get("destination").and_then(Value::as_str))
        .filter(|destination| !by_itself.contains(destination))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the container to restore into has to have these mounts: {}",
        missing.join(", ")
    )]
}

fn object(name: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Error::BadJson { name }),
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A time as nanoseconds since 1970, of RFC 3339.
pub(crate) fn nanoseconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(())?;
        digits.parse().ok()
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("", rest),
    };
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), ..] => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    // Years that begin in March, so that the day that may be missing is their last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset * 60;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD_SPEC: &str = r#"{"ociVersion":"1.2.1","mounts":[
        {"destination":"/data","type":"bind","source":"/srv"},
        {"destination":"/etc/hosts","type":"bind"},{"destination":"/proc","type":"proc"}],
        "annotations":{"io.kubernetes.cri.container-name":"counter","io.kubernetes.cri.sandbox-name":"pod",
        "io.kubernetes.cri.sandbox-namespace":"ns","io.kubernetes.cri.sandbox-uid":"uid","mine":"kept"}}"#;
    const CONFIG: &str = r#"{"id":"c0ffee","name":"counter_pod_ns_uid_0","rootfsImage":"busybox:1",
        "rootfsImageName":"busybox:1","rootfsImageRef":"busybox@sha256:0","runtime":"io.containerd.runc.v2",
        "createdTime":"2026-11-23T16:46:00.890411988Z","other":1}"#;

    fn parsed(converted: &Converted, name: &str) -> Value {
        serde_json::from_slice(&converted.files[name]).unwrap()
    }

    #[test]
    fn containerd_to_podman_and_back() {
        let podman = metadata(
            Engine::Podman,
            CONFIG.as_bytes(),
            POD_SPEC.as_bytes(),
            "runc",
        )
        .unwrap();
        assert_eq!(podman.from, Engine::Containerd);
        let (config, spec) = (parsed(&podman, "config.dump"), parsed(&podman, "spec.dump"));
        assert_eq!(config["runtime"], "runc");
        assert_eq!(config["rawImageName"], "busybox:1");
        assert_eq!(config["spec"], spec);
        assert_eq!(spec["annotations"]["io.container.manager"], "libpod");
        assert_eq!(spec["annotations"]["io.kubernetes.pod.name"], "pod");
        assert_eq!(spec["annotations"]["mine"], "kept");
        assert!(
            podman
                .notes
                .iter()
                .any(|note| note.ends_with("these mounts: /data")),
            "{:?}",
            podman.notes
        );

        let back = metadata(
            Engine::Containerd,
            &podman.files["config.dump"],
            &podman.files["spec.dump"],
            "runc",
        )
        .unwrap();
        assert_eq!(
            parsed(&back, "spec.dump"),
            serde_json::from_str::<Value>(POD_SPEC).unwrap()
        );
        let mut config: Value = serde_json::from_str(CONFIG).unwrap();
        config.as_object_mut().unwrap().remove("other");
        assert_eq!(parsed(&back, "config.dump"), config);
        assert_eq!(
            parsed(&back, "status")["CreatedAt"],
            1_795_452_360_890_411_988_i64
        );
        assert_eq!(parsed(&back, "status.dump")["metadata"]["name"], "counter");
    }

    #[test]
    fn cri_o_wants_its_annotations() {
        let crio = metadata(Engine::CriO, CONFIG.as_bytes(), POD_SPEC.as_bytes(), "crun").unwrap();
        let annotations = &parsed(&crio, "spec.dump")["annotations"];
        assert_eq!(annotations["io.container.manager"], "cri-o");
        assert_eq!(
            annotations["io.kubernetes.cri-o.Metadata"],
            r#"{"attempt":0,"name":"counter"}"#
        );
        assert_eq!(annotations["io.kubernetes.pod.namespace"], "ns");
        assert_eq!(parsed(&crio, "config.dump")["runtime"], "crun");
        let again = metadata(
            Engine::CriO,
            &crio.files["config.dump"],
            &crio.files["spec.dump"],
            "crun",
        );
        assert!(matches!(again, Err(Error::Already(Engine::CriO))));
    }

    #[test]
    fn a_container_without_a_pod() {
        let config =
            br#"{"name":"c1","rootfsImageName":"busybox:1","rootfsImageID":"0","createdTime":"x"}"#;
        let spec = br#"{"annotations":{"io.container.manager":"libpod"}}"#;
        let converted = metadata(Engine::Containerd, config, spec, "runc").unwrap();
        let annotations = &parsed(&converted, "spec.dump")["annotations"];
        assert_eq!(
            annotations,
            &json!({"io.kubernetes.cri.container-name": "c1"})
        );
        assert_eq!(
            parsed(&converted, "config.dump")["rootfsImageRef"],
            "busybox:1"
        );
        for wanted in ["in no pod", "by its name", "not known when"] {
            assert!(
                converted.notes.iter().any(|note| note.contains(wanted)),
                "{wanted}"
            );
        }
    }

    #[test]
    fn hostile_files_are_errors() {
        for (config, spec) in [("[]", "{}"), ("{}", ""), ("{}", r#"{"annotations":7}"#)] {
            let result = metadata(Engine::Podman, config.as_bytes(), spec.as_bytes(), "runc");
            assert!(matches!(result, Err(Error::BadJson { .. })));
        }
    }

    #[test]
    fn times_are_parsed() {
        for (text, wanted) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00.5Z", Some(951_782_400_500_000_000)),
            ("2026-11-23T17:12:33+01:00", Some(1_795_450_353_000_000_000)),
            ("0001-01-01T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-23T17:12:33", None),
            ("2026-11-23T17:12:33.Ä", None),
        ] {
            assert_eq!(nanoseconds(text), wanted, "{text}");
        }
    }
}
