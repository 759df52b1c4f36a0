//! Names of images, and of the places where images are.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::Digest;

/// Longest name of an image, repository and registry together.
const MAX_NAME_BYTES: usize = 255;

/// Longest tag.
const MAX_TAG_BYTES: usize = 128;

/// Docker's registry, which a name without one means.
const DOCKER: &str = "docker.io";

/// Why a text names no image or place.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} {problem}")]
pub struct BadName {
    text: String,
    problem: &'static str,
}

impl BadName {
    fn new(text: &str, problem: &'static str) -> Self {
        Self {
            text: text.chars().take(300).collect(),
            problem,
        }
    }
}

/// The name of an image in a registry: `REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
///
/// As everywhere since Docker, `name` means `docker.io/library/name:latest`: the first part is a
/// registry only with a dot, a port, or as `localhost`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    /// The name there.
    pub repository: String,
    /// The tag; `latest` if the text has neither tag nor digest.
    pub tag: Option<String>,
    /// The digest of the index or manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What a registry's API is asked for: the digest, which wins, or the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Host and port of the registry's API.
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }

    /// Whether the registry is on this machine, where plain HTTP is no danger.
    pub fn is_local(&self) -> bool {
        is_local(self.host())
    }
}

/// Whether a host, with or without a port, is this machine's own by its name or address.
pub fn is_local(host: &str) -> bool {
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

impl FromStr for Reference {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |problem| BadName::new(text, problem);
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| bad("is no image name: its digest is not sha256:<64 digits>"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon before the last slash is that of a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad(
                "is no image name: a tag has up to 128 letters, digits, '_', '.' and '-'",
            ));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, repository)) if is_registry(first) => (first, repository.to_owned()),
            _ => (DOCKER, name.to_owned()),
        };
        let repository = if registry == DOCKER && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if !is_host(registry) {
            return Err(bad("is no image name: its registry is not HOST[:PORT]"));
        }
        if registry.len() + repository.len() >= MAX_NAME_BYTES {
            return Err(bad("is no image name: it is longer than 255 bytes"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "is no image name: its parts are lower-case letters and digits, \
                 with single '.', '_', '__' or '-' between them",
            ));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        (
            "v6",
            rest.strip_prefix(':').or((!rest.is_empty()).then_some("x")),
        )
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        bytes.iter().all(inner)
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
    };
    host.split('.').all(label)
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

/// `[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|&b| word(b)) || !bytes.last().is_some_and(|&b| word(b)) {
        return false;
    }
    text.split(|c: char| c.is_ascii() && word(c as u8))
        .all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=MAX_TAG_BYTES).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with(['.', '-'])
}

/// A place where an image is or shall be, in the syntax of skopeo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `oci:DIR[:TAG]`: an OCI image layout.
    Layout {
        /// The directory.
        path: PathBuf,
        /// The image in it; the only one if `None`.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: the same as a tar archive.
    Archive {
        /// The file.
        path: PathBuf,
        /// The image in it; the only one if `None`.
        tag: Option<String>,
    },
    /// `containerd:NAME`, or the name alone: an image in containerd's store.
    Containerd(Reference),
    /// `docker://NAME`: an image in a registry.
    Registry(Reference),
}

impl FromStr for Place {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        if let Some(name) = text.strip_prefix("docker://") {
            return name.parse().map(Self::Registry);
        }
        if let Some(name) = text.strip_prefix("containerd:") {
            return name.parse().map(Self::Containerd);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (path, tag) = path_and_tag(text, rest)?;
            return Ok(Self::Layout { path, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (path, tag) = path_and_tag(text, rest)?;
            return Ok(Self::Archive { path, tag });
        }
        for (prefix, problem) in [
            (
                "containers-storage:",
                "cannot be used: Podman's and CRI-O's store is no open interface; \
                 write oci-archive:FILE and give that to 'podman load', or push to a registry",
            ),
            (
                "docker-daemon:",
                "cannot be used: write oci-archive:FILE and give that to 'docker load'",
            ),
            (
                "docker-archive:",
                "cannot be used: that form has no annotations, so no engine would know a checkpoint in it",
            ),
        ] {
            if text.starts_with(prefix) {
                return Err(BadName::new(text, problem));
            }
        }
        text.parse().map(Self::Containerd)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, tag) = match self {
            Self::Layout { path, tag } => ("oci", path, tag),
            Self::Archive { path, tag } => ("oci-archive", path, tag),
            Self::Containerd(name) => return write!(f, "containerd:{name}"),
            Self::Registry(name) => return write!(f, "docker://{name}"),
        };
        write!(f, "{kind}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

/// Splits at the first colon, as skopeo does. What follows may be any name without white space
/// and control characters: layouts of other tools have whole image names there.
fn path_and_tag(text: &str, rest: &str) -> Result<(PathBuf, Option<String>), BadName> {
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(BadName::new(text, "names no path"));
    }
    let graphic = |tag: &str| tag.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(tag) = tag
        && (tag.is_empty() || tag.len() > MAX_NAME_BYTES || !graphic(tag))
    {
        return Err(BadName::new(
            text,
            "has no tag after its colon; a path with a colon in it cannot be named here",
        ));
    }
    Ok((path.into(), tag.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed() {
        let with_digest = format!("localhost:5000/a/b@sha256:{HEX}");
        for (text, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/tool", "docker.io/me/tool:latest"),
            ("localhost/tool", "localhost/tool:latest"),
            ("host:5000/tool", "host:5000/tool:latest"),
            ("quay.io/a/b/c:V_1.2-x", "quay.io/a/b/c:V_1.2-x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("a__b--c/d.e", "docker.io/a__b--c/d.e:latest"),
            (&with_digest, &with_digest),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole);
            assert_eq!(whole.parse::<Reference>().unwrap(), reference);
        }
        let reference: Reference = format!("quay.io/a:t@sha256:{HEX}").parse().unwrap();
        assert_eq!(reference.version(), format!("sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a/".repeat(200) + "a";
        for text in [
            "",
            ":",
            "@",
            "a:",
            "A",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "host:99999/a",
            "host:x/a",
            "quay.io/../a",
            "quay.io/a:-x",
            "[::1/a",
            "[::1]x/a",
            "a@sha256:00",
            "user:pass@host/a",
            "http://host/a",
            "h.o/a?b",
            "h.o/a#b",
            "h.o/a%2e",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn this_machine_is_known() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.8.8.8:80",
            "[::1]:5000",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "localhost.example.com",
            "10.0.0.1",
            "127.0.0.1.nip.io",
            "[::2]:5000",
            "host",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn places_are_told_apart() {
        let layout = |path: &str, tag: Option<&str>| Place::Layout {
            path: path.into(),
            tag: tag.map(str::to_owned),
        };
        assert_eq!("oci:dir".parse::<Place>().unwrap(), layout("dir", None));
        assert_eq!(
            "oci:/a/b:t".parse::<Place>().unwrap(),
            layout("/a/b", Some("t"))
        );
        assert_eq!(
            "oci:d:docker.io/a:1".parse::<Place>().unwrap(),
            layout("d", Some("docker.io/a:1"))
        );
        assert!(matches!(
            "oci-archive:f.tar:t".parse(),
            Ok(Place::Archive { .. })
        ));
        assert!(matches!(
            "docker://localhost:5000/a:t".parse(),
            Ok(Place::Registry(_))
        ));
        for text in ["a:t", "containerd:a:t"] {
            let Ok(Place::Containerd(name)) = text.parse() else {
                panic!("{text}");
            };
            assert_eq!(name.to_string(), "docker.io/library/a:t");
        }
        for text in [
            "oci:",
            "oci::t",
            "oci:d:",
            "oci:d: ",
            "containers-storage:a",
            "docker://",
            "docker-daemon:a",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
        for text in [
            "oci:d",
            "oci:d:t",
            "oci-archive:d:t",
            "docker://docker.io/library/a:t",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
    }
}
