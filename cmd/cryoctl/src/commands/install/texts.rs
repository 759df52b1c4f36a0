//! What is written, and what containerd's own configuration has.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cryo_criu::options::{Access, Checkpoint, Kind, Restore, Table};
use toml::Value;

use super::files::{self, Change};
use crate::containerd::cri::OWN_NAME;
use crate::options::plain;

/// The form of containerd's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// Of 1.7; newer ones read it too.
    Two,
    /// Since 2.0.
    Three,
}

impl Version {
    fn number(self) -> i64 {
        match self {
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// The name of CRI's plugin.
    fn plugin(self) -> &'static str {
        match self {
            Self::Two => "io.containerd.grpc.v1.cri",
            Self::Three => "io.containerd.cri.v1.runtime",
        }
    }
}

/// The file with the runtimes.
///
/// # Errors
///
/// When the shim's path cannot be written in it.
pub(super) fn drop_in(
    version: Version,
    shim: &Path,
    runc: Option<&str>,
    own: Option<&str>,
) -> anyhow::Result<String> {
    let shim = shim.to_str().context("the shim's path is not UTF-8")?;
    if shim.contains(|c: char| c == '"' || c == '\\' || c.is_control()) {
        bail!("the shim's path has characters that a configuration should not have: {shim:?}");
    }
    let mut text = format!(
        "# cryo as a runtime of containerd's CRI. Read when containerd starts.\nversion = {}\n",
        version.number()
    );
    let mut table = |name: &str, lines: &[String]| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "\n[plugins.'{}'.containerd.runtimes.{name}]",
            version.plugin()
        );
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
        text.push_str("  pod_annotations = [\"checkpoint.cryo/*\", \"restore.cryo/*\"]\n");
        text.push_str("  container_annotations = [\"checkpoint.cryo/*\", \"restore.cryo/*\"]\n");
    };
    if let Some(name) = runc {
        table(
            name,
            &[
                "runtime_type = \"io.containerd.runc.v2\"".to_owned(),
                format!("runtime_path = \"{shim}\""),
            ],
        );
    }
    if let Some(name) = own {
        table(name, &[format!("runtime_type = \"{OWN_NAME}\"")]);
    }
    Ok(text)
}

/// The manifest for Kubernetes.
pub(super) fn runtime_class(handler: &str) -> String {
    format!(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {handler}\nhandler: {handler}\n"
    )
}

/// cryo's own configuration, with all its keys as comments.
pub(super) fn config() -> String {
    let mut text = String::from(
        "# What this node decides for cryo. Every key is optional; docs/configuration.md has all.\n\n[criu]\n# The program that freezes and wakes, 4.0 or newer.\n# path = \"/usr/sbin/criu\"\n",
    );
    section::<Checkpoint>(&mut text);
    text.push_str("# How long a client may take from its checkpoint to its Resume: 90s, 15m, 1h, or never.\n# resume-within = \"1h\"\n");
    section::<Restore>(&mut text);
    text
}

fn section<T: Table>(text: &mut String) {
    let _ = writeln!(text, "\n[{}]", T::SECTION);
    for option in T::OPTIONS {
        let value = match &option.kind {
            Kind::Refused(_) => continue,
            _ if option.access == Access::Request => continue,
            Kind::Flag(_) => option.default.to_owned(),
            Kind::Number { .. } if option.default.parse::<u32>().is_ok() => {
                option.default.to_owned()
            }
            _ => format!("\"{}\"", option.default),
        };
        let meaning = plain(option.meaning);
        let _ = writeln!(text, "# {meaning}\n# {} = {value}", option.name);
    }
}

/// A runtime's table in what `containerd config dump` prints.
pub(super) fn runtime_of<'a>(
    dump: &'a toml::Table,
    version: Version,
    name: &str,
) -> Option<&'a toml::Table> {
    let plugin = dump.get("plugins")?.get(version.plugin())?;
    plugin
        .get("containerd")?
        .get("runtimes")?
        .get(name)?
        .as_table()
}

/// The line that we add, to know it again.
const ADDED: &str = " # by `cryoctl install`";

/// containerd's own configuration.
#[derive(Debug)]
pub(super) struct Main {
    path: PathBuf,
    text: Option<String>,
    table: toml::Table,
}

impl Main {
    /// Reads it; it may not be there.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no TOML.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = files::read(path)?;
        let table = text.as_deref().unwrap_or_default().parse();
        Ok(Self {
            path: path.to_owned(),
            table: table.with_context(|| format!("{} cannot be read", path.display()))?,
            text,
        })
    }

    /// Its form, if it says.
    pub(super) fn version(&self) -> Option<Version> {
        match self.table.get("version")?.as_integer()? {
            2 => Some(Version::Two),
            3.. => Some(Version::Three),
            _ => None,
        }
    }

    /// What has to be done so that it imports a file.
    ///
    /// # Errors
    ///
    /// When it does not and may not be changed, or imports others.
    pub(super) fn import(
        &self,
        file: &Path,
        version: Version,
        may_add: bool,
    ) -> anyhow::Result<Option<Change>> {
        let path = self.path.display();
        let imports = self.table.get("imports").and_then(Value::as_array);
        let patterns: Vec<&str> = imports
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if patterns.iter().any(|pattern| covers(pattern, file)) {
            return Ok(None);
        }
        let dir = file.parent().unwrap_or(Path::new("/"));
        let line = format!("imports = [\"{}/*.toml\"]", dir.display());
        let Some(text) = &self.text else {
            let added = format!("version = {}{ADDED}\n{line}{ADDED}\n", version.number());
            return Ok(Some(self.change(Some(added))));
        };
        if imports.is_some() {
            bail!(
                "{path} imports {}, but not {}: add it there",
                patterns.join(", "),
                file.display()
            );
        }
        if !may_add {
            bail!(
                "{path} imports nothing, so containerd would not read {}: say --add-import, or put at its top: {line}",
                file.display()
            );
        }
        Ok(Some(self.change(Some(format!("{line}{ADDED}\n{text}")))))
    }

    /// What has to be done so that none of our lines is in it.
    pub(super) fn without_import(&self) -> Option<Change> {
        let text = self.text.as_ref()?;
        let rest: String = text
            .split_inclusive('\n')
            .filter(|line| !line.trim_end().ends_with(ADDED))
            .collect();
        let change = self.change(Some(rest).filter(|rest| !rest.is_empty()));
        change.is_one().then_some(change)
    }

    fn change(&self, after: Option<String>) -> Change {
        Change {
            path: self.path.clone(),
            before: self.text.clone(),
            after,
        }
    }
}

/// Whether a pattern of `imports` is for this file. Of a name's pattern, containerd's users write
/// nothing but a star.
fn covers(pattern: &str, file: &Path) -> bool {
    let pattern = Path::new(pattern);
    if pattern == file {
        return true;
    }
    let names = (
        pattern.file_name().and_then(|n| n.to_str()),
        file.file_name().and_then(|n| n.to_str()),
    );
    let (Some(pattern_name), Some(name)) = names else {
        return false;
    };
    let Some((before, after)) = pattern_name.split_once('*') else {
        return false;
    };
    pattern.parent() == file.parent()
        && name.len() >= before.len() + after.len()
        && name.starts_with(before)
        && name.ends_with(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_both_ways_are_read_again() {
        let shim = Path::new("/opt/cryo/containerd-shim-cryo-v2");
        for version in [Version::Two, Version::Three] {
            let text = drop_in(version, shim, Some("cryo"), Some("cryo-own")).unwrap();
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table["version"].as_integer(), Some(version.number()));
            let one = runtime_of(&table, version, "cryo").unwrap();
            assert_eq!(one["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
            assert_eq!(one["runtime_path"].as_str(), shim.to_str());
            let two = runtime_of(&table, version, "cryo-own").unwrap();
            assert_eq!(two["runtime_type"].as_str(), Some(OWN_NAME));
            assert!(two.get("runtime_path").is_none());
            assert_eq!(two["pod_annotations"].as_array().unwrap().len(), 2);
        }
        assert!(drop_in(Version::Three, Path::new("/a\"b"), Some("c"), None).is_err());
    }

    #[test]
    fn our_configuration_is_one() {
        let text = config();
        assert!(text.parse::<toml::Table>().is_ok());
        assert!(
            text.contains("# tcp-established = false") && text.contains("# ghost-limit = \"1M\"")
        );
        assert!(!text.contains("parent-path ="));
        // Each line of it is one that the shim understands.
        let without: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest
                        .split_once(" = ")
                        .is_some_and(|(k, _)| !k.contains(' ')) =>
                {
                    rest
                }
                _ => line,
            })
            .filter(|line| !line.contains("none") && !line.contains("the checkpoint's"))
            .map(|line| format!("{line}\n"))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, &without).unwrap();
        cryo_criu::config::Config::load(&path).unwrap();
    }

    fn main(text: Option<&str>) -> Main {
        Main {
            path: "/etc/containerd/config.toml".into(),
            text: text.map(str::to_owned),
            table: text.unwrap_or_default().parse().unwrap(),
        }
    }

    #[test]
    fn imports() {
        let file = Path::new("/etc/containerd/conf.d/cryo.toml");
        for (pattern, is) in [
            ("/etc/containerd/conf.d/*.toml", true),
            ("/etc/containerd/conf.d/cryo.toml", true),
            ("/etc/containerd/conf.d/c*", true),
            ("/etc/containerd/*.toml", false),
            ("/etc/containerd/conf.d/x*.toml", false),
        ] {
            assert_eq!(covers(pattern, file), is, "{pattern}");
        }
        let import = |text, may| main(text).import(file, Version::Three, may);
        let good = "imports = ['/etc/containerd/conf.d/*.toml']\n";
        assert_eq!(import(Some(good), false).unwrap(), None);
        let error = import(Some("version = 3\n"), false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--add-import"), "{error}");
        let error = import(Some("imports = ['/x']\n"), true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("add it there"), "{error}");
    }

    #[test]
    fn what_is_added_goes_again() {
        let file = Path::new("/etc/containerd/conf.d/cryo.toml");
        for text in [None, Some("version = 3\nroot = \"/x\"\n")] {
            let change = main(text)
                .import(file, Version::Three, true)
                .unwrap()
                .unwrap();
            let after = change.after.unwrap();
            let table: toml::Table = after.parse().unwrap();
            assert_eq!(table["version"].as_integer(), Some(3));
            let back = main(Some(&after)).without_import().unwrap();
            assert_eq!(back.after.as_deref(), text);
        }
        assert!(main(Some("version = 3\n")).without_import().is_none());
        assert!(main(None).without_import().is_none());
    }
}
