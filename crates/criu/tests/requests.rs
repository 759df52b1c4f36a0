//! The bytes of requests, pinned in `tests/golden`; `CRYO_BLESS=1` writes them anew.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use cryo_criu::proto::{CriuOpts, CriuReq, CriuResp, Features, InheritFd, ReqType};
use cryo_criu::request::{CgRoot, JoinKind, JoinNs, NetworkLockMethod};
use cryo_criu::{DumpOptions, External, RestoreOptions};
use proptest::prelude::*;
use prost::Message;

fn fd() -> OwnedFd {
    File::open("/dev/null").expect("open").into()
}

/// Compares, with the images' descriptor number replaced by 77.
fn golden(name: &str, mut request: CriuReq, images: i32) {
    if let Some(opts) = &mut request.opts {
        assert_eq!(opts.images_dir_fd, images);
        opts.images_dir_fd = 77;
    }
    let bytes = request.encode_to_vec();
    assert_eq!(CriuReq::decode(&*bytes).expect("decode"), request);
    let mut text = String::new();
    annotate(&bytes, 0, &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("CRYO_BLESS").is_some() {
        std::fs::write(&path, &text).expect("write");
    }
    let want = std::fs::read_to_string(&path).expect("golden file");
    assert_eq!(text, want, "{name}");
}

/// One line per field: its bytes, number and value. Knows the wire format, not our types.
fn annotate(mut bytes: &[u8], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    while !bytes.is_empty() {
        let start = bytes;
        let tag = varint(&mut bytes);
        let (field, wire) = (tag >> 3, tag & 7);
        let head = |rest: &[u8]| hex(&start[..start.len() - rest.len()]);
        match wire {
            0 => {
                let value = varint(&mut bytes);
                let _ = writeln!(out, "{indent}{} | {field} = {}", head(bytes), value as i64);
            }
            2 => {
                let len = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(len);
                let nested = (depth == 0 && (field == 2 || field == 5))
                    || (depth == 1 && [11, 25, 27, 39].contains(&field));
                if nested {
                    let _ = writeln!(out, "{indent}{} | {field} =", head(bytes));
                    annotate(value, depth + 1, out);
                } else {
                    let text = std::str::from_utf8(value).expect("text");
                    let _ = writeln!(out, "{indent}{} | {field} = {text:?}", head(bytes));
                }
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("varint too long");
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn smallest_dump() {
    let options = DumpOptions::new(4711, fd(), "/work");
    let images = options.images.as_raw_fd();
    golden(
        "dump-smallest.txt",
        options.request(12).expect("request"),
        images,
    );
}

#[test]
fn fullest_dump() {
    let options = DumpOptions {
        log_file: "d.log".into(),
        log_level: 4,
        root: Some("/run/bundle/rootfs".into()),
        leave_running: true,
        tcp_established: true,
        tcp_skip_in_flight: true,
        ext_unix_sk: true,
        shell_job: true,
        file_locks: true,
        link_remap: true,
        orphan_pts_master: true,
        ghost_limit_bytes: Some(16 << 20),
        empty_netns: true,
        external: vec![
            External::mount("/data", "/data").expect("mount"),
            External::netns(4_026_531_840),
            External::pidns(5),
            External::file(0x1f, 0xabc),
            External::tty(0x8801, 0x18),
            External::unix_socket(9),
            External::auto_mounts(),
        ],
        freeze_cgroup: Some("/sys/fs/cgroup/c".into()),
        cgroup_roots: vec![
            CgRoot {
                controller: None,
                path: "/c".into(),
            },
            CgRoot {
                controller: Some("name=systemd".into()),
                path: "/d".into(),
            },
        ],
        network_lock: Some(NetworkLockMethod::Skip),
        timeout_s: Some(30),
        parent_images: Some("../pre-1".into()),
        track_mem: true,
        auto_dedup: true,
        lazy_pages: true,
        page_server: Some(fd()),
        skip_file_rwx_check: true,
        ..DumpOptions::new(1, fd(), "/work")
    };
    let images = options.images.as_raw_fd();
    golden(
        "dump-fullest.txt",
        options.request(12).expect("request"),
        images,
    );
}

#[test]
fn smallest_restore() {
    let options = RestoreOptions::new(fd(), "/work");
    let images = options.images.as_raw_fd();
    golden(
        "restore-smallest.txt",
        options.request(12).expect("request"),
        images,
    );
}

#[test]
fn fullest_restore() {
    let options = RestoreOptions {
        root: Some("/run/cryo/root".into()),
        tcp_established: true,
        tcp_close: true,
        ext_unix_sk: true,
        shell_job: true,
        file_locks: true,
        link_remap: true,
        orphan_pts_master: true,
        external: vec![External::mount("/data", "/host/data").expect("mount")],
        inherit_fds: vec![("pipe:[1]".into(), fd()), ("extRootNetNS".into(), fd())],
        join_ns: vec![JoinNs {
            kind: JoinKind::User,
            path: "/proc/7/ns/user".into(),
            extra: Some("0,0".into()),
        }],
        cgroup_roots: vec![CgRoot {
            controller: None,
            path: "/new".into(),
        }],
        empty_netns: true,
        network_lock: Some(NetworkLockMethod::Nftables),
        lazy_pages: true,
        auto_dedup: true,
        lsm_profile: Some("apparmor:p".into()),
        lsm_mount_context: Some("c".into()),
        weak_sysctls: true,
        skip_file_rwx_check: true,
        ..RestoreOptions::new(fd(), "/work")
    };
    let images = options.images.as_raw_fd();
    golden(
        "restore-fullest.txt",
        options.request(12).expect("request"),
        images,
    );
}

#[test]
fn notify_answer_and_probe() {
    let answer = CriuReq {
        notify_success: Some(true),
        ..CriuReq::of(ReqType::Notify)
    };
    golden("notify-answer.txt", answer, 0);
    let features = CriuReq {
        keep_open: Some(true),
        features: Some(Features {
            mem_track: Some(true),
            ..Features::default()
        }),
        ..CriuReq::of(ReqType::FeatureCheck)
    };
    golden("feature-check.txt", features, 0);
}

fn opts() -> impl Strategy<Value = CriuOpts> {
    let text = || proptest::option::of("[a-z/\\[\\]:]{0,20}");
    let flag = || proptest::option::of(any::<bool>());
    (
        (
            any::<i32>(),
            proptest::option::of(any::<i32>()),
            flag(),
            flag(),
            flag(),
        ),
        (
            text(),
            text(),
            text(),
            proptest::collection::vec("\\PC{0,12}", 0..5),
        ),
        (
            proptest::option::of(any::<u32>()),
            proptest::option::of(0..7i32),
            proptest::collection::vec(("[a-z]{0,5}", any::<i32>()), 0..4),
            proptest::option::of(1..4i32),
        ),
    )
        .prop_map(|(a, b, c)| CriuOpts {
            images_dir_fd: a.0,
            pid: a.1,
            leave_running: a.2,
            rst_sibling: a.3,
            stream: a.4,
            root: b.0,
            freeze_cgroup: b.1,
            images_dir: b.2,
            external: b.3,
            ghost_limit: c.0,
            manage_cgroups_mode: c.1,
            inherit_fd: c
                .2
                .into_iter()
                .map(|(key, fd)| InheritFd { key, fd })
                .collect(),
            network_lock: c.3,
            ..CriuOpts::default()
        })
}

proptest! {
    #[test]
    fn requests_come_back(opts in opts(), kind in 0..14i32, success: Option<bool>) {
        let request = CriuReq {
            r#type: kind,
            opts: Some(opts),
            notify_success: success,
            ..CriuReq::default()
        };
        prop_assert_eq!(CriuReq::decode(&*request.encode_to_vec()).expect("decode"), request);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
        let _ = CriuResp::decode(&*bytes);
    }
}
