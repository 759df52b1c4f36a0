//! CRIU's image files: framing, messages, views. What is read and written again is the same.
#![no_main]

use cryo_criu_image::cpuinfo::Cpuinfo;
use cryo_criu_image::files::{Descriptor, OpenFile, Places, Terminal};
use cryo_criu_image::inventory::{Inventory, TaskIds};
use cryo_criu_image::mm::MemoryMap;
use cryo_criu_image::mounts::Mount;
use cryo_criu_image::pagemap::{Location, Pagemap, PagemapTotals};
use cryo_criu_image::pstree::{Process, ProcessTree};
use cryo_criu_image::registers::Thread;
use cryo_criu_image::security::Security;
use cryo_criu_image::stats::{DumpStats, RestoreStats};
use cryo_criu_image::task::Core;
use cryo_criu_image::{Kind, RawReader, Reader, View, Writer};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// Bytes to framed messages and back.
fn frames(kind: Kind, image: &[u8]) {
    let Ok(mut reader) = RawReader::new("f", kind, image) else {
        return;
    };
    let mut writer = Writer::new(kind, Vec::new()).expect("a kind that is read is written");
    let mut whole = reader.offset();
    while let Ok(Some(entry)) = reader.next_entry() {
        writer.entry(entry.bytes).expect("what was read is written");
        whole = reader.offset();
    }
    let whole = usize::try_from(whole).expect("no longer than the input");
    assert_eq!(Some(writer.into_inner().as_slice()), image.get(..whole));
}

/// Messages to views, and messages to bytes and back.
fn views<V: View>(image: &[u8]) {
    if let Ok(views) = Reader::<V, _>::new("f", image) {
        views.for_each(drop);
    }
    let Ok(mut reader) = RawReader::new("f", V::KIND, image) else {
        return;
    };
    while let Ok(Some(entry)) = reader.next_entry() {
        if let Ok(message) = V::Wire::decode(entry.bytes) {
            let bytes = message.encode_to_vec();
            let again = V::Wire::decode(bytes.as_slice()).expect("what was written is read");
            assert_eq!(again.encode_to_vec(), bytes);
        }
    }
}

fuzz_target!(|image: &[u8]| {
    for &kind in Kind::ALL {
        frames(kind, image);
    }
    views::<Inventory>(image);
    views::<Cpuinfo>(image);
    views::<TaskIds>(image);
    views::<Process>(image);
    views::<Core>(image);
    views::<Thread>(image);
    views::<MemoryMap>(image);
    views::<Descriptor>(image);
    views::<OpenFile>(image);
    views::<Terminal>(image);
    views::<Places>(image);
    views::<Security>(image);
    views::<Mount>(image);
    views::<DumpStats>(image);
    views::<RestoreStats>(image);
    let _ = ProcessTree::read("f", image);
    pagemap(image);
});

/// Both readers of a pagemap see the same pages, and no page has two places.
fn pagemap(image: &[u8]) {
    let totals = PagemapTotals::read("f", image);
    let Ok(pagemap) = Pagemap::read("f", image, 4096) else {
        return;
    };
    let totals = totals.expect("what the strict reader takes, the other one does");
    assert_eq!(pagemap.pages_id, totals.pages_id);
    let here = pagemap
        .runs
        .iter()
        .filter(|run| run.location == Location::Here);
    assert_eq!(here.map(|run| run.pages).sum::<u64>(), totals.present);
    let mut runs = pagemap.runs;
    runs.sort_by_key(|run| run.address);
    for pair in runs.windows(2) {
        assert!(pair[0].address + pair[0].pages * 4096 <= pair[1].address);
    }
}
