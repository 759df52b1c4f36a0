//! What containerd says to `start` on stdin, in each of its three forms.
#![no_main]

use cryo_shim::args::Flags;
use cryo_shim::bootstrap::{Protocol, parse_stdin};
use cryo_shim::options::RuntimeOptions;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stdin: &[u8]| {
    let flags = Flags {
        id: "c1".into(),
        namespace: "k8s.io".into(),
        ..Flags::default()
    };
    let Ok(params) = parse_stdin(stdin, &flags, "/run/ttrpc") else {
        return;
    };
    // Who is started is what the flags say, whatever stdin says.
    assert_eq!((params.id, params.namespace), (flags.id, flags.namespace));
    assert_eq!(params.protocol == Protocol::Flags, stdin.is_empty());
    assert!(params.protocol != Protocol::Options || params.options.is_some());
    let _ = RuntimeOptions::parse(params.options.as_ref());
});
