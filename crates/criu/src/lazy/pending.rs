//! What of an address space is still to come.
//!
//! Pure bookkeeping: pieces of memory by where they are to be now, each with where it was when it
//! was dumped, by which its source knows it. Addresses and lengths are whole pages, in bytes.

use std::collections::BTreeMap;

/// What is still to come.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending {
    /// By address; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    bytes: u64,
    origin: u64,
}

/// A part of it that is one in memory and in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it is to be.
    pub(super) address: u64,
    /// How much it is.
    pub(super) bytes: u64,
    /// Where it was at the dump.
    pub(super) origin: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }

    /// What of it is from one address up to another.
    fn within(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.address.max(start), self.end().min(end));
        (from < to).then(|| Self {
            address: from,
            bytes: to - from,
            origin: self.origin.saturating_add(from - self.address),
        })
    }

    /// No more than so much of its beginning.
    pub(super) fn at_most(self, bytes: u64) -> Self {
        Self {
            bytes: self.bytes.min(bytes),
            ..self
        }
    }
}

impl Pending {
    /// How many bytes are to come.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many pieces there are.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Adds a part, in place of what was to come there.
    pub(super) fn insert(&mut self, part: Part) {
        self.remove(part.address, part.end());
        self.put(part);
    }

    /// What is to come at an address, and behind it from the same piece.
    pub(super) fn at(&self, address: u64) -> Option<Part> {
        let (&start, &piece) = self.pieces.range(..=address).next_back()?;
        part(start, piece).within(address, u64::MAX)
    }

    /// The first that is to come at an address or above, else the first of all.
    pub(super) fn next(&self, address: u64) -> Option<Part> {
        self.at(address).or_else(|| {
            let above = self.pieces.range(address..).next();
            let (&start, &piece) = above.or_else(|| self.pieces.iter().next())?;
            Some(part(start, piece))
        })
    }

    /// Nothing is to come any more from one address up to another.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        self.take(start, end);
    }

    /// What was to come in one place is to come in another, in place of what was to come there.
    pub(super) fn remap(&mut self, from: u64, to: u64, bytes: u64) {
        let moved = self.take(from, from.saturating_add(bytes));
        self.remove(to, to.saturating_add(bytes));
        for part in moved {
            self.put(Part {
                address: to.saturating_add(part.address - from),
                ..part
            });
        }
    }

    fn put(&mut self, part: Part) {
        if part.bytes == 0 {
            return;
        }
        let piece = Piece {
            bytes: part.bytes,
            origin: part.origin,
        };
        let before = self.pieces.insert(part.address, piece);
        self.bytes = self.bytes.saturating_add(part.bytes);
        self.bytes -= before.map_or(0, |p| p.bytes).min(self.bytes);
    }

    /// Takes out what is from one address up to another.
    fn take(&mut self, start: u64, end: u64) -> Vec<Part> {
        let mut taken = Vec::new();
        if start >= end {
            return taken;
        }
        let first = self.pieces.range(..=start).next_back();
        let from = first.map_or(start, |(&address, _)| address);
        let touched: Vec<Part> = self
            .pieces
            .range(from..end)
            .map(|(&address, &piece)| part(address, piece))
            .filter(|part| part.end() > start)
            .collect();
        for part in touched {
            self.pieces.remove(&part.address);
            self.bytes -= part.bytes.min(self.bytes);
            let outside = [part.within(0, start), part.within(end, u64::MAX)];
            outside.into_iter().flatten().for_each(|p| self.put(p));
            taken.extend(part.within(start, end));
        }
        taken
    }
}

fn part(address: u64, piece: Piece) -> Part {
    Part {
        address,
        bytes: piece.bytes,
        origin: piece.origin,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;

    /// Page by page: where it was.
    type Model = BTreeMap<u64, u64>;

    #[derive(Debug, Clone)]
    enum Change {
        Insert(u64, u64, u64),
        Remove(u64, u64),
        Remap(u64, u64, u64),
        Fill(u64, u64),
        Fork,
    }

    fn change() -> impl Strategy<Value = Change> {
        let page = || 0..PAGES;
        let few = || 0..PAGES / 4;
        prop_oneof![
            (page(), few(), page()).prop_map(|(a, n, o)| Change::Insert(a, n, o)),
            (page(), few()).prop_map(|(a, n)| Change::Remove(a, n)),
            (page(), page(), few()).prop_map(|(a, b, n)| Change::Remap(a, b, n)),
            (page(), 1..PAGES / 4).prop_map(|(a, n)| Change::Fill(a, n)),
            Just(Change::Fork),
        ]
    }

    fn apply(change: &Change, pending: &mut Pending, model: &mut Model) {
        match *change {
            Change::Insert(address, pages, origin) => {
                pending.insert(Part {
                    address: address * PAGE,
                    bytes: pages * PAGE,
                    origin: origin * PAGE,
                });
                model.extend((0..pages).map(|n| (address + n, origin + n)));
            }
            Change::Remove(address, pages) => {
                pending.remove(address * PAGE, (address + pages) * PAGE);
                model.retain(|page, _| !(address..address + pages).contains(page));
            }
            Change::Remap(from, to, pages) => {
                pending.remap(from * PAGE, to * PAGE, pages * PAGE);
                let moved: Vec<_> = (0..pages)
                    .filter_map(|n| Some((to + n, model.remove(&(from + n))?)))
                    .collect();
                model.retain(|page, _| !(to..to + pages).contains(page));
                model.extend(moved);
            }
            Change::Fill(from, most) => {
                let Some(part) = pending.next(from * PAGE).map(|p| p.at_most(most * PAGE)) else {
                    assert!(model.is_empty());
                    return;
                };
                let first = model.range(from..).next().or_else(|| model.iter().next());
                assert_eq!(first, Some((&(part.address / PAGE), &(part.origin / PAGE))));
                for n in 0..part.bytes / PAGE {
                    let origin = model.remove(&(part.address / PAGE + n));
                    assert_eq!(origin, Some(part.origin / PAGE + n));
                }
                pending.remove(part.address, part.end());
            }
            Change::Fork => *pending = pending.clone(),
        }
    }

    fn compare(pending: &Pending, model: &Model) {
        assert_eq!(pending.bytes(), model.len() as u64 * PAGE);
        for page in 0..2 * PAGES {
            let found = pending.at(page * PAGE).map(|p| p.origin / PAGE);
            assert_eq!(found, model.get(&page).copied(), "page {page}");
        }
        let sum: u64 = pending.pieces.values().map(|p| p.bytes).sum();
        assert_eq!(sum, pending.bytes());
        assert!(pending.pieces.values().all(|p| p.bytes > 0));
    }

    proptest! {
        #[test]
        fn it_is_what_a_list_of_pages_is(changes in prop::collection::vec(change(), 0..60)) {
            let (mut pending, mut model) = (Pending::default(), Model::new());
            for change in &changes {
                apply(change, &mut pending, &mut model);
                compare(&pending, &model);
            }
        }

        #[test]
        fn numbers_of_whatever_size_do_no_harm(numbers in prop::collection::vec(any::<u64>(), 6)) {
            let mut pending = Pending::default();
            pending.insert(Part { address: 0, bytes: u64::MAX / 4, origin: numbers[5] });
            pending.remap(numbers[0], numbers[1], numbers[2]);
            pending.remove(numbers[3], numbers[4]);
            let _ = (pending.at(numbers[0]), pending.next(numbers[1]));
        }
    }
}
