//! Arguments and environments of many processes, of a compressed checkpoint in one pass.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cryo_checkpoint::inspect::{Inspection, ProcessNode, Wanted};
use cryo_checkpoint::memory::Error;
use cryo_checkpoint::source::{Blob, Content, Source};
use cryo_criu_image::Kind;
use fixture::{Files, memory};

const PAGE: usize = 4096;

/// Counts how often it is read from its start.
#[derive(Debug)]
struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl Content for Counted {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        self.1
            .fetch_add(usize::from(offset == 0), Ordering::Relaxed);
        let rest = self.0.get(usize::try_from(offset).unwrap()..);
        Ok(Box::new(io::Cursor::new(rest.unwrap_or_default().to_vec())))
    }
}

/// A root and children of it, each with two pages: one of no use, and arguments and environment.
/// `place` says in which file of pages those of a child are.
fn archive(children: u32, place: impl Fn(u32) -> u32) -> Files {
    let mut files = memory::archive();
    let mut put = |kind: Kind, number: u32, bytes: Vec<u8>| {
        let name = format!("checkpoint/{}", kind.file_name(number.into()));
        files.insert(name, bytes);
    };
    let stack = memory::mm().mm_arg_start.unwrap();
    let mut tree = vec![fixture::process(1, 0, &[1])];
    for pid in 10..10 + children {
        tree.push(fixture::process(pid, 1, &[pid]));
        let mut pages = vec![0x55; PAGE];
        pages.extend(format!("child\0{pid:04}HOME=/{pid:04}\0NOEQ_{pid:04}\0").bytes());
        pages.resize(2 * PAGE, 0);
        let runs = [(stack - PAGE as u64, 2, 4)];
        put(Kind::Core, pid, fixture::core("child", 1));
        put(Kind::Mm, pid, fixture::image(Kind::Mm, &[memory::mm()]));
        put(Kind::Pagemap, pid, memory::pagemap(place(pid), &runs));
        put(Kind::Pages, place(pid), pages);
    }
    put(Kind::Pstree, 0, fixture::image(Kind::Pstree, &tree));
    files
}

/// The processes, and how often the archive was read.
fn inspect(archive: Vec<u8>) -> (Result<ProcessNode, Error>, usize) {
    let count = Arc::new(AtomicUsize::new(0));
    let length = archive.len() as u64;
    let blob = Blob::new(Arc::new(Counted(archive, Arc::clone(&count))), length);
    let source = Source::of_blob("cp", &blob).unwrap().pop().unwrap();
    count.store(0, Ordering::Relaxed);
    let wanted = Wanted {
        processes: true,
        arguments: true,
        environment: true,
        ..Wanted::default()
    };
    let found = Inspection::of(&source, wanted);
    (
        found.map(|found| found.process_tree.unwrap()),
        count.load(Ordering::Relaxed),
    )
}

fn compressed(files: &Files) -> Vec<u8> {
    zstd::encode_all(&*fixture::tar(files), 1).unwrap()
}

#[test]
fn one_pass_tells_what_random_access_does() {
    let files = archive(40, |pid| pid);
    let (plain, _) = inspect(fixture::tar(&files));
    let plain = plain.unwrap();
    assert_eq!(plain.children.len(), 40);
    assert_eq!(plain.children[3].cmdline, "child 0013");
    assert_eq!(plain.children[3].environment[0], "HOME=/0013");
    let (once, passes) = inspect(compressed(&files));
    assert_eq!(once.unwrap(), plain);
    assert_eq!(passes, 1);
}

#[test]
fn pages_that_are_of_several_are_read_for_each() {
    // Strange, but no reason to tell anything else.
    let files = archive(5, |_| 77);
    let (plain, _) = inspect(fixture::tar(&files));
    let (shared, passes) = inspect(compressed(&files));
    assert_eq!(shared.unwrap(), plain.unwrap());
    assert_eq!(passes, 5);
}

#[test]
fn what_is_cut_off_is_an_error() {
    let mut files = archive(3, |pid| pid);
    let pages = files.get_mut("checkpoint/pages-11.img").unwrap();
    pages.truncate(PAGE);
    let (cut, _) = inspect(compressed(&files));
    assert!(cut.unwrap_err().to_string().contains("pages-11.img"));
}
