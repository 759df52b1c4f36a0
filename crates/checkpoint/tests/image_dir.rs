//! The gate before a restore, on directories that the test makes.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cryo_checkpoint::descriptors::StdioKey;
use cryo_checkpoint::image_dir::{self, Error, ImageDir};
use cryo_criu_image::inventory::UnknownVersion;
use cryo_criu_image::{Kind, msg};
use fixture::Files;
use proptest::prelude::*;

fn check(files: &Files, spoil: impl FnOnce(&Path)) -> Result<ImageDir, Error> {
    let directory = tempfile::tempdir().unwrap();
    fixture::write(directory.path(), files);
    spoil(directory.path());
    image_dir::check(directory.path())
}

fn key(text: &str) -> Option<StdioKey> {
    Some(StdioKey::parse(text))
}

#[test]
fn whole() {
    let files = fixture::images();
    let images = check(&files, |_| {}).unwrap();
    assert_eq!(images.root_pid(), 1);
    assert_eq!(images.root().process.as_ref().unwrap().comm_lossy(), "sh");
    assert_eq!(images.tree().processes().len(), 3);
    assert_eq!(
        *images.stdio_keys(),
        [key("/dev/null"), key("pipe:[101]"), key("pipe:[102]")]
    );
    assert_eq!(
        images.size_bytes(),
        files.values().map(|bytes| bytes.len() as u64).sum::<u64>()
    );
    assert_eq!(images.memory_bytes(), 3 * 4096);
    assert!(images.stats().is_none());

    let mut files = files;
    files.insert("stats-dump".into(), fixture::stats());
    assert_eq!(
        check(&files, |_| {})
            .unwrap()
            .stats()
            .unwrap()
            .frozen_time_us,
        147_720
    );
}

#[test]
fn the_descriptor_is_that_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images");
    fixture::write(&path, &fixture::images());
    let images = image_dir::check(&path).unwrap();
    fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    let again = image_dir::check_fd(images.fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(again.root_pid(), 1);
}

#[test]
fn what_is_missing_is_named() {
    for name in [
        "inventory.img",
        "pstree.img",
        "core-1.img",
        "core-8.img",
        "core-9.img",
        "pages-1.img",
        "files.img",
    ] {
        let mut files = fixture::images();
        files.remove(name);
        let error = check(&files, |_| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the checkpoint is incomplete: {name} is missing")
        );
        assert!(error.hint().contains("again"), "{name}");
    }
    let error = image_dir::check(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint cannot be read: /nonexistent"
    );
    let error = check(&Files::new(), |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint is incomplete: inventory.img is missing"
    );
}

#[test]
fn what_is_truncated_is_named() {
    for name in [
        "inventory.img",
        "pstree.img",
        "core-1.img",
        "ids-1.img",
        "fdinfo-2.img",
        "files.img",
        "pagemap-7.img",
    ] {
        let mut files = fixture::images();
        files.get_mut(name).unwrap().pop();
        let error = check(&files, |_| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the checkpoint is damaged: {name} cannot be decoded")
        );
    }
    let mut files = fixture::images();
    files.get_mut("pages-1.img").unwrap().pop();
    assert_eq!(
        check(&files, |_| {}).unwrap_err().to_string(),
        "the checkpoint is incomplete: pages-1.img has 12287 bytes, 12288 are needed"
    );
}

#[test]
fn what_could_lead_elsewhere_is_refused() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 7] = [
        (
            "the checkpoint is unsafe: pages-1.img is a symbolic link",
            |dir| {
                fs::remove_file(dir.join("pages-1.img")).unwrap();
                symlink("/etc/passwd", dir.join("pages-1.img")).unwrap();
            },
        ),
        (
            "the checkpoint is unsafe: restore.log is a symbolic link",
            |dir| {
                symlink("/etc/passwd", dir.join("restore.log")).unwrap();
            },
        ),
        ("the checkpoint is unsafe: more is a directory", |dir| {
            fs::create_dir(dir.join("more")).unwrap();
        }),
        (
            "the checkpoint is unsafe: core-1.img is a hard link",
            |dir| {
                fs::hard_link(dir.join("core-1.img"), dir.join("core-2.img")).unwrap();
            },
        ),
        ("the checkpoint is unsafe: stats-dump is a socket", |dir| {
            std::os::unix::net::UnixListener::bind(dir.join("stats-dump")).unwrap();
        }),
        (
            "the checkpoint is unsafe: core-01.img is no file of a checkpoint",
            |dir| fs::write(dir.join("core-01.img"), "").unwrap(),
        ),
        (
            "the checkpoint is unsafe: inventory.img is longer than any that CRIU writes",
            |dir| {
                let file = fs::File::options()
                    .write(true)
                    .open(dir.join("inventory.img"));
                file.unwrap().set_len(2 << 20).unwrap();
            },
        ),
    ];
    for (expected, spoil) in cases {
        let error = check(&fixture::images(), spoil).unwrap_err();
        // A hard link has two names, and either may be met first.
        assert_eq!(error.to_string().replace("core-2", "core-1"), expected);
    }
    let error = check(&fixture::images(), |dir| {
        symlink("../older", dir.join("parent")).unwrap()
    });
    assert!(error.unwrap_err().hint().contains("`parents`"));
}

#[test]
fn what_others_may_change_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let owner = |spoil: &dyn Fn(&Path)| {
        let images = check(&fixture::images(), |dir| {
            for entry in fs::read_dir(dir).unwrap() {
                chmod(&entry.unwrap().path(), 0o644);
            }
            chmod(dir, 0o755);
            spoil(dir);
        });
        images.unwrap().check_owner().map_err(|e| e.to_string())
    };
    assert_eq!(owner(&|_| {}), Ok(()));
    assert_eq!(
        owner(&|dir| chmod(&dir.join("core-1.img"), 0o646)).unwrap_err(),
        "the checkpoint is unsafe: core-1.img can be changed by others than root"
    );
    assert_eq!(
        owner(&|dir| chmod(dir, 0o770)).unwrap_err(),
        "the checkpoint is unsafe: the directory can be changed by others than root"
    );
}

#[test]
fn namespaces_of_the_node_are_refused() {
    let ids = |mnt_ns, pid_ns| msg::TaskKobjIdsEntry {
        vm_id: Some(1),
        files_id: Some(2),
        fs_id: Some(1),
        sighand_id: Some(1),
        mnt_ns_id: Some(mnt_ns),
        pid_ns_id: Some(pid_ns),
        ..Default::default()
    };
    let inventory = msg::InventoryEntry {
        img_version: Some(2),
        root_ids: Some(ids(6, 1)),
        ..Default::default()
    };
    let mut files = fixture::images();
    files.insert(
        "inventory.img".into(),
        fixture::image(Kind::Inventory, &[inventory]),
    );
    let mut with = |mnt_ns, pid_ns| {
        let ids = fixture::image(Kind::Ids, &[ids(mnt_ns, pid_ns)]);
        files.insert("ids-1.img".into(), ids);
        check(&files, |_| {}).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(with(13, 9), Ok(()));
    for (mnt_ns, pid_ns, kind) in [(6, 9, "mount"), (13, 1, "pid")] {
        assert_eq!(
            with(mnt_ns, pid_ns).unwrap_err(),
            format!(
                "the checkpoint is unsafe: its processes are in the {kind} namespace of the node"
            )
        );
    }
}

#[test]
fn memory_that_is_elsewhere() {
    for flags in [1, 2] {
        let mut files = fixture::images();
        files.insert("pagemap-9.img".into(), fixture::pagemap(2, flags, 5));
        assert_eq!(
            check(&files, |_| {}).unwrap_err().to_string(),
            "the checkpoint is incomplete: pagemap-9.img refers to 5 pages that are not in it"
        );
    }
}

#[test]
fn another_version_and_machine() {
    let mut files = fixture::images();
    let inventory = cryo_criu_image::msg::InventoryEntry {
        img_version: Some(3),
        ..Default::default()
    };
    files.insert(
        "inventory.img".into(),
        fixture::image(Kind::Inventory, &[inventory]),
    );
    assert!(matches!(
        check(&files, |_| {}),
        Err(Error::Version(UnknownVersion { found: 3 }))
    ));

    let mut files = fixture::images();
    let core = cryo_criu_image::msg::CoreEntry {
        mtype: Some(6),
        ..Default::default()
    };
    files.insert("core-1.img".into(), fixture::image(Kind::Core, &[core]));
    assert!(matches!(
        check(&files, |_| {}),
        Err(Error::Architecture { found: "mips", .. })
    ));
}

/// `descriptors.json`, the root task's pipes at 0 to 2 and all pipes in the images, the answer.
#[test]
fn stdio_keys() {
    let files = [
        fixture::regular(1, "/dev/null"),
        fixture::pipe(2, 101, 1),
        fixture::pipe(3, 102, 1),
        // Both ends.
        fixture::pipe(4, 200, 0),
        fixture::pipe(5, 200, 1),
    ];
    type Case = (
        Option<&'static str>,
        &'static [(u32, u32)],
        [Option<StdioKey>; 3],
    );
    let inner = || Some(StdioKey::Other("inner pipe 200".into()));
    let cases: [Case; 7] = [
        // Nothing recorded: what the root task has.
        (
            None,
            &[(0, 1), (1, 2), (2, 3)],
            [key("/dev/null"), key("pipe:[101]"), key("pipe:[102]")],
        ),
        (None, &[(1, 2)], [None, key("pipe:[101]"), None]),
        (
            None,
            &[(0, 4), (1, 2), (2, 2)],
            [inner(), key("pipe:[101]"), key("pipe:[101]")],
        ),
        // Recorded, and someone still holds it though the root task does not.
        (
            Some(r#"["/dev/null","pipe:[101]","pipe:[102]"]"#),
            &[(0, 1), (1, 1), (2, 1)],
            [key("/dev/null"), key("pipe:[101]"), key("pipe:[102]")],
        ),
        // Stale: the names of before a restore.
        (
            Some(r#"["/dev/null","pipe:[1]","pipe:[2]"]"#),
            &[(0, 1), (1, 2), (2, 3)],
            [key("/dev/null"), key("pipe:[101]"), key("pipe:[102]")],
        ),
        // Recorded as no stream, now the container's own pipe: nothing to hand over.
        (
            Some(r#"["/dev/null","pipe:[101]","pipe:[102]"]"#),
            &[(0, 4), (1, 2), (2, 3)],
            [key("/dev/null"), key("pipe:[101]"), key("pipe:[102]")],
        ),
        // Nobody holds it any more.
        (
            Some(r#"["/dev/null","pipe:[1]","pipe:[102]"]"#),
            &[(0, 1), (2, 3)],
            [key("/dev/null"), None, key("pipe:[102]")],
        ),
    ];
    for (json, table, expected) in cases {
        let mut images = fixture::images();
        images.insert("files.img".into(), fixture::image(Kind::Files, &files));
        images.insert("fdinfo-2.img".into(), fixture::descriptors(table));
        match json {
            Some(json) => images.insert("descriptors.json".into(), json.into()),
            None => images.remove("descriptors.json"),
        };
        assert_eq!(
            *check(&images, |_| {}).unwrap().stdio_keys(),
            expected,
            "{json:?} {table:?}"
        );
    }
}

#[test]
fn bad_descriptors() {
    let mut files = fixture::images();
    files.insert("descriptors.json".into(), b"[]".to_vec());
    assert_eq!(
        check(&files, |_| {}).unwrap_err().to_string(),
        "the checkpoint is damaged: descriptors.json cannot be used"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One byte of one file changed: an answer of either kind.
    #[test]
    fn any_damage_is_answered(
        file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut files = fixture::images();
        let name = file.get(&files.keys().cloned().collect::<Vec<_>>()).clone();
        let bytes = files.get_mut(&name).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(error) = check(&files, |_| {}) {
            prop_assert!(!error.hint().is_empty());
        }
    }
}
