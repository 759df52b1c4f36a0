//! As much D-Bus as four calls to systemd need, over its own socket: no bus
//! daemon is in between, as with `systemctl` of root.
//!
//! A message is a header and a body, both a sequence of values that are aligned
//! to their size; here always little endian.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Error;

/// systemd's own socket, for root alone.
const SOCKET: &str = "/run/systemd/private";

/// How long systemd may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// systemd's answers here are some hundred bytes.
const MAX_MESSAGE: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// A value of a unit's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Pids(Vec<u32>),
    Bytes(Vec<u8>),
}

/// A unit's property.
pub(super) type Property = (&'static str, Value);

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Flag(_) => "b",
            Self::Number(_) => "t",
            Self::Pids(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// Values one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn flag(&mut self, value: bool) -> &mut Self {
        self.number(u32::from(value));
        self
    }

    fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.number(length(value.len()));
        self.0.extend(value.as_bytes());
        self.0.push(0);
        self
    }

    fn signature(&mut self, value: &str) {
        self.0.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// An array of what is aligned to `to`. Its length is without the first gap.
    fn array(&mut self, to: usize, items: impl FnOnce(&mut Self)) {
        self.number(0);
        let at = self.0.len();
        self.align(to);
        let start = self.0.len();
        items(self);
        let bytes = length(self.0.len() - start).to_le_bytes();
        if let Some(place) = self.0.get_mut(at - 4..at) {
            place.copy_from_slice(&bytes);
        }
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => {
                self.text(text);
            }
            Value::Flag(flag) => {
                self.flag(*flag);
            }
            Value::Number(number) => {
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Pids(pids) => self.array(4, |w| pids.iter().for_each(|pid| w.number(*pid))),
            Value::Bytes(bytes) => self.array(1, |w| w.0.extend(bytes)),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &[Property]) -> &mut Self {
        self.array(8, |w| {
            for (name, value) in properties {
                w.align(8);
                w.text(name);
                w.variant(value);
            }
        });
        self
    }

    /// `a(sa(sv))` without any.
    pub(super) fn no_units(&mut self) -> &mut Self {
        self.array(8, |_| {});
        self
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A call of systemd's manager.
fn message(serial: u32, member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    message.number(length(body.0.len()));
    message.number(serial);
    message.array(8, |w| {
        for (field, kind, value) in [
            (1, "o", "/org/freedesktop/systemd1"),
            (2, "s", "org.freedesktop.systemd1.Manager"),
            (3, "s", member),
            (6, "s", "org.freedesktop.systemd1"),
            (8, "g", signature),
        ] {
            w.align(8);
            w.0.push(field);
            w.signature(kind);
            if kind == "g" {
                w.signature(value);
            } else {
                w.text(value);
            }
        }
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Refused {
        name: String,
        text: String,
    },
    /// A signal, or an answer to somebody else.
    Other,
}

/// The values of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = self.take(length)?;
        self.take(1)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn signature(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        let text = self.take(length.into())?;
        self.take(1)?;
        Some(text)
    }
}

/// Reads the fields of a header, which are `fields`, and the body after it;
/// `None` when they are not what D-Bus says.
fn answer(kind: u8, fields: &[u8], body: &[u8], serial: u32) -> Option<Answer> {
    let mut reader = Reader {
        bytes: fields,
        at: 0,
    };
    let (mut to, mut name, mut signature) = (None, String::new(), &b""[..]);
    while reader.at < fields.len() {
        reader.align(8);
        let field = *reader.take(1)?.first()?;
        match (field, reader.signature()?) {
            (4, b"s") => name = reader.text()?,
            (5, b"u") => to = Some(reader.number()?),
            (8, b"g") => signature = reader.signature()?,
            (_, b"s" | b"o") => drop(reader.text()?),
            (_, b"g") => drop(reader.signature()?),
            (_, b"u") => drop(reader.number()?),
            _ => return None,
        }
    }
    if to != Some(serial) {
        return Some(Answer::Other);
    }
    match kind {
        METHOD_RETURN => Some(Answer::Done),
        ERROR => {
            let mut body = Reader { bytes: body, at: 0 };
            let text = match signature {
                [b's', ..] => body.text()?,
                _ => String::new(),
            };
            Some(Answer::Refused { name, text })
        }
        _ => Some(Answer::Other),
    }
}

/// A conversation with systemd. Blocks, for a limited time.
pub(super) struct Connection {
    socket: UnixStream,
    serial: u32,
}

impl Connection {
    pub(super) fn open() -> Result<Self, Error> {
        let connect = || {
            let mut socket = UnixStream::connect(SOCKET)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.set_write_timeout(Some(LIMIT))?;
            authenticate(&mut socket)?;
            Ok(socket)
        };
        let socket = connect().map_err(|source| Error::Unreachable {
            socket: SOCKET,
            source,
        })?;
        Ok(Self { socket, serial: 0 })
    }

    /// Calls a method of systemd's manager; what it answers is not looked at.
    pub(super) fn call(
        &mut self,
        member: &'static str,
        signature: &str,
        body: &Writer,
    ) -> Result<(), Error> {
        self.serial += 1;
        let answer = self.exchange(&message(self.serial, member, signature, body));
        match answer.map_err(|source| Error::Unreachable {
            socket: SOCKET,
            source,
        })? {
            Answer::Refused { name, text } => Err(Error::Refused { member, name, text }),
            _ => Ok(()),
        }
    }

    fn exchange(&mut self, message: &[u8]) -> io::Result<Answer> {
        self.socket.write_all(message)?;
        loop {
            match read(&mut self.socket, self.serial)? {
                Answer::Other => {}
                answer => return Ok(answer),
            }
        }
    }
}

/// SASL, by the credentials of the socket.
fn authenticate(socket: &mut (impl Read + Write)) -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
    socket.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") && line.len() < 256 {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.extend(byte);
    }
    if !line.starts_with(b"OK") {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it says {:?}", String::from_utf8_lossy(&line).trim()),
        ));
    }
    socket.write_all(b"BEGIN\r\n")
}

fn read(socket: &mut impl Read, serial: u32) -> io::Result<Answer> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not D-Bus");
    let mut start = [0; 16];
    socket.read_exact(&mut start)?;
    let mut header = Reader {
        bytes: &start,
        at: 0,
    };
    let [order, kind, ..] = start;
    header.at = 4;
    let (Some(body), Some(_), Some(fields)) = (header.number(), header.number(), header.number())
    else {
        return Err(bad());
    };
    let size = |n: u32| usize::try_from(n).ok().filter(|n| *n <= MAX_MESSAGE);
    let (Some(body), Some(fields)) = (size(body), size(fields)) else {
        return Err(bad());
    };
    if order != b'l' {
        return Err(bad());
    }
    let padded = fields.next_multiple_of(8);
    let mut rest = vec![0; padded + body];
    socket.read_exact(&mut rest)?;
    let (fields, body) = (rest.get(..fields), rest.get(padded..));
    answer(
        kind,
        fields.unwrap_or_default(),
        body.unwrap_or_default(),
        serial,
    )
    .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_aligned_and_arrays_have_their_length() {
        let mut body = Writer::default();
        body.text("a").properties(&[
            ("P", Value::Pids(vec![7])),
            ("B", Value::Bytes(vec![3])),
            ("N", Value::Number(1)),
        ]);
        body.no_units();
        #[rustfmt::skip]
        assert_eq!(body.0, [
            1, 0, 0, 0, b'a', 0,            // "a"
            0, 0, 72, 0, 0, 0, 0, 0, 0, 0,  // 72 bytes of structures, from 16 on
            1, 0, 0, 0, b'P', 0, 2, b'a', b'u', 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0,
            0, 0, 0, 0,
            1, 0, 0, 0, b'B', 0, 2, b'a', b'y', 0, 0, 0, 1, 0, 0, 0, 3,
            0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, b'N', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0,         // nothing, up to where it would be
        ].as_slice());
    }

    /// What systemd would send: a header of these fields, and a text.
    fn sent(kind: u8, serial: u32, name: &str, text: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(text);
        let mut message = Writer(vec![b'l', kind, 0, 1]);
        message.number(length(body.0.len()));
        message.number(9);
        message.array(8, |w| {
            w.0.push(5);
            w.signature("u");
            w.number(serial);
            w.align(8);
            w.0.push(4);
            w.signature("s");
            w.text(name);
            w.align(8);
            w.0.push(8);
            w.signature("g");
            w.signature("s");
        });
        message.align(8);
        message.0.extend(&body.0);
        message.0
    }

    #[test]
    fn answers_are_told_from_signals_and_from_refusals() {
        let read = |bytes: &[u8]| super::read(&mut &*bytes, 4).unwrap();
        assert_eq!(read(&sent(METHOD_RETURN, 4, "x", "/job")), Answer::Done);
        assert_eq!(read(&sent(METHOD_RETURN, 3, "x", "/job")), Answer::Other);
        assert_eq!(read(&sent(4, 4, "x", "signal")), Answer::Other);
        let refused = Answer::Refused {
            name: "org.freedesktop.systemd1.NoSuchUnit".to_owned(),
            text: "Unit x.scope not loaded.".to_owned(),
        };
        let bytes = sent(
            ERROR,
            4,
            "org.freedesktop.systemd1.NoSuchUnit",
            "Unit x.scope not loaded.",
        );
        assert_eq!(read(&bytes), refused);
        let mut long = bytes;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        super::read(&mut &*long, 4).unwrap_err();
    }

    #[test]
    fn a_call_is_read_back() {
        let mut body = Writer::default();
        body.text("x.scope");
        let bytes = message(3, "GetUnit", "s", &body);
        assert_eq!(bytes.len() % 8, 4, "the body is after whole words");
        assert_eq!(&bytes[bytes.len() - 12..], b"\x07\0\0\0x.scope\0");
        assert_eq!(super::read(&mut &*bytes, 3).unwrap(), Answer::Other);
    }

    #[test]
    fn who_is_not_let_in_says_so() {
        struct Peer(Vec<u8>);
        impl Read for Peer {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(self.0.len());
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0.drain(..count);
                Ok(count)
            }
        }
        impl Write for Peer {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        authenticate(&mut Peer(b"OK 1234\r\n".to_vec())).unwrap();
        let refused = authenticate(&mut Peer(b"REJECTED EXTERNAL\r\n".to_vec())).unwrap_err();
        assert!(refused.to_string().contains("REJECTED"), "{refused}");
        authenticate(&mut Peer(Vec::new())).unwrap_err();
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_not_a_panic(start: [u8; 16], rest: Vec<u8>) {
            let mut bytes = start.to_vec();
            bytes.extend(rest);
            let _ = read(&mut &*bytes, 1);
            let _ = answer(ERROR, &bytes, &bytes, 1);
        }
    }
}
