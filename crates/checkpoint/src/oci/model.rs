//! Index, manifest and configuration of an image.
//!
//! Ours are written from these structs, their keys in the order of the fields and maps sorted, so
//! that the same checkpoint has the same digest on each day. Those of others are only read: they
//! are copied by their bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Digest;

/// Longest index, manifest or configuration that is read; registries have the same limit.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most manifests of an index, and most layers of a manifest.
pub const MAX_DESCRIPTORS: usize = 1024;

/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer, to which `+gzip` or `+zstd` is put.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's media type of an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's media type of a manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The annotation of a layout's `index.json` that holds the tag of an image.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same for containerd, which wants the whole name.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Why a document is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is longer than [`MAX_DOCUMENT_BYTES`].
    #[error("{what} has {size_bytes} bytes, more than the limit of {MAX_DOCUMENT_BYTES}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// How long it is.
        size_bytes: u64,
    },
    /// It is no JSON, or a field has not the form that it should have.
    #[error("{what} cannot be decoded")]
    BadJson {
        /// Which document.
        what: &'static str,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// It has the fields of both an index and a manifest, so that two readers would see two
    /// different images (CVE-2021-41190).
    #[error("the document is both an index and a manifest")]
    Ambiguous,
    /// It is neither index nor manifest.
    #[error("a document of type {0:?} is neither an image index nor an image manifest")]
    Unknown(String),
    /// It lists more than any image has.
    #[error("{what} lists {found} blobs, more than the limit of {MAX_DESCRIPTORS}")]
    TooMany {
        /// Which document.
        what: &'static str,
        /// How many.
        found: usize,
    },
    /// The index has no image for this machine.
    #[error("the index has no image for {0}")]
    NoPlatform(String),
}

/// Says where content is: by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Which.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// The machine it is for; of a manifest in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of content that is at hand.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// In the words of Go: `amd64`, `arm64`.
    pub architecture: String,
    /// Always `linux` for a checkpoint.
    pub os: String,
}

impl Platform {
    /// Linux on an architecture in the words of Rust or uname (`x86_64`), or already of Go.
    pub fn linux(architecture: &str) -> Self {
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" | "ppc64" => "ppc64le",
            "loongarch64" => "loong64",
            "mips64" => "mips64le",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
        }
    }
}

/// An index: images for several machines, or one image with annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// [`INDEX`]; may be missing in a layout's `index.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The images.
    pub manifests: Vec<Descriptor>,
    /// Notes on all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest: what an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// [`MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// Notes on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A configuration, as far as an image that is not run needs one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// When the image's content was made: the time of the checkpoint, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The machine.
    #[serde(flatten)]
    pub platform: Platform,
    /// How to run it: nothing. Readers want the key.
    #[serde(default)]
    pub config: BTreeMap<String, serde_json::Value>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// The layers of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the layers' tars, without compression.
    pub diff_ids: Vec<Digest>,
}

/// An index or a manifest of somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An index.
    Index(Index),
    /// A manifest.
    Manifest(Manifest),
}

impl Document {
    /// Parses a document of the type that its descriptor or `Content-Type` states, or that it
    /// states itself. It states one itself in all that is written today.
    ///
    /// # Errors
    ///
    /// All but [`Error::NoPlatform`].
    pub fn parse(stated: Option<&str>, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        let what = "the image's document";
        let outline: Outline = json(what, bytes)?;
        let is_manifest = outline.layers.is_some() || outline.config.is_some();
        if is_manifest && outline.manifests.is_some() {
            return Err(Error::Ambiguous);
        }
        let media_type = match (outline.media_type, stated.and_then(|s| s.split(';').next())) {
            (Some(own), _) => own,
            (None, Some(stated)) if !stated.trim().is_empty() => stated.trim().to_owned(),
            (None, _) if outline.manifests.is_some() => INDEX.to_owned(),
            (None, _) => MANIFEST.to_owned(),
        };
        match media_type.as_str() {
            INDEX | DOCKER_LIST => Index::parse("the image index", bytes).map(Self::Index),
            MANIFEST | DOCKER_MANIFEST => Manifest::parse(bytes).map(Self::Manifest),
            _ => Err(Error::Unknown(media_type)),
        }
    }

    /// What it refers to, each with whether it is a document itself.
    pub fn children(&self) -> Vec<(&Descriptor, bool)> {
        match self {
            Self::Index(index) => index.manifests.iter().map(|child| (child, true)).collect(),
            Self::Manifest(manifest) => std::iter::once(&manifest.config)
                .chain(&manifest.layers)
                .map(|child| (child, false))
                .collect(),
        }
    }

    /// Its annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Index(index) => &index.annotations,
            Self::Manifest(manifest) => &manifest.annotations,
        }
    }
}

impl Index {
    /// Parses an index; `what` is its name in errors.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::BadJson`], [`Error::TooMany`].
    pub fn parse(what: &'static str, bytes: &[u8]) -> Result<Self, Error> {
        let index: Self = json(what, bytes)?;
        bounded(what, index.manifests.len())?;
        Ok(index)
    }

    /// The image for a machine: the one that names it, or the only one.
    ///
    /// # Errors
    ///
    /// [`Error::NoPlatform`].
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor, Error> {
        let fits = |found: &&Descriptor| found.platform.as_ref() == Some(platform);
        match (self.manifests.iter().find(fits), self.manifests.as_slice()) {
            (Some(found), _) | (None, [found]) => Ok(found),
            _ => Err(Error::NoPlatform(format!(
                "{}/{}",
                platform.os, platform.architecture
            ))),
        }
    }
}

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::BadJson`], [`Error::TooMany`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let what = "the image manifest";
        let manifest: Self = json(what, bytes)?;
        bounded(what, manifest.layers.len())?;
        Ok(manifest)
    }
}

impl Config {
    /// Parses a configuration.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::BadJson`], [`Error::TooMany`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let what = "the image's configuration";
        let config: Self = json(what, bytes)?;
        bounded(what, config.rootfs.diff_ids.len())?;
        Ok(config)
    }
}

fn bounded(what: &'static str, found: usize) -> Result<(), Error> {
    if found > MAX_DESCRIPTORS {
        return Err(Error::TooMany { what, found });
    }
    Ok(())
}

fn json<T: for<'de> Deserialize<'de>>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    let size_bytes = bytes.len() as u64;
    if size_bytes > MAX_DOCUMENT_BYTES {
        return Err(Error::TooLarge { what, size_bytes });
    }
    serde_json::from_slice(bytes).map_err(|source| Error::BadJson { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(kind: &str) -> String {
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{HEX}","size":7}}"#)
    }

    #[test]
    fn documents_are_told_apart() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            descriptor(MANIFEST)
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(CONFIG),
            descriptor(LAYER)
        );
        for stated in [None, Some(INDEX)] {
            let document = Document::parse(stated, index.as_bytes()).unwrap();
            assert!(matches!(document, Document::Index(_)), "{document:?}");
            assert!(document.children().iter().all(|(_, document)| *document));
        }
        let stated = Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8");
        for stated in [None, stated] {
            let document = Document::parse(stated, manifest.as_bytes()).unwrap();
            assert_eq!(document.children().len(), 2);
        }
        let both = format!("{},{}", &index[..index.len() - 1], &manifest[1..]);
        assert!(matches!(
            Document::parse(
                Some(INDEX),
                both.replacen("\"schemaVersion\":2,", "", 1).as_bytes()
            ),
            Err(Error::Ambiguous)
        ));
        assert!(matches!(
            Document::parse(Some("text/html"), index.as_bytes()),
            Err(Error::Unknown(_))
        ));
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let long = vec![b' '; MAX_DOCUMENT_BYTES as usize + 1];
        assert!(matches!(
            Document::parse(None, &long),
            Err(Error::TooLarge { .. })
        ));
        let many = vec![descriptor(MANIFEST); MAX_DESCRIPTORS + 1].join(",");
        let many = format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#);
        assert!(matches!(
            Document::parse(None, many.as_bytes()),
            Err(Error::TooMany { .. })
        ));
    }

    #[test]
    fn the_image_of_a_machine_is_found() {
        let with = |architecture: &str| Descriptor {
            platform: Some(Platform::linux(architecture)),
            ..Descriptor::of(MANIFEST, architecture.as_bytes())
        };
        let mut index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![with("arm64"), with("x86_64")],
            annotations: BTreeMap::new(),
        };
        let amd = Platform::linux("amd64");
        assert_eq!(
            index.select(&amd).unwrap(),
            &with("amd64").clone_digest("x86_64")
        );
        assert!(index.select(&Platform::linux("s390x")).is_err());
        index.manifests.truncate(1);
        assert_eq!(index.select(&amd).unwrap(), &with("arm64"));
    }

    impl Descriptor {
        fn clone_digest(mut self, content: &str) -> Self {
            self.digest = Digest::of(content.as_bytes());
            self.size = content.len() as u64;
            self
        }
    }
}
