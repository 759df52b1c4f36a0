//! Writing an image: the layer as a stream, then the three documents.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::model::{self, Config, Descriptor, Index, Manifest, Platform, RootFs};
use super::{Digest, Hasher};
use crate::write::Archive;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, by a level from 0 to 9.
    Gzip(u32),
    /// Zstandard, by a level from 1 to 22.
    Zstd(i32),
}

impl Compression {
    fn media_type(self) -> String {
        let suffix = match self {
            Self::None => "",
            Self::Gzip(_) => "+gzip",
            Self::Zstd(_) => "+zstd",
        };
        format!("{}{suffix}", model::LAYER)
    }
}

/// Writes the layer of an image: files in, compressed tar out. The same files in the same order
/// give the same bytes: all are root's, for root alone, and of 1970.
pub struct LayerWriter<W: Write> {
    tar: Archive<Hashed<Compressor<Hashed<W>>>>,
    compression: Compression,
}

impl<W: Write> LayerWriter<W> {
    /// Compresses on `threads` threads beside this one where the format can; how many makes no
    /// difference to the bytes.
    ///
    /// # Errors
    ///
    /// When the level is none of the format's.
    pub fn new(out: W, compression: Compression, threads: u32) -> io::Result<Self> {
        let out = Hashed::new(out);
        let compressor = match compression {
            Compression::None => Compressor::None(out),
            Compression::Gzip(level) => Compressor::Gzip(Box::new(flate2::write::GzEncoder::new(
                out,
                flate2::Compression::new(level.min(9)),
            ))),
            Compression::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                // One thread and none differ in their bytes, one and more do not.
                encoder.multithread(threads.max(1))?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(Box::new(encoder))
            }
        };
        Ok(Self {
            tar: Archive::new(Hashed::new(compressor)),
            compression,
        })
    }

    /// The tar that becomes the layer.
    pub fn archive(&mut self) -> &mut Archive<impl Write> {
        &mut self.tar
    }

    /// Writes what is left, and says what the layer has become.
    ///
    /// # Errors
    ///
    /// Those of what is written to.
    pub fn finish(self) -> io::Result<(W, Layer)> {
        let hashed = self.tar.finish()?;
        let diff_id = hashed.hasher.finish();
        let out = match hashed.inner {
            Compressor::None(out) => out,
            Compressor::Gzip(encoder) => encoder.finish()?,
            Compressor::Zstd(encoder) => encoder.finish()?,
        };
        let layer = Layer {
            descriptor: Descriptor {
                media_type: self.compression.media_type(),
                digest: out.hasher.finish(),
                size: out.length,
                platform: None,
                annotations: BTreeMap::new(),
            },
            diff_id,
        };
        Ok((out.inner, layer))
    }
}

impl<W: Write> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter").finish_non_exhaustive()
    }
}

/// A layer that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// The digest of its tar.
    pub diff_id: Digest,
}

/// The documents of an image, with the descriptors of what is not a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The configuration.
    pub config: (Descriptor, Vec<u8>),
    /// The manifest.
    pub manifest: (Descriptor, Vec<u8>),
    /// The index, which names the image.
    pub index: (Descriptor, Vec<u8>),
}

impl Image {
    /// Makes the documents around a layer. The annotations stand in index and manifest.
    ///
    /// # Errors
    ///
    /// None: all that is put in has a form in JSON.
    pub fn new(
        layer: Layer,
        platform: &Platform,
        created: Option<&str>,
        annotations: &BTreeMap<String, String>,
    ) -> serde_json::Result<Self> {
        let config = serde_json::to_vec(&Config {
            created: created.map(str::to_owned),
            platform: platform.clone(),
            config: BTreeMap::new(),
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: vec![layer.diff_id],
            },
        })?;
        let config = (Descriptor::of(model::CONFIG, &config), config);
        let manifest = serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: Some(model::MANIFEST.to_owned()),
            config: config.0.clone(),
            layers: vec![layer.descriptor],
            annotations: annotations.clone(),
        })?;
        let manifest = (Descriptor::of(model::MANIFEST, &manifest), manifest);
        let index = serde_json::to_vec(&Index {
            schema_version: 2,
            media_type: Some(model::INDEX.to_owned()),
            manifests: vec![Descriptor {
                platform: Some(platform.clone()),
                ..manifest.0.clone()
            }],
            annotations: annotations.clone(),
        })?;
        let index = (Descriptor::of(model::INDEX, &index), index);
        Ok(Self {
            config,
            manifest,
            index,
        })
    }
}

enum Compressor<W: Write> {
    None(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Compressor<W> {
    fn out(&mut self) -> &mut dyn Write {
        match self {
            Self::None(out) => out,
            Self::Gzip(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out().flush()
    }
}

/// Passes bytes on, and keeps their digest and number.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    length: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::default(),
            length: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn layer(compression: Compression, threads: u32) -> (Vec<u8>, Layer) {
        let mut writer = LayerWriter::new(Vec::new(), compression, threads).unwrap();
        writer.archive().directory("checkpoint").unwrap();
        let pages: Vec<u8> = (0u32..1 << 20)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let name = format!("checkpoint/{}.img", "long".repeat(40));
        writer
            .archive()
            .file(&name, pages.len() as u64, &mut &*pages)
            .unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn the_same_files_have_the_same_digest() {
        let (plain, reference) = layer(Compression::None, 1);
        assert_eq!(reference.diff_id, reference.descriptor.digest);
        assert_eq!(Digest::of(&plain), reference.diff_id);
        for compression in [Compression::Gzip(1), Compression::Zstd(1)] {
            let (bytes, first) = layer(compression, 1);
            assert_eq!(first.diff_id, reference.diff_id);
            assert_eq!(first.descriptor.digest, Digest::of(&bytes));
            assert_eq!(first.descriptor.size, bytes.len() as u64);
            assert_eq!(layer(compression, 3), (bytes.clone(), first));
            let mut unpacked = Vec::new();
            match compression {
                Compression::Gzip(_) => {
                    flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut unpacked)
                }
                _ => zstd::Decoder::new(&*bytes)
                    .unwrap()
                    .read_to_end(&mut unpacked),
            }
            .unwrap();
            assert!(unpacked == plain);
        }
    }

    #[test]
    fn the_documents_refer_to_each_other() {
        let (_, layer) = layer(Compression::Zstd(1), 2);
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let platform = Platform::linux("x86_64");
        let image = Image::new(
            layer.clone(),
            &platform,
            Some("2026-01-01T00:00:00Z"),
            &annotations,
        )
        .unwrap();
        let model::Document::Index(index) = model::Document::parse(None, &image.index.1).unwrap()
        else {
            panic!("no index");
        };
        assert_eq!(index.annotations, annotations);
        assert_eq!(
            index.select(&platform).unwrap().digest,
            image.manifest.0.digest
        );
        let manifest = Manifest::parse(&image.manifest.1).unwrap();
        assert_eq!(manifest.annotations, annotations);
        assert_eq!(manifest.layers, [layer.descriptor]);
        let config = Config::parse(&image.config.1).unwrap();
        assert_eq!(config.rootfs.diff_ids, [layer.diff_id]);
        assert_eq!(config.platform, platform);
    }
}
