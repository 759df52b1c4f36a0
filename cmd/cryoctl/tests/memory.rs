//! `memparse` and `core` as they are run.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use fixture::memory::{HEAP, PAGE, STACK_END};

/// A directory with the checkpoint as `cp.tar`.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tar = fixture::tar(&fixture::memory::archive());
    fs::write(directory.path().join("cp.tar"), tar).unwrap();
    directory
}

/// Exit code, stdout, stderr.
fn cryoctl(directory: &Path, line: &str) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(line.split(' '))
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn done(directory: &Path, line: &str) -> String {
    let (code, stdout, stderr) = cryoctl(directory, line);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{line}");
    stdout
}

fn failed(directory: &Path, line: &str) -> String {
    let (code, stdout, stderr) = cryoctl(directory, line);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{line}");
    stderr
}

#[test]
fn sizes() {
    let dir = directory();
    assert_eq!(
        done(dir.path(), "memparse cp.tar"),
        "\nDisplaying processes memory sizes from cp.tar\n\n\
         PID   PROCESS NAME   MEMORY SIZE   SHARED MEMORY SIZE\n\
         ---   ------------   -----------   ------------------\n\
         1     prog           28.0 KiB      8.0 KiB\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&done(dir.path(), "memparse --format json cp.tar")).unwrap();
    assert_eq!(
        json,
        serde_json::json!([{"checkpoint": "cp.tar", "processes": [
            {"pid": 1, "name": "prog", "memory_bytes": 7 * PAGE, "shared_memory_bytes": 2 * PAGE}
        ]}])
    );
}

/// Folded on stdout; each run of the pagemap begins anew, as checkpointctl has it.
#[test]
fn hexdump() {
    let dir = directory();
    let text = done(dir.path(), "memparse -p 1 cp.tar");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..7],
        [
            "",
            "Displaying memory pages content for process ID 1 from checkpoint: cp.tar",
            "",
            "Address           Hexadecimal                                       ASCII            ",
            "-------------------------------------------------------------------------------------",
            "0000000000401000  90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90  |................|",
            "*",
        ]
    );
    // Zeros look like what is no text, so the end of the page before is folded into them.
    assert!(lines.contains(
        &"0000000010001010  66 69 72 73 74 20 73 65 63 72 65 74 00 00 00 00  |first secret....|"
    ));
    let heap = format!("{:016x}  2d 63 72", HEAP + 2 * PAGE);
    assert!(lines.iter().any(|line| line.starts_with(&heap)));

    let whole = done(
        dir.path(),
        "memparse --pid 1 --output dump --threads 3 cp.tar",
    );
    assert_eq!(
        whole,
        "\nWriting memory pages content for process ID 1 from checkpoint: cp.tar to file: dump...\n"
    );
    let dump = fs::read_to_string(dir.path().join("dump")).unwrap();
    assert_eq!(dump.lines().count(), 2 + 7 * 256);
    assert!(!dump.contains('*'));
    // Not folded, and each line of stdout but the stars is one of it.
    assert!(
        lines[3..]
            .iter()
            .filter(|l| **l != "*")
            .all(|line| dump.contains(line))
    );
    let last = format!("{:016x}  00 00", STACK_END - 16);
    assert!(dump.lines().last().unwrap().starts_with(&last));
    // What is no regular file takes the same text as a stream.
    let stream = done(dir.path(), "memparse -p 1 -o /dev/stdout cp.tar");
    assert_eq!(stream.split_once("...\n").unwrap().1, dump);
    // Nothing temporary is left.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn matches() {
    let dir = directory();
    assert_eq!(
        done(dir.path(), "memparse -p 1 -s secret -c 2 cp.tar"),
        "ADDRESS            MATCH        INSTANCE\n\
         -------            -----        --------\n\
         0000000010001016   t secret??   1\n\
         0000000010003007   ??secret??   2\n"
    );
    assert_eq!(
        done(
            dir.path(),
            "memparse -s wide -s seam -r [A-Z]+= --encoding text cp.tar"
        ),
        "PID   ADDRESS            MATCH   PATTERN   INSTANCE\n\
         ---   -------            -----   -------   --------\n\
         1     0000000010001ffc   seam    seam      1\n\
         1     000000007ff0f00a   HOME=   [A-Z]+=   2\n"
    );
    assert_eq!(
        done(
            dir.path(),
            "memparse -s wide --encoding text,utf-16 --format json cp.tar"
        ),
        "[\n  {\"address\":\"0x10002100\",\"encoding\":\"utf-16le\",\"length_bytes\":8,\
         \"match\":\"w?i?d?e?\",\"pattern\":\"wide\",\"pid\":1}\n]\n"
    );
    assert_eq!(
        done(dir.path(), "memparse -p 1 -s nowhere cp.tar"),
        "No matches for pattern \"nowhere\" in the memory of PID 1\n"
    );
    assert_eq!(
        done(dir.path(), "memparse -s nowhere --format json cp.tar"),
        "[]\n"
    );
    let one = done(dir.path(), "memparse -r [a-z]+ --threads 1 cp.tar");
    for threads in [2, 3, 4, 1000] {
        let line = format!("memparse -r [a-z]+ --threads {threads} cp.tar");
        assert_eq!(done(dir.path(), &line), one);
    }
    done(dir.path(), "memparse -s secret -o found cp.tar");
    assert!(
        fs::read_to_string(dir.path().join("found"))
            .unwrap()
            .starts_with("PID ")
    );
}

#[test]
fn progress_as_json() {
    let dir = directory();
    let (code, _, stderr) = cryoctl(dir.path(), "memparse -s secret --progress=json cp.tar");
    assert_eq!(code, Some(0));
    let last: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!(last["what"], "searching");
    assert_eq!(last["done_bytes"], 7 * PAGE);
    assert_eq!(last["total_bytes"], 7 * PAGE);
    assert_eq!(last["finished"], true);
}

#[test]
fn what_cannot_be_done() {
    let dir = directory();
    let cases = [
        (
            "memparse -p 2 cp.tar",
            "error: process 2 has no memory pages (task state is zombie or dead)\n",
        ),
        (
            "memparse -p 7 -s x cp.tar",
            "error: no process with PID 7 (use `inspect --ps-tree` to view all PIDs)\n",
        ),
        (
            "memparse -r [a-z] --encoding utf-16 cp.tar",
            "error: expressions cannot be searched for in UTF-16: use --search, or --encoding bytes\n",
        ),
        (
            "memparse -s x -c 65537 cp.tar",
            "error: --context may be 65536 at most\n",
        ),
        (
            "core -o /dev/null cp.tar",
            "error: /dev/null is no regular file, and a core file has holes: name one\n",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(failed(dir.path(), line), expected, "{line}");
    }
    let error = failed(dir.path(), "memparse -p 1 -o /proc/none cp.tar");
    assert!(
        error.starts_with("error: /proc/none cannot be written: "),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_core_file() {
    let dir = directory();
    assert_eq!(
        done(dir.path(), "core cp.tar"),
        "core.1: process 1 (prog) of /bin/prog, 2 threads, 24.0 KiB of memory\n"
    );
    let core = fs::read(dir.path().join("core.1")).unwrap();
    assert!(core.starts_with(b"\x7fELF"));
    let json = done(dir.path(), "core -p 1 -o there --format json cp.tar");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["file"], "there");
    assert_eq!(json["executable"], "/bin/prog");
    assert_eq!(json["file_bytes"], core.len());
    assert_eq!(fs::read(dir.path().join("there")).unwrap(), core);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}
