//! A blob on its way to a registry, in chunks of which each can be sent again, by a later process
//! too.

use std::io::{self, Write};

use anyhow::{Context, anyhow};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::auth::received;
use cryo_checkpoint::oci::model::Descriptor;
use cryo_checkpoint::oci::url::Url;
use http::{Method, StatusCode};

use super::begun::{Begun, Note};
use super::http::{Answer, Patience, header, refusal};
use super::registry::Registry;
use super::{Broken, Sink};

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
    /// What it had when we began.
    offset: u64,
    /// For a later process; none for what is sent in one request.
    note: Option<Note>,
    committed: bool,
}

/// The registry does not know the upload any more, or not as far as we do: only all of the blob
/// can be sent anew.
#[derive(Debug, thiserror::Error)]
#[error("the registry has forgotten the upload")]
pub(super) struct Forgotten;

impl<'a> Upload<'a> {
    pub(super) fn new(registry: &'a mut Registry) -> Self {
        Self {
            registry,
            location: None,
            chunk_bytes: CHUNK_BYTES,
            buffer: Vec::new(),
            taken: 0,
            offset: 0,
            note: None,
            committed: false,
        }
    }

    /// The upload of a known blob: goes on with what an earlier process began.
    pub(super) fn go_on(registry: &'a mut Registry, blob: &Descriptor) -> anyhow::Result<Self> {
        // What is sent in one request has nothing to go on with.
        if blob.size <= CHUNK_BYTES as u64 {
            return Ok(Self::new(registry));
        }
        Self::go_on_with(registry, &blob.digest, blob.size)
    }

    /// The same of a blob that a digest stands for, its own or not, of at most so many bytes.
    pub(super) fn go_on_with(
        registry: &'a mut Registry,
        stands_for: &Digest,
        most: u64,
    ) -> anyhow::Result<Self> {
        let repository = registry.url("")?;
        let note = Note::open(&repository.to_string(), stands_for);
        let begun = note.as_ref().and_then(Note::read);
        let mut this = Self::new(registry);
        this.note = note;
        let Some(begun) = begun else {
            return Ok(this);
        };
        let Ok(location) = repository.join(&begun.location) else {
            return Ok(this);
        };
        match this.status(&location) {
            Ok((location, has)) if has <= most => {
                this.location = Some(location);
                this.chunk_bytes = begun.chunk_bytes.clamp(CHUNK_BYTES, MAX_CHUNK_BYTES);
                (this.taken, this.offset) = (has, has);
            }
            // More than there is of the blob cannot be of it.
            Ok(_) => {}
            Err(error) if error.is::<Forgotten>() => {}
            Err(error) => return Err(error),
        }
        Ok(this)
    }

    /// The registry wants the next chunk there.
    fn is_at(&mut self, location: Url) {
        if let Some(note) = &self.note {
            note.write(&Begun {
                location: location.to_string(),
                chunk_bytes: self.chunk_bytes,
            });
        }
        self.location = Some(location);
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
        self.is_at(next.clone());
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
                Ok(answer) if is_gone(&answer) => return Err(forgotten("the upload of a chunk")),
                Ok(mut answer) => refusal("the upload of a chunk", &mut answer),
                Err(error) => error,
            };
            patience.wait(error)?;
            let (at, has) = self.status(&location)?;
            location = at;
            let new = has
                .checked_sub(self.taken)
                .filter(|new| *new <= self.buffer.len() as u64)
                .ok_or_else(|| {
                    let taken = self.taken;
                    forgotten(&format!(
                        "the registry has {has} bytes of an upload that it took {taken} of"
                    ))
                })?;
            if new > 0 {
                patience.progress();
            }
            self.buffer.drain(..usize::try_from(new)?);
            self.taken = has;
        }
        self.is_at(location);
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
                Ok(answer) if is_gone(&answer) => return Err(forgotten("the state of the upload")),
                Ok(mut answer) => refusal("the state of the upload", &mut answer),
                Err(error) => error,
            };
            patience.wait(error)?;
        }
    }

    /// Closes the upload; what is still kept goes with it, so that a small blob is one request.
    fn close(&mut self, blob: &Descriptor) -> Result<(), Broken> {
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
                    Ok(answer) if is_gone(&answer) => forgotten("the end of the upload"),
                    Ok(mut answer) => {
                        let what = format!("the upload of {}", blob.digest);
                        let error = refusal(&what, &mut answer);
                        if answer.status() == StatusCode::BAD_REQUEST {
                            // It has all of it, and that is not the blob.
                            return Err(Broken::Content(error));
                        }
                        error
                    }
                    Err(error) => error,
                };
            let waited = patience.wait(error);
            // The answer may have been lost and not the request.
            if self.registry.has_blob(&blob.digest).unwrap_or(false) {
                return Ok(());
            }
            waited?;
            if self.taken == 0 {
                self.location = None;
            }
        }
    }
}

/// Whether an answer of an upload's address means that there is no upload, or none that can be
/// gone on with: the reference implementation says of one that was cut within a chunk that it is
/// invalid, and drops it.
fn is_gone(answer: &Answer) -> bool {
    matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::GONE)
}

fn forgotten(what: &str) -> anyhow::Error {
    anyhow::Error::from(Forgotten).context(what.to_owned())
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
    fn offset(&self) -> u64 {
        self.offset
    }

    fn commit(mut self: Box<Self>, blob: &Descriptor) -> Result<(), Broken> {
        let length = self.taken + self.buffer.len() as u64;
        if length != blob.size {
            self.discard();
            return Err(Broken::Content(anyhow!(
                "{length} bytes were uploaded instead of {}",
                blob.size
            )));
        }
        match self.close(blob) {
            Ok(()) => {}
            Err(Broken::Content(error)) => {
                self.discard();
                return Err(Broken::Content(error));
            }
            other => return other,
        }
        self.committed = true;
        if let Some(note) = self.note.take() {
            note.remove();
        }
        if !self.registry.has_blob(&blob.digest)? {
            return Err(anyhow!("the registry took {} and does not have it", blob.digest).into());
        }
        Ok(())
    }

    fn discard(mut self: Box<Self>) {
        if let Some(note) = self.note.take() {
            note.remove();
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let Some(location) = self.location.take() else {
            if let Some(note) = self.note.take() {
                note.remove();
            }
            return;
        };
        if self.note.is_none() {
            // What the registry does not delete now, it deletes in its own time.
            let _ = self.registry.request(&Method::DELETE, &location, &[], None);
        }
    }
}
