//! `descriptors.json` of a checkpoint.
#![no_main]

use cryo_checkpoint::descriptors::Descriptors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(descriptors) = Descriptors::from_json(json) {
        let again = descriptors.to_json().expect("what was read is written");
        let again = Descriptors::from_json(again.as_bytes()).expect("and read again");
        assert_eq!(again, descriptors);
    }
});
