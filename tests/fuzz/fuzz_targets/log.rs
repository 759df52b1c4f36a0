//! CRIU's log, in which the container's own names and paths stand: an error's text stays short and on one line.
#![no_main]

use cryo_criu::log::diagnose;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let log = String::from_utf8_lossy(log);
    let diagnosis = diagnose(&log);
    assert!(diagnosis.lines.len() <= 32);
    assert!(diagnosis.line.is_none() || !diagnosis.lines.is_empty());
    let said = diagnosis.to_string();
    assert!(said.len() < 2000 && !said.contains('\n'), "{said:?}");
});
