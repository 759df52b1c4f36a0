//! What of a checkpoint is not of this place: of another machine, or of a newer criu.

use std::fmt;

use super::fits::numbers;
use super::whole::Facts;
use crate::finding::Finding;
use crate::nodeinfo::Node;

/// The release of criu that began to compress memory.
const COMPRESSES: &str = "4.3";

/// At most so many names are told.
const MAX_NAMES: usize = 3;

const UPDATE: &str =
    "update cryo, and criu to the release that made it: what they do not know they cannot restore";

/// What the images say that is not known here.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// The machine, by criu's number.
    pub(super) machine: Option<i32>,
    /// The security module, likewise.
    pub(super) lsm: Option<i32>,
    /// Pagemaps of which an entry says more than we know.
    pub(super) pagemaps: Names,
    /// Files of the image directory that no criu we know writes.
    pub(super) files: Names,
    /// Processes in a state that no criu we know writes.
    pub(super) states: Names,
}

/// A few names, and how many more there are.
#[derive(Debug, Default)]
pub(super) struct Names {
    first: Vec<String>,
    more: usize,
}

impl Names {
    pub(super) fn add(&mut self, name: impl Into<String>) {
        if self.first.len() < MAX_NAMES {
            self.first.push(name.into());
        } else {
            self.more += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join(", "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

pub(super) fn look(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    architecture(facts, node, all);
    let foreign = &facts.foreign;
    if !foreign.pagemaps.is_empty() {
        compression(&foreign.pagemaps, node, all);
    }
    if !foreign.files.is_empty() {
        all.push(Finding::error(
            "images",
            format!(
                "no criu that is known here writes these, and a restore refuses them: {}",
                foreign.files
            ),
            "if a newer criu made it, update cryo; else do not use it unless you know where it comes from",
        ));
    }
    if !foreign.states.is_empty() {
        let text = format!("not known here, as of a newer criu: {}", foreign.states);
        all.push(Finding::warning("states", text, UPDATE));
    }
    if let Some(number) = foreign.lsm {
        let text = format!(
            "its processes have labels of a security module that is not known here, number {number} of criu's"
        );
        all.push(Finding::warning("lsm", text, UPDATE));
    }
}

fn architecture(facts: &Facts, node: &Node, all: &mut Vec<Finding>) {
    if let Some(number) = facts.foreign.machine {
        let text = format!(
            "it was made on a machine that is not known here, number {number} of criu's; the node is {}",
            node.architecture
        );
        return all.push(Finding::error("architecture", text, UPDATE));
    }
    let Some(made_on) = facts.architecture else {
        return;
    };
    if made_on == as_criu_has_it(&node.architecture) {
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

/// What `uname -m` says, in the words of [`cryo_criu_image::task::Arch`].
fn as_criu_has_it(machine: &str) -> &str {
    match machine {
        "ppc64" | "ppc64le" => "powerpc64",
        "mips64" => "mips",
        // armv7l and the like.
        _ if machine.starts_with("armv") => "arm",
        _ => machine,
    }
}

/// A criu that does not know the blocks takes them for pages.
fn compression(pagemaps: &Names, node: &Node, all: &mut Vec<Finding>) {
    let what = format!(
        "memory is compressed, as criu does since {COMPRESSES}, or of something newer: {pagemaps}"
    );
    match &node.criu {
        Some(criu) if numbers(&criu.version) < numbers(COMPRESSES) => all.push(Finding::error(
            "compression",
            format!("{what}; the node has criu {}, which cannot read it", criu.version),
            format!("install criu {COMPRESSES} or newer there, built with LZ4, or make the checkpoint without --compress"),
        )),
        _ => all.push(Finding::warning(
            "compression",
            what,
            format!("see that the node has criu {COMPRESSES} or newer, built with LZ4: `criu check --feature compress`"),
        )),
    }
    all.push(Finding::note(
        "compression",
        "compressed memory is not read here: not by memparse, core and diff --memory, and not by lazy-pages",
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodeinfo::CriuInfo;

    fn node(architecture: &str, criu: &str) -> Node {
        let mut node = Node::here(None);
        node.architecture = architecture.to_owned();
        node.criu = serde_json::from_value::<CriuInfo>(serde_json::json!({
            "path": "/criu", "version": criu, "memory_tracking": false, "lazy_pages": false, "pidfd_store": false,
        }))
        .ok();
        assert!(node.criu.is_some());
        node
    }

    #[test]
    fn a_machine_is_one_by_either_name() {
        for (made_on, machine, good) in [
            ("x86_64", "x86_64", true),
            ("powerpc64", "ppc64le", true),
            ("arm", "armv7l", true),
            ("arm", "aarch64", false),
            ("s390x", "x86_64", false),
        ] {
            let facts = Facts {
                architecture: Some(made_on),
                ..Facts::default()
            };
            let mut all = Vec::new();
            look(&facts, &node(machine, "4.2.1"), &mut all);
            assert_eq!(
                crate::finding::any_error(&all),
                !good,
                "{made_on} {machine}"
            );
        }
    }

    #[test]
    fn an_older_criu_cannot_read_compressed_memory() {
        let mut facts = Facts::default();
        for pid in 1..=5 {
            facts.foreign.pagemaps.add(format!("pagemap-{pid}.img"));
        }
        for (version, good) in [
            ("4.2.1", false),
            ("4.3", true),
            ("4.10", true),
            ("5.0", true),
        ] {
            let mut all = Vec::new();
            look(&facts, &node("x86_64", version), &mut all);
            assert_eq!(crate::finding::any_error(&all), !good, "{version}");
            let names = "pagemap-1.img, pagemap-2.img, pagemap-3.img and 2 more";
            assert!(all[0].text.contains(names), "{}", all[0].text);
        }
    }
}
