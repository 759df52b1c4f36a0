//! Images of checkpoints: built, pushed, pulled, and cut off on the way.
#![allow(clippy::unwrap_used)]

#[path = "../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;
mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cryo_checkpoint::oci::model::{Config, Document, Index, Manifest};
use cryo_checkpoint::oci::{Digest, annotations};
use registry::{Behaviour, Registry, base64};

/// Where a test works, and a checkpoint in it: `cp.tar`.
struct Work(tempfile::TempDir);

impl Work {
    /// With so many MiB of memory that does not compress.
    fn new(memory_mib: usize) -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        let mut files = fixture::archive();
        if memory_mib > 0 {
            let mut word = 1u64;
            let mut random = || {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()
            };
            let pages = (0..memory_mib << 17).flat_map(|_| random()).collect();
            files.insert("checkpoint/pages-1.img".into(), pages);
        }
        fs::write(work.path("cp.tar"), fixture::tar(&files)).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exit code, stdout, stderr.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_cryoctl"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .env("HOME", self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        (code, text(output.stdout), text(output.stderr))
    }

    /// The digest that a run prints at the end.
    fn digest(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        let digest = stdout.trim().rsplit(' ').next().unwrap();
        digest.parse::<Digest>().unwrap();
        digest.to_owned()
    }

    /// What a run that fails says.
    fn error(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{arguments:?}: {stderr}");
        stderr
    }

    /// What is said of a checkpoint.
    fn summary(&self, what: &str) -> BTreeMap<String, serde_json::Value> {
        let (code, stdout, stderr) = self.run(&["summary", "--format", "json", what]);
        assert_eq!(code, 0, "{stderr}");
        let mut summary: BTreeMap<_, _> = serde_json::from_str(&stdout).unwrap();
        summary.remove("form");
        summary
    }
}

/// The files below a directory with their content.
fn tree(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            files.extend(tree(&entry));
        } else {
            let name = entry.strip_prefix(path.parent().unwrap()).unwrap();
            files.insert(name.to_owned(), fs::read(&entry).unwrap());
        }
    }
    files
}

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
fn a_registry_gets_and_gives_the_same() {
    let work = Work::new(0);
    let registry = Registry::new(Behaviour::default());
    let name = format!("docker://{}/cp:1", registry.host);
    let digest = work.digest(&["build", "cp.tar", &name]);
    assert_eq!(work.digest(&["build", "cp.tar", "oci:built:1"]), digest);
    assert_eq!(work.digest(&["pull", &name, "oci:pulled:1"]), digest);
    assert_eq!(
        tree(&work.path("built")).len(),
        tree(&work.path("pulled")).len()
    );
    assert_eq!(
        tree(&work.path("built/blobs")),
        tree(&work.path("pulled/blobs"))
    );
    assert_eq!(work.summary("pulled"), work.summary("cp.tar"));
    // By its digest, and what is there is not sent again.
    let by_digest = format!("{}/cp@{digest}", registry.host);
    assert_eq!(
        work.digest(&["pull", &by_digest, "oci-archive:pulled.tar"]),
        digest
    );
    registry.log();
    let taken = registry.taken();
    assert_eq!(
        work.digest(&[
            "push",
            "oci:built:1",
            &name.replace(":1", ":2").replace("docker://", "")
        ]),
        digest
    );
    assert_eq!(registry.taken(), taken);
    assert!(
        registry.log().iter().all(|line| !line.starts_with("POST")),
        "blobs are sent again"
    );
    assert!(registry.names().contains(&"2".to_owned()));
    let error = work.error(&["pull", &name.replace(":1", ":9"), "oci:x"]);
    assert!(
        error.contains("404 Not Found: MANIFEST_UNKNOWN no such tag"),
        "{error}"
    );
}

#[test]
fn an_upload_goes_on_where_it_was_cut() {
    let work = Work::new(20);
    let digest = work.digest(&["build", "cp.tar", "oci:built"]);
    let registry = Registry::new(Behaviour {
        cut_chunks: 3,
        cut_answers: 1,
        ..Behaviour::default()
    });
    let to = format!("{}/cp:1", registry.host);
    assert_eq!(work.digest(&["push", "oci:built", &to]), digest);
    assert_eq!(registry.taken(), registry.stored(), "bytes are sent twice");
    let patches = registry
        .log()
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .count();
    assert!(patches >= 5, "{patches}");
    assert_eq!(work.digest(&["pull", &to, "oci:pulled"]), digest);
    assert_eq!(
        tree(&work.path("built/blobs")),
        tree(&work.path("pulled/blobs"))
    );
}

#[test]
fn a_download_goes_on_where_it_was_cut() {
    let work = Work::new(1);
    let registry = Registry::new(Behaviour::default());
    let name = format!("{}/cp:1", registry.host);
    let digest = work.digest(&["build", "cp.tar", &format!("docker://{name}")]);
    for (no_ranges, to) in [(false, "oci:a"), (true, "oci:b")] {
        registry.behave(Behaviour {
            cut_blobs: 3,
            no_ranges,
            ..Behaviour::default()
        });
        registry.log();
        assert_eq!(work.digest(&["pull", &name, to]), digest);
        let ranges = registry
            .log()
            .iter()
            .filter(|line| line.contains(" bytes="))
            .count();
        assert!(ranges >= 3, "{ranges} requests for a range");
    }
    assert_eq!(work.summary("a"), work.summary("cp.tar"));
    assert_eq!(work.summary("b"), work.summary("cp.tar"));
}

#[test]
fn a_pull_goes_on_where_another_ended() {
    let work = Work::new(1);
    let registry = Registry::new(Behaviour::default());
    let name = format!("{}/cp:1", registry.host);
    let digest = work.digest(&["build", "cp.tar", &format!("docker://{name}")]);
    registry.behave(Behaviour {
        cut_blobs: 1,
        then_busy: usize::MAX,
        ..Behaviour::default()
    });
    let error = work.error(&["pull", &name, "oci:pulled"]);
    assert!(error.contains("503 Service Unavailable"), "{error}");
    assert!(
        !work.path("pulled/index.json").exists(),
        "half an image has a name"
    );
    let partial: Vec<_> = tree(&work.path("pulled/blobs"))
        .into_iter()
        .filter(|(name, _)| name.extension().is_some_and(|e| e == "partial"))
        .collect();
    assert_eq!(partial.len(), 1, "{partial:?}");
    let length = partial[0].1.len();
    assert!(length > 100_000, "{length}");

    registry.behave(Behaviour::default());
    registry.log();
    assert_eq!(work.digest(&["pull", &name, "oci:pulled"]), digest);
    let range = format!("bytes={length}-");
    assert!(
        registry.log().iter().any(|line| line.ends_with(&range)),
        "{range}"
    );
    assert_eq!(work.summary("pulled"), work.summary("cp.tar"));
}

#[test]
fn a_hostile_registry_gets_nothing_in() {
    let work = Work::new(0);
    let registry = Registry::new(Behaviour::default());
    let name = format!("{}/cp:1", registry.host);
    let digest = work.digest(&["build", "cp.tar", &format!("docker://{name}")]);
    let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
    let itself = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":9}}]}}"#
    );
    for (bytes, wanted) in [
        (b"<html>".to_vec(), "cannot be decoded"),
        (vec![b' '; 5 << 20], "more than 4194304 bytes"),
        (
            format!(r#"{{"schemaVersion":2,"manifests":[],"config":{descriptor},"layers":[]}}"#).into_bytes(),
            "both an index and a manifest",
        ),
        (itself.into_bytes(), "bytes instead of 9"),
        (
            br#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:../../x","size":1}]}"#.to_vec(),
            "is no digest",
        ),
    ] {
        registry.behave(Behaviour {
            manifest: Some(bytes),
            ..Behaviour::default()
        });
        let error = work.error(&["pull", &name, "oci:pulled"]);
        assert!(error.contains(wanted), "{error}");
    }
    registry.behave(Behaviour {
        corrupt: true,
        ..Behaviour::default()
    });
    let error = work.error(&["pull", &name, "oci:pulled"]);
    assert!(error.contains("it was changed or damaged"), "{error}");
    let left = tree(&work.path("pulled"));
    assert!(
        !left.contains_key(Path::new("pulled/index.json")),
        "{left:?}"
    );
    registry.behave(Behaviour::default());
    work.digest(&["pull", &name, "oci:pulled"]);
}

#[test]
fn credentials_are_found_and_kept() {
    let work = Work::new(0);
    let stranger = Registry::new(Behaviour::default());
    for for_token in [false, true] {
        let registry = Registry::new(Behaviour {
            password: Some(("geheim", for_token)),
            ..Behaviour::default()
        });
        let name = format!("docker://{}/cp:1", registry.host);
        let error = work.error(&["build", "cp.tar", &name]);
        assert!(
            error.contains("401 Unauthorized") && error.contains("docker login"),
            "{error}"
        );
        let auth = base64("me:geheim");
        let file = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host);
        fs::write(work.path("auth.json"), &file).unwrap();
        let digest = work.digest(&["build", "cp.tar", &name, "--authfile", "auth.json"]);
        // Docker's own place.
        fs::create_dir_all(work.path(".docker")).unwrap();
        fs::write(work.path(".docker/config.json"), &file).unwrap();
        assert_eq!(work.digest(&["pull", &name, "oci:pulled"]), digest);

        // What goes to another host goes there without them.
        work.digest(&["push", "oci:pulled", &format!("{}/cp:1", stranger.host)]);
        registry.behave(Behaviour {
            password: Some(("geheim", for_token)),
            redirect: Some(format!("http://{}", stranger.host)),
            ..Behaviour::default()
        });
        stranger.log();
        assert_eq!(work.digest(&["pull", &name, "oci:redirected"]), digest);
        let log = stranger.log();
        assert!(log.iter().any(|line| line.starts_with("GET")), "{log:?}");
        assert!(
            log.iter().all(|line| !line.contains("authorized")),
            "{log:?}"
        );
        fs::remove_dir_all(work.path("redirected")).unwrap();
        fs::remove_dir_all(work.path("pulled")).unwrap();
        fs::remove_dir_all(work.path(".docker")).unwrap();
    }
    let error = work.error(&["pull", "127.0.0.1:1/x", "oci:y", "--authfile", "none"]);
    assert!(error.contains("127.0.0.1:1"), "{error}");
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
