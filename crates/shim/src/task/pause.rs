//! Who ends a pause, and when. Pure: what time it is is told.
//!
//! A client pauses the container, asks for a checkpoint, copies what the container has changed of
//! its files, and resumes it. Nobody tells the shim that a client is gone. So a pause that was made
//! for a checkpoint has an end: at the deadline of the client that made it, or else when the
//! node's limit after the last checkpoint has passed. One that a user made has none.

use std::fmt;
use std::time::{Duration, Instant};

/// A pause this short before a checkpoint was made for it.
const FOR_CHECKPOINT: Duration = Duration::from_secs(2);

/// How long after a thaw that failed it is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(30);

/// Why the shim resumes in its client's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The client did not wait for the checkpoint's end.
    Gone,
    /// Its deadline has passed, and with it the client's for its Resume.
    Deadline,
    /// It has not resumed within this time after the checkpoint.
    Limit(Duration),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the client of its checkpoint did not wait for the end"),
            Self::Deadline => f.write_str("the deadline of its checkpoint's client has passed"),
            Self::Limit(limit) => write!(
                f,
                "the client of its checkpoint did not resume it within {} s",
                limit.as_secs()
            ),
        }
    }
}

/// When to resume in the client's place, unless something comes between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) why: Why,
    turn: u64,
}

/// How a checkpoint ended, as far as the pause goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    /// It is known to be gone.
    pub(super) client_gone: bool,
    /// How long it may take from here to its Resume; `None` is for ever.
    pub(super) resume_within: Option<Duration>,
}

/// The pauses of a container.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    now: Option<Pause>,
    /// Since when it runs again, and why, if it was the shim that ended the last pause.
    undone: Option<(Instant, Why)>,
    /// Counted up by all that makes what was due before pointless.
    turn: u64,
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    for_checkpoint: bool,
    /// That of the client that made it, once it is known.
    deadline: Option<Instant>,
}

impl Pauses {
    /// A client has paused the container.
    pub(super) fn begun(&mut self, now: Instant) {
        self.turn += 1;
        self.undone = None;
        self.now = Some(Pause {
            since: now,
            for_checkpoint: false,
            deadline: None,
        });
    }

    /// It runs again, or never will.
    pub(super) fn over(&mut self) {
        self.turn += 1;
        self.now = None;
    }

    /// It runs again since the shim resumed it.
    pub(super) fn undone(&mut self, now: Instant, why: Why) {
        self.over();
        self.undone = Some((now, why));
    }

    /// A checkpoint begins. What was due after an earlier one waits for the end of this.
    pub(super) fn checkpoint_begins(&mut self, now: Instant, deadline: Option<Instant>) {
        self.turn += 1;
        if let Some(pause) = &mut self.now
            && now.saturating_duration_since(pause.since) < FOR_CHECKPOINT
        {
            pause.for_checkpoint = true;
            pause.deadline = deadline.or(pause.deadline);
        }
    }

    /// Whether its client has made the pause for a checkpoint.
    pub(super) fn is_for_checkpoint(&self) -> bool {
        self.now.as_ref().is_some_and(|pause| pause.for_checkpoint)
    }

    /// A checkpoint has ended, well or not, and the container is still paused.
    pub(super) fn checkpoint_ended(&mut self, now: Instant, ended: Ended) -> Option<Due> {
        self.turn += 1;
        let pause = self.now.as_ref().filter(|p| p.for_checkpoint)?;
        let limit = ended
            .resume_within
            .and_then(|limit| Some((now.checked_add(limit)?, Why::Limit(limit))));
        let deadline = pause.deadline.map(|at| (at, Why::Deadline));
        let (at, why) = if ended.client_gone {
            (now, Why::Gone)
        } else {
            deadline
                .into_iter()
                .chain(limit)
                .min_by_key(|(at, _)| *at)?
        };
        let turn = self.turn;
        Some(Due { at, why, turn })
    }

    /// A resumption that did not work is due once more.
    pub(super) fn again(&self, now: Instant, why: Why) -> Due {
        Due {
            at: now + RETRY,
            why,
            turn: self.turn,
        }
    }

    /// Whether that is still to be done.
    pub(super) fn is_due(&self, due: &Due) -> bool {
        self.now.is_some() && self.turn == due.turn
    }

    /// What a client has to hear that resumes a container which the shim has resumed.
    pub(super) fn told_late(&self, now: Instant) -> Option<String> {
        let (since, why) = self.undone?;
        Some(format!(
            "it was resumed {} s ago, as {why}: a copy of its files that was not complete by then may not fit the checkpoint: make another checkpoint",
            now.saturating_duration_since(since).as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn ended() -> Ended {
        Ended {
            resume_within: Some(HOUR),
            ..Ended::default()
        }
    }

    /// Paused at `t`, and a checkpoint begun a second later.
    fn for_checkpoint(t: Instant, deadline: Option<Instant>) -> Pauses {
        let mut pauses = Pauses::default();
        pauses.begun(t);
        pauses.checkpoint_begins(t + S, deadline);
        pauses
    }

    #[test]
    fn a_pause_by_hand_is_never_due() {
        let t = Instant::now();
        let mut pauses = Pauses::default();
        // Running.
        pauses.checkpoint_begins(t, Some(t + S));
        assert_eq!(pauses.checkpoint_ended(t, ended()), None);
        pauses.begun(t);
        pauses.checkpoint_begins(t + 2 * S, Some(t + 3 * S));
        assert!(!pauses.is_for_checkpoint());
        let gone = Ended {
            client_gone: true,
            ..ended()
        };
        assert_eq!(pauses.checkpoint_ended(t + 5 * S, gone), None);
        // The pause before it is another one.
        let mut pauses = for_checkpoint(t, None);
        pauses.over();
        pauses.begun(t + S);
        pauses.checkpoint_begins(t + 9 * S, None);
        assert_eq!(pauses.checkpoint_ended(t + 9 * S, ended()), None);
    }

    #[test]
    fn the_limit_counts_from_the_end_of_the_checkpoint() {
        let t = Instant::now();
        let mut pauses = for_checkpoint(t, None);
        assert!(pauses.is_for_checkpoint());
        let due = pauses.checkpoint_ended(t + 100 * S, ended()).unwrap();
        assert_eq!((due.at, due.why), (t + 100 * S + HOUR, Why::Limit(HOUR)));
        assert!(pauses.is_due(&due));
        // A client that resumes in time hears nothing.
        pauses.over();
        assert!(!pauses.is_due(&due));
        assert_eq!(pauses.told_late(t + 2 * HOUR), None);
    }

    #[test]
    fn without_a_limit_there_is_the_deadline_alone() {
        let t = Instant::now();
        let never = Ended::default();
        assert_eq!(for_checkpoint(t, None).checkpoint_ended(t, never), None);
        let mut pauses = for_checkpoint(t, Some(t + 60 * S));
        let due = pauses.checkpoint_ended(t + 2 * S, never).unwrap();
        assert_eq!((due.at, due.why), (t + 60 * S, Why::Deadline));
    }

    #[test]
    fn what_comes_first_counts() {
        let t = Instant::now();
        let due = |deadline, limit, gone| {
            let ended = Ended {
                client_gone: gone,
                resume_within: Some(limit),
            };
            let mut pauses = for_checkpoint(t, Some(deadline));
            let due = pauses.checkpoint_ended(t + 9 * S, ended).unwrap();
            (due.at, due.why)
        };
        assert_eq!(due(t + 60 * S, HOUR, false), (t + 60 * S, Why::Deadline));
        assert_eq!(due(t + HOUR, S, false), (t + 10 * S, Why::Limit(S)));
        // Over already.
        assert_eq!(due(t + 3 * S, HOUR, false), (t + 3 * S, Why::Deadline));
        assert_eq!(due(t + HOUR, HOUR, true), (t + 9 * S, Why::Gone));
    }

    #[test]
    fn a_second_checkpoint_begins_the_limit_anew() {
        let t = Instant::now();
        let mut pauses = for_checkpoint(t, None);
        let first = pauses.checkpoint_ended(t + 2 * S, ended()).unwrap();
        // Long after the pause, and still under it.
        pauses.checkpoint_begins(t + 100 * S, Some(t + 101 * S));
        assert!(!pauses.is_due(&first));
        let second = pauses.checkpoint_ended(t + 200 * S, ended()).unwrap();
        assert_eq!(second.at, t + 200 * S + HOUR);
        assert!(pauses.is_due(&second) && !pauses.is_due(&first));
    }

    #[test]
    fn who_resumes_too_late_hears_it_until_the_next_pause() {
        let t = Instant::now();
        let mut pauses = for_checkpoint(t, None);
        let due = pauses.checkpoint_ended(t + 2 * S, ended()).unwrap();
        // A thaw that fails is tried again.
        let again = pauses.again(due.at, due.why);
        assert!(pauses.is_due(&again));
        pauses.undone(due.at, due.why);
        assert!(!pauses.is_due(&again));
        let text = pauses.told_late(due.at + 7 * S).unwrap();
        assert!(
            text.contains("7 s ago") && text.contains("3600 s"),
            "{text}"
        );
        pauses.begun(due.at + 8 * S);
        pauses.over();
        assert_eq!(pauses.told_late(due.at + 9 * S), None);
    }
}
