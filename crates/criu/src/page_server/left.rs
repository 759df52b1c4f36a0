//! What memory a lazy dump has left with its tasks, and what of it nobody has fetched yet.
//!
//! Pure bookkeeping. Addresses and lengths are whole pages, in bytes.

use std::collections::BTreeMap;

/// The memory that is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    processes: BTreeMap<u32, Process>,
    missing: u64,
}

/// Two sets of ranges: beginning and end, which do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Process {
    all: BTreeMap<u64, u64>,
    missing: BTreeMap<u64, u64>,
}

impl Left {
    /// Adds a range of a process, by its number in the images. Ranges do not overlap.
    pub fn add(&mut self, process: u32, address: u64, bytes: u64) {
        let end = address.saturating_add(bytes);
        if end == address {
            return;
        }
        let process = self.processes.entry(process).or_default();
        self.missing += end - address;
        for set in [&mut process.all, &mut process.missing] {
            join(set, address, end);
        }
    }

    /// The processes that have memory here, by their numbers in the images.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.processes.keys().copied()
    }

    /// How many bytes nobody has fetched yet.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// How much of a range, from its beginning, is served; 0 for memory that is not.
    #[must_use]
    pub fn at(&self, process: u32, address: u64, bytes: u64) -> u64 {
        let all = self.processes.get(&process).map(|p| &p.all);
        let run = all.and_then(|all| all.range(..=address).next_back());
        run.map_or(0, |(_, end)| end.saturating_sub(address).min(bytes))
    }

    /// A range was fetched.
    pub fn fetched(&mut self, process: u32, address: u64, bytes: u64) {
        let Some(process) = self.processes.get_mut(&process) else {
            return;
        };
        let end = address.saturating_add(bytes);
        let missing = &mut process.missing;
        while let Some((&from, &to)) = missing.range(..end).next_back()
            && to > address
        {
            missing.remove(&from);
            if from < address {
                missing.insert(from, address);
            }
            if to > end {
                missing.insert(end, to);
            }
            self.missing -= to.min(end) - from.max(address);
        }
    }
}

/// Adds a range to a set, as one with those that it touches.
fn join(set: &mut BTreeMap<u64, u64>, mut from: u64, mut to: u64) {
    if let Some((&before, &end)) = set.range(..from).next_back()
        && end == from
    {
        from = before;
    }
    if let Some(end) = set.remove(&to) {
        to = end;
    }
    set.insert(from, to);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_asked_for_is_cut_to_what_is_there() {
        let mut left = Left::default();
        left.add(1, 0x1000, 0x2000);
        left.add(1, 0x3000, 0x1000);
        left.add(1, 0x8000, 0x1000);
        left.add(1, 0x9000, 0);
        assert_eq!(left.missing(), 0x4000);
        assert_eq!(left.at(1, 0x1000, 0x10000), 0x3000);
        assert_eq!(left.at(1, 0x2000, 0x1000), 0x1000);
        assert_eq!(left.at(1, 0x4000, 0x1000), 0);
        assert_eq!(left.at(1, 0, 0x1000), 0);
        assert_eq!(left.at(1, u64::MAX, 0x1000), 0);
        assert_eq!(left.at(2, 0x1000, 0x1000), 0);
        assert_eq!(left.processes().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_is_fetched_twice_counts_once() {
        let mut left = Left::default();
        left.add(1, 0x1000, 0x4000);
        left.fetched(1, 0x2000, 0x1000);
        left.fetched(1, 0x2000, 0x1000);
        left.fetched(2, 0x1000, 0x4000);
        assert_eq!(left.missing(), 0x3000);
        // It is served all the same.
        assert_eq!(left.at(1, 0x2000, 0x1000), 0x1000);
        left.fetched(1, 0, u64::MAX);
        assert_eq!(left.missing(), 0);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_pages(
            added in proptest::collection::btree_set(0u64..64, 0..40),
            fetched in proptest::collection::vec((0u64..64, 0u64..20), 0..20),
        ) {
            let mut left = Left::default();
            for page in &added {
                left.add(3, page * 4096, 4096);
            }
            let mut missing = added.clone();
            for (from, pages) in fetched {
                left.fetched(3, from * 4096, pages * 4096);
                missing.retain(|page| !(from..from + pages).contains(page));
                prop_assert_eq!(left.missing(), missing.len() as u64 * 4096);
            }
            for page in 0..64 {
                prop_assert_eq!(left.at(3, page * 4096, 4096) == 4096, added.contains(&page));
            }
        }
    }
}
