//! CRIU's images, changed as a forger would: some fields, and all else as it was.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use cryo_criu_image::{Kind, RawReader, Writer};
use prost::encoding::{decode_varint, encode_varint};

/// A message of which only numbers of fields are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<(u64, Value)>);

/// The value of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// Changes the messages of an image file. `change` gets them all and may add or remove some.
///
/// # Errors
/// When the file is not of messages alone, or cannot be read or written.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<Message>)) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (kind, _) = Kind::of_file_name(&name).with_context(|| format!("{name} is no image"))?;
    let mut reader = RawReader::new(name, kind, BufReader::new(File::open(path)?))?;
    let mut messages = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        messages.push(Message::decode(entry.bytes).context("not a message")?);
    }
    let before = messages.clone();
    change(&mut messages);
    ensure!(
        messages != before,
        "nothing was changed in {}",
        path.display()
    );
    let mut writer = Writer::new(kind, Vec::new())?;
    for message in &messages {
        writer.entry(&message.encode())?;
    }
    File::create(path)?.write_all(&writer.into_inner())?;
    Ok(())
}

/// Moves every other run of memory pages of these images to those of a `parent` beside them, as a
/// dump leaves out what has not changed.
///
/// # Errors
/// When there is nothing to move, or the images are of a form that is not known here.
pub fn inherit(images: &Path, parent: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(parent)?;
    for entry in std::fs::read_dir(images)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if matches!(Kind::of_file_name(&name), Some((Kind::Pagemap, _))) {
            let mut inherited = Ok(Vec::new());
            edit(&images.join(&name), |messages| {
                inherited = move_every_other(messages, images, parent);
            })?;
            let mut writer = Writer::new(Kind::Pagemap, Vec::new())?;
            for message in inherited? {
                writer.entry(&message.encode())?;
            }
            std::fs::write(parent.join(&name), writer.into_inner())?;
        }
    }
    let name = parent.file_name().context("a parent without a name")?;
    std::os::unix::fs::symlink(Path::new("..").join(name), images.join("parent"))?;
    Ok(())
}

/// Splits the pages of one pagemap; the parent's comes back.
fn move_every_other(
    messages: &mut [Message],
    images: &Path,
    parent: &Path,
) -> anyhow::Result<Vec<Message>> {
    const FLAGS: u64 = 4;
    const PAGES: u64 = 5;
    const IN_PARENT: u64 = 1;
    const PRESENT: u64 = 4;
    let (head, runs) = messages.split_first_mut().context("no head")?;
    let file = format!("pages-{}.img", head.number(1).context("no pages")?);
    let pages = std::fs::read(images.join(&file))?;
    ensure!(!parent.join(&file).exists(), "two pagemaps have {file}");
    let (mut rest, mut kept, mut left) = (&pages[..], Vec::new(), Vec::new());
    let mut inherited = vec![head.clone()];
    let present = |run: &&mut Message| run.number(FLAGS).is_some_and(|f| f & PRESENT != 0);
    for (n, run) in runs.iter_mut().filter(present).enumerate() {
        let count = usize::try_from(run.number(PAGES).context("no number of pages")?)?;
        let (these, after) = rest.split_at_checked(count * 4096).context("too short")?;
        rest = after;
        if n % 2 == 0 {
            kept.extend_from_slice(these);
        } else {
            left.extend_from_slice(these);
            inherited.push(run.clone());
            *run = run.clone().with(FLAGS, &[IN_PARENT]);
        }
    }
    std::fs::write(images.join(&file), kept)?;
    std::fs::write(parent.join(&file), left)?;
    Ok(inherited)
}

impl Message {
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = decode_varint(&mut bytes).ok()?;
            let value = match key & 7 {
                0 => Value::Number(decode_varint(&mut bytes).ok()?),
                2 => {
                    let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Value::Bytes(value.to_vec())
                }
                // CRIU writes no fixed-size fields into what is forged here.
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Self(fields))
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in &self.0 {
            match value {
                Value::Number(value) => {
                    encode_varint(number << 3, &mut bytes);
                    encode_varint(*value, &mut bytes);
                }
                Value::Bytes(value) => {
                    encode_varint(number << 3 | 2, &mut bytes);
                    encode_varint(value.len() as u64, &mut bytes);
                    bytes.extend(value);
                }
            }
        }
        bytes
    }

    /// The first number in a field.
    pub fn number(&self, field: u64) -> Option<u64> {
        self.0.iter().find_map(|(f, value)| match value {
            Value::Number(value) if *f == field => Some(*value),
            _ => None,
        })
    }

    /// The first text in a field.
    pub fn text(&self, field: u64) -> Option<&str> {
        self.0.iter().find_map(|(f, value)| match value {
            Value::Bytes(value) if *f == field => std::str::from_utf8(value).ok(),
            _ => None,
        })
    }

    /// Puts these numbers into a field, in place of what was there.
    #[must_use]
    pub fn with(self, field: u64, numbers: &[u64]) -> Self {
        let mut message = self.without(field);
        message
            .0
            .extend(numbers.iter().map(|n| (field, Value::Number(*n))));
        message
    }

    /// Puts a text or bytes into a field, in place of what was there.
    #[must_use]
    pub fn with_bytes(self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        let mut message = self.without(field);
        message
            .0
            .push((field, Value::Bytes(bytes.as_ref().to_vec())));
        message
    }

    /// Adds bytes to a field, after what is there.
    pub fn add_bytes(&mut self, field: u64, bytes: Vec<u8>) {
        self.0.push((field, Value::Bytes(bytes)));
    }

    /// Takes a field away.
    #[must_use]
    pub fn without(mut self, field: u64) -> Self {
        self.0.retain(|(f, _)| *f != field);
        self
    }

    /// Changes every message in a field.
    pub fn inside(&mut self, field: u64, mut change: impl FnMut(Self) -> Self) {
        for (f, value) in &mut self.0 {
            if let Value::Bytes(bytes) = value
                && *f == field
                && let Some(inner) = Self::decode(bytes)
            {
                *bytes = change(inner).encode();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays() {
        let inner = Message::default()
            .with(1, &[7, u64::MAX])
            .with_bytes(2, "x");
        let mut message = Message::default().with(5, &[300]);
        message.0.push((9, Value::Bytes(inner.encode())));
        assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        message.inside(9, |m| m.with(1, &[8]));
        message.inside(9, |m| {
            assert_eq!((m.number(1), m.text(2)), (Some(8), Some("x")));
            m.without(2)
        });
        message.inside(9, |m| {
            assert_eq!(m.text(2), None);
            m
        });
        assert_eq!(message.number(5), Some(300));
        assert_eq!(Message::decode(&[0x08]), None);
    }
}
