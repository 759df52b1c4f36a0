//! What a specification that came with a checkpoint asks of this node, beyond what every container
//! has. What is not known to be harmless is told.

use serde_json::Value;

/// As containerd gives them to each container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Mounts that show nothing of the node's files.
const MOUNTS: [&str; 8] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "shm",
];

/// Hidden from every container, of what a container could do harm with.
const MASKED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/sys/firmware"];
const READ_ONLY: [&str; 3] = ["/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices that every container has: null, zero, full, random, urandom; tty, console, ptmx;
/// terminals.
fn is_common(rule: &Value) -> bool {
    let number = |name: &str| rule.get(name).and_then(Value::as_i64);
    rule.get("type").and_then(Value::as_str) == Some("c")
        && matches!(
            (number("major"), number("minor")),
            (Some(1), Some(3 | 5 | 7 | 8 | 9)) | (Some(5), Some(0..=2)) | (Some(136), _)
        )
}

/// What it asks for, in words. Nothing is what an ordinary container asks for.
pub(super) fn of(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let known = |object: Option<&Value>, names: &[&str], at: &str, found: &mut Vec<String>| {
        for name in object.and_then(Value::as_object).into_iter().flatten() {
            if !names.contains(&name.0.as_str()) && !is_empty(name.1) {
                found.push(format!("{at}{}", name.0));
            }
        }
    };
    // The annotations are not taken over.
    let top = [
        "ociVersion",
        "process",
        "root",
        "hostname",
        "domainname",
        "mounts",
        "linux",
        "annotations",
    ];
    known(Some(spec), &top, "", &mut found);
    let process = spec.get("process");
    let names = [
        "terminal",
        "consoleSize",
        "user",
        "args",
        "commandLine",
        "env",
        "cwd",
        "capabilities",
        "rlimits",
        "noNewPrivileges",
        "apparmorProfile",
        "oomScoreAdj",
    ];
    known(process, &names, "process.", &mut found);
    let linux = spec.get("linux");
    let names = [
        "resources",
        "cgroupsPath",
        "namespaces",
        "seccomp",
        "maskedPaths",
        "readonlyPaths",
        "rootfsPropagation",
    ];
    known(linux, &names, "linux.", &mut found);
    if text(spec, "/root/path").is_some_and(|path| path != "rootfs") {
        found.push("a root file system of the node".to_owned());
    }
    mounts(spec, &mut found);
    capabilities(spec, &mut found);
    namespaces(spec, &mut found);
    for rule in list(spec, "/linux/resources/devices") {
        if rule.get("allow").and_then(Value::as_bool) != Some(false) && !is_common(rule) {
            found.push(format!("access to the devices {rule}"));
        }
    }
    for (at, wanted) in [("maskedPaths", &MASKED), ("readonlyPaths", &READ_ONLY)] {
        let has: Vec<_> = list(spec, &format!("/linux/{at}"))
            .filter_map(Value::as_str)
            .collect();
        if wanted.iter().any(|path| !has.contains(path)) {
            found.push(format!("fewer {at} than every container has"));
        }
    }
    if text(spec, "/process/apparmorProfile") == Some("unconfined") {
        found.push("no AppArmor profile".to_owned());
    }
    if text(spec, "/linux/rootfsPropagation").is_some_and(|p| p.contains("shared")) {
        found.push("mounts that the node sees".to_owned());
    }
    let adjust = spec.pointer("/process/oomScoreAdj").and_then(Value::as_i64);
    if adjust.is_some_and(|adjust| adjust < 0) {
        found.push("that the kernel spares it when memory is short (oomScoreAdj)".to_owned());
    }
    found
}

fn mounts(spec: &Value, found: &mut Vec<String>) {
    for mount in list(spec, "/mounts") {
        let field = |name: &str| mount.get(name).and_then(Value::as_str).unwrap_or_default();
        let mut options = list(mount, "/options").filter_map(Value::as_str);
        let bind = options.any(|option| option == "bind" || option == "rbind");
        if bind || !MOUNTS.contains(&field("type")) {
            found.push(format!(
                "{} of the node at {}",
                field("source"),
                field("destination")
            ));
        }
    }
}

fn capabilities(spec: &Value, found: &mut Vec<String>) {
    let sets = spec
        .pointer("/process/capabilities")
        .and_then(Value::as_object);
    let mut more: Vec<&str> = sets
        .into_iter()
        .flatten()
        .flat_map(|(_, set)| set.as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .filter(|capability| !CAPABILITIES.contains(capability))
        .collect();
    more.sort_unstable();
    more.dedup();
    found.extend(more.into_iter().map(|c| format!("the capability {c}")));
}

fn namespaces(spec: &Value, found: &mut Vec<String>) {
    let all: Vec<_> = list(spec, "/linux/namespaces").collect();
    for kind in ["pid", "ipc", "uts", "mount", "network"] {
        let own = all
            .iter()
            .find(|n| n.get("type").and_then(Value::as_str) == Some(kind));
        if own.is_none() {
            found.push(format!("the node's {kind} namespace"));
        }
    }
    for namespace in all {
        if let Some(path) = namespace.get("path").and_then(Value::as_str)
            && !path.is_empty()
        {
            found.push(format!("the namespace {path}"));
        }
    }
}

fn list<'a>(value: &'a Value, at: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value
        .pointer(at)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, at: &str) -> Option<&'a str> {
    value.pointer(at).and_then(Value::as_str)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ordinary() -> Value {
        json!({
            "ociVersion": "1.2.1",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["sh"],
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_KILL"]},
                "noNewPrivileges": true,
                "oomScoreAdj": 100,
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
            ],
            "hooks": {},
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network"},
                ],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 136, "access": "rwm"},
                ]},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/scsi"],
                "readonlyPaths": ["/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    #[test]
    fn an_ordinary_one_asks_for_nothing() {
        assert_eq!(of(&ordinary()), Vec::<String>::new());
    }

    /// Each alone is told.
    #[test]
    fn what_reaches_out_is_told() {
        let bind =
            json!([{"destination": "/host", "type": "none", "source": "/", "options": ["rbind"]}]);
        let cases = [
            ("/mounts", bind, "/ of the node at /host"),
            (
                "/mounts",
                json!([{"destination": "/d", "type": "ext4", "source": "/dev/vda"}]),
                "/dev/vda",
            ),
            (
                "/hooks",
                json!({"prestart": [{"path": "/bin/sh"}]}),
                "hooks",
            ),
            (
                "/process/capabilities",
                json!({"bounding": ["CAP_SYS_ADMIN"]}),
                "CAP_SYS_ADMIN",
            ),
            ("/process/apparmorProfile", json!("unconfined"), "AppArmor"),
            ("/process/selinuxLabel", json!("x"), "process.selinuxLabel"),
            ("/process/oomScoreAdj", json!(-998), "oomScoreAdj"),
            ("/linux/namespaces", json!([]), "the node's pid namespace"),
            (
                "/linux/namespaces/4/path",
                json!("/proc/1/ns/net"),
                "/proc/1/ns/net",
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/vda"}]),
                "linux.devices",
            ),
            (
                "/linux/resources/devices",
                json!([{"allow": true, "access": "rwm"}]),
                "devices",
            ),
            (
                "/linux/sysctl",
                json!({"kernel.core_pattern": "|/x"}),
                "linux.sysctl",
            ),
            ("/linux/maskedPaths", json!([]), "maskedPaths"),
            (
                "/linux/readonlyPaths",
                json!(["/proc/irq"]),
                "readonlyPaths",
            ),
            ("/linux/rootfsPropagation", json!("rshared"), "node sees"),
            ("/linux/newThing", json!(1), "linux.newThing"),
            ("/root/path", json!("/"), "root file system of the node"),
            ("/vm", json!({"a": 1}), "vm"),
        ];
        for (at, value, words) in cases {
            let mut spec = ordinary();
            let (parent, name) = at.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[name] = value;
            let found = of(&spec);
            assert!(found.iter().any(|f| f.contains(words)), "{at}: {found:?}");
        }
    }
}
