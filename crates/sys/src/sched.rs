//! How a process is scheduled, and what kind of system it is shown.

use std::io;

fn checked(rc: libc::c_long) -> io::Result<()> {
    if rc >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the calling thread's priority of input and output: a class of
/// ioprio_set(2) and a level in it.
///
/// # Errors
///
/// `EINVAL` when there is no such class or level, `EPERM` for a class that the
/// caller may not have.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = class << CLASS_SHIFT | level;
    // SAFETY: ioprio_set(2) takes three numbers; 0 is the calling thread.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })
}

/// How a thread is scheduled, in the terms of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scheduler {
    /// `SCHED_...`
    pub policy: u32,
    /// `SCHED_FLAG_...`
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For deadlines, in ns.
    pub runtime: u64,
    /// For deadlines, in ns.
    pub deadline: u64,
    /// For deadlines, in ns.
    pub period: u64,
}

/// The kernel's `struct sched_attr`, in its first form.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets how the calling thread is scheduled.
///
/// # Errors
///
/// `EINVAL` for values that do not go together, `EPERM` for a policy that the
/// caller may not have, `EBUSY` when there is no room for such a deadline.
pub fn set_scheduler(scheduler: Scheduler) -> io::Result<()> {
    let attributes = Attributes {
        size: 48,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: the attributes are readable for the 48 bytes that their first
    // field says, and laid out as the kernel's struct; 0 is the calling thread.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// Sets the calling process's execution domain, as personality(2) numbers them.
///
/// # Errors
///
/// `EINVAL` when the kernel refuses it.
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: personality(2) takes a number and changes nothing in memory.
    checked(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(domain)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread of its own: it keeps what was set, and ends.
    fn alone(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn an_io_priority_is_set_and_nonsense_refused() {
        alone(|| {
            set_io_priority(2, 7).unwrap();
            let error = set_io_priority(7, 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        });
    }

    #[test]
    fn a_policy_is_set_and_nonsense_refused() {
        alone(|| {
            let batch = Scheduler {
                policy: 3,
                nice: 5,
                ..Scheduler::default()
            };
            set_scheduler(batch).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // The policy is field 41; the name, field 2, may hold blanks.
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            assert_eq!((fields[41 - 3], fields[19 - 3]), ("3", "5"));
            let nonsense = Scheduler {
                policy: 99,
                ..Scheduler::default()
            };
            let error = set_scheduler(nonsense).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        });
    }
}
