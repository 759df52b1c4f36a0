//! A repository of a registry, by the OCI distribution specification.

use std::io::{self, Read};

use anyhow::{Context, bail, ensure};
use cryo_checkpoint::oci::Digest;
use cryo_checkpoint::oci::auth::{self, Challenge};
use cryo_checkpoint::oci::model::{self, Descriptor};
use cryo_checkpoint::oci::reference::Reference;
use cryo_checkpoint::oci::url::Url;
use http::{Method, StatusCode};

use super::http::{Answer, Client, Distrusted, Patience, body, header, refusal};
use super::login::{self, Login, Wanted};
use super::upload::Upload;
use super::{Access, Sink, Source, Target, verify_bytes};

/// Most redirects in a row.
const MAX_REDIRECTS: usize = 5;

/// The documents that we know.
const DOCUMENTS: [&str; 4] = [
    model::INDEX,
    model::MANIFEST,
    model::DOCKER_LIST,
    model::DOCKER_MANIFEST,
];

/// One repository, and the rights that we have there.
pub(super) struct Registry {
    client: Client,
    access: Access,
    name: Reference,
    base: Url,
    scope: String,
    /// The value of the header of that name, once the registry wanted one.
    authorization: Option<String>,
    /// What was written last, which gets the name.
    last: Option<(Descriptor, Vec<u8>)>,
}

impl Registry {
    pub(super) fn new(access: &Access, name: &Reference, push: bool) -> anyhow::Result<Self> {
        let client = Client::new(access.ca.as_deref())?;
        let base = base(access, name, &client)?;
        let actions = if push { "pull,push" } else { "pull" };
        Ok(Self {
            client,
            access: access.clone(),
            name: name.clone(),
            base,
            scope: format!("repository:{}:{actions}", name.repository),
            authorization: None,
            last: None,
        })
    }

    /// The address of something in the repository.
    pub(super) fn url(&self, rest: &str) -> anyhow::Result<Url> {
        Ok(self
            .base
            .join(&format!("/v2/{}/{rest}", self.name.repository))?)
    }

    /// Sends a request, with our rights if it goes to the registry itself, and gets them if it
    /// wants them.
    pub(super) fn request(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> anyhow::Result<Answer> {
        let answer = self.send(method, url, headers, body)?;
        if answer.status() != StatusCode::UNAUTHORIZED || !self.base.same_origin(url) {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all("www-authenticate");
        let challenge = challenges
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let Some(challenge) = challenge else {
            return Ok(answer);
        };
        let login = login::find(&self.access, &self.name)?;
        let Some(authorization) = self.rights(&challenge, login.as_ref())? else {
            return Ok(answer);
        };
        self.authorization = Some(authorization);
        let answer = self.send(method, url, headers, body)?;
        match (answer.status(), login) {
            (StatusCode::UNAUTHORIZED, Some(login)) => {
                Err(login::refused(&self.name.to_string(), &login))
            }
            _ => Ok(answer),
        }
    }

    /// Sends a request, with our rights if it goes to the registry itself.
    fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> anyhow::Result<Answer> {
        let mut headers = headers.to_vec();
        if let (true, Some(authorization)) = (self.base.same_origin(url), &self.authorization) {
            headers.push(("authorization", authorization));
        }
        self.client.send(method, url, &headers, body)
    }

    /// What the registry wants to see; `None` if we have no credentials and it wants some.
    fn rights(
        &self,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> anyhow::Result<Option<String>> {
        match challenge {
            Challenge::Basic => {
                ensure!(
                    self.base.is_private() || self.access.plain_http,
                    "{} wants a password, and is not encrypted",
                    self.base.host()
                );
                Ok(login.and_then(|login| login.credentials.basic()))
            }
            Challenge::Bearer {
                realm,
                service,
                scope: _,
            } => {
                let wanted = Wanted {
                    realm,
                    service: service.as_deref(),
                    scope: &self.scope,
                    plain_http: self.access.plain_http,
                };
                let token = login::token(&self.client, &wanted, login)?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    /// Sends a request that changes nothing, again if the connection breaks, and follows where
    /// it leads.
    fn get(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut patience = Patience::default();
        loop {
            match self.get_once(method, url, headers) {
                Ok(mut answer) if answer.status().is_server_error() => {
                    let what = format!("{method} of {}", self.name);
                    patience.wait(refusal(&what, &mut answer))?;
                }
                Ok(answer) => return Ok(answer),
                Err(error) => patience.wait(error)?,
            }
        }
    }

    fn get_once(
        &mut self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.request(method, &url, headers, None)?;
            match header(&answer, "location") {
                Some(location) if answer.status().is_redirection() => url = url.join(location)?,
                _ => return Ok(answer),
            }
        }
        bail!("{} leads on more than {MAX_REDIRECTS} times", self.name)
    }

    fn document_at(&mut self, version: &str) -> anyhow::Result<(Option<String>, Vec<u8>)> {
        let what = format!("{} ({version})", self.name);
        let accept = DOCUMENTS.join(", ");
        let url = self.url(&format!("manifests/{version}"))?;
        let mut answer = self.get(&Method::GET, &url, &[("accept", &accept)])?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(&what, &mut answer));
        }
        let bytes = body(&mut answer, model::MAX_DOCUMENT_BYTES).context(what)?;
        Ok((header(&answer, "content-type").map(str::to_owned), bytes))
    }

    /// The stream of a blob from `offset` on.
    fn blob_from(
        &mut self,
        blob: &Descriptor,
        offset: u64,
    ) -> anyhow::Result<Box<dyn Read + Send>> {
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let range = format!("bytes={offset}-");
        let headers: &[(&str, &str)] = match offset {
            0 => &[],
            _ => &[("range", &range)],
        };
        let mut answer = self.get(&Method::GET, &url, headers)?;
        let from = header(&answer, "content-range").and_then(auth::first_byte);
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if from == Some(offset) => {}
            // A registry without ranges begins anew.
            StatusCode::OK => {
                let mut reader = answer.into_body().into_reader();
                io::copy(&mut (&mut reader).take(offset), &mut io::sink())?;
                return Ok(Box::new(reader));
            }
            StatusCode::PARTIAL_CONTENT => {
                bail!("the registry gives another part than it was asked for")
            }
            _ => return Err(refusal(&blob.digest.to_string(), &mut answer)),
        }
        Ok(Box::new(answer.into_body().into_reader()))
    }

    /// Whether a blob is there.
    pub(super) fn has_blob(&mut self, digest: &Digest) -> anyhow::Result<bool> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let mut answer = self.get(&Method::HEAD, &url, &[])?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refusal(&format!("{}: {digest}", self.name), &mut answer)),
        }
    }

    fn put(&mut self, version: &str, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
        let url = self.url(&format!("manifests/{version}"))?;
        let headers = [("content-type", descriptor.media_type.as_str())];
        let what = format!("{} ({version})", self.name);
        let mut patience = Patience::default();
        loop {
            let error = match self.request(&Method::PUT, &url, &headers, Some(bytes)) {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(mut answer) => refusal(&what, &mut answer),
                Err(error) => error,
            };
            patience.wait(error)?;
        }
    }
}

/// Where a registry is: one on this machine may speak HTTP alone. One that speaks HTTPS with a
/// certificate that is not trusted is not asked by HTTP.
fn base(access: &Access, name: &Reference, client: &Client) -> anyhow::Result<Url> {
    let at = |secure| Url::new(secure, name.host(), "/v2/");
    if access.plain_http {
        return Ok(at(false));
    }
    if name.is_local()
        && let Err(error) = client.send(&Method::GET, &at(true), &[], None)
    {
        return match error.downcast_ref::<Distrusted>() {
            Some(_) => Err(error),
            None => Ok(at(false)),
        };
    }
    Ok(at(true))
}

impl Source for Registry {
    fn root(&mut self) -> anyhow::Result<(Descriptor, Vec<u8>)> {
        let version = self.name.version();
        let (stated, bytes) = self.document_at(&version)?;
        let document = model::Document::parse(stated.as_deref(), &bytes)
            .with_context(|| self.name.to_string())?;
        let own = match &document {
            model::Document::Index(index) => index.media_type.as_deref(),
            model::Document::Manifest(manifest) => manifest.media_type.as_deref(),
        };
        let media_type = own.or(stated.as_deref()).unwrap_or(model::MANIFEST);
        let descriptor = Descriptor::of(media_type, &bytes);
        if let Some(digest) = self.name.digest {
            verify_bytes(
                &Descriptor {
                    digest,
                    ..descriptor.clone()
                },
                &bytes,
            )?;
        }
        Ok((descriptor, bytes))
    }

    fn blob(&mut self, blob: &Descriptor, offset: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        if DOCUMENTS.contains(&blob.media_type.as_str()) {
            let (_, mut bytes) = self.document_at(&blob.digest.to_string())?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            bytes.drain(..offset.min(bytes.len()));
            return Ok(Box::new(io::Cursor::new(bytes)));
        }
        Ok(Box::new(Download {
            stream: self.blob_from(blob, offset)?,
            registry: self,
            blob: blob.clone(),
            offset,
            patience: Patience::default(),
        }))
    }
}

/// A blob's bytes. A connection that breaks is made anew, for what is left.
struct Download<'a> {
    registry: &'a mut Registry,
    blob: Descriptor,
    stream: Box<dyn Read + Send>,
    offset: u64,
    patience: Patience,
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.stream.read(buffer) {
                Ok(0) if self.offset < self.blob.size && !buffer.is_empty() => {
                    io::ErrorKind::UnexpectedEof.into()
                }
                Ok(read) => {
                    self.offset += read as u64;
                    if read > 0 {
                        self.patience.progress();
                    }
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let context = format!(
                "the connection broke after {} of {} bytes",
                self.offset, self.blob.size
            );
            self.patience
                .wait(anyhow::Error::from(error).context(context))
                .map_err(io::Error::other)?;
            self.stream = self
                .registry
                .blob_from(&self.blob, self.offset)
                .map_err(io::Error::other)?;
        }
    }
}

impl Target for Registry {
    fn has(&mut self, blob: &Descriptor) -> anyhow::Result<bool> {
        self.has_blob(&blob.digest)
    }

    fn begin(&mut self, expected: Option<&Descriptor>) -> anyhow::Result<Box<dyn Sink + '_>> {
        Ok(Box::new(match expected {
            Some(blob) => Upload::go_on(self, blob)?,
            None => Upload::new(self),
        }))
    }

    fn begin_new(&mut self, made_of: &Digest) -> anyhow::Result<Box<dyn Sink + '_>> {
        Ok(Box::new(Upload::go_on_with(self, made_of, u64::MAX)?))
    }

    fn document(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> anyhow::Result<()> {
        verify_bytes(descriptor, bytes)?;
        self.put(&descriptor.digest.to_string(), descriptor, bytes)?;
        self.last = Some((descriptor.clone(), bytes.to_vec()));
        Ok(())
    }

    fn name(&mut self, root: &Descriptor) -> anyhow::Result<()> {
        let last = self.last.take();
        let (descriptor, bytes) = last
            .filter(|(last, _)| last.digest == root.digest)
            .context("the image was not written")?;
        self.put(&self.name.version(), &descriptor, &bytes)
    }
}
