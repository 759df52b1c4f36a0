//! Screens in the documentation: `console` blocks that hold a command after `$ ` and what it
//! prints, stdout before stderr.
//!
//! What differs from run to run (numbers, sizes, times, versions, ids) is not compared, and neither is
//! what [`MACHINE`] names. A block that differs in nothing else stays as it is, so that writing
//! the page anew changes only what has changed.

use std::fmt::Write as _;
use std::sync::LazyLock;

use anyhow::{Context as _, ensure};
use regex::Regex;

const BEGIN: &str = "```console\n$ ";
const END: &str = "```\n";

/// Findings of doctor and of verify that are about the machine: their names alone are compared.
const MACHINE: [&str; 10] = [
    "architecture",
    "cgroup",
    "criu-check",
    "disk",
    "kernel",
    "memory-tracking",
    "network-lock",
    "processor",
    "rights",
    "userfaultfd",
];

/// A page, cut into its screens and what is between them.
#[derive(Debug)]
pub struct Page<'a> {
    head: &'a str,
    screens: Vec<Screen<'a>>,
}

#[derive(Debug)]
struct Screen<'a> {
    command: &'a str,
    shown: &'a str,
    tail: &'a str,
}

impl<'a> Page<'a> {
    /// Cuts a page.
    ///
    /// # Errors
    /// When a block has no end.
    pub fn cut(text: &'a str) -> anyhow::Result<Self> {
        let mut pieces = text.split(BEGIN);
        let head = pieces.next().unwrap_or_default();
        let screens = pieces
            .map(|piece| {
                let (command, rest) = piece.split_once('\n').context("a cut off block")?;
                let (shown, tail) = match rest.strip_prefix(END) {
                    Some(tail) => ("", tail),
                    None => {
                        let end = rest.find("\n```\n").context("a block without an end")? + 1;
                        (&rest[..end], &rest[end + END.len()..])
                    }
                };
                Ok(Screen {
                    command,
                    shown,
                    tail,
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { head, screens })
    }

    /// The commands, from the first to the last.
    pub fn commands(&self) -> Vec<&'a str> {
        self.screens.iter().map(|screen| screen.command).collect()
    }

    /// The page with what the commands print now.
    ///
    /// # Errors
    /// When it is not one text for each command.
    pub fn with(&self, printed: &[String]) -> anyhow::Result<String> {
        ensure!(printed.len() == self.screens.len(), "a screen is missing");
        let mut page = self.head.to_owned();
        for (screen, printed) in self.screens.iter().zip(printed) {
            let Screen {
                command,
                shown,
                tail,
            } = screen;
            let mut printed = printed.as_str();
            if normal(printed) == normal(shown) {
                printed = shown;
            }
            let newline = match printed.is_empty() || printed.ends_with('\n') {
                true => "",
                false => "\n",
            };
            write!(page, "{BEGIN}{command}\n{printed}{newline}{END}{tail}")?;
        }
        Ok(page)
    }
}

/// A screen without what differs from run to run.
fn normal(screen: &str) -> String {
    static PATTERNS: LazyLock<[(Regex, &str); 7]> = LazyLock::new(|| {
        [
            (
                r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)?",
                "TIME",
            ),
            (r"(?-u:\b)[0-9a-f]{12,64}(?-u:\b)", "ID"),
            (r"(?-u:\b)[0-9]+(\.[0-9]+)? ([KMGT]i)?B(?-u:\b)", "SIZE"),
            (
                r"(?-u:\b)[0-9]+(\.[0-9]+)? (ns|µs|ms|s)(?-u:\b)",
                "DURATION",
            ),
            (r"(?-u:\b)[0-9]+(\.[0-9]+){1,2}[a-z0-9.+~-]*", "VERSION"),
            (r"(?-u:\b)[0-9]+(?-u:\b)", "N"),
            (r" {2,}|-{3,}", " "),
        ]
        .map(|(pattern, name)| {
            (
                Regex::new(pattern).unwrap_or_else(|e| unreachable!("{e}")),
                name,
            )
        })
    });
    let mut text = String::new();
    let mut of_the_machine = false;
    for line in screen.lines() {
        let mut words = line.split_whitespace();
        let (severity, name) = (words.next(), words.next().unwrap_or_default());
        if of_the_machine && severity == Some("->") {
            continue;
        }
        let finding = matches!(severity, Some("ok" | "note" | "warning" | "ERROR"));
        of_the_machine = finding && MACHINE.contains(&name);
        if of_the_machine {
            text.push_str(name);
        } else {
            let mut line = line.trim_end().to_owned();
            for (pattern, name) in &*PATTERNS {
                line = pattern.replace_all(&line, *name).into_owned();
            }
            text.push_str(&line);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a\n```console\n$ x --y\n1.5 MiB of d1\n```\nb\n```console\n$ z\n```\nc\n";

    fn printed(one: &str, two: &str) -> [String; 2] {
        [one.to_owned(), two.to_owned()]
    }

    #[test]
    fn only_what_has_changed_is_written_anew() -> anyhow::Result<()> {
        let page = Page::cut(TEXT)?;
        assert_eq!(page.commands(), ["x --y", "z"]);
        assert_eq!(page.with(&printed("112.0 KiB   of d1\n", ""))?, TEXT);
        let new = page.with(&printed("1.5 MiB of d2\n", "no newline"))?;
        let wanted =
            "a\n```console\n$ x --y\n1.5 MiB of d2\n```\nb\n```console\n$ z\nno newline\n```\nc\n";
        assert_eq!(new, wanted);
        assert!(page.with(&[]).is_err());
        assert!(Page::cut("```console\n$ x\nno end").is_err());
        Ok(())
    }

    #[test]
    fn numbers_sizes_times_versions_and_ids_differ() {
        for (one, other) in [
            ("  \"pages\": 47,", "  \"pages\": 3,"),
            (
                "kernel 6.12.1-amd64 and 2 more",
                "kernel 6.18.44 and 11 more",
            ),
            ("at 2026-03-13T21:43:06.5Z", "at 2026-11-01T01:03:06+01:00"),
            ("freezing: 271 µs", "freezing: 1.2 ms"),
            ("b8c7770e0fd06  a", "68bb2fa6a176d10bd6   a"),
            ("ok  kernel  Linux", "warning kernel  old\n  -> a new one"),
        ] {
            assert_eq!(normal(one), normal(other));
        }
        for (one, other) in [
            ("d1 is stopped", "d2 is stopped"),
            ("ok  criu  4.2", "ERROR  criu  4.2"),
            ("a\nb", "a b"),
        ] {
            assert_ne!(normal(one), normal(other));
        }
    }
}
