//! The container engine: zygote, libcontainer workers, cgroups, restore preparation.
#![forbid(unsafe_code)]
