//! containerd's shim for containers that can be frozen and woken: the mode
//! switch. What the modes do is in `cryo-shim`; the zygote is in `cryo-engine`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // The zygote first: it must not do anything that could start a thread.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == cryo_engine::ZYGOTE_ARG)
    {
        return match cryo_engine::zygote::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    cryo_shim::main_entry(std::env::args_os(), &cryo_shim::run::ENTRY)
}
