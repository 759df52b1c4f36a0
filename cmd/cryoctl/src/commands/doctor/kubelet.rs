//! The kubelet, as far as its command line and its configuration can be seen.

use std::fs;
use std::path::{Path, PathBuf};

use crate::finding::Finding;

/// What a kubelet says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kubelet {
    /// Its feature gate, if it is set.
    gate: Option<bool>,
    cgroup_driver: Option<String>,
    config: Option<PathBuf>,
}

pub(super) fn look(all: &mut Vec<Finding>) {
    let Some((pid, line)) = running() else {
        return all.push(Finding::note("kubelet", "none runs here"));
    };
    let mut kubelet = Kubelet::of_line(&line);
    if let Some(path) = kubelet.config.clone() {
        // As the kubelet sees it.
        let seen =
            Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(&path));
        match fs::read_to_string(seen) {
            Ok(text) => kubelet.read(&text),
            Err(error) => all.push(Finding::note(
                "kubelet-config",
                format!("{} cannot be read: {error}", path.display()),
            )),
        }
    }
    judge(&kubelet, all);
}

/// The kubelet's process and command line.
fn running() -> Option<(u32, Vec<String>)> {
    let mut all = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    all.find_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let program = Path::new(words.first()?).file_name()?;
        (program == "kubelet").then_some((pid, words))
    })
}

impl Kubelet {
    fn of_line(words: &[String]) -> Self {
        let flag = |name: &str| {
            let mut words = words.iter();
            words.find_map(|word| {
                let rest = word.strip_prefix("--")?.strip_prefix(name)?;
                rest.strip_prefix('=').map(str::to_owned)
            })
        };
        let spaced = |name: &str| {
            let at = words
                .iter()
                .position(|word| word.strip_prefix("--") == Some(name))?;
            words.get(at + 1).cloned()
        };
        let value = |name: &str| flag(name).or_else(|| spaced(name));
        let gates = value("feature-gates").unwrap_or_default();
        Self {
            gate: gates.split(',').find_map(|gate| {
                gate.strip_prefix("ContainerCheckpoint=")
                    .map(|on| on == "true")
            }),
            cgroup_driver: value("cgroup-driver"),
            config: value("config").map(PathBuf::from),
        }
    }

    /// Its configuration, of which two lines matter: no YAML parser for that.
    fn read(&mut self, text: &str) {
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
            line.map(|value| value.trim().trim_matches(['"', '\'', ',']).to_owned())
        };
        let either =
            |key: &str| value(&format!("{key}:")).or_else(|| value(&format!("\"{key}\":")));
        self.gate = self
            .gate
            .or_else(|| either("ContainerCheckpoint").map(|on| on == "true"));
        self.cgroup_driver = self.cgroup_driver.take().or_else(|| either("cgroupDriver"));
    }
}

fn judge(kubelet: &Kubelet, all: &mut Vec<Finding>) {
    all.push(if kubelet.gate == Some(false) {
        Finding::error(
            "kubelet",
            "its checkpoint API is switched off",
            "remove ContainerCheckpoint=false from its feature gates",
        )
    } else {
        Finding::ok(
            "kubelet",
            "its checkpoint API is on, as it is by default since 1.30",
        )
    });
    if kubelet.cgroup_driver.as_deref() == Some("systemd") {
        all.push(Finding::note(
            "kubelet-cgroups",
            "its cgroupDriver is systemd: docs/install.md says what this cryo does with it",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn command_lines_and_configurations() {
        let mut kubelet = Kubelet::of_line(&words(
            "/usr/bin/kubelet --config=/etc/k.yaml --feature-gates=A=true,ContainerCheckpoint=false",
        ));
        assert_eq!(kubelet.gate, Some(false));
        assert_eq!(kubelet.config.as_deref(), Some(Path::new("/etc/k.yaml")));
        kubelet.read("cgroupDriver: systemd\nfeatureGates:\n  ContainerCheckpoint: true\n");
        // The command line goes first.
        assert_eq!(kubelet.gate, Some(false));
        assert_eq!(kubelet.cgroup_driver.as_deref(), Some("systemd"));
        let mut all = Vec::new();
        judge(&kubelet, &mut all);
        assert!(crate::finding::any_error(&all));

        let mut kubelet = Kubelet::of_line(&words("kubelet --config /k.json"));
        kubelet.read("{\n  \"cgroupDriver\": \"cgroupfs\",\n  \"ContainerCheckpoint\": false\n}");
        assert_eq!(kubelet.gate, Some(false));
        assert_eq!(kubelet.cgroup_driver.as_deref(), Some("cgroupfs"));
        assert_eq!(Kubelet::of_line(&words("kubelet")), Kubelet::default());
    }
}
