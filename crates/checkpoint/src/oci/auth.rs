//! What a registry asks for before it answers, and what Docker's and Podman's credential files
//! have for it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

/// Longest credentials file and token answer that is read.
pub const MAX_BYTES: u64 = 1 << 20;

/// Longest header that is looked at.
const MAX_HEADER_BYTES: usize = 8 << 10;

/// One way to authenticate that a `WWW-Authenticate` header offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token, which `realm` gives out.
    Bearer {
        /// Where to ask for the token.
        realm: String,
        /// What the token is for.
        service: Option<String>,
        /// Which rights it shall have.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best way that a header offers; `None` if it offers none that we know.
    pub fn parse(header: &str) -> Option<Self> {
        if header.len() > MAX_HEADER_BYTES {
            return None;
        }
        let challenges = challenges(header);
        let scheme = |name: &str| {
            challenges
                .iter()
                .find(|(scheme, _)| scheme.eq_ignore_ascii_case(name))
        };
        if let Some((_, params)) = scheme("bearer")
            && let Some(realm) = params.get("realm")
        {
            return Some(Self::Bearer {
                realm: realm.clone(),
                service: params.get("service").cloned(),
                scope: params.get("scope").cloned(),
            });
        }
        scheme("basic").map(|_| Self::Basic)
    }
}

/// The schemes of a header with their parameters: `A x=1, y="2", B z=3`.
fn challenges(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest
            .find(|c: char| !c.is_ascii_graphic() || ",=\"".contains(c))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let value = after.trim_start_matches([' ', '\t']);
        let Some(value) = value.strip_prefix('=') else {
            found.push((word.to_owned(), BTreeMap::new()));
            rest = after;
            continue;
        };
        let value = value.trim_start_matches([' ', '\t']);
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => match unquote(quoted) {
                Some(parts) => parts,
                None => return found,
            },
            None => {
                let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
                let (value, after) = value.split_at(end);
                (value.to_owned(), after)
            }
        };
        match found.last_mut() {
            Some((_, params)) => {
                params.entry(word.to_ascii_lowercase()).or_insert(value);
            }
            None => return found,
        }
        rest = after;
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// The answer of a token's realm. Some have one key, some the other, some both.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token in the answer of a realm.
///
/// # Errors
///
/// When it is no JSON, or there is none in it.
pub fn token(answer: &[u8]) -> Result<String, serde_json::Error> {
    let answer: TokenAnswer = serde_json::from_slice(answer)?;
    let given = |token: &String| !token.is_empty();
    answer
        .token
        .filter(given)
        .or(answer.access_token.filter(given))
        .ok_or_else(|| serde::de::Error::missing_field("token"))
}

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password, or whatever the registry takes for one.
        password: String,
    },
    /// A token that the realm changes into one for a request.
    Refresh(String),
}

impl Credentials {
    /// The value of an `Authorization` header; `None` for a refresh token, which is no answer to
    /// a request itself.
    pub fn basic(&self) -> Option<String> {
        match self {
            Self::Basic { user, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            Self::Refresh(_) => None,
        }
    }

    /// What a helper program printed.
    ///
    /// # Errors
    ///
    /// When it is not the JSON that helpers print.
    pub fn from_helper(output: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Output {
            username: String,
            secret: String,
        }
        let output: Output = serde_json::from_slice(output)?;
        Ok(match output.username.as_str() {
            "<token>" => Self::Refresh(output.secret),
            _ => Self::Basic {
                user: output.username,
                password: output.secret,
            },
        })
    }
}

/// Without the secret: it ends up in logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user:?})"),
            Self::Refresh(_) => f.write_str("Refresh"),
        }
    }
}

/// What a credentials file has for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The credentials themselves.
    Known(Credentials),
    /// The program `docker-credential-NAME` has them, and is asked for `server`.
    Helper {
        /// Letters, digits, `-`, `_` and `.` alone.
        name: String,
        /// What to ask it for.
        server: String,
    },
}

/// A credentials file: `~/.docker/config.json`, or Podman's `auth.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CredentialsFile {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

impl CredentialsFile {
    /// Parses a file.
    ///
    /// # Errors
    ///
    /// When it is no JSON of this form. The error names no value.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// What it has for a repository of a registry: Podman's file may have several, by
    /// namespace, and the longest match counts.
    pub fn find(&self, registry: &str, repository: &str) -> Option<Entry> {
        let helper = |name: &str, server: &str| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (!name.is_empty() && name.bytes().all(letter)).then(|| Entry::Helper {
                name: name.to_owned(),
                server: server.to_owned(),
            })
        };
        let aliases: &[&str] = match registry {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
                &["docker.io", "index.docker.io", "registry-1.docker.io"]
            }
            _ => &[registry],
        };
        for alias in aliases {
            if let Some(name) = self.cred_helpers.get(*alias) {
                return helper(name, alias);
            }
        }
        let docker = aliases.len() > 1;
        for alias in aliases {
            let mut key = format!("{alias}/{repository}");
            loop {
                let found = self
                    .auths
                    .iter()
                    .find(|(name, auth)| plain_key(name) == key && auth.credentials().is_some());
                if let Some(known) = found.and_then(|(_, auth)| auth.credentials()) {
                    return Some(Entry::Known(known));
                }
                match key.rfind('/') {
                    Some(slash) => key.truncate(slash),
                    None => break,
                }
            }
        }
        let server = if docker {
            "https://index.docker.io/v1/"
        } else {
            registry
        };
        helper(self.creds_store.as_deref().unwrap_or_default(), server)
    }
}

/// A key without what old files have around the host: `https://HOST/v1/`.
fn plain_key(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key)
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        if !self.identitytoken.is_empty() {
            return Some(Credentials::Refresh(self.identitytoken.clone()));
        }
        if !self.auth.is_empty() {
            let packed = self.auth.trim().trim_end_matches('=');
            let plain = STANDARD_NO_PAD.decode(packed).ok()?;
            let plain = String::from_utf8(plain).ok()?;
            let (user, password) = plain.split_once(':')?;
            return Some(Credentials::Basic {
                user: user.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            });
        }
        (!self.username.is_empty()).then(|| Credentials::Basic {
            user: self.username.clone(),
            password: self.password.clone(),
        })
    }
}

/// How many bytes of an upload the registry has, by the `Range: 0-LAST` of its answer. A
/// registry that has none yet says `0-0`, as does one that has a single byte; the caller takes
/// both for none.
pub fn received(range: &str) -> Option<u64> {
    let range = range.trim();
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    match (first, last.parse::<u64>().ok()?) {
        ("0", 0) => Some(0),
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}

/// Where the content of a partial answer begins, by its `Content-Range: bytes FIRST-LAST/TOTAL`.
pub fn first_byte(content_range: &str) -> Option<u64> {
    let range = content_range.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_are_parsed() {
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (r#"bearer realm="a\"b""#, bearer("a\"b", None, None)),
            (
                "BEARER  realm = x , service=y",
                bearer("x", Some("y"), None),
            ),
            (
                r#"Basic realm="r", Bearer realm="t""#,
                bearer("t", None, None),
            ),
            (r#"Basic realm="registry""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer", None),
            ("Bearer service=x", None),
            ("Negotiate", None),
            ("", None),
            (r#"Bearer realm="open"#, None),
            ("=,=", None),
        ] {
            assert_eq!(Challenge::parse(header), wanted, "{header}");
        }
    }

    #[test]
    fn tokens_are_found() {
        assert_eq!(token(br#"{"token":"a"}"#).unwrap(), "a");
        assert_eq!(
            token(br#"{"token":"","access_token":"b","expires_in":3}"#).unwrap(),
            "b"
        );
        assert!(token(b"{}").is_err());
        assert!(token(b"<html>").is_err());
    }

    #[test]
    fn credentials_are_found() {
        let file = CredentialsFile::parse(
            br#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"bWU6c2VjcmV0"},
                "quay.io":{"auth":"YTpi"},
                "quay.io/team":{"auth":"Yzpk"},
                "token.example":{"identitytoken":"t","auth":"YTo="},
                "empty.example":{},
                "localhost:5000":{"username":"u","password":"p"}},
              "credHelpers":{"ecr.example":"ecr-login","evil.example":"../x"},
              "credsStore":"store"}"#,
        )
        .unwrap();
        let basic = |user: &str, password: &str| {
            Some(Entry::Known(Credentials::Basic {
                user: user.into(),
                password: password.into(),
            }))
        };
        let helper = |name: &str, server: &str| {
            Some(Entry::Helper {
                name: name.into(),
                server: server.into(),
            })
        };
        assert_eq!(file.find("docker.io", "library/a"), basic("me", "secret"));
        assert_eq!(file.find("quay.io", "a"), basic("a", "b"));
        assert_eq!(file.find("quay.io", "team/x"), basic("c", "d"));
        assert_eq!(file.find("quay.io", "teams/x"), basic("a", "b"));
        assert_eq!(file.find("localhost:5000", "x"), basic("u", "p"));
        assert_eq!(
            file.find("token.example", "x"),
            Some(Entry::Known(Credentials::Refresh("t".into())))
        );
        assert_eq!(
            file.find("ecr.example", "x"),
            helper("ecr-login", "ecr.example")
        );
        assert_eq!(file.find("evil.example", "x"), None);
        assert_eq!(
            file.find("empty.example", "x"),
            helper("store", "empty.example")
        );
        let none = CredentialsFile::parse(b"{}").unwrap();
        assert_eq!(none.find("quay.io", "x"), None);
        let known = basic("u", "geheim");
        assert!(!format!("{known:?}").contains("geheim"));
    }

    #[test]
    fn ranges_are_parsed() {
        assert_eq!(received("0-0"), Some(0));
        assert_eq!(received("0-1023"), Some(1024));
        assert_eq!(received("bytes=0-9"), Some(10));
        assert_eq!(received("5-9"), None);
        assert_eq!(received("0-"), None);
        assert_eq!(received(&format!("0-{}", u64::MAX)), None);
        assert_eq!(first_byte("bytes 5-9/10"), Some(5));
        assert_eq!(first_byte("bytes */10"), None);
    }
}
