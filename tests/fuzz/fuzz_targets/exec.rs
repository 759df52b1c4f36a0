//! The process of an exec, as a client of containerd sends it.
#![no_main]

use cryo_engine::fuzzing;
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;

fuzz_target!(|process: &[u8]| {
    let _ = fuzzing::exec_plan(process, &Spec::default());
});
