//! Images of checkpoints: built and converted.
#![allow(clippy::unwrap_used)]

mod work;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use cryo_checkpoint::oci::model::{Config, Document, Index, Manifest};
use cryo_checkpoint::oci::{Digest, annotations};
use work::{Work, told, tree};

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

/// Writes the checkpoint in every form that says the same, and gives their names.
fn forms(work: &Work) -> Vec<&'static str> {
    let tar = fs::read(work.path("cp.tar")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    fs::write(work.path("cp.tar.gz"), gzip.finish().unwrap()).unwrap();
    let zstd = zstd::encode_all(&*tar, 1).unwrap();
    fs::write(work.path("cp.tar.zst"), zstd).unwrap();

    // In another order, of another owner, time and mode, without its directory.
    let mut entries = Vec::new();
    for entry in tar::Archive::new(&*tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let path = entry.path().unwrap().into_owned();
        if entry.header().entry_type().is_file() {
            entries.push((path, bytes));
        }
    }
    let mut turned = tar::Builder::new(Vec::new());
    for (path, bytes) in entries.iter().rev() {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_mtime(1_700_000_000);
        turned.append_data(&mut header, path, &**bytes).unwrap();
    }
    let turned = turned.into_inner().unwrap();
    fs::write(work.path("turned.tar"), &turned).unwrap();
    let zstd = zstd::encode_all(&*turned, 1).unwrap();
    fs::write(work.path("turned.tar.zst"), zstd).unwrap();

    for (path, bytes) in &entries {
        let path = work.path("unpacked").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::create_dir(work.path("unpacked/empty")).unwrap();
    vec![
        "cp.tar",
        "cp.tar.gz",
        "cp.tar.zst",
        "turned.tar",
        "turned.tar.zst",
        "unpacked",
    ]
}

/// A processor that we may use.
fn processor() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    allowed.trim().split([',', '-']).next().unwrap().to_owned()
}

#[test]
fn the_digest_is_that_of_the_content_alone() {
    // Of so many MiB, zstd has work for several threads.
    let work = Work::new(5);
    let forms = forms(&work);
    for compression in ["zstd", "gzip"] {
        let options = ["--compression", compression, "--level", "1"];
        let run = |mut command: Command| {
            let (code, stdout, stderr) = told(command.output().unwrap());
            assert_eq!((code, stderr.as_str()), (0, ""));
            stdout.trim().rsplit(' ').next().unwrap().to_owned()
        };
        let build = |from: &str| {
            let to = format!("oci:{compression}-{}", from.replace('/', "-"));
            let build = ["build", from, &to];
            run(work.command(&[&build[..], &options].concat()))
        };
        let digest = build("cp.tar");
        for form in &forms {
            assert_eq!(build(form), digest, "{form} with {compression}");
        }
        // What was built is a form as well.
        assert_eq!(build(&format!("{compression}-cp.tar")), digest);

        let elsewhere = work.path("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::copy(work.path("cp.tar"), elsewhere.join("other-name")).unwrap();
        let processor = processor();
        let (open, closed) = ("umask 000", "umask 077");
        let alone = format!("taskset -cp {processor} $$ > /dev/null");
        for (number, (setting, timezone)) in [
            (open, "Asia/Kathmandu"),
            (closed, "America/St_Johns"),
            (alone.as_str(), "UTC"),
        ]
        .into_iter()
        .enumerate()
        {
            let to = format!("oci:{compression}-{number}");
            let mut command = Command::new("/bin/sh");
            command
                .args(["-ec", &format!("{setting}; exec \"$0\" \"$@\"")])
                .arg(env!("CARGO_BIN_EXE_cryoctl"))
                .args(["build", "other-name", &to])
                .args(options)
                .current_dir(&elsewhere)
                .env("TZ", timezone);
            assert_eq!(run(command), digest, "{setting} with {compression}");
        }
        // In another second of the clock.
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(build("cp.tar"), digest);
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
