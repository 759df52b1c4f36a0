//! The state of the whole shim as data: for the debug socket as JSON, for the log
//! as lines.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::stdio::StreamState;

/// All there is to know.
#[derive(Debug, Clone, Serialize)]
pub struct Dump {
    /// The process.
    pub shim: ShimState,
    /// Its containers, by id.
    pub containers: Vec<ContainerState>,
}

/// The shim's process.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ShimState {
    /// cryo's version.
    pub version: &'static str,
    /// The commit it was built from.
    pub revision: &'static str,
    /// Its process.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_s: u64,
    /// containerd's namespace.
    pub namespace: String,
    /// Where the containers' state is.
    pub state_root: PathBuf,
    /// Its threads.
    pub threads: usize,
    /// Its tasks, of tokio.
    pub tasks: usize,
    /// Its open descriptors.
    pub fds: usize,
    /// What `SCHED_CORE` gave it.
    pub core_scheduling_cookie: Option<u64>,
    /// Events that containerd has not taken yet.
    pub events_waiting: u64,
    /// Events that it never took.
    pub events_dropped: u64,
    /// Containers that are being created.
    pub creating: Vec<String>,
    /// Shutdown was asked for, and waits for the last container.
    pub shutdown_asked: bool,
}

/// A container.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its `linux.cgroupsPath`.
    pub cgroup: PathBuf,
    /// The image directory that it was made from.
    pub checkpoint: Option<PathBuf>,
    /// Where in its life it is.
    pub phase: String,
    /// How it ended.
    pub exit_status: Option<u32>,
    /// It ended, which is not told yet: something else has to be told before.
    pub exit_held: bool,
    /// Its first process.
    pub pid: Option<u32>,
    /// What is being done with it.
    pub operation: Option<Operation>,
    /// Requests that wait for the end of that.
    pub requests_waiting: usize,
    /// How far its memory is, after a lazy restore.
    pub memory: Option<MemoryState>,
    /// Its streams.
    pub streams: Vec<StreamState>,
    /// Its execs, by id.
    pub execs: Vec<ExecState>,
}

/// An operation under way.
#[derive(Debug, Clone, Serialize)]
pub struct Operation {
    /// Which.
    pub name: String,
    /// For how long.
    pub since_s: u64,
}

/// The memory of a container that was restored with lazy-pages.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryState {
    /// `filling`, `filled`, or why that failed.
    pub phase: String,
    /// The process that fills it, until it has ended.
    pub server: Option<u32>,
    /// What is still to come.
    pub left_bytes: u64,
    /// What was to come in the beginning.
    pub all_bytes: u64,
    /// Tasks whose memory is held open.
    pub held: usize,
}

/// An exec'd process.
#[derive(Debug, Clone, Serialize)]
pub struct ExecState {
    /// Its id.
    pub id: String,
    /// Where in its life it is.
    pub phase: &'static str,
    /// Its process.
    pub pid: Option<u32>,
    /// How it ended.
    pub exit_status: Option<u32>,
    /// Its streams.
    pub streams: Vec<StreamState>,
}

impl Dump {
    /// The same for people: a line for the shim, for each container and for each exec.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.shim.to_string()];
        for container in &self.containers {
            lines.push(container.to_string());
            for exec in &container.execs {
                lines.push(format!("container {} {exec}", container.id));
            }
        }
        lines
    }
}

impl fmt::Display for ShimState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "shim {} ({}): pid {}, up {} s, namespace {}, state in {}, {} threads, {} tasks, {} descriptors, {} events waiting, {} dropped",
            self.version,
            self.revision,
            self.pid,
            self.uptime_s,
            self.namespace,
            self.state_root.display(),
            self.threads,
            self.tasks,
            self.fds,
            self.events_waiting,
            self.events_dropped
        )?;
        if !self.creating.is_empty() {
            write!(f, ", creating {}", self.creating.join(" "))?;
        }
        if self.shutdown_asked {
            f.write_str(", to end with its last container")?;
        }
        Ok(())
    }
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}: {}", self.id, self.phase)?;
        process(f, self.pid, self.exit_status)?;
        if self.exit_held {
            f.write_str(", exit held back")?;
        }
        if let Some(operation) = &self.operation {
            write!(f, ", {} for {} s", operation.name, operation.since_s)?;
        }
        if let Some(memory) = &self.memory {
            write!(f, ", {memory}")?;
        }
        if self.requests_waiting > 0 {
            write!(f, ", {} requests waiting", self.requests_waiting)?;
        }
        streams(f, &self.streams)?;
        write!(f, ", cgroup {}", self.cgroup.display())?;
        if let Some(checkpoint) = &self.checkpoint {
            write!(f, ", checkpoint {}", checkpoint.display())?;
        }
        write!(f, ", bundle {}", self.bundle.display())
    }
}

impl fmt::Display for MemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            phase,
            left_bytes,
            all_bytes,
            held,
            ..
        } = self;
        write!(
            f,
            "memory {phase}, {left_bytes} of {all_bytes} bytes to come for {held} tasks"
        )?;
        match self.server {
            Some(pid) => write!(f, " from process {pid}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ExecState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exec {}: {}", self.id, self.phase)?;
        process(f, self.pid, self.exit_status)?;
        streams(f, &self.streams)
    }
}

fn process(f: &mut fmt::Formatter<'_>, pid: Option<u32>, exit: Option<u32>) -> fmt::Result {
    if let Some(pid) = pid {
        write!(f, ", pid {pid}")?;
    }
    match exit {
        Some(status) => write!(f, ", status {status}"),
        None => Ok(()),
    }
}

fn streams(f: &mut fmt::Formatter<'_>, streams: &[StreamState]) -> fmt::Result {
    for stream in streams {
        write!(f, ", {}", stream.name)?;
        if stream.address.is_empty() {
            f.write_str(" none")?;
            continue;
        }
        write!(f, " {} fds {:?}", stream.address, stream.fds)?;
        match stream.logger_pid {
            Some(pid) => write!(f, " logger {pid}")?,
            None => write!(f, " {} bytes", stream.copied_bytes)?,
        }
    }
    Ok(())
}

/// How many entries a folder of `/proc/self` has.
pub(super) fn own(folder: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{folder}")).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_there_is() {
        let dump = Dump {
            shim: ShimState {
                version: "1",
                revision: "r",
                creating: vec!["new".to_owned()],
                shutdown_asked: true,
                ..ShimState::default()
            },
            containers: vec![ContainerState {
                id: "c".to_owned(),
                phase: "running".to_owned(),
                pid: Some(7),
                operation: Some(Operation {
                    name: "checkpoint".to_owned(),
                    since_s: 3,
                }),
                requests_waiting: 2,
                memory: Some(MemoryState {
                    phase: "filling".to_owned(),
                    server: Some(11),
                    left_bytes: 4096,
                    all_bytes: 8192,
                    held: 2,
                }),
                streams: vec![StreamState {
                    name: "stdout",
                    address: "/f".to_owned(),
                    fds: vec![8, 9],
                    copied_bytes: 5,
                    logger_pid: None,
                }],
                execs: vec![ExecState {
                    id: "e".to_owned(),
                    phase: "stopped",
                    pid: Some(10),
                    exit_status: Some(1),
                    streams: Vec::new(),
                }],
                ..ContainerState::default()
            }],
        };
        let lines = dump.lines();
        assert!(lines[0].ends_with("creating new, to end with its last container"));
        assert!(lines[1].starts_with(
            "container c: running, pid 7, checkpoint for 3 s, memory filling, 4096 of 8192 bytes to come for 2 tasks from process 11, 2 requests waiting, stdout /f fds [8, 9] 5 bytes"
        ), "{}", lines[1]);
        assert_eq!(lines[2], "container c exec e: stopped, pid 10, status 1");
    }
}
