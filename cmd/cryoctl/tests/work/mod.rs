//! Where a test of images works.

#[path = "../../../../crates/checkpoint/tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cryo_checkpoint::oci::Digest;

/// Where a test works, and a checkpoint in it: `cp.tar`.
#[derive(Debug)]
pub(crate) struct Work(tempfile::TempDir);

impl Work {
    /// With so many MiB of memory that does not compress.
    pub(crate) fn new(memory_mib: usize) -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        let mut files = fixture::archive();
        if memory_mib > 0 {
            let mut word = 1u64;
            let mut random = || {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                word.to_le_bytes()
            };
            let pages = (0..memory_mib << 17).flat_map(|_| random()).collect();
            files.insert("checkpoint/pages-1.img".into(), pages);
        }
        fs::write(work.path("cp.tar"), fixture::tar(&files)).unwrap();
        work
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// cryoctl, at home here and with nothing of our surroundings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cryoctl"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .env("HOME", self.0.path())
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .stdin(Stdio::null());
        command
    }

    /// Exit code, stdout, stderr.
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(self.command(arguments).output().unwrap())
    }

    /// The digest that a run prints at the end.
    pub(crate) fn digest(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        let digest = stdout.trim().rsplit(' ').next().unwrap();
        digest.parse::<Digest>().unwrap();
        digest.to_owned()
    }

    /// What a run that fails says.
    pub(crate) fn error(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{arguments:?}: {stderr}");
        stderr
    }

    /// What is said of a checkpoint.
    pub(crate) fn summary(&self, what: &str) -> BTreeMap<String, serde_json::Value> {
        let (code, stdout, stderr) = self.run(&["summary", "--format", "json", what]);
        assert_eq!(code, 0, "{stderr}");
        let mut summary: BTreeMap<_, _> = serde_json::from_str(&stdout).unwrap();
        summary.remove("form");
        summary
    }
}

/// Exit code, stdout, stderr.
pub(crate) fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// The files below a directory with their content.
pub(crate) fn tree(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            files.extend(tree(&entry));
        } else {
            let name = entry.strip_prefix(path.parent().unwrap()).unwrap();
            files.insert(name.to_owned(), fs::read(&entry).unwrap());
        }
    }
    files
}
