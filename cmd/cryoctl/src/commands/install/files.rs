//! Files that are ours: their first line says so, with the sum of the rest, so that what somebody
//! changed is not taken for ours any more.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};

/// How the first line begins.
const MARK: &str = "# Written by `cryoctl install`; `cryoctl uninstall` removes it. sha256:";

/// A file that may be ours.
#[derive(Debug)]
pub(super) struct Owned {
    path: PathBuf,
}

/// What becomes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

impl Owned {
    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// What has to be done so that it has this content.
    ///
    /// # Errors
    ///
    /// When there is a file that is not ours, or was changed.
    pub(super) fn to_be(&self, content: &str) -> anyhow::Result<Change> {
        let before = read(&self.path)?;
        if let Some(text) = &before {
            self.judge(text)?;
        }
        Ok(Change {
            path: self.path.clone(),
            before,
            after: Some(marked(content)),
        })
    }

    /// What has to be done so that it is not there.
    ///
    /// # Errors
    ///
    /// As [`Owned::to_be`].
    pub(super) fn to_be_gone(&self) -> anyhow::Result<Change> {
        let before = read(&self.path)?;
        if let Some(text) = &before {
            self.judge(text)?;
        }
        Ok(Change {
            path: self.path.clone(),
            before,
            after: None,
        })
    }

    fn judge(&self, text: &str) -> anyhow::Result<()> {
        let path = self.path.display();
        let Some((sum, content)) = split(text) else {
            bail!(
                "{path} is not of `cryoctl install`, and stays as it is: remove it yourself first"
            );
        };
        if sum != sum_of(content) {
            bail!(
                "{path} was changed since `cryoctl install` wrote it, and stays as it is: remove it yourself, or put its first line right"
            );
        }
        Ok(())
    }
}

/// Reads a file that may not be there.
pub(super) fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn marked(content: &str) -> String {
    format!("{MARK}{}\n{content}", sum_of(content))
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(MARK)?.split_once('\n')
}

fn sum_of(content: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(content) {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

impl Change {
    /// Whether anything changes.
    pub(super) fn is_one(&self) -> bool {
        self.before != self.after
    }

    /// A diff, for people: what is the same at both ends is left out, but for three lines.
    pub(super) fn diff(&self) -> String {
        if !self.is_one() {
            return String::new();
        }
        let name = |text: &Option<String>| match text {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let lines = |text: &Option<String>| -> Vec<String> {
            text.iter()
                .flat_map(|t| t.lines())
                .map(str::to_owned)
                .collect()
        };
        let (old, new) = (lines(&self.before), lines(&self.after));
        let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        let tail = old.iter().rev().zip(new.iter().rev());
        let tail = tail.take_while(|(a, b)| a == b).count();
        let tail = tail.min(old.len().min(new.len()) - head);
        let context = head.saturating_sub(3);
        let mut text = format!("--- {}\n+++ {}\n", name(&self.before), name(&self.after));
        let after = tail.min(3);
        let count = |all: &[String]| all.len() - context - (tail - after);
        let _ = writeln!(
            text,
            "@@ -{},{} +{},{} @@",
            if old.is_empty() { 0 } else { context + 1 },
            count(&old),
            if new.is_empty() { 0 } else { context + 1 },
            count(&new)
        );
        let mut put = |mark: char, all: &[String], from: usize, to: usize| {
            for line in all.get(from..to).unwrap_or_default() {
                let _ = writeln!(text, "{mark}{line}");
            }
        };
        put(' ', &old, context, head);
        put('-', &old, head, old.len() - tail);
        put('+', &new, head, new.len() - tail);
        put(' ', &old, old.len() - tail, old.len() - tail + after);
        text
    }

    /// A line that says what was done.
    pub(super) fn told(&self) -> String {
        let what = match (&self.before, &self.after) {
            (None, None) => return String::new(),
            (before, after) if before == after => "unchanged",
            (_, None) => "removed",
            (None, _) => "written",
            _ => "changed",
        };
        format!("{what}: {}\n", self.path.display())
    }

    fn apply(&self) -> anyhow::Result<()> {
        match &self.after {
            _ if !self.is_one() => Ok(()),
            Some(text) => write(&self.path, text),
            None => fs::remove_file(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }

    fn reversed(&self) -> Self {
        Self {
            path: self.path.clone(),
            before: self.after.clone(),
            after: self.before.clone(),
        }
    }
}

/// Changes that were made.
#[derive(Debug, Default)]
pub(super) struct Done(Vec<Change>);

impl Done {
    /// Takes them back, the last first.
    pub(super) fn undo(self) -> anyhow::Result<()> {
        self.0
            .iter()
            .rev()
            .try_for_each(|change| change.reversed().apply())
    }
}

/// Makes all changes, or none.
///
/// # Errors
///
/// The first that cannot be made.
pub(super) fn apply(changes: &[Change]) -> anyhow::Result<Done> {
    let mut done = Done::default();
    for change in changes {
        if let Err(error) = change.apply() {
            done.undo()?;
            return Err(error);
        }
        done.0.push(change.clone());
    }
    Ok(done)
}

/// Writes a file whole or not at all, for all to read. The mode of one that was there stays.
pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(failed)?;
    // What is a link, as some distributions have it, stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map(|meta| meta.permissions());
    let mut name = target.clone().into_os_string();
    name.push(format!(".cryoctl-{}", std::process::id()));
    let part = PathBuf::from(name);
    let written = (|| {
        let mut file = File::create_new(&part)?;
        file.write_all(text.as_bytes())?;
        if let Ok(mode) = mode {
            file.set_permissions(mode)?;
        }
        file.sync_all()?;
        fs::rename(&part, &target)?;
        File::open(target.parent().unwrap_or(dir))?.sync_all()
    })();
    if written.is_err() {
        // What stays has a name that says whose it is.
        let _ = fs::remove_file(&part);
    }
    written.with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conf.d/a.toml");
        let owned = Owned::at(&path);
        let change = owned.to_be("x = 1\n").unwrap();
        apply(std::slice::from_ref(&change)).unwrap();
        assert!(change.told().starts_with("written"));
        // Again.
        let again = owned.to_be("x = 1\n").unwrap();
        assert!(!again.is_one() && again.diff().is_empty());
        // Another of ours.
        let other = owned.to_be("x = 2\n").unwrap();
        assert!(other.is_one());
        apply(&[other]).unwrap().undo().unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("x = 1\n"));

        fs::write(&path, fs::read_to_string(&path).unwrap() + "y = 1\n").unwrap();
        for error in [
            owned.to_be("x").unwrap_err(),
            owned.to_be_gone().unwrap_err(),
        ] {
            assert!(error.to_string().contains("was changed since"), "{error}");
        }
        fs::write(&path, "z = 1\n").unwrap();
        let error = owned.to_be("x").unwrap_err().to_string();
        assert!(error.contains("is not of `cryoctl install`"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "z = 1\n");
        fs::remove_file(&path).unwrap();
        let gone = owned.to_be_gone().unwrap();
        assert!(!gone.is_one() && gone.told().is_empty());
    }

    #[test]
    fn all_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("file/two"));
        fs::write(dir.path().join("file"), "").unwrap();
        let changes = [
            Owned::at(&one).to_be("1").unwrap(),
            Change {
                path: two,
                before: None,
                after: Some("2".to_owned()),
            },
        ];
        assert!(apply(&changes).is_err());
        assert!(!one.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn diffs() {
        let change = |before: Option<&str>, after: Option<&str>| Change {
            path: "/f".into(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        };
        assert_eq!(
            change(None, Some("a\nb\n")).diff(),
            "--- /dev/null\n+++ /f\n@@ -0,0 +1,2 @@\n+a\n+b\n"
        );
        let text = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        assert_eq!(
            change(Some(text), Some(&text.replace("5\n", "five\n"))).diff(),
            "--- /f\n+++ /f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        );
        assert_eq!(
            change(Some("a\n"), Some("b\na\n")).diff(),
            "--- /f\n+++ /f\n@@ -1,1 +1,2 @@\n+b\n a\n"
        );
    }
}
