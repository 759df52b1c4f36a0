//! The containerd shim v2 runtime and the Task service.
#![forbid(unsafe_code)]
