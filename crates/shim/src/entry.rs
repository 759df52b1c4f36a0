//! The mode switch: a command line in, an exit code out.
//!
//! containerd reads the standard streams, so each mode prints its answer to stdout and nothing
//! else; stderr is for errors alone (of `start` containerd reads both streams as one).

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message as _;

use crate::args::{self, Flags, Mode};
use crate::bootstrap::{self, MAX_STDIN_BYTES, StartEnv};
use crate::rpc::with_causes;
use crate::{info, log};

/// Any error; its causes are printed too.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What this crate's runtime half does not bring.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The long-lived process; returns when it is to end.
    pub serve: fn(&Flags) -> Result<(), BoxError>,
    /// The cleanup of `delete`.
    pub delete: fn(&Flags) -> Result<DeleteResponse, BoxError>,
    /// Annotations for `-info`.
    pub annotations: fn() -> HashMap<String, String>,
}

/// Does what the command line (with the program's name first) asks for.
#[must_use]
pub fn main_entry(args: impl IntoIterator<Item = OsString>, entry: &Entry) -> ExitCode {
    let mut args = args.into_iter();
    let program = args
        .next()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let call = match args::parse(args) {
        Ok(call) => call,
        Err(error) => {
            eprint!("{error}\n\n{}", args::usage());
            return ExitCode::from(2);
        }
    };
    match act(&program, call.mode, &call.flags, entry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = with_causes(&*error);
            // Nobody reads the stderr of the long-lived process.
            tracing::error!("{text}");
            eprintln!("{program}: {text}");
            ExitCode::FAILURE
        }
    }
}

fn act(program: &str, mode: Mode, flags: &Flags, entry: &Entry) -> Result<(), BoxError> {
    match mode {
        Mode::Help => print(args::usage().as_bytes()),
        Mode::Version => print(info::version(program).as_bytes()),
        Mode::Info => {
            let mut stdin = Vec::new();
            io::stdin()
                .take(MAX_STDIN_BYTES as u64)
                .read_to_end(&mut stdin)?;
            print(&info::info(&stdin, (entry.annotations)())?)
        }
        Mode::Start => {
            let env = StartEnv::of_process()?;
            print(bootstrap::start(flags, &env)?.as_bytes())
        }
        Mode::Delete => print(&(entry.delete)(flags)?.write_to_bytes()?),
        Mode::Serve => (entry.serve)(flags),
    }
}

/// Sets up the log of the long-lived process, in its working directory. Without a fifo it goes
/// on without a log: nobody could be told.
pub fn init_log(flags: &Flags) {
    if let Ok(bundle) = std::env::current_dir() {
        let _ = log::init(&bundle, log::level(flags.debug));
    }
}

fn print(answer: &[u8]) -> Result<(), BoxError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(answer)?;
    Ok(stdout.flush()?)
}
