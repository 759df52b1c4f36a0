//! `pstree.img`: the processes and their threads.

use std::collections::HashSet;
use std::io::Read;

use crate::msg::PstreeEntry;
use crate::{At, Error, Kind, Reader, View};

/// Highest pid that Linux gives out, plus one.
const PID_LIMIT: u32 = 1 << 22;

/// One process. Numbers are those of its pid namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its parent's pid; 0 for the root of the tree.
    pub ppid: u32,
    /// Process group.
    pub pgid: u32,
    /// Session.
    pub sid: u32,
    /// Its threads other than the one with the process's own number, which leads them.
    pub threads: Vec<u32>,
}

impl View for Process {
    type Wire = PstreeEntry;

    const KIND: Kind = Kind::Pstree;

    fn from_wire(wire: Self::Wire, at: At<'_>) -> Result<Self, Error> {
        let process = Self {
            pid: at.need(wire.pid, "pid")?,
            ppid: at.need(wire.ppid, "ppid")?,
            pgid: at.need(wire.pgid, "pgid")?,
            sid: at.need(wire.sid, "sid")?,
            // What stands first is the leader, and for a dead process CRIU writes what it never
            // set. It does not read it back either.
            threads: wire.threads.into_iter().skip(1).collect(),
        };
        for (field, value, low) in [
            ("pid", process.pid, 1),
            ("ppid", process.ppid, 0),
            ("pgid", process.pgid, 0),
            ("sid", process.sid, 0),
        ] {
            if !(low..PID_LIMIT).contains(&value) {
                return Err(at.bad_value(field, value));
            }
        }
        match process
            .threads
            .iter()
            .find(|thread| !(1..PID_LIMIT).contains(*thread))
        {
            Some(thread) => Err(at.bad_value("threads", thread)),
            None => Ok(process),
        }
    }
}

/// The whole tree: exactly one root, which comes first, every parent before its children, and
/// no pid twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessTree {
    root: u32,
    processes: Vec<Process>,
}

impl ProcessTree {
    /// Reads `pstree.img`.
    ///
    /// # Errors
    ///
    /// Whatever reading says; [`Error::BadValue`] for what is not a tree, and
    /// [`Error::WrongCount`] if there is no process at all.
    pub fn read(file: &str, inner: impl Read) -> Result<Self, Error> {
        let mut root = None;
        let mut seen = HashSet::new();
        let mut processes = Vec::new();
        let mut reader = Reader::<Process, _>::new(file, inner)?;
        loop {
            let at = At {
                file,
                offset: reader.offset(),
            };
            let Some(process) = reader.next().transpose()? else {
                break;
            };
            let bad = |field, value: u32| at.bad_value(field, value);
            match (root, process.ppid) {
                (None, 0) => root = Some(process.pid),
                (None, ppid) | (Some(_), ppid @ 0) => return Err(bad("ppid", ppid)),
                (Some(_), ppid) if !seen.contains(&ppid) => return Err(bad("ppid", ppid)),
                (Some(_), _) => {}
            }
            if !seen.insert(process.pid) {
                return Err(bad("pid", process.pid));
            }
            processes.push(process);
        }
        match root {
            Some(root) => Ok(Self { root, processes }),
            None => Err(Error::WrongCount {
                file: file.to_owned(),
                offset: 8,
                problem: "no process",
            }),
        }
    }

    /// The pid of the root.
    pub fn root_pid(&self) -> u32 {
        self.root
    }

    /// The processes, parents before children.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }
}
