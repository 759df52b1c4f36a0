//! Whether a node has what a checkpoint needs.

use super::whole::Facts;
use crate::finding::Finding;
use crate::nodeinfo::Node;

/// Parts of an x86 processor's state, and the feature that brings each: its bit of XCR0, the name
/// in `/proc/cpuinfo`.
const STATE: [(u32, &str); 5] = [
    (2, "avx"),
    (5, "avx512f"),
    (9, "pku"),
    (17, "amx_tile"),
    (18, "amx_tile"),
];

/// Features that programs choose by: the beginnings of their names.
const CHOSEN: [&str; 16] = [
    "sse", "ssse", "avx", "amx", "fma", "bmi", "aes", "sha", "popcnt", "movbe", "adx", "vaes",
    "vpclmul", "pclmul", "asimd", "sve",
];

pub(super) fn look(facts: &Facts, node: &Node, origin: Option<&Node>, all: &mut Vec<Finding>) {
    architecture(facts, node, all);
    processor(facts, node, all);
    if let Some(origin) = origin {
        compare(origin, node, all);
    }
    criu(node, origin, all);
    kernel(facts, node, all);
    security(facts, node, all);
    needs_of_the_container(facts, all);
}

fn architecture(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    let Some(made_on) = facts.architecture else {
        return;
    };
    if made_on == node.architecture {
        return all.push(Finding::ok("architecture", made_on));
    }
    all.push(Finding::error(
        "architecture",
        format!(
            "it was made on {made_on}, and the node is {}",
            node.architecture
        ),
        format!("restore it on a node of {made_on}"),
    ));
}

/// What the checkpoint itself shows to have been in use.
fn processor(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    if facts.architecture != Some("x86_64") || node.architecture != "x86_64" {
        return;
    }
    let mut missing: Vec<&str> = STATE
        .iter()
        .filter(|(bit, name)| facts.xstate & (1 << bit) != 0 && !has(node, name))
        .map(|(_, name)| *name)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return all.push(Finding::ok(
            "processor",
            "the node has what registers of the checkpoint are of",
        ));
    }
    all.push(Finding::error(
        "processor",
        format!(
            "registers in use are of {}, which the node lacks",
            missing.join(", ")
        ),
        "restore it on a node whose processor has them",
    ));
}

fn has(node: &Node, feature: &str) -> bool {
    node.cpu.features.iter().any(|f| f == feature)
}

fn compare(origin: &Node, node: &Node, all: &mut Vec<Finding>) {
    let missing: Vec<&str> = origin
        .cpu
        .features
        .iter()
        .map(String::as_str)
        .filter(|f| CHOSEN.iter().any(|start| f.starts_with(start)) && !has(node, f))
        .collect();
    if missing.is_empty() {
        return all.push(Finding::ok(
            "processor-origin",
            format!(
                "the node has all that programs on {} may have chosen",
                origin.hostname
            ),
        ));
    }
    all.push(Finding::warning(
        "processor-origin",
        format!("{} has {}, and the node has not", origin.hostname, missing.join(", ")),
        "restore it on a node that has them: a program that chose them when it started ends with SIGILL",
    ));
}

fn criu(node: &Node, origin: Option<&Node>, all: &mut Vec<Finding>) {
    let Some(criu) = &node.criu else {
        let why = node.criu_problem.as_deref().unwrap_or("there is none");
        return all.push(Finding::error(
            "criu",
            format!("the node has no criu that could restore it: {why}"),
            "install criu 4.0 or newer there",
        ));
    };
    let theirs = origin.and_then(|origin| origin.criu.as_ref());
    match theirs {
        Some(theirs) if numbers(&theirs.version) > numbers(&criu.version) => {
            all.push(Finding::warning(
                "criu",
                format!(
                    "it was made by criu {}, and the node has {}",
                    theirs.version, criu.version
                ),
                "install the same release there: an older one may not know all of the images",
            ));
        }
        _ => all.push(Finding::ok(
            "criu",
            format!("the node has {}", criu.version),
        )),
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map(|n| n.parse().unwrap_or_default())
        .collect()
}

fn kernel(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    let known = &node.kernel.filesystems;
    let missing: Vec<&str> = facts
        .filesystems
        .iter()
        .map(String::as_str)
        .filter(|kind| !known.iter().any(|k| k == kind))
        .collect();
    if missing.is_empty() {
        all.push(Finding::ok(
            "kernel",
            format!("Linux {}", node.kernel.release),
        ));
    } else {
        all.push(Finding::error(
            "kernel",
            format!(
                "it needs file systems that the node's kernel does not have: {}",
                missing.join(", ")
            ),
            "load their modules there, or use another kernel",
        ));
    }
    if facts.time_namespace && !node.kernel.time_namespace {
        all.push(Finding::error(
            "kernel",
            "it has a time namespace, and the node's kernel has none",
            "use a kernel with CONFIG_TIME_NS there",
        ));
    }
}

fn security(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    match facts.lsm {
        Some(lsm) if !node.lsms.iter().any(|l| l == lsm) => all.push(Finding::error(
            "lsm",
            format!("its processes have labels of {lsm}, which is not in use on the node"),
            format!("start the node with {lsm}, or make the checkpoint without"),
        )),
        Some(lsm) => all.push(Finding::ok("lsm", format!("{lsm} is in use on the node"))),
        None => {}
    }
}

fn needs_of_the_container(facts: &Facts, all: &mut Vec<Finding>) {
    if !facts.external_mounts.is_empty() {
        let at: Vec<_> = facts.external_mounts.iter().map(String::as_str).collect();
        all.push(Finding::note(
            "mounts",
            format!("the new container has to have mounts at {}", at.join(", ")),
        ));
    }
    if facts.user_namespace {
        all.push(Finding::note(
            "user-namespace",
            "the new container has to have a user namespace: a new one with the same maps, or its pod's",
        ));
    }
    if facts.tcp_connections > 0 {
        all.push(Finding::note(
            "connections",
            format!(
                "{} TCP connections go on only with the address that they had; else restore with tcp-close",
                facts.tcp_connections
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn node() -> Node {
        let mut node = Node::here(None);
        node.architecture = "x86_64".to_owned();
        node.cpu.features = vec!["avx".to_owned(), "sse2".to_owned()];
        node.kernel.filesystems = vec!["tmpfs".to_owned()];
        node.kernel.time_namespace = false;
        node.lsms = vec!["apparmor".to_owned()];
        node.criu = None;
        node.criu_problem = Some("criu is 3.1".to_owned());
        node
    }

    fn told(facts: &Facts, node: &Node, origin: Option<&Node>) -> Vec<(&'static str, Severity)> {
        let mut all = Vec::new();
        look(facts, node, origin, &mut all);
        all.retain(|f| f.severity > Severity::Note);
        all.iter().map(|f| (f.name, f.severity)).collect()
    }

    #[test]
    fn what_a_node_lacks_is_named() {
        let mut node = node();
        let mut facts = Facts {
            architecture: Some("x86_64"),
            xstate: 0b111,
            lsm: Some("apparmor"),
            filesystems: ["tmpfs".to_owned()].into(),
            ..Facts::default()
        };
        assert_eq!(told(&facts, &node, None), [("criu", Severity::Error)]);
        node.criu = Some(crate::nodeinfo::CriuInfo {
            path: "/criu".into(),
            version: "4.2".to_owned(),
            memory_tracking: false,
            lazy_pages: false,
            pidfd_store: false,
        });
        assert_eq!(told(&facts, &node, None), []);
        facts.xstate |= 1 << 5;
        facts.lsm = Some("selinux");
        facts.filesystems.insert("bpf".to_owned());
        facts.time_namespace = true;
        assert_eq!(
            told(&facts, &node, None)
                .iter()
                .map(|t| t.0)
                .collect::<Vec<_>>(),
            ["processor", "kernel", "kernel", "lsm"]
        );
        let facts = Facts {
            architecture: Some("aarch64"),
            ..Facts::default()
        };
        assert_eq!(
            told(&facts, &node, None),
            [("architecture", Severity::Error)]
        );
    }

    #[test]
    fn an_origin_with_more_is_a_warning() {
        let mut node = node();
        node.criu_problem = None;
        node.criu = Some(crate::nodeinfo::CriuInfo {
            path: "/criu".into(),
            version: "4.2.1".to_owned(),
            memory_tracking: false,
            lazy_pages: false,
            pidfd_store: false,
        });
        let mut origin = node.clone();
        origin.cpu.features.push("avx2".to_owned());
        origin.cpu.features.push("hypervisor".to_owned());
        origin.criu.as_mut().unwrap().version = "4.10".to_owned();
        let facts = Facts::default();
        assert_eq!(
            told(&facts, &node, Some(&origin)),
            [
                ("processor-origin", Severity::Warning),
                ("criu", Severity::Warning)
            ]
        );
        assert_eq!(told(&facts, &origin, Some(&node)), []);
    }
}
