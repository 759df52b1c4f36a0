//! Memory maps, pagemaps and registers: golden values, what is refused, and arbitrary bytes.
#![allow(clippy::unwrap_used)]

use cryo_criu_image::mm::{Backing, MemoryMap, Range};
use cryo_criu_image::pagemap::{Location, PageRun, Pagemap};
use cryo_criu_image::registers::{Registers, Thread};
use cryo_criu_image::{Error, Kind, Reader, View, Writer, msg};
use proptest::prelude::*;

fn single<V: View>(wire: &V::Wire) -> Result<V, Error> {
    let mut writer = Writer::new(V::KIND, Vec::new()).unwrap();
    writer.message(wire).unwrap();
    Reader::new("f", writer.into_inner().as_slice())?.single()
}

fn area(start: u64, end: u64) -> msg::VmaEntry {
    msg::VmaEntry {
        start: Some(start),
        end: Some(end),
        pgoff: Some(0x3000),
        shmid: Some(7),
        prot: Some(3),
        flags: Some(0x22),
        status: Some(1 | 1 << 9),
        fd: Some(-1),
        ..Default::default()
    }
}

fn mm(vmas: Vec<msg::VmaEntry>) -> msg::MmEntry {
    let zero = Some(0);
    msg::MmEntry {
        mm_start_code: zero,
        mm_end_code: zero,
        mm_start_data: zero,
        mm_end_data: zero,
        mm_start_stack: Some(0x7000),
        mm_start_brk: zero,
        mm_brk: zero,
        mm_arg_start: Some(0x7010),
        mm_arg_end: Some(0x7020),
        mm_env_start: Some(0x7020),
        mm_env_end: Some(0x7030),
        exe_file_id: Some(5),
        mm_saved_auxv: vec![],
        vmas,
        dumpable: Some(1),
    }
}

#[test]
fn areas_and_what_they_are_of() {
    let kinds: [(u32, u32, Backing); 9] = [
        (1 | 1 << 9, 0x22, Backing::Anonymous),
        (1 | 1 << 1 | 1 << 9, 0x122, Backing::Anonymous),
        (1 | 1 << 5 | 1 << 9, 0x22, Backing::Heap),
        (
            1 | 1 << 6,
            2,
            Backing::File {
                file_id: 7,
                offset: 0x3000,
                shared: false,
            },
        ),
        (
            1 | 1 << 7,
            1,
            Backing::File {
                file_id: 7,
                offset: 0x3000,
                shared: true,
            },
        ),
        (
            1 | 1 << 8,
            0x21,
            Backing::Shared {
                id: 7,
                offset: 0x3000,
            },
        ),
        (1 | 1 << 3, 0x22, Backing::Kernel("[vdso]")),
        (1 | 1 << 12, 0x22, Backing::Kernel("[vvar]")),
        (1 << 2, 0x22, Backing::Kernel("[vsyscall]")),
    ];
    for (status, flags, expected) in kinds {
        let map = single::<MemoryMap>(&mm(vec![msg::VmaEntry {
            status: Some(status),
            flags: Some(flags),
            ..area(0x1000, 0x3000)
        }]))
        .unwrap();
        assert_eq!(map.areas[0].backing, expected, "{status:#x}");
        assert_eq!(map.areas[0].bytes(), 0x2000);
    }
    let map = single::<MemoryMap>(&mm(vec![area(0x1000, 0x3000), area(0x3000, 0x4000)])).unwrap();
    assert_eq!(map.areas[0].permissions(), "rw-p");
    assert_eq!(map.area(0x2fff), Some(&map.areas[0]));
    assert_eq!(map.area(0x3000), Some(&map.areas[1]));
    assert_eq!(map.area(0xfff), None);
    assert_eq!(map.area(0x4000), None);
    assert_eq!(
        map.arguments,
        Range {
            start: 0x7010,
            end: 0x7020
        }
    );
    assert_eq!(map.page_bytes(), 4096);
}

#[test]
fn the_page_size_is_that_of_the_machine() {
    let auxv = |words: &[u64]| {
        single::<MemoryMap>(&msg::MmEntry {
            mm_saved_auxv: words.to_vec(),
            ..mm(vec![])
        })
    };
    assert_eq!(auxv(&[3, 6, 6, 65536, 0, 0]).unwrap().page_bytes(), 65536);
    for wrong in [0, 1, 5000, 1 << 40] {
        let error = auxv(&[6, wrong]).unwrap_err().to_string();
        let expected = format!(
            "f: message at offset 8: field mm_saved_auxv (AT_PAGESZ) has the impossible value {wrong}"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn memory_maps_that_are_refused() {
    let cases = [
        (
            mm(vec![area(0x1000, 0x3000), area(0x2000, 0x4000)]),
            "f: message at offset 8: field vmas.start has the impossible value 0x2000",
        ),
        (
            mm(vec![area(0x3000, 0x3000)]),
            "f: message at offset 8: field vmas.end has the impossible value 0x3000 after 0x3000",
        ),
        (
            mm(vec![area(0x1001, 0x3000)]),
            "f: message at offset 8: field vmas.end has the impossible value 0x3000 after 0x1001",
        ),
        (
            msg::MmEntry {
                mm_arg_end: Some(0x7000),
                ..mm(vec![])
            },
            "f: message at offset 8: field mm_arg_end has the impossible value 0x7000 after 0x7010",
        ),
        (
            msg::MmEntry {
                exe_file_id: None,
                ..mm(vec![])
            },
            "f: message at offset 8 lacks its field exe_file_id",
        ),
    ];
    for (wire, expected) in cases {
        assert_eq!(
            single::<MemoryMap>(&wire).unwrap_err().to_string(),
            expected
        );
    }
}

fn pagemap(runs: &[msg::PagemapEntry], behind: &[u8]) -> Vec<u8> {
    use prost::Message as _;
    let mut writer = Writer::new(Kind::Pagemap, Vec::new()).unwrap();
    writer
        .message(&msg::PagemapHead { pages_id: Some(3) })
        .unwrap();
    for run in runs {
        let mut bytes = run.encode_to_vec();
        bytes.extend(behind);
        writer.entry(&bytes).unwrap();
    }
    writer.into_inner()
}

fn run(vaddr: u64, nr_pages: u64, flags: u32) -> msg::PagemapEntry {
    msg::PagemapEntry {
        vaddr: Some(vaddr),
        compat_nr_pages: Some(0),
        in_parent: None,
        flags: Some(flags),
        nr_pages: Some(nr_pages),
    }
}

#[test]
fn where_pages_are() {
    // Of an older CRIU, and not in the order of addresses.
    let old = msg::PagemapEntry {
        compat_nr_pages: Some(2),
        in_parent: Some(true),
        flags: None,
        nr_pages: None,
        vaddr: Some(0x1000),
    };
    let bytes = pagemap(
        &[run(0x9000, 3, 6), old, run(0x5000, 1, 2), run(0x7000, 1, 0)],
        &[],
    );
    let read = Pagemap::read("f", bytes.as_slice(), 4096).unwrap();
    let at = |address, pages, location, lazy| PageRun {
        address,
        pages,
        location,
        lazy,
    };
    assert_eq!(
        read,
        Pagemap {
            pages_id: 3,
            runs: vec![
                at(0x9000, 3, Location::Here, true),
                at(0x1000, 2, Location::Parent, false),
                at(0x5000, 1, Location::Nowhere, true),
                at(0x7000, 1, Location::Nowhere, false),
            ],
        }
    );
}

#[test]
fn pagemaps_that_are_refused() {
    let error = |runs: &[msg::PagemapEntry], behind: &[u8]| {
        let bytes = pagemap(runs, behind);
        Pagemap::read("f", bytes.as_slice(), 4096)
            .unwrap_err()
            .to_string()
    };
    // Field 6: the blocks of CRIU 4.3's compression.
    assert_eq!(
        error(&[run(0x1000, 1, 4)], &[0x32, 0]),
        "f: message at offset 14 has fields that are not known here: \
         compressed memory of CRIU 4.3, or something newer"
    );
    for (runs, field) in [
        (
            &[run(0x1000, 0, 4)][..],
            "nr_pages has the impossible value 0",
        ),
        (
            &[run(0x1800, 1, 4)],
            "vaddr has the impossible value 0x1800",
        ),
        (
            &[run(u64::MAX - 4095, 2, 4)],
            "vaddr has the impossible value 0xfffffffffffff000",
        ),
        (
            &[run(0x1000, u64::MAX, 4)],
            "vaddr has the impossible value 0x1000",
        ),
    ] {
        assert_eq!(
            error(runs, &[]),
            format!("f: message at offset 14: field {field}")
        );
    }
    for runs in [
        [run(0x1000, 2, 4), run(0x2000, 1, 4)],
        [run(0x2000, 1, 4), run(0x1000, 2, 1)],
    ] {
        assert_eq!(
            error(&runs, &[]),
            "f: message at offset 8: field vaddr has the impossible value 0x2000, which is there twice"
        );
    }
}

fn x86() -> msg::ThreadEntry {
    let r = |value| Some(value);
    msg::ThreadEntry {
        mtype: Some(1),
        thread_info: Some(msg::X86Entry {
            clear_tid_addr: r(0),
            gpregs: Some(msg::X86RegsEntry {
                r15: r(0),
                r14: r(1),
                r13: r(2),
                r12: r(3),
                bp: r(4),
                bx: r(5),
                r11: r(6),
                r10: r(7),
                r9: r(8),
                r8: r(9),
                ax: r(10),
                cx: r(11),
                dx: r(12),
                si: r(13),
                di: r(14),
                orig_ax: r(15),
                ip: r(16),
                cs: r(17),
                flags: r(18),
                sp: r(19),
                ss: r(20),
                fs_base: r(21),
                gs_base: r(22),
                ds: r(23),
                es: r(24),
                fs: r(25),
                gs: r(26),
                mode: Some(1),
            }),
            fpregs: Some(msg::X86FpregsEntry {
                cwd: Some(0x37f),
                swd: Some(1),
                twd: Some(2),
                fop: Some(3),
                rip: r(4),
                rdp: r(5),
                mxcsr: Some(0x1f80),
                mxcsr_mask: Some(0xffff),
                st_space: (0..32).collect(),
                xmm_space: (100..164).collect(),
                xsave: None,
            }),
        }),
        ..Default::default()
    }
}

#[test]
fn registers_of_x86() {
    let thread: Thread = single(&x86()).unwrap();
    let Some(Registers::X86(registers)) = thread.registers else {
        panic!("{thread:?}");
    };
    assert_eq!(registers.general.to_vec(), (0..27).collect::<Vec<u64>>());
    assert!(!registers.compat);
    assert_eq!(registers.ymm_high, None);
    assert_eq!(&registers.fxsave[..8], [0x7f, 3, 1, 0, 2, 0, 3, 0]);
    assert_eq!(registers.fxsave[32 + 4], 1);
    assert_eq!(registers.fxsave[160], 100);

    let mut wrong = x86();
    let fpregs = wrong
        .thread_info
        .as_mut()
        .and_then(|info| info.fpregs.as_mut())
        .unwrap();
    fpregs.xmm_space.pop();
    assert_eq!(
        single::<Thread>(&wrong).unwrap_err().to_string(),
        "f: message at offset 8: field xmm_space has the impossible value 63 words"
    );
}

#[test]
fn registers_of_aarch64() {
    let mut wire = msg::ThreadEntry {
        mtype: Some(3),
        ti_aarch64: Some(msg::Aarch64Entry {
            clear_tid_addr: Some(0),
            tls: Some(77),
            gpregs: Some(msg::Aarch64RegsEntry {
                regs: (0..31).collect(),
                sp: Some(31),
                pc: Some(32),
                pstate: Some(33),
            }),
            fpsimd: Some(msg::Aarch64FpsimdEntry {
                vregs: (0..64).collect(),
                fpsr: Some(1),
                fpcr: Some(2),
            }),
        }),
        ..Default::default()
    };
    let thread: Thread = single(&wire).unwrap();
    let Some(Registers::Aarch64(registers)) = thread.registers else {
        panic!("{thread:?}");
    };
    assert_eq!(registers.general.to_vec(), (0..34).collect::<Vec<u64>>());
    assert_eq!(registers.vectors[8], 1);
    assert_eq!(registers.tls, 77);

    let info = wire.ti_aarch64.as_mut().unwrap();
    info.gpregs.as_mut().unwrap().regs.push(0);
    assert_eq!(
        single::<Thread>(&wire).unwrap_err().to_string(),
        "f: message at offset 8: field regs has the impossible value 32 registers"
    );
}

#[test]
fn registers_of_another_machine_are_not_known() {
    let wire = msg::ThreadEntry {
        mtype: Some(8),
        ..Default::default()
    };
    assert_eq!(single::<Thread>(&wire).unwrap().registers, None);
}

proptest! {
    /// Whatever the bytes are, it is an answer or an error.
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for kind in [Kind::Mm, Kind::Core, Kind::Pagemap] {
            let mut writer = Writer::new(kind, Vec::new()).unwrap();
            writer.entry(&bytes).unwrap();
            let image = writer.into_inner();
            if let Ok(reader) = Reader::<MemoryMap, _>::new("f", image.as_slice()) {
                reader.for_each(drop);
            }
            if let Ok(reader) = Reader::<Thread, _>::new("f", image.as_slice()) {
                reader.for_each(drop);
            }
            let _ = Pagemap::read("f", image.as_slice(), 4096);
        }
    }

    /// Runs that do not overlap are taken in any order, with the pages they have.
    #[test]
    fn any_order(lengths in prop::collection::vec((1..5u64, 0..3u64), 1..20), seed in any::<u64>()) {
        let mut address = 0x1000;
        let mut runs: Vec<_> = lengths
            .iter()
            .map(|&(pages, gap)| {
                let here = run(address, pages, 4);
                address += (pages + gap) * 4096;
                here
            })
            .collect();
        let shift = usize::try_from(seed % runs.len() as u64).unwrap();
        runs.rotate_left(shift);
        let read = Pagemap::read("f", pagemap(&runs, &[]).as_slice(), 4096).unwrap();
        let there: Vec<_> = read.runs.iter().map(|run| (run.address, run.pages)).collect();
        let given: Vec<_> = runs.iter().map(|run| (run.vaddr.unwrap(), run.nr_pages.unwrap())).collect();
        prop_assert_eq!(there, given);
    }
}
