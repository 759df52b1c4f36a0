//! The notes of a core file: processes, threads, registers, files.

use cryo_criu_image::mm::Backing;
use cryo_criu_image::registers::{Registers, Thread};
use cryo_criu_image::task::TaskState;

use super::Dump;

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_X86_XSTATE: u32 = 0x202;
const NT_ARM_TLS: u32 = 0x401;
const NT_SIGINFO: u32 = 0x5349_4749;
const NT_FILE: u32 = 0x4649_4c45;

/// Sizes and places of an XSAVE area with x87, SSE and AVX, which are the same everywhere.
const XSAVE_BYTES: usize = 832;
const XSAVE_YMM: usize = 576;
const XSAVE_AVX_MASK: u64 = 0b111;

impl Dump {
    /// All notes. Their length does not depend on the arguments of the process.
    pub(super) fn notes(&self, arguments: &[u8]) -> Vec<u8> {
        let mut notes = Vec::new();
        for (index, (tid, thread)) in self.threads.iter().enumerate() {
            note(&mut notes, b"CORE", NT_PRSTATUS, &self.status(*tid, thread));
            if index == 0 {
                note(&mut notes, b"CORE", NT_PRPSINFO, &self.info(arguments));
                // No signal ended it.
                note(&mut notes, b"CORE", NT_SIGINFO, &[0; 128]);
                let auxv: Vec<u8> = bytes(self.map.auxv.iter().copied());
                note(&mut notes, b"CORE", NT_AUXV, &auxv);
                note(&mut notes, b"CORE", NT_FILE, &self.file_note());
            }
            match &thread.registers {
                Some(Registers::X86(x86)) => {
                    note(&mut notes, b"CORE", NT_FPREGSET, &x86.fxsave);
                    if let Some(ymm) = &x86.ymm_high {
                        let mut area = x86.fxsave.to_vec();
                        area.resize(XSAVE_YMM, 0);
                        area.extend(ymm);
                        area.resize(XSAVE_BYTES, 0);
                        // What is in use, for the debugger and for the processor.
                        for at in [464, 512] {
                            if let Some(mask) = area.get_mut(at..at + 8) {
                                mask.copy_from_slice(&XSAVE_AVX_MASK.to_le_bytes());
                            }
                        }
                        note(&mut notes, b"LINUX", NT_X86_XSTATE, &area);
                    }
                }
                Some(Registers::Aarch64(arm)) => {
                    let mut set = arm.vectors.to_vec();
                    set.extend(arm.fpsr.to_le_bytes());
                    set.extend(arm.fpcr.to_le_bytes());
                    set.resize(528, 0);
                    note(&mut notes, b"CORE", NT_FPREGSET, &set);
                    note(&mut notes, b"LINUX", NT_ARM_TLS, &arm.tls.to_le_bytes());
                }
                _ => {}
            }
        }
        notes
    }

    /// `struct elf_prstatus`: a thread and its general purpose registers.
    fn status(&self, tid: u32, thread: &Thread) -> Vec<u8> {
        let mut status = vec![0; 24];
        status.extend(thread.blocked_signals.to_le_bytes());
        for number in [tid, self.process.ppid, self.process.pgid, self.process.sid] {
            status.extend(number.to_le_bytes());
        }
        // Times: a checkpoint does not tell them.
        status.resize(112, 0);
        match &thread.registers {
            Some(Registers::X86(x86)) => status.extend(bytes(x86.general.iter().copied())),
            Some(Registers::Aarch64(arm)) => status.extend(bytes(arm.general.iter().copied())),
            _ => {}
        }
        // Floating point registers follow in a note of their own.
        status.extend(1u64.to_le_bytes());
        status
    }

    /// `struct elf_prpsinfo`: the process.
    fn info(&self, arguments: &[u8]) -> Vec<u8> {
        let leader = self.threads.first().map(|(_, thread)| thread);
        let of_all = self.core.process.as_ref();
        let (state, letter) = match of_all.map(|of_all| of_all.state) {
            Some(TaskState::Stopped) => (3, b'T'),
            _ => (0, b'R'),
        };
        let nice = leader.map(|thread| thread.nice).unwrap_or_default();
        let nice = i8::try_from(nice).unwrap_or_default().to_le_bytes();
        let mut info = vec![state, letter, 0];
        info.extend(nice);
        info.resize(16, 0);
        for number in [
            leader.map(|thread| thread.uid).unwrap_or_default(),
            leader.map(|thread| thread.gid).unwrap_or_default(),
            self.process.pid,
            self.process.ppid,
            self.process.pgid,
            self.process.sid,
        ] {
            info.extend(number.to_le_bytes());
        }
        let comm = of_all.map(|of_all| of_all.comm.as_slice());
        let comm = comm.unwrap_or_default();
        info.extend(comm.iter().take(15));
        info.resize(56, 0);
        let mut text = arguments;
        while let Some((0 | b' ', rest)) = text.split_last() {
            text = rest;
        }
        info.extend(text.iter().take(79));
        info.resize(136, 0);
        info
    }

    /// Which file is mapped where.
    fn file_note(&self) -> Vec<u8> {
        let page = self.map.page_bytes();
        let (mut ranges, mut names) = (Vec::new(), Vec::new());
        let mut count = 0u64;
        for area in &self.map.areas {
            if let Backing::File {
                file_id, offset, ..
            } = area.backing
                && let Some(path) = self.files.get(&file_id)
            {
                count += 1;
                ranges.extend([area.start, area.end, offset / page]);
                names.extend(path.iter().copied().filter(|byte| *byte != 0));
                names.push(0);
            }
        }
        let mut note = bytes([count, page].into_iter().chain(ranges));
        note.extend(names);
        note
    }
}

fn bytes(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Appends a note; name and content are padded to four bytes.
fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    notes.extend(length(name.len() + 1));
    notes.extend(length(content.len()));
    notes.extend(kind.to_le_bytes());
    notes.extend(name);
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend(content);
    notes.resize(notes.len().next_multiple_of(4), 0);
}
