//! Searching memory, and how the matches are printed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use cryo_checkpoint::memory::search::{self, MAX_CONTEXT_BYTES, Match, Options, Pattern};
use cryo_checkpoint::memory::{self, Memory};
use serde_json::json;

use super::super::Format;
use super::{Memparse, check_pid};
use crate::failure::Failure;
use crate::newfile::NewFile;
use crate::progress::Progress;
use crate::table::Table;
use crate::text::printable;

/// Matches up to so many bytes are kept until the width of the table is known. With more of them
/// memory is searched a second time.
const KEPT_BYTES: usize = 8 << 20;

/// How a text is written in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Encoding {
    /// As it is printed: bytes that are no printable ASCII are a `?`. What is not ASCII in a
    /// text is UTF-8.
    Text,
    /// Byte by byte, texts as UTF-8. Expressions are over bytes, `.` is any but a newline.
    Bytes,
    /// UTF-16, little endian. Not for expressions.
    #[value(name = "utf-16le", alias = "utf-16")]
    Utf16Le,
    /// UTF-16, big endian. Not for expressions.
    #[value(name = "utf-16be")]
    Utf16Be,
}

impl Encoding {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Bytes => "bytes",
            Self::Utf16Le => "utf-16le",
            Self::Utf16Be => "utf-16be",
        }
    }
}

/// What is searched for: its words on the command line, its encoding, the pattern.
struct Wanted {
    words: Vec<(String, Encoding)>,
    patterns: Vec<Pattern>,
}

impl Wanted {
    fn new(args: &Memparse) -> Result<Self, Failure> {
        let mut wanted = Self {
            words: Vec::new(),
            patterns: Vec::new(),
        };
        for text in &args.search {
            for &encoding in &args.encoding {
                let pattern = match encoding {
                    Encoding::Text => Pattern::printed(text),
                    Encoding::Bytes => Pattern::bytes(text.as_bytes()),
                    Encoding::Utf16Le => Pattern::utf16(text, false),
                    Encoding::Utf16Be => Pattern::utf16(text, true),
                };
                wanted.add(text, encoding, pattern)?;
            }
        }
        for expression in &args.search_regex {
            for &encoding in &args.encoding {
                if matches!(encoding, Encoding::Utf16Le | Encoding::Utf16Be) {
                    return Err(anyhow!(
                        "expressions cannot be searched for in UTF-16: use --search, or --encoding bytes"
                    )
                    .into());
                }
                let printed = encoding == Encoding::Text;
                wanted.add(
                    expression,
                    encoding,
                    Pattern::expression(expression, printed),
                )?;
            }
        }
        Ok(wanted)
    }

    fn add(
        &mut self,
        words: &str,
        encoding: Encoding,
        pattern: Result<Pattern, search::PatternError>,
    ) -> Result<(), Failure> {
        let pattern = pattern.with_context(|| format!("cannot search for {words:?}"))?;
        self.words.push((words.to_owned(), encoding));
        self.patterns.push(pattern);
        Ok(())
    }

    fn of(&self, found: &Match) -> (&str, &'static str) {
        self.words
            .get(found.pattern)
            .map_or(("", ""), |(words, encoding)| (words, encoding.name()))
    }
}

pub(super) fn search(args: &Memparse, path: &Path) -> Result<(), Failure> {
    if args.context > MAX_CONTEXT_BYTES {
        return Err(anyhow!("--context may be {MAX_CONTEXT_BYTES} at most").into());
    }
    let wanted = Wanted::new(args)?;
    let checkpoint = args.choice.checkpoint(path)?;
    let pids = if args.pid == 0 {
        let living = memory::processes(&checkpoint)?;
        living.iter().map(|(process, _)| process.pid).collect()
    } else {
        check_pid(&checkpoint, args.pid)?;
        vec![args.pid]
    };
    let memories = pids
        .into_iter()
        .map(|pid| Ok((pid, args.memory(&checkpoint, pid)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let total = memories.iter().map(|(_, memory)| memory.bytes()).sum();
    let progress = args.progress.start("searching", total);
    let job = Job {
        args,
        wanted: &wanted,
        memories: &memories,
        progress: &progress,
    };
    match &args.output {
        None => job.print(&mut BufWriter::new(io::stdout().lock())),
        Some(output) => {
            let new = NewFile::create(output)?;
            job.print(&mut BufWriter::<&File>::new(new.file()))?;
            new.finish()
        }
    }
}

struct Job<'a> {
    args: &'a Memparse,
    wanted: &'a Wanted,
    memories: &'a [(u32, Memory)],
    progress: &'a Progress,
}

impl Job<'_> {
    fn each(&self, mut found: impl FnMut(u32, Match) -> io::Result<()>) -> Result<(), Failure> {
        for (pid, memory) in self.memories {
            let options = Options {
                context: self.args.context,
                threads: self.args.threads(),
                done: Some(self.progress.counter()),
            };
            search::search(memory, &self.wanted.patterns, options, |one| {
                found(*pid, one).map_err(memory::Error::Output)
            })?;
        }
        Ok(())
    }

    fn print(&self, out: &mut impl Write) -> Result<(), Failure> {
        match self.args.format {
            Format::Text => self.table(out)?,
            Format::Json => self.json(out)?,
        }
        out.flush()?;
        Ok(())
    }

    fn json(&self, out: &mut impl Write) -> Result<(), Failure> {
        let mut first = true;
        self.each(|pid, one| {
            let (pattern, encoding) = self.wanted.of(&one);
            let object = json!({
                "pid": pid,
                "address": format!("{:#x}", one.address),
                "length_bytes": one.length,
                "pattern": pattern,
                "encoding": encoding,
                "match": shown(&one),
            });
            let before = if first { "[\n  " } else { ",\n  " };
            first = false;
            write!(out, "{before}{object}")
        })?;
        out.write_all(if first { b"[]\n" } else { b"\n]\n" })?;
        Ok(())
    }

    /// checkpointctl's table, with columns for the process and the pattern where there are
    /// several.
    fn table(&self, out: &mut impl Write) -> Result<(), Failure> {
        let many_processes = self.args.pid == 0;
        let many_patterns = self.wanted.patterns.len() > 1;
        let mut header = vec!["Address", "Match", "Instance"];
        if many_patterns {
            header.insert(2, "Pattern");
        }
        if many_processes {
            header.insert(0, "PID");
        }
        let row = |pid: u32, one: &Match, instance: usize| {
            let mut row = vec![
                format!("{:016x}", one.address),
                shown(one),
                instance.to_string(),
            ];
            if many_patterns {
                let (words, encoding) = self.wanted.of(one);
                let words = printable(words);
                row.insert(
                    2,
                    match encoding {
                        "text" => words.into_owned(),
                        _ => format!("{words} ({encoding})"),
                    },
                );
            }
            if many_processes {
                row.insert(0, pid.to_string());
            }
            row
        };
        let mut table = Table::new(&header);
        let mut kept = Vec::new();
        let (mut count, mut kept_bytes) = (0, 0);
        self.each(|pid, one| {
            count += 1;
            let cells = row(pid, &one, count);
            table.fit(cells.iter().map(String::as_str));
            kept_bytes += cells.iter().map(String::len).sum::<usize>() + 100;
            if kept_bytes <= KEPT_BYTES {
                kept.push(cells);
            } else {
                kept = Vec::new();
            }
            Ok(())
        })?;
        if count == 0 {
            return Ok(self.nothing(out)?);
        }
        out.write_all(table.head().as_bytes())?;
        for cells in &kept {
            out.write_all(table.row(cells.iter().map(String::as_str)).as_bytes())?;
        }
        if kept_bytes > KEPT_BYTES {
            count = 0;
            self.each(|pid, one| {
                count += 1;
                let cells = row(pid, &one, count);
                out.write_all(table.row(cells.iter().map(String::as_str)).as_bytes())
            })?;
        }
        Ok(())
    }

    fn nothing(&self, out: &mut impl Write) -> io::Result<()> {
        let mut words: Vec<_> = self
            .wanted
            .words
            .iter()
            .map(|(words, _)| printable(words))
            .collect();
        words.dedup();
        let noun = if words.len() > 1 {
            "patterns"
        } else {
            "pattern"
        };
        let words = words.join("\", \"");
        write!(out, "No matches for {noun} \"{words}\" in the memory of ")?;
        match self.args.pid {
            0 => writeln!(out, "any process"),
            pid => writeln!(out, "PID {pid}"),
        }
    }
}

/// A match and what is around it, as it is printed.
fn shown(one: &Match) -> String {
    one.bytes
        .iter()
        .map(|byte| char::from(search::as_text(*byte)))
        .collect::<String>()
}
