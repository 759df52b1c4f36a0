//! User namespaces, made here: libcontainer writes a single mapping itself and
//! wants `newuidmap` for more, and its choice of a cgroup manager depends on who
//! made the namespace. Also for mounts that show other owners.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use cryo_sys::namespace;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::spec::{self, Namespace};

/// Makes a user namespace with these mappings.
///
/// # Errors
///
/// What the kernel says.
pub(crate) fn make(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    namespace::new_user_namespace(&map(uids), &map(gids))
}

/// Mappings as `/proc/PID/uid_map` takes them.
fn map(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, m| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        text
    })
}

/// Makes the user namespace that the spec wants anew, and names it in the spec.
/// It is to be kept until the container's first process is inside.
///
/// # Errors
///
/// [`spec::Error::Unsupported`] for mappings that are missing or refused.
pub(crate) fn adapt(spec: &mut Spec) -> Result<Option<OwnedFd>, spec::Error> {
    if spec::namespace(spec, LinuxNamespaceType::User) != Namespace::New {
        return Ok(None);
    }
    let Some(linux) = spec.linux_mut() else {
        return Ok(None);
    };
    let mappings = |m: &Option<Vec<_>>| m.clone().unwrap_or_default();
    let (uids, gids) = (
        mappings(linux.uid_mappings()),
        mappings(linux.gid_mappings()),
    );
    if uids.is_empty() || gids.is_empty() {
        return Err(spec::Error::Unsupported {
            what: "a user namespace without mappings".to_owned(),
            remedy: "give linux.uidMappings and linux.gidMappings",
        });
    }
    let fd = make(&uids, &gids).map_err(|e| spec::Error::Unsupported {
        what: format!("a user namespace that the kernel refuses ({e})"),
        remedy: "mappings must not overlap, and their ids must exist on this node",
    })?;
    // The processes that enter it are forked, so they have the descriptor too.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if namespace.typ() == LinuxNamespaceType::User {
            namespace.set_path(Some(path.clone().into()));
        }
    }
    Ok(Some(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.1.0","linux":{linux}}}"#)).unwrap()
    }

    #[test]
    fn mappings_are_written_one_a_line() {
        let spec = spec(
            r#"{"uidMappings":[{"containerID":0,"hostID":1000,"size":10},{"containerID":10,"hostID":5000,"size":1}]}"#,
        );
        let mappings = spec.linux().as_ref().unwrap().uid_mappings().clone();
        assert_eq!(map(&mappings.unwrap()), "0 1000 10\n10 5000 1\n");
        assert_eq!(map(&[]), "");
    }

    #[test]
    fn a_namespace_without_mappings_is_refused_and_others_are_left_alone() {
        let error = adapt(&mut spec(r#"{"namespaces":[{"type":"user"}]}"#)).unwrap_err();
        assert!(error.to_string().contains("uidMappings"), "{error}");
        let mut joined = spec(r#"{"namespaces":[{"type":"user","path":"/proc/1/ns/user"}]}"#);
        let before = joined.clone();
        assert!(adapt(&mut joined).unwrap().is_none());
        assert_eq!(joined, before);
    }
}
