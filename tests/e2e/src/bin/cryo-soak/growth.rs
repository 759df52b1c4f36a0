//! Whether a shim that lives on grows: readings at rest, and the judgement of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cryo_e2e::lab::Node;
use cryo_e2e::patience::PATIENCE;
use cryo_e2e::shims::Usage;

/// How much more private memory the shim may have at the end than in the middle. What an
/// allocator holds grows to the largest need there was, and then stays: of 200 lives the
/// first 100 were measured to add 1200 KiB, the third 50 140, the last 50 40.
const MEMORY_KIB: u64 = 256;

/// The same when the middle is before [`WARM_LIVES`].
const COLD_MEMORY_KIB: u64 = 1024;

/// After so many lives nothing is needed that was not needed before.
const WARM_LIVES: usize = 100;

/// The shim of the long-lived pod, at rest.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// How many lives were over.
    pub(crate) lives: usize,
    pub(crate) usage: Usage,
}

impl Reading {
    /// Reads once each process is down to one thread and there are no more descriptors
    /// than in `first`, or after a while.
    pub(crate) async fn take(
        node: &Node,
        pod: &str,
        lives: usize,
        first: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            // A helper may end while it is looked at.
            let usage = Usage::of(node, pod);
            let rest = usage.as_ref().is_ok_and(|usage| {
                usage.threads == usage.processes
                    && first.is_none_or(|first| usage.fds.len() <= first.usage.fds.len())
            });
            if rest || Instant::now() > end {
                return usage.map(|usage| Self { lives, usage });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What grew, a line each. Descriptors, threads and processes may not be more than in the
/// first reading; memory, which has to warm up, not more than half way.
pub(crate) fn grown(readings: &[Reading]) -> Vec<String> {
    let (Some(first), Some(last)) = (readings.first(), readings.last()) else {
        return Vec::new();
    };
    let mut grown = Vec::new();
    let then = count(&first.usage.fds);
    for (fd, now) in count(&last.usage.fds) {
        let then = then.get(fd).copied().unwrap_or(0);
        if now > then {
            grown.push(format!("open files {fd}: {then} before, {now} now"));
        }
    }
    for (what, then, now) in [
        ("threads", first.usage.threads, last.usage.threads),
        ("processes", first.usage.processes, last.usage.processes),
    ] {
        if now > then {
            grown.push(format!("{what}: {then} before, {now} now"));
        }
    }
    if let Some(middle) = readings.get(readings.len() / 2) {
        let (then, now) = (middle.usage.private_kib, last.usage.private_kib);
        let limit = if middle.lives < WARM_LIVES {
            COLD_MEMORY_KIB
        } else {
            MEMORY_KIB
        };
        if now > then + limit {
            grown.push(format!(
                "private memory: {then} KiB after {} lives, {now} KiB after {}",
                middle.lives, last.lives
            ));
        }
    }
    grown
}

fn count(fds: &[String]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    for fd in fds {
        *counted.entry(fd.as_str()).or_default() += 1;
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(fds: &[&str], threads: usize, private_kib: u64) -> Reading {
        Reading {
            lives: WARM_LIVES,
            usage: Usage {
                processes: 2,
                fds: fds.iter().map(|&fd| fd.into()).collect(),
                threads,
                private_kib,
                ..Usage::default()
            },
        }
    }

    #[test]
    fn the_same_is_no_growth_and_memory_may_warm_up() {
        let readings = [1000, 3000, 4000, 4100, 4200].map(|kib| reading(&["pipe"], 3, kib));
        assert_eq!(grown(&readings), Vec::<String>::new());
    }

    #[test]
    fn one_more_of_anything_is() {
        let first = reading(&["pipe", "socket"], 3, 1000);
        for (last, word) in [
            (reading(&["pipe", "pipe"], 3, 1000), "pipe: 1 before, 2 now"),
            (reading(&["pipe", "socket"], 4, 1000), "threads"),
            (reading(&["pipe"], 3, 1000 + MEMORY_KIB + 1), "memory"),
        ] {
            let grown = grown(&[first.clone(), first.clone(), last]);
            assert_eq!(grown.len(), 1, "{grown:?}");
            assert!(grown[0].contains(word), "{grown:?}");
        }
    }
}
