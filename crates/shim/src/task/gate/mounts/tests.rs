use super::*;
use crate::task::gate::view::parse_mounts;

const ROOT: (u64, u64) = (70, 1);
const VOLUME: (u64, u64) = (8, 42);

/// A container as it should be; `/evil` is for what should not.
const TABLE: &str = "\
100 90 0:53 / / rw,relatime - overlay overlay rw
101 100 0:57 / /proc rw,nosuid,nodev,noexec - proc proc rw
102 100 0:58 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k
103 100 0:61 / /sys ro,nosuid,nodev,noexec - sysfs sysfs rw
104 103 0:70 / /sys/fs/cgroup rw,nosuid,nodev,noexec - tmpfs tmpfs rw
105 104 0:30 /c /sys/fs/cgroup/memory rw,nosuid,nodev,noexec - cgroup cgroup rw,memory
106 101 0:57 /sys /proc/sys ro,nosuid,nodev,noexec - proc proc rw
107 101 0:58 /null /proc/keys rw,nosuid - tmpfs tmpfs rw
108 103 0:64 / /sys/firmware ro - tmpfs tmpfs ro
109 100 8:1 /volumes/a /data ro - ext4 /dev/sda1 rw
";

fn policy(mounts_itself: bool) -> MountPolicy {
    let spec: Spec = serde_json::from_str(
        r#"{"ociVersion":"1.1.0","linux":{"maskedPaths":["/proc/keys","/sys/firmware","/proc/none"],
                "readonlyPaths":["/proc/sys"],"resources":{"devices":[
                {"allow":true,"type":"b","major":8,"access":"rwm"},{"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"rw"},
                {"allow":true,"type":"b","access":"m"}]}}}"#,
    )
    .unwrap();
    let file_system = |at: &str, kind: &str, options: &[&str]| {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        Expected {
            at: at.into(),
            what: if kind == "cgroup" {
                What::Cgroups
            } else {
                What::FileSystem(kind.to_owned())
            },
            flags: Flags::of_options(&options),
        }
    };
    let bind = |at: &str, identity, recursive, read_only| Expected {
        at: at.into(),
        what: What::Bind {
            source: "/volumes/a".into(),
            identity: Some(identity),
            recursive,
        },
        flags: Flags {
            read_only,
            ..Flags::default()
        },
    };
    let ours =
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:99 / /volumes/a/sub rw - tmpfs tmpfs rw\n";
    MountPolicy::new(
        &spec,
        vec![
            bind("/", ROOT, false, false),
            file_system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            file_system("/dev", "tmpfs", &["nosuid", "mode=755"]),
            file_system("/sys", "sysfs", &["nosuid", "noexec", "nodev", "rw", "ro"]),
            file_system(
                "/sys/fs/cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "ro"],
            ),
            bind("/data", VOLUME, true, true),
        ],
        mounts_itself,
        parse_mounts(ours).unwrap(),
    )
}

fn view(policy: &MountPolicy, table: &str) -> View {
    let places = policy.places().into_iter().map(|path| {
        let (identity, read_only) = match path.to_str().unwrap() {
            "/" => (ROOT, false),
            "/data" => (VOLUME, true),
            "/proc/sys" => ((57, 3), true),
            "/proc/none" => return None,
            _ => ((1, 1), false),
        };
        Some(Place {
            identity,
            node: None,
            read_only,
        })
    });
    View {
        places: places.collect(),
        mounts: parse_mounts(table).unwrap(),
        devices: Vec::new(),
    }
}

fn judge(mounts_itself: bool, table: &str) -> Result<(), String> {
    let policy = policy(mounts_itself);
    let placed = [Membership {
        hierarchy: "memory".to_owned(),
        path: "/c".into(),
    }];
    let judged = policy.judge(&view(&policy, table), &placed);
    judged.map_err(|v| v.to_string().replace("the mount namespace: ", ""))
}

#[test]
fn what_the_spec_mounts_passes() {
    assert_eq!(judge(false, TABLE), Ok(()));
    // A recursive bind brings along what is below its source.
    let more = format!("{TABLE}110 109 0:99 / /data/sub rw - tmpfs tmpfs rw\n");
    assert_eq!(judge(false, &more), Ok(()));
}

#[test]
fn what_it_does_not_is_named() {
    let with = |line: &str| format!("{TABLE}{line}\n");
    let instead = |old: &str, new: &str| {
        assert!(TABLE.contains(old), "{old}");
        TABLE.replace(old, new)
    };
    let cases = [
        (
            with("110 100 8:1 / /evil rw - ext4 /dev/sda1 rw"),
            "/evil: found a ext4 mount of /, allowed none there",
        ),
        (
            with("110 100 0:90 / /evil rw - tmpfs tmpfs rw"),
            "/evil: found a tmpfs mount of /, allowed none there",
        ),
        (
            with("110 109 0:98 / /data/sub rw - tmpfs tmpfs rw"),
            "/data/sub: found a tmpfs mount of /, allowed none there",
        ),
        (
            instead(
                "0:58 / /dev rw,nosuid - tmpfs",
                "0:6 / /dev rw,nosuid - devtmpfs",
            ),
            "/dev: found a devtmpfs mount of / nosuid, allowed a tmpfs mount of / nosuid",
        ),
        (
            instead(
                "/sys ro,nosuid,nodev,noexec - sysfs",
                "/sys rw,nosuid,nodev,noexec - sysfs",
            ),
            "/sys: found a sysfs mount of / nosuid,nodev,noexec, allowed a sysfs mount of / ro,nosuid,nodev,noexec",
        ),
        (
            instead("/data ro", "/data rw"),
            "/data: found a ext4 mount of /volumes/a, allowed /volumes/a of the node ro",
        ),
        (
            instead("0:30 /c ", "0:30 / "),
            "/sys/fs/cgroup/memory: found a cgroup mount of / nosuid,nodev,noexec, allowed none there",
        ),
        (
            instead(
                "0:58 /null /proc/keys rw,nosuid - tmpfs",
                "0:57 /keys /proc/keys rw,nosuid - proc",
            ),
            "/proc/keys: found a proc mount of /keys nosuid, allowed none there",
        ),
        (
            instead(
                "107 101 0:58 /null /proc/keys rw,nosuid - tmpfs tmpfs rw\n",
                "",
            ),
            "/proc/keys: found not masked, allowed masked",
        ),
        (
            // Below what is seen and allowed, something else.
            instead(
                "109 100",
                "110 100 8:1 / /data ro - ext4 /dev/sda1 rw\n109 110",
            ),
            "/data: found a ext4 mount of / ro, allowed /volumes/a of the node ro",
        ),
    ];
    for (table, wanted) in cases {
        assert_eq!(judge(false, &table), Err(wanted.to_owned()));
    }
}

#[test]
fn in_a_cgroup_namespace_v2_is_the_containers_own() {
    let judge = |own_cgroups, root: &str| {
        let mut policy = policy(true);
        policy.own_cgroups = own_cgroups;
        let old = "104 103 0:70 / /sys/fs/cgroup rw,nosuid,nodev,noexec - tmpfs tmpfs rw\n\
                105 104 0:30 /c /sys/fs/cgroup/memory rw,nosuid,nodev,noexec - cgroup cgroup rw,memory";
        let new = format!(
            "104 103 0:30 {root} /sys/fs/cgroup ro,nosuid,nodev,noexec - cgroup2 cgroup rw"
        );
        assert!(TABLE.contains(old));
        let placed = [Membership {
            hierarchy: String::new(),
            path: "/c".into(),
        }];
        let view = view(&policy, &TABLE.replace(old, &new));
        policy.judge(&view, &placed).map_err(|v| v.to_string())
    };
    assert_eq!(judge(true, "/c"), Ok(()));
    assert_eq!(judge(false, "/"), Ok(()));
    let said = judge(true, "/").unwrap_err();
    assert!(
        said.ends_with("allowed the container's cgroups ro,nosuid,nodev,noexec"),
        "{said}"
    );
}

#[test]
fn another_root_file_system_or_volume_is_refused() {
    let policy = policy(true);
    for path in ["/", "/data"] {
        let mut view = view(&policy, TABLE);
        let index = policy
            .places()
            .iter()
            .position(|p| p == Path::new(path))
            .unwrap();
        view.places[index] = Some(Place {
            identity: (8, 2),
            node: None,
            read_only: true,
        });
        let placed = [Membership {
            hierarchy: "memory".to_owned(),
            path: "/c".into(),
        }];
        let said = policy.judge(&view, &placed).unwrap_err();
        assert_eq!(said.property, path);
    }
}

#[test]
fn who_may_mount_has_what_is_its_own() {
    let with = |line: &str| judge(true, &format!("{TABLE}{line}\n"));
    assert_eq!(with("110 100 0:90 / /own rw - tmpfs tmpfs rw"), Ok(()));
    assert_eq!(
        with("110 100 0:53 /etc /own rw - overlay overlay rw"),
        Ok(())
    );
    assert_eq!(
        with("110 100 8:1 /volumes/a/b /own rw - ext4 /dev/sda1 rw"),
        Ok(())
    );
    for line in [
        "110 100 8:1 /volumes /evil rw - ext4 /dev/sda1 rw",
        "110 100 0:91 / /evil rw - overlay overlay rw",
        "110 100 0:6 / /evil rw - devtmpfs udev rw",
    ] {
        with(line).unwrap_err();
    }
}

#[test]
fn devices_are_those_of_the_cgroup() {
    let policy = policy(false);
    let device = |block, major, minor| {
        let mut view = view(&policy, TABLE);
        view.devices = vec![Device {
            path: "/dev/x".into(),
            node: Node {
                block,
                major,
                minor,
            },
        }];
        policy.judge(
            &view,
            &[Membership {
                hierarchy: String::new(),
                path: "/c".into(),
            }],
        )
    };
    for (block, major, minor) in [(false, 1, 3), (false, 136, 7), (false, 10, 229)] {
        assert_eq!(device(block, major, minor), Ok(()), "{major}:{minor}");
    }
    // What was allowed is denied later, and a right to make it is none to use it.
    for (block, major, minor) in [(true, 8, 0), (true, 1, 3), (false, 10, 200), (true, 7, 0)] {
        let said = device(block, major, minor).unwrap_err();
        assert!(
            said.found.ends_with(&format!("device {major}:{minor}")),
            "{said}"
        );
    }
}
