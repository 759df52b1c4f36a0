//! The documents name tests as their proof: each of those is run.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// The names in a text that are written `module::name`, in backticks.
fn named(text: &str) -> Vec<&str> {
    let is_name = |s: &&str| {
        s.contains("::")
            && s.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

#[test]
fn every_test_in_the_table_of_aborts_is_run() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(here.join(path)).unwrap();
    let tests = read("tests/e2e/main.rs");
    let document = read("../../docs/aborts.md");
    let rows: Vec<_> = document.lines().filter(|l| l.starts_with("| ")).collect();
    let (_header, rows) = rows.split_first().unwrap();
    assert!(rows.len() >= 10, "{rows:?}");
    for row in rows {
        assert!(!named(row).is_empty(), "no test shows: {row}");
    }
    for name in named(&document) {
        assert!(
            tests.contains(&format!("test!({name})")),
            "{name} is named in docs/aborts.md and is no test"
        );
    }
}
