//! A registry on loopback, in memory, that can misbehave.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use cryo_checkpoint::oci::Digest;

/// What it shall do wrong, and want.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// So many times, a chunk is taken by half and the connection broken.
    pub(crate) cut_chunks: usize,
    /// So many times, an upload is closed and the answer not sent.
    pub(crate) cut_answers: usize,
    /// So many times, a blob is sent by half and the connection broken.
    pub(crate) cut_blobs: usize,
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
}

#[derive(Debug, Default)]
struct State {
    behaviour: Behaviour,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    uploads: HashMap<String, Vec<u8>>,
    log: Vec<String>,
    taken: usize,
}

/// The registry; it answers until the process ends.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    /// Its address.
    pub(crate) host: String,
}

impl Registry {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            state: Arc::default(),
            host: listener.local_addr().unwrap().to_string(),
        };
        this.behave(behaviour);
        let registry = this.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let registry = registry.clone();
                std::thread::spawn(move || registry.serve(&stream.unwrap()));
            }
        });
        this
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
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

    fn serve(&self, stream: &TcpStream) {
        let Some(request) = Request::read(stream) else {
            return;
        };
        let answer = self.answer(&request);
        let mut out = stream;
        if let Some((head, body)) = answer {
            let length = if head.contains("Content-Length") {
                String::new()
            } else {
                format!("Content-Length: {}\r\n", body.len())
            };
            let head = format!("HTTP/1.1 {head}{length}Connection: close\r\n\r\n");
            // The other side may have had enough.
            let _ = out.write_all(head.as_bytes());
            if request.method != "HEAD" {
                let _ = out.write_all(&body);
            }
        }
    }

    /// The answer, or none if the connection is to break.
    fn answer(&self, request: &Request) -> Option<(String, Vec<u8>)> {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let line = |status: &str| Some((format!("{status}\r\n"), Vec::new()));
        let authorization = request.header("authorization");
        let mut entry = format!("{} {}", request.method, request.path);
        if let Some(range) = request.header("range") {
            entry.push_str(&format!(" {range}"));
        }
        if authorization.is_some() {
            entry.push_str(" authorized");
        }
        state.log.push(entry);
        if let Some((password, for_token)) = state.behaviour.password {
            let basic = format!("Basic {}", base64(&format!("me:{password}")));
            if request.path.starts_with("/token") {
                return if authorization == Some(&basic) {
                    Some(("200 OK\r\n".into(), br#"{"token":"T"}"#.to_vec()))
                } else {
                    line("401 Unauthorized")
                };
            }
            let wanted = if for_token { "Bearer T" } else { &basic };
            if authorization != Some(wanted) {
                let challenge = if for_token {
                    let host = &self.host;
                    format!("Bearer realm=\"http://{host}/token\",service=\"here\"")
                } else {
                    "Basic realm=\"here\"".to_owned()
                };
                return Some((
                    format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n"),
                    br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#.to_vec(),
                ));
            }
        }
        let path = request.path.split('?').next().unwrap();
        let parts: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
        match (request.method.as_str(), parts.as_slice()) {
            (_, [""]) => line("200 OK"),
            ("POST", [_, "blobs", "uploads", ""]) => {
                let id = state.uploads.len().to_string();
                state.uploads.insert(id.clone(), Vec::new());
                line(&format!("202 Accepted\r\nLocation: {path}{id}"))
            }
            ("DELETE", [_, "blobs", "uploads", _]) => line("204 No Content"),
            (method, [_, "blobs", "uploads", id]) => {
                let upload = state.uploads.get_mut(*id)?;
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
                    let cut = state.behaviour.cut_chunks > 0;
                    if cut {
                        state.behaviour.cut_chunks -= 1;
                        body = &body[..body.len() / 2];
                    }
                    upload.extend_from_slice(body);
                    state.taken += body.len();
                    let last = upload.len() - 1;
                    return if cut {
                        None
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
                    return None;
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
                Some((head, body))
            }
            ("PUT", [_, "manifests", name]) => {
                let media_type = request.header("content-type").unwrap().to_owned();
                let manifest = (media_type, request.body.clone());
                state.manifests.insert((*name).to_owned(), manifest);
                line("201 Created")
            }
            (_, [_, "manifests", name]) => {
                let Some((media_type, bytes)) = state.manifests.get(*name) else {
                    return Some((
                        "404 Not Found\r\n".into(),
                        br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#
                            .to_vec(),
                    ));
                };
                let bytes = state.behaviour.manifest.as_ref().unwrap_or(bytes);
                Some((
                    format!("200 OK\r\nContent-Type: {media_type}\r\n"),
                    bytes.clone(),
                ))
            }
            _ => line("404 Not Found"),
        }
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
    fn read(stream: &TcpStream) -> Option<Self> {
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
            let mut out = stream;
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        reader.take(length).read_to_end(&mut request.body).ok()?;
        Some(request)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }
}

/// As `Authorization` has it.
pub(crate) fn base64(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
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
