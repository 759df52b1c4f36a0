//! A blob on its way to a registry, in chunks of which each can be sent again.

use std::io::{self, Write};

use anyhow::{Context, bail, ensure};
use cryo_checkpoint::oci::auth::received;
use cryo_checkpoint::oci::model::Descriptor;
use cryo_checkpoint::oci::url::Url;
use http::{Method, StatusCode};

use super::Sink;
use super::http::{Answer, Patience, header, refusal};
use super::registry::Registry;

/// Bytes that are kept until the registry has them; its own wish counts if it is larger.
const CHUNK_BYTES: usize = 16 << 20;

/// The largest wish that is granted.
const MAX_CHUNK_BYTES: usize = 128 << 20;

const BINARY: (&str, &str) = ("content-type", "application/octet-stream");

/// The upload of one blob.
pub(super) struct Upload<'a> {
    registry: &'a mut Registry,
    /// Where the registry wants the next chunk, once it was asked.
    location: Option<Url>,
    chunk_bytes: usize,
    /// What the registry has not taken yet.
    buffer: Vec<u8>,
    /// What it has.
    taken: u64,
    committed: bool,
}

impl<'a> Upload<'a> {
    pub(super) fn new(registry: &'a mut Registry) -> Self {
        Self {
            registry,
            location: None,
            chunk_bytes: CHUNK_BYTES,
            buffer: Vec::new(),
            taken: 0,
            committed: false,
        }
    }

    /// Begins the upload; gives the place for what comes first.
    fn start(&mut self) -> anyhow::Result<Url> {
        let mut patience = Patience::default();
        let url = self.registry.url("blobs/uploads/")?;
        let mut answer = loop {
            let answer = self.registry.request(&Method::POST, &url, &[], Some(&[]));
            match answer {
                Ok(mut answer) if answer.status().is_server_error() => {
                    patience.wait(refusal("an upload", &mut answer))?;
                }
                Ok(answer) => break answer,
                Err(error) => patience.wait(error)?,
            }
        };
        if answer.status() != StatusCode::ACCEPTED {
            return Err(refusal("an upload", &mut answer));
        }
        let wish = header(&answer, "oci-chunk-min-length").and_then(|wish| wish.parse().ok());
        self.chunk_bytes = wish.unwrap_or(0).clamp(self.chunk_bytes, MAX_CHUNK_BYTES);
        let next = next(&url, &answer)?.context("the registry does not say where to upload to")?;
        self.location = Some(next.clone());
        Ok(next)
    }

    /// Sends all that is kept as one chunk, or what of it the registry lacks after a connection
    /// broke.
    fn send(&mut self) -> anyhow::Result<()> {
        let mut location = match &self.location {
            Some(location) => location.clone(),
            None => self.start()?,
        };
        let mut patience = Patience::default();
        while !self.buffer.is_empty() {
            let last = self.taken + self.buffer.len() as u64 - 1;
            let range = format!("{}-{last}", self.taken);
            let headers = [BINARY, ("content-range", range.as_str())];
            let answer =
                self.registry
                    .request(&Method::PATCH, &location, &headers, Some(&self.buffer));
            let error = match answer {
                Ok(answer) if answer.status().is_success() => {
                    self.taken += self.buffer.len() as u64;
                    self.buffer.clear();
                    location = next(&location, &answer)?.unwrap_or(location);
                    break;
                }
                Ok(mut answer) => refusal("the upload of a chunk", &mut answer),
                Err(error) => error,
            };
            patience.wait(error)?;
            let (at, has) = self.status(&location)?;
            location = at;
            let new = has
                .checked_sub(self.taken)
                .filter(|new| *new <= self.buffer.len() as u64)
                .with_context(|| {
                    format!(
                        "the registry has {has} bytes of an upload that it took {} of",
                        self.taken
                    )
                })?;
            if new > 0 {
                patience.progress();
            }
            self.buffer.drain(..usize::try_from(new)?);
            self.taken = has;
        }
        self.location = Some(location);
        Ok(())
    }

    /// How much the registry has, and where it wants the rest.
    fn status(&mut self, location: &Url) -> anyhow::Result<(Url, u64)> {
        let mut patience = Patience::default();
        loop {
            let error = match self.registry.request(&Method::GET, location, &[], None) {
                Ok(answer) if answer.status().is_success() => {
                    // Without a range it has nothing yet.
                    let has = header(&answer, "range").map_or(Some(0), received);
                    let has = has.context("the registry does not say how much it has")?;
                    return Ok((
                        next(location, &answer)?.unwrap_or_else(|| location.clone()),
                        has,
                    ));
                }
                Ok(mut answer) if answer.status() == StatusCode::NOT_FOUND => {
                    return Err(refusal("the upload", &mut answer)
                        .context("the registry has forgotten the upload: push again, what is there already is not sent twice"));
                }
                Ok(mut answer) => refusal("the state of the upload", &mut answer),
                Err(error) => error,
            };
            patience.wait(error)?;
        }
    }

    /// Closes the upload; what is still kept goes with it, so that a small blob is one request.
    fn close(&mut self, blob: &Descriptor) -> anyhow::Result<()> {
        if self.location.is_some() {
            self.send()?;
        }
        let mut patience = Patience::default();
        loop {
            let location = match &self.location {
                Some(location) => location.clone(),
                None => self.start()?,
            };
            let url = location.with_query("digest", &blob.digest.to_string());
            let error =
                match self
                    .registry
                    .request(&Method::PUT, &url, &[BINARY], Some(&self.buffer))
                {
                    Ok(answer) if answer.status().is_success() => return Ok(()),
                    Ok(mut answer) => {
                        refusal(&format!("the upload of {}", blob.digest), &mut answer)
                    }
                    Err(error) => error,
                };
            patience.wait(error)?;
            // The answer may have been lost and not the request.
            if self.registry.has_blob(&blob.digest)? {
                return Ok(());
            }
            if self.taken == 0 {
                self.location = None;
            }
        }
    }
}

/// Where an answer leads.
fn next(from: &Url, answer: &Answer) -> anyhow::Result<Option<Url>> {
    Ok(match header(answer, "location") {
        Some(location) => Some(from.join(location)?),
        None => None,
    })
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= self.chunk_bytes {
            self.send().map_err(io::Error::other)?;
        }
        let room = self.chunk_bytes.saturating_sub(self.buffer.len());
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Upload<'_> {
    fn commit(mut self: Box<Self>, blob: &Descriptor) -> anyhow::Result<()> {
        let length = self.taken + self.buffer.len() as u64;
        ensure!(
            length == blob.size,
            "{length} bytes were uploaded instead of {}",
            blob.size
        );
        self.close(blob)?;
        self.committed = true;
        if !self.registry.has_blob(&blob.digest)? {
            bail!("the registry took {} and does not have it", blob.digest);
        }
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if let (false, Some(location)) = (self.committed, self.location.take()) {
            // What the registry does not delete now, it deletes in its own time.
            let _ = self.registry.request(&Method::DELETE, &location, &[], None);
        }
    }
}
