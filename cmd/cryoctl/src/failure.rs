//! From errors to text on stderr and an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use cryo_checkpoint::{memory, source};

use crate::commands::Dialect;
use crate::interrupt::{self, Interrupted};
use crate::text::{printable, with_causes};

/// Why a command ended early.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    hint: Option<&'static str>,
    code: u8,
}

impl Failure {
    /// The same with another exit code than 1.
    pub(crate) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Prints `error: …` and `hint: …`; in checkpointctl's dialect `Error: …` alone. The error's
    /// causes follow it after colons.
    pub(crate) fn report(self, dialect: Dialect) -> ExitCode {
        let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause
                .downcast_ref()
                .is_some_and(|e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe)
        };
        // Whoever read our output has seen enough.
        if self.error.chain().any(broken_pipe) {
            return ExitCode::SUCCESS;
        }
        let mut stderr = io::stderr().lock();
        let text = with_causes(&self.error);
        if dialect == Dialect::Checkpointctl {
            let _ = writeln!(stderr, "Error: {}", printable(&text));
            return ExitCode::from(1);
        }
        // Nowhere is left to say that this failed.
        let _ = writeln!(stderr, "error: {}", printable(&text));
        if let Some(hint) = self.hint {
            let _ = writeln!(stderr, "hint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl From<source::Error> for Failure {
    fn from(error: source::Error) -> Self {
        Self {
            hint: error.hint(),
            ..Self::from(anyhow::Error::from(error))
        }
    }
}

impl From<memory::Error> for Failure {
    fn from(error: memory::Error) -> Self {
        Self {
            hint: error.hint(),
            ..Self::from(anyhow::Error::from(error))
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let interrupted = error.downcast_ref::<Interrupted>().is_some();
        Self {
            error,
            hint: None,
            code: if interrupted { interrupt::EXIT_CODE } else { 1 },
        }
    }
}
