//! Who made a checkpoint, by the head of CRIU's log of the dump: nothing else in it tells.
//!
//! CRIU writes these two lines from its third log level on, as runc and crun ask for. cryo asks
//! for less, and its shim writes them with [`head`].

use std::io::Read as _;

use cryo_criu_image::Kind;

use crate::layout;
use crate::source::{Error, Source};

/// Longest beginning that is looked at.
const MAX_BYTES: u64 = 16 << 10;

/// Most lines of it.
const MAX_LINES: usize = 40;

/// Longest version that is taken for one.
const MAX_VERSION_BYTES: usize = 64;

/// What the log says of CRIU and of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// The version of CRIU, as in `4.2.1`.
    pub criu: Option<String>,
    /// The release of the kernel, as in `6.18.5-amd64`.
    pub kernel: Option<String>,
}

impl Versions {
    /// Of a checkpoint; of one without a log, or with one that does not tell, nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Unreadable`].
    pub fn of(source: &Source) -> Result<Self, Error> {
        let inventory = source.image_name(Kind::Inventory, 0);
        let images = inventory.trim_end_matches(&Kind::Inventory.file_name(0));
        let mut found = Self::default();
        for name in [
            layout::DUMP_LOG.to_owned(),
            format!("{images}{}", layout::DUMP_LOG),
        ] {
            if source.file(&name).is_none() {
                continue;
            }
            let mut log = Vec::new();
            source
                .reader(&name)?
                .take(MAX_BYTES)
                .read_to_end(&mut log)
                .map_err(|source| Error::Unreadable { name, source })?;
            let log = Self::in_log(&String::from_utf8_lossy(&log));
            found.criu = found.criu.or(log.criu);
            found.kernel = found.kernel.or(log.kernel);
        }
        Ok(found)
    }

    /// In a log, which may be anything.
    pub fn in_log(log: &str) -> Self {
        let mut found = Self::default();
        for line in log.lines().take(MAX_LINES) {
            let Some((_, text)) = line.split_once(") ") else {
                continue;
            };
            if let Some(rest) = text.strip_prefix("Version: ") {
                found.criu = found.criu.or_else(|| version(rest));
            } else if let Some(rest) = text.strip_prefix("Running on ")
                && let Some((_, rest)) = rest.split_once(" Linux ")
            {
                found.kernel = found.kernel.or_else(|| version(rest));
            }
        }
        found
    }
}

/// The first word, if it can be a version.
fn version(text: &str) -> Option<String> {
    let word = text.split_whitespace().next()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".+-_~".contains(c);
    let good = word.len() <= MAX_VERSION_BYTES
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.chars().all(allowed);
    good.then(|| word.to_owned())
}

/// The two lines, to stand above a log that has them not.
pub fn head(criu: &str, host: &str, kernel: &str) -> String {
    // A name that would break the line apart is none.
    let host = Some(host)
        .filter(|host| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic()))
        .unwrap_or("localhost");
    format!(
        "(00.000000) Version: {criu} (told by cryo)\n(00.000000) Running on {host} Linux {kernel}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(criu: Option<&str>, kernel: Option<&str>) -> Versions {
        Versions {
            criu: criu.map(str::to_owned),
            kernel: kernel.map(str::to_owned),
        }
    }

    #[test]
    fn both_heads_are_read() {
        let criu = "(00.000000) Version: 4.2.1 (gitid 0)\n\
            (00.000005) Running on node-a Linux 6.18.5-1-amd64 #1 SMP x86_64\n";
        let both = known(Some("4.2.1"), Some("6.18.5-1-amd64"));
        assert_eq!(Versions::in_log(criu), both);
        for host in ["node-a", "", "a b", "a\nb"] {
            let own = head("4.2.1", host, "6.18.5-1-amd64");
            assert_eq!(Versions::in_log(&own), both, "{host:?}: {own}");
            assert_eq!(own.lines().count(), 2);
        }
    }

    #[test]
    fn what_is_no_version_is_not_taken_for_one() {
        let long = format!("(0) Version: {}", "4".repeat(65));
        let late = format!("{}(0) Version: 4.2\n", "(0) x\n".repeat(40));
        for log in [
            "",
            "Version: 4.2",
            "(0) Version: ",
            "(0) Version: four",
            "(0) Version: 4\u{1b}[2J",
            "(0) Running on x Darwin 6.1",
            &long,
            &late,
        ] {
            assert_eq!(Versions::in_log(log), known(None, None), "{log:?}");
        }
        let twice = "(0) Version: 4.2\n(0) Version: 9.9\n";
        assert_eq!(Versions::in_log(twice), known(Some("4.2"), None));
    }
}
