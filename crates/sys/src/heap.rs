//! The C library's heap, of a process that should be small at rest.

/// Makes all threads share one heap, and gives free memory back sooner. To be called before there
/// is a second thread.
///
/// By default glibc gives each thread a heap of its own, and what one leaves there stays.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) changes a number inside of the C library.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the heap's free pages back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) locks what it changes, and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
