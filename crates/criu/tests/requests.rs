//! The bytes of requests, pinned in `tests/golden`; `CRYO_BLESS=1` writes them anew.
#![allow(missing_docs)]

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use cryo_criu::options::{self, Access, Checkpoint, Kind, Layer, Raw, Restore, Source, Table};
use cryo_criu::proto::{CriuOpts, CriuReq, CriuResp, Features, InheritFd, ReqType};
use cryo_criu::request::{CgRoot, JoinKind, JoinNs, NetworkLockMethod};
use cryo_criu::{DumpOptions, External, PageServer, Probe, RestoreOptions, Version};
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
        tcp_close: true,
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
        page_server: Some(PageServer::Socket(fd())),
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

fn able() -> Probe {
    let mut probe = Probe::new(Version::new(4, 2, 1));
    probe.mem_track = true;
    probe.lazy_pages = true;
    probe
}

/// Each option of the table, as the node's owner or the request sets it.
fn all_options<T: Table>(texts: &[(&str, &str)]) -> T {
    let mut layer = Layer::<T>::new(Source::Request);
    for option in T::OPTIONS {
        let name = option.name;
        let raw = match &option.kind {
            Kind::Refused(_) => continue,
            Kind::Flag(_) => Raw::Bool(true),
            Kind::Number { range, .. } => Raw::Integer((*range.end()).into()),
            Kind::Word(words) => Raw::Text(words.last().expect("words").0),
            Kind::Text { .. } => Raw::Text(texts.iter().find(|t| t.0 == name).expect(name).1),
        };
        layer.put(name, raw).expect(name);
    }
    options::resolve(&[&layer], &able()).expect("resolve")
}

#[test]
fn a_dump_with_every_option() {
    let texts = [("page-server", "[::1]:9876"), ("parent-path", "../first")];
    let lazy: Checkpoint = all_options(&texts);
    let dump = lazy.apply(DumpOptions::new(4711, fd(), "/work"));
    let images = dump.images.as_raw_fd();
    // Its page server is the shim, not one that CRIU is to send memory to.
    golden("dump-lazy.txt", dump.request(12).expect("request"), images);
    let options = Checkpoint {
        lazy_pages: false,
        ..lazy
    };
    let dump = options.apply(DumpOptions::new(4711, fd(), "/work"));
    let images = dump.images.as_raw_fd();
    golden(
        "dump-options.txt",
        dump.request(12).expect("request"),
        images,
    );
    golden(
        "pre-dump.txt",
        dump.pre_dump_request(12).expect("request"),
        images,
    );
    // The one that tcp-close goes before.
    let options = Checkpoint {
        tcp_close: false,
        ..options
    };
    let dump = options.apply(DumpOptions::new(4711, fd(), "/work"));
    assert!(dump.tcp_established && !dump.tcp_close);
}

#[test]
fn a_restore_with_every_option() {
    let texts = [
        ("lsm-profile", "apparmor:p"),
        ("lsm-mount-context", "c"),
        // Of the shim's own look, not of the request.
        ("parents", "/var/lib/parents"),
    ];
    let options: Restore = all_options(&texts);
    let restore = options.apply(RestoreOptions::new(fd(), "/work"));
    let images = restore.images.as_raw_fd();
    golden(
        "restore-options.txt",
        restore.request(12).expect("request"),
        images,
    );
}

#[test]
fn a_pre_dump_that_criu_would_abort_on_is_refused() {
    let error = DumpOptions::new(1, fd(), "/work")
        .pre_dump_request(12)
        .expect_err("no track_mem");
    assert_eq!(error.option, "track_mem");
}

/// Every text that CRIU is sent, and every file descriptor: what could name something.
fn names(request: &CriuReq) -> Vec<String> {
    let mut names = Vec::new();
    let opts = request.opts.clone().expect("opts");
    names.extend(
        [
            opts.root,
            opts.log_file,
            opts.parent_img,
            opts.freeze_cgroup,
            opts.config_file,
            opts.cgroup_props,
            opts.cgroup_props_file,
            opts.cgroup_yard,
            opts.lsm_profile,
            opts.lsm_mount_context,
            opts.images_dir,
            opts.tls_cacert,
            opts.tls_cacrl,
            opts.tls_cert,
            opts.tls_key,
        ]
        .into_iter()
        .flatten(),
    );
    names.extend(opts.external);
    names.extend(opts.exec_cmd);
    names.extend(opts.skip_mnt);
    names.extend(opts.enable_fs);
    names.extend(opts.irmap_scan_paths);
    names.extend(opts.cgroup_dump_controller);
    names.extend(opts.plugin_options);
    names.push(format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        opts.ps,
        opts.ext_mnt,
        opts.cg_root,
        opts.inherit_fd,
        opts.join_ns,
        opts.veths,
        opts.status_fd
    ));
    names
}

fn with_annotations(section: &str, all: &[(String, String)]) -> Option<CriuReq> {
    let probe = able();
    let all: std::collections::HashMap<String, String> = all
        .iter()
        .map(|(name, value)| (format!("{section}.cryo/{name}"), value.clone()))
        .collect();
    if section == Checkpoint::SECTION {
        let layer = Layer::<Checkpoint>::annotations(&all).ok()?;
        let options = options::resolve(&[&layer], &probe).expect("resolve");
        let dump = options.apply(DumpOptions::new(1, fd(), "/work"));
        return Some(dump.request(12).expect("request"));
    }
    let layer = Layer::<Restore>::annotations(&all).ok()?;
    let options = options::resolve(&[&layer], &probe).expect("resolve");
    let restore = options.apply(RestoreOptions::new(fd(), "/work"));
    Some(restore.request(12).expect("request"))
}

#[test]
fn no_annotation_is_free_text() {
    fn check<T: Table>() {
        for option in T::OPTIONS {
            let free = matches!(option.kind, Kind::Text { .. });
            assert!(
                !(free && option.access == Access::Anyone),
                "{}",
                option.name
            );
        }
    }
    check::<Checkpoint>();
    check::<Restore>();
}

#[test]
fn annotations_that_try_are_refused() {
    for section in ["checkpoint", "restore"] {
        for (name, value) in [
            ("config", "/etc/shadow"),
            ("config-file", "/tmp/evil.conf"),
            ("org.criu.config", "/tmp/evil.conf"),
            ("action-script", "/tmp/evil"),
            ("libdir", "/tmp/plugins"),
            ("plugin", "/tmp/evil.so"),
            ("images-dir", "/"),
            ("image-path", "/"),
            ("work-path", "/"),
            ("parent-path", "../../../other/checkpoint"),
            ("page-server", "192.0.2.1:9"),
            ("external", "mnt[/]:/"),
            ("root", "/"),
            ("lsm-profile", "apparmor:unconfined"),
            ("lsm-mount-context", "u:r:t"),
            ("manage-cgroups", "full"),
            ("auto-dedup", "true"),
            ("network-lock", "nftables --include /etc/shadow"),
            ("ghost-limit", "/etc/shadow"),
            ("../restore.cryo/tcp-close", "true"),
            ("", "true"),
        ] {
            let all = [(name.to_owned(), value.to_owned())];
            assert!(
                with_annotations(section, &all).is_none(),
                "{section} {name}"
            );
        }
    }
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

/// An annotation of ours, mostly one that is accepted.
fn annotation() -> impl Strategy<Value = (String, String)> {
    let name = prop_oneof![
        9 => proptest::sample::select(
            Checkpoint::OPTIONS
                .iter()
                .map(|o| o.name)
                .chain(Restore::OPTIONS.iter().map(|o| o.name))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        ),
        1 => "\\PC{0,12}",
    ];
    let value = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("skip".to_owned()),
        Just("network".to_owned()),
        "[1-9][0-9]{0,2}[KM]?",
        "\\PC{0,12}",
    ];
    (name, value)
}

proptest! {
    #[test]
    fn no_annotation_names_anything(
        restore: bool,
        all in proptest::collection::vec(annotation(), 1..4),
    ) {
        let section = if restore { "restore" } else { "checkpoint" };
        if let Some(request) = with_annotations(section, &all) {
            let without = with_annotations(section, &[]).expect("none");
            prop_assert_eq!(names(&request), names(&without));
        }
    }

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
