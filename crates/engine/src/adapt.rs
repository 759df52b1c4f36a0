//! What libcontainer gets wrong or cannot do, mended in the configuration it
//! is given, or refused before anything is made.
//!
//! | the spec says | libcontainer 0.7 | here |
//! |---|---|---|
//! | `rslave`, `rshared`, `rprivate` as root propagation | refuses | the word without `r`: it is recursive in any case |
//! | `noNewPrivileges: false` with seccomp | loads the filter without the right to | left out, which means the same |
//! | capabilities it does not know | refuses the file | left out, with a warning ([`crate::spec::load`]) |
//! | a cgroup v1 mount | makes it writable; looks a foreign process up in a joined pid namespace | binds of the container's own cgroups |
//! | several mappings of a user namespace | wants `newuidmap` | the namespace is made by us ([`crate::userns`]) |
//! | `tmpcopyup`, idmapped mounts | refuses | binds of mounts made by us ([`crate::mounts`]) |
//! | binds in a user namespace | opens their sources inside of it | binds of mounts that can be reached ([`crate::mounts`]) |
//! | SELinux labels | ignores them | refused |
//! | `unified` resources where there is cgroup v1 | ignores them | refused |

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, MountBuilder, Spec};

use crate::cgroup::Cgroups;
use crate::spec::{self, Error, Namespace};

/// Turns the spec into one that libcontainer makes the same container of as
/// runc would of the original.
///
/// # Errors
///
/// [`Error::Unsupported`] for what cannot be had.
pub fn adapt(spec: &mut Spec, bundle: &Path, cgroups: &Cgroups) -> Result<(), Error> {
    refuse(spec, cgroups)?;
    if let Some(root) = spec.root_mut() {
        // The adapted file lies elsewhere.
        let path = bundle.join(root.path());
        root.set_path(path);
    }
    if let Some(process) = spec.process_mut()
        && process.no_new_privileges() == Some(false)
    {
        process.set_no_new_privileges(None);
    }
    if let Some(linux) = spec.linux_mut() {
        adapt_propagation(linux);
    }
    adapt_cgroup_mount(spec, cgroups)
}

fn unsupported(what: &str, remedy: &'static str) -> Error {
    Error::Unsupported {
        what: what.to_owned(),
        remedy,
    }
}

fn refuse(spec: &Spec, cgroups: &Cgroups) -> Result<(), Error> {
    let labelled = |label: Option<&String>| label.is_some_and(|l| !l.is_empty());
    let process_label = spec
        .process()
        .as_ref()
        .and_then(|p| p.selinux_label().as_ref());
    let linux = spec.linux().as_ref();
    if labelled(process_label) || labelled(linux.and_then(|l| l.mount_label().as_ref())) {
        return Err(unsupported(
            "an SELinux label",
            "cryo cannot set it; run the container without SELinux separation, or with another runtime",
        ));
    }
    let unified = linux
        .and_then(|l| l.resources().as_ref())
        .and_then(|r| r.unified().as_ref())
        .is_some_and(|u| !u.is_empty());
    if unified && !cgroups.only_v2() {
        return Err(unsupported(
            "linux.resources.unified",
            "these are for cgroup v2, and this node has cgroup v1; use the classic resources",
        ));
    }
    let own_users = spec::namespace(spec, LinuxNamespaceType::User) != Namespace::Host;
    let idmapped = spec.mounts().iter().flatten().filter(|m| spec::idmapped(m));
    for mount in idmapped {
        let at = mount.destination().display();
        if !spec::is_bind(mount) {
            return Err(unsupported(
                &format!("an idmapped mount at {at} that is no bind"),
                "only bind mounts can be idmapped",
            ));
        }
        let count = |m: &Option<Vec<_>>| m.as_ref().map_or(0, Vec::len);
        match (
            count(mount.uid_mappings()),
            count(mount.gid_mappings()),
            own_users,
        ) {
            (0, 0, true) => {}
            (0, 0, false) => {
                return Err(unsupported(
                    &format!("an idmapped mount at {at} without mappings"),
                    "give the mount uidMappings and gidMappings, or the container a user namespace",
                ));
            }
            (0, _, _) | (_, 0, _) => {
                return Err(unsupported(
                    &format!("an idmapped mount at {at} with one kind of mappings"),
                    "give both uidMappings and gidMappings",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn adapt_propagation(linux: &mut Linux) {
    let plain = match linux.rootfs_propagation().as_deref() {
        Some("rslave") => "slave",
        Some("rshared") => "shared",
        Some("rprivate") => "private",
        Some("runbindable") => "unbindable",
        _ => return,
    };
    linux.set_rootfs_propagation(Some(plain.to_owned()));
}

/// libcontainer mounts cgroup v1 writable whatever the spec says, and with that a container
/// lifts its own limits; and it asks `/proc` for the cgroups of its own process id, which in
/// a joined pid namespace is another process's.
fn adapt_cgroup_mount(spec: &mut Spec, cgroups: &Cgroups) -> Result<(), Error> {
    let own = spec::namespace(spec, LinuxNamespaceType::Cgroup) == Namespace::New;
    let Some(destination) = spec::cgroup_mount(spec).filter(|_| !cgroups.only_v2()) else {
        return Ok(());
    };
    let read_only = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|m| *m.destination() == destination)
        .flat_map(|m| m.options().iter().flatten())
        .rfind(|o| *o == "ro" || *o == "rw")
        .is_some_and(|o| o == "ro");
    if own {
        // libcontainer's mounts are of the new namespace, so they cannot be replaced.
        if let (true, Some(linux)) = (read_only, spec.linux_mut()) {
            let mut paths = linux.readonly_paths().clone().unwrap_or_default();
            let binds = spec::cgroup_binds(&destination, cgroups);
            paths.extend(binds.iter().map(|b| b.destination.display().to_string()));
            linux.set_readonly_paths(Some(paths));
        }
        return Ok(());
    }
    let build = |builder: MountBuilder| {
        builder
            .build()
            .map_err(|_| unsupported("a cgroup mount", "leave it out"))
    };
    let strings = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let mut replacement = vec![build(
        MountBuilder::default()
            .destination(&destination)
            .typ("tmpfs")
            .source("tmpfs")
            .options(strings(&["nosuid", "noexec", "nodev", "mode=755"])),
    )?];
    for bind in spec::cgroup_binds(&destination, cgroups) {
        replacement.push(build(
            MountBuilder::default()
                .destination(bind.destination)
                .typ("bind")
                .source(bind.source)
                .options(strings(&[
                    "bind",
                    "nosuid",
                    "noexec",
                    "nodev",
                    if read_only { "ro" } else { "rw" },
                ])),
        )?);
    }
    let mounts: Vec<Mount> = spec
        .mounts()
        .iter()
        .flatten()
        .flat_map(|mount| {
            if *mount.destination() == destination {
                replacement.clone()
            } else {
                vec![mount.clone()]
            }
        })
        .collect();
    spec.set_mounts(Some(mounts));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::parse_hierarchies;

    const V1: &str = "24 23 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      25 23 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
    const V2: &str = "24 23 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    fn adapted(json: &str, mountinfo: &str) -> Result<Spec, Error> {
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        let cgroups = Cgroups::within(Path::new("/ns/id"), parse_hierarchies(mountinfo)).unwrap();
        adapt(&mut spec, Path::new("/bundle"), &cgroups).map(|()| spec)
    }

    #[test]
    fn mended() {
        let spec = adapted(
            r#"{"ociVersion":"1.1.0","root":{"path":"rootfs"},
                "process":{"cwd":"/","user":{"uid":0,"gid":0},"noNewPrivileges":false},
                "linux":{"rootfsPropagation":"rslave"}}"#,
            V1,
        )
        .unwrap();
        assert_eq!(
            spec.root().as_ref().unwrap().path(),
            Path::new("/bundle/rootfs")
        );
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), None);
        let propagation = spec.linux().as_ref().unwrap().rootfs_propagation().clone();
        assert_eq!(propagation.as_deref(), Some("slave"));
    }

    #[test]
    fn an_absolute_root_stays() {
        let spec = adapted(r#"{"ociVersion":"1.1.0","root":{"path":"/r"}}"#, V1).unwrap();
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/r"));
    }

    fn destinations(spec: &Spec) -> Vec<String> {
        let mounts = spec.mounts().as_ref().unwrap();
        mounts
            .iter()
            .map(|m| m.destination().display().to_string())
            .collect()
    }

    fn with_a_cgroup_mount(mode: &str, namespaces: &str) -> String {
        format!(
            r#"{{"ociVersion":"1.1.0","mounts":[
                {{"destination":"/proc","type":"proc","source":"proc"}},
                {{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["{mode}"]}}],
                "linux":{{"namespaces":[{namespaces}]}}}}"#
        )
    }

    #[test]
    fn a_v1_cgroup_mount_becomes_binds_of_its_mode() {
        let joined = r#"{"type":"pid","path":"/proc/1/ns/pid"}"#;
        for (mode, pid) in [("ro", r#"{"type":"pid"}"#), ("ro", joined), ("rw", joined)] {
            let spec = adapted(&with_a_cgroup_mount(mode, pid), V1).unwrap();
            assert_eq!(
                destinations(&spec),
                [
                    "/proc",
                    "/sys/fs/cgroup",
                    "/sys/fs/cgroup/memory",
                    "/sys/fs/cgroup/systemd"
                ]
            );
            let memory = &spec.mounts().as_ref().unwrap()[2];
            assert_eq!(
                memory.source().as_deref(),
                Some(Path::new("/sys/fs/cgroup/memory/ns/id"))
            );
            let options = memory.options().as_ref().unwrap();
            assert_eq!(options.last().map(String::as_str), Some(mode));
        }
        let spec = adapted(&with_a_cgroup_mount("ro", joined), V2).unwrap();
        assert_eq!(destinations(&spec), ["/proc", "/sys/fs/cgroup"]);
    }

    #[test]
    fn a_v1_cgroup_mount_of_a_new_cgroup_namespace_is_made_read_only_afterwards() {
        let paths = |mode: &str| {
            let spec = adapted(&with_a_cgroup_mount(mode, r#"{"type":"cgroup"}"#), V1).unwrap();
            assert_eq!(destinations(&spec), ["/proc", "/sys/fs/cgroup"]);
            let linux = spec.linux().as_ref().unwrap();
            linux.readonly_paths().clone().unwrap_or_default()
        };
        let wanted = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/systemd"];
        assert!(paths("ro").ends_with(&wanted.map(str::to_owned)));
        assert!(!paths("rw").iter().any(|p| p.starts_with("/sys/fs/cgroup")));
    }

    #[test]
    fn refused_by_name() {
        for (json, mountinfo, word) in [
            (
                r#"{"ociVersion":"1.1.0","linux":{"mountLabel":"system_u:x"}}"#,
                V1,
                "SELinux",
            ),
            (
                r#"{"ociVersion":"1.1.0","linux":{"resources":{"unified":{"memory.high":"1"}}}}"#,
                V1,
                "unified",
            ),
            (
                r#"{"ociVersion":"1.1.0","mounts":[{"destination":"/m","type":"bind","source":"/x",
                    "uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]}"#,
                V2,
                "one kind of mappings",
            ),
            (
                r#"{"ociVersion":"1.1.0","mounts":[{"destination":"/m","type":"bind","source":"/x","options":["idmap"]}]}"#,
                V2,
                "without mappings",
            ),
            (
                r#"{"ociVersion":"1.1.0","mounts":[{"destination":"/m","type":"tmpfs","source":"x","options":["idmap"]}]}"#,
                V2,
                "no bind",
            ),
        ] {
            let error = adapted(json, mountinfo).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        adapted(
            r#"{"ociVersion":"1.1.0","linux":{"resources":{"unified":{"memory.high":"1"}}}}"#,
            V2,
        )
        .unwrap();
    }
}
