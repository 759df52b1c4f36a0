//! The files of a cgroup and their few formats. A file that is not there, or
//! that cannot be read, is what a machine without that controller has: absent.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

/// A cgroup's folder in one hierarchy; `None` when the machine has no such hierarchy.
#[derive(Debug, Clone, Default)]
pub(super) struct Dir(pub(super) Option<PathBuf>);

impl Dir {
    pub(super) fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.as_ref()?.join(file)).ok()
    }

    /// A file of one number.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        number(&self.text(file)?)
    }

    /// A file of lines `NAME NUMBER`.
    pub(super) fn table(&self, file: &str) -> Option<Table> {
        self.text(file).map(|text| Table::parse(&text))
    }

    /// The page sizes for which there are files `hugetlb.SIZE` and `suffix`.
    pub(super) fn page_sizes(&self, suffix: &str) -> Vec<String> {
        let entries = self.0.as_ref().and_then(|dir| fs::read_dir(dir).ok());
        let mut sizes: Vec<_> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| page_size(&e.file_name().to_string_lossy(), suffix))
            .collect();
        sizes.sort();
        sizes
    }
}

/// The size in `hugetlb.SIZE` and `suffix`; reservations are counted elsewhere.
fn page_size(file: &str, suffix: &str) -> Option<String> {
    let size = file.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
    (!size.contains('.')).then(|| size.to_owned())
}

/// A number, or `max` for none.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        other => other.parse().ok(),
    }
}

/// Numbers by name. What is not in it counts as zero.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table(HashMap<String, u64>);

impl Table {
    pub(super) fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), number(value)?))
        };
        Self(text.lines().filter_map(pair).collect())
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// `MAJOR:MINOR`
pub(super) fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_tables() {
        assert_eq!(number("12\n"), Some(12));
        assert_eq!(number("max\n"), Some(u64::MAX));
        assert_eq!(number("-1"), None);
        let table = Table::parse("user 7\nsystem 8\nbroken\nlimit max\nodd x\n");
        assert_eq!((table.get("user"), table.get("system")), (7, 8));
        assert_eq!((table.get("limit"), table.get("odd")), (u64::MAX, 0));
    }

    #[test]
    fn absent_folders_and_files_are_no_errors() {
        assert_eq!(Dir(None).number("x"), None);
        assert!(Dir(None).page_sizes(".max").is_empty());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Dir(Some(dir.path().to_owned())).table("x"), None);
    }

    #[test]
    fn page_sizes_are_those_of_usage_not_of_reservations() {
        assert_eq!(page_size("hugetlb.2MB.max", ".max"), Some("2MB".to_owned()));
        assert_eq!(page_size("hugetlb.2MB.rsvd.max", ".max"), None);
        assert_eq!(page_size("memory.max", ".max"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(text in ".*") {
            Table::parse(&text);
            let _ = (number(&text), device(&text), page_size(&text, ".max"));
        }
    }
}
