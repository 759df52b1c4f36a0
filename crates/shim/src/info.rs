//! `-info` and `-v`: what this runtime is and can do.
//!
//! containerd asks `-info` when it starts, with empty stdin, and before it makes a container with
//! id-mapped mounts. The features say only what is true: an idmap that is promised and then
//! refused costs a pod, one that is not promised costs a message.

use std::collections::HashMap;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use cryo_criu::options::IN_REQUESTS;
use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use serde_json::json;

/// The runtime's name in containerd.
pub const RUNTIME_NAME: &str = "io.containerd.cryo.v2";

/// The version of cryo.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from; a release build sets `CRYO_REVISION`.
pub const REVISION: &str = match option_env!("CRYO_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Where containerd finds the features' type.
pub const FEATURES_TYPE: &str =
    "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// stdin of `-info` is not an `Any`.
#[derive(Debug, thiserror::Error)]
#[error("stdin of -info is not an Any of runtime options: {0}")]
pub struct InfoError(#[from] protobuf::Error);

/// The answer to `-info`, as bytes for stdout. `annotations` is for what only the caller knows,
/// like CRIU's version.
///
/// # Errors
///
/// [`InfoError`] if `stdin` is neither empty nor an `Any`.
pub fn info(stdin: &[u8], mut annotations: HashMap<String, String>) -> Result<Vec<u8>, InfoError> {
    annotations.insert(IN_REQUESTS.to_owned(), "true".to_owned());
    let options = match stdin {
        [] => MessageField::none(),
        bytes => MessageField::some(Any::parse_from_bytes(bytes)?),
    };
    let info = RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
            ..RuntimeVersion::default()
        }),
        options,
        features: MessageField::some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: features().to_string().into_bytes(),
            ..Any::default()
        }),
        annotations,
        ..RuntimeInfo::default()
    };
    Ok(info.write_to_bytes()?)
}

/// The text of `-v`, in the form of containerd's own shims.
#[must_use]
pub fn version(program: &str) -> String {
    format!("{program}:\n  Version:  {VERSION}\n  Revision: {REVISION}\n")
}

/// What the engine does, as `features.md` of the OCI runtime spec has it. Absent means unknown.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.1.0",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        // libcontainer 0.7, src/syscall/linux.rs: MountOption and MountRecursive; and the engine's own.
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "mand",
            "noatime", "nodev", "nodiratime", "noexec", "nomand", "norelatime", "nostrictatime",
            "nosuid", "private", "ratime", "rbind", "rdev", "rdiratime", "relatime", "remount",
            "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime",
            "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw", "rshared",
            "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw", "shared", "slave",
            "strictatime", "suid", "sync", "tmpcopyup", "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": true },
            // libcontainer 0.7, src/seccomp/mod.rs: translate_action, translate_arch, translate_op.
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE",
                    "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": cryo_sys::namespace::knows_map_owners() } },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_containerd_reads() {
        let annotations = HashMap::from([("criu".to_owned(), "4.2".to_owned())]);
        let bytes = info(b"", annotations).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, "io.containerd.cryo.v2");
        assert_eq!(info.version.version, VERSION);
        assert!(info.options.is_none());
        assert_eq!(info.annotations["criu"], "4.2");
        // By this `cryoctl` knows that options in a request are seen.
        assert_eq!(info.annotations[IN_REQUESTS], "true");
        assert_eq!(info.features.type_url, FEATURES_TYPE);

        let features: oci_spec::runtime::Features =
            serde_json::from_slice(&info.features.value).unwrap();
        let options = features.mount_options().as_ref().unwrap();
        assert!(options.iter().any(|option| option == "rro"));
        assert!(options.is_sorted());
        let linux = features.linux().as_ref().unwrap();
        let idmap = linux.mount_extensions().as_ref().unwrap().idmap();
        let known = cryo_sys::namespace::knows_map_owners();
        assert_eq!(*idmap.as_ref().unwrap().enabled(), Some(known));
    }

    #[test]
    fn options_are_echoed() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![1, 2],
            ..Any::default()
        };
        let bytes = info(&options.write_to_bytes().unwrap(), HashMap::new()).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.options.unwrap(), options);
        assert!(super::info(b"\x07", HashMap::new()).is_err());
    }

    #[test]
    fn version_text() {
        let text = version("/usr/bin/containerd-shim-cryo-v2");
        assert!(text.starts_with("/usr/bin/containerd-shim-cryo-v2:\n  Version:  "));
        assert_eq!(text.lines().count(), 3);
    }
}
