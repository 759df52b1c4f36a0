//! Images that CRIU wrote; see `data/criu-4.2.1/README.md`.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use cryo_checkpoint::descriptors::StdioKey;
use cryo_checkpoint::image_dir;
use cryo_checkpoint::summary::Summary;
use cryo_criu_image::files::{Object, OpenFile};
use cryo_criu_image::mounts::Mount;
use cryo_criu_image::{Reader, View};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/criu-4.2.1")
}

/// The images with pages of the right number, which take no room.
fn whole() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "README.md" {
            fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
    }
    for (name, bytes) in [
        ("pages-1.img", 1_048_576),
        ("pages-2.img", 5_099_520),
        ("pages-3.img", 5_107_712),
    ] {
        File::create(directory.path().join(name))
            .unwrap()
            .set_len(bytes)
            .unwrap();
    }
    directory
}

fn read<V: View>(name: &str) -> Vec<V> {
    let file = File::open(data().join(name)).unwrap();
    Reader::new(name, file)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

#[test]
fn the_gate() {
    let directory = whole();
    let images = image_dir::check(directory.path()).unwrap();
    assert_eq!(images.root_pid(), 1);
    assert_eq!(images.memory_bytes(), 1_048_576 + 5_099_520 + 5_107_712);
    // /dev/pts/0, though runc's descriptors.json says /dev/null.
    let terminal = Some(StdioKey::Tty {
        rdev: 136 << 8,
        dev: 118,
    });
    assert_eq!(
        *images.stdio_keys(),
        [terminal.clone(), terminal.clone(), terminal]
    );
    assert!(images.inventory().fdinfo_per_id && images.inventory().ns_per_id);
    assert_eq!(images.inventory().plugins, Some(Vec::new()));

    // One page less than the pagemaps say.
    let pages = File::options()
        .write(true)
        .open(directory.path().join("pages-3.img"))
        .unwrap();
    pages.set_len(5_107_712 - 4096).unwrap();
    assert_eq!(
        image_dir::check(directory.path()).unwrap_err().to_string(),
        "the checkpoint is incomplete: pages-3.img has 5103616 bytes, 5107712 are needed"
    );
}

#[test]
fn summary() {
    let summary = Summary::read(whole().path()).unwrap();
    let processes: Vec<_> = summary
        .processes
        .iter()
        .map(|p| (p.pid, p.ppid, p.command.as_str(), p.state))
        .collect();
    assert_eq!(
        processes,
        [
            (1, 0, "python3", "alive"),
            (8, 1, "python3", "dead"),
            (9, 1, "python3", "alive")
        ]
    );
    let dump = summary.dump.unwrap();
    // As `checkpointctl inspect --stats` reads the same file.
    assert_eq!((dump.pages_scanned, dump.pages_written), (2646, 2492));
    assert_eq!(dump.freezing_time_us, 499);
}

#[test]
fn mounts_and_files() {
    let mounts = read::<Mount>("mountpoints-13.img");
    let of = |path: &str| {
        let mount = mounts
            .iter()
            .find(|mount| mount.mountpoint == path.as_bytes())
            .unwrap();
        str::from_utf8(mount.fs_type().unwrap()).unwrap()
    };
    for (path, fs_type) in [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/sys", "sysfs"),
    ] {
        assert_eq!(of(path), fs_type, "{path}");
    }

    let files = read::<OpenFile>("files.img");
    let count = |wanted: fn(&Object) -> bool| files.iter().filter(|f| wanted(&f.object)).count();
    assert_eq!(count(|object| matches!(object, Object::Tty { .. })), 1);
    assert_eq!(count(|object| matches!(object, Object::Unix(_))), 2);
}
