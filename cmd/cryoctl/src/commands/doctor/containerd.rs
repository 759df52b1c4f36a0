//! containerd as it runs, and the shim that it finds.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{in_path, is_program, judge_program};
use crate::containerd::cri::{Cri, OWN_NAME, Runtime};
use crate::containerd::{Client, Socket, block_on};
use crate::finding::Finding;
use crate::procfs;
use crate::text::with_causes;

/// What it told.
struct Told {
    version: String,
    cri: anyhow::Result<Option<Cri>>,
}

pub(super) fn look(socket: &Socket, all: &mut Vec<Finding>) {
    let asked = block_on(async {
        let client = Client::connect(&socket.address, "default").await?;
        Ok(Told {
            version: client.version().await?,
            cri: client.cri().await,
        })
    });
    let told = match asked {
        Ok(told) => told,
        Err(error) => {
            return all.push(Finding::error(
                "containerd",
                with_causes(&error),
                "start containerd, or name its socket with --address; this may need root",
            ));
        }
    };
    all.push(judge_version(&told.version));
    let path = search_path(&socket.address);
    match &told.cri {
        Ok(Some(cri)) => judge_cri(cri, &told.version, path.as_deref(), all),
        Ok(None) => all.push(Finding::note(
            "cri",
            "containerd's CRI is switched off: this is no node of Kubernetes",
        )),
        Err(error) => all.push(Finding::warning(
            "cri",
            with_causes(error),
            "look into containerd's log",
        )),
    }
    for shim in shims(
        told.cri.as_ref().ok().and_then(Option::as_ref),
        path.as_deref(),
    ) {
        judge_shim(&shim, all);
    }
}

/// The directories where containerd looks for programs: those of its environment.
fn search_path(socket: &Path) -> Option<String> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    let pid = peer.pid.as_raw_nonzero();
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut all = environment.split(|byte| *byte == 0);
    let path = all.find_map(|entry| entry.strip_prefix(b"PATH="))?;
    Some(String::from_utf8_lossy(path).into_owned())
}

fn judge_version(version: &str) -> Finding {
    match numbers(version) {
        Some((1, 7, _)) => Finding::warning(
            "containerd",
            format!("version {version}: its CRI has no checkpoints, tasks have"),
            "use containerd 2.1 or newer for checkpoints of pods",
        ),
        Some((major, ..)) if major < 2 => Finding::error(
            "containerd",
            format!("version {version} is too old"),
            "use containerd 1.7 or newer; 2.1 for checkpoints of pods",
        ),
        Some((2, 0, _)) => Finding::warning(
            "containerd",
            format!("version {version}: its CRI cannot restore"),
            "use containerd 2.1 or newer to restore containers of pods",
        ),
        Some(_) => Finding::ok("containerd", format!("version {version}")),
        None => Finding::note(
            "containerd",
            format!("version {version:?}, which says nothing"),
        ),
    }
}

/// `2.1.9`, `v2.1.9-1`
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next().unwrap_or_default()))
}

fn judge_cri(cri: &Cri, version: &str, path: Option<&str>, all: &mut Vec<Finding>) {
    let ours: Vec<(&String, &Runtime)> = cri
        .containerd
        .runtimes
        .iter()
        .filter(|(_, runtime)| runtime.is_cryo())
        .collect();
    if ours.is_empty() {
        all.push(Finding::error(
            "runtime",
            "containerd's CRI has no runtime that is cryo",
            "`cryoctl install`, and restart containerd",
        ));
    }
    for (name, runtime) in ours {
        judge_runtime(name, runtime, all);
    }
    if cri.enable_criu == Some(false) {
        all.push(Finding::error(
            "cri-checkpoint",
            "checkpoints are switched off in containerd's CRI (enable_criu = false)",
            "remove enable_criu from containerd's configuration, and restart it",
        ));
    } else if let Some(path) = path {
        all.push(match in_path(path, "criu") {
            Some(criu) => Finding::ok("cri-checkpoint", format!("containerd finds {}", criu.display())),
            None => Finding::error(
                "cri-checkpoint",
                format!("containerd's CRI looks for criu in {path}, where it is not: it refuses checkpoints"),
                "put criu, or a link to it, into one of these directories",
            ),
        });
    }
    all.push(judge_restore(version));
}

fn judge_runtime(name: &str, runtime: &Runtime, all: &mut Vec<Finding>) {
    let way = if runtime.runtime_type == "io.containerd.runc.v2" {
        "runc.v2 with runtime_path: all of CRI"
    } else {
        "a runtime of its own: CRI sends no options, and no typed ones"
    };
    all.push(Finding::ok(
        "runtime",
        format!("the handler {name} is cryo, as {way}"),
    ));
    let passes = |list: &Option<Vec<String>>| {
        let list = list.as_deref().unwrap_or_default();
        ["checkpoint.cryo/", "restore.cryo/"].iter().all(|prefix| {
            list.iter().any(|pattern| {
                let plain = pattern.trim_end_matches('*');
                prefix.starts_with(plain) && pattern.ends_with('*')
            })
        })
    };
    if !passes(&runtime.pod_annotations) || !passes(&runtime.container_annotations) {
        all.push(Finding::warning(
            "annotations",
            format!("the handler {name} does not pass all annotations of cryo on"),
            "in its table: pod_annotations and container_annotations = [\"checkpoint.cryo/*\", \"restore.cryo/*\"]",
        ));
    }
    if runtime
        .options
        .as_ref()
        .is_some_and(|options| options.systemd_cgroup)
    {
        all.push(Finding::note(
            "systemd-cgroup",
            format!("the handler {name} has SystemdCgroup = true: docs/install.md says what this cryo does with it"),
        ));
    }
}

/// By CRI. `cryoctl restore` and the annotation do not need it.
fn judge_restore(version: &str) -> Finding {
    match numbers(version) {
        Some((2, 1, _) | (2, 2, 0..=6) | (2, 3, 0..=3)) => Finding::ok(
            "cri-restore",
            "CRI restores containers from archives and images",
        ),
        Some((2, 2 | 3, _)) => Finding::note(
            "cri-restore",
            "CRI restores if its configuration has enable_experimental_restore_via_create = true",
        ),
        _ => Finding::note("cri-restore", "this containerd's CRI does not restore"),
    }
}

/// The shims that containerd would run.
fn shims(cri: Option<&Cri>, path: Option<&str>) -> Vec<Result<PathBuf, String>> {
    let runtimes = cri.map(|cri| &cri.containerd.runtimes);
    let mut named: Vec<_> = runtimes
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(Runtime::shim_path)
        .collect();
    named.sort();
    named.dedup();
    let by_name = runtimes
        .into_iter()
        .flat_map(|all| all.values())
        .any(|runtime| runtime.runtime_type == OWN_NAME);
    let mut all: Vec<_> = named.into_iter().map(Ok).collect();
    let found = path.and_then(|path| in_path(path, procfs::NAME));
    match (found, path) {
        (Some(found), _) if !all.contains(&Ok(found.clone())) => all.push(Ok(found)),
        (None, Some(path)) if by_name => all.push(Err(path.to_owned())),
        _ => {}
    }
    all
}

fn judge_shim(shim: &Result<PathBuf, String>, all: &mut Vec<Finding>) {
    let path = match shim {
        Ok(path) => path,
        Err(path) => {
            return all.push(Finding::error(
                "shim",
                format!(
                    "containerd looks for {} in {path}, where it is not",
                    procfs::NAME
                ),
                "put it, or a link to it, into one of these directories",
            ));
        }
    };
    if !is_program(path) {
        return all.push(Finding::error(
            "shim",
            format!(
                "containerd is to run {}, which is not there or no program",
                path.display()
            ),
            "install cryo there, or correct runtime_path in containerd's configuration",
        ));
    }
    judge_program("shim-file", path, all);
    let said = Command::new(path).arg("-v").env_clear().output();
    let said = said.map(|done| {
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.success(), text)
    });
    all.push(match said {
        Ok((true, text)) => {
            let version = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("Version:"))
                .unwrap_or_default()
                .trim()
                .to_owned();
            judge_shim_version(path, &version)
        }
        _ => Finding::error(
            "shim",
            format!("{} does not run", path.display()),
            "it is linked with libseccomp: `ldd` says what is missing",
        ),
    });
}

fn judge_shim_version(path: &Path, version: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let path = path.display();
    if version == ours {
        Finding::ok("shim", format!("{path} is {version}"))
    } else {
        Finding::warning(
            "shim",
            format!("{path} is {version}, and this cryoctl {ours}"),
            "install both of one release: options may not be understood",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn versions_of_containerd() {
        for (version, severity) in [
            ("1.6.9", Severity::Error),
            ("1.7.34", Severity::Warning),
            ("v2.0.1", Severity::Warning),
            ("2.1.9", Severity::Ok),
            ("2.4.0-beta.0", Severity::Ok),
            ("git", Severity::Note),
        ] {
            assert_eq!(judge_version(version).severity, severity, "{version}");
        }
        for (version, severity) in [
            ("2.1.9", Severity::Ok),
            ("2.2.6", Severity::Ok),
            ("2.2.7", Severity::Note),
            ("2.3.4", Severity::Note),
            ("2.4.0", Severity::Note),
        ] {
            assert_eq!(judge_restore(version).severity, severity, "{version}");
        }
    }

    fn judged(json: &str, path: Option<&str>) -> Vec<(&'static str, Severity)> {
        let cri: Cri = serde_json::from_str(json).unwrap();
        let mut all = Vec::new();
        judge_cri(&cri, "2.1.9", path, &mut all);
        all.retain(|f| f.severity > Severity::Note);
        all.iter().map(|f| (f.name, f.severity)).collect()
    }

    #[test]
    fn configurations() {
        assert_eq!(judged("{}", None), [("runtime", Severity::Error)]);
        let own =
            r#"{"containerd": {"runtimes": {"c": {"runtimeType": "io.containerd.cryo.v2"}}}}"#;
        assert_eq!(judged(own, None), [("annotations", Severity::Warning)]);
        let good = r#"{"containerd": {"runtimes": {"c": {"runtimeType": "io.containerd.cryo.v2",
            "PodAnnotations": ["checkpoint.cryo/*", "restore.cryo/*"], "ContainerAnnotations": ["*"]}}}}"#;
        assert_eq!(judged(good, None), []);
        assert_eq!(
            judged(good, Some("/nonexistent")),
            [("cri-checkpoint", Severity::Error)]
        );
        let off = good.replacen('{', r#"{"enableCRIU": false,"#, 1);
        assert_eq!(judged(&off, None), [("cri-checkpoint", Severity::Error)]);
    }

    #[test]
    fn a_shim_that_is_not_there_is_told() {
        let cri: Cri = serde_json::from_str(
            r#"{"containerd": {"runtimes": {"c": {"runtimeType": "io.containerd.cryo.v2"}}}}"#,
        )
        .unwrap();
        let found = shims(Some(&cri), Some("/nonexistent"));
        assert_eq!(found, [Err("/nonexistent".to_owned())]);
        let mut all = Vec::new();
        judge_shim(&Ok("/nonexistent/x".into()), &mut all);
        judge_shim(&found[0], &mut all);
        assert!(all.iter().all(|f| f.severity == Severity::Error) && all.len() == 2);
        assert_eq!(
            judge_shim_version(Path::new("/x"), "9.9").severity,
            Severity::Warning
        );
    }
}
