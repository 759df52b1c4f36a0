//! The debug socket: the shim's state for whoever is looking for a mistake.
//!
//! ```text
//! curl --unix-socket '/run/cryo/NAMESPACE/ID@debug' http://shim/
//! ```
//!
//! `ID` is that of the container, or the pod's sandbox, that the shim was started
//! for: a name that can be guessed, and no id of a container. HTTP, because `curl`
//! is where an operator is, and tells an answer from half of one. Only the shim's
//! own user is answered: the socket is 0600, and the kernel's word on each peer is
//! checked. One request at a time, each of a few seconds at most, so that nobody can
//! use up the shim's descriptors.
//!
//! The Go shim has a socket for Go's profiler, with `-debug` alone and under a hash.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::bootstrap::socket::{self, Identity, Listening, SocketError};
use crate::serve::SameUser;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// The longest request that is read.
const MAX_REQUEST_BYTES: usize = 8192;

/// Where the socket of a shim is.
#[must_use]
pub fn path(state_root: &Path, namespace: &str, id: &str) -> PathBuf {
    state_root.join(namespace).join(format!("{id}@debug"))
}

/// The socket, as long as it is served.
#[derive(Debug)]
pub struct DebugSocket {
    file: Identity,
    task: tokio::task::JoinHandle<()>,
}

impl DebugSocket {
    /// Serves `state`, a JSON text, on `path`, in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When there can be no socket, or another shim has it.
    pub fn serve<S, F>(path: &Path, state: S) -> Result<Self, SocketError>
    where
        S: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = String> + Send,
    {
        let failed = |doing| {
            move |source| SocketError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        socket::check_length(path)?;
        let Listening::New(listener) = socket::listen(path)? else {
            return Err(failed("listen on")(io::ErrorKind::AddrInUse.into()));
        };
        let file = Identity::of(path).map_err(failed("look at socket"))?;
        let mut connections = SameUser::new(listener).map_err(failed("watch socket"))?;
        let task = tokio::spawn(async move {
            loop {
                let mut connection = connections.accept().await;
                let answered = async {
                    let head = request(&mut connection).await?;
                    let answer = match route(&head) {
                        Ok(()) => response("200 OK", "application/json", &state().await),
                        Err(status) => response(status, "text/plain", "GET / is all there is\n"),
                    };
                    connection.write_all(answer.as_bytes()).await?;
                    connection.shutdown().await
                };
                match timeout(REQUEST_LIMIT, answered).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "debug socket"),
                    Err(_) => tracing::debug!("debug socket: a client was too slow"),
                }
            }
        });
        Ok(Self { file, task })
    }
}

impl Drop for DebugSocket {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = socket::remove(&self.file) {
            tracing::warn!(%error, "the debug socket stays");
        }
    }
}

/// The head of a request, or as much of it as is allowed.
async fn request(connection: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_REQUEST_BYTES {
        match connection.read(&mut buffer).await? {
            0 => break,
            n => head.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(head)
}

/// Whether the request is for the state; else the status to answer with.
fn route(head: &[u8]) -> Result<(), &'static str> {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some("/"), Some(version)) if version.starts_with("HTTP/1.") => Ok(()),
        (Some("GET"), Some(_), Some(_)) => Err("404 Not Found"),
        (Some(_), Some(_), Some(_)) => Err("405 Method Not Allowed"),
        _ => Err("400 Bad Request"),
    }
}

fn response(status: &str, kind: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn ask(path: &Path, request: &str) -> String {
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_state_and_nothing_else_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "ns", "id");
        let socket = DebugSocket::serve(&path, || async { "{}\n".to_owned() }).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A client that says nothing holds the next one only for a while.
        drop(UnixStream::connect(&path).await.unwrap());
        for (request, status, body) in [
            ("GET / HTTP/1.1\r\nHost: shim\r\n\r\n", "200 OK", "{}\n"),
            ("GET / HTTP/1.0\r\n\r\n", "200 OK", "{}\n"),
            ("GET /debug/pprof/ HTTP/1.1\r\n\r\n", "404 ", "GET / is"),
            ("POST / HTTP/1.1\r\n\r\n", "405 ", "GET / is"),
            ("hello\r\n\r\n", "400 ", "GET / is"),
        ] {
            let answer = ask(&path, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
            let (head, text) = answer.split_once("\r\n\r\n").unwrap();
            assert!(text.starts_with(body), "{answer}");
            assert!(head.contains(&format!("Content-Length: {}", text.len())));
        }
        let endless = "x".repeat(2 * MAX_REQUEST_BYTES);
        let mut client = UnixStream::connect(&path).await.unwrap();
        let _ = client.write_all(endless.as_bytes()).await;
        assert!(ask(&path, "GET / HTTP/1.1\r\n\r\n").await.ends_with("{}\n"));

        // There is one; and it goes with its shim.
        DebugSocket::serve(&path, || async { String::new() }).unwrap_err();
        drop(socket);
        assert!(!path.exists());
        let long = dir.path().join("x".repeat(120));
        let error = DebugSocket::serve(&long, || async { String::new() }).unwrap_err();
        assert!(matches!(error, SocketError::TooLong { .. }), "{error}");
    }
}
