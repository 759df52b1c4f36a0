//! Images of checkpoints: built and converted.
#![allow(clippy::unwrap_used)]

mod work;

use std::fs;
use std::path::Path;

use cryo_checkpoint::oci::model::{Config, Document, Index, Manifest};
use cryo_checkpoint::oci::{Digest, annotations};
use work::{Work, tree};

fn blob(layout: &Path, digest: &Digest) -> Vec<u8> {
    fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap()
}

#[test]
fn an_image_is_reproducible_and_says_what_the_checkpoint_says() {
    let work = Work::new(1);
    let facts = ["--fact", "engine.version=2.1.9", "--annotation", "mine=yes"];
    for compression in [
        &["--compression", "zstd"][..],
        &["--compression", "gzip", "--level", "1"],
        &["--compression", "none"],
    ] {
        let build = |to: &str| {
            let mut arguments = vec!["build", "cp.tar", to];
            arguments.extend(facts);
            arguments.extend(compression);
            work.digest(&arguments)
        };
        let digest = build("oci:one:tag");
        assert_eq!(build("oci:two:tag"), digest);
        assert_eq!(build("oci-archive:three.tar:tag"), digest);
        assert_eq!(tree(&work.path("one/blobs")), tree(&work.path("two/blobs")));
        let expected = work.summary("cp.tar");
        assert_eq!(work.summary("one"), expected);
        assert_eq!(work.summary("three.tar"), expected);

        let layout = work.path("one");
        let root = Index::parse("", &fs::read(layout.join("index.json")).unwrap()).unwrap();
        assert_eq!(root.manifests.len(), 1);
        let entry = &root.manifests[0];
        assert_eq!(entry.digest.to_string(), digest);
        assert_eq!(
            entry.annotations["org.opencontainers.image.ref.name"],
            "tag"
        );
        let index = match Document::parse(None, &blob(&layout, &entry.digest)).unwrap() {
            Document::Index(index) => index,
            other => panic!("{other:?}"),
        };
        let manifest = Manifest::parse(&blob(&layout, &index.manifests[0].digest)).unwrap();
        let config = Config::parse(&blob(&layout, &manifest.config.digest)).unwrap();
        assert_eq!(config.platform.architecture, "amd64");
        for said in [&index.annotations, &manifest.annotations] {
            for (key, value) in [
                (annotations::CRIO_NAME, "looper"),
                ("org.criu.checkpoint.container.name", "looper"),
                ("org.criu.checkpoint.engine.version", "2.1.9"),
                ("org.criu.checkpoint.pod.name", "pod1"),
                ("org.criu.checkpoint.host.arch", "amd64"),
                (
                    "io.podman.annotations.checkpoint.runtime.name",
                    "io.containerd.runc.v2",
                ),
                ("mine", "yes"),
            ] {
                assert_eq!(said.get(key).map(String::as_str), Some(value), "{key}");
            }
        }
        fs::remove_dir_all(work.path("one")).unwrap();
        fs::remove_dir_all(work.path("two")).unwrap();
    }
}

#[test]
fn several_images_are_in_one_layout() {
    let work = Work::new(0);
    let first = work.digest(&["build", "cp.tar", "oci:all:a"]);
    let second = work.digest(&["build", "cp.tar", "oci:all:b", "--annotation", "x=y"]);
    assert_ne!(first, second);
    assert_eq!(work.digest(&["pull", "oci:all:a", "oci:some:c"]), first);
    assert_eq!(
        work.digest(&["pull", "oci:all:b", "oci-archive:b.tar"]),
        second
    );
    assert_eq!(
        work.digest(&["pull", "oci-archive:b.tar", "oci:some:c"]),
        second
    );
    let error = work.error(&["pull", "oci:all", "oci:some:d"]);
    assert!(
        error.contains("several images, so name one as PLACE:TAG: a, b"),
        "{error}"
    );
    let error = work.error(&["pull", "oci:all:z", "oci:some:d"]);
    assert!(error.contains("no image with the tag \"z\""), "{error}");
}

#[test]
fn what_cannot_be_said_is_refused() {
    let work = Work::new(0);
    let error = work.error(&["build", "cp.tar", "oci:x", "--fact", "runtime.name=crun"]);
    assert!(error.contains("says runtime.name is"), "{error}");
    let error = work.error(&["build", "cp.tar", "oci:x", "--fact", "weather=fine"]);
    assert!(error.contains("cgroup.version, conmon.version"), "{error}");
    let error = work.error(&["build", "cp.tar", "oci:."]);
    assert!(error.contains("no OCI layout, and not empty"), "{error}");
    let (code, _, error) = work.run(&["build", "cp.tar", "containers-storage:x"]);
    assert_eq!(code, 2);
    assert!(error.contains("podman load"), "{error}");
    assert!(!work.path("x").exists());
}

#[test]
fn an_archive_is_converted_and_back() {
    let work = Work::new(0);
    let notes = |arguments: &[&str]| {
        let (code, stdout, stderr) = work.run(arguments);
        assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
        stderr
    };
    let said = notes(&["convert", "--to", "podman", "cp.tar", "podman.tar"]);
    assert!(
        said.contains("note: config.dump is Podman's whole configuration"),
        "{said}"
    );
    let mut expected = work.summary("cp.tar");
    let mut podman = work.summary("podman.tar");
    assert_eq!(podman["container"]["engine"], "podman");
    assert_eq!(podman["container"]["runtime"], "runc");
    assert_eq!(podman["processes"], expected["processes"]);
    notes(&["convert", "--to", "containerd", "podman.tar", "back.tar"]);
    let mut back = work.summary("back.tar");
    for summary in [&mut expected, &mut podman, &mut back] {
        summary.remove("size");
    }
    assert_eq!(back, expected);
    let error = work.error(&["convert", "--to", "containerd", "cp.tar", "same.tar"]);
    assert!(error.contains("is one of containerd already"), "{error}");
    assert!(!work.path("same.tar").exists());
}
