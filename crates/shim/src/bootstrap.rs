//! `start`: what containerd says, what it is told, and the birth of the long-lived shim.
//!
//! This module is the pure half: bytes in, decisions out. [`socket`] holds the listening socket
//! and its lock, [`daemon`] finds out which containerd is asking, [`start()`] does the work.
//!
//! | containerd | stdin of `start` | answer it understands |
//! |---|---|---|
//! | 1.7 | `Any` of options, or nothing | JSON version 2; version 3 is an error |
//! | 2.0 - 2.2 | the same | JSON version 3 |
//! | 2.3 and later | `BootstrapParams` | protobuf, or JSON version 3 |
//!
//! So the answer is JSON version 3 for all but 1.7 (`{` is no valid start of a protobuf message,
//! hence safe with 2.3). Between 1.7 and 2.0 **nothing in the arguments or the environment
//! differs**: `runtime/v2/shim/util.go` of v1.7.30 and `pkg/shim/util.go` of v2.0.0 are the same
//! but for import paths and for `SCHED_CORE=1`, which 1.7 sets only if configured and 2.x can set
//! too; `MAX_SHIM_VERSION` is 2 in every release. Nor does one answer suit both: the struct and
//! the JSON decoder are the same, and version 2 told to a 2.x daemon would make it run `start`
//! for each container of a pod. What does differ is the daemon's own executable, which names its
//! Go module; see [`daemon`]. Undecided means 2.x.
//!
//! containerd 1.7 also wants a file `address` in each bundle, which it reads after a restart
//! (v1.7.30 `runtime/v2/shim.go` `loadShim`); 2.x writes its own `bootstrap.json` instead.

use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tracing::level_filters::LevelFilter;

use crate::args::Flags;

pub mod daemon;
pub mod socket;
pub mod start;

pub use daemon::Daemon;
pub use start::{
    DEFAULT_SOCKET_DIR, StartEnv, StartError, socket_dir_of, start, state_root_of,
    write_shim_binary_path,
};

/// stdin of `start` is at most this long; options are a few hundred bytes.
pub const MAX_STDIN_BYTES: usize = 4 << 20;

/// Annotations that name the group a container belongs to, the stronger one first.
pub const GROUP_ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// In which form containerd talked to `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing on stdin: containerd up to 2.2, no options configured.
    Flags,
    /// An `Any` on stdin: containerd up to 2.2.
    Options,
    /// `BootstrapParams` on stdin: containerd 2.3 and later.
    Bootstrap,
}

/// All that containerd told `start`, whichever way it did.
#[derive(Debug, Clone, PartialEq)]
pub struct StartParams {
    /// How it was told.
    pub protocol: Protocol,
    /// The container or sandbox.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The level to log at.
    pub log_level: LevelFilter,
    /// The daemon's version, known from 2.3 on.
    pub containerd_version: Option<String>,
    /// Where the daemon takes events.
    pub ttrpc_address: String,
    /// The daemon's gRPC address; part of the socket's name.
    pub grpc_address: String,
    /// The daemon's binary.
    pub containerd_binary: PathBuf,
    /// Where the daemon wants the socket, if it says (2.3).
    pub socket_dir: Option<PathBuf>,
    /// The runtime's options, of whatever type.
    pub options: Option<Any>,
    /// Extensions that are not options.
    pub extensions: Vec<Any>,
}

/// Why the input of `start` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// More than [`MAX_STDIN_BYTES`].
    #[error("stdin of start is longer than {MAX_STDIN_BYTES} bytes: this is not containerd")]
    TooLong,
    /// Neither message.
    #[error(
        "stdin of start is neither BootstrapParams nor an Any of options: is this containerd newer than cryo knows?"
    )]
    Unreadable,
    /// Parameters of somebody else.
    #[error(
        "stdin of start is about {stdin}, the flags are about {flags}: containerd mixed up two starts"
    )]
    Identity {
        /// `namespace/id` of the message.
        stdin: String,
        /// `namespace/id` of the flags.
        flags: String,
    },
    /// `config.json` of the bundle is no OCI spec.
    #[error("config.json is not an OCI spec: {0}")]
    Spec(String),
}

/// Reads the stdin of `start`.
///
/// An `Any` also decodes as `BootstrapParams` (its type_url lands in instance_id), so the latter
/// counts only if it is about the same container as the flags.
///
/// # Errors
///
/// [`ParamsError`]; never for empty input.
pub fn parse_stdin(
    stdin: &[u8],
    flags: &Flags,
    env_ttrpc_address: &str,
) -> Result<StartParams, ParamsError> {
    if stdin.len() > MAX_STDIN_BYTES {
        return Err(ParamsError::TooLong);
    }
    let mut params = StartParams {
        protocol: Protocol::Flags,
        id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        log_level: if flags.debug {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        },
        containerd_version: None,
        ttrpc_address: env_ttrpc_address.to_owned(),
        grpc_address: flags.address.clone(),
        containerd_binary: flags.publish_binary.clone(),
        socket_dir: None,
        options: None,
        extensions: Vec::new(),
    };
    if stdin.is_empty() {
        return Ok(params);
    }

    let boot = BootstrapParams::parse_from_bytes(stdin).ok();
    match boot {
        Some(boot) if boot.instance_id == flags.id && boot.namespace == flags.namespace => {
            params.take(boot);
            return Ok(params);
        }
        // No options message reaches field 4, so this is a stranger's BootstrapParams.
        Some(boot)
            if !boot.containerd_version.is_empty() || !boot.containerd_grpc_address.is_empty() =>
        {
            return Err(ParamsError::Identity {
                stdin: format!("{}/{}", boot.namespace, boot.instance_id),
                flags: format!("{}/{}", flags.namespace, flags.id),
            });
        }
        _ => {}
    }
    match Any::parse_from_bytes(stdin) {
        Ok(any) if !any.type_url.is_empty() => {
            params.protocol = Protocol::Options;
            params.options = Some(any);
            Ok(params)
        }
        _ => Err(ParamsError::Unreadable),
    }
}

impl StartParams {
    fn take(&mut self, boot: BootstrapParams) {
        let or = |new: String, old: &str| if new.is_empty() { old.to_owned() } else { new };
        self.protocol = Protocol::Bootstrap;
        // -debug is still sent by 2.3; the more talkative of the two wins.
        self.log_level = level(boot.log_level.value()).max(self.log_level);
        self.containerd_version =
            Some(boot.containerd_version).filter(|version| !version.is_empty());
        self.ttrpc_address = or(boot.containerd_ttrpc_address, &self.ttrpc_address);
        self.grpc_address = or(boot.containerd_grpc_address, &self.grpc_address);
        if !boot.containerd_binary.is_empty() {
            self.containerd_binary = boot.containerd_binary.into();
        }
        self.socket_dir = boot
            .socket_dir
            .filter(|dir| !dir.is_empty())
            .map(Into::into);
        for extension in boot.extensions {
            let Some(any) = extension.value.into_option() else {
                continue;
            };
            if self.options.is_none() && is_options(&any.type_url) {
                self.options = Some(any);
            } else {
                self.extensions.push(any);
            }
        }
    }
}

/// Whether an extension is the runtime's options: runc's, or the generic ones.
fn is_options(type_url: &str) -> bool {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    matches!(
        name,
        "containerd.runc.v1.Options" | "runtimeoptions.v1.Options"
    )
}

/// The nearest level of an open enum (TRACE -8, DEBUG -4, INFO 0, WARN 4, ERROR 8, worse above).
fn level(number: i32) -> LevelFilter {
    match number {
        ..=-7 => LevelFilter::TRACE,
        -6..=-3 => LevelFilter::DEBUG,
        -2..=1 => LevelFilter::INFO,
        2..=5 => LevelFilter::WARN,
        6.. => LevelFilter::ERROR,
    }
}

/// The group a container belongs to: containers of a group share one shim.
///
/// # Errors
///
/// [`ParamsError::Spec`] if `config_json` is not JSON of the expected shape.
pub fn group_of(config_json: &[u8], id: &str) -> Result<String, ParamsError> {
    #[derive(Deserialize)]
    struct Shallow {
        annotations: Option<HashMap<String, String>>,
    }
    let spec: Shallow = serde_json::from_slice(config_json)
        .map_err(|error| ParamsError::Spec(error.to_string()))?;
    Ok(group_in(spec.annotations.as_ref(), id))
}

/// As [`group_of`], for who has the spec's annotations already.
#[must_use]
pub fn group_in(annotations: Option<&HashMap<String, String>>, id: &str) -> String {
    GROUP_ANNOTATIONS
        .iter()
        .find_map(|key| annotations?.get(*key))
        .filter(|group| !group.is_empty())
        .map_or_else(|| id.to_owned(), Clone::clone)
}

/// The answer of `start`, complete and alone on stdout.
#[must_use]
pub fn answer(address: &str, daemon: Daemon) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        version: u32,
        address: &'a str,
        protocol: &'static str,
    }
    let answer = Answer {
        version: match daemon {
            Daemon::V1 => 2,
            Daemon::V2 | Daemon::Unknown => 3,
        },
        address,
        protocol: "ttrpc",
    };
    // Three plain fields cannot fail to serialize.
    serde_json::to_string(&answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flags() -> Flags {
        Flags {
            id: "c1".into(),
            namespace: "k8s.io".into(),
            address: "/run/c.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            ..Flags::default()
        }
    }

    /// The wire form, written out by hand so that a changed field number cannot hide.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }

    fn golden_params() -> Vec<u8> {
        let mut wire = [field(1, b"c1"), field(2, b"k8s.io")].concat();
        wire.extend([
            3 << 3,
            0xfc,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0x01,
        ]); // -4
        wire.extend(field(4, b"2.3.4"));
        wire.extend(field(5, b"/run/c.sock.ttrpc"));
        wire.extend(field(6, b"/run/c.sock"));
        wire.extend(field(7, b"/opt/containerd"));
        let other = [field(1, b"containerd.io/cri.v1.Thing"), field(2, b"z")].concat();
        let options = [
            field(1, b"containerd.runc.v1.Options"),
            field(2, b"\x08\x01"),
        ]
        .concat();
        wire.extend(field(8, &field(1, &other)));
        wire.extend(field(8, &field(1, &options)));
        wire.extend(field(9, b"/run/s"));
        wire
    }

    #[test]
    fn golden_bootstrap_params() {
        let params = parse_stdin(&golden_params(), &flags(), "ignored").unwrap();
        assert_eq!(params.protocol, Protocol::Bootstrap);
        assert_eq!(params.log_level, LevelFilter::DEBUG);
        assert_eq!(params.containerd_version.as_deref(), Some("2.3.4"));
        assert_eq!(params.ttrpc_address, "/run/c.sock.ttrpc");
        assert_eq!(params.grpc_address, "/run/c.sock");
        assert_eq!(params.containerd_binary, PathBuf::from("/opt/containerd"));
        assert_eq!(params.socket_dir, Some("/run/s".into()));
        let options = params.options.unwrap();
        assert_eq!(options.type_url, "containerd.runc.v1.Options");
        assert_eq!(options.value, [8, 1]);
        assert_eq!(params.extensions.len(), 1);
    }

    #[test]
    fn golden_options() {
        let wire = [
            field(1, b"containerd.runc.v1.Options"),
            field(2, b"\x08\x01"),
        ]
        .concat();
        let params = parse_stdin(&wire, &flags(), "/run/t").unwrap();
        assert_eq!(params.protocol, Protocol::Options);
        assert_eq!(params.ttrpc_address, "/run/t");
        assert_eq!(params.grpc_address, "/run/c.sock");
        assert_eq!(params.options.unwrap().value, [8, 1]);
    }

    #[test]
    fn golden_nothing() {
        let params = parse_stdin(b"", &flags(), "/run/t").unwrap();
        assert_eq!(params.protocol, Protocol::Flags);
        assert_eq!(params.options, None);
        assert_eq!(params.log_level, LevelFilter::INFO);
    }

    #[test]
    fn strangers_and_garbage() {
        let mut other = flags();
        other.id = "c2".into();
        let error = parse_stdin(&golden_params(), &other, "").unwrap_err();
        assert_eq!(
            error,
            ParamsError::Identity {
                stdin: "k8s.io/c1".into(),
                flags: "k8s.io/c2".into()
            }
        );
        for bad in [b"{}".as_slice(), b"\x07", &[0xff; 9], &field(2, b"no type")] {
            assert_eq!(
                parse_stdin(bad, &flags(), ""),
                Err(ParamsError::Unreadable),
                "{bad:?}"
            );
        }
        assert_eq!(
            parse_stdin(&vec![0; MAX_STDIN_BYTES + 1], &flags(), ""),
            Err(ParamsError::TooLong)
        );
    }

    #[test]
    fn levels_are_an_open_enum() {
        for (number, want) in [
            (i32::MIN, LevelFilter::TRACE),
            (-8, LevelFilter::TRACE),
            (-5, LevelFilter::DEBUG),
            (0, LevelFilter::INFO),
            (4, LevelFilter::WARN),
            (8, LevelFilter::ERROR),
            (12, LevelFilter::ERROR),
            (i32::MAX, LevelFilter::ERROR),
        ] {
            assert_eq!(level(number), want, "{number}");
        }
    }

    #[test]
    fn grouping() {
        let group = |json: &str| group_of(json.as_bytes(), "c1").unwrap();
        assert_eq!(group("{}"), "c1");
        assert_eq!(group(r#"{"annotations":null}"#), "c1");
        assert_eq!(
            group(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#),
            "pod"
        );
        assert_eq!(
            group(
                r#"{"ociVersion":"1.2.0","annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#
            ),
            "g"
        );
        assert_eq!(
            group(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":""}}"#),
            "c1"
        );
        assert!(group_of(b"[]", "c1").is_err() && group_of(b"", "c1").is_err());
    }

    #[test]
    fn golden_answers() {
        assert_eq!(
            answer("unix:///run/s/x", Daemon::V2),
            r#"{"version":3,"address":"unix:///run/s/x","protocol":"ttrpc"}"#
        );
        assert_eq!(
            answer("unix:///run/s/x", Daemon::Unknown),
            answer("unix:///run/s/x", Daemon::V2)
        );
        assert_eq!(
            answer("unix:///run/s/x", Daemon::V1),
            r#"{"version":2,"address":"unix:///run/s/x","protocol":"ttrpc"}"#
        );
        // containerd 2.3 tries protobuf first: the answer must not decode as its message.
        let json = answer("unix:///run/s/x", Daemon::V2);
        assert!(
            containerd_shim_protos::bootstrap_api::BootstrapResult::parse_from_bytes(
                json.as_bytes()
            )
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse_stdin(&bytes, &flags(), "");
            let _ = group_of(&bytes, "c1");
        }

        #[test]
        fn damaged_params_never_panic(at in 0usize..150, byte: u8) {
            let mut wire = golden_params();
            let at = at % wire.len();
            wire[at] = byte;
            if let Ok(params) = parse_stdin(&wire, &flags(), "") {
                prop_assert_eq!(params.id, "c1");
            }
        }

        #[test]
        fn options_survive(type_url in "[a-z.]{1,40}", value in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assume!(type_url != "c1");
            let any = Any { type_url, value, ..Any::default() };
            let params = parse_stdin(&any.write_to_bytes().unwrap(), &flags(), "").unwrap();
            prop_assert_eq!(params.options, Some(any));
        }
    }
}
