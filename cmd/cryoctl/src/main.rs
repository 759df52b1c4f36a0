//! Read, compare, build and move checkpoints.
#![forbid(unsafe_code)]

fn main() {}
