//! Images that inherit memory from others, on directories that the test makes.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use cryo_checkpoint::image_dir::{Error, ImageDir, check, check_with_parents};

/// A store with the images `last`, which inherit from `middle` and that from `first`: a chain of
/// pre-dumps.
fn store() -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    let mut files = fixture::images();
    // Two pages of process 7 are inherited, one of them by the middle too.
    files.insert("pagemap-7.img".into(), fixture::pagemap(1, 1, 2));
    fixture::write(&store.path().join("last"), &files);
    for (name, flags) in [("middle", 1), ("first", 4)] {
        let files = [
            ("pagemap-7.img", fixture::pagemap(3, flags, 2)),
            ("pages-3.img", vec![1; 2 * 4096]),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        fixture::write(&store.path().join(name), &files);
    }
    link(store.path(), "last", "../middle");
    link(store.path(), "middle", "../first");
    safe(store.path());
    store
}

fn safe(dir: &Path) {
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            safe(&entry.path());
        } else if entry.file_type().unwrap().is_file() {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o644)).unwrap();
        }
    }
}

fn link(store: &Path, from: &str, to: &str) {
    let link = store.join(from).join("parent");
    let _ = fs::remove_file(&link);
    symlink(to, link).unwrap();
}

fn last(store: &Path) -> Result<ImageDir, Error> {
    let images = check_with_parents(&store.join("last"), Some(store))?;
    images.check_owner()?;
    Ok(images)
}

#[test]
fn a_chain_within_the_store_is_whole() {
    let store = store();
    let images = last(store.path()).unwrap();
    assert_eq!(images.memory_bytes(), 3 * 4096, "its own");
    // Through a link to the store, and from deeper in it.
    let other = tempfile::tempdir().unwrap();
    symlink(store.path(), other.path().join("link")).unwrap();
    let through = other.path().join("link");
    check_with_parents(&through.join("last"), Some(&through)).unwrap();
    let above = store.path().parent().unwrap();
    check_with_parents(&store.path().join("last"), Some(above)).unwrap();
}

#[test]
fn without_a_store_or_outside_of_it_there_is_no_parent() {
    let store = store();
    let path = store.path().join("last");
    let error = check(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the checkpoint is unsafe: parent is a symbolic link"
    );
    assert!(error.hint().contains("`parents` under [restore]"));
    let other = tempfile::tempdir().unwrap();
    for elsewhere in [other.path(), &path, &path.join("core-1.img")] {
        let error = check_with_parents(&path, Some(elsewhere)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is not in that which `parents` names"),
            "{error}"
        );
    }
    let none = check_with_parents(&path, Some(Path::new("/nonexistent"))).unwrap_err();
    assert!(matches!(none, Error::Unreadable { .. }), "{none}");
}

#[test]
fn a_link_leads_to_a_directory_beside_it_or_nowhere() {
    let beside = "parent is a link that does not lead to a directory beside it (../NAME)";
    for to in [
        "/etc",
        "middle",
        ".",
        "..",
        "../..",
        "../../x",
        "../middle/../first",
        "../last/x",
        "/proc/1/root",
    ] {
        let store = store();
        link(store.path(), "last", to);
        let said = last(store.path()).unwrap_err().to_string();
        assert_eq!(said, format!("the checkpoint is unsafe: {beside}"), "{to}");
    }
    for (to, wanted) in [
        ("../none", "the checkpoint cannot be read: ../none"),
        ("../through", "the checkpoint cannot be read: ../through"),
        ("../file", "the checkpoint cannot be read: ../file"),
        (
            "../last",
            "in its parent last: the checkpoint is unsafe: parent is a link back to where the chain has been",
        ),
    ] {
        let store = store();
        symlink("middle", store.path().join("through")).unwrap();
        fs::write(store.path().join("file"), "").unwrap();
        link(store.path(), "last", to);
        assert_eq!(last(store.path()).unwrap_err().to_string(), wanted, "{to}");
    }
}

#[test]
fn each_directory_of_the_chain_is_checked() {
    type Spoil = fn(&Path);
    let cases: [(Spoil, &str); 9] = [
        (
            |s| link(s, "first", "../middle"),
            "in its parent middle: the checkpoint is unsafe: parent is a link back to where the chain has been",
        ),
        (
            |s| fs::write(s.join("first/plugin.so"), "").unwrap(),
            "in its parent first: the checkpoint is unsafe: plugin.so is no file of a checkpoint",
        ),
        (
            |s| {
                fs::remove_file(s.join("first/pages-3.img")).unwrap();
                symlink("/etc/shadow", s.join("first/pages-3.img")).unwrap();
            },
            "the checkpoint is unsafe: pages-3.img is a symbolic link",
        ),
        (
            |s| fs::write(s.join("first/pages-3.img"), [0; 4096]).unwrap(),
            "in its parent first: the checkpoint is incomplete: pages-3.img has 4096 bytes, 8192 are needed",
        ),
        (
            |s| fs::remove_file(s.join("middle/pagemap-7.img")).unwrap(),
            "the checkpoint is incomplete: pagemap-7.img refers to 2 pages that are not in it",
        ),
        (
            |s| fs::remove_file(s.join("middle/parent")).unwrap(),
            "in its parent middle: the checkpoint is incomplete: pagemap-7.img refers to 2 pages that are not in it",
        ),
        (
            |s| fs::write(s.join("first/pagemap-7.img"), "x").unwrap(),
            "in its parent first: the checkpoint is damaged: pagemap-7.img cannot be decoded",
        ),
        (
            |s| {
                let file = s.join("first/pages-3.img");
                fs::set_permissions(file, Permissions::from_mode(0o666)).unwrap();
            },
            "in its parent first: the checkpoint is unsafe: pages-3.img can be changed by others than root",
        ),
        (
            |s| fs::set_permissions(s, Permissions::from_mode(0o777)).unwrap(),
            "the checkpoint is unsafe: the directory that holds it and its parents can be changed by others than root",
        ),
    ];
    for (spoil, wanted) in cases {
        let store = store();
        spoil(store.path());
        let error = last(store.path()).unwrap_err();
        assert_eq!(error.to_string(), wanted);
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn a_chain_has_an_end() {
    let store = store();
    let name = |n: usize| format!("{n}");
    for n in 0..70 {
        fs::create_dir(store.path().join(name(n))).unwrap();
        link(store.path(), &name(n), &format!("../{}", n + 1));
    }
    link(store.path(), "last", "../0");
    let error = last(store.path()).unwrap_err();
    assert!(matches!(error, Error::TooManyParents { .. }), "{error}");
}
