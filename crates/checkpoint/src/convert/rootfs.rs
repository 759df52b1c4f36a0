//! The two ways to say what a container deleted from its root file system: whiteouts in the
//! layer, and a list beside it.

use std::io::{self, Read, Write};

use crate::tar_stream::{BLOCK, Header, pax_records};
use crate::write::Archive;

/// Longest extension of an entry, and all those of one entry together.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Most whiteouts of a layer.
const MAX_DELETED: usize = 1 << 18;

/// What stands before the name of a deleted file.
const WHITEOUT: &str = ".wh.";

/// The file that says that its directory has nothing of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer says is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Paths, from the root and with a slash in front.
    pub paths: Vec<String>,
    /// Directories that have nothing of the layers below, which a list of paths cannot say.
    pub opaque: Vec<String>,
}

/// Copies a layer without its whiteouts, and gives those.
///
/// # Errors
///
/// When the layer is no tar, is cut off, or cannot be read, or `out` cannot be written.
pub fn without_whiteouts(layer: impl Read, mut out: impl Write) -> io::Result<Deleted> {
    let mut deleted = Deleted::default();
    copy(layer, &mut out, |path| {
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (path.get(..slash), path.get(slash + 1..)),
            None => (None, Some(path)),
        };
        let name = name.unwrap_or_default();
        let Some(hidden) = name.strip_prefix(WHITEOUT.as_bytes()) else {
            return Ok(false);
        };
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .map_err(|_| bad("a deleted file has an unreadable name"))
        };
        let mut directory = text(directory.unwrap_or_default())?;
        let relative = directory
            .trim_start_matches("./")
            .trim_start_matches('/')
            .len();
        directory.drain(..directory.len() - relative);
        let into = if name == OPAQUE {
            let path = format!("/{directory}");
            deleted.opaque.push(path);
            &deleted.opaque
        } else {
            let between = if directory.is_empty() { "" } else { "/" };
            deleted
                .paths
                .push(format!("/{directory}{between}{}", text(hidden)?));
            &deleted.paths
        };
        if into.len() > MAX_DELETED {
            return Err(bad("it has too many deleted files"));
        }
        Ok(true)
    })?;
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()?;
    Ok(deleted)
}

/// Copies a layer, and puts whiteouts for these paths behind it.
///
/// # Errors
///
/// As [`without_whiteouts`]; and when a path leads upwards or to nowhere.
pub fn with_whiteouts(layer: impl Read, deleted: &[String], mut out: impl Write) -> io::Result<()> {
    copy(layer, &mut out, |_| Ok(false))?;
    let mut tar = Archive::new(out);
    for path in deleted {
        let path = path.trim_matches('/');
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let safe = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !safe(name) || !directory.is_empty() && !directory.split('/').all(safe) {
            return Err(bad("the list of deleted files names one that cannot be"));
        }
        let between = if directory.is_empty() { "" } else { "/" };
        let name = format!("{directory}{between}{WHITEOUT}{name}");
        tar.file(&name, 0, &mut io::empty())?;
    }
    tar.finish()?.flush()
}

/// Copies all entries byte by byte, but those whose path is to be `left_out`, and not the end
/// marker.
fn copy(
    mut layer: impl Read,
    out: &mut impl Write,
    mut left_out: impl FnMut(&[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    // The extensions that belong to the next entry.
    let mut pending = Vec::new();
    let (mut long_path, mut long_size) = (None, None);
    loop {
        let mut block = [0; BLOCK];
        match layer.read_exact(&mut block) {
            // Some writers leave the end marker out.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let header = Header(&block);
        if !header.checksum_matches() {
            return Err(bad("it is no tar archive"));
        }
        let stated = header
            .size()
            .ok_or_else(|| bad("an entry has an unreadable size"))?;
        if let kind @ (b'x' | b'L' | b'K' | b'g') = header.kind() {
            if stated > MAX_EXTENSION_BYTES || pending.len() as u64 > MAX_EXTENSION_BYTES {
                return Err(bad("an entry has too long a name or attributes"));
            }
            let mut content = Vec::new();
            take(&mut layer, padded(stated)?, &mut content)?;
            let own = content.get(..usize::try_from(stated).unwrap_or(0));
            let own = own.unwrap_or_default();
            if kind == b'L' {
                let name = own.split(|&byte| byte == 0).next();
                long_path = name.map(<[u8]>::to_vec);
            } else if kind == b'x' {
                let records = pax_records(own).ok_or_else(|| bad("it has bad attributes"))?;
                for (key, value) in records {
                    match key {
                        b"path" => long_path = Some(value.to_vec()),
                        b"size" => {
                            let size = std::str::from_utf8(value).ok().and_then(|s| s.parse().ok());
                            long_size = Some(size.ok_or_else(|| bad("it has a bad size"))?);
                        }
                        _ => {}
                    }
                }
            }
            pending.extend_from_slice(&block);
            pending.append(&mut content);
            continue;
        }
        let path = long_path.take().unwrap_or_else(|| header.name());
        let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
        // Links and devices have a size at times, and never content.
        let size = match header.kind() {
            b'1'..=b'6' => 0,
            b'S' => return Err(bad("it has a sparse file, which no engine writes")),
            _ => long_size.take().unwrap_or(stated),
        };
        long_size = None;
        if left_out(trimmed)? {
            take(&mut layer, padded(size)?, &mut io::sink())?;
        } else {
            out.write_all(&pending)?;
            out.write_all(&block)?;
            take(&mut layer, padded(size)?, out)?;
        }
        pending.clear();
    }
}

fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
        .ok_or_else(|| bad("an entry has an impossible size"))
}

/// Copies just so many bytes.
fn take(from: &mut impl Read, bytes: u64, to: &mut impl Write) -> io::Result<()> {
    if io::copy(&mut from.take(bytes), to)? == bytes {
        return Ok(());
    }
    Err(bad("it is cut off"))
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer with a file, a link, and what else is named.
    fn layer(more: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(700);
        header.set_mode(0o4755);
        tar.append_pax_extensions([("SCHILY.xattr.user.a", &b"b"[..])])
            .unwrap();
        tar.append_data(&mut header, "dir/file", &[7; 700][..])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, "dir/link", "t".repeat(200))
            .unwrap();
        for name in more {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn whiteouts_become_a_list_and_back() {
        let long = format!("{}/.wh.gone", "d".repeat(150));
        let names = ["dir/.wh.old", ".wh.top", &long, "new/.wh..wh..opq"];
        let mut plain = Vec::new();
        let deleted = without_whiteouts(&*layer(&names), &mut plain).unwrap();
        let gone = format!("/{}/gone", "d".repeat(150));
        assert_eq!(deleted.paths, ["/dir/old", "/top", &gone]);
        assert_eq!(deleted.opaque, ["/new"]);
        assert!(plain == layer(&[]));

        let mut back = Vec::new();
        with_whiteouts(&*plain, &deleted.paths, &mut back).unwrap();
        let mut again = Vec::new();
        let found = without_whiteouts(&*back, &mut again).unwrap();
        assert_eq!(found.paths, deleted.paths);
        assert!(again == plain);
    }

    #[test]
    fn hostile_layers_and_lists_are_errors() {
        for path in ["", "/", "..", "/a/../b", "a//b", "a/.", "a\0b"] {
            let result = with_whiteouts(&*layer(&[]), &[path.to_owned()], io::sink());
            assert!(result.is_err(), "{path:?}");
        }
        let whole = layer(&[]);
        for length in [1, 513, 1600] {
            let cut = whole.get(..length).unwrap();
            let result = without_whiteouts(cut, io::sink());
            assert!(length == 1 || result.is_err(), "{length}");
        }
        assert!(without_whiteouts(&[1u8; 2048][..], io::sink()).is_err());
    }
}
