//! What stands between a ttrpc handler and the work: errors with gRPC codes, and a guard.
//!
//! ttrpc drops a handler's future when the client's deadline passes or its connection ends, and
//! never answers when a handler panics. [`guarded`] makes both harmless: the work runs in a task
//! of its own, to its end, and a panic becomes an answer.

use std::fmt;
use std::future::Future;
use std::io;

use rustix::io::Errno;
use tracing::Instrument as _;
use ttrpc::Code;

/// An error of the Task service, named by what the caller can do about it.
///
/// The message is the only text that reaches the user (`kubectl describe` shows it): cause first,
/// then remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// No such container, exec or process. containerd takes this for "it is gone".
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The container is in the wrong state, or the node lacks something: change that first.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidArgument(String),
    /// The operating system or a policy said no.
    #[error("{0}")]
    PermissionDenied(String),
    /// This shim has no such method. Never answer it to Create or Connect: containerd takes it
    /// for an older API and asks again.
    #[error("{0}")]
    Unimplemented(String),
    /// Try again later.
    #[error("{0}")]
    Unavailable(String),
    /// The deadline of the request passed.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Disk, memory, processes or file descriptors ran out.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The operation was begun and undone.
    #[error("{0}")]
    Aborted(String),
    /// A fault of cryo or of something below it.
    #[error("{0}")]
    Internal(String),
    /// The caller gave up.
    #[error("{0}")]
    Canceled(String),
}

impl TaskError {
    /// The gRPC code: the one table of codes.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::PermissionDenied(_) => Code::PERMISSION_DENIED,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Unavailable(_) => Code::UNAVAILABLE,
            Self::DeadlineExceeded(_) => Code::DEADLINE_EXCEEDED,
            Self::ResourceExhausted(_) => Code::RESOURCE_EXHAUSTED,
            Self::Aborted(_) => Code::ABORTED,
            Self::Internal(_) => Code::INTERNAL,
            Self::Canceled(_) => Code::CANCELLED,
        }
    }

    /// The same error with a note after its text.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        let (Self::NotFound(text)
        | Self::AlreadyExists(text)
        | Self::FailedPrecondition(text)
        | Self::InvalidArgument(text)
        | Self::PermissionDenied(text)
        | Self::Unimplemented(text)
        | Self::Unavailable(text)
        | Self::DeadlineExceeded(text)
        | Self::ResourceExhausted(text)
        | Self::Aborted(text)
        | Self::Internal(text)
        | Self::Canceled(text)) = &mut self;
        *text = format!("{text} ({note})");
        self
    }

    /// An [`io::Error`] with what was being done; the code follows the errno.
    #[must_use]
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        let text = format!("{doing}: {error}");
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::SRCH) => Self::NotFound(text),
            // Not NotFound: a missing file is not a missing container, and containerd would
            // take the container for gone.
            Some(Errno::NOENT) => Self::FailedPrecondition(text),
            Some(Errno::EXIST) => Self::AlreadyExists(text),
            Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Self::PermissionDenied(text),
            Some(Errno::INVAL | Errno::NAMETOOLONG | Errno::NOTDIR | Errno::LOOP) => {
                Self::InvalidArgument(text)
            }
            Some(Errno::NOSPC | Errno::DQUOT) => {
                Self::ResourceExhausted(format!("{text}; free some space there"))
            }
            Some(Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => {
                Self::ResourceExhausted(text)
            }
            Some(Errno::BUSY | Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE) => {
                Self::Unavailable(text)
            }
            Some(Errno::TIMEDOUT) => Self::DeadlineExceeded(text),
            // Not Unimplemented, see there.
            Some(Errno::NOSYS | Errno::OPNOTSUPP) => Self::FailedPrecondition(text),
            Some(Errno::INTR | Errno::CANCELED) => Self::Aborted(text),
            Some(_) => Self::Internal(text),
            None => match error.kind() {
                io::ErrorKind::TimedOut => Self::DeadlineExceeded(text),
                io::ErrorKind::InvalidInput => Self::InvalidArgument(text),
                _ => Self::Internal(text),
            },
        }
    }
}

impl From<io::Error> for TaskError {
    fn from(error: io::Error) -> Self {
        Self::io("the system refused", &error)
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), &error))
    }
}

/// Runs the work of one call in its own task and waits for it.
///
/// Cancellation: dropping the returned future (which ttrpc does at the client's deadline or
/// disconnect) stops the waiting only; the work goes on to its end.
///
/// # Errors
///
/// The work's own error as a gRPC status; INTERNAL naming the method if it panicked; UNAVAILABLE
/// if the runtime is going down.
pub async fn guarded<T, E>(
    method: &'static str,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> ttrpc::Result<T>
where
    T: Send + 'static,
    E: Into<TaskError> + Send + 'static,
{
    let task = tokio::spawn(work.in_current_span());
    let error = match task.await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error.into(),
        Err(stopped) if stopped.is_panic() => {
            let payload = stopped.into_panic();
            let text = panic_text(&*payload);
            tracing::error!(method, panic = text, "a handler panicked");
            TaskError::Internal(format!(
                "{method} panicked: {text}; this is a bug in cryo, please report it"
            ))
        }
        Err(_) => TaskError::Unavailable(format!("{method} was cut short: the shim is exiting")),
    };
    tracing::debug!(method, code = ?error.code(), %error, "call failed");
    Err(error.into())
}

/// An error with all of its causes.
#[must_use]
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors carry their cause in the text already.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The text of a panic's payload.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn status(error: ttrpc::Error) -> (Code, String) {
        match error {
            ttrpc::Error::RpcStatus(s) => (s.code(), s.message),
            other => panic!("not a status: {other:?}"),
        }
    }

    #[tokio::test]
    async fn answers_and_errors_pass() {
        let fine: ttrpc::Result<u8> = guarded("Create", async { Ok::<_, TaskError>(7) }).await;
        assert_eq!(fine.unwrap(), 7);
        let gone: ttrpc::Result<()> = guarded("Kill", async {
            Err(TaskError::NotFound("container c1 not created".into()))
        })
        .await;
        assert_eq!(
            status(gone.unwrap_err()),
            (Code::NOT_FOUND, "container c1 not created".into())
        );
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        async fn bad() -> Result<(), TaskError> {
            panic!("table {} is empty", 3)
        }
        let (code, text) = status(guarded("Start", bad()).await.unwrap_err());
        assert_eq!(code, Code::INTERNAL);
        assert!(
            text.starts_with("Start panicked: table 3 is empty"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn work_outlives_its_handler() {
        let (go, wait) = tokio::sync::oneshot::channel();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let call = guarded("Checkpoint", async move {
            let _ = wait.await;
            let _ = done.send(());
            Ok::<_, TaskError>(())
        });
        assert!(
            tokio::time::timeout(Duration::from_millis(5), call)
                .await
                .is_err()
        );
        go.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[test]
    fn errno_table() {
        let code = |errno: Errno| {
            TaskError::io("x", &io::Error::from_raw_os_error(errno.raw_os_error())).code()
        };
        for (errno, want) in [
            (Errno::SRCH, Code::NOT_FOUND),
            (Errno::NOENT, Code::FAILED_PRECONDITION),
            (Errno::NOSPC, Code::RESOURCE_EXHAUSTED),
            (Errno::NOMEM, Code::RESOURCE_EXHAUSTED),
            (Errno::PERM, Code::PERMISSION_DENIED),
            (Errno::EXIST, Code::ALREADY_EXISTS),
            (Errno::NOSYS, Code::FAILED_PRECONDITION),
            (Errno::IO, Code::INTERNAL),
        ] {
            assert_eq!(code(errno), want, "{errno:?}");
        }
        let text = TaskError::io(
            "write pages-1.img",
            &io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()),
        )
        .to_string();
        assert!(
            text.starts_with("write pages-1.img: No space left") && text.contains("free"),
            "{text}"
        );
    }
}
