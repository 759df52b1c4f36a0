//! The memory of a process: reading it in each form, searching it, comparing it.
#![allow(clippy::unwrap_used)]

mod fixture;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cryo_checkpoint::memory::diff::{self, Fate};
use cryo_checkpoint::memory::elf::Dump;
use cryo_checkpoint::memory::search::{self, Options, Pattern};
use cryo_checkpoint::memory::{self, Error, Memory};
use cryo_checkpoint::source::{Blob, Source};
use fixture::Files;
use fixture::memory::{HEAP, PAGE, RIP, STACK_END, archive, pagemap, pages};
use proptest::prelude::*;

/// The same checkpoint as an archive, a compressed archive and a directory.
fn forms(files: &Files, check: impl Fn(&Source)) {
    let dir = tempfile::tempdir().unwrap();
    let tar = fixture::tar(files);
    let plain = dir.path().join("cp.tar");
    std::fs::write(&plain, &tar).unwrap();
    let zstd = dir.path().join("cp.tar.zst");
    std::fs::write(&zstd, zstd::encode_all(tar.as_slice(), 1).unwrap()).unwrap();
    let directory = dir.path().join("cp");
    fixture::write(&directory, files);
    for path in [&plain, &zstd, &directory] {
        check(&Source::open(path).unwrap());
    }
}

/// All bytes by page, as they are read piece by piece.
fn all(memory: &Memory, limit: usize) -> Vec<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    memory
        .each_piece(limit, |piece| {
            assert!(piece.bytes.len() <= limit);
            bytes.extend((piece.address..).zip(piece.bytes.iter().copied()));
            Ok::<_, Error>(())
        })
        .unwrap();
    bytes
        .chunks(PAGE as usize)
        .map(|page| (page[0].0, page.iter().map(|(_, byte)| *byte).collect()))
        .collect()
}

#[test]
fn every_form_has_the_same_memory() {
    forms(&archive(), |source| {
        let living = memory::processes(source).unwrap();
        assert_eq!(living.len(), 1);
        let (map, memory) = Memory::open(source, 1).unwrap();
        assert_eq!(map.areas.len(), 4);
        assert_eq!(map.guards.len(), 1);
        assert_eq!(map.page_bytes(), PAGE);
        assert_eq!(memory.bytes(), 7 * PAGE);
        assert_eq!(memory.runs().len(), 4);
        // Two runs of the heap are one stretch.
        assert_eq!(memory.stretches().count(), 3);
        for limit in [PAGE as usize, 5000, 1 << 20] {
            assert_eq!(all(&memory, limit), pages(), "{limit}");
        }
        let sum = std::sync::Mutex::new(Vec::new());
        memory
            .each_piece_on(3, PAGE as usize, |piece| {
                sum.lock().unwrap().push((piece.position, piece.address));
                Ok::<_, Error>(())
            })
            .unwrap();
        let mut sum = sum.into_inner().unwrap();
        sum.sort_unstable();
        let expected: Vec<_> = (0u64..)
            .step_by(4096)
            .zip(pages().iter().map(|p| p.0))
            .collect();
        assert_eq!(sum, expected);

        let shared = Memory::open_shared(source, 9, PAGE).unwrap().unwrap();
        assert_eq!(shared.runs()[0].address, PAGE);
        assert!(Memory::open_shared(source, 8, PAGE).unwrap().is_none());
    });
}

#[test]
fn an_error_of_one_thread_ends_all() {
    forms(&archive(), |source| {
        let (_, memory) = Memory::open(source, 1).unwrap();
        let result = memory.each_piece_on(2, 16, |piece| match piece.position {
            0x2000 => Err(Error::Refused("here".to_owned())),
            _ => Ok(()),
        });
        assert_eq!(result.unwrap_err().to_string(), "here");
    });
}

fn found(source: &Source, patterns: &[Pattern], context: usize, threads: usize) -> Vec<String> {
    let (_, memory) = Memory::open(source, 1).unwrap();
    let mut lines = Vec::new();
    let options = Options {
        context,
        threads,
        done: None,
    };
    search::search(&memory, patterns, options, |one| {
        let text: String = one
            .bytes
            .iter()
            .map(|b| char::from(search::as_text(*b)))
            .collect();
        assert!(one.begin + one.length <= one.bytes.len());
        lines.push(format!(
            "{:x} {} {} {text}",
            one.address, one.pattern, one.length
        ));
        Ok(())
    })
    .unwrap();
    lines
}

#[test]
fn searching() {
    let patterns = || {
        vec![
            Pattern::printed("secret").unwrap(),
            // Across two runs of the pagemap.
            Pattern::printed("seam-crossed").unwrap(),
            Pattern::printed("prog?-arg?").unwrap(),
            Pattern::utf16("wideé", false).unwrap(),
            Pattern::expression("[A-Z]{4}=/[a-z]+", true).unwrap(),
            Pattern::expression("\\xff{7}s", false).unwrap(),
            Pattern::bytes(b"nowhere").unwrap(),
        ]
    };
    forms(&archive(), |source| {
        for threads in [1, 4] {
            assert_eq!(
                found(source, &patterns(), 2, threads),
                [
                    format!("{:x} 0 6 t secret??", HEAP + PAGE + 0x16),
                    format!("{:x} 1 12 ??seam-crossed??", HEAP + PAGE + 4092),
                    format!("{:x} 3 10 ??w?i?d?e?????", HEAP + 2 * PAGE + 0x100),
                    format!("{:x} 5 8 ?????????sec", HEAP + 3 * PAGE),
                    format!("{:x} 0 6 ??secret??", HEAP + 3 * PAGE + 7),
                    format!("{:x} 2 10 ??prog?-arg?HO", STACK_END - PAGE),
                    format!("{:x} 4 10 g?HOME=/root?N", STACK_END - PAGE + 10),
                ],
            );
        }
    });
}

#[test]
fn patterns_that_cannot_be_searched_for() {
    assert!(Pattern::bytes(b"").is_err());
    assert!(Pattern::printed("").is_err());
    assert!(Pattern::expression("", true).is_err());
    assert!(Pattern::expression("(", true).is_err());
    assert!(Pattern::bytes(&vec![0; search::MAX_MATCH_BYTES + 1]).is_err());
}

/// A process whose whole memory is these bytes, filled up to pages.
fn of_bytes(dir: &Path, bytes: &[u8]) -> Source {
    let mut files = archive();
    let mut content = bytes.to_vec();
    content.resize(bytes.len().next_multiple_of(4096), 0);
    let count = content.len() as u64 / PAGE;
    files.insert(
        "checkpoint/pagemap-1.img".into(),
        pagemap(1, &[(HEAP, count, 4)]),
    );
    files.insert("checkpoint/pages-1.img".into(), content);
    let path = dir.join("cp.tar");
    std::fs::write(&path, fixture::tar(&files)).unwrap();
    Source::open(&path).unwrap()
}

/// Windows and threads must not show: what is found is what one pass over all bytes finds.
#[test]
fn windows_do_not_show() {
    let dir = tempfile::tempdir().unwrap();
    // Three windows and a bit; a run of `a` across a seam, matches on and around others.
    let mut bytes = vec![b'.'; (3 << 20) + 5000];
    bytes[(1 << 20) - 9..(1 << 20) + 12].fill(b'a');
    for at in [0, (2 << 20) - 3, (2 << 20) - 1, 3 << 20, (3 << 20) + 4997] {
        bytes[at..at + 3].copy_from_slice(b"xyx");
    }
    let source = of_bytes(dir.path(), &bytes);
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    for needle in ["aa", "aaaa", "xyx", "yx"] {
        let naive: Vec<_> = {
            let regex = regex::bytes::Regex::new(&regex::escape(needle)).unwrap();
            regex
                .find_iter(&bytes)
                .map(|m| HEAP + m.start() as u64)
                .collect()
        };
        for pattern in [
            Pattern::bytes(needle.as_bytes()).unwrap(),
            Pattern::printed(needle).unwrap(),
        ] {
            for threads in [1, 3] {
                let (_, memory) = Memory::open(&source, 1).unwrap();
                let mut at = Vec::new();
                let options = Options {
                    context: 0,
                    threads,
                    done: None,
                };
                search::search(&memory, std::slice::from_ref(&pattern), options, |one| {
                    at.push(one.address);
                    Ok(())
                })
                .unwrap();
                assert_eq!(at, naive, "{needle} {threads}");
            }
        }
    }
}

#[test]
fn whoever_wants_no_more_ends_the_search() {
    let dir = tempfile::tempdir().unwrap();
    let source = of_bytes(dir.path(), &vec![b'a'; 4 << 20]);
    let (_, memory) = Memory::open(&source, 1).unwrap();
    let options = Options {
        context: 0,
        threads: 2,
        done: None,
    };
    let mut count = 0;
    let result = search::search(&memory, &[Pattern::bytes(b"a").unwrap()], options, |_| {
        count += 1;
        if count < 3 {
            Ok(())
        } else {
            Err(Error::Refused("enough".to_owned()))
        }
    });
    assert_eq!(result.unwrap_err().to_string(), "enough");
    assert_eq!(count, 3);
}

#[test]
fn pages_of_a_parent() {
    let base = tempfile::tempdir().unwrap();
    let parent = of_bytes(
        base.path(),
        &[b"old0".repeat(1024), b"old1".repeat(1024)].concat(),
    );
    let mut files = archive();
    // The second page is new, the first one in the parent, and so is a third that it lacks.
    let runs = [
        (HEAP, 1, 1),
        (HEAP + PAGE, 1, 4),
        (HEAP + 2 * PAGE, 1, 1),
        (HEAP + 3 * PAGE, 2, 2),
    ];
    files.insert("checkpoint/pagemap-1.img".into(), pagemap(1, &runs));
    files.insert("checkpoint/pages-1.img".into(), b"new1".repeat(1024));
    forms(&files, |source| {
        let (_, memory) = Memory::open(source, 1).unwrap();
        assert_eq!(memory.missing().parent_bytes, 2 * PAGE);
        assert_eq!(memory.missing().lazy_bytes, 2 * PAGE);
        assert_eq!(all(&memory, 4096), [(HEAP + PAGE, b"new1".repeat(1024))]);
        let whole = memory.with_parent(&Memory::open(&parent, 1).unwrap().1);
        assert_eq!(whole.missing().parent_bytes, PAGE);
        assert_eq!(
            all(&whole, 4096),
            [
                (HEAP, b"old0".repeat(1024)),
                (HEAP + PAGE, b"new1".repeat(1024))
            ]
        );
    });
}

#[test]
fn what_is_damaged_says_so() {
    let with = |name: &str, content: Option<Vec<u8>>| {
        let mut files = archive();
        let name = format!("checkpoint/{name}");
        match content {
            Some(content) => files.insert(name, content),
            None => files.remove(&name),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cp.tar");
        std::fs::write(&path, fixture::tar(&files)).unwrap();
        let error = Memory::open(&Source::open(&path).unwrap(), 1).unwrap_err();
        let mut text = error.to_string();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            text = format!("{text}: {next}");
            cause = next;
        }
        text
    };
    let cases = [
        (
            "mm-1.img",
            None,
            "the checkpoint is incomplete: checkpoint/mm-1.img is missing",
        ),
        (
            "pages-1.img",
            None,
            "the checkpoint is incomplete: checkpoint/pages-1.img is missing",
        ),
        (
            "pages-1.img",
            Some(vec![0; 7 * 4096 - 1]),
            "the checkpoint is damaged: checkpoint/pages-1.img ends before offset 28672, where its pagemap has pages",
        ),
        (
            "pagemap-1.img",
            Some(pagemap(1, &[(HEAP, 2, 4), (HEAP + PAGE, 1, 4)])),
            "the checkpoint is damaged: checkpoint/pagemap-1.img cannot be decoded: checkpoint/pagemap-1.img: \
             message at offset 8: field vaddr has the impossible value 0x10001000, which is there twice",
        ),
        (
            "pagemap-1.img",
            Some(pagemap(1, &[(HEAP + 1, 2, 4)])),
            "the checkpoint is damaged: checkpoint/pagemap-1.img cannot be decoded: checkpoint/pagemap-1.img: \
             message at offset 14: field vaddr has the impossible value 0x10000001",
        ),
    ];
    for (name, content, expected) in cases {
        assert_eq!(with(name, content), expected);
    }
}

fn dump_to(source: &Source, path: &Path) -> Vec<u8> {
    let (process, _) = memory::processes(source).unwrap().remove(0);
    let file = std::fs::File::create(path).unwrap();
    let dump = Dump::open(source, &process).unwrap();
    let written = dump.write(&file, |_| {}).unwrap();
    assert_eq!(written.threads, 2);
    // All but the pages of zeros.
    assert_eq!(written.page_bytes, 6 * PAGE);
    assert_eq!(dump.executable(), Some(b"/bin/prog".as_slice()));
    std::fs::read(path).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Read back by the format's description: what a segment holds stands where it says.
#[test]
fn a_core_file() {
    forms(&archive(), |source| {
        let dir = tempfile::tempdir().unwrap();
        let core = dump_to(source, &dir.path().join("core"));
        assert_eq!(&core[..5], b"\x7fELF\x02");
        assert_eq!(core[16], 4);
        let count = usize::from(u16::from_le_bytes(core[56..58].try_into().unwrap()));
        let mut segments = Vec::new();
        for header in core[64..].chunks(56).take(count) {
            let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
            let flags = u32::from_le_bytes(header[4..8].try_into().unwrap());
            segments.push((
                kind,
                flags,
                word(header, 8),
                word(header, 16),
                word(header, 32),
                word(header, 40),
            ));
        }
        let (kind, _, notes_at, _, notes_bytes, _) = segments.remove(0);
        assert_eq!(kind, 4);
        let shape: Vec<_> = segments.iter().map(|s| (s.1, s.3, s.4, s.5)).collect();
        assert_eq!(
            shape,
            [
                (5, 0x40_0000, 0, PAGE),
                (5, 0x40_1000, PAGE, PAGE),
                (5, 0x40_2000, 0, PAGE),
                (6, HEAP, 16 * PAGE, 16 * PAGE),
                (6, 0x2000_0000, 2 * PAGE, 2 * PAGE),
                (6, STACK_END - 16 * PAGE, 16 * PAGE, 16 * PAGE),
            ]
        );
        let read = |address: u64, length: usize| {
            let (_, _, offset, start, ..) = *segments
                .iter()
                .find(|s| s.3 <= address && address < s.3 + s.4)
                .unwrap();
            let at = (offset + address - start) as usize;
            core[at..at + length].to_vec()
        };
        for (address, page) in pages() {
            assert_eq!(read(address, 4096), page, "{address:x}");
        }
        assert_eq!(read(0x2000_1000, 6), b"shared");
        assert_eq!(read(HEAP + 8 * PAGE, 4096), [0; 4096]);

        let notes = &core[notes_at as usize..(notes_at + notes_bytes) as usize];
        let mut found = Vec::new();
        let mut at = 0;
        while at < notes.len() {
            let half = |i: usize| u32::from_le_bytes(notes[i..i + 4].try_into().unwrap()) as usize;
            let (name, length, kind) = (half(at), half(at + 4), half(at + 8));
            let content = at + 12 + name.next_multiple_of(4);
            found.push((kind, &notes[content..content + length]));
            at = content + length.next_multiple_of(4);
        }
        let kinds: Vec<_> = found
            .iter()
            .map(|(kind, content)| (*kind, content.len()))
            .collect();
        assert_eq!(
            kinds,
            [
                (1, 336),
                (3, 136),
                (0x5349_4749, 128),
                (6, 48),
                (0x4649_4c45, 50),
                (2, 512),
                (0x202, 832),
                (1, 336),
                (2, 512),
                (0x202, 832),
            ]
        );
        let status = found[0].1;
        assert_eq!(word(status, 112 + 16 * 8), RIP);
        assert_eq!(word(status, 112 + 19 * 8), STACK_END - 2 * PAGE);
        assert_eq!(word(found[7].1, 112 + 16 * 8), RIP + 1);
        let info = found[1].1;
        assert_eq!(&info[16..24], [0xe8, 3, 0, 0, 0xe9, 3, 0, 0]);
        assert_eq!(&info[40..45], b"prog\0");
        assert_eq!(&info[56..66], b"prog -arg\0");
        assert_eq!(&found[4].1[40..], b"/bin/prog\0");
    });
}

/// Holes stay holes: the file does not take the room of its areas.
#[test]
fn a_core_file_is_sparse() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core");
    // A first write tells whether the file system has holes at all.
    let probe = std::fs::File::create(dir.path().join("probe")).unwrap();
    probe.write_all_at(b"x", 1 << 20).unwrap();
    if probe.metadata().unwrap().blocks() * 512 >= 1 << 20 {
        eprintln!(
            "skipped: {} is on a file system without holes",
            path.display()
        );
        return;
    }
    let tar = dir.path().join("cp.tar");
    std::fs::write(&tar, fixture::tar(&archive())).unwrap();
    let length = dump_to(&Source::open(&tar).unwrap(), &path).len() as u64;
    assert!(length > 33 * PAGE);
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks < 16 * PAGE, "{blocks} bytes on the disk");
}

fn options(pages_at_once: u64) -> diff::Options {
    diff::Options {
        ranges: true,
        threads: 2,
        pages_at_once,
    }
}

#[test]
fn comparing() {
    let mut changed = archive();
    let mut heap = pages();
    heap[1].1[0] = 1;
    heap[2].1.fill(0);
    let content: Vec<u8> = heap.into_iter().flat_map(|(_, page)| page).collect();
    let runs = [(0x40_1000, 1, 4), (HEAP, 4, 6), (HEAP + 9 * PAGE, 2, 6)];
    changed.insert("checkpoint/pagemap-1.img".into(), pagemap(1, &runs));
    changed.insert("checkpoint/pages-1.img".into(), content);
    let mut mm = fixture::memory::mm();
    // The stack grew, the shared memory is gone, something is new.
    mm.vmas[3].start = Some(STACK_END - 32 * PAGE);
    mm.vmas[2].start = Some(0x3000_0000);
    mm.vmas[2].end = Some(0x3000_1000);
    changed.insert(
        "checkpoint/mm-1.img".into(),
        fixture::image(cryo_criu_image::Kind::Mm, &[mm]),
    );
    let read = |source: &Source| diff::Image::open(source, 1).unwrap();
    // Also in windows of few pages, each page by itself at last.
    let compare = |before: &diff::Image, after: &diff::Image| {
        let [first, rest @ ..] = [diff::PAGES_AT_ONCE, 5, 1].map(|pages| {
            let read = AtomicU64::new(0);
            let done = |bytes| _ = read.fetch_add(bytes, Ordering::Relaxed);
            let areas = diff::compare(before, after, options(pages), done).unwrap();
            (areas, read.into_inner())
        });
        for other in rest {
            assert_eq!(first, other);
        }
        first.0
    };
    forms(&archive(), |before| {
        let before = read(before);
        let same = compare(&before, &before);
        assert!(
            same.iter()
                .all(|area| area.pages.is_same() && area.fate == Fate::Kept)
        );
        assert_eq!(same.iter().map(|area| area.pages.same).sum::<u64>(), 8);
        forms(&changed, |after| {
            let areas = compare(&before, &read(after));
            let lines: Vec<_> = areas
                .iter()
                .map(|area| {
                    let p = area.pages;
                    format!(
                        "{:x} {} {} {:?} same {} changed {} added {} removed {} zero {} in {}",
                        area.range.start,
                        area.permissions,
                        area.name,
                        area.fate,
                        p.same,
                        p.changed,
                        p.added,
                        p.removed,
                        p.zero,
                        area.touched.len(),
                    )
                })
                .collect();
            assert_eq!(
                lines,
                [
                    "400000 r-xp /bin/prog Kept same 1 changed 0 added 0 removed 0 zero 0 in 0",
                    "10000000 rw-p [heap] Kept same 2 changed 2 added 2 removed 0 zero 2 in 2",
                    "20000000 rw-s [shared] Removed same 0 changed 0 added 0 removed 1 zero 0 in 0",
                    "30000000 rw-s [shared] Added same 0 changed 0 added 0 removed 0 zero 0 in 0",
                    "7fef0000 rw-p [stack] Altered same 0 changed 0 added 0 removed 2 zero 0 in 0",
                ]
            );
        });
    });
}

/// Pages of the heap, by number, with what each is filled with.
type Heap = BTreeMap<u64, u8>;

/// A checkpoint whose heap has these pages, which stand in the image in some other order.
fn with_heap(heap: &Heap, order: usize) -> Files {
    let mut pages: Vec<_> = heap.iter().collect();
    let by = order % pages.len().max(1);
    pages.rotate_left(by);
    let runs: Vec<_> = pages
        .iter()
        .map(|(number, _)| (HEAP + **number * PAGE, 1, 4))
        .collect();
    let content = pages.iter().flat_map(|(_, fill)| [**fill; PAGE as usize]);
    let mut files = archive();
    files.insert("checkpoint/pagemap-1.img".into(), pagemap(1, &runs));
    files.insert("checkpoint/pages-1.img".into(), content.collect());
    files
}

/// What became of the heap, and the numbers of its pages that were touched.
fn naive(before: &Heap, after: &Heap) -> (diff::Pages, Vec<u64>) {
    let (mut pages, mut touched) = (diff::Pages::default(), Vec::new());
    for number in 0..15 {
        match (before.get(&number), after.get(&number)) {
            (None, None) => continue,
            (Some(was), Some(is)) if was == is => pages.same += 1,
            (Some(_), None) => pages.removed += 1,
            (was, is) => {
                *if was.is_some() {
                    &mut pages.changed
                } else {
                    &mut pages.added
                } += 1;
                pages.zero += u64::from(is == Some(&0));
                touched.push(number);
            }
        }
    }
    (pages, touched)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In whatever order the pages stand and however many are looked at at a time.
    #[test]
    fn comparing_is_that_of_each_page(
        before in prop::collection::btree_map(0..15u64, 0..3u8, 0..15),
        after in prop::collection::btree_map(0..15u64, 0..3u8, 0..15),
        orders in any::<[usize; 2]>(),
        pages_at_once in 0..40u64,
    ) {
        let (expected, touched) = naive(&before, &after);
        let [before, after] = [(&before, orders[0]), (&after, orders[1])]
            .map(|(heap, order)| fixture::tar(&with_heap(heap, order)));
        let open = |tar: &[u8]| {
            let sources = Source::of_blob("cp.tar", &Blob::from_bytes(tar)).unwrap();
            diff::Image::open(&sources[0], 1).unwrap()
        };
        // One at any place, one as a stream.
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&before).unwrap();
        let before = diff::Image::open(&Source::open(file.path()).unwrap(), 1).unwrap();
        let after = open(&zstd::encode_all(after.as_slice(), 1).unwrap());
        let areas = diff::compare(&before, &after, options(pages_at_once), |_| {}).unwrap();
        let heap = areas.iter().find(|area| area.range.start == HEAP).unwrap();
        prop_assert_eq!(heap.pages, expected);
        let found: Vec<_> = heap
            .touched
            .iter()
            .flat_map(|range| (range.start..range.end).step_by(PAGE as usize))
            .map(|address| (address - HEAP) / PAGE)
            .collect();
        prop_assert_eq!(found, touched);
    }

    /// Whatever the images say, it is an answer or an error.
    #[test]
    fn arbitrary_images(
        name in prop::sample::select(vec!["mm-1.img", "pagemap-1.img", "core-1.img", "pstree.img", "files.img"]),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut files = archive();
        let content = files.get_mut(&format!("checkpoint/{name}")).unwrap();
        let at = at.index(content.len());
        content[at] = byte;
        let mut tar = tempfile::NamedTempFile::new().unwrap();
        tar.write_all(&fixture::tar(&files)).unwrap();
        let source = Source::open(tar.path()).unwrap();
        for (process, _) in memory::processes(&source).unwrap_or_default() {
            if let Ok(image) = diff::Image::open(&source, process.pid) {
                let _ = diff::compare(&image, &image, options(3), |_| {});
            }
            if let Ok(dump) = Dump::open(&source, &process) {
                // Sparse: its length is bounded by the file system alone.
                let _ = dump.write(&tempfile::tempfile().unwrap(), |_| {});
            }
        }
    }
}
