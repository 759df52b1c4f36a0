//! Addresses that a registry sends us to.

use std::fmt;
use std::str::FromStr;

use super::reference::is_local;

/// Longest address.
const MAX_BYTES: usize = 16 << 10;

/// An address of HTTP: scheme, host with port, path with query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    secure: bool,
    host: String,
    path: String,
}

/// Why an address is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is none of HTTP.
    #[error("{0:?} is no address of HTTP")]
    Bad(String),
    /// It leads from HTTPS to HTTP, where anybody may listen.
    #[error("the registry sends us from HTTPS to {0:?}, which is not encrypted")]
    Downgrade(String),
}

impl Url {
    /// An address on a host.
    pub fn new(secure: bool, host: &str, path: &str) -> Self {
        Self {
            secure,
            host: host.to_ascii_lowercase(),
            path: path.to_owned(),
        }
    }

    /// Where a `Location` leads that was got from this address.
    ///
    /// # Errors
    ///
    /// All of [`Error`].
    pub fn join(&self, location: &str) -> Result<Self, Error> {
        let to = if location.starts_with('/') && !location.starts_with("//") {
            format!("{}://{}{location}", self.scheme(), self.host).parse()?
        } else if let Some(query) = location.strip_prefix('?') {
            let path = self.path.split('?').next().unwrap_or_default();
            format!("{}://{}{path}?{query}", self.scheme(), self.host).parse()?
        } else {
            location.parse::<Self>()?
        };
        if self.secure && !to.secure {
            return Err(Error::Downgrade(to.to_string()));
        }
        Ok(to)
    }

    /// Whether what is meant for one may be told to the other: same scheme, host and port.
    pub fn same_origin(&self, other: &Self) -> bool {
        (self.secure, &self.host) == (other.secure, &other.host)
    }

    /// The same with one more parameter in its query.
    #[must_use]
    pub fn with_query(&self, key: &str, value: &str) -> Self {
        let between = if self.path.contains('?') { '&' } else { '?' };
        let mut path = format!("{}{between}{key}=", self.path);
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
        Self {
            path,
            ..self.clone()
        }
    }

    /// Whether nobody but the host can listen: it is HTTPS, or does not leave this machine.
    pub fn is_private(&self) -> bool {
        self.secure || is_local(&self.host)
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl FromStr for Url {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Bad(text.chars().take(200).collect());
        if text.len() > MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad());
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(bad()),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        // A user in front of the host would hide where it leads.
        let in_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        if host.is_empty() || !host.bytes().all(in_host) {
            return Err(bad());
        }
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self::new(secure, host, &path))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.host, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed() {
        let base: Url = "https://reg.example:5000/v2/a/blobs/uploads/"
            .parse()
            .unwrap();
        for (location, wanted) in [
            ("/v2/a?x=1", "https://reg.example:5000/v2/a?x=1"),
            ("https://Store.example/x", "https://store.example/x"),
            ("https://store.example?x", "https://store.example/?x"),
            (
                "?state=2",
                "https://reg.example:5000/v2/a/blobs/uploads/?state=2",
            ),
            ("https://store.example/x#part", "https://store.example/x"),
        ] {
            assert_eq!(base.join(location).unwrap().to_string(), wanted);
        }
        for location in [
            "",
            "x",
            "//evil.example/x",
            "ftp://x/",
            "https://",
            "https://a@b/",
            "https://a b/",
            "https://a\\@b/",
            "javascript:x",
        ] {
            assert!(
                matches!(base.join(location), Err(Error::Bad(_))),
                "{location}"
            );
        }
        assert!(matches!(
            base.join("http://reg.example:5000/x"),
            Err(Error::Downgrade(_))
        ));
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        let base: Url = "https://reg.example/v2/".parse().unwrap();
        let same = |text: &str| base.same_origin(&text.parse().unwrap());
        assert!(same("https://REG.example/other"));
        assert!(!same("https://reg.example:8443/v2/"));
        assert!(!same("https://reg.example.evil/v2/"));
        assert!(!same("http://reg.example/v2/"));
        assert!(base.is_private());
        assert!(!"http://reg.example/".parse::<Url>().unwrap().is_private());
        assert!("http://[::1]:5000/".parse::<Url>().unwrap().is_private());
    }

    #[test]
    fn queries_are_escaped() {
        let base: Url = "http://localhost/u?x=1".parse().unwrap();
        assert_eq!(
            base.with_query("digest", "sha256:a&b c").to_string(),
            "http://localhost/u?x=1&digest=sha256:a%26b%20c"
        );
        let base: Url = "http://localhost/u".parse().unwrap();
        assert_eq!(
            base.with_query("scope", "ä").to_string(),
            "http://localhost/u?scope=%C3%A4"
        );
    }
}
