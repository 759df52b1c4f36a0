//! What was looked at, how it is, and what to do about it: of `cryoctl doctor` and `cryoctl verify`.

use std::fmt::Write as _;

use serde::Serialize;

use crate::text::printable;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// To be known, and no more.
    Note,
    /// Some of it does not work.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// A stable name for programs.
    pub(crate) name: &'static str,
    pub(crate) severity: Severity,
    /// What was found.
    pub(crate) text: String,
    /// What to do about it.
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self::new(name, Severity::Ok, text, None)
    }

    pub(crate) fn note(name: &'static str, text: impl Into<String>) -> Self {
        Self::new(name, Severity::Note, text, None)
    }

    pub(crate) fn warning(
        name: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Severity::Warning, text, Some(remedy.into()))
    }

    pub(crate) fn error(
        name: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(name, Severity::Error, text, Some(remedy.into()))
    }

    fn new(
        name: &'static str,
        severity: Severity,
        text: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            name,
            severity,
            text: text.into(),
            remedy,
        }
    }
}

/// Whether one of them is an error.
pub(crate) fn any_error(all: &[Finding]) -> bool {
    all.iter()
        .any(|finding| finding.severity == Severity::Error)
}

/// For people: a line for each, and one for each remedy.
pub(crate) fn render(all: &[Finding]) -> String {
    let mut text = String::new();
    let width = all.iter().map(|f| f.name.len()).max().unwrap_or_default();
    for finding in all {
        let mark = match finding.severity {
            Severity::Ok => "ok      ",
            Severity::Note => "note    ",
            Severity::Warning => "warning ",
            Severity::Error => "ERROR   ",
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{mark} {:width$}  {}",
            finding.name,
            printable(&finding.text)
        );
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:9}{:width$}  -> {}", "", "", printable(remedy));
        }
    }
    let count = |severity| all.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(text, "{errors} errors, {warnings} warnings");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_line_and_its_remedy_another() {
        let all = [
            Finding::ok("a", "fine"),
            Finding::error("long", "bad\u{1b}", "mend it"),
        ];
        assert_eq!(
            render(&all),
            "ok       a     fine\nERROR    long  bad\\u{1b}\n               -> mend it\n1 errors, 0 warnings\n"
        );
        assert!(any_error(&all) && !any_error(&all[..1]));
    }
}
