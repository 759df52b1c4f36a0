//! How the shim is linked: at a fixed address, as containerd, its own shim and runc are.
//!
//! Else the dynamic linker writes 320 KiB of addresses into the tables of each process, shim and
//! zygote, of each pod: more than all else that they do not share. Heap, stacks and libraries are
//! at random places as before.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
