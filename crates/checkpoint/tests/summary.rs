//! Summaries of the three forms of a checkpoint.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::os::unix::fs::symlink;

use cryo_checkpoint::source::{Blob, Error, Form, Source};
use cryo_checkpoint::summary::Summary;
use fixture::Files;
use proptest::prelude::*;

fn of_archive(files: &Files) -> Result<Summary, Error> {
    of_bytes(fixture::tar(files))
}

fn of_bytes(bytes: Vec<u8>) -> Result<Summary, Error> {
    let sources = Source::of_blob("cp.tar", &Blob::from_bytes(bytes))?;
    Summary::of(sources.first().unwrap())
}

#[test]
fn all_forms_say_the_same() {
    let temporary = tempfile::tempdir().unwrap();
    let [tar, unpacked, images] =
        ["cp.tar", "unpacked", "images"].map(|name| temporary.path().join(name));
    fs::write(&tar, fixture::tar(&fixture::archive())).unwrap();
    fixture::write(&unpacked, &fixture::archive());
    fixture::write(&images, &fixture::images());
    fs::write(temporary.path().join("stats-dump"), fixture::stats()).unwrap();

    let archive = Summary::read(&tar).unwrap();
    assert_eq!(archive.form, Form::Archive);
    let container = archive.container.as_ref().unwrap();
    assert_eq!(container.name.as_deref(), Some("looper"));
    assert_eq!(container.engine, "containerd");
    assert_eq!(container.pod.as_deref(), Some("pod1"));
    assert_eq!(archive.size.memory_bytes, 3 * 4096);
    assert_eq!(archive.size.rootfs_diff_bytes, Some(100));
    assert_eq!(archive.dump.unwrap().frozen_time_us, 147_720);
    let tree: Vec<_> = archive
        .processes
        .iter()
        .map(|p| (p.pid, p.ppid, p.command.as_str(), p.state, p.threads))
        .collect();
    assert_eq!(
        tree,
        [
            (1, 0, "sh", "alive", 1),
            (7, 1, "python3", "stopped", 2),
            (9, 1, "sleep", "dead", 1)
        ]
    );

    let mut directory = Summary::read(&unpacked).unwrap();
    assert_eq!(directory.form, Form::ArchiveDirectory);
    directory.form = Form::Archive;
    assert_eq!(directory, archive);

    let mut flat = Summary::read(&images).unwrap();
    assert_eq!(
        (flat.form, &flat.container, flat.dump),
        (Form::ImageDirectory, &None, None)
    );
    assert_eq!(flat.processes, archive.processes);
    assert_eq!(flat.size.images_bytes, archive.size.images_bytes);
    assert_eq!(flat.size.total_bytes, flat.size.images_bytes);
    flat.read_stats(&temporary.path().join("stats-dump"))
        .unwrap();
    assert_eq!(flat.dump, archive.dump);
}

#[test]
fn engines() {
    for (annotation, engine) in [
        ("libpod", "podman"),
        ("cri-o", "cri-o"),
        ("other", "containerd"),
    ] {
        let mut files = fixture::archive();
        let spec = format!(r#"{{"annotations":{{"io.container.manager":"{annotation}"}}}}"#);
        files.insert("spec.dump".into(), spec.into());
        assert_eq!(
            of_archive(&files).unwrap().container.unwrap().engine,
            engine
        );
    }
}

#[test]
fn bad_archives() {
    let without = |name: &str| {
        let mut files = fixture::archive();
        files.remove(name);
        files
    };
    let with = |name: &str, bytes: &[u8]| {
        let mut files = fixture::archive();
        files.insert(name.into(), bytes.to_vec());
        files
    };
    let cases = [
        (
            without("checkpoint/inventory.img"),
            "the checkpoint is incomplete: checkpoint/inventory.img is missing",
        ),
        (
            without("checkpoint/pstree.img"),
            "the checkpoint is incomplete: checkpoint/pstree.img is missing",
        ),
        (
            without("checkpoint/core-7.img"),
            "the checkpoint is incomplete: checkpoint/core-7.img is missing",
        ),
        (
            with("checkpoint/pstree.img", b"junk"),
            "the checkpoint is damaged: checkpoint/pstree.img cannot be decoded",
        ),
        (
            with("stats-dump", b""),
            "the checkpoint is damaged: stats-dump cannot be decoded",
        ),
        (
            with("config.dump", b"{"),
            "the checkpoint is damaged: config.dump cannot be decoded",
        ),
        (
            with("spec.dump", b"[1]"),
            "the checkpoint is damaged: spec.dump cannot be decoded",
        ),
        (
            with("config.dump", &vec![b' '; (8 << 20) + 1]),
            "the checkpoint is unsafe: config.dump has 8388609 bytes, more than the limit of 8388608",
        ),
    ];
    for (files, expected) in cases {
        let error = of_archive(&files).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().is_some(), "{expected}");
    }
}

#[test]
fn an_entry_that_is_there_twice() {
    let mut bytes = fixture::tar(&fixture::archive());
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(fixture::tar(
        &[("config.dump".to_owned(), b"{}".to_vec())].into(),
    ));
    let error = of_bytes(bytes).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the checkpoint is unsafe: config.dump is there twice, again at offset "),
        "{error}"
    );
}

#[test]
fn bad_directories() {
    let temporary = tempfile::tempdir().unwrap();
    let empty = temporary.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(
        Summary::read(&empty),
        Err(Error::NotACheckpoint { .. })
    ));

    let linked = temporary.path().join("linked");
    fixture::write(&linked, &fixture::archive());
    fs::remove_file(linked.join("checkpoint/pages-1.img")).unwrap();
    symlink("/etc/passwd", linked.join("checkpoint/pages-1.img")).unwrap();
    assert_eq!(
        Summary::read(&linked).unwrap_err().to_string(),
        "the checkpoint is unsafe: checkpoint/pages-1.img is a symbolic link"
    );

    let images = temporary.path().join("images");
    fixture::write(&images, &fixture::images());
    fs::create_dir(images.join("sub")).unwrap();
    assert_eq!(
        Summary::read(&images).unwrap_err().to_string(),
        "the checkpoint is unsafe: sub is a directory"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_is_answered(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = fixture::tar(&fixture::archive());
        let _ = of_bytes(bytes[..cut.index(bytes.len())].to_vec());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = of_bytes(bytes);
    }
}
