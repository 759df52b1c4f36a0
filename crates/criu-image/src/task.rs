//! `core-PID.img`: a task. One per thread; those of processes also say what belongs to all.

use std::borrow::Cow;

use crate::inventory::TaskIds;
use crate::msg::CoreEntry;
use crate::{At, Error, Kind, View};

/// A task, as far as a summary and the check before a restore need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// The machine it ran on.
    pub arch: Arch,
    /// What belongs to the process as a whole; threads but the first lack it.
    pub process: Option<ProcessCore>,
    /// Shared kernel objects; older images have them in `ids-PID.img` only.
    pub ids: Option<TaskIds>,
    /// Whether system calls of the task are filtered; absent in images of CRIU before 3.6.
    pub seccomp_mode: Option<i32>,
    /// The first of its filters, by its position in `seccomp.img`.
    pub seccomp_filter: Option<u32>,
    /// The set of cgroups that it is in, by its number in `cgroup.img`.
    pub cgroup_set: Option<u32>,
    /// The image says these two for the whole process, as those of CRIU before 3.6 did.
    pub seccomp_of_process: bool,
}

impl View for Core {
    type Wire = CoreEntry;

    const KIND: Kind = Kind::Core;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let seccomp_of_process = wire
            .tc
            .as_ref()
            .is_some_and(|tc| tc.old_seccomp_mode.is_some() || tc.old_seccomp_filter.is_some());
        let process = match wire.tc {
            Some(tc) => Some(ProcessCore {
                comm: at.need(tc.comm, "comm")?,
                state: TaskState::from_wire(at.need(tc.task_state, "task_state")?),
                exit_status: at.need(tc.exit_code, "exit_code")?,
                oom_score_adj: tc.oom_score_adj,
            }),
            None => None,
        };
        Ok(Self {
            arch: Arch::from_wire(at.need(wire.mtype, "mtype")?),
            process,
            ids: wire
                .ids
                .map(|ids| TaskIds::from_wire(ids, at))
                .transpose()?,
            seccomp_mode: wire.thread_core.as_ref().and_then(|t| t.seccomp_mode),
            cgroup_set: wire.thread_core.as_ref().and_then(|t| t.cg_set),
            seccomp_filter: wire.thread_core.and_then(|t| t.seccomp_filter),
            seccomp_of_process,
        })
    }
}

/// What belongs to a process as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessCore {
    /// Its name, at most 15 bytes in what the kernel gives out.
    pub comm: Vec<u8>,
    /// What it was doing.
    pub state: TaskState,
    /// How it ended, in the form of `wait(2)`; meaningless while it lives.
    pub exit_status: u32,
    /// Its adjustment of the out-of-memory score.
    pub oom_score_adj: Option<i32>,
}

impl ProcessCore {
    /// The name with what is not UTF-8 replaced. It may still hold control characters.
    pub fn comm_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.comm)
    }
}

/// What a process was doing when it was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskState {
    /// Running or sleeping.
    Alive,
    /// Ended, and not yet waited for by its parent.
    Dead,
    /// Stopped by a signal.
    Stopped,
    /// Zombie, in CRIU's words; images have [`TaskState::Dead`] for it.
    Zombie,
    /// A value of a newer CRIU.
    Unknown(u32),
}

impl TaskState {
    fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::Alive,
            2 => Self::Dead,
            3 => Self::Stopped,
            6 => Self::Zombie,
            other => Self::Unknown(other),
        }
    }

    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::Stopped => "stopped",
            Self::Zombie => "zombie",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit ARM.
    Arm,
    /// 64-bit ARM.
    Aarch64,
    /// 64-bit POWER.
    Ppc64,
    /// IBM Z.
    S390,
    /// MIPS.
    Mips,
    /// LoongArch.
    Loongarch64,
    /// RISC-V.
    Riscv64,
    /// A value of a newer CRIU.
    Unknown(i32),
}

impl Arch {
    fn from_wire(value: i32) -> Self {
        match value {
            1 => Self::X86_64,
            2 => Self::Arm,
            3 => Self::Aarch64,
            4 => Self::Ppc64,
            5 => Self::S390,
            6 => Self::Mips,
            7 => Self::Loongarch64,
            8 => Self::Riscv64,
            other => Self::Unknown(other),
        }
    }

    /// The name as Rust's [`std::env::consts::ARCH`] has it, where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm => "arm",
            Self::Aarch64 => "aarch64",
            Self::Ppc64 => "powerpc64",
            Self::S390 => "s390x",
            Self::Mips => "mips",
            Self::Loongarch64 => "loongarch64",
            Self::Riscv64 => "riscv64",
            Self::Unknown(_) => "an unknown machine",
        }
    }
}
