//! The runtime's options: what containerd's configuration says about a runtime.
//!
//! They come as `containerd.runc.v1.Options` (under the name
//! `io.containerd.runc.v2`, and from clients such as `ctr`) or as
//! `runtimeoptions.v1.Options`, which carries the same keys as TOML. They are
//! of the node's owner, not of whoever makes a pod.
//!
//! | key | what cryo does |
//! |---|---|
//! | `NoPivotRoot`, `NoNewKeyring` | as runc |
//! | `IoUid`, `IoGid` | owner of the container's streams, if not 0 |
//! | `ShimCgroup` | the shim moves there |
//! | `CriuWorkPath` | log and statistics of a restore go there |
//! | `CriuImagePath` | nothing: containerd names the same path as the checkpoint |
//! | `SystemdCgroup` | refused: cryo makes cgroups itself |
//! | `BinaryName`, `Root` | nothing: there is no other binary, and state is in `/run/cryo` |

use std::path::PathBuf;

use containerd_shim_protos::shim::oci;
use prost::Message as _;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::Deserialize;

use crate::rpc::TaskError;

/// Options of either type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RuntimeOptions {
    /// Do not pivot into the root.
    pub no_pivot_root: bool,
    /// Keep the shim's session keyring.
    pub no_new_keyring: bool,
    /// Where the shim is to be.
    pub shim_cgroup: String,
    /// Owner of the container's streams; 0 is "not set".
    pub io_uid: u32,
    /// Group of the container's streams; 0 is "not set".
    pub io_gid: u32,
    /// Let systemd make the cgroups.
    pub systemd_cgroup: bool,
    /// Where log and statistics of a restore go.
    pub criu_work_path: String,
}

/// `runtimeoptions.v1.Options`
#[derive(Clone, PartialEq, prost::Message)]
struct Generic {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

impl RuntimeOptions {
    /// Reads options of either type; none, or another type, is the default.
    ///
    /// # Errors
    ///
    /// InvalidArgument when they cannot be decoded or ask for what cryo refuses.
    pub fn parse(any: Option<&Any>) -> Result<Self, TaskError> {
        let Some(any) = any else {
            return Ok(Self::default());
        };
        let options = match any.type_url.rsplit('/').next() {
            Some("containerd.runc.v1.Options") => oci::Options::parse_from_bytes(&any.value)
                .map(Self::from)
                .map_err(|e| bad(&e))?,
            Some("runtimeoptions.v1.Options") => {
                let generic = Generic::decode(&*any.value).map_err(|e| bad(&e))?;
                let body = std::str::from_utf8(&generic.config_body).map_err(|e| bad(&e))?;
                toml::from_str(body).map_err(|e| bad(&e))?
            }
            _ => Self::default(),
        };
        if options.systemd_cgroup {
            return Err(TaskError::InvalidArgument(
                "the runtime option SystemdCgroup is not supported by cryo: set it to false for this runtime, and cgroupDriver to cgroupfs".to_owned(),
            ));
        }
        Ok(options)
    }

    /// The owner of the streams of a container whose process is `user`.
    #[must_use]
    pub fn stdio_owner(&self, user: (u32, u32)) -> (u32, u32) {
        let or = |set: u32, else_: u32| if set == 0 { else_ } else { set };
        (or(self.io_uid, user.0), or(self.io_gid, user.1))
    }

    /// Where log and statistics of a restore go, if anywhere.
    #[must_use]
    pub fn criu_work(&self) -> Option<PathBuf> {
        (!self.criu_work_path.is_empty()).then(|| PathBuf::from(&self.criu_work_path))
    }
}

impl From<oci::Options> for RuntimeOptions {
    fn from(options: oci::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            systemd_cgroup: options.systemd_cgroup,
            criu_work_path: options.criu_work_path,
        }
    }
}

fn bad(error: &dyn std::fmt::Display) -> TaskError {
    TaskError::InvalidArgument(format!("the runtime options cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = value;
        any
    }

    fn generic(body: &str) -> Any {
        let generic = Generic {
            config_body: body.as_bytes().to_vec(),
            ..Generic::default()
        };
        any("runtimeoptions.v1.Options", generic.encode_to_vec())
    }

    #[test]
    fn both_types_say_the_same() {
        let mut runc = oci::Options::new();
        runc.no_new_keyring = true;
        runc.shim_cgroup = "/shims".to_owned();
        runc.io_uid = 7;
        let runc = any("containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
        let toml =
            generic("BinaryName = 'x'\nNoNewKeyring = true\nShimCgroup = '/shims'\nIoUid = 7\n");
        let options = RuntimeOptions::parse(Some(&runc)).unwrap();
        assert_eq!(options, RuntimeOptions::parse(Some(&toml)).unwrap());
        assert_eq!(options.stdio_owner((1, 2)), (7, 2));
        assert!(options.no_new_keyring && !options.no_pivot_root);
    }

    #[test]
    fn nothing_and_strangers_are_the_default() {
        assert_eq!(
            RuntimeOptions::parse(None).unwrap(),
            RuntimeOptions::default()
        );
        let other = any("x.y.Z", vec![1, 2, 3]);
        assert_eq!(
            RuntimeOptions::parse(Some(&other)).unwrap(),
            RuntimeOptions::default()
        );
    }

    #[test]
    fn bad_ones_and_systemd_are_refused() {
        for bad in [
            any("containerd.runc.v1.Options", vec![0xff]),
            any("runtimeoptions.v1.Options", vec![0xff]),
            generic("IoUid = 'seven'"),
            generic("SystemdCgroup = true"),
        ] {
            let error = RuntimeOptions::parse(Some(&bad)).unwrap_err();
            assert!(matches!(error, TaskError::InvalidArgument(_)), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(runc: bool, value: Vec<u8>) {
            let kind = if runc { "containerd.runc.v1.Options" } else { "runtimeoptions.v1.Options" };
            let _ = RuntimeOptions::parse(Some(&any(kind, value)));
        }
    }
}
