//! The runtime's options: what containerd's configuration says about a runtime.
//!
//! They come as `containerd.runc.v1.Options` (under the name
//! `io.containerd.runc.v2`, and from clients such as `ctr`) or as
//! `runtimeoptions.v1.Options`, which carries the same keys as TOML. They are
//! of the node's owner, not of whoever makes a pod.
//!
//! What cryo does with each of them is in `docs/configuration.md`, which a test
//! here compares with the fields of `containerd.runc.v1.Options`.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

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
    /// Where state is, instead of `/run/cryo`.
    pub root: String,
    /// Options of a restore, as `NAME=VALUE`. Of a request alone, so of no TOML.
    #[serde(skip)]
    pub restore: Vec<String>,
}

/// The file of a `ConfigPath` is at most this long.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The field that `containerd.runc.v1.Options` has for us: containerd passes on what it does not
/// know.
#[derive(Clone, PartialEq, prost::Message)]
struct Extension {
    #[prost(string, repeated, tag = "7601")]
    cryo: Vec<String>,
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

impl Generic {
    /// The options' TOML: in the message, or in the file that it names.
    fn body(self) -> Result<Vec<u8>, TaskError> {
        if !self.config_body.is_empty() || self.config_path.is_empty() {
            return Ok(self.config_body);
        }
        let mut body = Vec::new();
        File::open(&self.config_path)
            .and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut body))
            .map_err(|e| {
                TaskError::io(
                    format_args!("cannot read the runtime options of {}", self.config_path),
                    &e,
                )
            })?;
        Ok(body)
    }
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
            Some("containerd.runc.v1.Options") => Self {
                restore: Extension::decode(&*any.value).map_err(|e| bad(&e))?.cryo,
                ..oci::Options::parse_from_bytes(&any.value)
                    .map(Self::from)
                    .map_err(|e| bad(&e))?
            },
            Some("runtimeoptions.v1.Options") => {
                let generic = Generic::decode(&*any.value).map_err(|e| bad(&e))?;
                let body = generic.body()?;
                let body = std::str::from_utf8(&body).map_err(|e| bad(&e))?;
                toml::from_str(body).map_err(|e| bad(&e))?
            }
            _ => Self::default(),
        };
        if let Some(root) = options.state_root() {
            let plain = |c| matches!(c, Component::RootDir | Component::Normal(_));
            if !root.is_absolute() || !root.components().all(plain) || root.parent().is_none() {
                return Err(TaskError::InvalidArgument(format!(
                    "the runtime option Root {:?} is not possible: name an absolute path without .., other than /",
                    options.root
                )));
            }
        }
        Ok(options)
    }

    /// Where state is to be, if the options say.
    #[must_use]
    pub fn state_root(&self) -> Option<&Path> {
        (!self.root.is_empty()).then(|| Path::new(&self.root))
    }

    /// The owner of a process's streams, by its user in the container and what
    /// that is outside. containerd names the container's root; another user
    /// owns the streams as with runc, so as to open them again.
    #[must_use]
    pub fn stdio_owner(&self, inside: (u32, u32), outside: (u32, u32)) -> (u32, u32) {
        let or = |set: u32, else_: u32| if set == 0 { else_ } else { set };
        let uid = if inside.0 == 0 {
            or(self.io_uid, outside.0)
        } else {
            outside.0
        };
        (uid, or(self.io_gid, outside.1))
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
            root: options.root,
            restore: Vec::new(),
        }
    }
}

fn bad(error: &dyn std::fmt::Display) -> TaskError {
    TaskError::InvalidArgument(format!("the runtime options cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use protobuf::MessageFull as _;

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

    /// Field by field: runc's form, the TOML of the generic one, and what it does.
    type Row = (fn(&mut oci::Options), &'static str, fn(&mut RuntimeOptions));

    #[test]
    fn every_field_has_the_same_effect_in_both_types() {
        let table: [Row; 13] = [
            (
                |o| o.no_pivot_root = true,
                "NoPivotRoot = true",
                |w| {
                    w.no_pivot_root = true;
                },
            ),
            (
                |o| o.no_new_keyring = true,
                "NoNewKeyring = true",
                |w| {
                    w.no_new_keyring = true;
                },
            ),
            (
                |o| o.shim_cgroup = "/s".into(),
                "ShimCgroup = '/s'",
                |w| {
                    w.shim_cgroup = "/s".into();
                },
            ),
            (|o| o.io_uid = 7, "IoUid = 7", |w| w.io_uid = 7),
            (|o| o.io_gid = 8, "IoGid = 8", |w| w.io_gid = 8),
            (
                |o| o.root = "/r/x".into(),
                "Root = '/r/x'",
                |w| {
                    w.root = "/r/x".into();
                },
            ),
            (
                |o| o.criu_work_path = "/w".into(),
                "CriuWorkPath = '/w'",
                |w| {
                    w.criu_work_path = "/w".into();
                },
            ),
            (
                |o| o.systemd_cgroup = true,
                "SystemdCgroup = true",
                |w| {
                    w.systemd_cgroup = true;
                },
            ),
            // Without effect.
            (|o| o.binary_name = "x".into(), "BinaryName = 'x'", |_| {}),
            (
                |o| o.criu_image_path = "/i".into(),
                "CriuImagePath = '/i'",
                |_| {},
            ),
            (
                |o| o.task_api_address = "a".into(),
                "TaskApiAddress = 'a'",
                |_| {},
            ),
            (|o| o.task_api_version = 3, "TaskApiVersion = 3", |_| {}),
            (|_| {}, "Whatever = { is = 'new' }", |_| {}),
        ];
        for (set, toml, expect) in table {
            let mut runc = oci::Options::new();
            set(&mut runc);
            let runc = any("containerd.runc.v1.Options", runc.write_to_bytes().unwrap());
            let mut wanted = RuntimeOptions::default();
            expect(&mut wanted);
            assert_eq!(
                RuntimeOptions::parse(Some(&runc)).unwrap(),
                wanted,
                "{toml}"
            );
            let parsed = RuntimeOptions::parse(Some(&generic(toml))).unwrap();
            assert_eq!(parsed, wanted, "{toml}");
        }
    }

    #[test]
    fn every_field_is_documented() {
        let docs = include_str!("../../../docs/configuration.md");
        let (_, section) = docs.split_once("## Options of the runtime").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        for field in oci::Options::descriptor().fields() {
            let name: String = field
                .name()
                .split('_')
                .map(|word| word[..1].to_uppercase() + &word[1..])
                .collect();
            assert!(section.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn options_of_a_restore_come_beside_those_of_runc() {
        let mut value = oci::Options::new();
        value.root = "/r".to_owned();
        let mut value = value.write_to_bytes().unwrap();
        let cryo = vec!["tcp-close=true".to_owned(), "auto-dedup=true".to_owned()];
        value.extend(Extension { cryo: cryo.clone() }.encode_to_vec());
        let options = RuntimeOptions::parse(Some(&any("containerd.runc.v1.Options", value)));
        let wanted = RuntimeOptions {
            root: "/r".to_owned(),
            restore: cryo,
            ..RuntimeOptions::default()
        };
        assert_eq!(options.unwrap(), wanted);
    }

    #[test]
    fn a_config_path_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "IoUid = 9\n").unwrap();
        let mut message = Generic {
            config_path: file.path().to_str().unwrap().to_owned(),
            ..Generic::default()
        };
        let parse = |message: &Generic| {
            RuntimeOptions::parse(Some(&any(
                "runtimeoptions.v1.Options",
                message.encode_to_vec(),
            )))
        };
        assert_eq!(parse(&message).unwrap().io_uid, 9);
        message.config_body = b"IoUid = 1".to_vec();
        assert_eq!(parse(&message).unwrap().io_uid, 1, "the body comes first");
        message.config_body.clear();
        message.config_path = "/nonexistent/options.toml".to_owned();
        let text = parse(&message).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/options.toml"), "{text}");
    }

    #[test]
    fn stream_owners() {
        let options = |io_uid, io_gid| RuntimeOptions {
            io_uid,
            io_gid,
            ..RuntimeOptions::default()
        };
        assert_eq!(options(0, 0).stdio_owner((0, 2), (1, 2)), (1, 2));
        assert_eq!(options(7, 0).stdio_owner((0, 2), (100, 102)), (7, 102));
        assert_eq!(options(7, 0).stdio_owner((1, 2), (101, 102)), (101, 102));
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
    fn bad_ones_are_refused() {
        for bad in [
            any("containerd.runc.v1.Options", vec![0xff]),
            any("runtimeoptions.v1.Options", vec![0xff]),
            generic("IoUid = 'seven'"),
            generic("Root = 'relative'"),
            generic("Root = '/a/../b'"),
            generic("Root = '/'"),
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
