//! What this node is, in the words of Podman's annotations.

use std::process::Command;

use rustix::fs::statfs;

/// `CGROUP2_SUPER_MAGIC`
const CGROUP2: i64 = 0x6367_7270;

/// The facts of a checkpoint that are those of the node it was made on.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("host.kernel", uname_release()),
        (
            "host.arch",
            cryo_checkpoint::oci::model::Platform::linux(std::env::consts::ARCH).architecture,
        ),
    ];
    if let Ok(found) = statfs("/sys/fs/cgroup") {
        let version = if found.f_type == CGROUP2 { "v2" } else { "v1" };
        facts.push(("cgroup.version", version.to_owned()));
    }
    let release = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let (name, version) = distribution(&release);
    facts.extend(name.map(|name| ("distribution.name", name)));
    facts.extend(version.map(|version| ("distribution.version", version)));
    if let Ok(output) = Command::new("criu").arg("--version").output()
        && let Some(version) = criu_version(&String::from_utf8_lossy(&output.stdout))
    {
        facts.push(("criu.version", version));
    }
    facts
}

fn uname_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// ID and VERSION_ID of an os-release.
fn distribution(release: &str) -> (Option<String>, Option<String>) {
    let value = |key: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        let value = line.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    (value("ID"), value("VERSION_ID"))
}

fn criu_version(output: &str) -> Option<String> {
    let line = output.lines().next()?.strip_prefix("Version: ")?;
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_programs_are_understood() {
        let release = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"13\"\nID=debian\n";
        let (name, version) = distribution(release);
        assert_eq!(
            (name.as_deref(), version.as_deref()),
            (Some("debian"), Some("13"))
        );
        assert_eq!(distribution("ID=\n"), (None, None));
        assert_eq!(
            criu_version("Version: 4.2.1\nGitID: x\n").as_deref(),
            Some("4.2.1")
        );
        assert_eq!(criu_version("criu?"), None);
    }

    #[test]
    fn each_is_one_that_images_state() {
        for (name, value) in facts() {
            let known = cryo_checkpoint::oci::annotations::FACTS;
            assert!(known.iter().any(|(known, _)| *known == name), "{name}");
            assert!(!value.is_empty(), "{name}");
        }
    }
}
