//! Memory maps and registers.

use prost::Message;

/// `mm-PID.img`: the address space of a process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MmEntry {
    #[prost(uint64, optional, tag = "1")]
    pub mm_start_code: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub mm_end_code: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub mm_start_data: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub mm_end_data: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub mm_start_stack: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub mm_start_brk: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub mm_brk: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub mm_arg_start: Option<u64>,
    #[prost(uint64, optional, tag = "9")]
    pub mm_arg_end: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    pub mm_env_start: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub mm_env_end: Option<u64>,
    #[prost(uint32, optional, tag = "12")]
    pub exe_file_id: Option<u32>,
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    pub mm_saved_auxv: Vec<u64>,
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<VmaEntry>,
    #[prost(int32, optional, tag = "15")]
    pub dumpable: Option<i32>,
}

/// One memory area.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VmaEntry {
    #[prost(uint64, optional, tag = "1")]
    pub start: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub end: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub pgoff: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub shmid: Option<u64>,
    #[prost(uint32, optional, tag = "5")]
    pub prot: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    pub flags: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub status: Option<u32>,
    #[prost(sint64, optional, tag = "8")]
    pub fd: Option<i64>,
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
}

/// `core-PID.img` once more: of a thread, what a debugger wants of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ThreadEntry {
    #[prost(int32, optional, tag = "1")]
    pub mtype: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub thread_info: Option<X86Entry>,
    #[prost(message, optional, tag = "5")]
    pub thread_core: Option<ThreadOwnerEntry>,
    #[prost(message, optional, tag = "8")]
    pub ti_aarch64: Option<Aarch64Entry>,
}

/// Whose a thread is, and how it is scheduled.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ThreadOwnerEntry {
    #[prost(sint32, optional, tag = "3")]
    pub sched_nice: Option<i32>,
    #[prost(uint64, optional, tag = "6")]
    pub blk_sigset: Option<u64>,
    #[prost(message, optional, tag = "10")]
    pub creds: Option<OwnerEntry>,
    #[prost(bytes = "vec", optional, tag = "13")]
    pub comm: Option<Vec<u8>>,
}

/// The first two numbers of a thread's credentials.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OwnerEntry {
    #[prost(uint32, optional, tag = "1")]
    pub uid: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub gid: Option<u32>,
}

/// The registers of a thread on x86.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct X86Entry {
    #[prost(uint64, optional, tag = "1")]
    pub clear_tid_addr: Option<u64>,
    #[prost(message, optional, tag = "2")]
    pub gpregs: Option<X86RegsEntry>,
    #[prost(message, optional, tag = "3")]
    pub fpregs: Option<X86FpregsEntry>,
}

/// General purpose registers, in the order of `user_regs_struct`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct X86RegsEntry {
    #[prost(uint64, optional, tag = "1")]
    pub r15: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub r14: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub r13: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub r12: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub bp: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub bx: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub r11: Option<u64>,
    #[prost(uint64, optional, tag = "8")]
    pub r10: Option<u64>,
    #[prost(uint64, optional, tag = "9")]
    pub r9: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    pub r8: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub ax: Option<u64>,
    #[prost(uint64, optional, tag = "12")]
    pub cx: Option<u64>,
    #[prost(uint64, optional, tag = "13")]
    pub dx: Option<u64>,
    #[prost(uint64, optional, tag = "14")]
    pub si: Option<u64>,
    #[prost(uint64, optional, tag = "15")]
    pub di: Option<u64>,
    #[prost(uint64, optional, tag = "16")]
    pub orig_ax: Option<u64>,
    #[prost(uint64, optional, tag = "17")]
    pub ip: Option<u64>,
    #[prost(uint64, optional, tag = "18")]
    pub cs: Option<u64>,
    #[prost(uint64, optional, tag = "19")]
    pub flags: Option<u64>,
    #[prost(uint64, optional, tag = "20")]
    pub sp: Option<u64>,
    #[prost(uint64, optional, tag = "21")]
    pub ss: Option<u64>,
    #[prost(uint64, optional, tag = "22")]
    pub fs_base: Option<u64>,
    #[prost(uint64, optional, tag = "23")]
    pub gs_base: Option<u64>,
    #[prost(uint64, optional, tag = "24")]
    pub ds: Option<u64>,
    #[prost(uint64, optional, tag = "25")]
    pub es: Option<u64>,
    #[prost(uint64, optional, tag = "26")]
    pub fs: Option<u64>,
    #[prost(uint64, optional, tag = "27")]
    pub gs: Option<u64>,
    #[prost(int32, optional, tag = "28")]
    pub mode: Option<i32>,
}

/// What FXSAVE stores, and of what XSAVE adds to it the upper halves of the AVX registers.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct X86FpregsEntry {
    #[prost(uint32, optional, tag = "1")]
    pub cwd: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub swd: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub twd: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub fop: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub rip: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub rdp: Option<u64>,
    #[prost(uint32, optional, tag = "7")]
    pub mxcsr: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    pub mxcsr_mask: Option<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "9")]
    pub st_space: Vec<u32>,
    #[prost(uint32, repeated, packed = "false", tag = "10")]
    pub xmm_space: Vec<u32>,
    #[prost(message, optional, tag = "13")]
    pub xsave: Option<X86XsaveEntry>,
}

/// The part of XSAVE's area that is not FXSAVE's.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct X86XsaveEntry {
    #[prost(uint64, optional, tag = "1")]
    pub xstate_bv: Option<u64>,
    #[prost(uint32, repeated, packed = "false", tag = "2")]
    pub ymmh_space: Vec<u32>,
}

/// The registers of a thread on 64-bit ARM.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Aarch64Entry {
    #[prost(uint64, optional, tag = "1")]
    pub clear_tid_addr: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub tls: Option<u64>,
    #[prost(message, optional, tag = "3")]
    pub gpregs: Option<Aarch64RegsEntry>,
    #[prost(message, optional, tag = "4")]
    pub fpsimd: Option<Aarch64FpsimdEntry>,
}

/// General purpose registers.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Aarch64RegsEntry {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub regs: Vec<u64>,
    #[prost(uint64, optional, tag = "2")]
    pub sp: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub pc: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    pub pstate: Option<u64>,
}

/// Floating point and SIMD registers: each of 128 bits is two words, the lower one first.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Aarch64FpsimdEntry {
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub vregs: Vec<u64>,
    #[prost(uint32, optional, tag = "2")]
    pub fpsr: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub fpcr: Option<u32>,
}
