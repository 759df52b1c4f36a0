//! Whether a node has what a checkpoint needs.

use super::foreign;
use super::origin::Origin;
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

pub(super) fn look(facts: &Facts, node: &Node, origin: &Origin, all: &mut Vec<Finding>) {
    foreign::look(facts, node, all);
    processor(facts, node, all);
    instructions(facts, node, origin, all);
    criu(node, origin, all);
    kernel(facts, node, origin, all);
    security(facts, node, all);
    needs_of_the_container(facts, all);
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

/// What programs may have found when they started, and go on to use.
fn instructions(facts: &Facts, node: &Node, origin: &Origin, all: &mut Vec<Finding>) {
    if facts
        .architecture
        .is_some_and(|made_on| made_on != node.architecture)
    {
        return;
    }
    let Some(features) = &origin.features else {
        return all.push(Finding::note(
            "processor-origin",
            "the checkpoint does not say what programs in it may have chosen their instructions by: --origin does",
        ));
    };
    let missing: Vec<&str> = features
        .iter()
        .map(String::as_str)
        .filter(|f| !has(node, f))
        .collect();
    if missing.is_empty() {
        return all.push(Finding::ok(
            "processor-origin",
            "the node has all that programs may have chosen their instructions by",
        ));
    }
    all.push(Finding::warning(
        "processor-origin",
        format!("{} has {}, and the node has not", origin.name, missing.join(", ")),
        "restore it on a node that has them: a program that chose them when it started ends with SIGILL",
    ));
}

fn criu(node: &Node, origin: &Origin, all: &mut Vec<Finding>) {
    let Some(criu) = &node.criu else {
        let why = node.criu_problem.as_deref().unwrap_or("there is none");
        return all.push(Finding::error(
            "criu",
            format!("the node has no criu that could restore it: {why}"),
            "install criu 4.0 or newer there",
        ));
    };
    match &origin.criu {
        Some(theirs) if numbers(theirs) > numbers(&criu.version) => {
            all.push(Finding::warning(
                "criu",
                format!(
                    "it was made by criu {}, and the node has {}",
                    theirs, criu.version
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

/// The three numbers that a version begins with; 0 for what is none.
pub(super) fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()
        .unwrap_or_default()
        .split('.')
        .map(|n| n.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

fn kernel(facts: &Facts, node: &Node, origin: &Origin, all: &mut Vec<Finding>) {
    let known = &node.kernel.filesystems;
    let missing: Vec<&str> = facts
        .filesystems
        .iter()
        .map(String::as_str)
        .filter(|kind| !known.iter().any(|k| k == kind))
        .collect();
    // Updates of one release bring nothing that a program could use.
    let release = |version: &str| numbers(version).into_iter().take(2);
    let newer = |theirs: &&String| release(theirs).gt(release(&node.kernel.release));
    if let Some(theirs) = origin.kernel.as_ref().filter(newer) {
        all.push(Finding::warning(
            "kernel",
            format!(
                "it was made on Linux {theirs}, and the node has {}",
                node.kernel.release
            ),
            "use as new a kernel there: programs go on to use what they found when they started",
        ));
    } else if missing.is_empty() {
        all.push(Finding::ok(
            "kernel",
            format!("Linux {}", node.kernel.release),
        ));
    }
    if !missing.is_empty() {
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
        let none = Origin::default();
        warned(
            facts,
            node,
            &origin.map_or(none, |node| Origin::default().told_by(node)),
        )
    }

    fn warned(facts: &Facts, node: &Node, origin: &Origin) -> Vec<(&'static str, Severity)> {
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

    #[test]
    fn what_the_checkpoint_says_is_compared_as_well() {
        let mut node = node();
        node.kernel.release = "6.1.0-18-amd64".to_owned();
        node.criu_problem = None;
        node.criu = Some(crate::nodeinfo::CriuInfo {
            path: "/criu".into(),
            version: "4.2.1".to_owned(),
            memory_tracking: false,
            lazy_pages: false,
            pidfd_store: false,
        });
        let facts = Facts::default();
        let made = |criu: &str, kernel: &str, features: &[&str]| Origin {
            name: "AMD EPYC".to_owned(),
            features: Some(features.iter().map(|&f| f.to_owned()).collect()),
            criu: Some(criu.to_owned()),
            kernel: Some(kernel.to_owned()),
        };
        for same in [
            made("4.2.1", "6.1.99", &["avx"]),
            made("4.2", "5.15.0-generic", &[]),
            made("4.2.1.0", "6.1-rc1", &["sse2"]),
            made("99999999999999", "x", &[]),
        ] {
            assert_eq!(warned(&facts, &node, &same), [], "{same:?}");
        }
        let newer = made("4.3", "6.18.44-fc", &["avx", "avx2"]);
        let all = ["processor-origin", "criu", "kernel"].map(|n| (n, Severity::Warning));
        assert_eq!(warned(&facts, &node, &newer), all);
        // What the node says of itself goes before.
        assert_eq!(warned(&facts, &node, &newer.told_by(&node)), []);
    }

    #[test]
    fn what_is_not_known_is_a_note() {
        let mut all = Vec::new();
        instructions(&Facts::default(), &node(), &Origin::default(), &mut all);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].severity, Severity::Note);
        let other = Facts {
            architecture: Some("aarch64"),
            ..Facts::default()
        };
        all.clear();
        instructions(&other, &node(), &Origin::default(), &mut all);
        assert_eq!(all, []);
    }
}
