//! The program as it is run: stdout, stderr and exit code.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use fixture::Files;

/// What a run left behind. The directory's path reads `DIR` in it.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

#[must_use]
fn cryoctl(directory: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(directory.to_str().unwrap(), "DIR")
    };
    Outcome {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Makes an image directory `cp`, spoils it, and summarises it.
#[must_use]
fn spoiled(files: &Files, spoil: impl FnOnce(&Path)) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("cp");
    fixture::write(&images, files);
    spoil(&images);
    cryoctl(directory.path(), ["summary", "cp"])
}

#[must_use]
fn failed(stderr: &str) -> Outcome {
    Outcome {
        code: Some(1),
        stdout: String::new(),
        stderr: stderr.to_owned(),
    }
}

#[test]
fn an_archive() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("cp.tar"),
        fixture::tar(&fixture::archive()),
    )
    .unwrap();
    let outcome = cryoctl(directory.path(), ["summary", "cp.tar"]);
    let total: usize = fixture::archive().values().map(Vec::len).sum();
    let expected = format!(
        "\
container:    looper
id:           68bb2fa6a176
pod:          pod1
namespace:    ns1
image:        docker.io/library/busybox:latest
runtime:      io.containerd.runc.v2
created:      2026-03-13T21:42:59Z
checkpointed: 2026-03-13T21:43:06Z
engine:       containerd
form:         archive
size:         {:.1} KiB
memory:       12.0 KiB
rootfs diff:  100 B
freezing:     836 µs
frozen:       147.7 ms
memory dump:  18.7 ms
memory write: 753 µs
pages:        261 scanned, 3 written
processes:
  [1] sh
    [7] python3 (stopped, 2 threads)
    [9] sleep (dead)
",
        total as f64 / 1024.0
    );
    assert_eq!(
        outcome,
        Outcome {
            code: Some(0),
            stdout: expected,
            stderr: String::new()
        }
    );
}

#[test]
fn an_image_directory_and_its_statistics() {
    let directory = tempfile::tempdir().unwrap();
    fixture::write(&directory.path().join("cp"), &fixture::images());
    let outcome = cryoctl(directory.path(), ["summary", "cp"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    assert!(
        outcome.stdout.starts_with("form:       image directory\n"),
        "{}",
        outcome.stdout
    );
    assert!(
        outcome
            .stdout
            .contains("statistics: none; name their file by --stats\n")
    );

    fs::write(directory.path().join("stats-dump"), fixture::stats()).unwrap();
    let arguments = ["summary", "cp", "--stats", "stats-dump", "--format", "json"];
    let outcome = cryoctl(directory.path(), arguments);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["form"], "image-directory");
    assert_eq!(json["container"], serde_json::Value::Null);
    assert_eq!(json["size"]["memory_bytes"], 3 * 4096);
    assert_eq!(json["dump"]["frozen_time_us"], 147_720);
    assert_eq!(
        json["processes"][1],
        serde_json::json!({"pid": 7, "ppid": 1, "command": "python3", "state": "stopped", "threads": 2})
    );

    let outcome = cryoctl(
        directory.path(),
        ["summary", "cp", "--stats", "cp/pstree.img"],
    );
    assert_eq!(
        outcome,
        failed(
            "error: the checkpoint is damaged: cp/pstree.img cannot be decoded: cp/pstree.img: not an image of kind stats-dump: magic 0x54564319 at offset 0, expected 0x55105940\n\
             hint: make the checkpoint again, or copy it anew from its origin\n"
        )
    );
}

#[test]
fn damaged_and_unsafe_checkpoints() {
    let mut missing = fixture::images();
    missing.remove("inventory.img");
    assert_eq!(
        spoiled(&missing, |_| {}),
        failed(
            "error: the checkpoint is incomplete: inventory.img is missing\n\
             hint: make the checkpoint again, or copy all of it: the dump or a copy was cut short\n"
        )
    );

    let mut truncated = fixture::images();
    truncated.get_mut("pstree.img").unwrap().truncate(20);
    assert_eq!(
        spoiled(&truncated, |_| {}),
        failed(
            "error: the checkpoint is damaged: pstree.img cannot be decoded: pstree.img: truncated at offset 12: 10 bytes expected, 8 left\n\
             hint: make the checkpoint again, or copy it anew from its origin\n"
        )
    );

    let hint = "hint: do not use it unless you know where it comes from: no engine writes this\n";
    assert_eq!(
        spoiled(&fixture::images(), |images| {
            fs::remove_file(images.join("pages-1.img")).unwrap();
            symlink("/etc/passwd", images.join("pages-1.img")).unwrap();
        }),
        failed(&format!(
            "error: the checkpoint is unsafe: pages-1.img is a symbolic link\n{hint}"
        ))
    );
    assert_eq!(
        spoiled(&fixture::images(), |images| fs::create_dir(
            images.join("sub")
        )
        .unwrap()),
        failed(&format!(
            "error: the checkpoint is unsafe: sub is a directory\n{hint}"
        ))
    );
}

#[test]
fn what_is_no_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("empty")).unwrap();
    fs::write(path.join("text"), "x".repeat(600)).unwrap();
    fs::write(path.join("cp.tar.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    let mut cut = fixture::tar(&fixture::archive());
    cut.truncate(5000);
    fs::write(path.join("cut.tar"), cut).unwrap();

    let name = "hint: name an archive, its unpacked directory, an OCI layout, or the directory that holds inventory.img\n";
    let cases = [
        (
            "gone",
            "error: gone cannot be read: No such file or directory (os error 2)\n".to_owned(),
        ),
        (
            "empty",
            format!(
                "error: empty is not a checkpoint: it has neither inventory.img nor a directory checkpoint\n{name}"
            ),
        ),
        (
            "text",
            format!("error: not a tar archive: no entry at offset 0: wrong checksum\n{name}"),
        ),
        (
            "cp.tar.gz",
            "error: i/o error at offset 0 of the archive: gzip: unexpected end of file\n\
             hint: make the checkpoint again, or copy all of it: the dump or a copy was cut short\n"
                .to_owned(),
        ),
        (
            "cut.tar",
            "error: the archive is cut off at offset 4608\n\
             hint: make the checkpoint again, or copy all of it: the dump or a copy was cut short\n"
                .to_owned(),
        ),
    ];
    for (argument, stderr) in cases {
        assert_eq!(
            cryoctl(path, ["summary", argument]),
            failed(&stderr),
            "{argument}"
        );
    }
}

#[test]
fn nothing_in_a_checkpoint_steers_the_terminal() {
    let mut files = fixture::images();
    files.insert("core-1.img".into(), fixture::core("a\u{1b}[2Jb", 1));
    let outcome = spoiled(&files, |_| {});
    assert!(
        outcome.stdout.contains("[1] a\\u{1b}[2Jb\n"),
        "{}",
        outcome.stdout
    );

    let outcome = spoiled(&fixture::images(), |images| {
        symlink("x", images.join("a\u{1b}[31mb")).unwrap();
    });
    assert!(
        outcome.stderr.contains("unsafe: a\\u{1b}[31mb is a"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn usage() {
    let here = Path::new("/");
    let arguments: [&[&str]; 7] = [
        &["failures", "--log"],
        &["failures", "1", "--log", "--format", "json"],
        &[],
        &["unknown"],
        &["summary"],
        &["summary", "x", "--format", "xml"],
        &["--wrong"],
    ];
    for arguments in arguments {
        let outcome = cryoctl(here, arguments);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}"
        );
        assert!(
            outcome.stderr.contains("cryoctl") || outcome.stderr.contains("--help"),
            "{outcome:?}"
        );
    }
    for arguments in [
        ["--help"].as_slice(),
        &["summary", "--help"],
        &["failures", "--help"],
    ] {
        let outcome = cryoctl(here, arguments);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stdout.contains("Exit codes:"), "{}", outcome.stdout);
    }
    let outcome = cryoctl(here, ["--version"]);
    assert_eq!(
        outcome.stdout,
        format!("cryoctl {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn manual_and_completions() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let outcome = cryoctl(directory.path(), ["completion", shell]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stdout.contains("summary"), "{shell}");
        assert!(outcome.stdout.contains("failures"), "{shell}");
    }
    assert_eq!(cryoctl(directory.path(), ["man", "."]).code, Some(0));
    for page in ["cryoctl-summary.1", "cryoctl-failures.1"] {
        assert!(directory.path().join(page).is_file(), "{page}");
    }
    let outcome = cryoctl(directory.path(), ["man", "none"]);
    assert_eq!(
        outcome,
        failed(
            "error: manual pages cannot be written to none: No such file or directory (os error 2)\n"
        )
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    fixture::write(&directory.path().join("cp"), &fixture::images());
    let mut child = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(["summary", "cp"])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

/// `cryoctl check` of a shell in a session of its own that has run this script.
fn checked(script: &str, flags: &[&str]) -> Option<Outcome> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: looking at sockets of other processes needs root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut process = Command::new("setsid")
        .args(["sh", "-c", &format!("{script}; echo ready; read line")])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    process
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    let pid = process.id().to_string();
    let arguments = ["check", "--pid", &pid];
    let outcome = cryoctl(directory.path(), arguments.iter().chain(flags));
    process.kill().unwrap();
    process.wait().unwrap();
    Some(Outcome {
        stdout: outcome
            .stdout
            .replace(&format!("process {pid} "), "process PID "),
        ..outcome
    })
}

#[test]
fn a_process_with_nothing_in_the_way() {
    let Some(outcome) = checked(":", &["--allow", "shell-job"]) else {
        return;
    };
    let expected = "nothing is in the way of a checkpoint\n";
    assert_eq!(outcome.stdout, expected);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_process_with_something_in_the_way() {
    let script = "exec 8>file; truncate -s 2M file; dd if=/dev/urandom of=file bs=1M count=2 status=none; rm file";
    let Some(outcome) = checked(script, &[]) else {
        return;
    };
    let expected = "in the way of a checkpoint:\n  process PID (sh), fd 8 (DIR/file (deleted)): \
        a deleted file that is larger than what goes into a checkpoint; \
        raise ghost-limit, or close the file first\n";
    assert_eq!(outcome.stdout, expected);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""));

    let Some(outcome) = checked(script, &["--format", "json"]) else {
        return;
    };
    assert_eq!(outcome.code, Some(1));
    let said: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    let found = said.pointer("/obstacles/0").unwrap();
    assert_eq!(found["problem"], "ghost-too-big");
    assert_eq!(found["severity"], "cannot-dump");
    assert_eq!(found["option"], "ghost-limit");
    assert_eq!(found["object"]["number"], 8);
    assert_eq!(found["process"]["command"], "sh");
}

#[test]
fn what_cannot_be_checked_has_its_own_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, stderr) in [
        (&["check", "--pid", "0"][..], "error: 0 is no process\n"),
        (
            &["check", "--address", "/nobody.sock", "x"],
            "error: cannot connect to containerd at /nobody.sock",
        ),
        (&["check", "--pid", "1", "x"], "error: the argument"),
    ] {
        let outcome = cryoctl(directory.path(), arguments);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.starts_with(stderr), "{outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
}

/// Two failures, of which the older has a log, and a container's name is hostile.
fn kept(directory: &Path) {
    let dir = directory.join("kept");
    fs::create_dir(&dir).unwrap();
    let record = |container: &str| {
        serde_json::json!({
            "time": "2026-11-23T14:40:00.123456789Z",
            "operation": "dump",
            "namespace": "k8s.io",
            "container": container,
            "cause": "a process holds a file lock",
            "remedy": "allow it with file-locks",
            "error": "criu dump failed",
            "lines": ["Some file locks are hold"],
        })
    };
    for (id, container) in [
        ("100-dump-k8s.io-one", "one"),
        ("200-dump-k8s.io-two", "t\u{1b}[2Jwo"),
    ] {
        let json = record(container).to_string();
        fs::write(dir.join(format!("{id}.json")), json).unwrap();
    }
    fs::write(
        dir.join("100-dump-k8s.io-one.log"),
        "first\nse\u{9b}cond\n\u{ff}",
    )
    .unwrap();
}

#[test]
fn failures_are_listed_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let done = |stdout: &str| Outcome {
        code: Some(0),
        stdout: stdout.to_owned(),
        stderr: String::new(),
    };
    let list = ["failures", "--dir", "kept"];
    assert_eq!(cryoctl(path, list), done("no failures are kept in kept\n"));
    kept(path);
    assert_eq!(
        cryoctl(path, list),
        done(
            "\
ID   TIME                 OPERATION  NAMESPACE  CONTAINER     CAUSE
200  2026-11-23T14:40:00  dump       k8s.io     t\\u{1b}[2Jwo  a process holds a file lock
100  2026-11-23T14:40:00  dump       k8s.io     one           a process holds a file lock
"
        )
    );
    assert_eq!(
        cryoctl(path, ["failures", "--dir", "kept", "1"]),
        done(
            "\
id:        100-dump-k8s.io-one
time:      2026-11-23T14:40:00.123456789Z
operation: dump
namespace: k8s.io
container: one
cause:     a process holds a file lock
remedy:    allow it with file-locks
error:     criu dump failed
criu's log:
  Some file locks are hold
"
        )
    );
    assert_eq!(
        cryoctl(path, ["failures", "--dir", "kept", "100", "--log"]),
        done("first\nse\\u{9b}cond\n\u{ff}\n")
    );
    let outcome = cryoctl(path, ["failures", "--dir", "kept", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json[1]["id"], "100-dump-k8s.io-one");
    assert_eq!(json[1]["cause"], "a process holds a file lock");
}

#[test]
fn failures_that_are_not_there_or_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    kept(path);
    assert_eq!(
        cryoctl(path, ["failures", "--dir", "kept", "3"]),
        failed("error: no failure 3 is kept in kept: `cryoctl failures` lists what is\n")
    );
    assert_eq!(
        cryoctl(path, ["failures", "--dir", "kept", ""]),
        failed("error: 2 failures begin with : write more of it\n")
    );
    assert_eq!(
        cryoctl(path, ["failures", "--dir", "kept", "200", "--log"]),
        failed("error: criu left no log of 200-dump-k8s.io-two\n")
    );
    // One that is not ours does not hide the others.
    symlink("/etc/passwd", path.join("kept/300.json")).unwrap();
    let outcome = cryoctl(path, ["failures", "--dir", "kept"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.stdout.lines().count(), 3, "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "error: kept/300.json is a symbolic link\n");
}

/// Runs it by another name.
#[must_use]
fn as_checkpointctl(directory: &Path, arguments: &[&str]) -> Outcome {
    let name = directory.join("checkpointctl");
    if !name.exists() {
        symlink(env!("CARGO_BIN_EXE_cryoctl"), &name).unwrap();
    }
    let output = Command::new(name)
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn by_the_name_of_checkpointctl() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| as_checkpointctl(directory.path(), arguments);
    let cases: [(&[&str], &str); 8] = [
        (
            &["show", "gone"],
            "Error: gone cannot be read: No such file or directory (os error 2)\n",
        ),
        (
            &["wrong"],
            "Error: unknown command \"wrong\" for \"checkpointctl\"\n",
        ),
        (
            &["inspect", "--wrong-parameter"],
            "Error: unknown flag: --wrong-parameter\n",
        ),
        (
            &["inspect", "-x", "a"],
            "Error: unknown shorthand flag: 'x' in -x\n",
        ),
        (
            &["inspect", "--files=perhaps", "a"],
            "Error: invalid value 'perhaps' for '--files[=<FILES>]': it is neither true nor false\n",
        ),
        (
            &["diff"],
            "Error: the following required arguments were not provided: <BEFORE> <AFTER>\n",
        ),
        // Switches with values, and flags twice, as pflag takes them.
        (
            &["inspect", "--files", "--files=false", "-p1", "-p=2", "gone"],
            "Error: gone cannot be read: No such file or directory (os error 2)\n",
        ),
        (
            &["inspect", "--format", "yaml", "x"],
            "Error: invalid output format: yaml\n",
        ),
    ];
    for (arguments, stderr) in cases {
        assert_eq!(run(arguments), failed(stderr), "{arguments:?}");
    }
    for arguments in [
        &[][..],
        &["--help"],
        &["help"],
        &["help", "inspect"],
        &["completion"],
        &["-v"],
        &["--version"],
    ] {
        let outcome = run(arguments);
        assert_eq!(outcome.code, Some(0), "{arguments:?} {outcome:?}");
        assert!(outcome.stdout.contains("checkpointctl"), "{outcome:?}");
        assert_eq!(outcome.stderr, "");
    }
    let outcome = run(&["completion", "bash"]);
    assert!(outcome.stdout.contains("_checkpointctl()"), "{outcome:?}");
}

#[test]
fn plugins() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let plugin = |folder: &str, name: &str, script: &str, mode: u32| {
        fs::create_dir_all(path.join(folder)).unwrap();
        let file = path.join(folder).join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    };
    plugin("a", "checkpointctl-show", "echo wrong", 0o755);
    plugin("a", "checkpointctl-passive", "echo wrong", 0o644);
    plugin(
        "b",
        "checkpointctl-passive",
        "echo \"$#:$2\"; exit 7",
        0o755,
    );
    plugin("b", "cryoctl-two", "echo ours; exit 42", 0o755);
    plugin("b", "checkpointctl-two", "echo theirs", 0o755);
    // What it has started keeps the pipe open for longer than anyone waits.
    plugin(
        "b",
        "cryoctl-slow",
        "/bin/sleep 60 & echo late; wait",
        0o755,
    );
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
            .args(arguments)
            .env_clear()
            .env("PATH", format!("{0}/a::{0}/b", path.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(path.to_str().unwrap(), "DIR")
        };
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, stdout, _) = run(&["passive", "--all", "two words"]);
    assert_eq!((code, stdout.as_str()), (Some(7), "2:two words\n"));
    assert_eq!(run(&["two"]).1, "ours\n");
    // Our own comes first.
    assert_eq!(run(&["show", "gone"]).0, Some(1));
    assert_eq!(run(&["nothing"]).0, Some(2));
    let (code, stdout, stderr) = run(&["plugin", "list"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(
        stdout,
        "Available plugins:\n  \
         show                 (not used: a built-in command has this name)\n                       DIR/a/checkpointctl-show\n  \
         passive              (no description)\n                       DIR/b/checkpointctl-passive\n  \
         slow                 (no description)\n                       DIR/b/cryoctl-slow\n  \
         two                  ours\n                       DIR/b/cryoctl-two\n"
    );
}

#[test]
fn checkpoints_of_two_containers_are_not_compared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut files = fixture::container::archive();
    fs::write(path.join("a.tar"), fixture::tar(&files)).unwrap();
    files.insert("config.dump".into(), br#"{"id":"another"}"#.to_vec());
    fs::write(path.join("b.tar"), fixture::tar(&files)).unwrap();
    let outcome = cryoctl(path, ["diff", "a.tar", "b.tar"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome
            .stderr
            .starts_with("error: checkpoints are from different containers: A is web (68bb"),
        "{outcome:?}"
    );
    let outcome = cryoctl(
        path,
        ["diff", "--format", "json", "--files", "a.tar", "a.tar"],
    );
    let json: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["memory_changes"]["size_change_bytes"], 0);
    assert_eq!(json["process_changes"]["unchanged"][1]["pid"], 7);
    assert_eq!(json["file_changes"].get("added"), None);
}

#[test]
fn a_list_goes_on_behind_what_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(
        path.join("checkpoint-b.tar"),
        fixture::tar(&fixture::container::archive()),
    )
    .unwrap();
    fs::write(path.join("checkpoint-a.tar"), b"x").unwrap();
    fs::write(path.join("checkpoint-b.tar.keep"), b"{}").unwrap();
    fs::write(path.join("other.tar"), b"x").unwrap();
    let outcome = cryoctl(path, ["list", "."]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(
        outcome.stderr,
        "warning: ./checkpoint-a.tar: the archive is cut off at offset 0\n"
    );
    assert!(
        outcome
            .stdout
            .contains("13 Mar 26 21:43 UTC   checkpoint-b.tar\n"),
        "{outcome:?}"
    );
    let outcome = cryoctl(path, ["list", "gone"]);
    assert_eq!(outcome.stdout, "No checkpoints found in [gone]\n");
}

/// `hack/install` and `cryoctl install` write the same, and each knows the other's.
#[test]
fn what_make_installs_is_cryoctls() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (bin, root) = (path("bin"), path("root"));
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_cryoctl"), bin.join("cryoctl")).unwrap();
    let shim = bin.join("containerd-shim-cryo-v2");
    fs::write(&shim, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let make = || {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../hack/install"))
            .env("DESTDIR", &root)
            .env("PREFIX", "/opt/cryo")
            .env("CRYO_BIN_DIR", &bin)
            .output()
            .unwrap()
    };
    let done = make();
    assert!(done.status.success(), "{done:?}");
    let drop_in = root.join("etc/containerd/conf.d/cryo.toml");
    let text = fs::read_to_string(&drop_in).unwrap();
    for words in [
        "runtimes.cryo]",
        "runtimes.cryo-own]",
        "runtime_path = \"/opt/cryo/bin/containerd-shim-cryo-v2\"",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(root.join("etc/cryo/config.toml").is_file());
    assert!(!root.join("etc/containerd/config.toml").exists());
    assert!(root.join("opt/cryo/bin/cryoctl").is_file());

    let cryoctl = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cryoctl"));
        let done = command.args(arguments).arg("--root").arg(&root).output();
        done.unwrap()
    };
    let install = ["install", "--shim", "/opt/cryo/bin/containerd-shim-cryo-v2"];
    let again = cryoctl(&[&install[..], &["--way", "both"]].concat());
    let said = String::from_utf8(again.stdout).unwrap();
    assert!(
        said.lines().all(|line| line.starts_with("unchanged: ")),
        "{said}"
    );
    // One way alone, and both again.
    assert!(cryoctl(&install).status.success());
    assert!(!fs::read_to_string(&drop_in).unwrap().contains("cryo-own"));
    assert!(make().status.success());
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), text);
    // What somebody changed stays.
    fs::write(&drop_in, format!("{text}# mine\n")).unwrap();
    let refused = make();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(
        error.contains("was changed since") && error.contains("the programs are installed"),
        "{error}"
    );
    fs::write(&drop_in, &text).unwrap();
    assert!(cryoctl(&["uninstall"]).status.success());
    assert!(!drop_in.exists() && !root.join("etc/cryo/config.toml").exists());
}
