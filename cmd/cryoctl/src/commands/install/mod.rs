//! `cryoctl install` and `cryoctl uninstall`.

mod files;
mod texts;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use cryo_criu::config;

use crate::containerd::cri::OWN_NAME;
use crate::failure::Failure;
use crate::procfs;
use files::{Change, Owned};
use texts::{Main, Version};

/// Make cryo a runtime of containerd's CRI.
///
/// Writes a file into the directory that containerd's configuration imports, and a configuration of
/// cryo if there is none, and checks that containerd reads the result. What is there and not ours,
/// or was changed since, is not touched. A second time it changes nothing. containerd has to be
/// restarted afterwards; running containers are not disturbed.
#[derive(Debug, Args)]
#[command(after_help = AFTER_INSTALL)]
pub(super) struct Install {
    /// How containerd is to know cryo.
    #[arg(long, value_enum, default_value_t = Way::Runc)]
    way: Way,

    /// The handler's name, which a RuntimeClass names; with --way both, NAME-own is the other.
    #[arg(long, value_name = "NAME", default_value = "cryo", value_parser = handler)]
    handler: String,

    /// The shim [default: the one beside this program].
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,

    /// If containerd's configuration imports nothing, add the line that imports the directory.
    #[arg(long, conflicts_with = "root")]
    add_import: bool,

    /// Also write the RuntimeClass for Kubernetes into this file; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    runtime_class: Option<PathBuf>,

    #[command(flatten)]
    paths: Paths,
}

/// Undo `cryoctl install`.
///
/// Removes what it wrote, and nothing else. It refuses while containers of cryo run, since nothing else could manage them.
#[derive(Debug, Args)]
#[command(after_help = AFTER_UNINSTALL)]
pub(super) struct Uninstall {
    /// Do it while containers of cryo run.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    paths: Paths,
}

/// What both are about.
#[derive(Debug, Args)]
struct Paths {
    /// containerd's configuration.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,

    /// The file that makes cryo a runtime; its directory is what containerd imports.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/conf.d/cryo.toml"
    )]
    drop_in: PathBuf,

    /// cryo's own configuration.
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,

    /// Do it below this directory, for a package or an image of a node. All other paths are those
    /// that it will have there; containerd's own configuration is neither looked at nor changed.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Show what would be done as a diff, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Paths {
    /// Where a path of the node is to be found now.
    fn here(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// io.containerd.runc.v2 with runtime_path: all of CRI works.
    Runc,
    /// io.containerd.cryo.v2, a runtime of its own; the shim has to be in containerd's PATH.
    Own,
    /// Both, under two names.
    Both,
}

const AFTER_INSTALL: &str = "\
Examples:
  cryoctl install --dry-run
  cryoctl install --add-import --runtime-class /tmp/cryo.yaml
  systemctl restart containerd && cryoctl doctor

Exit codes:
  0  it is installed, or with --dry-run would be
  1  it is not, and nothing was changed; stderr says why
  2  the command line is wrong";

const AFTER_UNINSTALL: &str = "\
Exit codes:
  0  nothing of it is left, but a configuration of cryo that was changed since
  1  something is, and nothing was changed; stderr says why
  2  the command line is wrong";

fn handler(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = |c: Option<char>| c.is_some_and(|c| c != '-');
    if text.len() <= 63
        && text.chars().all(fine)
        && ends(text.chars().next())
        && ends(text.chars().next_back())
    {
        return Ok(text.to_owned());
    }
    Err("lower case letters, digits and - in between, as Kubernetes wants it".to_owned())
}

impl Install {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.install()?;
        Ok(ExitCode::SUCCESS)
    }

    fn install(&self) -> anyhow::Result<()> {
        let shim = self.shim()?;
        let (changes, version) = self.plan(&shim)?;
        let class = texts::runtime_class(&self.handler);
        if self.paths.dry_run {
            let mut text = changes.iter().map(Change::diff).collect::<String>();
            if text.is_empty() {
                text.push_str("nothing is to be done\n");
            }
            return Ok(io::stdout().write_all(text.as_bytes())?);
        }
        let done = files::apply(&changes)?;
        let checked = match self.paths.root {
            Some(_) => Ok(()),
            None => self.check(&shim, version),
        };
        if let Err(error) = checked {
            done.undo()?;
            return Err(error.context("containerd would not read the result; all is as it was"));
        }
        let mut text = String::new();
        for change in &changes {
            text.push_str(&change.told());
        }
        match &self.runtime_class {
            Some(path) if path == Path::new("-") => text = class,
            Some(path) => {
                files::write(path, &class)?;
                text.push_str(&format!("written: {}\n", path.display()));
            }
            None => {}
        }
        let mut notes = String::new();
        if self.paths.root.is_none() && changes.iter().any(Change::is_one) {
            notes.push_str("next: restart containerd; running containers are not disturbed\n");
        }
        io::stderr().write_all(notes.as_bytes())?;
        Ok(io::stdout().write_all(text.as_bytes())?)
    }

    fn shim(&self) -> anyhow::Result<PathBuf> {
        let beside = || {
            let own = std::env::current_exe().context("this program has no path")?;
            let dir = own.parent().unwrap_or(Path::new("/"));
            anyhow::Ok(dir.join(procfs::NAME))
        };
        let shim = match &self.shim {
            Some(shim) => std::path::absolute(shim)?,
            None => beside()?,
        };
        let here = self.paths.here(&shim);
        if !here.is_file() {
            bail!("there is no shim {}: name it with --shim", here.display());
        }
        Ok(shim)
    }

    /// What is to be written, in this order.
    fn plan(&self, shim: &Path) -> anyhow::Result<(Vec<Change>, Version)> {
        let paths = &self.paths;
        let main = match paths.root {
            Some(_) => None,
            None => Some(Main::read(&paths.containerd_config)?),
        };
        let version = match &main {
            Some(main) => main.version().unwrap_or_else(installed_version),
            None => Version::Three,
        };
        let runc = (self.way != Way::Own).then(|| self.handler.clone());
        let own = match self.way {
            Way::Runc => None,
            Way::Own => Some(self.handler.clone()),
            Way::Both => Some(format!("{}-own", self.handler)),
        };
        let drop_in = texts::drop_in(version, shim, runc.as_deref(), own.as_deref())?;
        let mut changes = vec![Owned::at(&paths.here(&paths.drop_in)).to_be(&drop_in)?];
        if let Some(main) = main {
            changes.extend(main.import(&paths.drop_in, version, self.add_import)?);
        }
        let config = paths.here(&paths.config);
        if !config.exists() {
            changes.push(Owned::at(&config).to_be(&texts::config())?);
        }
        Ok((changes, version))
    }

    /// Asks containerd what it makes of its files.
    fn check(&self, shim: &Path, version: Version) -> anyhow::Result<()> {
        let done = Command::new("containerd")
            .arg("--config")
            .arg(&self.paths.containerd_config)
            .args(["config", "dump"])
            .output();
        let done = match done {
            Ok(done) => done,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let told = "note: there is no containerd in PATH that could check it\n";
                return Ok(io::stderr().write_all(told.as_bytes())?);
            }
            Err(e) => return Err(e).context("cannot run containerd"),
        };
        if !done.status.success() {
            bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
        }
        let text = String::from_utf8_lossy(&done.stdout);
        let dump: toml::Table = text
            .parse()
            .context("what containerd dumps cannot be read")?;
        // A containerd 2 tells version 3, whatever its files have.
        let runtime = [version, Version::Three, Version::Two]
            .iter()
            .find_map(|version| texts::runtime_of(&dump, *version, &self.handler));
        let runtime = runtime.with_context(|| {
            format!(
                "the runtime {} is not in containerd's configuration: does it import {}?",
                self.handler,
                self.paths.drop_in.display()
            )
        })?;
        let is =
            |key: &str, wanted: &str| runtime.get(key).and_then(|v| v.as_str()) == Some(wanted);
        let as_wanted = match self.way {
            Way::Own => is("runtime_type", OWN_NAME),
            _ => {
                is("runtime_type", "io.containerd.runc.v2")
                    && is("runtime_path", &shim.to_string_lossy())
            }
        };
        if !as_wanted {
            bail!(
                "another file of containerd's configuration says something else of the runtime {}",
                self.handler
            );
        }
        Ok(())
    }
}

/// The form that the containerd of this node has; a file that says nothing is of its newest.
fn installed_version() -> Version {
    let said = Command::new("containerd").arg("--version").output();
    let said = said.map(|done| String::from_utf8_lossy(&done.stdout).into_owned());
    let old = said.is_ok_and(|text| text.contains(" v1.") || text.contains(" 1."));
    if old { Version::Two } else { Version::Three }
}

impl Uninstall {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        self.uninstall()?;
        Ok(ExitCode::SUCCESS)
    }

    fn uninstall(&self) -> anyhow::Result<()> {
        let shims = running_shims();
        let of_this_node = self.paths.root.is_none();
        if of_this_node && !self.force && !self.paths.dry_run && !shims.is_empty() {
            bail!(
                "{} shims of cryo run: end their containers first (`cryoctl ps --all`), or say --force",
                shims.len()
            );
        }
        let paths = &self.paths;
        let mut changes = Vec::new();
        changes.push(Owned::at(&paths.here(&paths.drop_in)).to_be_gone()?);
        match Owned::at(&paths.here(&paths.config)).to_be_gone() {
            Ok(change) => changes.push(change),
            // What somebody wrote there is theirs.
            Err(why) => writeln!(io::stderr(), "note: {why}")?,
        }
        if of_this_node {
            changes.extend(Main::read(&paths.containerd_config)?.without_import());
        }
        if paths.dry_run {
            let text: String = changes.iter().map(Change::diff).collect();
            io::stdout().write_all(text.as_bytes())?;
        } else {
            files::apply(&changes)?;
            let text: String = changes.iter().map(Change::told).collect();
            io::stdout().write_all(text.as_bytes())?;
            if of_this_node && changes.iter().any(Change::is_one) {
                let next = "next: restart containerd\n";
                io::stderr().write_all(next.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Shims of ours that run, whatever their containerd.
fn running_shims() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            Path::new(&*String::from_utf8_lossy(program))
                .file_name()
                .is_some_and(|name| name == procfs::NAME)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_names_of_kubernetes() {
        assert!(handler("cryo-2").is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a'b", &"a".repeat(64)] {
            assert!(handler(bad).is_err(), "{bad}");
        }
    }
}
