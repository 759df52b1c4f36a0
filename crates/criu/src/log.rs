//! From CRIU's log to the cause of a failure. Pure.
//!
//! CRIU's own error message is the first error line of a run, and that is often a harmless
//! one; its error number is mostly 0. So the log is read: its error lines, less those that are
//! harmless and those that only repeat that something failed, and the first that says
//! something known decides the [`Cause`].

mod cause;
mod table;

use std::fmt;

pub use self::cause::Cause;
use self::table::{BENIGN, GENERIC, TABLE};

/// What a log says about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The kind of failure.
    pub cause: Cause,
    /// CRIU's words for it, if it left any.
    pub line: Option<String>,
    /// All error lines that say something, in order; bounded.
    pub lines: Vec<String>,
}

impl Diagnosis {
    /// The same of a CRIU that was ended by a signal. What it wrote before need not be the
    /// reason, so that is told beside the cause and does not decide it.
    #[must_use]
    pub fn of_killed(self) -> Self {
        Self {
            cause: Cause::Killed,
            ..self
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.what())?;
        if let Some(line) = &self.line {
            write!(f, " ({line})")?;
        }
        write!(f, "; {}", self.cause.remedy())
    }
}

/// The most lines and bytes of a line that are kept.
const MAX_LINES: usize = 32;
const MAX_LINE_LEN: usize = 400;

/// Reads a log and decides.
#[must_use]
pub fn diagnose(log: &str) -> Diagnosis {
    let mut lines = Vec::new();
    let mut known: Option<(Cause, String)> = None;
    let mut follows: Option<(Cause, String)> = None;
    for raw in log.lines() {
        let Some(message) = error_message(raw) else {
            continue;
        };
        if BENIGN.iter().any(|b| message.contains(b)) {
            continue;
        }
        if lines.len() < MAX_LINES {
            lines.push(shorten(message));
        }
        let Some((cause, secondary)) = classify(message) else {
            continue;
        };
        let slot = if secondary { &mut follows } else { &mut known };
        if slot.is_none() {
            *slot = Some((cause, shorten(message)));
        }
    }
    let informative = |m: &&String| !GENERIC.iter().any(|g| m.starts_with(g));
    let (cause, line) = match known.or(follows) {
        Some((cause, line)) => (cause, Some(line)),
        None => {
            let line = lines.iter().find(informative).or(lines.first());
            (Cause::Unknown, line.cloned())
        }
    };
    Diagnosis { cause, line, lines }
}

/// The message of an error line; `None` for any other line.
///
/// A line is `(00.004711)     12: Error (criu/file.c:123): message`, where the process number
/// is not always there.
#[must_use]
pub fn error_message(line: &str) -> Option<&str> {
    let (head, rest) = line.split_once("Error (")?;
    // Not in the middle of another line's text.
    if head
        .chars()
        .any(|c| !(c.is_ascii_digit() || "(). :".contains(c)))
    {
        return None;
    }
    let (_, message) = rest.split_once("): ")?;
    let message = message.trim();
    (!message.is_empty()).then_some(message)
}

fn shorten(message: &str) -> String {
    let clean: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if clean.len() <= MAX_LINE_LEN {
        return clean;
    }
    let mut end = MAX_LINE_LEN;
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", clean.get(..end).unwrap_or_default())
}

/// The cause that a message names, and whether a message before or after it may name a
/// better one.
fn classify(message: &str) -> Option<(Cause, bool)> {
    let entry = TABLE
        .iter()
        .find(|(parts, ..)| parts.iter().all(|p| message.contains(p)));
    entry.map(|&(_, cause, secondary)| (cause, secondary))
}

#[cfg(test)]
mod tests;
