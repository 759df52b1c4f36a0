//! The life of a container as a pure state machine.

use std::fmt;

use crate::rpc::TaskError;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 plus the signal's number.
    pub status: u32,
    /// When the shim saw it.
    pub at: std::time::SystemTime,
}

/// Where in its life a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made from a checkpoint: there is a root file system and nothing else.
    Prepared,
    /// The first process waits to run the container's program.
    Created,
    /// Running.
    Running,
    /// Frozen by Pause.
    Paused,
    /// Ended.
    Stopped(Exit),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepared => "created (from a checkpoint)",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        })
    }
}

/// Operations that take time; a container does one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Start, or restore.
    Start,
    /// Pause.
    Pause,
    /// Resume.
    Resume,
    /// Checkpoint.
    Checkpoint,
    /// The memory of a checkpoint is being fetched.
    Transfer,
    /// Delete.
    Delete,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Checkpoint => "checkpoint",
            Self::Transfer => "transfer of the memory",
            Self::Delete => "delete",
        })
    }
}

/// A container's phase together with the operation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    phase: Phase,
    busy: Option<Op>,
}

impl State {
    /// A fresh container.
    #[must_use]
    pub fn new(from_checkpoint: bool) -> Self {
        let phase = if from_checkpoint {
            Phase::Prepared
        } else {
            Phase::Created
        };
        Self { phase, busy: None }
    }

    /// Where the container is now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The operation under way.
    #[must_use]
    pub fn busy(&self) -> Option<Op> {
        self.busy
    }

    /// Begins an operation.
    ///
    /// # Errors
    ///
    /// Aborted while another one is under way, FailedPrecondition when the
    /// phase does not allow it. The state stays as it was.
    pub fn begin(&mut self, op: Op) -> Result<(), TaskError> {
        if let Some(other) = self.busy {
            return Err(TaskError::Aborted(format!(
                "cannot {op}: a {other} of this container is under way; try again when it has ended"
            )));
        }
        let remedy = match (op, self.phase) {
            (Op::Start, Phase::Prepared | Phase::Created)
            | (Op::Pause, Phase::Running)
            | (Op::Resume, Phase::Paused)
            | (Op::Checkpoint, Phase::Running | Phase::Paused)
            | (Op::Delete, Phase::Prepared | Phase::Created | Phase::Stopped(_)) => {
                self.busy = Some(op);
                return Ok(());
            }
            (Op::Delete, _) => "kill it first",
            (Op::Start, Phase::Stopped(_)) => "delete it and create it again",
            (Op::Start, _) => "it needs no start",
            (_, Phase::Prepared | Phase::Created) => "start it first",
            (_, Phase::Stopped(_)) => "there is no process left",
            (Op::Pause, _) => "it needs no pause",
            (Op::Resume, _) => "only a paused container resumes",
            (Op::Transfer, _) => "checkpoint it",
        };
        let what = if op == Op::Delete {
            "process"
        } else {
            "container"
        };
        Err(TaskError::FailedPrecondition(format!(
            "cannot {op} a {} {what}: {remedy}",
            self.phase
        )))
    }

    /// The checkpoint under way has become a transfer: the processes stay stopped for it.
    pub fn transfers(&mut self) {
        self.busy = Some(Op::Transfer);
        if self.phase == Phase::Running {
            self.phase = Phase::Paused;
        }
    }

    /// Ends the operation under way. A container that stopped meanwhile stays
    /// stopped.
    pub fn end(&mut self, succeeded: bool) {
        let next = match self.busy.take() {
            Some(Op::Start | Op::Resume) => Phase::Running,
            Some(Op::Pause) => Phase::Paused,
            Some(Op::Checkpoint | Op::Transfer | Op::Delete) | None => return,
        };
        if succeeded && !matches!(self.phase, Phase::Stopped(_)) {
            self.phase = next;
        }
    }

    /// The first process ended. The first report counts.
    pub fn exited(&mut self, exit: Exit) {
        if !matches!(self.phase, Phase::Stopped(_)) {
            self.phase = Phase::Stopped(exit);
        }
    }

    /// A paused container was thawed by other means than a Resume: to let it die of a signal, or as
    /// a transfer was given up.
    pub fn thawed(&mut self) {
        if self.phase == Phase::Paused {
            self.phase = Phase::Running;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    const OPS: [Op; 5] = [Op::Start, Op::Pause, Op::Resume, Op::Checkpoint, Op::Delete];

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin(Op),
        End(bool),
        Transfer,
        Exit(u32),
        Thaw,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..OPS.len()).prop_map(|i| Step::Begin(OPS[i])),
            any::<bool>().prop_map(Step::End),
            Just(Step::Transfer),
            (0u32..256).prop_map(Step::Exit),
            Just(Step::Thaw),
        ]
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_stopped_or_back_to_created(
            from_checkpoint: bool,
            steps in proptest::collection::vec(step(), 0..40),
        ) {
            let mut state = State::new(from_checkpoint);
            for step in steps {
                let before = state;
                match step {
                    Step::Begin(op) => match state.begin(op) {
                        Ok(()) => prop_assert_eq!(before.busy(), None),
                        Err(_) => prop_assert_eq!(state, before),
                    },
                    Step::End(ok) => {
                        state.end(ok);
                        prop_assert_eq!(state.busy(), None);
                    }
                    Step::Transfer => {
                        if before.busy() == Some(Op::Checkpoint) {
                            state.transfers();
                        }
                    }
                    Step::Exit(status) => state.exited(Exit { status, at: SystemTime::UNIX_EPOCH }),
                    Step::Thaw => state.thawed(),
                }
                if matches!(before.phase(), Phase::Stopped(_)) {
                    prop_assert_eq!(state.phase(), before.phase());
                }
                if matches!(state.phase(), Phase::Prepared | Phase::Created) {
                    prop_assert_eq!(state.phase(), before.phase());
                }
            }
        }
    }

    #[test]
    fn what_each_phase_allows() {
        let exit = Exit {
            status: 0,
            at: SystemTime::UNIX_EPOCH,
        };
        for (phase, allowed) in [
            (Phase::Prepared, vec![Op::Start, Op::Delete]),
            (Phase::Created, vec![Op::Start, Op::Delete]),
            (Phase::Running, vec![Op::Pause, Op::Checkpoint]),
            (Phase::Paused, vec![Op::Resume, Op::Checkpoint]),
            (Phase::Stopped(exit), vec![Op::Delete]),
        ] {
            for op in OPS {
                let mut state = State { phase, busy: None };
                assert_eq!(
                    state.begin(op).is_ok(),
                    allowed.contains(&op),
                    "{op} of {phase}"
                );
            }
        }
    }

    #[test]
    fn refusals_say_what_and_what_to_do() {
        let mut state = State::new(false);
        let text = state.begin(Op::Checkpoint).unwrap_err().to_string();
        assert_eq!(
            text,
            "cannot checkpoint a created container: start it first"
        );
        state.begin(Op::Start).unwrap();
        let err = state.begin(Op::Delete).unwrap_err();
        assert!(matches!(err, TaskError::Aborted(_)), "{err}");
        state.end(true);
        // containerd looks for these very words.
        let text = state.begin(Op::Delete).unwrap_err().to_string();
        assert_eq!(text, "cannot delete a running process: kill it first");
    }

    #[test]
    fn a_transfer_holds_the_container_still() {
        let mut state = State::new(false);
        state.begin(Op::Start).unwrap();
        state.end(true);
        state.begin(Op::Checkpoint).unwrap();
        state.transfers();
        assert_eq!(state.phase(), Phase::Paused);
        for op in OPS {
            let error = state.begin(op).unwrap_err();
            assert!(matches!(error, TaskError::Aborted(_)), "{op}: {error}");
            let text = error.to_string();
            assert!(text.contains("a transfer of the memory"), "{text}");
        }
        state.end(false);
        state.thawed();
        assert_eq!(state.phase(), Phase::Running);
        state.begin(Op::Checkpoint).unwrap();
    }

    #[test]
    fn an_exit_during_start_wins() {
        let mut state = State::new(false);
        state.begin(Op::Start).unwrap();
        let exit = Exit {
            status: 3,
            at: SystemTime::UNIX_EPOCH,
        };
        state.exited(exit);
        state.end(true);
        assert_eq!(state.phase(), Phase::Stopped(exit));
    }
}
