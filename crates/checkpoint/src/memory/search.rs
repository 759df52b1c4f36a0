//! Searching the memory of a process, on several threads, with the same answer each time.
//!
//! Memory is cut into windows of [`WINDOW`] bytes. A window is searched together with some bytes
//! behind it, and yields the matches that begin in it; the caller gets them in the order of the
//! image, window by window. What lies side by side in memory is one text, whatever runs CRIU
//! wrote it in. Matches of one pattern do not overlap.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use memchr::memmem;

use super::{Cursor, Error, MAX_THREADS, Memory, Run};

/// How many bytes are searched at a time.
const WINDOW: u64 = 1 << 18;

/// So many matches may wait to be taken, or be expected, before no other window is begun.
const MAX_WAITING: usize = 1 << 18;

/// Longest match of a regular expression: what is longer is cut off.
pub const MAX_MATCH_BYTES: usize = 64 << 10;

/// Most bytes of context on either side of a match.
pub const MAX_CONTEXT_BYTES: usize = 64 << 10;

/// What is searched for.
#[derive(Debug)]
pub struct Pattern(Matcher);

#[derive(Debug)]
enum Matcher {
    /// These bytes.
    Literal {
        finder: Box<memmem::Finder<'static>>,
        length: usize,
        /// Whether it can begin again before it ends, as `aba` does.
        overlaps_itself: bool,
    },
    Expression {
        regex: regex::bytes::Regex,
        /// In memory as it is printed: with `?` for each byte that is no printable ASCII.
        printed: bool,
    },
}

/// Why a pattern cannot be searched for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// It has no bytes.
    #[error("an empty pattern is everywhere: name what to search for")]
    Empty,
    /// It has too many.
    #[error("a pattern may have {MAX_MATCH_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// It is no regular expression.
    #[error(transparent)]
    Expression(#[from] regex::Error),
}

impl Pattern {
    /// Bytes as they stand in memory.
    ///
    /// # Errors
    ///
    /// [`PatternError::Empty`], [`PatternError::TooLong`].
    pub fn bytes(needle: &[u8]) -> Result<Self, PatternError> {
        match needle.len() {
            0 => return Err(PatternError::Empty),
            length if length > MAX_MATCH_BYTES => return Err(PatternError::TooLong(length)),
            _ => {}
        }
        let overlaps = |shift: usize| {
            needle
                .get(shift..)
                .is_some_and(|end| needle.starts_with(end))
        };
        Ok(Self(Matcher::Literal {
            finder: Box::new(memmem::Finder::new(needle).into_owned()),
            length: needle.len(),
            overlaps_itself: (1..needle.len()).any(overlaps),
        }))
    }

    /// A text in memory as it is printed: a `?` also stands for any byte that is no printable
    /// ASCII. What is not ASCII in it is searched for as UTF-8.
    ///
    /// # Errors
    ///
    /// As [`Pattern::bytes`].
    pub fn printed(text: &str) -> Result<Self, PatternError> {
        if !text.contains('?') {
            return Self::bytes(text.as_bytes());
        }
        if text.len() > MAX_MATCH_BYTES {
            return Err(PatternError::TooLong(text.len()));
        }
        let expression = regex::escape(text).replace(r"\?", r"[^\x20-\x3e\x40-\x7e]");
        Self::expression(&expression, false)
    }

    /// A text in UTF-16, little or big endian.
    ///
    /// # Errors
    ///
    /// As [`Pattern::bytes`].
    pub fn utf16(text: &str, big_endian: bool) -> Result<Self, PatternError> {
        let bytes: Vec<u8> = text
            .encode_utf16()
            .flat_map(|unit| match big_endian {
                true => unit.to_be_bytes(),
                false => unit.to_le_bytes(),
            })
            .collect();
        Self::bytes(&bytes)
    }

    /// A regular expression over bytes; over memory as it is printed if `printed`.
    ///
    /// # Errors
    ///
    /// [`PatternError::Empty`], [`PatternError::Expression`].
    pub fn expression(expression: &str, printed: bool) -> Result<Self, PatternError> {
        if expression.is_empty() {
            return Err(PatternError::Empty);
        }
        let regex = regex::bytes::RegexBuilder::new(expression)
            .unicode(false)
            .build()?;
        Ok(Self(Matcher::Expression { regex, printed }))
    }

    /// How many bytes behind its begin a match may reach.
    fn reach(&self) -> usize {
        match &self.0 {
            Matcher::Literal { length, .. } => *length,
            Matcher::Expression { .. } => MAX_MATCH_BYTES,
        }
    }
}

/// One match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Where it begins.
    pub address: u64,
    /// How many bytes it has.
    pub length: usize,
    /// Which of the patterns it is of, from 0.
    pub pattern: usize,
    /// Its bytes with those around it, and where it begins in them.
    pub bytes: Vec<u8>,
    /// Where it begins in `bytes`.
    pub begin: usize,
}

/// How to search.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How many bytes to show on each side of a match, [`MAX_CONTEXT_BYTES`] at most.
    pub context: usize,
    /// How many threads to search on: one at least, and at most [`MAX_THREADS`].
    pub threads: usize,
    /// Counts the bytes that were searched.
    pub done: Option<&'a AtomicU64>,
}

/// Calls back with each match, in the order of the image; at one address in that of the patterns.
///
/// # Errors
///
/// Those of reading, and what the callback says.
pub fn search(
    memory: &Memory,
    patterns: &[Pattern],
    options: Options<'_>,
    mut found: impl FnMut(Match) -> Result<(), Error>,
) -> Result<(), Error> {
    let context = options.context.min(MAX_CONTEXT_BYTES);
    let reach = patterns
        .iter()
        .map(Pattern::reach)
        .max()
        .unwrap_or_default();
    let plan = Plan {
        patterns,
        context,
        // One byte at least: an expression may ask for the edge of a word.
        before: context.max(1) as u64,
        behind: (reach + context) as u64,
        windows: windows(memory),
        done: options.done,
    };
    let keep = context.max(1) + reach + context;
    let cursor = memory.cursor(keep)?;
    let threads = options.threads.min(MAX_THREADS).min(plan.windows.len());
    let threads = threads.max(1);
    let shared = Shared {
        random: cursor.is_random(),
        ahead: threads + 2,
        stream: Mutex::new(cursor),
        state: Mutex::new(State::default()),
        changed: Condvar::new(),
    };
    // Ends of the last matches, by pattern: what overlaps them is passed over.
    let mut ends = vec![0u64; patterns.len()];
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(memory, &plan, &shared, keep));
        }
        let mut outcome = Ok(());
        for index in 0..plan.windows.len() {
            if plan.begins_stretch(index) {
                // It may lie at lower addresses than the one before.
                ends.fill(0);
            }
            outcome = shared.take(index).and_then(|window| {
                window.spots.iter().try_for_each(|spot| {
                    let Some(end) = ends.get_mut(spot.pattern as usize) else {
                        return Ok(());
                    };
                    let one = window.one(*spot, plan.context);
                    if one.address < *end {
                        return Ok(());
                    }
                    *end = one.address.saturating_add(one.length as u64);
                    found(one)
                })
            });
            if outcome.is_err() {
                break;
            }
        }
        shared.lock().stopped = true;
        shared.changed.notify_all();
        outcome
    })
}

struct Plan<'a> {
    patterns: &'a [Pattern],
    context: usize,
    before: u64,
    behind: u64,
    windows: Vec<Window>,
    done: Option<&'a AtomicU64>,
}

/// A part of a stretch, and the stretch.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: u64,
    end: u64,
    stretch: Run,
}

impl Plan<'_> {
    fn begins_stretch(&self, index: usize) -> bool {
        self.windows
            .get(index)
            .is_some_and(|window| window.start == window.stretch.address)
    }
}

fn windows(memory: &Memory) -> Vec<Window> {
    let mut windows = Vec::new();
    for stretch in memory.stretches() {
        let mut start = stretch.address;
        while start < stretch.end() {
            let end = stretch.end().min(start.saturating_add(WINDOW));
            windows.push(Window {
                start,
                end,
                stretch,
            });
            start = end;
        }
    }
    windows
}

/// What was found in a window. Matches that lie side by side share the bytes around them.
#[derive(Debug, Default)]
struct Found {
    /// The address of the first of the bytes.
    start: u64,
    bytes: Vec<u8>,
    spots: Vec<Spot>,
}

/// Where a match begins and ends in the bytes of a window, and the pattern.
#[derive(Debug, Clone, Copy)]
struct Spot {
    from: u32,
    to: u32,
    pattern: u32,
}

impl Found {
    fn one(&self, spot: Spot, context: usize) -> Match {
        let (from, to) = (spot.from as usize, spot.to as usize);
        let shown = from.saturating_sub(context)..(to + context).min(self.bytes.len());
        Match {
            address: self.start + u64::from(spot.from),
            length: to - from,
            pattern: spot.pattern as usize,
            begin: from - shown.start,
            bytes: self.bytes.get(shown).unwrap_or_default().to_vec(),
        }
    }
}

/// What the threads have in common.
struct Shared {
    random: bool,
    /// How many windows may be searched before the first of them was taken.
    ahead: usize,
    stream: Mutex<Cursor>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The first window that nobody has begun.
    next: usize,
    /// The first that was not taken.
    wanted: usize,
    results: BTreeMap<usize, Result<Found, Error>>,
    /// How many matches are in them.
    waiting: usize,
    /// How many the last window had: as many are expected of each that is being searched.
    expected: usize,
    stopped: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            next: 0,
            wanted: 0,
            results: BTreeMap::new(),
            waiting: 0,
            // Nothing is known: the first window is searched alone.
            expected: MAX_WAITING,
            stopped: false,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The matches of a window, once they are there.
    fn take(&self, index: usize) -> Result<Found, Error> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.results.remove(&index) {
                state.wanted = index + 1;
                state.waiting -= count(&result);
                self.changed.notify_all();
                return result;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, index: usize, result: Result<Found, Error>) {
        let mut state = self.lock();
        state.expected = count(&result);
        state.waiting += state.expected;
        state.results.insert(index, result);
        drop(state);
        self.changed.notify_all();
    }

    /// The next window to search; `None` if there is none.
    fn claim(&self, windows: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next >= windows {
                return None;
            }
            let begun = (state.next - state.wanted).saturating_sub(state.results.len());
            let waiting = state.waiting + begun * state.expected;
            // The one that is wanted next is begun in any case.
            let room = waiting < MAX_WAITING || state.next == state.wanted;
            if room && state.next < state.wanted + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn count(result: &Result<Found, Error>) -> usize {
    result.as_ref().map_or(0, |found| found.spots.len())
}

fn work(memory: &Memory, plan: &Plan<'_>, shared: &Shared, keep: usize) {
    let mut own = match shared.random.then(|| memory.cursor(keep)).transpose() {
        Ok(own) => own,
        Err(error) => return deliver_to_next(plan, shared, error),
    };
    let (mut bytes, mut printed) = (Vec::new(), Vec::new());
    loop {
        // What can only be read forth is read in order: by whoever claims, while it claims.
        let stream = match own {
            Some(_) => None,
            None => Some(shared.stream.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        let Some(index) = shared.claim(plan.windows.len()) else {
            return;
        };
        let Some(window) = plan.windows.get(index) else {
            return;
        };
        let read = match (stream, &mut own) {
            (Some(mut stream), _) => plan.read(window, &mut stream, &mut bytes),
            (None, Some(own)) => plan.read(window, own, &mut bytes),
            (None, None) => return,
        };
        let result = read.map(|start| {
            let spots = plan.matches(window, start, &bytes, &mut printed);
            let bytes = if spots.is_empty() {
                Vec::new()
            } else {
                std::mem::take(&mut bytes)
            };
            Found {
                start,
                bytes,
                spots,
            }
        });
        if let Some(done) = plan.done {
            done.fetch_add(window.end - window.start, Ordering::Relaxed);
        }
        shared.deliver(index, result);
    }
}

fn deliver_to_next(plan: &Plan<'_>, shared: &Shared, error: Error) {
    if let Some(index) = shared.claim(plan.windows.len()) {
        shared.deliver(index, Err(error));
    }
}

impl Plan<'_> {
    /// Reads a window with what stands around it; answers the address that it begins at.
    fn read(
        &self,
        window: &Window,
        cursor: &mut Cursor,
        bytes: &mut Vec<u8>,
    ) -> Result<u64, Error> {
        let from = window.start.saturating_sub(self.before);
        let to = window.end.saturating_add(self.behind);
        let Some(part) = window.stretch.part(from, to) else {
            bytes.clear();
            return Ok(window.start);
        };
        cursor.read_part(part, bytes)?;
        Ok(part.address)
    }

    /// The matches that begin in a window. `start` is the address of the first of `bytes`.
    fn matches(
        &self,
        window: &Window,
        start: u64,
        bytes: &[u8],
        printed: &mut Vec<u8>,
    ) -> Vec<Spot> {
        let index = |address: u64| usize::try_from(address - start).unwrap_or(usize::MAX);
        let (first, end) = (index(window.start), index(window.end));
        let mut matches = Vec::new();
        // A window and what is around it are far below what 32 bits count.
        let number_of = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut add = |pattern, from: usize, to: usize| {
            matches.push(Spot {
                from: number_of(from),
                to: number_of(to),
                pattern: number_of(pattern),
            });
        };
        printed.clear();
        for (number, pattern) in self.patterns.iter().enumerate() {
            match &pattern.0 {
                Matcher::Literal {
                    finder,
                    length,
                    overlaps_itself,
                } => {
                    let step = if *overlaps_itself { 1 } else { *length };
                    let last = (end + length - 1).min(bytes.len());
                    let mut at = first;
                    while let Some(more) = bytes.get(at..last).and_then(|text| finder.find(text)) {
                        add(number, at + more, at + more + length);
                        at += more + step;
                    }
                }
                Matcher::Expression {
                    regex,
                    printed: as_printed,
                } => {
                    if *as_printed && printed.is_empty() {
                        printed.extend(bytes.iter().map(|&byte| as_text(byte)));
                    }
                    let text = if *as_printed {
                        printed.as_slice()
                    } else {
                        bytes
                    };
                    let mut at = first;
                    let mut last_end = None;
                    while at < end
                        && let Some(found) = regex.find_at(text, at)
                        && found.start() < end
                    {
                        at = found.end();
                        if found.is_empty() {
                            // As everywhere, not directly behind another match.
                            at += 1;
                            if last_end == Some(found.end()) {
                                continue;
                            }
                        }
                        last_end = Some(found.end());
                        let to = found.end().min(found.start() + MAX_MATCH_BYTES);
                        add(number, found.start(), to);
                    }
                }
            }
        }
        if self.patterns.len() > 1 {
            matches.sort_unstable_by_key(|one: &Spot| (one.from, one.pattern));
        }
        matches
    }
}

/// A byte as it is printed.
pub fn as_text(byte: u8) -> u8 {
    match byte {
        0x20..0x7f => byte,
        _ => b'?',
    }
}
