//! Archives: no entry leads out of them, and a stream and a file are read alike.
#![no_main]

use std::io::{Cursor, Read};

use cryo_checkpoint::inspect::{Inspection, Wanted};
use cryo_checkpoint::source::{Algorithm, Blob, Source};
use cryo_checkpoint::summary::Summary;
use cryo_checkpoint::tar_stream::{Entry, TarStream};
use libfuzzer_sys::fuzz_target;

fn entries<R: Read>(mut archive: TarStream<R>) -> (Vec<Entry>, bool) {
    let mut entries = Vec::new();
    loop {
        match archive.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            end => return (entries, end.is_ok()),
        }
    }
}

fuzz_target!(|archive: &[u8]| {
    let (streamed, whole) = entries(TarStream::new(archive));
    for entry in &streamed {
        assert!(!entry.name.starts_with('/'), "{entry:?}");
        assert!(entry.name.split('/').all(|part| part != ".."), "{entry:?}");
        assert!(entry.offset < archive.len() as u64, "{entry:?}");
    }
    let sought = entries(TarStream::seekable(Cursor::new(archive)));
    assert_eq!(sought, (streamed, whole));
    let summary = Source::of_blob("f", &Blob::from_bytes(archive)).and_then(|sources| {
        sources
            .iter()
            .map(Summary::of)
            .collect::<Result<Vec<_>, _>>()
    });
    for source in Source::of_blob("f", &Blob::from_bytes(archive)).unwrap_or_default() {
        // Whatever can be told of it.
        if let Ok(found) = Inspection::of(&source, Wanted::ALL) {
            serde_json::to_string(&found).expect("all of it is JSON");
        }
    }
    if summary.is_ok() {
        let compressed = Algorithm::of(archive).is_some();
        assert!(whole || compressed, "a damaged archive has a summary");
    }
});
