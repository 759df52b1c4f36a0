//! HTTP: one request, one answer, no redirects followed, everything bounded.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use cryo_checkpoint::oci::url::Url;
use http::{Method, Request, Response, StatusCode};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::ATTEMPTS;

/// Longest time in which nothing comes or goes.
const IDLE: Duration = Duration::from_secs(60);

/// Longest error text of a registry that is read.
const MAX_ERROR_BYTES: u64 = 64 << 10;

pub(super) type Answer = Response<Body>;

/// Talks HTTP.
pub(super) struct Client(Agent);

impl Client {
    /// One that trusts the system's authorities, and those of this file.
    pub(super) fn new(ca: Option<&Path>) -> anyhow::Result<Self> {
        // The system's, or those that $SSL_CERT_FILE and $SSL_CERT_DIR name.
        let mut found = rustls_native_certs::load_native_certs().certs;
        if let Some(path) = ca {
            found.extend(authorities(path)?);
        }
        let certificates: Vec<Certificate<'static>> = found
            .iter()
            .map(|certificate| Certificate::from_der(certificate).to_owned())
            .collect();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&certificates))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cryoctl/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .timeout_await_100(Some(Duration::from_secs(1)))
            .build();
        Ok(Self(config.new_agent()))
    }

    /// Sends a request once.
    pub(super) fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(url.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let context = || format!("{method} {}", without_query(url));
        let answer = match body {
            Some(body) => self.0.run(request.body(body).with_context(context)?),
            None => self.0.run(request.body(()).with_context(context)?),
        };
        answer.map_err(|error| explained(error, url).context(context()))
    }
}

/// The certificates of a file in PEM.
fn authorities(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow!("{shown} cannot be read as certificates in PEM: {error}"))?;
    ensure!(!found.is_empty(), "{shown} has no certificate in PEM");
    Ok(found)
}

/// A certificate that is not taken, and what its reader can do.
#[derive(Debug, thiserror::Error)]
#[error("the certificate of {host} {problem}; {remedy}")]
pub(super) struct Distrusted {
    host: String,
    problem: String,
    remedy: &'static str,
}

/// Says of a failure that is one of certificates what it means here.
fn explained(error: ureq::Error, url: &Url) -> anyhow::Error {
    let tls = match &error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    };
    let Some(rustls::Error::InvalidCertificate(why)) = tls else {
        return error.into();
    };
    let (problem, remedy) = match why {
        // A bad signature is that of another authority with the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "is of an authority that is not known here".to_owned(),
            "if it is yours, name the authority's certificate with --ca or $SSL_CERT_FILE, or add it to the system's",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("is for other names".to_owned(), "use a name that it is for")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "has expired".to_owned(),
            "the registry has to renew it, or this machine's clock is wrong",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "is not valid yet".to_owned(),
            "is this machine's clock right?",
        ),
        other => (
            format!("is not taken: {other}"),
            "the registry has to have another one",
        ),
    };
    let host = url.host().to_owned();
    Distrusted {
        host,
        problem,
        remedy,
    }
    .into()
}

/// A query may hold what gives access.
fn without_query(url: &Url) -> String {
    let mut text = url.to_string();
    if let Some(query) = text.find('?') {
        text.truncate(query);
    }
    text
}

/// Whether the same request may be answered the next time: the connection broke, or the registry
/// says that it is busy.
pub(super) fn is_transient(error: &anyhow::Error) -> bool {
    if error.downcast_ref::<Distrusted>().is_some() {
        return false;
    }
    error.chain().any(|cause| {
        if let Some(error) = cause.downcast_ref::<ureq::Error>() {
            return matches!(
                error,
                ureq::Error::Io(_)
                    | ureq::Error::Timeout(_)
                    | ureq::Error::ConnectionFailed
                    | ureq::Error::Protocol(_)
                    | ureq::Error::BodyStalled
            );
        }
        cause.downcast_ref::<std::io::Error>().is_some() || cause.is::<Again>()
    })
}

/// The registry may answer otherwise the next time.
#[derive(Debug)]
struct Again(StatusCode);

impl std::error::Error for Again {}

impl std::fmt::Display for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the registry answers {}", self.0)
    }
}

/// Counts failures in a row, and waits longer from one to the next.
#[derive(Debug, Default)]
pub(super) struct Patience(u32);

impl Patience {
    /// Waits before the next try, or gives the error back when there have been enough of them.
    pub(super) fn wait(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        self.0 += 1;
        if self.0 >= ATTEMPTS || !is_transient(&error) {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100 << self.0));
        Ok(())
    }

    /// Something went forward.
    pub(super) fn progress(&mut self) {
        self.0 = 0;
    }
}

/// One header as text.
pub(super) fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The whole body, of at most `limit` bytes.
pub(super) fn body(answer: &mut Answer, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = answer.body_mut().as_reader().take(limit + 1);
    reader.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(anyhow!(
            "the registry answers with more than {limit} bytes where it may not"
        ));
    }
    Ok(bytes)
}

/// What an answer that is none of those wanted makes of `what` was asked for.
pub(super) fn refusal(what: &str, answer: &mut Answer) -> anyhow::Error {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Reason>,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = answer.status();
    // Out of range is a chunk of which the registry has a part already.
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::RANGE_NOT_SATISFIABLE
    ) || status.is_server_error()
    {
        return anyhow::Error::from(Again(status)).context(what.to_owned());
    }
    let text = body(answer, MAX_ERROR_BYTES).unwrap_or_default();
    let said = serde_json::from_slice::<Errors>(&text)
        .ok()
        .and_then(|errors| errors.errors.into_iter().next())
        .map(|reason| format!(": {} {}", reason.code, reason.message))
        .unwrap_or_default();
    let remedy = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; log in with 'docker login' or 'podman login', or name the file with --authfile"
        }
        _ => "",
    };
    anyhow!("{what}: the registry answers {status}{said}{remedy}")
}
