//! `cryoctl failures`.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use cryo_checkpoint::failures::{self, Record};
use serde_json::json;

use super::Format;
use crate::failure::Failure;
use crate::text::{self, pretty, printable};

/// Show why checkpoints and restores failed on this node.
///
/// Lists the failures that are kept, the newest first: the last 20. With an ID, shows one of
/// them: the cause, what to do about it, the error that the client got, and the lines of CRIU's
/// log that speak of it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Failures {
    /// One of them: its ID in the list, or any beginning of it that fits no other.
    id: Option<String>,

    /// Print CRIU's log of it, and nothing else.
    #[arg(long, requires = "id", conflicts_with = "format")]
    log: bool,

    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Where they are kept.
    #[arg(long, default_value = failures::DIR)]
    dir: PathBuf,
}

const AFTER_HELP: &str = "\
Examples:
  cryoctl failures                       what failed, and why
  cryoctl failures 1795430400123         all about one of them
  cryoctl failures 1795430400123 --log   what CRIU wrote meanwhile

Exit codes:
  0  it was done; also when nothing has failed
  1  there is no such failure, or one cannot be read; stderr says why
  2  the command line is wrong";

impl Failures {
    pub(super) fn run(self) -> Result<(), Failure> {
        let kept = failures::list(&self.dir).map_err(anyhow::Error::from)?;
        match &self.id {
            Some(id) => self.show(the_one(kept, id, &self.dir)?),
            None => self.list(kept),
        }
    }

    /// Those that cannot be read do not hide the others.
    fn list(&self, kept: Vec<failures::Failure>) -> Result<(), Failure> {
        let mut readable = Vec::new();
        let mut unreadable = None;
        for failure in kept {
            match failure.record {
                Ok(record) => readable.push((failure.id, record)),
                Err(error) => _ = unreadable.get_or_insert(error),
            }
        }
        let text = match self.format {
            Format::Json => {
                let all: Vec<_> = readable.iter().map(|(id, r)| as_json(id, r)).collect();
                pretty(&all)?
            }
            Format::Text if readable.is_empty() => {
                format!("no failures are kept in {}\n", self.dir.display())
            }
            Format::Text => table(&readable),
        };
        io::stdout().write_all(text.as_bytes())?;
        unreadable.map_or(Ok(()), |error| Err(anyhow::Error::from(error).into()))
    }

    fn show(&self, failure: failures::Failure) -> Result<(), Failure> {
        let id = failure.id;
        if self.log {
            let log = failures::log(&self.dir, &id)
                .map_err(anyhow::Error::from)?
                .ok_or_else(|| anyhow!("criu left no log of {id}"))?;
            return Ok(io::stdout().write_all(lines(&log).as_bytes())?);
        }
        let record = failure.record.map_err(anyhow::Error::from)?;
        let text = match self.format {
            Format::Json => pretty(&as_json(&id, &record))?,
            Format::Text => all_about(&id, &record),
        };
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}

/// The one whose name begins so.
fn the_one(
    mut kept: Vec<failures::Failure>,
    id: &str,
    dir: &Path,
) -> Result<failures::Failure, Failure> {
    kept.retain(|f| f.id.starts_with(id));
    let count = kept.len();
    match kept.pop() {
        Some(failure) if count == 1 => Ok(failure),
        None => Err(anyhow!(
            "no failure {id} is kept in {}: `cryoctl failures` lists what is",
            dir.display()
        )
        .into()),
        Some(_) => Err(anyhow!("{count} failures begin with {id}: write more of it").into()),
    }
}

/// The time that an ID begins with: enough to name it.
fn short(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

fn table(failures: &[(String, Record)]) -> String {
    let header = ["ID", "TIME", "OPERATION", "NAMESPACE", "CONTAINER", "CAUSE"].map(str::to_owned);
    let mut rows = vec![header.to_vec()];
    for (id, record) in failures {
        // To the second.
        let time = record.time.split('.').next().unwrap_or_default();
        let cells = [
            short(id),
            time,
            &record.operation,
            &record.namespace,
            &record.container,
            &record.cause,
        ];
        rows.push(cells.map(str::to_owned).to_vec());
    }
    text::table(&rows)
}

fn all_about(id: &str, record: &Record) -> String {
    let mut text = String::new();
    let remedy = record.remedy.as_deref();
    let fields = [
        ("id", Some(id)),
        ("time", Some(&*record.time)),
        ("operation", Some(&*record.operation)),
        ("namespace", Some(&*record.namespace)),
        ("container", Some(&*record.container)),
        ("cause", Some(&*record.cause)),
        ("remedy", remedy),
        ("error", Some(&*record.error)),
    ];
    for (label, value) in fields {
        if let Some(value) = value {
            let _ = writeln!(text, "{:10} {}", format!("{label}:"), printable(value));
        }
    }
    if !record.lines.is_empty() {
        text.push_str("criu's log:\n");
    }
    for line in &record.lines {
        let _ = writeln!(text, "  {}", printable(line));
    }
    text
}

/// A log, line by line, each safe for a terminal.
fn lines(log: &[u8]) -> String {
    let mut text = String::new();
    for line in String::from_utf8_lossy(log).lines() {
        let _ = writeln!(text, "{}", printable(line));
    }
    text
}

fn as_json(id: &str, record: &Record) -> serde_json::Value {
    let mut json = json!(record);
    if let Some(object) = json.as_object_mut() {
        object.insert("id".to_owned(), id.into());
    }
    json
}
