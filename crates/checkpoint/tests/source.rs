//! The forms in which a checkpoint comes, and what is refused of each.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;

use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::source::{Blob, Error, Form, Source};
use cryo_checkpoint::summary::Summary;
use fixture::Files;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

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

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

/// An OCI layout of an image with these layers.
fn layout(layers: &[Vec<u8>]) -> Files {
    let mut files = Files::new();
    let mut add = |bytes: Vec<u8>| {
        let descriptor = format!(
            r#"{{"mediaType":"","digest":"sha256:{}","size":{}}}"#,
            digest(&bytes),
            bytes.len()
        );
        files.insert(format!("blobs/sha256/{}", digest(&bytes)), bytes);
        descriptor
    };
    let config = add(b"{}".to_vec());
    let layers: Vec<_> = layers.iter().map(|layer| add(layer.clone())).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
        layers.join(",")
    );
    let manifest = add(manifest.into_bytes());
    files.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );
    files.insert(
        "index.json".into(),
        format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#).into_bytes(),
    );
    files
}

fn of_bytes(bytes: &[u8]) -> Result<Vec<Source>, Error> {
    Source::of_blob("cp", &Blob::from_bytes(bytes))
}

fn one(bytes: &[u8]) -> Result<Source, Error> {
    of_bytes(bytes).map(|sources| sources.into_iter().next().unwrap())
}

/// The error with its causes.
fn error<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn every_form_holds_the_same() {
    let plain = fixture::tar(&fixture::archive());
    let expected = Summary::of(&one(&plain).unwrap()).unwrap();
    assert_eq!(expected.form, Form::Archive);

    let layer = [plain.clone()];
    let cases = [
        ("gzip", gzip(&plain), Form::Archive),
        ("zstd", zstd(&plain), Form::Archive),
        ("bzip2", bzip2(&plain), Form::Archive),
        ("xz", xz(&plain), Form::Archive),
        ("oci", tar(&layout(&layer)), Form::OciArchive),
        (
            "oci of a gzip layer",
            tar(&layout(&[gzip(&plain)])),
            Form::OciArchive,
        ),
        (
            "compressed oci of a zstd layer",
            xz(&tar(&layout(&[zstd(&plain)]))),
            Form::OciArchive,
        ),
    ];
    let temporary = tempfile::tempdir().unwrap();
    for (name, bytes, form) in cases {
        let path = temporary.path().join("cp");
        fs::write(&path, &bytes).unwrap();
        for source in [one(&bytes).unwrap(), Source::open(&path).unwrap()] {
            let mut summary = Summary::of(&source).unwrap();
            assert_eq!(summary.form, form, "{name}");
            summary.form = Form::Archive;
            assert_eq!(summary, expected, "{name}");
        }
    }

    fixture::write(&temporary.path().join("layout"), &layout(&layer));
    let mut summary = Summary::read(&temporary.path().join("layout")).unwrap();
    assert_eq!(summary.form, Form::OciLayout);
    summary.form = Form::Archive;
    assert_eq!(summary, expected);

    // What `ctr` makes a blob of.
    let images = one(&tar(&fixture::images())).unwrap();
    assert_eq!(images.form(), Form::ImageArchive);
    assert_eq!(Summary::of(&images).unwrap().processes, expected.processes);
}

#[test]
fn pages_are_read_at_their_place_in_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let plain = fixture::tar(&fixture::archive());
    let path = temporary.path().join("cp.tar");
    let layout_path = temporary.path().join("layout");
    fs::write(&path, &plain).unwrap();
    fixture::write(&layout_path, &layout(std::slice::from_ref(&plain)));
    let unpacked = temporary.path().join("unpacked");
    fixture::write(&unpacked, &fixture::archive());
    for path in [&path, &layout_path, &unpacked] {
        let source = Source::open(path).unwrap();
        let section = source.section("checkpoint/pages-1.img").unwrap().unwrap();
        assert_eq!(section.length, 3 * 4096);
        let mut last = [0; 2];
        section
            .file
            .read_exact_at(&mut last, section.offset + section.length - 2)
            .unwrap();
        assert_eq!(last, [7, 7], "{}", path.display());
    }

    let packed = temporary.path().join("cp.tar.gz");
    fs::write(&packed, gzip(&plain)).unwrap();
    let source = Source::open(&packed).unwrap();
    assert!(source.section("checkpoint/pages-1.img").unwrap().is_none());
    let mut pages = Vec::new();
    source
        .reader("checkpoint/pages-1.img")
        .unwrap()
        .read_to_end(&mut pages)
        .unwrap();
    assert_eq!(pages, vec![7; 3 * 4096]);
}

#[test]
fn a_visit_reads_each_file_once_and_whole() {
    let mut files = fixture::archive();
    files.insert(
        "checkpoint/pages-2.img".into(),
        (0..9000u32).flat_map(u32::to_le_bytes).collect(),
    );
    let plain = fixture::tar(&files);
    for bytes in [plain.clone(), zstd(&plain)] {
        let source = one(&bytes).unwrap();
        let mut found = Files::new();
        let all = |found: &mut Files, every: usize| {
            let mut number = 0;
            source
                .visit(
                    |_| {
                        number += 1;
                        number % every == 0
                    },
                    |entry, content| {
                        let mut bytes = Vec::new();
                        content.read_to_end(&mut bytes).unwrap();
                        found.insert(entry.name.clone(), bytes);
                        Ok::<_, Error>(())
                    },
                )
                .unwrap();
        };
        all(&mut found, 1);
        assert_eq!(found, files);
        let mut some = Files::new();
        all(&mut some, 3);
        assert!(some.len() > 4 && some.iter().all(|(name, bytes)| files[name] == *bytes));
        // Nobody has to read to the end.
        source
            .visit(
                |_| true,
                |_, content| {
                    content
                        .read(&mut [0; 3])
                        .map(|_| ())
                        .map_err(|e| panic!("{e}"))
                },
            )
            .unwrap_or_else(|e: Error| panic!("{e}"));
    }
}

#[test]
fn pods() {
    let container = |name: &str| {
        let mut files = fixture::archive();
        let config = format!(r#"{{"id":"{name}"}}"#);
        files.insert("config.dump".into(), config.into_bytes());
        files
    };
    // Directories, as CRI-O has them.
    let mut files = Files::from([("pod.options".to_owned(), b"{}".to_vec())]);
    for name in ["b", "a"] {
        for (file, bytes) in container(name) {
            files.insert(format!("{name}-ctr/{file}"), bytes);
        }
    }
    // Archives, as containerd has them.
    let archives = Files::from([
        ("checkpoint-manifest.json".to_owned(), b"{}".to_vec()),
        (
            "container-a.tar".to_owned(),
            tar(&layout(&[zstd(&fixture::tar(&container("a")))])),
        ),
        ("container-b.tar".to_owned(), fixture::tar(&container("b"))),
    ]);
    let temporary = tempfile::tempdir().unwrap();
    let unpacked = temporary.path().join("pod");
    fixture::write(&unpacked, &files);
    for (name, sources) in [
        ("directories", of_bytes(&tar(&files))),
        ("compressed", of_bytes(&gzip(&tar(&files)))),
        ("archives", of_bytes(&tar(&archives))),
        ("compressed archives", of_bytes(&bzip2(&tar(&archives)))),
        ("unpacked", Source::open_all(&unpacked)),
    ] {
        let sources = sources.unwrap();
        let ids: Vec<_> = sources
            .iter()
            .map(|source| Summary::of(source).unwrap().container.unwrap().id.unwrap())
            .collect();
        assert_eq!(ids, ["a", "b"], "{name}");
    }
    let path = temporary.path().join("pod.tar");
    fs::write(&path, tar(&archives)).unwrap();
    let text = error(Source::open(&path)).replace(&path.display().to_string(), "P");
    assert_eq!(
        text,
        "P is of a pod with several containers: P: container-a.tar, P: container-b.tar"
    );
}

#[test]
fn images_that_are_not_what_they_say() {
    let plain = fixture::tar(&fixture::archive());
    let good = layout(std::slice::from_ref(&plain));
    let layer = format!("blobs/sha256/{}", digest(&plain));

    let mut changed = good.clone();
    let byte = changed.get_mut(&layer).unwrap().last_mut().unwrap();
    *byte ^= 1;
    let found = digest(&changed[&layer]);
    assert_eq!(
        error(of_bytes(&tar(&changed))),
        format!(
            "the image is damaged: sha256:{} has other content: sha256:{found}",
            digest(&plain)
        )
    );

    let mut short = good.clone();
    short.get_mut(&layer).unwrap().pop();
    let text = error(of_bytes(&tar(&short)));
    assert!(
        text.ends_with(&format!("{} bytes, not {}", plain.len() - 1, plain.len())),
        "{text}"
    );

    let mut missing = good.clone();
    missing.remove(&layer);
    assert_eq!(
        error(of_bytes(&tar(&missing))),
        format!("the checkpoint is incomplete: {layer} is missing")
    );

    let text = error(of_bytes(&tar(&layout(&[plain.clone(), plain.clone()]))));
    assert!(
        text.ends_with("is not of a checkpoint's image: it has 2 layers and not one"),
        "{text}"
    );
    let text = error(of_bytes(&tar(&layout(&[tar(&Files::from([(
        "etc/passwd".to_owned(),
        vec![],
    )]))]))));
    assert!(
        text.contains("is not a checkpoint: it has neither inventory.img"),
        "{text}"
    );

    // Nothing is opened by a digest that is a path.
    for (index, expected) in [
        (
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"","digest":"sha256:../../etc/passwd","size":1}]}"#,
            "is no digest of the form",
        ),
        (
            r#"{"schemaVersion":2,"manifests":[]}"#,
            "index.json is not of a checkpoint's image: the index has no image for linux/",
        ),
        (
            "{",
            "index.json is not of a checkpoint's image: the image's document cannot be decoded: EOF",
        ),
    ] {
        let mut files = good.clone();
        files.insert("index.json".into(), index.as_bytes().to_vec());
        let text = error(of_bytes(&tar(&files)));
        assert!(text.contains(expected), "{text}");
    }
    // An image in an image.
    let text = error(of_bytes(&tar(&layout(&[tar(&good)]))));
    assert!(text.contains("is not a checkpoint"), "{text}");
}

#[test]
fn what_no_engine_writes() {
    let plain = fixture::tar(&fixture::archive());
    let cut = &plain[..plain.len() / 2];
    assert!(error(of_bytes(cut)).starts_with("the archive is cut off at offset "));
    for packed in [gzip(&plain), zstd(&plain), bzip2(&plain), xz(&plain)] {
        let text = error(of_bytes(&packed[..packed.len() / 2]));
        assert!(text.contains("at offset "), "{text}");
        let mut last = packed.clone();
        let at = last.len() - 5;
        last[at] ^= 1;
        assert!(of_bytes(&last).is_err(), "a wrong checksum is noticed");
    }
    assert_eq!(
        error(of_bytes(&gzip(&gzip(&plain)))),
        "the archive is compressed with gzip"
    );
    assert_eq!(error(of_bytes(b"")), "the archive is cut off at offset 0");
    let text = error(of_bytes(&tar(&Files::from([("a".to_owned(), vec![])]))));
    assert_eq!(
        text,
        "cp is not a checkpoint: it has neither inventory.img nor a directory checkpoint"
    );
    let text = error(of_bytes(&tar(&Files::from([(
        "a.tar".to_owned(),
        b"x".to_vec(),
    )]))));
    assert_eq!(text, "a.tar: the archive is cut off at offset 0");

    // A file in the place of a directory.
    let mut twice = plain[..plain.len() - 1024].to_vec();
    let at = twice.len();
    twice.extend(tar(&Files::from([("checkpoint".to_owned(), vec![])])));
    assert_eq!(
        error(of_bytes(&twice)),
        format!("the checkpoint is unsafe: checkpoint is there twice, again at offset {at}")
    );
}

#[test]
fn links_in_directories() {
    let spoiled = |spoil: &dyn Fn(&Path)| {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("cp");
        fixture::write(&path, &layout(&[fixture::tar(&fixture::archive())]));
        spoil(&path);
        error(Source::open(&path))
    };
    let text = spoiled(&|path| {
        let blobs = path.join("blobs/sha256");
        fs::rename(&blobs, path.join("elsewhere")).unwrap();
        symlink("../elsewhere", &blobs).unwrap();
    });
    assert!(text.contains("sha256 is a symbolic link"), "{text}");
    let text = spoiled(&|path| {
        let index = path.join("index.json");
        fs::rename(&index, path.join("elsewhere")).unwrap();
        symlink("elsewhere", &index).unwrap();
    });
    assert_eq!(
        text,
        "the checkpoint is unsafe: index.json is a symbolic link"
    );
}
