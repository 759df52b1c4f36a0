//! Archives of pods: each command takes one of their containers.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fixture::{Files, container};

/// The files as a tar archive of no container.
fn tar(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, &**bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// `pod.tar` has the directories `web` and `later`, `archives.tar` the archives of the same
/// names, `unpacked` is the first unpacked; `alone.tar` and the directory `alone` are of one
/// container.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let containers = [("later", container::later()), ("web", container::archive())];
    let (mut pod, mut archives) = (Files::new(), Files::new());
    for (name, files) in &containers {
        archives.insert(format!("{name}.tar"), fixture::tar(files));
        for (file, bytes) in files {
            pod.insert(format!("{name}/{file}"), bytes.clone());
        }
    }
    fs::write(path.join("pod.tar"), tar(&pod)).unwrap();
    fs::write(path.join("archives.tar"), tar(&archives)).unwrap();
    fixture::write(&path.join("unpacked"), &pod);
    let alone = fixture::tar(&container::archive());
    fs::write(path.join("alone.tar"), alone).unwrap();
    fixture::write(&path.join("alone"), &container::archive());
    directory
}

fn cryoctl(directory: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(line.split(' '))
        .current_dir(directory)
        .output()
        .unwrap()
}

/// Each command with a checkpoint, which stands where `@` is.
const COMMANDS: [&str; 10] = [
    "summary @",
    "memparse @",
    "memparse --pid 1 @",
    "memparse --search secret @",
    "core --pid 1 --output OUT @",
    "diff --memory @ @",
    "verify @",
    "convert --to podman @ OUT",
    "build @ oci:OUT",
    "restore @",
];

#[test]
fn a_container_is_named() {
    let directory = directory();
    let path = directory.path();
    for command in COMMANDS {
        for pod in ["pod.tar", "archives.tar", "unpacked"] {
            // What `restore` says of a directory is told apart below.
            if command.starts_with("restore") && pod == "unpacked" {
                continue;
            }
            let line = command.replace('@', pod);
            let several = cryoctl(path, &line);
            let text = String::from_utf8(several.stderr).unwrap();
            assert_eq!(several.status.code(), Some(1), "{line}: {text}");
            let wanted =
                "is of a pod with several containers: name one by --container: later, web\n";
            assert!(text.ends_with(wanted), "{line}: {text}");
            assert!(
                several.stdout.is_empty() && !path.join("OUT").exists(),
                "{line}"
            );

            let other = cryoctl(path, &format!("{line} --container we"));
            let text = String::from_utf8(other.stderr).unwrap();
            assert_eq!(other.status.code(), Some(1), "{line}: {text}");
            assert!(
                text.ends_with("has no container we: there are later, web\n"),
                "{line}: {text}"
            );
        }
        let line = command.replace('@', "alone.tar") + " --container web";
        let text = String::from_utf8(cryoctl(path, &line).stderr).unwrap();
        assert!(
            text.ends_with("of no pod: leave --container out\n"),
            "{line}: {text}"
        );
    }
}

#[test]
fn the_one_that_is_named_is_taken() {
    let directory = directory();
    let path = directory.path();
    for command in ["show @", "inspect --all @"].iter().chain(&COMMANDS) {
        if command.starts_with("restore") {
            continue;
        }
        // What is unpacked has its entries in another order.
        let archives = ["alone.tar", "pod.tar", "archives.tar"].as_slice();
        let forms = [archives, &["alone", "unpacked"]];
        let forms = forms.iter().flat_map(|forms| forms.iter().zip(0..));
        let mut expected = None;
        for (form, number) in forms {
            let flag = if number == 0 { "" } else { " --container web" };
            if number == 0 {
                expected = None;
            }
            let line = command.replace('@', form) + flag;
            let found = cryoctl(path, &line);
            let text = String::from_utf8(found.stdout).unwrap();
            // The pages of this one are not whole, which `verify` is there to say.
            let code = i32::from(command.starts_with("verify"));
            let errors = String::from_utf8_lossy(&found.stderr);
            assert_eq!(found.status.code(), Some(code), "{line}: {text} {errors}");
            // Names of files and forms are other ones.
            let lines = text
                .lines()
                .filter(|line| !line.contains(form) && !line.starts_with("form:"));
            let lines: Vec<_> = lines.map(str::to_owned).collect();
            let made =
                fs::read(path.join("OUT")).or_else(|_| fs::read(path.join("OUT/index.json")));
            let result = (lines, made.ok());
            let same = *expected.get_or_insert(result.clone()) == result;
            assert!(same, "{line}: {:?}", result.0);
            let out = path.join("OUT");
            if out.is_dir() {
                fs::remove_dir_all(&out).unwrap();
            } else if out.exists() {
                fs::remove_file(&out).unwrap();
            }
        }
    }
}
