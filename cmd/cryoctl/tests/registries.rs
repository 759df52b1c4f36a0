//! Images to registries and from them: cut off on the way, by one who is asked who he is, by
//! HTTPS.
#![allow(clippy::unwrap_used)]

mod registry;
mod work;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use registry::authority::Authority;
use registry::{Behaviour, Registry, base64, wait_for};
use work::{Work, told, tree};

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
        let auth = base64(b"me:geheim");
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

/// What is kept of uploads that did not end.
fn notes(work: &Work) -> Vec<PathBuf> {
    let folder = fs::read_dir(work.path(".cache/cryo/uploads"));
    let entries = folder.into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A push or build that is killed within its second chunk, of 16 MiB.
fn killed_push(
    work: &Work,
    registry: &Registry,
    arguments: &[&str],
    forgetful: bool,
) -> Vec<String> {
    registry.behave(Behaviour {
        hold_chunk: Some(1),
        forgetful,
        ..Behaviour::default()
    });
    let mut push = work.command(arguments).spawn().unwrap();
    registry.wait_held();
    push.kill().unwrap();
    push.wait().unwrap();
    assert_eq!(registry.names(), [""; 0], "half an image has a name");
    let [note] = &notes(work)[..] else {
        panic!("{:?}", notes(work));
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(note), mode(note.parent().unwrap())), (0o600, 0o700));
    registry.behave(Behaviour {
        forgetful,
        ..Behaviour::default()
    });
    registry.log()
}

#[test]
fn a_push_or_build_goes_on_where_a_killed_one_was() {
    let work = Work::new(40);
    let plain = ["--compression", "none"];
    let digest = work.digest(&[&["build", "cp.tar", "oci:built"], &plain[..]].concat());
    let posts = |log: &[String]| log.iter().filter(|line| line.starts_with("POST")).count();

    for push in [true, false] {
        let upload = |registry: &Registry| {
            let to = format!("docker://{}/cp:1", registry.host);
            let command: Vec<&str> = match push {
                true => vec!["push", "oci:built", &to],
                false => [&["build", "cp.tar", &to], &plain[..]].concat(),
            };
            command.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let registry = Registry::new(Behaviour::default());
        let command = upload(&registry);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let first = killed_push(&work, &registry, &command, false);
        assert!(registry.taken() >= 24 << 20, "{}", registry.taken());
        assert_eq!(work.digest(&command), digest);
        assert_eq!(registry.taken(), registry.stored(), "bytes are sent twice");
        // One for each blob, in both together.
        assert_eq!(posts(&first) + posts(&registry.log()), 2);
        assert!(notes(&work).is_empty());
        if push {
            assert_eq!(work.digest(&command), digest);
            assert_eq!(posts(&registry.log()), 0, "what is there is sent again");
        }

        // One that does not know the upload any more, or has something else, gets all of it.
        let ways: &[bool] = if push { &[true, false] } else { &[true] };
        for &forgetful in ways {
            let registry = Registry::new(Behaviour::default());
            let command = upload(&registry);
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            killed_push(&work, &registry, &command, forgetful);
            registry.damage_uploads();
            assert_eq!(work.digest(&command), digest);
            assert!(registry.taken() > registry.stored());
            assert!(notes(&work).is_empty());
            let from = format!("{}/cp:1", registry.host);
            let to = format!("oci:pulled-{push}-{forgetful}");
            assert_eq!(work.digest(&["pull", &from, &to]), digest);
        }
    }
}

#[test]
fn a_build_does_not_go_on_with_another_checkpoint() {
    let work = Work::new(40);
    let registry = Registry::new(Behaviour::default());
    let to = format!("docker://{}/cp:1", registry.host);
    let command = ["build", "cp.tar", &to, "--compression", "none"];
    killed_push(&work, &registry, &command, false);
    // As long as the other, of the same time and name: only the digest tells.
    let mut other = fs::read(work.path("cp.tar")).unwrap();
    let within_pages = other.len() / 2;
    other[within_pages] ^= 1;
    fs::write(work.path("cp.tar"), &other).unwrap();
    let expected = work.digest(&["build", "cp.tar", "oci:other", "--compression", "none"]);
    assert_eq!(work.digest(&command), expected);
    assert_eq!(work.digest(&["pull", &to, "oci:pulled"]), expected);
    assert!(notes(&work).is_empty());
}

#[test]
fn an_upload_that_is_forgotten_is_begun_anew() {
    let work = Work::new(20);
    let digest = work.digest(&["build", "cp.tar", "oci:built", "--compression", "none"]);
    let registry = Registry::new(Behaviour {
        cut_chunks: 1,
        forgetful: true,
        ..Behaviour::default()
    });
    let to = format!("{}/cp:1", registry.host);
    assert_eq!(work.digest(&["push", "oci:built", &to]), digest);
    assert!(registry.taken() > registry.stored());
    // Not for ever.
    let registry = Registry::new(Behaviour {
        cut_chunks: usize::MAX,
        forgetful: true,
        ..Behaviour::default()
    });
    let to = format!("{}/cp:1", registry.host);
    let error = work.error(&["push", "oci:built", &to]);
    assert!(
        error.contains("the registry has forgotten the upload"),
        "{error}"
    );
}

#[test]
fn a_pull_goes_on_where_a_killed_one_was() {
    let work = Work::new(4);
    let registry = Registry::new(Behaviour::default());
    let name = format!("{}/cp:1", registry.host);
    let digest = work.digest(&["build", "cp.tar", &format!("docker://{name}")]);
    registry.behave(Behaviour {
        hold_blob: true,
        ..Behaviour::default()
    });
    let mut pull = work
        .command(&["pull", &name, "oci:pulled"])
        .spawn()
        .unwrap();
    registry.wait_held();
    let partial = || {
        let mut files = fs::read_dir(work.path("pulled/blobs/sha256"))
            .ok()?
            .flatten();
        files.find(|file| file.path().extension().is_some_and(|end| end == "partial"))
    };
    let length = || Some(partial()?.metadata().ok()?.len());
    let half = registry.stored() as u64 / 2 - 1000;
    wait_for("half a blob", || length() > Some(half));
    pull.kill().unwrap();
    pull.wait().unwrap();
    let length = length().unwrap();
    registry.behave(Behaviour::default());
    registry.log();
    assert_eq!(work.digest(&["pull", &name, "oci:pulled"]), digest);
    let range = format!("bytes={length}-");
    let log = registry.log();
    assert!(log.iter().any(|line| line.ends_with(&range)), "{log:?}");
    assert!(partial().is_none());
    assert_eq!(work.summary("pulled"), work.summary("cp.tar"));
}

/// Puts a program for credentials into PATH that gives these, and writes down for whom.
fn helper(work: &Work, name: &str, user: &str, secret: &str) {
    let program = work.path(&format!("bin/docker-credential-{name}"));
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    let said = work.path("asked");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 9\ncat >>{}\necho '{{\"Username\":\"{user}\",\"Secret\":\"{secret}\"}}'\n",
        said.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn helpers_are_asked() {
    let work = Work::new(0);
    fs::create_dir_all(work.path(".docker")).unwrap();
    helper(&work, "good", "me", "geheim");
    helper(&work, "token", "<token>", "ticket");
    for (for_token, identity, config) in [
        (
            false,
            None,
            r#"{"credHelpers":{"HOST":"good"},"credsStore":"bad"}"#,
        ),
        (false, None, r#"{"auths":{"HOST":{}},"credsStore":"good"}"#),
        (true, None, r#"{"credsStore":"good"}"#),
        (true, Some("ticket"), r#"{"credsStore":"token"}"#),
    ] {
        let registry = Registry::new(Behaviour {
            password: Some(("geheim", for_token)),
            identity,
            ..Behaviour::default()
        });
        let config = config.replace("HOST", &registry.host);
        fs::write(work.path(".docker/config.json"), config).unwrap();
        let name = format!("docker://{}/cp:1", registry.host);
        work.digest(&["build", "cp.tar", &name]);
        let asked = fs::read_to_string(work.path("asked")).unwrap();
        assert!(asked.ends_with(&registry.host), "{asked}");
    }

    // What goes wrong with one is told.
    let registry = Registry::new(Behaviour {
        password: Some(("geheim", false)),
        ..Behaviour::default()
    });
    let name = format!("docker://{}/cp:1", registry.host);
    let with = |store: &str| {
        let config = format!(r#"{{"credsStore":"{store}"}}"#);
        fs::write(work.path(".docker/config.json"), config).unwrap();
        work.error(&["build", "cp.tar", &name])
    };
    let error = with("none");
    assert!(
        error.contains("docker-credential-none: No such file"),
        "{error}"
    );
    let program = work.path("bin/docker-credential-good");
    fs::write(&program, "#!/bin/sh\necho the keyring is locked\nexit 1\n").unwrap();
    let error = with("good");
    assert!(
        error.contains("docker-credential-good, which fails: the keyring is locked"),
        "{error}"
    );
    fs::write(
        &program,
        "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n",
    )
    .unwrap();
    let error = with("good");
    assert!(error.contains("log in with 'docker login'"), "{error}");
}

#[test]
fn a_wrong_password_is_told_from_none() {
    let work = Work::new(0);
    for for_token in [false, true] {
        let registry = Registry::new(Behaviour {
            password: Some(("geheim", for_token)),
            ..Behaviour::default()
        });
        let auth = base64(b"me:wrong");
        let file = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host);
        fs::write(work.path("auth.json"), &file).unwrap();
        let name = format!("docker://{}/cp:1", registry.host);
        let error = work.error(&["build", "cp.tar", &name, "--authfile", "auth.json"]);
        assert!(
            error.contains("does not take the password of \"me\" from auth.json")
                && error.contains("docker login")
                && !error.contains("wrong"),
            "{error}"
        );
        // It is not tried again and again.
        let log = registry.log();
        let tries = log.iter().filter(|line| line.ends_with(" authorized"));
        assert_eq!(tries.count(), 1, "{log:?}");
    }
}

#[test]
fn tokens_are_for_what_is_done_and_got_anew() {
    let work = Work::new(20);
    let registry = Registry::new(Behaviour {
        password: Some(("geheim", true)),
        token_uses: Some(3),
        ..Behaviour::default()
    });
    let name = format!("{}/cp:1", registry.host);
    let auth = base64(b"me:geheim");
    let file = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host);
    fs::write(work.path("auth.json"), &file).unwrap();
    let to = format!("docker://{name}");
    let digest = work.digest(&["build", "cp.tar", &to, "--authfile", "auth.json"]);
    assert_eq!(registry.taken(), registry.stored(), "bytes are sent twice");
    let tokens = |log: Vec<String>| -> Vec<String> {
        log.into_iter()
            .filter(|line| line.contains("/token"))
            .collect()
    };
    let log = tokens(registry.log());
    assert!(log.len() > 1, "{log:?}");
    for line in log {
        let wanted = "GET /token?service=here&scope=repository:cp:pull,push authorized";
        assert_eq!(line, wanted);
    }
    let pull = ["pull", &name, "oci:pulled", "--authfile", "auth.json"];
    assert_eq!(work.digest(&pull), digest);
    for line in tokens(registry.log()) {
        assert_eq!(
            line,
            "GET /token?service=here&scope=repository:cp:pull authorized"
        );
    }
}

#[test]
fn https_is_with_whom_one_trusts() {
    let work = Work::new(0);
    let (authority, other) = (Authority::new(), Authority::new());
    fs::write(work.path("ca.pem"), &authority.pem).unwrap();
    fs::write(
        work.path("both.pem"),
        format!("{}{}", other.pem, authority.pem),
    )
    .unwrap();
    fs::write(work.path("other.pem"), &other.pem).unwrap();
    let registry = Registry::secure(
        Behaviour {
            password: Some(("geheim", true)),
            ..Behaviour::default()
        },
        authority.server("127.0.0.1", 4000),
    );
    let auth = base64(b"me:geheim");
    let file = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.host);
    fs::create_dir_all(work.path(".docker")).unwrap();
    fs::write(work.path(".docker/config.json"), &file).unwrap();
    let name = format!("{}/cp:1", registry.host);
    let to = format!("docker://{name}");

    for ca in [&[][..], &["--ca", "other.pem"]] {
        let error = work.error(&[&["build", "cp.tar", &to], ca].concat());
        assert!(
            error.contains("is of an authority that is not known here") && error.contains("--ca"),
            "{error}"
        );
    }
    assert_eq!(registry.log(), [""; 0], "it was asked by HTTP");
    let digest = work.digest(&["build", "cp.tar", &to, "--ca", "both.pem"]);
    assert_eq!(
        work.digest(&["pull", &name, "oci:a", "--ca", "ca.pem"]),
        digest
    );
    // As with everything that uses OpenSSL.
    let mut push = work.command(&["push", "oci:a", &name.replace(":1", ":2")]);
    let (code, _, error) = told(push.env("SSL_CERT_FILE", "ca.pem").output().unwrap());
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(registry.names().contains(&"2".to_owned()));
    assert!(
        registry
            .log()
            .iter()
            .any(|line| line.starts_with("GET /token"))
    );

    // From there it goes nowhere without encryption.
    let open = Registry::new(Behaviour::default());
    registry.behave(Behaviour {
        redirect: Some(format!("http://{}", open.host)),
        ..Behaviour::default()
    });
    let error = work.error(&["pull", &name, "oci:b", "--ca", "ca.pem"]);
    assert!(error.contains("which is not encrypted"), "{error}");
    assert_eq!(open.log(), [""; 0]);

    for (server, problem) in [
        (
            authority.server("registry.example", 4000),
            "is for other names",
        ),
        (authority.server("127.0.0.1", 2001), "has expired"),
    ] {
        let registry = Registry::secure(Behaviour::default(), server);
        let name = format!("{}/cp:1", registry.host);
        let error = work.error(&["push", "oci:a", &name, "--ca", "ca.pem"]);
        assert!(error.contains(problem), "{error}");
        assert_eq!(registry.log(), [""; 0]);
    }
    for (file, problem) in [
        ("cp.tar", "has no certificate in PEM"),
        ("none.pem", "none.pem cannot be read"),
    ] {
        let error = work.error(&["pull", &name, "oci:b", "--ca", file]);
        assert!(error.contains(problem), "{error}");
    }
}
