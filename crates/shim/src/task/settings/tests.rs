#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use containerd_shim_protos::shim::oci;
use cryo_criu::{Probe, Version};
use protobuf::Message as _;

use super::*;

fn any(type_url: &str, value: Vec<u8>) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = value;
    any
}

fn resolved(value: Vec<u8>) -> Result<Checkpoint, String> {
    let any = any("containerd.runc.v1.CheckpointOptions", value);
    let layer = CheckpointOptions::read(Some(&any))
        .and_then(|o| o.layer())
        .map_err(|e| e.to_string())?;
    let probe = Probe::new(Version::new(4, 2, 1));
    options::resolve(&[&layer], &probe).map_err(|e| e.to_string())
}

#[test]
fn every_field_of_the_request_is_heard() {
    let mut sent = oci::CheckpointOptions::new();
    sent.open_tcp = true;
    sent.external_unix_sockets = true;
    sent.terminal = true;
    sent.file_locks = true;
    sent.empty_namespaces = vec!["network".to_owned()];
    sent.cgroups_mode = "soft".to_owned();
    let got = resolved(sent.write_to_bytes().unwrap()).unwrap();
    let wanted = Checkpoint {
        tcp_established: true,
        ext_unix_sk: true,
        shell_job: true,
        file_locks: true,
        empty_netns: true,
        manage_cgroups: cryo_criu::request::CgMode::Soft,
        ..Checkpoint::default()
    };
    assert_eq!(got, wanted);
    assert_eq!(resolved(Vec::new()).unwrap(), Checkpoint::default());
    let none = CheckpointOptions::read(None).unwrap();
    assert_eq!(none, CheckpointOptions::default());

    // Field 10 is newer than the message we compile against.
    let parent = [&[82, 8][..], b"../first"].concat();
    let text = resolved(parent).unwrap_err();
    assert!(
        text.starts_with("CheckpointOptions.parent_path: ") && text.contains("SOFT_DIRTY"),
        "{text}"
    );
}

/// What containerd's message has no field for.
#[test]
fn options_come_by_their_names_too() {
    let send = |cryo: &[&str]| {
        let sent = CheckpointOptions {
            cryo: cryo.iter().map(|&o| o.to_owned()).collect(),
            ..CheckpointOptions::default()
        };
        resolved(sent.encode_to_vec())
    };
    let got = send(&["tcp-close=true", "ghost-limit=16M", "page-server=[::1]:9"]).unwrap();
    assert!(got.tcp_close && got.page_server.is_some());
    assert_eq!(got.ghost_limit_bytes, Some(16 << 20));
    let text = send(&["tcp-closed"]).unwrap_err();
    assert!(
        text.starts_with("checkpoint option tcp-closed: there is no such option"),
        "{text}"
    );
}

#[test]
fn what_a_request_cannot_mean_is_refused() {
    let mut sent = oci::CheckpointOptions::new();
    sent.empty_namespaces = vec!["ipc".to_owned()];
    let text = resolved(sent.write_to_bytes().unwrap()).unwrap_err();
    assert!(
        text.contains("CheckpointOptions.empty_namespaces: \"ipc\""),
        "{text}"
    );
    let mut sent = oci::CheckpointOptions::new();
    sent.cgroups_mode = "best".to_owned();
    let text = resolved(sent.write_to_bytes().unwrap()).unwrap_err();
    assert!(
        text.contains("cgroups_mode") && text.contains("strict"),
        "{text}"
    );
    for bad in [
        any("x.y.Z", Vec::new()),
        any("containerd.runc.v1.CheckpointOptions", vec![0xff]),
    ] {
        let error = CheckpointOptions::read(Some(&bad)).unwrap_err();
        assert!(matches!(error, TaskError::InvalidArgument(_)), "{error}");
    }
}

#[test]
fn annotations_are_judged_when_the_container_is_made() {
    let with = |name: &str, value: &str| {
        let mut spec = Spec::default();
        spec.set_annotations(Some(HashMap::from([(name.to_owned(), value.to_owned())])));
        Annotations::read(&spec)
    };
    for (name, value) in [
        ("checkpoint.cryo/no-such", "true"),
        ("checkpoint.cryo/file-locks", "maybe"),
        ("restore.cryo/no-such", "true"),
        ("restore.cryo/lsm-profile", "apparmor:x"),
    ] {
        let error = with(name, value).unwrap_err();
        assert!(
            matches!(&error, TaskError::InvalidArgument(t) if t.contains(name)),
            "{error}"
        );
    }
    assert!(with("org.criu.config", "/etc/evil.conf").is_ok());
    assert!(with("restore.cryo/tcp-close", "true").is_ok());
    assert!(Annotations::read(&Spec::default()).is_ok());
}

#[test]
fn only_a_network_of_its_own_can_be_empty() {
    let spec = |network: serde_json::Value| -> Spec {
        let spec = serde_json::json!({"ociVersion": "1.2.0", "linux": {"namespaces": [network]}});
        serde_json::from_value(spec).unwrap()
    };
    let own = spec(serde_json::json!({"type": "network"}));
    let pods = spec(serde_json::json!({"type": "network", "path": "/proc/1/ns/net"}));
    let nodes = spec(serde_json::json!({"type": "pid"}));
    assert!(check_empty_netns(true, &own).is_ok());
    for other in [pods, nodes] {
        assert!(check_empty_netns(false, &other).is_ok());
        let error = check_empty_netns(true, &other).unwrap_err();
        assert!(error.to_string().contains("empty-ns"), "{error}");
    }
}

#[test]
fn an_lsm_that_is_not_in_use_is_named() {
    let profile = Restore {
        lsm_profile: Some("apparmor:p".to_owned()),
        ..Restore::default()
    };
    let context = Restore {
        lsm_mount_context: Some("c".to_owned()),
        ..Restore::default()
    };
    assert!(check_lsm(&Restore::default(), |_| false).is_ok());
    for (options, lsm) in [(&profile, "apparmor"), (&context, "selinux")] {
        assert!(check_lsm(options, |in_use| in_use == lsm).is_ok());
        let text = check_lsm(options, |_| false).unwrap_err().to_string();
        assert!(
            text.contains(lsm) && text.starts_with("[restore] lsm-"),
            "{text}"
        );
    }
}
