//! `core-PID.img`: the registers of a thread, as a debugger wants them.
//!
//! [`crate::task::Core`] is the other view of the same message.

use crate::msg::{
    Aarch64Entry, Aarch64FpsimdEntry, Aarch64RegsEntry, ThreadEntry, X86FpregsEntry, X86RegsEntry,
};
use crate::{At, Error, Kind, View};

/// A thread: whose it is, and its registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// The registers; `None` for machines that are not known here.
    pub registers: Option<Registers>,
    /// Its user, as the container sees it; 0 if the image has no credentials.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its nice value.
    pub nice: i32,
    /// The signals it blocks: bit 0 is signal 1.
    pub blocked_signals: u64,
    /// Its name, where threads have one of their own.
    pub comm: Option<Vec<u8>>,
}

/// The registers of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registers {
    /// 64-bit x86, and 32-bit programs on it.
    X86(Box<X86>),
    /// 64-bit ARM.
    Aarch64(Box<Aarch64>),
}

/// Registers of x86.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X86 {
    /// The general purpose registers in the order of [`X86::NAMES`], which is that of Linux's
    /// `user_regs_struct`.
    pub general: [u64; 27],
    /// Whether the program is one of 32 bits.
    pub compat: bool,
    /// The area of FXSAVE: x87 and SSE registers.
    pub fxsave: [u8; 512],
    /// The upper halves of the sixteen AVX registers, where they were in use.
    pub ymm_high: Option<[u8; 256]>,
}

impl X86 {
    /// The names of [`X86::general`].
    pub const NAMES: [&'static str; 27] = [
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
        "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
        "es", "fs", "gs",
    ];

    fn from_wire(
        general: &X86RegsEntry,
        floating: &X86FpregsEntry,
        at: At<'_>,
    ) -> Result<Self, Error> {
        let r = general;
        let fields = [
            (r.r15, "r15"),
            (r.r14, "r14"),
            (r.r13, "r13"),
            (r.r12, "r12"),
            (r.bp, "bp"),
            (r.bx, "bx"),
            (r.r11, "r11"),
            (r.r10, "r10"),
            (r.r9, "r9"),
            (r.r8, "r8"),
            (r.ax, "ax"),
            (r.cx, "cx"),
            (r.dx, "dx"),
            (r.si, "si"),
            (r.di, "di"),
            (r.orig_ax, "orig_ax"),
            (r.ip, "ip"),
            (r.cs, "cs"),
            (r.flags, "flags"),
            (r.sp, "sp"),
            (r.ss, "ss"),
            (r.fs_base, "fs_base"),
            (r.gs_base, "gs_base"),
            (r.ds, "ds"),
            (r.es, "es"),
            (r.fs, "fs"),
            (r.gs, "gs"),
        ];
        let mut general = [0; 27];
        for (register, (value, name)) in general.iter_mut().zip(fields) {
            *register = at.need(value, name)?;
        }
        let ymm_high = match &floating.xsave {
            Some(xsave) if !xsave.ymmh_space.is_empty() => Some(words(
                xsave.ymmh_space.iter().map(|word| word.to_le_bytes()),
                at,
                "xsave.ymmh_space",
            )?),
            _ => None,
        };
        Ok(Self {
            general,
            compat: r.mode == Some(2),
            fxsave: fxsave(floating, at)?,
            ymm_high,
        })
    }
}

/// Registers of 64-bit ARM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aarch64 {
    /// `x0` to `x30`, `sp`, `pc`, `pstate`: Linux's `user_pt_regs`.
    pub general: [u64; 34],
    /// `v0` to `v31`.
    pub vectors: [u8; 512],
    /// Floating point status.
    pub fpsr: u32,
    /// Floating point control.
    pub fpcr: u32,
    /// The thread's own storage: `tpidr_el0`.
    pub tls: u64,
}

impl Aarch64 {
    fn from_wire(
        tls: u64,
        general: &Aarch64RegsEntry,
        floating: &Aarch64FpsimdEntry,
        at: At<'_>,
    ) -> Result<Self, Error> {
        let mut registers = [0; 34];
        let last = [
            at.need(general.sp, "sp")?,
            at.need(general.pc, "pc")?,
            at.need(general.pstate, "pstate")?,
        ];
        if general.regs.len() != 31 {
            return Err(at.bad_value("regs", format_args!("{} registers", general.regs.len())));
        }
        for (to, from) in registers.iter_mut().zip(general.regs.iter().chain(&last)) {
            *to = *from;
        }
        Ok(Self {
            general: registers,
            vectors: words(
                floating.vregs.iter().map(|word| word.to_le_bytes()),
                at,
                "vregs",
            )?,
            fpsr: at.need(floating.fpsr, "fpsr")?,
            fpcr: at.need(floating.fpcr, "fpcr")?,
            tls,
        })
    }
}

impl View for Thread {
    type Wire = ThreadEntry;

    const KIND: Kind = Kind::Core;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let registers = match (
            at.need(wire.mtype, "mtype")?,
            wire.thread_info,
            wire.ti_aarch64,
        ) {
            (1, Some(info), _) => {
                let general = at.need(info.gpregs, "thread_info.gpregs")?;
                let floating = at.need(info.fpregs, "thread_info.fpregs")?;
                Some(Registers::X86(Box::new(X86::from_wire(
                    &general, &floating, at,
                )?)))
            }
            (3, _, Some(info)) => {
                let Aarch64Entry {
                    gpregs,
                    fpsimd,
                    tls,
                    ..
                } = info;
                let general = at.need(gpregs, "ti_aarch64.gpregs")?;
                let floating = at.need(fpsimd, "ti_aarch64.fpsimd")?;
                let tls = at.need(tls, "ti_aarch64.tls")?;
                Some(Registers::Aarch64(Box::new(Aarch64::from_wire(
                    tls, &general, &floating, at,
                )?)))
            }
            _ => None,
        };
        let owner = wire.thread_core.unwrap_or_default();
        let creds = owner.creds.unwrap_or_default();
        Ok(Self {
            registers,
            uid: creds.uid.unwrap_or_default(),
            gid: creds.gid.unwrap_or_default(),
            nice: owner.sched_nice.unwrap_or_default(),
            blocked_signals: owner.blk_sigset.unwrap_or_default(),
            comm: owner.comm,
        })
    }
}

fn fxsave(entry: &X86FpregsEntry, at: At<'_>) -> Result<[u8; 512], Error> {
    let half = |value: Option<u32>, name| {
        let value = at.need(value, name)?;
        u16::try_from(value).map_err(|_| at.bad_value(name, value))
    };
    let mut area = Vec::with_capacity(512);
    area.extend(half(entry.cwd, "cwd")?.to_le_bytes());
    area.extend(half(entry.swd, "swd")?.to_le_bytes());
    area.extend(half(entry.twd, "twd")?.to_le_bytes());
    area.extend(half(entry.fop, "fop")?.to_le_bytes());
    area.extend(at.need(entry.rip, "rip")?.to_le_bytes());
    area.extend(at.need(entry.rdp, "rdp")?.to_le_bytes());
    area.extend(at.need(entry.mxcsr, "mxcsr")?.to_le_bytes());
    area.extend(at.need(entry.mxcsr_mask, "mxcsr_mask")?.to_le_bytes());
    let bytes = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>()
    };
    for (space, length, name) in [
        (&entry.st_space, 32, "st_space"),
        (&entry.xmm_space, 64, "xmm_space"),
    ] {
        if space.len() != length {
            return Err(at.bad_value(name, format_args!("{} words", space.len())));
        }
        area.extend(bytes(space));
    }
    area.resize(512, 0);
    area.try_into()
        .map_err(|area: Vec<u8>| at.bad_value("fpregs", area.len()))
}

/// An array of exactly the bytes of all words.
fn words<const N: usize, const W: usize>(
    words: impl Iterator<Item = [u8; W]>,
    at: At<'_>,
    name: &'static str,
) -> Result<[u8; N], Error> {
    let bytes: Vec<u8> = words.flatten().collect();
    let found = bytes.len();
    bytes
        .try_into()
        .map_err(|_| at.bad_value(name, format_args!("{found} bytes")))
}
