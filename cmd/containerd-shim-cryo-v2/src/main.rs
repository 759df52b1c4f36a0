//! containerd shim that freezes and wakes containers.
#![forbid(unsafe_code)]

fn main() {}
