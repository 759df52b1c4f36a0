//! What is done with each pod: drawn from a seed and from nothing else. Pure.

/// A pod's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// containerd's end and start before it, by SIGKILL (true) or by SIGTERM.
    pub(crate) restart: Option<bool>,
    /// Its containers, which live beside each other.
    pub(crate) containers: Vec<Script>,
    /// A container that comes to the pod that outlives them all, and goes.
    pub(crate) guest: Option<Script>,
    /// What is done meanwhile with the container that outlives them all.
    pub(crate) visit: Vec<Step>,
    pub(crate) end: End,
}

/// A container's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) work: Work,
    pub(crate) steps: Vec<Step>,
    pub(crate) stop: Stop,
}

/// What a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Counts until it is ended.
    Counter,
    /// Ends by itself with this code; nothing is done with it before.
    Exits(u8),
    /// Takes memory until it is killed for it.
    Glutton,
    /// Is created and never started.
    Created,
}

/// What is done with a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// An exec that succeeds.
    Exec,
    /// An exec that ends with this code.
    ExecFails(u8),
    /// An exec of a program that is not there.
    ExecMissing,
    /// An exec that copies its stdin.
    ExecStdin,
    /// An exec on a terminal.
    ExecTerminal,
    /// An exec that is killed.
    ExecKilled,
    /// Usage, as the kubelet asks for it, and the list of processes.
    Stats,
    /// Another memory limit.
    Update,
    Pause,
    /// Follows each [`Step::Pause`], with steps between that a paused container allows.
    Resume,
    /// Into an archive.
    Checkpoint,
    /// Into an archive, which is restored in the same pod.
    Restore,
}

/// How a container ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// StopContainer with a second's grace.
    Grace,
    /// StopContainer without.
    AtOnce,
    /// Its first process is killed by SIGKILL from outside.
    Killed,
    /// It is removed while it runs.
    Removed,
    /// It is left to the end of the pod.
    Left,
}

/// How a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// StopPodSandbox, RemovePodSandbox.
    Stopped,
    /// RemovePodSandbox alone.
    Removed,
    /// Its shim is killed by SIGKILL, then as [`End::Stopped`].
    ShimKilled,
}

/// The lives of so many pods. Fewer pods of the same seed are the first of more.
pub(crate) fn lives(seed: u64, pods: usize) -> Vec<Life> {
    let mut draw = Draw(seed);
    (0..pods).map(|_| life(&mut draw)).collect()
}

fn life(draw: &mut Draw) -> Life {
    let restart = (draw.below(100) < 6).then(|| draw.below(2) == 0);
    let containers = 1 + draw.below(3);
    Life {
        restart,
        containers: (0..containers).map(|_| script(draw)).collect(),
        guest: (draw.below(2) == 0).then(|| guest(draw)),
        visit: steps(draw, 3),
        end: match draw.below(10) {
            0 => End::ShimKilled,
            1..=3 => End::Removed,
            _ => End::Stopped,
        },
    }
}

fn script(draw: &mut Draw) -> Script {
    let work = match draw.below(12) {
        0 => Work::Glutton,
        1 => Work::Created,
        2 => Work::Exits(u8::try_from(draw.below(100)).unwrap_or(0)),
        _ => Work::Counter,
    };
    let steps = if work == Work::Counter {
        steps(draw, 5)
    } else {
        Vec::new()
    };
    let stop = match draw.below(8) {
        0 => Stop::Grace,
        1 | 2 => Stop::AtOnce,
        3 => Stop::Killed,
        4 | 5 => Stop::Removed,
        _ => Stop::Left,
    };
    Script { work, steps, stop }
}

/// In a pod that goes on, somebody has to remove it.
fn guest(draw: &mut Draw) -> Script {
    let mut guest = script(draw);
    if guest.stop == Stop::Left {
        guest.stop = Stop::Removed;
    }
    guest
}

fn steps(draw: &mut Draw, most: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..draw.below(most + 1) {
        match draw.below(14) {
            0 | 1 => steps.push(Step::Exec),
            2 => steps.push(Step::ExecFails(
                u8::try_from(1 + draw.below(100)).unwrap_or(1),
            )),
            3 => steps.push(Step::ExecMissing),
            4 | 5 => steps.push(Step::ExecStdin),
            6 => steps.push(Step::ExecTerminal),
            7 => steps.push(Step::ExecKilled),
            8 => steps.push(Step::Stats),
            9 => steps.push(Step::Update),
            10 => steps.extend([Step::Pause, Step::Resume]),
            11 => steps.extend([Step::Pause, Step::Stats, Step::Resume]),
            12 => steps.push(Step::Checkpoint),
            _ => steps.push(Step::Restore),
        }
    }
    steps
}

/// Steele, Lea and Flood's SplitMix64: numbers that are the same everywhere and for ever.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 to `n` - 1.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n.max(1) as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(lives(7, 50), lives(7, 50));
        assert_eq!(lives(7, 50)[..20], lives(7, 20));
        assert_ne!(lives(7, 20), lives(8, 20));
    }

    #[test]
    fn every_pause_is_followed_by_a_resume_before_anything_that_needs_one() {
        for life in lives(1, 300) {
            let of_pod = life.containers.iter().chain(&life.guest).map(|s| &s.steps);
            for steps in of_pod.chain([&life.visit]) {
                let mut paused = false;
                for step in steps {
                    match step {
                        Step::Pause => paused = true,
                        Step::Resume => paused = false,
                        Step::Stats => {}
                        other => assert!(!paused, "{other:?} while paused"),
                    }
                }
                assert!(!paused);
            }
        }
    }

    #[test]
    fn nothing_is_left_out_of_two_hundred() {
        let lives = lives(1, 200);
        let scripts = || {
            lives
                .iter()
                .flat_map(|l| l.containers.iter().chain(&l.guest))
        };
        let steps: BTreeSet<_> = scripts()
            .flat_map(|s| &s.steps)
            .map(|s| match s {
                Step::ExecFails(_) => Step::ExecFails(0),
                other => *other,
            })
            .collect();
        assert_eq!(steps.len(), 12, "{steps:?}");
        let stops: BTreeSet<_> = scripts().map(|s| s.stop).collect();
        assert_eq!(stops.len(), 5, "{stops:?}");
        let ends: BTreeSet<_> = lives.iter().map(|l| l.end).collect();
        assert_eq!(ends.len(), 3, "{ends:?}");
        for kill in [true, false] {
            assert!(lives.iter().any(|l| l.restart == Some(kill)));
        }
        for work in [Work::Glutton, Work::Created] {
            assert!(scripts().any(|s| s.work == work));
        }
        assert!(lives.iter().any(|l| l.containers.len() == 3));
    }
}
