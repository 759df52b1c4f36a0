//! A registry on loopback, in memory, by HTTP or HTTPS, that can misbehave.

pub(crate) mod authority;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cryo_checkpoint::oci::Digest;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What it shall do wrong, and want.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// So many times, a chunk is taken by half and the connection broken.
    pub(crate) cut_chunks: usize,
    /// After so many chunks, the next is taken by half and never answered.
    pub(crate) hold_chunk: Option<usize>,
    /// Of an upload that was cut within a chunk, nothing is known any more.
    pub(crate) forgetful: bool,
    /// So many times, an upload is closed and the answer not sent.
    pub(crate) cut_answers: usize,
    /// So many times, a blob is sent by half and the connection broken.
    pub(crate) cut_blobs: usize,
    /// A blob is sent by half, and then nothing.
    pub(crate) hold_blob: bool,
    /// After such a cut, so many requests for blobs are answered by 503.
    pub(crate) then_busy: usize,
    /// Ranges are not known.
    pub(crate) no_ranges: bool,
    /// Blobs are sent with a byte changed.
    pub(crate) corrupt: bool,
    /// What manifests are instead of what they are.
    pub(crate) manifest: Option<Vec<u8>>,
    /// Blobs are somewhere else.
    pub(crate) redirect: Option<String>,
    /// The password of the user `me`, as is or for a token.
    pub(crate) password: Option<(&'static str, bool)>,
    /// How many requests a token is good for, if not for all.
    pub(crate) token_uses: Option<usize>,
    /// A token of a helper's, in place of the password.
    pub(crate) identity: Option<&'static str>,
}

#[derive(Debug, Default)]
struct State {
    behaviour: Behaviour,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    uploads: HashMap<String, Vec<u8>>,
    log: Vec<String>,
    taken: usize,
    begun: usize,
    /// Tokens that were given, and uses of the last.
    tokens: (usize, usize),
    /// A request waits for good.
    held: bool,
}

/// How long the other side may take to come to a point.
const LIMIT: Duration = Duration::from_secs(300);

/// The registry; it answers until the process ends.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    /// Its address.
    pub(crate) host: String,
    secure: bool,
}

/// What is to be sent.
enum Answer {
    Whole(String, Vec<u8>),
    /// Nothing: the connection breaks.
    Nothing,
    /// This, and then nothing, with the connection open.
    Held(String, Vec<u8>),
}

impl Registry {
    /// One by HTTP.
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        Self::start(behaviour, None)
    }

    /// One by HTTPS.
    pub(crate) fn secure(behaviour: Behaviour, config: Arc<ServerConfig>) -> Self {
        Self::start(behaviour, Some(config))
    }

    fn start(behaviour: Behaviour, config: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            state: Arc::default(),
            host: listener.local_addr().unwrap().to_string(),
            secure: config.is_some(),
        };
        this.behave(behaviour);
        let registry = this.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (registry, config) = (registry.clone(), config.clone());
                let mut stream = stream.unwrap();
                std::thread::spawn(move || match config {
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        registry.serve(&mut StreamOwned::new(connection, stream));
                    }
                    None => registry.serve(&mut stream),
                });
            }
        });
        this
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        let mut state = self.state.lock().unwrap();
        state.behaviour = behaviour;
        state.held = false;
    }

    /// The requests since the last call: method, path, range, and whether they were authorized.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// How many bytes of blobs were taken in all uploads together.
    pub(crate) fn taken(&self) -> usize {
        self.state.lock().unwrap().taken
    }

    /// The bytes of all blobs together.
    pub(crate) fn stored(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.blobs.values().map(Vec::len).sum()
    }

    /// The names that manifests have.
    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let mut names: Vec<String> = state.manifests.keys().cloned().collect();
        names.sort();
        names
    }

    /// Waits until a request is held.
    pub(crate) fn wait_held(&self) {
        wait_for("a request that is held", || self.state.lock().unwrap().held);
    }

    /// Changes a byte of each upload that is not complete.
    pub(crate) fn damage_uploads(&self) {
        let mut state = self.state.lock().unwrap();
        for upload in state.uploads.values_mut() {
            upload.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
    }

    fn serve(&self, stream: &mut (impl Read + Write)) {
        let Some(request) = Request::read(stream) else {
            return;
        };
        let (head, body, held) = match self.answer(&request) {
            Answer::Whole(head, body) => (head, body, false),
            Answer::Held(head, body) => (head, body, true),
            Answer::Nothing => return,
        };
        if !head.is_empty() {
            let length = if head.contains("Content-Length") {
                String::new()
            } else {
                format!("Content-Length: {}\r\n", body.len())
            };
            let head = format!("HTTP/1.1 {head}{length}Connection: close\r\n\r\n");
            // The other side may have had enough.
            let _ = stream.write_all(head.as_bytes());
            if request.method != "HEAD" {
                let _ = stream.write_all(&body);
            }
            let _ = stream.flush();
        }
        if held {
            self.state.lock().unwrap().held = true;
            loop {
                std::thread::park();
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        self.note(state, request);
        match self.unknown(state, request) {
            Some((head, body)) => Answer::Whole(head, body),
            None => content(state, request),
        }
    }

    fn note(&self, state: &mut State, request: &Request) {
        let mut entry = format!("{} {}", request.method, request.path);
        if let Some(range) = request.header("range") {
            entry.push_str(&format!(" {range}"));
        }
        if request.header("authorization").is_some() {
            entry.push_str(" authorized");
        }
        state.log.push(entry);
    }

    /// Who one has to be, and is not.
    fn unknown(&self, state: &mut State, request: &Request) -> Option<(String, Vec<u8>)> {
        let authorization = request.header("authorization");
        let (password, for_token) = state.behaviour.password?;
        let basic = format!("Basic {}", base64(format!("me:{password}").as_bytes()));
        if request.path.starts_with("/token") {
            let form = String::from_utf8(request.body.clone()).unwrap();
            let is_known = match state.behaviour.identity {
                Some(identity) => {
                    request.method == "POST"
                        && form.contains("grant_type=refresh_token")
                        && form.contains(&format!("refresh_token={identity}"))
                }
                None => authorization == Some(&basic),
            };
            let wanted = format!("{}{form}", request.path);
            let is_for_this =
                wanted.contains("service=here") && wanted.contains("scope=repository:cp:pull");
            return Some(if !is_known {
                ("401 Unauthorized\r\n".into(), Vec::new())
            } else if !is_for_this {
                ("400 Bad Request\r\n".into(), Vec::new())
            } else {
                state.tokens = (state.tokens.0 + 1, 0);
                let token = format!(r#"{{"token":"T{}"}}"#, state.tokens.0);
                ("200 OK\r\n".into(), token.into_bytes())
            });
        }
        let token = format!("Bearer T{}", state.tokens.0);
        let is_known = match (for_token, state.behaviour.token_uses) {
            (false, _) => authorization == Some(&basic),
            (true, None) => authorization == Some(&token),
            (true, Some(uses)) => authorization == Some(&token) && state.tokens.1 < uses,
        };
        if is_known {
            state.tokens.1 += 1;
            return None;
        }
        let scheme = if self.secure { "https" } else { "http" };
        let challenge = if for_token {
            let host = &self.host;
            format!(
                "Bearer realm=\"{scheme}://{host}/token\",service=\"here\",scope=\"repository:cp:pull\""
            )
        } else {
            "Basic realm=\"here\"".to_owned()
        };
        Some((
            format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n"),
            br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#.to_vec(),
        ))
    }
}

/// What there is.
fn content(state: &mut State, request: &Request) -> Answer {
    let line = |status: &str| Answer::Whole(format!("{status}\r\n"), Vec::new());
    let path = request.path.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        (_, [""]) => line("200 OK"),
        ("POST", [_, "blobs", "uploads", ""]) => {
            state.begun += 1;
            let id = state.begun.to_string();
            state.uploads.insert(id.clone(), Vec::new());
            line(&format!("202 Accepted\r\nLocation: {path}{id}"))
        }
        ("DELETE", [_, "blobs", "uploads", _]) => line("204 No Content"),
        (method, [_, "blobs", "uploads", id]) => {
            let Some(upload) = state.uploads.get_mut(*id) else {
                return line("404 Not Found");
            };
            if method == "GET" && state.behaviour.forgetful && !upload.is_empty() {
                state.uploads.remove(*id);
                return line("404 Not Found");
            }
            if method == "GET" {
                let last = upload.len().saturating_sub(1);
                return line(&format!(
                    "204 No Content\r\nRange: 0-{last}\r\nLocation: {path}"
                ));
            }
            if let Some(range) = request.header("content-range")
                && range.split('-').next().unwrap() != upload.len().to_string()
            {
                return line("416 Range Not Satisfiable");
            }
            if method == "PATCH" {
                let mut body = request.body.as_slice();
                let behaviour = &mut state.behaviour;
                let cut = behaviour.cut_chunks > 0;
                behaviour.cut_chunks = behaviour.cut_chunks.saturating_sub(1);
                let hold = behaviour.hold_chunk == Some(0);
                behaviour.hold_chunk = behaviour.hold_chunk.map(|n| n.saturating_sub(1));
                if cut || hold {
                    body = &body[..body.len() / 2];
                }
                upload.extend_from_slice(body);
                state.taken += body.len();
                let last = upload.len() - 1;
                return if hold {
                    Answer::Held(String::new(), Vec::new())
                } else if cut {
                    Answer::Nothing
                } else {
                    line(&format!(
                        "202 Accepted\r\nRange: 0-{last}\r\nLocation: {path}"
                    ))
                };
            }
            upload.extend_from_slice(&request.body);
            state.taken += request.body.len();
            let digest = Digest::of(upload).to_string();
            if !request.path.ends_with(&format!("digest={digest}")) {
                return line("400 Bad Request");
            }
            let blob = std::mem::take(upload);
            state.blobs.insert(digest, blob);
            if state.behaviour.cut_answers > 0 {
                state.behaviour.cut_answers -= 1;
                return Answer::Nothing;
            }
            line("201 Created")
        }
        ("GET" | "HEAD", [_, "blobs", digest]) => {
            let Some(blob) = state.blobs.get(*digest) else {
                return line("404 Not Found");
            };
            let behaviour = &mut state.behaviour;
            if let (Some(to), "GET") = (&behaviour.redirect, request.method.as_str()) {
                return line(&format!("307 Temporary Redirect\r\nLocation: {to}{path}"));
            }
            if behaviour.cut_blobs == 0 && behaviour.then_busy > 0 {
                behaviour.then_busy -= 1;
                return line("503 Service Unavailable");
            }
            let from = request
                .header("range")
                .filter(|_| !behaviour.no_ranges)
                .map_or(0, |range| range[6..range.len() - 1].parse().unwrap());
            let mut body = blob[from..].to_vec();
            if behaviour.corrupt {
                body[0] ^= 1;
            }
            let mut head = match from {
                0 => "200 OK\r\n".to_owned(),
                _ => format!(
                    "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
                    blob.len() - 1,
                    blob.len()
                ),
            };
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
            if request.method == "GET" && behaviour.cut_blobs > 0 && body.len() > 1000 {
                behaviour.cut_blobs -= 1;
                body.truncate(body.len() / 2);
            }
            if request.method == "GET" && behaviour.hold_blob && body.len() > 1000 {
                body.truncate(body.len() / 2);
                return Answer::Held(head, body);
            }
            Answer::Whole(head, body)
        }
        ("PUT", [_, "manifests", name]) => {
            let media_type = request.header("content-type").unwrap().to_owned();
            let manifest = (media_type, request.body.clone());
            state.manifests.insert((*name).to_owned(), manifest);
            line("201 Created")
        }
        (_, [_, "manifests", name]) => {
            let Some((media_type, bytes)) = state.manifests.get(*name) else {
                return Answer::Whole(
                    "404 Not Found\r\n".into(),
                    br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#.to_vec(),
                );
            };
            let bytes = state.behaviour.manifest.as_ref().unwrap_or(bytes);
            Answer::Whole(
                format!("200 OK\r\nContent-Type: {media_type}\r\n"),
                bytes.clone(),
            )
        }
        _ => line("404 Not Found"),
    }
}

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// `None` for what is no request: whether we speak TLS is tried first.
    fn read(stream: &mut (impl Read + Write)) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).ok()?;
        let line = String::from_utf8(line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Self {
            method,
            path,
            headers,
            body: Vec::new(),
        };
        let length = request.header("content-length").unwrap_or("0");
        let length = length.parse().unwrap();
        if request.header("expect").is_some() {
            let out = reader.get_mut();
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            out.flush().ok()?;
        }
        reader.take(length).read_to_end(&mut request.body).ok()?;
        Some(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As `Authorization` has it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let mut bits = [0u8; 3];
        bits[..three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for n in 0..4 {
            out.push(if n <= three.len() {
                char::from(LETTERS[(bits >> (18 - 6 * n)) as usize & 63])
            } else {
                '='
            });
        }
    }
    out
}
