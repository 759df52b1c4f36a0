use std::io::Cursor;

use proptest::prelude::*;

use super::*;

fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_cksum();
    header
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let kind = if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn read<R: Read>(mut stream: TarStream<R>) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut found = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let mut content = Vec::new();
        stream.read_to_end(&mut content).unwrap();
        found.push((entry.name, content));
    }
    Ok(found)
}

#[test]
fn what_the_tar_crate_writes() {
    let long = format!("checkpoint/{}", "n".repeat(200));
    let big = vec![7; 1000];
    let files: [(&str, &[u8]); 4] = [
        ("checkpoint/", b""),
        ("./checkpoint//a", b"x"),
        (&long, &big),
        ("b", b""),
    ];
    let bytes = archive(&files);
    let expected = [
        ("checkpoint".to_owned(), Vec::new()),
        ("checkpoint/a".to_owned(), b"x".to_vec()),
        (long.clone(), big.clone()),
        ("b".to_owned(), Vec::new()),
    ];
    assert_eq!(read(TarStream::new(bytes.as_slice())).unwrap(), expected);
    assert_eq!(
        read(TarStream::seekable(Cursor::new(&bytes))).unwrap(),
        expected
    );

    // Passing over what is not read finds the same entries.
    let mut stream = TarStream::seekable(Cursor::new(&bytes));
    let names: Vec<_> = std::iter::from_fn(|| stream.next_entry().unwrap())
        .map(|e| e.name)
        .collect();
    assert_eq!(names, expected.map(|(name, _)| name));

    // Whatever stands behind the end marker.
    let mut garbage = bytes.clone();
    garbage.extend([0xff; 4096]);
    assert_eq!(read(TarStream::new(garbage.as_slice())).unwrap().len(), 4);
}

#[test]
fn pax_names_and_sizes() {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", b"checkpoint/from-pax".as_slice()), ("size", b"3")])
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(header("short", tar::EntryType::Regular, 0).as_bytes());
    let mut content = b"abc".to_vec();
    content.resize(512, 0);
    bytes.extend(content);
    bytes.extend([0; 1024]);
    assert_eq!(
        read(TarStream::new(bytes.as_slice())).unwrap(),
        [("checkpoint/from-pax".to_owned(), b"abc".to_vec())]
    );
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = archive(&[("checkpoint/", b""), ("checkpoint/a", &[1; 600])]);
    let end = bytes.len() - 1024;
    for length in 0..bytes.len() {
        let streamed = read(TarStream::new(&bytes[..length]));
        let seeked = read(TarStream::seekable(Cursor::new(&bytes[..length])));
        let whole = length >= end + 512;
        assert_eq!(streamed.is_ok(), whole, "{length}");
        assert_eq!(seeked.is_ok(), whole, "{length}");
    }
}

#[test]
fn refused() {
    use tar::EntryType as T;
    let cases = [
        (
            "l",
            T::Symlink,
            "unsafe archive: entry \"l\" at offset 0 is a symbolic link",
        ),
        (
            "l",
            T::Link,
            "unsafe archive: entry \"l\" at offset 0 is a hard link",
        ),
        (
            "d",
            T::Char,
            "unsafe archive: entry \"d\" at offset 0 is a device",
        ),
        (
            "d",
            T::Block,
            "unsafe archive: entry \"d\" at offset 0 is a device",
        ),
        (
            "f",
            T::Fifo,
            "unsafe archive: entry \"f\" at offset 0 is a fifo",
        ),
        (
            "s",
            T::GNUSparse,
            "unsafe archive: entry \"s\" at offset 0 is a sparse file",
        ),
        (
            "z",
            T::new(b'Z'),
            "unsafe archive: entry \"z\" at offset 0 is of unknown type",
        ),
    ];
    for (name, kind, expected) in cases {
        let mut bytes = header(name, kind, 0).as_bytes().to_vec();
        bytes.extend([0; 1024]);
        assert_eq!(
            read(TarStream::new(bytes.as_slice()))
                .unwrap_err()
                .to_string(),
            expected
        );
    }

    for (name, what) in [
        (
            "/etc/passwd",
            "is outside of the archive: its name is absolute",
        ),
        (
            "a/../../b",
            "is outside of the archive: its name leads upwards",
        ),
        ("", "is without a name"),
    ] {
        let mut raw = header("x", T::Regular, 0);
        raw.as_mut_bytes()[..100].fill(0);
        raw.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        raw.set_cksum();
        let error = read(TarStream::new(raw.as_bytes().as_slice())).unwrap_err();
        assert!(error.to_string().ends_with(what), "{error}");
    }
}

#[test]
fn what_is_no_archive() {
    let cases: [(&[u8], &str); 6] = [
        (b"", "the archive is cut off at offset 0"),
        (b"{}", "the archive is cut off at offset 0"),
        (
            &[b'x'; 600],
            "not a tar archive: no entry at offset 0: wrong checksum",
        ),
        (&[0x1f, 0x8b, 8, 0], "the archive is compressed with gzip"),
        (
            &[0x28, 0xb5, 0x2f, 0xfd],
            "the archive is compressed with zstd",
        ),
        (b"BZh91AY", "the archive is compressed with bzip2"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(
            read(TarStream::new(bytes)).unwrap_err().to_string(),
            expected
        );
    }
}

#[test]
fn a_long_name_of_a_gigabyte_is_not_read() {
    let bytes = header("././@LongLink", tar::EntryType::GNULongName, 1 << 30);
    let mut stream = TarStream::new(bytes.as_bytes().chain(io::repeat(b'a')));
    let error = stream.next_entry().unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a tar archive: no entry at offset 0: extension too long"
    );
    assert_eq!(stream.next_entry().unwrap(), None);
}

#[test]
fn impossible_sizes() {
    for size in [
        [
            0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        [0xff; 12],
        [b'8'; 12],
    ] {
        let mut raw = header("x", tar::EntryType::Regular, 0);
        raw.as_mut_bytes()[124..136].copy_from_slice(&size);
        raw.set_cksum();
        for result in [
            read(TarStream::new(raw.as_bytes().as_slice())),
            read(TarStream::seekable(Cursor::new(raw.as_bytes()))),
        ] {
            assert!(
                matches!(result, Err(Error::BadHeader { .. })),
                "{size:?} {result:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = read(TarStream::new(bytes.as_slice()));
        let _ = read(TarStream::seekable(Cursor::new(&bytes)));
    }

    #[test]
    fn any_damage_is_answered(
        content in prop::collection::vec(any::<u8>(), 0..700),
        at in any::<prop::sample::Index>(), byte in any::<u8>(), fix in any::<bool>(),
    ) {
        let mut bytes = archive(&[(&"n".repeat(120), &content), ("checkpoint/a", b"b")]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if fix {
            // So that the checksum does not keep the damage from being looked at.
            let start = at / 512 * 512;
            let block = &mut bytes[start..start + 512];
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let streamed = read(TarStream::new(bytes.as_slice())).map_err(|e| e.to_string());
        let seeked = read(TarStream::seekable(Cursor::new(&bytes))).map_err(|e| e.to_string());
        prop_assert_eq!(streamed.is_ok(), seeked.is_ok());
    }
}
