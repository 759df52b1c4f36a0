//! bpf(2): programs that the kernel asks about each access to a device, cgroup v2's only
//! way to limit them.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Beside those of others, of which each has to allow.
const ALLOW_MULTI: u32 = 1 << 1;

/// One instruction, as the kernel's `bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Its registers: the target in the lower four bits, the source above.
    pub registers: u8,
    /// How far it jumps, or where in memory it reads.
    pub offset: i16,
    /// Its number.
    pub immediate: i32,
}

#[repr(C)]
struct Load {
    prog_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel ask this program about every device that a process of the cgroup
/// `folder` opens or makes. It stays until the cgroup is removed.
///
/// # Errors
///
/// `EINVAL` when the kernel has no such programs (`CONFIG_CGROUP_BPF`) or the program is
/// not a sound one, `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
pub fn limit_devices(folder: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let program = load(program)?;
    let attach = Attach {
        target: folder.as_raw_fd().cast_unsigned(),
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    call(PROG_ATTACH, &attach).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(too_long)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = call(PROG_LOAD, &load)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes of the attributes as it is told; they are
    // plain integers, and what those point to (the instructions and the license) is
    // borrowed by our caller or static.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(rc).map_err(io::Error::other)
}
