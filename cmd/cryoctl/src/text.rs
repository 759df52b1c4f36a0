//! Words and numbers for people.

use std::borrow::Cow;

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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn nothing_reaches_the_terminal_that_steers_it() {
        assert_eq!(printable("caf\u{e9} \u{4e2d}"), "caf\u{e9} \u{4e2d}");
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}"), "a\\u{1b}[2Jb\\n\\u{9b}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }
}
