//! critest's specs against a CRI handler: running them, and what their reports come to.
//!
//! A spec that does not pass with cryo needs a line in `conformance.reasons` at this crate's
//! root, which says why. One that passes with the peer may be skipped with cryo for a
//! reason, but never fail. `docs/conformance.md` is [`page`] of two reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::lab::Node;
use crate::runtime::Runtime;

/// The folder in a node where reports lie; `/share` is visible on the host too.
const REPORTS: &str = "/share";

/// The Go programs that a run needs (`hack/lab tools`).
pub const TOOLS: &[&str] = &["critest"];

/// What became of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It was skipped, by its own decision.
    Skipped,
    /// It failed, in whatever way.
    Failed,
}

impl Outcome {
    /// As a reason's line and the page have it.
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// One spec's outcome and, when it did not pass, what critest says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What became of it.
    pub outcome: Outcome,
    /// The failure's or the skip's text, one line.
    pub said: String,
}

/// The specs of one run by name.
pub type Report = BTreeMap<String, Spec>;

/// Runs critest in a node against the handler of `runtime`.
///
/// # Errors
/// When it could not be run or wrote no report; specs that fail are no error.
pub async fn run(node: &Node, runtime: Runtime) -> anyhow::Result<Report> {
    let path = format!("{REPORTS}/critest-{}.json", runtime.name());
    let finished = node
        .exec(&[
            "critest",
            "--runtime-handler",
            runtime.handler(),
            "--ginkgo.json-report",
            &path,
            "--ginkgo.no-color",
            "--ginkgo.succinct",
            // In one order, so that two runs differ in nothing but the shim.
            "--ginkgo.seed=1",
        ])
        .await?;
    let json = std::fs::read(node.host(&path)).with_context(|| {
        let said: String = finished.stderr.chars().take(2000).collect();
        format!(
            "critest wrote no report; exit code {}: {said}",
            finished.code
        )
    })?;
    std::fs::remove_file(node.host(&path))?;
    parse(&json)
}

/// The specs of a ginkgo report, without the benchmarks, which critest leaves out itself.
///
/// # Errors
/// When it is none, a spec is there twice, or the suite as a whole went wrong.
pub fn parse(json: &[u8]) -> anyhow::Result<Report> {
    let value: Value = serde_json::from_slice(json).context("critest's report")?;
    let entries = value
        .pointer("/0/SpecReports")
        .and_then(Value::as_array)
        .context("critest's report has no SpecReports")?;
    let mut report = Report::new();
    for entry in entries {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        let outcome = match text("State") {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        let said = entry
            .pointer("/Failure/Message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        if text("LeafNodeType") != "It" {
            ensure!(
                outcome == Outcome::Passed,
                "critest's {} {}: {said}",
                text("LeafNodeType"),
                outcome.word()
            );
            continue;
        }
        let mut words: Vec<&str> = entry
            .get("ContainerHierarchyTexts")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        words.push(text("LeafNodeText"));
        let name = words.join(" ");
        let name = name.strip_prefix("[k8s.io] ").unwrap_or(&name).to_owned();
        if name.contains("benchmark") {
            continue;
        }
        ensure!(
            report
                .insert(name.clone(), Spec { outcome, said })
                .is_none(),
            "critest has the spec twice: {name}"
        );
    }
    ensure!(!report.is_empty(), "critest's report is empty");
    Ok(report)
}

/// Why the specs whose names begin so do not pass with cryo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    outcome: Outcome,
    prefix: String,
    text: String,
}

impl Reason {
    fn covers(&self, name: &str, spec: &Spec) -> bool {
        spec.outcome == self.outcome && name.starts_with(&self.prefix)
    }
}

/// The reasons of this checkout.
///
/// # Errors
/// When the file is not as it should be.
pub fn reasons() -> anyhow::Result<Vec<Reason>> {
    parse_reasons(include_str!("../conformance.reasons"))
}

/// Lines `skipped NAME` or `failed NAME`, NAME being how the specs' names begin, each with
/// its reason indented below.
fn parse_reasons(text: &str) -> anyhow::Result<Vec<Reason>> {
    let mut reasons: Vec<Reason> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(char::is_whitespace) {
            let reason = reasons.last_mut().context("a reason without a spec")?;
            if !reason.text.is_empty() {
                reason.text.push(' ');
            }
            reason.text.push_str(line.trim());
            continue;
        }
        let (outcome, prefix) = match line.split_once(' ') {
            Some(("skipped", prefix)) => (Outcome::Skipped, prefix),
            Some(("failed", prefix)) => (Outcome::Failed, prefix),
            _ => bail!("neither `skipped NAME` nor `failed NAME`: {line}"),
        };
        reasons.push(Reason {
            outcome,
            prefix: prefix.trim().into(),
            text: String::new(),
        });
    }
    for reason in &reasons {
        ensure!(
            !reason.text.is_empty() && !reason.prefix.is_empty(),
            "no reason for {:?}",
            reason.prefix
        );
    }
    Ok(reasons)
}

/// What is wrong with cryo's report beside the reasons, and beside the peer's report if
/// there is one. Empty when nothing is.
#[must_use]
pub fn judge(cryo: &Report, peer: Option<&Report>, reasons: &[Reason]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, spec) in cryo {
        if spec.outcome == Outcome::Passed {
            continue;
        }
        let (what, said) = (spec.outcome.word(), &spec.said);
        if !reasons.iter().any(|reason| reason.covers(name, spec)) {
            wrong.push(format!("{what}, for no known reason: {name}: {said}"));
        }
        let peer = peer.and_then(|peer| peer.get(name)).map(|s| s.outcome);
        if spec.outcome == Outcome::Failed && peer == Some(Outcome::Passed) {
            wrong.push(format!("failed where the peer passes: {name}: {said}"));
        }
    }
    for reason in reasons {
        if !cryo.iter().any(|(name, spec)| reason.covers(name, spec)) {
            wrong.push(format!(
                "the reason is of no use any more: no spec {} {}",
                reason.outcome.word(),
                reason.prefix
            ));
        }
    }
    if let Some(peer) = peer {
        let names = |report: &Report| report.keys().cloned().collect::<BTreeSet<_>>();
        for name in names(cryo).symmetric_difference(&names(peer)) {
            wrong.push(format!("only one of the two reports has: {name}"));
        }
    }
    wrong
}

fn count(report: &Report, outcome: Outcome) -> usize {
    report.values().filter(|s| s.outcome == outcome).count()
}

/// `docs/conformance.md`.
#[must_use]
pub fn page(cryo: &Report, peer: &Report, reasons: &[Reason]) -> String {
    let mut page = String::from(
        "# Conformance

`make conformance` runs critest, the conformance tests of CRI (sigs.k8s.io/cri-tools), against
containerd's handler `cryo` and against its own shim with runc, in the lab, and writes this page. It
fails when a spec fails with cryo that passes with the peer, and when one that does not pass with
cryo has no reason in `tests/e2e/conformance.reasons`. `make test` runs it against cryo alone.

The images of the specs are made by `hack/lab.d/mkimages.py`; the node's registry answers for
registry.k8s.io and gcr.io. critest's benchmarks are no specs and are not counted.

| | cryo | Go shim with runc |
|---|---|---|
",
    );
    for outcome in [Outcome::Passed, Outcome::Skipped, Outcome::Failed] {
        let (own, other) = (count(cryo, outcome), count(peer, outcome));
        writeln!(page, "| {} | {own} | {other} |", outcome.word()).ok();
    }
    page.push_str(
        "\n## What does not pass with cryo\n\n| spec | cryo | peer | why |\n|---|---|---|---|\n",
    );
    for (name, spec) in cryo.iter().filter(|(_, s)| s.outcome != Outcome::Passed) {
        let peer = peer.get(name).map_or("-", |s| s.outcome.word());
        let why = reasons
            .iter()
            .find(|reason| reason.covers(name, spec))
            .map_or("", |reason| reason.text.as_str());
        writeln!(
            page,
            "| {} | {} | {peer} | {why} |",
            cell(name),
            spec.outcome.word()
        )
        .ok();
    }
    let better: Vec<_> = peer
        .iter()
        .filter(|(_, s)| s.outcome != Outcome::Passed)
        .filter(|(name, _)| {
            cryo.get(*name)
                .is_some_and(|s| s.outcome == Outcome::Passed)
        })
        .collect();
    if !better.is_empty() {
        page.push_str("\n## What passes with cryo alone\n\n| spec | peer | what critest says |\n|---|---|---|\n");
        for (name, spec) in better {
            let said: String = spec.said.chars().take(200).collect();
            writeln!(
                page,
                "| {} | {} | {} |",
                cell(name),
                spec.outcome.word(),
                cell(&said)
            )
            .ok();
        }
    }
    page
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(specs: &[(&str, Outcome)]) -> Report {
        specs
            .iter()
            .map(|(name, outcome)| {
                let said = String::from("said");
                (
                    (*name).into(),
                    Spec {
                        outcome: *outcome,
                        said,
                    },
                )
            })
            .collect()
    }

    const REASONS: &str =
        "# words\nskipped AppArmor\n  there is\n  none\n\nfailed Image digest\n  unreachable\n";

    #[test]
    fn a_report_is_read() {
        let json = br#"[{"SpecReports":[
            {"LeafNodeType":"BeforeSuite","State":"passed"},
            {"LeafNodeType":"It","State":"passed","LeafNodeText":"runs","ContainerHierarchyTexts":["[k8s.io] Container"]},
            {"LeafNodeType":"It","State":"skipped","LeafNodeText":"is measured","ContainerHierarchyTexts":["[k8s.io] Image benchmark"]},
            {"LeafNodeType":"It","State":"timedout","LeafNodeText":"stops","ContainerHierarchyTexts":["[k8s.io] Container"],
             "Failure":{"Message":"took\n  long"}}]}]"#;
        let report = parse(json).unwrap();
        assert_eq!(report.len(), 2);
        assert_eq!(report["Container runs"].outcome, Outcome::Passed);
        let stops = &report["Container stops"];
        assert_eq!(
            (stops.outcome, stops.said.as_str()),
            (Outcome::Failed, "took long")
        );
    }

    #[test]
    fn a_suite_that_went_wrong_is_no_report() {
        for json in [
            &br#"[{"SpecReports":[{"LeafNodeType":"BeforeSuite","State":"failed"}]}]"#[..],
            br#"[{"SpecReports":[]}]"#,
            b"[]",
            b"",
        ] {
            parse(json).unwrap_err();
        }
    }

    #[test]
    fn what_does_not_pass_needs_a_reason_that_is_of_use() {
        let reasons = parse_reasons(REASONS).unwrap();
        assert_eq!(reasons[0].text, "there is none");
        let known = report(&[
            ("AppArmor a", Outcome::Skipped),
            ("AppArmor b", Outcome::Skipped),
            ("Image digest", Outcome::Failed),
            ("Pod", Outcome::Passed),
        ]);
        assert_eq!(judge(&known, None, &reasons), Vec::<String>::new());
        let mut other = known.clone();
        other.get_mut("AppArmor a").unwrap().outcome = Outcome::Failed;
        assert_eq!(
            judge(&other, None, &reasons).len(),
            1,
            "the reason is for a skip"
        );
        other = known.clone();
        other.get_mut("Image digest").unwrap().outcome = Outcome::Passed;
        assert_eq!(
            judge(&other, None, &reasons).len(),
            1,
            "the reason is stale"
        );
    }

    #[test]
    fn a_failure_where_the_peer_passes_has_no_excuse() {
        let reasons = parse_reasons(REASONS).unwrap();
        let cryo = report(&[
            ("AppArmor", Outcome::Skipped),
            ("Image digest", Outcome::Failed),
        ]);
        let mut peer = report(&[
            ("AppArmor", Outcome::Passed),
            ("Image digest", Outcome::Failed),
        ]);
        assert_eq!(judge(&cryo, Some(&peer), &reasons), Vec::<String>::new());
        peer.get_mut("Image digest").unwrap().outcome = Outcome::Passed;
        assert_eq!(judge(&cryo, Some(&peer), &reasons).len(), 1);
        peer.remove("Image digest");
        assert_eq!(
            judge(&cryo, Some(&peer), &reasons).len(),
            1,
            "not the same specs"
        );
    }

    #[test]
    fn reasons_that_cannot_be_read_are_errors() {
        for text in ["  text\n", "broken Name\n  text\n", "skipped Name\n"] {
            parse_reasons(text).unwrap_err();
        }
    }

    #[test]
    fn the_page_has_todays_reasons() {
        let page = include_str!("../../../docs/conformance.md");
        for reason in reasons().unwrap() {
            let row = |line: &&str| {
                line.starts_with(&format!("| {}", cell(&reason.prefix)))
                    && line.ends_with(&format!("| {} |", reason.text))
            };
            assert!(
                page.lines().any(|line| row(&line)),
                "docs/conformance.md is old: `make conformance`; it lacks {:?}",
                reason.prefix
            );
        }
    }
}
