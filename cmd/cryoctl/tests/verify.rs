//! What `cryoctl verify` tells of the node that a checkpoint was made on.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::process::Command;

use cryo_criu_image::{Kind, msg};
use serde_json::{Value, json};

const LOG: &str = "(00.000000) Version: 4.2.1 (gitid 0)\n\
    (00.000001) Running on node-a Linux 6.18.5-amd64 #1 SMP x86_64\n";

/// Has sse2, avx2 and avx512f.
fn cpuinfo() -> Vec<u8> {
    let mut capability = vec![0; 19];
    capability[0] = 1 << 26;
    capability[9] = 1 << 5 | 1 << 16;
    let x86 = msg::CpuinfoX86Entry {
        capability_ver: Some(2),
        capability,
        model_id: Some(b"AMD \x1b[2JEPYC".to_vec()),
    };
    let entry = msg::CpuinfoEntry {
        x86_entry: vec![x86],
    };
    fixture::image(Kind::Cpuinfo, &[entry])
}

/// A node as `node-info` has it.
fn node(name: &str, features: &[&str], criu: &str, kernel: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .arg("node-info")
        .output()
        .unwrap();
    let mut node: Value = serde_json::from_slice(&output.stdout).unwrap();
    node["hostname"] = name.into();
    node["cpu"]["features"] = features.into();
    node["kernel"]["release"] = kernel.into();
    node["criu"] = json!({
        "path": "/usr/sbin/criu", "version": criu, "memory_tracking": false, "lazy_pages": true,
        "pidfd_store": true,
    });
    node
}

/// Severity and text of the findings of some names, joined.
fn told(directory: &Path, node: &Value, flags: &[&str]) -> Vec<String> {
    fs::write(directory.join("node.json"), node.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args([
            "verify",
            "cp.tar",
            "--node",
            "node.json",
            "--format",
            "json",
        ])
        .args(flags)
        .current_dir(directory)
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = ["processor-origin", "criu", "kernel", "origin"];
    let findings = said["findings"].as_array().unwrap().iter();
    let text = |finding: &Value, key| finding[key].as_str().unwrap().to_owned();
    findings
        .filter(|finding| wanted.contains(&finding["name"].as_str().unwrap()))
        .map(|finding| text(finding, "severity") + ": " + &text(finding, "text"))
        .collect()
}

fn directory(change: impl FnOnce(&mut fixture::Files)) -> tempfile::TempDir {
    let mut files = fixture::archive();
    files.insert("checkpoint/cpuinfo.img".into(), cpuinfo());
    files.insert("dump.log".into(), LOG.into());
    change(&mut files);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cp.tar"), fixture::tar(&files)).unwrap();
    directory
}

#[test]
fn a_checkpoint_says_what_it_was_made_on() {
    let directory = directory(|_| {});
    let path = directory.path();
    let all = ["sse2", "avx2", "avx512f"];
    let same = node("b", &all, "4.2.1", "6.18.1");
    let fits = told(path, &same, &[]);
    assert!(fits.iter().all(|f| f.starts_with("ok: ")), "{fits:?}");

    let lesser = node("b", &["sse2"], "4.1", "6.1.0");
    assert_eq!(
        told(path, &lesser, &[]),
        [
            "warning: AMD \u{1b}[2JEPYC has avx2, avx512f, and the node has not",
            "warning: it was made by criu 4.2.1, and the node has 4.1",
            "warning: it was made on Linux 6.18.5-amd64, and the node has 6.1.0",
        ]
    );
    // What its node says goes before.
    let origin = node("a", &["sse2", "fma", "hypervisor"], "4.0", "5.10");
    fs::write(path.join("origin.json"), origin.to_string()).unwrap();
    let found = told(path, &lesser, &["--origin", "origin.json"]);
    assert_eq!(found[0], "warning: a has fma, and the node has not");
    assert!(
        found[1..].iter().all(|f| f.starts_with("ok: ")),
        "{found:?}"
    );

    // No control character of a checkpoint gets to a terminal.
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(["verify", "cp.tar", "--node", "node.json"])
        .current_dir(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("EPYC") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn one_that_does_not_say_or_is_damaged() {
    let lesser = node("b", &["sse2"], "4.1", "6.1.0");
    let silent = directory(|files| {
        files.remove("checkpoint/cpuinfo.img");
        files.insert("dump.log".into(), vec![0xff; 100_000]);
    });
    let found = told(silent.path(), &lesser, &[]);
    assert!(
        found[0].starts_with("note: ") && found[0].contains("--origin"),
        "{found:?}"
    );
    assert!(
        found[1..].iter().all(|f| f.starts_with("ok: ")),
        "{found:?}"
    );

    let damaged = directory(|files| {
        files
            .get_mut("checkpoint/cpuinfo.img")
            .unwrap()
            .truncate(20);
    });
    let found = told(damaged.path(), &lesser, &[]);
    assert!(
        found[0].starts_with("warning: ") && found[0].contains("cpuinfo.img"),
        "{found:?}"
    );
}
