//! Who we are to a registry: credentials from files and helpers, and tokens for them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use cryo_checkpoint::oci::auth::{self, Credentials, CredentialsFile, Entry};
use cryo_checkpoint::oci::reference::Reference;
use cryo_checkpoint::oci::url::Url;
use http::{Method, StatusCode};

use super::Access;
use super::http::{Client, body, refusal};

/// Credentials, and where they were.
pub(super) struct Login {
    pub(super) credentials: Credentials,
    pub(super) from: String,
}

/// The credentials for a repository, if there are any.
pub(super) fn find(access: &Access, name: &Reference) -> anyhow::Result<Option<Login>> {
    for path in files(access) {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && access.authfile.is_none() => {
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        };
        if let Some(entry) = parse(&path, file)?.find(&name.registry, &name.repository) {
            return match entry {
                Entry::Known(credentials) => Ok(Some(Login {
                    credentials,
                    from: path.display().to_string(),
                })),
                Entry::Helper { name, server } => helper(&name, &server),
            };
        }
    }
    Ok(None)
}

/// Where they may be; only what was named, if something was.
fn files(access: &Access) -> Vec<PathBuf> {
    let variable = |name: &str| {
        let value = std::env::var_os(name)?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    if let Some(path) = &access.authfile {
        return vec![path.clone()];
    }
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return vec![path];
    }
    let home = variable("HOME");
    [
        variable("DOCKER_CONFIG")
            .or_else(|| Some(home.as_ref()?.join(".docker")))
            .map(|path| path.join("config.json")),
        variable("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json")),
        home.map(|path| path.join(".config/containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn parse(path: &Path, file: File) -> anyhow::Result<CredentialsFile> {
    let mut bytes = Vec::new();
    file.take(auth::MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let shown = path.display();
    ensure!(
        bytes.len() as u64 <= auth::MAX_BYTES,
        "{shown} is too long for a file of credentials"
    );
    CredentialsFile::parse(&bytes).with_context(|| format!("{shown} is no file of credentials"))
}

/// Asks the program `docker-credential-NAME`.
fn helper(name: &str, server: &str) -> anyhow::Result<Option<Login>> {
    let program = format!("docker-credential-{name}");
    let context = || format!("the credentials of {server} are kept by {program}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(context)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by its exit code.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().with_context(context)?;
    if output.status.success() {
        let credentials = Credentials::from_helper(&output.stdout).with_context(context)?;
        return Ok(Some(Login {
            credentials,
            from: program,
        }));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("credentials not found") {
        return Ok(None);
    }
    bail!("{}, which fails: {}", context(), said.trim())
}

/// What a token is for.
pub(super) struct Wanted<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
    /// Whether it was asked for HTTP without encryption.
    pub(super) plain_http: bool,
}

/// Gets a token from a realm.
pub(super) fn token(
    client: &Client,
    wanted: &Wanted<'_>,
    login: Option<&Login>,
) -> anyhow::Result<String> {
    let mut url: Url = wanted.realm.parse().context("the registry's realm")?;
    ensure!(
        url.is_private() || wanted.plain_http,
        "the registry sends us for a token to {url}, which is not encrypted"
    );
    let what = format!("a token from {}", url.host());
    let credentials = login.map(|login| &login.credentials);
    let mut answer = if let Some(Credentials::Refresh(refresh)) = credentials {
        // A form has the same escapes as a query.
        let form = Url::new(true, "form", "/")
            .with_query("grant_type", "refresh_token")
            .with_query("client_id", "cryoctl")
            .with_query("service", wanted.service.unwrap_or_default())
            .with_query("scope", wanted.scope)
            .with_query("refresh_token", refresh)
            .to_string();
        let form = form.split_once('?').map_or("", |(_, form)| form);
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        client.send(&Method::POST, &url, &headers, Some(form.as_bytes()))?
    } else {
        if let Some(service) = wanted.service {
            url = url.with_query("service", service);
        }
        url = url.with_query("scope", wanted.scope);
        let basic = credentials.and_then(Credentials::basic);
        let headers: Vec<(&str, &str)> = basic
            .iter()
            .map(|basic| ("authorization", basic.as_str()))
            .collect();
        client.send(&Method::GET, &url, &headers, None)?
    };
    if !answer.status().is_success() {
        return Err(match (answer.status(), login) {
            (StatusCode::UNAUTHORIZED, Some(login)) => refused(&what, login),
            _ => refusal(&what, &mut answer),
        });
    }
    let text = body(&mut answer, auth::MAX_BYTES)?;
    auth::token(&text).with_context(|| format!("{what}: the answer has none"))
}

/// What it means that one who wants to know who we are does not take what we say.
pub(super) fn refused(what: &str, login: &Login) -> anyhow::Error {
    let (who, from) = (&login.credentials, &login.from);
    let given = match who {
        Credentials::Basic { user, .. } => format!("the password of {user:?}"),
        Credentials::Refresh(_) => "the token".to_owned(),
    };
    anyhow!(
        "{what}: the registry does not take {given} from {from}, or gives no right to this; log in again with 'docker login' or 'podman login', or name another file with --authfile"
    )
}
