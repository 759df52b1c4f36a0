//! What a container changed in its root file system, as its checkpoint has it.
//!
//! Listed, never unpacked: here links, devices and strange names are what a container may well
//! have made, and they are only told of.

use std::collections::BTreeMap;
use std::io::{self, Read};

use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::layout;
use crate::source::{self, Source};

/// Most entries that are kept.
const MAX_ENTRIES: usize = 1 << 20;

/// Longest name, target or header of an entry.
const MAX_NAME_BYTES: u64 = 64 << 10;

/// All names and targets together.
const MAX_NAMES_BYTES: usize = 128 << 20;

/// Largest list of deleted files.
const MAX_DELETED_BYTES: u64 = 64 << 20;

/// Why it cannot be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint, or a file in it, cannot be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// It cannot be read.
    #[error("{} cannot be read", layout::ROOTFS_DIFF)]
    Unreadable(#[source] io::Error),
    /// It is no tar archive, or a damaged one.
    #[error(
        "the checkpoint is damaged: {} is no tar archive, or not all of one",
        layout::ROOTFS_DIFF
    )]
    Damaged,
    /// It has more, or longer names, than any container's.
    #[error("the checkpoint is unsafe: {} has {what}", layout::ROOTFS_DIFF)]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
    },
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // What the tar crate says of a header has all bytes of it in it.
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::Damaged
            }
            _ => Self::Unreadable(error),
        }
    }
}

/// One file that was made or changed, or is gone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Item {
    /// `file`, `directory`, `symlink`, `hardlink`, `device`, `fifo` or `deleted`.
    pub kind: &'static str,
    /// Its permissions.
    pub mode: u32,
    /// Its user.
    pub uid: u64,
    /// Its group.
    pub gid: u64,
    /// Its length.
    pub size_bytes: u64,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The SHA-256 of what is in it, in hexadecimal; of files only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What was changed, by path without a leading slash; `None` if the checkpoint does not tell.
///
/// # Errors
///
/// All of [`Error`].
pub fn list(checkpoint: &Source) -> Result<Option<BTreeMap<String, Item>>, Error> {
    let mut items = BTreeMap::new();
    let entry = checkpoint.file(layout::ROOTFS_DIFF);
    let deleted = checkpoint.read(layout::DELETED_FILES, MAX_DELETED_BYTES)?;
    if entry.is_none() && deleted.is_none() {
        return Ok(None);
    }
    if let Some(entry) = entry {
        let blob = source::decompressed(entry.blob())?;
        read(
            io::BufReader::with_capacity(1 << 16, blob.reader()?),
            &mut items,
        )?;
    }
    if let Some(json) = deleted {
        let paths: Vec<String> =
            serde_json::from_slice(&json).map_err(|source| source::Error::BadJson {
                name: layout::DELETED_FILES.to_owned(),
                source,
            })?;
        for path in paths {
            items.insert(path.trim_start_matches('/').to_owned(), gone());
        }
    }
    Ok(Some(items))
}

fn gone() -> Item {
    Item {
        kind: "deleted",
        mode: 0,
        uid: 0,
        gid: 0,
        size_bytes: 0,
        target: None,
        sha256: None,
    }
}

/// Reads the entries of a tar archive.
fn read(archive: impl Read, items: &mut BTreeMap<String, Item>) -> Result<(), Error> {
    let mut archive = tar::Archive::new(archive);
    let (mut long_name, mut long_target) = (None, None);
    let mut names = 0;
    // Raw: the crate would take extensions of any length into memory.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => long_name = Some(extension(&mut entry)?),
            EntryType::GNULongLink => long_target = Some(extension(&mut entry)?),
            EntryType::XHeader => {
                let bytes = extension(&mut entry)?;
                for record in tar::PaxExtensions::new(&bytes) {
                    let record = record?;
                    match record.key_bytes() {
                        b"path" => long_name = Some(record.value_bytes().to_vec()),
                        b"linkpath" => long_target = Some(record.value_bytes().to_vec()),
                        // Where the next entry begins would not be known.
                        b"size" => {
                            return Err(Error::TooMuch {
                                what: "a file of more than 8 GiB, which is not supported",
                            });
                        }
                        _ => {}
                    }
                }
            }
            EntryType::XGlobalHeader => {}
            _ => {
                let name = long_name
                    .take()
                    .unwrap_or_else(|| entry.path_bytes().into_owned());
                let target = long_target
                    .take()
                    .or_else(|| entry.link_name_bytes().map(|target| target.into_owned()));
                let target = target.filter(|_| kind.is_symlink() || kind.is_hard_link());
                names += name.len() + target.as_ref().map_or(0, Vec::len);
                if items.len() >= MAX_ENTRIES || names > MAX_NAMES_BYTES {
                    return Err(Error::TooMuch {
                        what: "too many entries",
                    });
                }
                let (path, item) = item(&mut entry, kind, &name, target)?;
                items.insert(path, item);
            }
        }
    }
    Ok(())
}

fn item<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    kind: EntryType,
    name: &[u8],
    target: Option<Vec<u8>>,
) -> Result<(String, Item), Error> {
    let path = String::from_utf8_lossy(name);
    let path = path.trim_start_matches("./").trim_matches('/');
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let within = |name: &str| match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    };
    // Whiteouts, by which image layers tell what is gone.
    if file == ".wh..wh..opq" {
        return Ok((format!("{}*", within("")), gone()));
    }
    if let Some(name) = file.strip_prefix(".wh.") {
        return Ok((within(name), gone()));
    }
    let header = entry.header();
    let mut item = Item {
        kind: match kind {
            EntryType::Directory => "directory",
            EntryType::Symlink => "symlink",
            EntryType::Link => "hardlink",
            EntryType::Char | EntryType::Block => "device",
            EntryType::Fifo => "fifo",
            _ => "file",
        },
        // Blank in some archives.
        mode: header.mode().unwrap_or_default() & 0o7777,
        uid: header.uid().unwrap_or_default(),
        gid: header.gid().unwrap_or_default(),
        size_bytes: entry.size(),
        target: target.map(|target| String::from_utf8_lossy(&target).into_owned()),
        sha256: None,
    };
    if item.kind == "file" {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = entry.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(buffer.get(..read).unwrap_or_default());
        }
        let digest = hasher.finalize();
        item.sha256 = Some(digest.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    Ok((path.to_owned(), item))
}

fn extension(entry: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    entry.take(MAX_NAME_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_NAME_BYTES {
        return Err(Error::TooMuch {
            what: "a name that is too long",
        });
    }
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_layer_tells() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, content: &[u8], target: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(7);
            header.set_gid(8);
            header.set_size(content.len() as u64);
            match target {
                Some(target) => builder.append_link(&mut header, name, target).unwrap(),
                None => builder.append_data(&mut header, name, content).unwrap(),
            }
        };
        let long = "d/".repeat(80) + "file";
        add("./a", EntryType::Regular, b"abc", None);
        add(&long, EntryType::Regular, b"", None);
        add("etc/", EntryType::Directory, b"", None);
        add("etc/link", EntryType::Symlink, b"", Some("../../outside"));
        add("etc/.wh.passwd", EntryType::Regular, b"", None);
        add("var/.wh..wh..opq", EntryType::Regular, b"", None);
        let bytes = builder.into_inner().unwrap();
        let mut items = BTreeMap::new();
        read(bytes.as_slice(), &mut items).unwrap();
        let lines: Vec<_> = items
            .iter()
            .map(|(path, item)| format!("{path} {}", item.kind))
            .collect();
        let expected = [
            "a file".to_owned(),
            format!("{long} file"),
            "etc directory".to_owned(),
            "etc/link symlink".to_owned(),
            "etc/passwd deleted".to_owned(),
            "var/* deleted".to_owned(),
        ];
        assert_eq!(lines, expected);
        assert_eq!(items["etc/link"].target.as_deref(), Some("../../outside"));
        assert_eq!(items["a"].uid, 7);
        assert_eq!(
            items["a"].sha256.as_deref(),
            Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        assert!(matches!(
            read(&b"x".repeat(2000)[..], &mut items),
            Err(Error::Damaged)
        ));
    }

    /// A name that claims a gigabyte costs nothing.
    #[test]
    fn a_name_that_is_too_long() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_path("././@LongLink").unwrap();
        header.set_size(1 << 30);
        header.set_cksum();
        let archive = io::Read::chain(&header.as_bytes()[..], io::repeat(b'x'));
        let error = read(archive, &mut BTreeMap::new()).unwrap_err();
        assert!(matches!(error, Error::TooMuch { .. }), "{error}");
    }
}
