//! The system calls cryo needs; its only unsafe code.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod bpf;
pub mod heap;
pub mod inherited;
pub mod loopback;
pub mod mntns;
pub mod namespace;
pub mod process;
pub mod sched;
pub mod scm;
pub mod seccomp;
pub mod socket;
pub mod spawn;
pub mod uffd;
