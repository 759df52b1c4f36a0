//! Decompression, with bounds on memory and on what comes out.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blob::{Blob, Content};

/// Most memory of a decoder's window, in bytes: what `zstd -19`, `xz -8` and all of gzip and bzip2
/// need at most. A decoder is refused before it takes more.
const WINDOW_LOG: u32 = 25;

/// What may come out, in bytes: this much, and [`RATIO`] times what went in.
const SLACK_BYTES: u64 = 16 << 30;

/// Above what zeros take in gzip.
const RATIO: u64 = 1100;

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

impl Algorithm {
    /// How many bytes [`Algorithm::of`] has to see.
    pub const MAGIC_BYTES: usize = 6;

    /// By the first bytes of a file; `None` for what is not compressed.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 4] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (b"BZh", Self::Bzip2),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
        ];
        magics
            .iter()
            .find_map(|(magic, algorithm)| bytes.starts_with(magic).then_some(*algorithm))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// How a blob is compressed, by its first bytes.
///
/// # Errors
///
/// Whatever reading says.
pub(super) fn algorithm(blob: &Blob) -> io::Result<Option<Algorithm>> {
    let mut magic = Vec::with_capacity(Algorithm::MAGIC_BYTES);
    blob.reader()?
        .take(Algorithm::MAGIC_BYTES as u64)
        .read_to_end(&mut magic)?;
    Ok(Algorithm::of(&magic))
}

/// What a blob decompresses to. Only from its start on, so that each reader begins there; how long
/// it is shows at the end.
pub(super) fn unpacked(packed: Blob, algorithm: Algorithm) -> Blob {
    bounded(packed, algorithm, SLACK_BYTES)
}

fn bounded(packed: Blob, algorithm: Algorithm, slack_bytes: u64) -> Blob {
    let content = Unpacked {
        packed,
        algorithm,
        slack_bytes,
    };
    Blob::new(Arc::new(content), u64::MAX)
}

#[derive(Debug)]
struct Unpacked {
    packed: Blob,
    algorithm: Algorithm,
    slack_bytes: u64,
}

impl Content for Unpacked {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: self.packed.reader()?,
            taken: Arc::clone(&taken),
        };
        let input = BufReader::with_capacity(128 << 10, counted);
        let mut reader = Guarded {
            inner: decoder(self.algorithm, input)?,
            algorithm: self.algorithm,
            taken,
            given: 0,
            slack_bytes: self.slack_bytes,
        };
        io::copy(&mut (&mut reader).take(offset), &mut io::sink())?;
        Ok(Box::new(reader))
    }

    fn is_seekable(&self) -> bool {
        false
    }
}

/// Several members, frames or streams one after another are one file, as the programs have it.
fn decoder(
    algorithm: Algorithm,
    input: impl BufRead + Send + 'static,
) -> io::Result<Box<dyn Read + Send>> {
    Ok(match algorithm {
        Algorithm::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Algorithm::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Algorithm::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG)?;
            Box::new(decoder)
        }
        Algorithm::Xz => {
            // A little more than the window itself.
            let kib = (1 << (WINDOW_LOG - 10)) + (1 << 10);
            Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, kib))
        }
    })
}

struct Counted<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Ends with an error once more has come out than any checkpoint decompresses to.
struct Guarded<R> {
    inner: R,
    algorithm: Algorithm,
    taken: Arc<AtomicU64>,
    given: u64,
    slack_bytes: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.algorithm))
        })?;
        self.given = self.given.saturating_add(read as u64);
        let taken = self.taken.load(Ordering::Relaxed);
        if self.given > taken.saturating_mul(RATIO).saturating_add(self.slack_bytes) {
            let text = format!(
                "{}: {taken} bytes decompress to more than {} bytes, as no checkpoint does",
                self.algorithm, self.given
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pack(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        match algorithm {
            Algorithm::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Algorithm::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Algorithm::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
                // As the program does.
                encoder.include_checksum(true).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Algorithm::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(0);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    const ALL: [Algorithm; 4] = [
        Algorithm::Gzip,
        Algorithm::Zstd,
        Algorithm::Bzip2,
        Algorithm::Xz,
    ];

    #[test]
    fn all_of_them_from_any_offset() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        for algorithm in ALL {
            let packed = Blob::from_bytes(pack(algorithm, &plain));
            assert_eq!(super::algorithm(&packed).unwrap(), Some(algorithm));
            let blob = unpacked(packed, algorithm);
            for (offset, length) in [(0, 7), (700_001, 9), (1_199_999, 1)] {
                let mut found = Vec::new();
                let mut reader = blob.slice(offset, length).reader().unwrap();
                reader.read_to_end(&mut found).unwrap();
                let range =
                    usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
                assert_eq!(found, plain[range], "{algorithm}");
            }
        }
    }

    #[test]
    fn one_file_of_several_parts() {
        for algorithm in ALL {
            let mut packed = pack(algorithm, b"ab");
            packed.extend(pack(algorithm, b"cd"));
            let mut found = String::new();
            let blob = unpacked(Blob::from_bytes(packed), algorithm);
            blob.reader().unwrap().read_to_string(&mut found).unwrap();
            assert_eq!(found, "abcd", "{algorithm}");
        }
    }

    #[test]
    fn cut_off_or_changed() {
        let plain: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        for algorithm in ALL {
            let packed = pack(algorithm, &plain);
            let cut = packed[..packed.len() / 2].to_vec();
            let mut changed = packed.clone();
            changed[packed.len() / 2] ^= 0x10;
            for bytes in [cut, changed] {
                let blob = unpacked(Blob::from_bytes(bytes), algorithm);
                let error = io::copy(&mut blob.reader().unwrap(), &mut io::sink()).unwrap_err();
                let text = error.to_string();
                assert!(text.starts_with(&format!("{algorithm}: ")), "{text}");
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped() {
        let zeros = vec![0; 8 << 20];
        for algorithm in [Algorithm::Zstd, Algorithm::Bzip2, Algorithm::Xz] {
            let packed = Blob::from_bytes(pack(algorithm, &zeros));
            let mut reader = bounded(packed.clone(), algorithm, 1 << 20)
                .reader()
                .unwrap();
            let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
            assert!(
                error.to_string().ends_with("as no checkpoint does"),
                "{error}"
            );
            let mut whole = unpacked(packed, algorithm).reader().unwrap();
            assert_eq!(io::copy(&mut whole, &mut io::sink()).unwrap(), 8 << 20);
        }
    }

    #[test]
    fn a_window_of_a_gigabyte_is_refused() {
        // A frame header with a window of 2^30, and an xz block with a dictionary of 3 * 2^29.
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 1, 0, 0];
        let mut reader = unpacked(Blob::from_bytes(zstd.to_vec()), Algorithm::Zstd)
            .reader()
            .unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("too much memory"), "{error}");

        let mut packed = pack(Algorithm::Xz, b"x");
        let header = &mut packed[12..24];
        assert_eq!(header[2..4], [0x21, 1], "the filter is LZMA2");
        header[4] = 37;
        let mut sum = flate2::Crc::new();
        sum.update(&header[..8]);
        header[8..].copy_from_slice(&sum.sum().to_le_bytes());
        let mut reader = unpacked(Blob::from_bytes(packed), Algorithm::Xz)
            .reader()
            .unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
