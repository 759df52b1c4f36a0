//! `docs/compatibility.md`.

use std::fmt::Write as _;

use super::{CASES, Outcome, Row};

/// `docs/compatibility.md`.
#[must_use]
pub fn page(cryo: &[Row], peer: &[Row]) -> String {
    let mut page = String::from(
        "# Compatibility

What is in a container, and whether it is there after a checkpoint with exit and a restore as
another container. `make compatibility` writes this page: it runs the cases of
`tests/e2e/src/compat/` with cryo and with the Go shim with runc, in the lab. It fails when a row
fails with cryo whose reason the case does not have. `make test` runs the cases with cryo alone.

The objects of a case are in one container. Where the peer does not checkpoint or restore that, each
of them has a container of its own with the peer. containerd has options of a checkpoint and none of a
restore: where the peer's should have had one, it is run again with that in its node's configuration.

The real programs are Debian's, under load by a client from before the checkpoint until after the restore.
Where root of the machine has CAP_SYS_RESOURCE, the workers of nginx and all of postgres are other users
of the node; elsewhere CRIU cannot read their limits, and they run as the page says. `make test-vm` runs all cases
on cgroup v2 and with that capability, where every object of the page is kept that is kept here.
",
    );
    for case in CASES {
        if !cryo.iter().any(|row| row.case == case.title) {
            continue;
        }
        writeln!(page, "\n## {}\n", case.title).ok();
        if let Some(form) = (case.form)() {
            writeln!(page, "{form}\n").ok();
        }
        page.push_str("| object | looked at after the restore | checkpoint | restore | state | peer | why |\n|---|---|---|---|---|---|---|\n");
        for row in cryo.iter().filter(|row| row.case == case.title) {
            let other = peer
                .iter()
                .find(|other| other.case == row.case && other.object == row.object);
            let [checkpoint, restore, state] = row.outcome.words();
            let (peer, says) = other.map_or(("-", ""), |other| other.outcome.in_short());
            let mut why = case.reason(&row.object).unwrap_or_default().to_owned();
            if !says.is_empty() {
                let says: String = says.chars().take(160).collect();
                write!(why, "{}Peer: {says}", if why.is_empty() { "" } else { " " }).ok();
            }
            writeln!(
                page,
                "| {} | {} | {checkpoint} | {restore} | {state} | {peer} | {} |",
                cell(&row.object),
                cell(&row.checked),
                cell(&why)
            )
            .ok();
        }
    }
    page
}

impl Outcome {
    /// Checkpoint, restore, state.
    fn words(&self) -> [&'static str; 3] {
        match self {
            Self::Kept | Self::KeptByNode => ["yes", "yes", "kept"],
            Self::NotCheckpointed(_) => ["no", "-", "-"],
            Self::NotRestored(_) => ["yes", "no", "-"],
            Self::Lost(_) => ["yes", "yes", "lost"],
        }
    }

    fn in_short(&self) -> (&'static str, &str) {
        match self {
            Self::Kept => ("kept", ""),
            Self::KeptByNode => (
                "kept",
                "only with the option in the node's /etc/criu/runc.conf, as its restore takes none",
            ),
            Self::NotCheckpointed(why) => ("no checkpoint", why),
            Self::NotRestored(why) => ("no restore", why),
            Self::Lost(why) => ("lost", why),
        }
    }
}

/// A text as a cell of a Markdown table.
pub(super) fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('|', "\\|")
}
