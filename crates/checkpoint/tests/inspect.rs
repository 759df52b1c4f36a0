//! All that is told of a checkpoint, and what becomes of it when the checkpoint is not one.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::path::Path;

use cryo_checkpoint::inspect::{Inspection, Wanted};
use cryo_checkpoint::memory::Error;
use cryo_checkpoint::source::{Blob, Source};
use fixture::{Files, container};
use proptest::prelude::*;

fn of(files: &Files) -> Result<Inspection, Error> {
    of_bytes(&fixture::tar(files))
}

fn of_bytes(bytes: &[u8]) -> Result<Inspection, Error> {
    let sources = Source::of_blob("cp", &Blob::from_bytes(bytes))?;
    Inspection::of(sources.first().unwrap(), Wanted::ALL)
}

/// The error with its causes.
fn error(result: Result<Inspection, Error>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn of_what_criu_wrote() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/criu-4.2.1");
    let wanted = Wanted {
        arguments: false,
        environment: false,
        files: false,
        ..Wanted::ALL
    };
    // They come without pages and without `fs-*.img`.
    let temporary = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(images).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "README.md" {
            std::fs::copy(entry.path(), temporary.path().join(entry.file_name())).unwrap();
        }
    }
    let source = Source::open(temporary.path()).unwrap();
    let found = Inspection::of(&source, wanted).unwrap();
    let root = found.process_tree.unwrap();
    assert_eq!((root.pid, root.task_state), (1, "Alive"));
    let states: Vec<_> = root
        .children
        .iter()
        .map(|c| (c.pid, c.task_state))
        .collect();
    assert_eq!(states, [(8, "Dead"), (9, "Alive")]);
    assert!(
        root.credentials
            .unwrap()
            .effective
            .iter()
            .any(|name| name == "CAP_CHOWN")
    );
    assert!(root.namespaces["pid"] > 0);
    assert_eq!(root.threads.first().unwrap().tid, 1);
    let sockets = found.sockets.first().unwrap();
    assert!(
        sockets
            .open_sockets
            .iter()
            .all(|socket| socket.data.r#type == "UNIX")
    );
}

#[test]
fn a_process_and_those_below_it() {
    let source = Source::of_blob("cp", &Blob::from_bytes(fixture::tar(&container::archive())));
    let source = source.unwrap().pop().unwrap();
    let of = |pid| {
        Inspection::of(
            &source,
            Wanted {
                pid: Some(pid),
                ..Wanted::ALL
            },
        )
    };
    assert_eq!(of(7).unwrap().process_tree.unwrap().command, "worker");
    assert_eq!(of(1).unwrap().process_tree.unwrap().children.len(), 1);
    assert_eq!(
        error(of(2)),
        "no process with PID 2 (use `inspect --ps-tree` to view all PIDs)"
    );
}

#[test]
fn what_is_missing_is_named() {
    for name in [
        "core-7.img",
        "mm-1.img",
        "fdinfo-3.img",
        "files.img",
        "fs-1.img",
        "pagemap-7.img",
    ] {
        let name = format!("checkpoint/{name}");
        let mut files = container::archive();
        files.remove(&name);
        let expected = format!("the checkpoint is incomplete: {name} is missing");
        assert_eq!(error(of(&files)), expected);
    }
}

#[test]
fn what_is_damaged_is_named_with_its_offset() {
    for name in [
        "pstree.img",
        "core-1.img",
        "mm-1.img",
        "fdinfo-2.img",
        "files.img",
        "fs-1.img",
    ] {
        let name = format!("checkpoint/{name}");
        let mut files = container::archive();
        let bytes = files.get_mut(&name).unwrap();
        bytes.truncate(bytes.len() - 1);
        let text = error(of(&files));
        let expected = format!("{name} cannot be decoded: {name}: truncated at offset ");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn a_chain_of_processes_is_bounded() {
    let mut files = container::archive();
    let tree: Vec<_> = (1..400u32)
        .map(|pid| fixture::process(pid, pid - 1, &[pid]))
        .collect();
    for process in 2..400 {
        let name = format!("checkpoint/core-{process}.img");
        files.insert(name, fixture::core("sh", 2));
    }
    let tree = fixture::image(cryo_criu_image::Kind::Pstree, &tree);
    files.insert("checkpoint/pstree.img".into(), tree);
    let text = error(of(&files));
    assert!(
        text.ends_with("has more than 256 others above it"),
        "{text}"
    );
}

#[test]
fn arguments_of_a_gigabyte_are_not_read() {
    let mut files = container::archive();
    let mut mm = fixture::memory::mm();
    mm.mm_arg_end = mm.mm_arg_start.map(|start| start + (1 << 30));
    let mm = fixture::image(cryo_criu_image::Kind::Mm, &[mm]);
    files.insert("checkpoint/mm-1.img".into(), mm);
    let text = error(of(&files));
    assert!(
        text.ends_with("arguments or environment of 1073741824 bytes"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_is_answered(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut files = container::archive();
        let bytes = files.values_mut().nth(file.index(container::archive().len())).unwrap();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(found) = of(&files) {
            serde_json::to_string(&found).unwrap();
        }
    }
}
