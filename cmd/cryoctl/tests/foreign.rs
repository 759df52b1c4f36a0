//! Checkpoints of other machines and of newer CRIUs: what each command says of them.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cryo_criu_image::{Kind, msg};
use fixture::memory::{HEAP, PAGE};
use fixture::{Files, compressed, put};
use prost::Message;
use serde_json::{Value, json};

/// A checkpoint that nothing is wrong with.
fn whole() -> Files {
    let mut files = fixture::memory::archive();
    let of_containerd = fixture::archive();
    for name in ["config.dump", "spec.dump", "stats-dump"] {
        files.insert(name.into(), of_containerd[name].clone());
    }
    let ids = msg::TaskKobjIdsEntry {
        vm_id: Some(1),
        files_id: Some(2),
        fs_id: Some(1),
        sighand_id: Some(1),
        ..Default::default()
    };
    let places = msg::FsEntry {
        cwd_id: Some(5),
        root_id: Some(5),
        umask: Some(0o22),
    };
    files.extend([
        image("ids-1.img", fixture::image(Kind::Ids, &[ids])),
        image("fs-1.img", fixture::image(Kind::Fs, &[places])),
        image("fdinfo-2.img", fixture::descriptors(&[(0, 5)])),
    ]);
    files
}

fn image(name: &str, bytes: Vec<u8>) -> (String, Vec<u8>) {
    (format!("checkpoint/{name}"), bytes)
}

fn of_machine(files: &mut Files, number: u8) {
    for name in ["core-1.img", "core-2.img"] {
        put(files, name, 0, &[0x08, number]);
    }
}

fn aarch64(files: &mut Files) {
    of_machine(files, 3);
    let info = msg::Aarch64Entry {
        clear_tid_addr: Some(0),
        tls: Some(0),
        gpregs: Some(msg::Aarch64RegsEntry {
            regs: (0..31).collect(),
            sp: Some(HEAP),
            pc: Some(0x40_1234),
            pstate: Some(0),
        }),
        fpsimd: Some(msg::Aarch64FpsimdEntry {
            vregs: vec![0; 64],
            fpsr: Some(0),
            fpcr: Some(0),
        }),
    };
    let thread = msg::ThreadEntry {
        ti_aarch64: Some(info),
        ..Default::default()
    };
    for name in ["core-1.img", "core-2.img"] {
        put(files, name, 0, &thread.encode_to_vec());
    }
}

/// POWER, with pages of 64 KiB.
fn large_pages(files: &mut Files) {
    const LARGE: u64 = 1 << 16;
    of_machine(files, 4);
    let mut mm = fixture::memory::mm();
    mm.mm_saved_auxv = vec![6, LARGE, 0, 0];
    mm.vmas.truncate(2);
    mm.mm_arg_start = Some(HEAP);
    mm.mm_arg_end = Some(HEAP + 8);
    mm.mm_env_start = Some(HEAP + 8);
    mm.mm_env_end = Some(HEAP + 16);
    let mut page = vec![0; LARGE as usize];
    page[..16].copy_from_slice(b"secret\0-A=1\0B=2\0");
    files.extend([
        image("mm-1.img", fixture::image(Kind::Mm, &[mm])),
        image(
            "pagemap-1.img",
            fixture::memory::pagemap(1, &[(HEAP, 1, 4)]),
        ),
        image("pages-1.img", page),
        image(
            "pagemap-shmem-9.img",
            fixture::memory::pagemap(2, &[(0, 1, 4)]),
        ),
        image("pages-2.img", vec![0; LARGE as usize]),
    ]);
}

fn newer_version(files: &mut Files) {
    put(files, "inventory.img", 0, &[0x08, 3]);
}

/// Of a message, of a field's enumeration, and a file: what a newer CRIU may add.
fn unknown_values(files: &mut Files) {
    // The state of a task.
    let core = msg::CoreEntry {
        tc: Some(msg::TaskCoreEntry {
            task_state: Some(42),
            ..Default::default()
        }),
        ..Default::default()
    };
    put(files, "core-1.img", 0, &core.encode_to_vec());
    // The security module.
    let inventory = msg::InventoryEntry {
        lsmtype: Some(9),
        ..Default::default()
    };
    put(files, "inventory.img", 0, &inventory.encode_to_vec());
    // The kind of a file, as its descriptor and as the file itself have it.
    let descriptor = msg::FdinfoEntry {
        r#type: Some(77),
        ..Default::default()
    };
    put(files, "fdinfo-2.img", 0, &descriptor.encode_to_vec());
    let file = msg::FileEntry {
        r#type: Some(77),
        ..Default::default()
    };
    put(files, "files.img", 0, &file.encode_to_vec());
}

/// Field 2000, of two bytes, in every image of messages.
fn unknown_fields(files: &mut Files) {
    for name in files.keys().cloned().collect::<Vec<_>>() {
        let Some(name) = name.strip_prefix("checkpoint/") else {
            continue;
        };
        let pages = name.starts_with("pages-") || name.starts_with("pagemap-");
        if !pages && Kind::of_file_name(name).is_some() {
            put(files, name, 0, &[0x82, 0x7d, 2, 0, 0]);
        }
    }
}

fn unknown_image(files: &mut Files) {
    files.extend([image("frob-1.img", b"\x19\x43\x56\x54frob".to_vec())]);
}

fn unknown_magic(files: &mut Files) {
    let core = files.get_mut("checkpoint/core-1.img").unwrap();
    core[4..8].copy_from_slice(b"frob");
}

/// A command line with `cp.tar`; it may leave `out` behind.
const COMMANDS: [(&str, &str); 13] = [
    ("show", "show cp.tar"),
    ("inspect", "inspect cp.tar"),
    ("all", "inspect --all --registers --namespaces cp.tar"),
    ("sizes", "memparse cp.tar"),
    ("hexdump", "memparse -p 1 -o out cp.tar"),
    ("search", "memparse -s secret -o out cp.tar"),
    ("core", "core -p 1 -o out cp.tar"),
    ("summary", "summary cp.tar"),
    ("verify", "verify --node node.json --format json cp.tar"),
    ("diff", "diff --files --sockets cp.tar cp.tar"),
    ("diff-memory", "diff --ps-tree-cmd --memory cp.tar cp.tar"),
    ("convert", "convert --to podman cp.tar out"),
    ("build", "build cp.tar oci-archive:out"),
];

/// What a command does other than to end well without a word on stderr: its name, the exit code, and
/// what is said, on stdout or stderr.
type Outcome = (&'static str, i32, &'static str);

const OF_A_NEWER: &str = "error: checkpoint/pagemap-1.img is of a newer criu than is known here: \
     checkpoint/pagemap-1.img: message at offset 14 has fields that are not known here: \
     compressed memory of CRIU 4.3, or something newer\n\
     hint: use a cryoctl that knows it, or make the checkpoint without what is new, such as --compress of criu 4.3\n";
const OF_VERSION_3: &str = "error: the checkpoint has images of version 3, only 2 is known\nhint: use a cryoctl that knows them\n";
const SHOWN_WITHOUT: &str = "note: cp.tar: the checkpoint has images of version 3, only 2 is known: only what the engine wrote is shown\n";
const BAD_MAGIC: &str = "checkpoint/core-1.img: not an image of kind core: magic 0x626f7266 at offset 4, expected 0x55053847";

#[test]
fn what_each_command_says() {
    type Case = (&'static str, fn(&mut Files), &'static [Outcome]);
    let cases: [Case; 10] = [
        ("nothing", |_| {}, &[]),
        (
            "aarch64",
            aarch64,
            &[(
                "verify",
                1,
                "it was made on aarch64, and the node is x86_64",
            )],
        ),
        (
            "s390x",
            |files| of_machine(files, 5),
            &[
                (
                    "core",
                    1,
                    "registers are not known here (s390x): core files are written for x86_64 and aarch64",
                ),
                ("verify", 1, "restore it on a node of s390x"),
            ],
        ),
        (
            "ppc64le",
            large_pages,
            &[
                ("core", 1, "registers are not known here (powerpc64)"),
                (
                    "verify",
                    1,
                    "it was made on powerpc64, and the node is x86_64",
                ),
            ],
        ),
        (
            "no machine that is known",
            |files| of_machine(files, 99),
            &[
                (
                    "core",
                    1,
                    "registers are not known here (an unknown machine)",
                ),
                (
                    "verify",
                    1,
                    "it was made on a machine that is not known here, number 99 of criu's; the node is x86_64",
                ),
                (
                    "build",
                    1,
                    "error: it was made on a machine that is not known here, number 99 of criu's: name it by --fact host.arch=NAME\n",
                ),
            ],
        ),
        (
            "compressed",
            compressed,
            &[
                (
                    "all",
                    0,
                    "Not shown\n    └── arguments and environment of process 1: checkpoint/pagemap-1.img is of a newer criu",
                ),
                ("sizes", 0, "1     prog           28.0 KiB      8.0 KiB\n"),
                ("hexdump", 1, OF_A_NEWER),
                ("search", 1, OF_A_NEWER),
                ("core", 1, OF_A_NEWER),
                (
                    "verify",
                    1,
                    "checkpoint/pagemap-1.img; the node has criu 4.2.1, which cannot read it",
                ),
                (
                    "diff-memory",
                    1,
                    "error: there is nothing to compare: arguments of process 1: checkpoint/pagemap-1.img is of a newer criu",
                ),
            ],
        ),
        (
            "version 3",
            newer_version,
            &[
                ("show", 0, SHOWN_WITHOUT),
                ("inspect", 0, SHOWN_WITHOUT),
                ("all", 1, OF_VERSION_3),
                ("sizes", 1, OF_VERSION_3),
                ("hexdump", 1, OF_VERSION_3),
                ("search", 1, OF_VERSION_3),
                ("core", 1, OF_VERSION_3),
                ("summary", 1, OF_VERSION_3),
                (
                    "verify",
                    1,
                    "the checkpoint has images of version 3, only 2 is known",
                ),
                ("diff", 1, OF_VERSION_3),
                ("diff-memory", 1, OF_VERSION_3),
            ],
        ),
        ("unknown fields", unknown_fields, &[]),
        (
            "an unknown image",
            unknown_image,
            &[(
                "verify",
                1,
                "no criu that is known here writes these, and a restore refuses them: checkpoint/frob-1.img",
            )],
        ),
        (
            "another magic",
            unknown_magic,
            &[
                ("all", 1, BAD_MAGIC),
                ("sizes", 1, BAD_MAGIC),
                ("hexdump", 1, BAD_MAGIC),
                ("search", 1, BAD_MAGIC),
                ("core", 1, BAD_MAGIC),
                ("summary", 1, BAD_MAGIC),
                ("verify", 1, BAD_MAGIC),
                ("diff", 1, BAD_MAGIC),
                ("diff-memory", 1, BAD_MAGIC),
                ("build", 1, BAD_MAGIC),
            ],
        ),
    ];
    for (case, spoil, outcomes) in cases {
        each(case, spoil, outcomes);
    }
}

/// A task in an unknown state, labels of an unknown module and a file of an unknown kind.
#[test]
fn values_of_a_newer_criu() {
    let none = "error: process 1 is in a state that is not known here, number 42 of criu's: its memory is not looked at\n";
    each(
        "unknown values",
        unknown_values,
        &[
            ("hexdump", 1, none),
            ("core", 1, none),
            ("search", 0, ""),
            ("verify", 0, "state 42 of the process 1"),
        ],
    );
}

fn each(case: &str, spoil: fn(&mut Files), outcomes: &[Outcome]) {
    let mut files = whole();
    spoil(&mut files);
    let tar = fixture::tar(&files);
    let node = node("4.2.1");
    for (name, _, _) in outcomes {
        assert!(COMMANDS.iter().any(|(known, _)| known == name), "{name}");
    }
    for (name, line) in COMMANDS {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("cp.tar"), &tar).unwrap();
        fs::write(directory.path().join("node.json"), node.to_string()).unwrap();
        let (code, stdout, stderr) = cryoctl(directory.path(), line);
        let said = format!("{stdout}{stderr}");
        let at = format!("{case}: {line}: {code}\n{said}");
        assert!(!said.contains("panicked"), "{at}");
        match outcomes.iter().find(|(known, _, _)| *known == name) {
            Some((_, expected, text)) => {
                assert_eq!(code, *expected, "{at}");
                assert!(said.contains(text), "{at}");
            }
            None => {
                assert_eq!(code, 0, "{at}");
                let notes = stderr.lines().all(|line| line.starts_with("note: "));
                assert!(stderr.is_empty() || (name == "convert" && notes), "{at}");
            }
        }
        // Nothing is left but what was named, and of what failed not even that.
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let out = code == 0 && (line.ends_with("out") || line.contains("-o out"));
        let expected: &[&str] = match out {
            true => &["cp.tar", "node.json", "out"],
            false => &["cp.tar", "node.json"],
        };
        assert_eq!(left, expected, "{at}");
    }
}

/// This node, with a criu of that release, and all that a checkpoint of x86-64 wants of a processor.
fn node(criu: &str) -> Value {
    let here = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = cryoctl(here.path(), "node-info");
    assert_eq!(code, 0, "{stderr}");
    let mut node: Value = serde_json::from_str(&stdout).unwrap();
    node["architecture"] = json!("x86_64");
    node["cpu"]["features"] = json!(["avx"]);
    node["criu"] = json!({
        "path": "/usr/sbin/criu", "version": criu,
        "memory_tracking": true, "lazy_pages": true, "pidfd_store": true,
    });
    node
}

/// Exit code, stdout, stderr.
fn cryoctl(directory: &Path, line: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
        .args(line.split(' '))
        .current_dir(directory)
        .env_clear()
        .env("HOME", directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// The findings of `verify` against a node: name, severity, text.
fn verified(spoil: fn(&mut Files), node: &Value) -> (i32, Vec<[String; 3]>) {
    let mut files = whole();
    spoil(&mut files);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cp.tar"), fixture::tar(&files)).unwrap();
    fs::write(directory.path().join("node.json"), node.to_string()).unwrap();
    let line = "verify --node node.json --format json cp.tar";
    let (code, stdout, _) = cryoctl(directory.path(), line);
    let all: Value = serde_json::from_str(&stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = all["findings"].as_array().unwrap().iter();
    let findings = findings.map(|one| ["name", "severity", "text"].map(|key| text(&one[key])));
    (code, findings.collect())
}

#[test]
fn compressed_memory_wants_a_criu_that_knows_it() {
    for (version, expected, code) in [("4.2.1", "error", 1), ("4.3", "warning", 0)] {
        let (found, findings) = verified(compressed, &node(version));
        assert_eq!(found, code, "{findings:?}");
        let severities: Vec<_> = findings
            .iter()
            .filter(|[name, _, _]| name == "compression")
            .map(|[_, severity, _]| severity.as_str())
            .collect();
        assert_eq!(severities, [expected, "note"], "{findings:?}");
    }
}

/// Pages are counted in those of the machine that they are of, and POWER has two names.
#[test]
fn another_machines_checkpoint_is_whole_on_a_node_of_its_kind() {
    let mut node = node("4.2.1");
    node["architecture"] = json!("ppc64le");
    let (code, findings) = verified(large_pages, &node);
    assert_eq!(code, 0, "{findings:?}");
    let cut = |files: &mut Files| {
        large_pages(files);
        let pages = files.get_mut("checkpoint/pages-1.img").unwrap();
        pages.truncate(16 * PAGE as usize - 1);
    };
    let (code, findings) = verified(cut, &node);
    assert_eq!(code, 1);
    let text = "checkpoint/pages-1.img has 65535 bytes, and the pagemaps speak of 65536";
    assert!(
        findings.iter().any(|[_, _, said]| said == text),
        "{findings:?}"
    );
}
