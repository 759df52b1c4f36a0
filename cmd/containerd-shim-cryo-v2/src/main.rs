//! containerd's shim for containers that can be frozen and woken: the mode
//! switch. What the modes do is in `cryo-shim`; the zygote is in `cryo-engine`, the server that
//! fills memory after a lazy restore in `cryo-criu`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // These first: the zygote must not do anything that could start a thread.
    let own = match std::env::args_os().nth(1) {
        Some(arg) if arg == cryo_engine::ZYGOTE_ARG => {
            Some(cryo_engine::zygote::run().map_err(Into::into))
        }
        Some(arg) if arg == cryo_criu::lazy::ARG => Some(cryo_criu::lazy::run()),
        _ => None,
    };
    match own {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
        None => {}
    }
    cryo_shim::main_entry(std::env::args_os(), &cryo_shim::run::ENTRY)
}
