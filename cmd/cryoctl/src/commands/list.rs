//! `cryoctl list`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use cryo_checkpoint::inspect::to_the_second;
use cryo_checkpoint::metadata::Metadata;
use cryo_checkpoint::source::{Error, Source};

use crate::failure::Failure;
use crate::table::Table;
use crate::text::printable;

/// Where the kubelet puts the archives of its checkpoint API.
const KUBELET: &str = "/var/lib/kubelet/checkpoints/";

/// List the checkpoints in directories.
///
/// Looked at is what is called checkpoint-*, save marks called *.keep. What cannot be read is
/// told on stderr and left out.
#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub(super) struct List {
    /// The directories.
    #[arg(value_name = "DIRECTORY", default_value = KUBELET)]
    directories: Vec<PathBuf>,
}

const COLUMNS: [&str; 6] = [
    "Namespace",
    "Pod",
    "Container",
    "Engine",
    "Time Checkpointed",
    "Checkpoint Name",
];

impl List {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut text = String::new();
        let mut rows = Vec::new();
        for directory in &self.directories {
            let names = checkpoints(directory);
            if names.is_empty() {
                continue;
            }
            let shown = directory.display().to_string();
            text.push_str(&format!(
                "Listing checkpoints in path: {}\n",
                printable(&shown)
            ));
            for name in names {
                match row(&directory.join(&name), &name) {
                    Ok(found) => rows.extend(found),
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        let line = format!("{}: {error:#}", directory.join(&name).display());
                        writeln!(io::stderr(), "warning: {}", printable(&line))?;
                    }
                }
            }
        }
        if text.is_empty() {
            let shown: Vec<_> = self
                .directories
                .iter()
                .map(|d| d.display().to_string())
                .collect();
            let line = format!(
                "No checkpoints found in [{}]\n",
                printable(&shown.join(" "))
            );
            io::stdout().write_all(line.as_bytes())?;
            return Ok(());
        }
        let mut table = Table::new(&COLUMNS);
        for row in &rows {
            table.fit(row.iter().map(String::as_str));
        }
        text.push_str(&table.head());
        for row in &rows {
            text.push_str(&table.row(row.iter().map(String::as_str)));
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Names of what may be checkpoints, sorted. A directory that is not there has none.
fn checkpoints(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("checkpoint-") && !name.ends_with(".keep"))
        .collect();
    names.sort_unstable();
    names
}

fn row(path: &Path, name: &str) -> Result<Vec<[String; 6]>, Error> {
    let cell = |text: Option<String>| printable(&text.unwrap_or_default()).into_owned();
    let mut rows = Vec::new();
    for source in Source::open_all(path)? {
        let metadata = Metadata::of(&source)?;
        let engine = metadata.as_ref().map(|found| found.engine.name());
        let found = metadata.map(|m| (m.namespace, m.pod, m.name, m.checkpointed));
        let (namespace, pod, container, time) = found.unwrap_or_default();
        rows.push([
            cell(namespace),
            cell(pod),
            cell(container),
            engine.unwrap_or_default().to_owned(),
            time.map_or_else(|| "-".to_owned(), |time| rfc822(&time)),
            printable(name).into_owned(),
        ]);
    }
    Ok(rows)
}

/// `13 Mar 26 21:43 UTC` of `2026-03-13T21:43:06Z`; other texts are left as they are.
fn rfc822(time: &str) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let time = to_the_second(time);
    let part = |range: std::ops::Range<usize>| time.get(range).unwrap_or_default();
    let month = part(5..7).parse::<usize>().ok();
    let Some(month) = month.and_then(|month| MONTHS.get(month.checked_sub(1)?)) else {
        return printable(&time).into_owned();
    };
    let zone = match time.get(19..).unwrap_or_default() {
        "Z" => "UTC".to_owned(),
        offset => offset.replace(':', ""),
    };
    let text = format!(
        "{} {month} {} {} {zone}",
        part(8..10),
        part(2..4),
        part(11..16)
    );
    printable(&text).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        for (time, expected) in [
            ("2026-03-13T21:43:06.123456Z", "13 Mar 26 21:43 UTC"),
            ("2026-12-01T01:02:03+01:00", "01 Dec 26 01:02 +0100"),
            ("2026-13-01T01:02:03Z", "2026-13-01T01:02:03Z"),
            ("never", "never"),
        ] {
            assert_eq!(super::rfc822(time), expected);
        }
    }
}
