//! The table of cases.

use std::thread::available_parallelism;

use serde_json::{Value, json};

use super::served::Served;
use super::{Case, Ground, Kind};
use crate::machine::has_other_users;

/// nginx with one more directive.
macro_rules! nginx {
    ($directive:literal) => {
        [
            "nginx",
            "-c",
            "/data/nginx.conf",
            "-e",
            "/data/error.log",
            "-g",
            $directive,
        ]
    };
}

/// A case of an ordinary container with nothing special.
const TASK: Case = Case {
    name: "",
    title: "",
    program: "",
    kind: Kind::Task,
    form: || None,
    spec: |_, _| {},
    open_tcp: false,
    file_locks: false,
    terminal: false,
    neighbour: false,
    exec: false,
    node_programs: false,
    not_with_peer: None,
    known: &[],
    known_here: |_| true,
};

/// An object of `compat::processes`.
const BOUND: &str = "processors that a child is bound to";

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "compat::descriptors",
        title: "Descriptors and memory",
        program: include_str!("programs/descriptors.py"),
        spec: |spec, _| capabilities(spec, &["CAP_NET_ADMIN"]),
        ..TASK
    },
    Case {
        name: "compat::semaphores",
        title: "Semaphores",
        program: include_str!("programs/semaphores.py"),
        known: &[(
            "eventfd that is a semaphore",
            "CRIU 4.2 does not save the flag, it would come back as a plain eventfd: refused before the freeze.",
        )],
        ..TASK
    },
    Case {
        name: "compat::huge_pages",
        title: "Huge pages",
        program: include_str!("programs/hugepages.py"),
        known: &[(
            "mapping of huge pages",
            "CRIU knows such a mapping only where the machine has huge pages, which this one has not: refused before the freeze.",
        )],
        known_here: |_| {
            std::fs::read_to_string("/proc/sys/vm/nr_hugepages").is_ok_and(|n| n.trim() == "0")
        },
        ..TASK
    },
    Case {
        name: "compat::processes",
        title: "Processes and threads",
        program: include_str!("programs/processes.py"),
        exec: true,
        known: &[
            (
                "child in nanosleep that does not go on after EINTR",
                "CRIU ends a sleep with EINTR; a program that does not sleep the rest goes on early.",
            ),
            (
                BOUND,
                "CRIU does not save them: it may run on all of the container's.",
            ),
        ],
        // With one processor there is nothing to lose.
        known_here: |object| {
            object != BOUND || available_parallelism().is_ok_and(|processors| processors.get() > 1)
        },
        ..TASK
    },
    Case {
        name: "compat::stopped",
        title: "Stopped processes",
        program: include_str!("programs/stopped.py"),
        not_with_peer: Some(
            "not run, as CRIU waits for the process for ever, with the container frozen",
        ),
        ..TASK
    },
    Case {
        name: "compat::terminal",
        title: "Terminal",
        program: include_str!("programs/terminal.py"),
        spec: |spec, _| spec["process"]["terminal"] = true.into(),
        terminal: true,
        ..TASK
    },
    Case {
        name: "compat::mounts",
        title: "Mounts",
        program: include_str!("programs/mounts.py"),
        spec: |spec, _| {
            spec["root"]["readonly"] = true.into();
            push(&mut spec["linux"]["maskedPaths"], json!("/etc/passwd"));
            push(&mut spec["linux"]["readonlyPaths"], json!("/mnt"));
        },
        known: &[(
            "extended attributes on a tmpfs",
            "CRIU packs a tmpfs with tar, without them.",
        )],
        ..TASK
    },
    Case {
        name: "compat::binds",
        title: "Binds with new sources",
        program: include_str!("programs/binds.py"),
        spec: |spec, ground| {
            let folder = &ground.folder;
            for (source, destination, options) in [
                (format!("{folder}/which"), "/which", "rw"),
                (folder.clone(), "/data", "rw"),
                (format!("{folder}/inner"), "/data/inner", "ro"),
                (format!("{folder}/inner"), "/readonly", "ro"),
            ] {
                bind(spec, &source, destination, options);
            }
            let tmpfs = json!({ "destination": "/data/tmp", "type": "tmpfs", "source": "tmpfs" });
            push(&mut spec["mounts"], tmpfs);
        },
        ..TASK
    },
    Case {
        name: "compat::rights",
        title: "Rights",
        program: include_str!("programs/rights.py"),
        spec: |spec, _| {
            spec["process"]["noNewPrivileges"] = true.into();
            spec["process"]["user"]["additionalGids"] = json!([4321]);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
                ],
            });
        },
        ..TASK
    },
    Case {
        name: "compat::pod_of_users",
        title: "Pod with a user namespace (`hostUsers: false`), through CRI",
        program: concat!(
            include_str!("programs/pod.py"),
            "\n\n",
            include_str!("programs/podusers.py")
        ),
        kind: Kind::PodOfUsers,
        known: &[(
            "owners of changed files of the root file system",
            "containerd 2.1 makes all of them nobody's in the checkpoint. They become root's, without set-user-id.",
        )],
        ..TASK
    },
    Case {
        name: "compat::user_namespace",
        title: "User namespace",
        program: include_str!("programs/userns.py"),
        spec: |spec, _| own_users(spec),
        ..TASK
    },
    Case {
        name: "compat::cgroups",
        title: "Cgroups and limits",
        program: include_str!("programs/cgroups.py"),
        spec: |spec, ground| {
            cgroup_mount(spec);
            let (memory, pids, quota) = if ground.first {
                (64 << 20, 50, 50_000)
            } else {
                (96 << 20, 60, 80_000)
            };
            let resources = &mut spec["linux"]["resources"];
            resources["memory"] = json!({ "limit": memory });
            resources["pids"] = json!({ "limit": pids });
            resources["cpu"] = json!({ "quota": quota, "period": 100_000 });
        },
        ..TASK
    },
    Case {
        name: "compat::cgroup_namespace",
        title: "Cgroup namespace",
        program: include_str!("programs/cgroupns.py"),
        spec: |spec, _| {
            cgroup_mount(spec);
            push(
                &mut spec["linux"]["namespaces"],
                json!({ "type": "cgroup" }),
            );
        },
        ..TASK
    },
    Case {
        name: "compat::user_and_cgroup_namespace",
        title: "Cgroup namespace in a user namespace",
        program: include_str!("programs/cgroupns.py"),
        spec: |spec, _| {
            cgroup_mount(spec);
            push(
                &mut spec["linux"]["namespaces"],
                json!({ "type": "cgroup" }),
            );
            own_users(spec);
        },
        ..TASK
    },
    Case {
        name: "compat::namespaces",
        title: "Namespaces by path",
        program: include_str!("programs/namespaces.py"),
        spec: |spec, ground| {
            for kind in ["network", "ipc", "uts"] {
                join(spec, ground, kind);
            }
        },
        neighbour: true,
        ..TASK
    },
    Case {
        name: "compat::pid_namespace",
        title: "Pid namespace by path",
        program: include_str!("programs/pidns.py"),
        spec: |spec, ground| join(spec, ground, "pid"),
        neighbour: true,
        ..TASK
    },
    Case {
        name: "compat::connections",
        title: "Connections, with OpenTcp",
        program: include_str!("programs/connections.py"),
        spec: |spec, _| capabilities(spec, &["CAP_NET_ADMIN"]),
        open_tcp: true,
        ..TASK
    },
    Case {
        name: "compat::locks",
        title: "Locks, with FileLocks",
        program: include_str!("programs/locks.py"),
        file_locks: true,
        ..TASK
    },
    Case {
        name: "compat::pod",
        title: "Pod of the kubelet, through CRI",
        program: concat!(
            include_str!("programs/pod.py"),
            "\n\n",
            include_str!("programs/podchanges.py")
        ),
        kind: Kind::Pod,
        ..TASK
    },
    Case {
        name: "compat::redis",
        title: "redis, restored on another node with its address",
        program: include_str!("programs/redis.py"),
        kind: Kind::Served(&Served {
            command: || &["redis-server", "/data/redis.conf"],
            files: &[("redis.conf", include_str!("programs/redis.conf"))],
            moves: true,
        }),
        ..TASK
    },
    Case {
        name: "compat::nginx",
        title: "nginx, restored in its network",
        program: include_str!("programs/nginx.py"),
        form: || {
            Some(if has_other_users() {
                "Its workers are another user's than its master."
            } else {
                "Its workers are root's, for want of CAP_SYS_RESOURCE on this machine."
            })
        },
        kind: Kind::Served(&Served {
            command: || {
                if has_other_users() {
                    &nginx!("user www-data;")
                } else {
                    &nginx!("user root;")
                }
            },
            files: &[("nginx.conf", include_str!("programs/nginx.conf"))],
            moves: false,
        }),
        ..TASK
    },
    Case {
        name: "compat::postgres",
        title: "postgres",
        form: || {
            Some(if has_other_users() {
                "It is the user www-data of the node."
            } else {
                "It is a user of a namespace of its own, for want of CAP_SYS_RESOURCE on this machine."
            })
        },
        program: include_str!("programs/postgres.py"),
        // It refuses root, and CRIU may not read the limits of another user's process without
        // CAP_SYS_RESOURCE, which it has over a user namespace of the container's own.
        spec: |spec, ground| {
            if !has_other_users() {
                // Nobody else's on the machine: a user's pipes have a limit, and CRIU's are many.
                users_from(spec, 100_000);
            }
            spec["process"]["user"] = json!({ "uid": 33, "gid": 33 });
            spec["process"]["capabilities"] = json!({});
            bind(spec, &ground.folder, "/data", "rw");
        },
        node_programs: true,
        ..TASK
    },
    Case {
        name: "compat::java",
        title: "A Java virtual machine",
        program: include_str!("programs/java.py"),
        kind: Kind::Served(&Served {
            // Two cores or not, a collector with threads of its own.
            command: || &["java", "-Xmx64m", "-XX:+UseG1GC", "/data/Heap.java"],
            files: &[("Heap.java", include_str!("programs/Heap.java"))],
            moves: false,
        }),
        ..TASK
    },
    Case {
        name: "compat::address",
        title: "Connections to a client outside, restored on another node with the address",
        program: include_str!("programs/address.py"),
        kind: Kind::Served(&Served {
            command: || &["python3", "/data/server.py"],
            files: &[("server.py", include_str!("programs/server.py"))],
            moves: true,
        }),
        ..TASK
    },
    Case {
        name: "compat::outside",
        title: "Connections to a client outside, restored on the same node",
        program: include_str!("programs/address.py"),
        kind: Kind::Served(&Served {
            command: || &["python3", "/data/server.py"],
            files: &[("server.py", include_str!("programs/server.py"))],
            moves: false,
        }),
        ..TASK
    },
];

pub(super) fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

pub(super) fn bind(spec: &mut Value, source: &str, destination: &str, access: &str) {
    let mount = json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", access],
    });
    push(&mut spec["mounts"], mount);
}

/// A user namespace in which each user is who it is outside.
fn own_users(spec: &mut Value) {
    users_from(spec, 0);
}

/// A user namespace whose root is this user of the node, and whose others are those after it.
fn users_from(spec: &mut Value, first: u32) {
    push(&mut spec["linux"]["namespaces"], json!({ "type": "user" }));
    let all = json!([{ "containerID": 0, "hostID": first, "size": 65536 }]);
    spec["linux"]["uidMappings"] = all.clone();
    spec["linux"]["gidMappings"] = all;
}

fn cgroup_mount(spec: &mut Value) {
    let mount = json!({
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    });
    push(&mut spec["mounts"], mount);
}

fn capabilities(spec: &mut Value, more: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        for name in more {
            push(&mut spec["process"]["capabilities"][set], json!(name));
        }
    }
}

/// Gives the container the neighbour's namespace instead of one of its own.
fn join(spec: &mut Value, ground: &Ground, kind: &str) {
    let file = if kind == "network" { "net" } else { kind };
    let path = format!("/proc/{}/ns/{file}", ground.neighbour);
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    for namespace in namespaces.into_iter().flatten() {
        if namespace["type"] == kind {
            namespace["path"] = path.as_str().into();
        }
    }
}
