//! What a shim says of itself, by its `-info`: an older one does not know all that can be asked of
//! it, and would do without.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cryo_criu::options::IN_REQUESTS;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tonic::Code;

use crate::containerd::messages::{
    Any, PluginInfo, PluginInfoResponse, RuntimeInfo, RuntimeRequest,
};
use crate::containerd::{Client, Refused};
use crate::procfs::Shim;

/// How long a shim may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Longest answer.
const MAX_BYTES: u64 = 60 << 10;

/// Whether the shim that runs a container would see options in a request.
///
/// # Errors
///
/// When it would not, or does not say.
pub(crate) fn check_running(shim: &Shim, title: &str) -> anyhow::Result<()> {
    // What runs, whatever has its name by now.
    let program = format!("/proc/{}/exe", shim.pid);
    let info = ask(Path::new(&program))
        .with_context(|| format!("the shim of {title} does not say what it is"))?;
    ensure!(
        sees_options(&info),
        "the shim of {title} runs since before cryo was upgraded ({}), and would not see these options: set them as annotations or in /etc/cryo/config.toml, or start the pod anew",
        version(&info)
    );
    Ok(())
}

/// Whether the shim that containerd would start for this runtime would see options in a request.
///
/// # Errors
///
/// When it would not. containerd before 2.0 cannot be asked: then nothing is known.
pub(crate) async fn check_installed(client: &Client, runtime: &str) -> anyhow::Result<()> {
    let method = "/containerd.services.introspection.v1.Introspection/PluginInfo";
    let what = || format!("cannot ask for the runtime {runtime}");
    let request = PluginInfo {
        kind: "io.containerd.runtime.v2".to_owned(),
        id: "task".to_owned(),
        options: Some(Any {
            type_url: "containerd.types.RuntimeRequest".to_owned(),
            value: RuntimeRequest {
                runtime_path: runtime.to_owned(),
            }
            .encode_to_vec(),
        }),
    };
    let answer: Result<PluginInfoResponse, Refused> = client.call(what, method, request).await;
    let answer = match answer {
        Err(error) if error.code() == Code::Unimplemented => return Ok(()),
        other => other?,
    };
    let extra = answer.extra.unwrap_or_default();
    let info = RuntimeInfo::decode(&*extra.value).context("containerd's answer cannot be read")?;
    ensure!(
        sees_options(&info),
        "the runtime {runtime} is {} ({}), which would not see these options: install a newer cryo, or name its runtime with --runtime",
        info.name,
        version(&info)
    );
    Ok(())
}

fn sees_options(info: &RuntimeInfo) -> bool {
    info.annotations.contains_key(IN_REQUESTS)
}

fn version(info: &RuntimeInfo) -> String {
    let version = info.version.clone().unwrap_or_default();
    format!("version {}, {}", version.version, version.revision)
}

/// Runs a shim's `-info`.
fn ask(program: &Path) -> anyhow::Result<RuntimeInfo> {
    let mut child = Command::new(program)
        .arg("-info")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run it")?;
    let ended = wait(&child);
    if ended.is_err() {
        // It is ours, and may have ended in between.
        let _ = child.kill();
    }
    let status = child.wait()?;
    ended?;
    ensure!(status.success(), "it ends with {status}");
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_BYTES).read_to_end(&mut bytes)?;
    }
    RuntimeInfo::decode(&*bytes).context("its answer cannot be read")
}

/// Waits for the end of a process.
fn wait(child: &Child) -> anyhow::Result<()> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let limit = Timespec::try_from(LIMIT)?;
    match poll(&mut ended, Some(&limit))? {
        0 => bail!("it does not answer"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::containerd::messages::RuntimeVersion;

    #[test]
    fn an_old_shim_is_known_by_what_it_does_not_say() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("containerd-shim-cryo-v2");
        let answer = |annotations: &[&str], end: &str| {
            let info = RuntimeInfo {
                name: "io.containerd.cryo.v2".to_owned(),
                version: Some(RuntimeVersion {
                    version: "0.0.9".to_owned(),
                    revision: "abc".to_owned(),
                }),
                annotations: annotations
                    .iter()
                    .map(|name| ((*name).to_owned(), "true".to_owned()))
                    .collect::<HashMap<_, _>>(),
            };
            fs::write(dir.path().join("answer"), info.encode_to_vec()).unwrap();
            let script = format!(
                "#!/bin/sh\n[ \"$*\" = -info ] || exit 9\n/bin/cat {}/answer\n{end}\n",
                dir.path().display()
            );
            fs::write(&shim, script).unwrap();
            fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
            ask(&shim)
        };
        let old = answer(&["criu"], "").unwrap();
        assert!(!sees_options(&old));
        assert_eq!(version(&old), "version 0.0.9, abc");
        assert!(sees_options(&answer(&["criu", IN_REQUESTS], "").unwrap()));
        let error = answer(&[], "exit 3").unwrap_err().to_string();
        assert!(error.contains("it ends with exit status: 3"), "{error}");
        fs::write(&shim, "#!/bin/sh\necho hello\n").unwrap();
        assert!(ask(&shim).is_err());
    }
}
