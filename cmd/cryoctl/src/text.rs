//! Words and numbers for people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

/// A text from a checkpoint, safe for a terminal: control characters, and those that turn the
/// direction of writing around, are escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hostile) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hostile(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// An error with its causes on one line, each said once: some carry theirs in their text already.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let next = cause.to_string();
        if text.is_empty() {
            text = next;
        } else if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
    }
    text
}

/// Bytes as checkpointctl prints them: one decimal, binary units up to TiB.
pub(crate) fn bytes(count: u64) -> String {
    const KIB: f64 = 1024.0;
    let float = count as f64;
    match count {
        0..0x400 => format!("{count} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", float / KIB),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", float / KIB / KIB),
        0x4000_0000..0x100_0000_0000 => format!("{:.1} GiB", float / KIB / KIB / KIB),
        _ => format!("{:.1} TiB", float / KIB / KIB / KIB / KIB),
    }
}

/// A time with three decimals at most.
pub(crate) fn microseconds(count: u32) -> String {
    match count {
        0..1_000 => format!("{count} µs"),
        1_000..1_000_000 => format!("{:.1} ms", f64::from(count) / 1e3),
        _ => format!("{:.2} s", f64::from(count) / 1e6),
    }
}

/// A time of so many microseconds with five digits at most, as checkpointctl prints it.
pub(crate) fn short_duration(count: u64) -> String {
    let (value, unit) = match count {
        0..1_000 => return format!("{count} µs"),
        1_000..1_000_000 => (count as f64 / 1e3, "ms"),
        _ => (count as f64 / 1e6, "s"),
    };
    let decimals = match value {
        0.0..9.99995 => 4,
        9.99995..99.9995 => 3,
        99.9995..999.995 => 2,
        999.995..9999.95 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits} {unit}")
}

/// A time as RFC 3339 in UTC, to the nanosecond.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86400, since.as_secs() % 86400);
    // Years that begin in March, so that the day that may be missing is their last; from the
    // start of a cycle of 400 years. 719468 days are from there to 1970.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (
        era * 400 + year + u64::from(month >= 10),
        if month < 10 { month + 3 } else { month - 9 },
    );
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Rows below a header, in columns as wide as need be. Each cell is made safe for a terminal.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let mut widths = vec![0; columns];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// JSON for programs, over several lines.
///
/// # Errors
///
/// When it cannot be written as JSON.
pub(crate) fn pretty(json: &impl serde::Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(json).context("no JSON")?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let missing = || std::io::Error::other("no such file");
        let error = anyhow::Error::from(missing()).context("transport: no such file");
        assert_eq!(with_causes(&error), "transport: no such file");
        let error = anyhow::Error::from(missing()).context("cannot connect");
        assert_eq!(with_causes(&error), "cannot connect: no such file");
    }

    #[test]
    fn sizes_and_times() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (722_022, "705.1 KiB"),
            (1 << 20, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (5 << 40, "5.0 TiB"),
        ];
        for (count, text) in sizes {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (147_720, "147.7 ms"),
            (2_500_000, "2.50 s"),
        ] {
            assert_eq!(microseconds(count), text);
        }
    }

    #[test]
    fn short_durations() {
        for (count, text) in [
            (753, "753 µs"),
            (18_746, "18.746 ms"),
            (147_720, "147.72 ms"),
            (999_999, "1000 ms"),
            (100_000, "100 ms"),
            (20_000, "20 ms"),
            (1_500_000, "1.5 s"),
            (12_345_678, "12.346 s"),
            (123_456_789_000, "123457 s"),
        ] {
            assert_eq!(short_duration(count), text);
        }
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_795_450_353, "2026-11-23T16:12:33.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(
                rfc3339(UNIX_EPOCH + std::time::Duration::from_secs(seconds)),
                text
            );
        }
    }

    #[test]
    fn tables_are_as_wide_as_they_need_be() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["ID", "CAUSE"]), row(["a\u{1b}", ""]), row(["b", "x"])];
        assert_eq!(table(&rows), "ID       CAUSE\na\\u{1b}\nb        x\n");
    }

    #[test]
    fn nothing_reaches_the_terminal_that_steers_it() {
        assert_eq!(printable("caf\u{e9} \u{4e2d}"), "caf\u{e9} \u{4e2d}");
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}"), "a\\u{1b}[2Jb\\n\\u{9b}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }
}
