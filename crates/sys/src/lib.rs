//! The system calls cryo needs; its only unsafe code.
#![deny(unsafe_op_in_unsafe_fn)]
