//! What the engine and the shim read from a container's `config.json`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxNamespaceType, Mount, Spec};

use crate::cgroup::{Cgroups, Kind};

/// A spec that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is missing or not an OCI runtime configuration.
    #[error("cannot load {path}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: oci_spec::OciSpecError,
    },
    /// A section that every Linux container needs is missing.
    #[error("config.json has no {0} section")]
    Missing(&'static str),
    /// Something cryo cannot do yet, or not at all.
    #[error("config.json asks for {what}: {remedy}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
}

/// Loads and checks `config.json` of a bundle.
///
/// # Errors
///
/// [`Error`].
pub fn load(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let spec = std::fs::read(&path)
        .map_err(oci_spec::OciSpecError::from)
        .and_then(|json| parse(&json).map_err(oci_spec::OciSpecError::from));
    let spec = spec.map_err(|source| Error::Load { path, source })?;
    for (there, name) in [
        (spec.linux().is_some(), "linux"),
        (spec.process().is_some(), "process"),
        (spec.root().is_some(), "root"),
    ] {
        if !there {
            return Err(Error::Missing(name));
        }
    }
    Ok(spec)
}

/// Parses a spec. Capabilities that nobody knows are left out: a newer
/// containerd may name some, and none can be granted anyway.
///
/// # Errors
///
/// When this is not JSON, or not of a spec.
pub fn parse(json: &[u8]) -> Result<Spec, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_slice(json)?;
    if !value.is_object() {
        // serde would take an array for the fields in their order.
        return Err(serde::de::Error::custom("not an object"));
    }
    let sets = value
        .pointer_mut("/process/capabilities")
        .and_then(serde_json::Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| {
                let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
                if !known {
                    tracing::warn!(capability = %name, "an unknown capability is left out");
                }
                known
            });
        }
    }
    serde_json::from_value(value)
}

/// The container's cgroup path.
///
/// # Errors
///
/// [`Error::Unsupported`] when there is none: libcontainer would make one up
/// that differs between cgroup versions.
pub fn cgroup_path(spec: &Spec) -> Result<PathBuf, Error> {
    spec.linux()
        .as_ref()
        .and_then(|l| l.cgroups_path().clone())
        .filter(|p| !p.as_os_str().is_empty())
        .ok_or_else(|| Error::Unsupported {
            what: "no linux.cgroupsPath".to_owned(),
            remedy: "give the container one of its own, such as /NAMESPACE/ID",
        })
}

/// A namespace as the spec asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// The one of whoever runs the container.
    Host,
    /// A new one.
    New,
    /// An existing one, by its file.
    Path(PathBuf),
}

/// Looks a namespace up.
#[must_use]
pub fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Namespace {
    spec.linux()
        .as_ref()
        .and_then(|l| l.namespaces().as_ref())
        .and_then(|all| all.iter().find(|n| n.typ() == kind))
        .map_or(Namespace::Host, |n| match n.path() {
            Some(path) if !path.as_os_str().is_empty() => Namespace::Path(path.clone()),
            _ => Namespace::New,
        })
}

/// A bind mount: CRIU knows it by its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is inside the container.
    pub destination: PathBuf,
    /// What it shows.
    pub source: PathBuf,
}

/// Whether a mount is a bind, by its type or by an option.
#[must_use]
pub fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind") || options.any(|o| o == "bind" || o == "rbind")
}

/// Whether a mount is to show other owners than its source has.
#[must_use]
pub fn idmapped(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|o| o == "idmap" || o == "ridmap")
        || mount.uid_mappings().as_ref().is_some_and(|m| !m.is_empty())
        || mount.gid_mappings().as_ref().is_some_and(|m| !m.is_empty())
}

/// All bind mounts, in the order they are mounted.
#[must_use]
pub fn binds(spec: &Spec) -> Vec<Bind> {
    spec.mounts()
        .iter()
        .flatten()
        .filter(|m| is_bind(m))
        .filter_map(|m| {
            Some(Bind {
                destination: m.destination().clone(),
                source: m.source().clone()?,
            })
        })
        .collect()
}

/// The masked paths.
pub fn masked(spec: &Spec) -> impl Iterator<Item = &Path> {
    spec.linux()
        .as_ref()
        .and_then(|l| l.masked_paths().as_ref())
        .into_iter()
        .flatten()
        .map(Path::new)
}

/// The device files of a container: those that each has, and the spec's.
#[must_use]
pub fn devices(spec: &Spec) -> Vec<PathBuf> {
    let own =
        ["null", "zero", "full", "random", "urandom", "tty"].map(|n| Path::new("/dev").join(n));
    let more = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    let more = more.into_iter().flatten().map(|d| d.path().clone());
    own.into_iter().chain(more).collect()
}

/// Whether the spec has a seccomp profile.
#[must_use]
pub fn filtered(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    linux.is_some_and(|l| l.seccomp().is_some())
}

/// Where the spec mounts the cgroup file system, if at all.
#[must_use]
pub fn cgroup_mount(spec: &Spec) -> Option<PathBuf> {
    spec.mounts()
        .iter()
        .flatten()
        .find(|m| matches!(m.typ().as_deref(), Some("cgroup" | "cgroup2")))
        .map(|m| m.destination().clone())
}

/// The container's own cgroups as a v1 cgroup mount shows them: one folder per
/// hierarchy, and one per controller where several share one.
#[must_use]
pub fn cgroup_binds(destination: &Path, cgroups: &Cgroups) -> Vec<Bind> {
    let mut binds = Vec::new();
    for (hierarchy, source) in cgroups.dirs() {
        let (Kind::V1(controllers), Some(name)) =
            (&hierarchy.kind, hierarchy.mountpoint.file_name())
        else {
            continue;
        };
        let alone = controllers.len() < 2;
        let others = controllers.iter().filter(|c| !alone && name != c.as_str());
        for name in std::iter::once(name).chain(others.map(std::ffi::OsStr::new)) {
            binds.push(Bind {
                destination: destination.join(name),
                source: source.clone(),
            });
        }
    }
    binds
}

/// Whether the process wants a terminal.
#[must_use]
pub fn terminal(spec: &Spec) -> bool {
    spec.process()
        .as_ref()
        .and_then(oci_spec::runtime::Process::terminal)
        .unwrap_or(false)
}

/// User and group of the container's first process.
#[must_use]
pub fn user(spec: &Spec) -> (u32, u32) {
    spec.process()
        .as_ref()
        .map_or((0, 0), |p| (p.user().uid(), p.user().gid()))
}

/// What a user and a group of the container are outside of it. Who is not
/// mapped is left as it is: nobody else could be meant.
#[must_use]
pub fn outside(spec: &Spec, (uid, gid): (u32, u32)) -> (u32, u32) {
    let linux = spec.linux().as_ref();
    let map = |id: u32, maps: Option<&Vec<oci_spec::runtime::LinuxIdMapping>>| {
        maps.into_iter()
            .flatten()
            .find_map(|m| {
                let offset = id.checked_sub(m.container_id())?;
                (offset < m.size()).then(|| m.host_id().checked_add(offset))?
            })
            .unwrap_or(id)
    };
    (
        map(uid, linux.and_then(|l| l.uid_mappings().as_ref())),
        map(gid, linux.and_then(|l| l.gid_mappings().as_ref())),
    )
}

/// The first size of the process's terminal, as columns and rows.
#[must_use]
pub fn console_size(spec: &Spec) -> Option<(u16, u16)> {
    let size = spec.process().as_ref()?.console_size()?;
    Some((
        u16::try_from(size.width()).ok()?,
        u16::try_from(size.height()).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_an_object_is_a_spec() {
        assert!(parse(br#"{"ociVersion":"1.1.0"}"#).is_ok());
        for other in ["[]", "[\"1.1.0\"]", "null", "1"] {
            assert!(parse(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn namespaces_are_host_new_or_a_path() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":""},
                {"type":"network","path":"/var/run/netns/x"}]}}"#,
        );
        assert_eq!(namespace(&spec, LinuxNamespaceType::Pid), Namespace::New);
        assert_eq!(namespace(&spec, LinuxNamespaceType::Ipc), Namespace::New);
        assert_eq!(namespace(&spec, LinuxNamespaceType::User), Namespace::Host);
        assert_eq!(
            namespace(&spec, LinuxNamespaceType::Network),
            Namespace::Path("/var/run/netns/x".into())
        );
    }

    #[test]
    fn binds_are_known_by_type_or_by_option() {
        let spec = spec(
            r#"{"ociVersion":"1.1.0","mounts":[
                {"destination":"/proc","type":"proc","source":"proc"},
                {"destination":"/a","type":"bind","source":"/x"},
                {"destination":"/b","type":"none","source":"/y","options":["rbind","ro"]},
                {"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup"}]}"#,
        );
        let found: Vec<_> = binds(&spec).into_iter().map(|b| b.destination).collect();
        assert_eq!(found, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(cgroup_mount(&spec).unwrap(), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let json = r#"{"ociVersion":"1.1.0","process":{"cwd":"/","user":{"uid":0,"gid":0},
            "capabilities":{"bounding":["CAP_KILL","CAP_FLY"],"effective":["CAP_FLY"]}}}"#;
        let spec = parse(json.as_bytes()).unwrap();
        let capabilities = spec
            .process()
            .as_ref()
            .unwrap()
            .capabilities()
            .clone()
            .unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
        assert!(capabilities.effective().as_ref().unwrap().is_empty());
    }

    #[test]
    fn ids_are_mapped_as_the_user_namespace_does() {
        let mapped = spec(
            r#"{"ociVersion":"1.1.0","linux":{
                "uidMappings":[{"containerID":0,"hostID":1000,"size":10},{"containerID":10,"hostID":5000,"size":1}],
                "gidMappings":[{"containerID":0,"hostID":4294967295,"size":10}]}}"#,
        );
        assert_eq!(outside(&mapped, (3, 0)), (1003, 4_294_967_295));
        assert_eq!(
            outside(&mapped, (10, 5)),
            (5000, 5),
            "an overflow maps nobody"
        );
        assert_eq!(outside(&mapped, (11, 10)), (11, 10));
        assert_eq!(outside(&spec(r#"{"ociVersion":"1.1.0"}"#), (3, 4)), (3, 4));
    }

    #[test]
    fn a_container_without_a_cgroup_path_is_refused() {
        let none = spec(r#"{"ociVersion":"1.1.0","linux":{}}"#);
        assert!(matches!(cgroup_path(&none), Err(Error::Unsupported { .. })));
        let some = spec(r#"{"ociVersion":"1.1.0","linux":{"cgroupsPath":"/default/x"}}"#);
        assert_eq!(cgroup_path(&some).unwrap(), Path::new("/default/x"));
    }
}
