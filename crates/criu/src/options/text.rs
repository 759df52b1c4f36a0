//! The options, for people to read.

use std::fmt::Write as _;

use super::{Access, Kind, Table, Unit};

impl<T> Kind<T> {
    /// The values it has.
    pub(super) fn values(&self) -> String {
        match self {
            Self::Flag(_) => "`true` or `false`".to_owned(),
            Self::Number { unit, range, .. } => {
                let unit = match unit {
                    Unit::Bytes => "bytes, as `4096`, `64K`, `16M`, `1G`",
                    Unit::Seconds => "seconds",
                };
                format!("{} to {} {unit}", range.start(), range.end())
            }
            Self::Word(words) => {
                let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                words.join(", ")
            }
            Self::Text { form, .. } => (*form).to_owned(),
            Self::Refused(_) => "none".to_owned(),
        }
    }
}

/// The table of `docs/options.md`.
#[must_use]
pub fn markdown<T: Table>() -> String {
    let mut out = String::from(
        "| option | values | default | annotation | node | request | CRIU | meaning |\n|---|---|---|---|---|---|---|---|\n",
    );
    for o in T::OPTIONS {
        let refused = matches!(o.kind, Kind::Refused(_));
        let mark = |yes: bool| if yes && !refused { "yes" } else { "" };
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
            o.name,
            o.kind.values(),
            o.default,
            mark(o.access == Access::Anyone),
            mark(o.access != Access::Request),
            o.field.map(|f| format!("`{f}`")).unwrap_or_default(),
            o.since,
            o.meaning,
        );
    }
    out
}
