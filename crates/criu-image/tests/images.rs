//! Views over whole images: golden bytes, what is refused, and arbitrary bytes.
#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions unwrap, too.

use cryo_criu_image::files::{Descriptor, Object, OpenFile, Terminal};
use cryo_criu_image::inventory::{Inventory, Lsm, TaskIds};
use cryo_criu_image::mounts::Mount;
use cryo_criu_image::pagemap::PagemapTotals;
use cryo_criu_image::pstree::{Process, ProcessTree};
use cryo_criu_image::stats::{DumpStats, RestoreStats};
use cryo_criu_image::task::{Arch, Core, TaskState};
use cryo_criu_image::{Error, Kind, RawReader, Reader, View, Writer, msg};
use proptest::prelude::*;
use prost::Message;

fn image<M: Message>(kind: Kind, messages: &[M]) -> Vec<u8> {
    let mut writer = Writer::new(kind, Vec::new()).unwrap();
    for message in messages {
        writer.message(message).unwrap();
    }
    writer.into_inner()
}

fn single<V: View>(wire: V::Wire) -> Result<V, Error> {
    Reader::new("f", image(V::KIND, &[wire]).as_slice())?.single()
}

fn process(pid: u32, ppid: u32) -> msg::PstreeEntry {
    msg::PstreeEntry {
        pid: Some(pid),
        ppid: Some(ppid),
        pgid: Some(1),
        sid: Some(1),
        threads: vec![pid],
    }
}

/// Written by hand from the format's description, not by the encoder.
#[test]
fn golden_pstree() {
    let golden = [
        0x19, 0x43, 0x56, 0x54, 0x30, 0x30, 0x27, 0x50, // common, pstree
        0x0a, 0, 0, 0, // ten bytes
        0x08, 1, 0x10, 0, 0x18, 1, 0x20, 1, 0x28, 1, // pid ppid pgid sid thread
        0x0f, 0, 0, 0, // fifteen
        0x08, 0xac, 0x02, 0x10, 1, 0x18, 1, 0x20, 1, 0x28, 0xac, 0x02, 0x28, 0xad, 0x02,
    ];
    let mut second = process(300, 1);
    second.threads.push(301);
    assert_eq!(image(Kind::Pstree, &[process(1, 0), second]), golden);

    let tree = ProcessTree::read("pstree.img", golden.as_slice()).unwrap();
    assert_eq!(tree.root_pid(), 1);
    assert_eq!(
        tree.processes(),
        [
            Process {
                pid: 1,
                ppid: 0,
                pgid: 1,
                sid: 1,
                threads: vec![]
            },
            Process {
                pid: 300,
                ppid: 1,
                pgid: 1,
                sid: 1,
                threads: vec![301]
            },
        ]
    );
}

#[test]
fn what_is_not_a_tree_is_refused() {
    let cases: [(&str, Vec<msg::PstreeEntry>, &str); 8] = [
        ("empty", vec![], "f: no process at offset 8"),
        (
            "no root first",
            vec![process(2, 1)],
            "f: message at offset 8: field ppid has the impossible value 1",
        ),
        (
            "two roots",
            vec![process(1, 0), process(2, 0)],
            "f: message at offset 22: field ppid has the impossible value 0",
        ),
        (
            "orphan",
            vec![process(1, 0), process(2, 3)],
            "f: message at offset 22: field ppid has the impossible value 3",
        ),
        (
            "twice",
            vec![process(1, 0), process(1, 1)],
            "f: message at offset 22: field pid has the impossible value 1",
        ),
        (
            "itself",
            vec![process(1, 0), process(2, 2)],
            "f: message at offset 22: field ppid has the impossible value 2",
        ),
        (
            "pid 0",
            vec![process(0, 0)],
            "f: message at offset 8: field pid has the impossible value 0",
        ),
        (
            "no sid",
            vec![msg::PstreeEntry {
                sid: None,
                ..process(1, 0)
            }],
            "f: message at offset 8 lacks its field sid",
        ),
    ];
    for (name, entries, expected) in cases {
        let error = ProcessTree::read("f", image(Kind::Pstree, &entries).as_slice()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{name}");
    }
}

#[test]
fn inventory() {
    let ids = msg::TaskKobjIdsEntry {
        vm_id: Some(1),
        files_id: Some(1),
        fs_id: Some(1),
        sighand_id: Some(1),
        net_ns_id: Some(9),
        ..Default::default()
    };
    let view: Inventory = single(msg::InventoryEntry {
        img_version: Some(2),
        fdinfo_per_id: Some(true),
        root_ids: Some(ids.clone()),
        lsmtype: Some(2),
        dump_uptime: Some(5),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(view.image_version, 2);
    assert!(view.fdinfo_per_id && !view.ns_per_id);
    assert_eq!(view.lsm, Lsm::Apparmor);
    assert_eq!(view.root_ids.unwrap().net_ns, Some(9));
    assert_eq!(view.plugins, None);

    assert!(matches!(
        single::<Inventory>(msg::InventoryEntry::default()),
        Err(Error::MissingField {
            field: "img_version",
            ..
        })
    ));
    assert!(matches!(
        single::<TaskIds>(msg::TaskKobjIdsEntry {
            files_id: None,
            ..ids
        }),
        Err(Error::MissingField {
            field: "files_id",
            ..
        })
    ));

    let one = msg::InventoryEntry {
        img_version: Some(2),
        ..Default::default()
    };
    for (count, problem) in [
        (0, "no message"),
        (2, "a second message where one is expected"),
    ] {
        let bytes = image(Kind::Inventory, &vec![one.clone(); count]);
        let error = Reader::<Inventory, _>::new("f", bytes.as_slice())
            .unwrap()
            .single()
            .unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn core() {
    let tc = msg::TaskCoreEntry {
        task_state: Some(3),
        exit_code: Some(0),
        comm: Some(b"caf\xe9".to_vec()),
        ..Default::default()
    };
    let core: Core = single(msg::CoreEntry {
        mtype: Some(1),
        tc: Some(tc),
        ..Default::default()
    })
    .unwrap();
    let process = core.process.unwrap();
    assert_eq!(core.arch, Arch::X86_64);
    assert_eq!(process.state, TaskState::Stopped);
    assert_eq!(process.comm_lossy(), "caf\u{fffd}");
    assert!(single::<Core>(msg::CoreEntry::default()).is_err());
}

#[test]
fn files() {
    let file = |number, id| msg::FileEntry {
        r#type: Some(number),
        id: Some(id),
        ..Default::default()
    };
    let entries = [
        msg::FileEntry {
            reg: Some(msg::RegFileEntry {
                name: Some(b"/dev/null".to_vec()),
                mnt_id: Some(-1),
                ..Default::default()
            }),
            ..file(1, 1)
        },
        msg::FileEntry {
            pipe: Some(msg::PipeEntry {
                pipe_id: Some(77),
                flags: Some(1),
                ..Default::default()
            }),
            ..file(2, 2)
        },
        msg::FileEntry {
            tty: Some(msg::TtyFileEntry {
                tty_info_id: Some(4),
                ..Default::default()
            }),
            ..file(11, 3)
        },
        file(6, 4),
        file(2, 5),
    ];
    let bytes = image(Kind::Files, &entries);
    let files: Vec<_> = Reader::<OpenFile, _>::new("files.img", bytes.as_slice())
        .unwrap()
        .collect();
    let objects: Vec<_> = files
        .iter()
        .filter_map(|file| Some(file.as_ref().ok()?.object.clone()))
        .collect();
    assert_eq!(
        objects,
        [
            Object::Path {
                path: b"/dev/null".to_vec(),
                external: false,
                mount_id: None
            },
            Object::Pipe {
                pipe_id: 77,
                flags: 1
            },
            Object::Tty { info_id: 4 },
            Object::Other(6),
        ]
    );
    assert!(matches!(
        files.last(),
        Some(Err(Error::MissingField { field: "pipe", .. }))
    ));
}

#[test]
fn mounts() {
    let mount: Mount = single(msg::MntEntry {
        fstype: Some(5),
        mnt_id: Some(1),
        root_dev: Some(1),
        parent_mnt_id: Some(0),
        flags: Some(0),
        root: Some(b"/".to_vec()),
        mountpoint: Some(b"/dev".to_vec()),
        source: Some(b"tmpfs".to_vec()),
        options: Some(Vec::new()),
        ext_key: Some(b"/dev".to_vec()),
        ..Default::default()
    })
    .unwrap();
    assert_eq!(mount.fs_type(), Some(b"tmpfs".as_slice()));
    assert_eq!(mount.ext_key.as_deref(), Some(b"/dev".as_slice()));
}

#[test]
fn statistics() {
    let stats: DumpStats = single(msg::StatsEntry {
        dump: Some(msg::DumpStatsEntry {
            freezing_time: Some(1),
            frozen_time: Some(2),
            memdump_time: Some(3),
            memwrite_time: Some(4),
            pages_scanned: Some(5),
            pages_skipped_parent: Some(6),
            pages_written: Some(7),
            pages_lazy: Some(8),
            ..Default::default()
        }),
        restore: None,
    })
    .unwrap();
    assert_eq!(
        (
            stats.frozen_time_us,
            stats.pages_written,
            stats.shared_pages_written
        ),
        (2, 7, 0)
    );
    // A restore's file where a dump's is expected.
    let restore = msg::StatsEntry {
        dump: None,
        restore: Some(msg::RestoreStatsEntry {
            pages_compared: Some(1),
            pages_skipped_cow: Some(2),
            forking_time: Some(3),
            restore_time: Some(4),
            pages_restored: None,
        }),
    };
    assert!(matches!(
        single::<DumpStats>(restore.clone()),
        Err(Error::MissingField { field: "dump", .. })
    ));
    assert_eq!(single::<RestoreStats>(restore).unwrap().restore_time_us, 4);
}

#[test]
fn pagemaps() {
    let run = |flags, pages| msg::PagemapEntry {
        vaddr: Some(0x1000),
        compat_nr_pages: Some(0),
        in_parent: None,
        flags: Some(flags),
        nr_pages: Some(pages),
    };
    let bytes = |runs: &[msg::PagemapEntry], more: &[u8]| {
        let mut writer = Writer::new(Kind::Pagemap, Vec::new()).unwrap();
        writer
            .message(&msg::PagemapHead { pages_id: Some(3) })
            .unwrap();
        for run in runs {
            let mut bytes = run.encode_to_vec();
            bytes.extend(more);
            writer.entry(&bytes).unwrap();
        }
        writer.into_inner()
    };
    let old = msg::PagemapEntry {
        flags: None,
        nr_pages: None,
        compat_nr_pages: Some(9),
        ..run(0, 0)
    };
    let runs = [run(6, 5), run(1, 2), run(2, 4), run(4, 1), old];
    let totals = PagemapTotals::read("f", bytes(&runs, &[]).as_slice()).unwrap();
    assert_eq!(
        totals,
        PagemapTotals {
            pages_id: 3,
            present: 15,
            parent: 2,
            absent_lazy: 4,
            parent_lazy: 0,
            newer: false
        }
    );
    // Field 6, empty.
    assert!(
        PagemapTotals::read("f", bytes(&runs, &[0x32, 0]).as_slice())
            .unwrap()
            .newer
    );
    assert!(matches!(
        PagemapTotals::read("f", bytes(&[run(4, u64::MAX), run(4, 1)], &[]).as_slice()),
        Err(Error::BadValue { .. })
    ));
    let empty = Writer::new(Kind::Pagemap, Vec::new()).unwrap().into_inner();
    assert!(matches!(
        PagemapTotals::read("f", empty.as_slice()),
        Err(Error::WrongCount { .. })
    ));
}

/// Reads the bytes as every kind of image there is a reader for; only that it returns matters.
fn read_as_everything(bytes: &[u8]) {
    fn all<V: View>(bytes: &[u8]) {
        if let Ok(reader) = Reader::<V, _>::new("f", bytes) {
            let _ = reader.count();
        }
        if let Ok(reader) = Reader::<V, _>::new("f", bytes) {
            let _ = reader.single();
        }
    }
    all::<Inventory>(bytes);
    all::<TaskIds>(bytes);
    all::<Process>(bytes);
    all::<Core>(bytes);
    all::<Descriptor>(bytes);
    all::<OpenFile>(bytes);
    all::<Terminal>(bytes);
    all::<Mount>(bytes);
    all::<DumpStats>(bytes);
    all::<RestoreStats>(bytes);
    let _ = ProcessTree::read("f", bytes);
    let _ = PagemapTotals::read("f", bytes);
}

fn framed_kind() -> impl Strategy<Value = Kind> {
    let kinds: Vec<_> = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| Writer::new(*kind, Vec::new()).is_ok())
        .collect();
    proptest::sample::select(kinds)
}

prop_compose! {
    fn pstree_entry()(
        pid in any::<Option<u32>>(), ppid in any::<Option<u32>>(), pgid in any::<Option<u32>>(),
        sid in any::<Option<u32>>(), threads in prop::collection::vec(any::<u32>(), 0..5),
    ) -> msg::PstreeEntry {
        msg::PstreeEntry { pid, ppid, pgid, sid, threads }
    }
}

prop_compose! {
    fn file_entry()(
        number in any::<Option<i32>>(), id in any::<Option<u32>>(), mnt_id in any::<Option<i32>>(),
        name in any::<Option<Vec<u8>>>(), pipe_id in any::<Option<u32>>(), ext in any::<Option<bool>>(),
    ) -> msg::FileEntry {
        msg::FileEntry {
            r#type: number,
            id,
            reg: Some(msg::RegFileEntry { mnt_id, name, ext, ..Default::default() }),
            pipe: Some(msg::PipeEntry { pipe_id, ..Default::default() }),
            ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn frames_round_trip(
        kind in framed_kind(),
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
    ) {
        let limit = usize::try_from(kind.limits().entries).unwrap();
        let entries = &entries[..entries.len().min(limit)];
        let mut writer = Writer::new(kind, Vec::new()).unwrap();
        for entry in entries {
            writer.entry(entry).unwrap();
        }
        let bytes = writer.into_inner();
        let mut reader = RawReader::new("f", kind, bytes.as_slice()).unwrap();
        for expected in entries {
            prop_assert_eq!(reader.next_entry().unwrap().unwrap().bytes, expected.as_slice());
        }
        prop_assert!(reader.next_entry().unwrap().is_none());
        prop_assert_eq!(reader.offset(), bytes.len() as u64);
    }

    #[test]
    fn messages_round_trip(
        processes in prop::collection::vec(pstree_entry(), 0..5),
        files in prop::collection::vec(file_entry(), 0..5),
    ) {
        fn back<M: Message + Default + PartialEq>(kind: Kind, messages: &[M]) -> Vec<M> {
            let bytes = image(kind, messages);
            let mut reader = RawReader::new("f", kind, bytes.as_slice()).unwrap();
            let mut found = Vec::new();
            while let Some(entry) = reader.next_entry().unwrap() {
                found.push(M::decode(entry.bytes).unwrap());
            }
            found
        }
        prop_assert_eq!(back(Kind::Pstree, &processes), processes);
        prop_assert_eq!(back(Kind::Files, &files), files);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        read_as_everything(&bytes);
    }

    /// Past the magic and the lengths, so that the messages themselves are arbitrary.
    #[test]
    fn any_messages_are_answered(
        kind in framed_kind(),
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..4),
    ) {
        let mut writer = Writer::new(kind, Vec::new()).unwrap();
        for entry in &entries {
            writer.entry(entry).unwrap();
        }
        read_as_everything(&writer.into_inner());
    }

    /// Valid images with one byte changed or the end cut off.
    #[test]
    fn damaged_images_are_answered(
        processes in prop::collection::vec(pstree_entry(), 1..5),
        files in prop::collection::vec(file_entry(), 1..5),
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [image(Kind::Pstree, &processes), image(Kind::Files, &files)] {
            read_as_everything(&bytes[..cut.index(bytes.len())]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            read_as_everything(&bytes);
        }
    }
}
