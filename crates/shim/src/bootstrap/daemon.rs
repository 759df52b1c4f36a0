//! Which containerd is asking: 1.x or later.
//!
//! Go puts the path of the main package and the modules into the section `.go.buildinfo` of each
//! executable, stripped or not. containerd 2.x is `github.com/containerd/containerd/v2`, 1.x has
//! no `/v2`; daemons that link containerd in (k3s) list it as a dependency under the same name.
//! Checked on Debian's containerd 2.1.9 and on stripped programs built with and without Go modules:
//! all name their path, and looking takes some 30 microseconds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The generation of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// containerd 1.x: understands answers up to version 2, reads the file `address`.
    V1,
    /// containerd 2.0 and later.
    V2,
    /// Not found out; taken for 2.x.
    Unknown,
}

/// Bounds for a file that is not ours: sections, and bytes of one string.
const MAX_SECTIONS: u16 = 512;
const MAX_TABLE_BYTES: u64 = 64 << 10;
const MAX_INFO_BYTES: u64 = 512 << 10;

const MODULE: &str = "github.com/containerd/containerd";

/// Looks at an executable. Whatever is wrong with it means [`Daemon::Unknown`].
#[must_use]
pub fn of_binary(path: &Path) -> Daemon {
    match File::open(path).and_then(|file| section(&file)) {
        Ok(Some(section)) => classify(&section),
        _ => Daemon::Unknown,
    }
}

/// Decides from the bytes of a `.go.buildinfo` section.
#[must_use]
pub fn classify(section: &[u8]) -> Daemon {
    let text = String::from_utf8_lossy(section);
    let names = |name: &str| {
        text.match_indices(name).any(|(at, _)| {
            // A whole module or a package in it, so that `…/containerd/api` is not `…/containerd`.
            let rest = &text[at + name.len()..];
            rest.starts_with(['\t', '\n', ' ']) || rest.starts_with("/cmd/")
        })
    };
    if names(&format!("{MODULE}/v2")) {
        Daemon::V2
    } else if names(MODULE) {
        Daemon::V1
    } else {
        Daemon::Unknown
    }
}

/// The section `.go.buildinfo` of a little-endian 64-bit ELF file, if it has one.
fn section(file: &File) -> io::Result<Option<Vec<u8>>> {
    let header = read_at(file, 0, 64)?;
    // 64-bit, little-endian: all that containerd ships for, but big-endian s390x.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (Some(table_at), Some(entry), Some(count), Some(names)) = (
        u64_at(&header, 0x28),
        u16_at(&header, 0x3a),
        u16_at(&header, 0x3c),
        u16_at(&header, 0x3e),
    ) else {
        return Ok(None);
    };
    if entry != 64 || count > MAX_SECTIONS || names >= count {
        return Ok(None);
    }
    let table = read_at(file, table_at, u64::from(count) * 64)?;
    let sections: Vec<&[u8]> = table.chunks_exact(64).collect();
    let extent = |section: &[u8]| Some((u64_at(section, 0x18)?, u64_at(section, 0x20)?));

    let Some((at, size)) = sections.get(usize::from(names)).and_then(|s| extent(s)) else {
        return Ok(None);
    };
    let strings = read_at(file, at, size.min(MAX_TABLE_BYTES))?;
    for section in sections {
        let name = u32_at(section, 0).and_then(|at| strings.get(at as usize..));
        if name.is_some_and(|name| name.starts_with(b".go.buildinfo\0")) {
            let Some((at, size)) = extent(section) else {
                return Ok(None);
            };
            return read_at(file, at, size.min(MAX_INFO_BYTES)).map(Some);
        }
    }
    Ok(None)
}

fn read_at(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; len as usize];
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

fn u16_at(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_le_bytes)
}

fn u32_at(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], at: usize) -> Option<u64> {
    bytes(from, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_module() {
        for (text, want) in [
            (
                "\x06go1.27\x10path\tgithub.com/containerd/containerd/v2/cmd/containerd\nbuild\t-x=y\n",
                Daemon::V2,
            ),
            (
                "path\tgithub.com/containerd/containerd/cmd/containerd\nmod\tgithub.com/containerd/containerd\t(devel)\t\ndep\tgithub.com/containerd/containerd/api\tv1.8.0\n",
                Daemon::V1,
            ),
            (
                "path\tgithub.com/k3s-io/k3s\ndep\tgithub.com/containerd/containerd/api\tv1.9\ndep\tgithub.com/containerd/containerd/v2\tv2.1.4\n",
                Daemon::V2,
            ),
            (
                "path\tgithub.com/k3s-io/k3s\ndep\tgithub.com/containerd/containerd\tv1.7.23-k3s2\n",
                Daemon::V1,
            ),
            (
                "path\texample.com/x\ndep\tgithub.com/containerd/containerd/api\tv1.9\n",
                Daemon::Unknown,
            ),
            ("", Daemon::Unknown),
        ] {
            assert_eq!(classify(text.as_bytes()), want, "{text}");
        }
    }

    /// The smallest ELF file with a section table, a string table and build information.
    fn elf(info: &[u8]) -> Vec<u8> {
        let strings = b"\0.shstrtab\0.go.buildinfo\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let strings_at = file.len();
        file.extend_from_slice(strings);
        let info_at = file.len();
        file.extend_from_slice(info);
        let table_at = file.len();
        for (name, at, size) in [
            (0u32, 0, 0),
            (1, strings_at, strings.len()),
            (11, info_at, info.len()),
        ] {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            section[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&section);
        }
        file[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
        file[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&1u16.to_le_bytes());
        file
    }

    fn classify_file(content: &[u8]) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containerd");
        std::fs::write(&path, content).unwrap();
        of_binary(&path)
    }

    #[test]
    fn in_an_elf_file() {
        let file = elf(b"path\tgithub.com/containerd/containerd/cmd/containerd\n");
        assert_eq!(classify_file(&file), Daemon::V1);
        assert_eq!(classify_file(&file[..file.len() - 1]), Daemon::Unknown);
        assert_eq!(classify_file(b"#!/bin/sh\n"), Daemon::Unknown);
        assert_eq!(of_binary(Path::new("/nonexistent")), Daemon::Unknown);
        // A Rust program: sections, but not that one.
        assert_eq!(of_binary(Path::new("/proc/self/exe")), Daemon::Unknown);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_files_never_panic(at in 0usize..64, byte: u8) {
            let mut file = elf(b"path\tgithub.com/containerd/containerd/v2/cmd/containerd\n");
            file[at] = byte;
            classify_file(&file);
        }
    }
}
