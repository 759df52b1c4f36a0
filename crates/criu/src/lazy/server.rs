//! The server: one thread that answers faults, and fills what nobody has touched yet beside it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cryo_sys::uffd::{Done, Event, Uffd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::pending::{Part, Pending};
use super::source::{Images, Source};
use super::wire::{Order, Report};

/// What is filled at a time when nobody waits: long enough that calls cost little, short enough
/// that a fault meanwhile does not wait long.
const CHUNK_BYTES: u64 = 1 << 20;
/// What a fault brings along: it waits for all of it.
const FAULT_BYTES: u64 = 64 << 10;
/// How often the shim hears how far it is.
const TELL_BYTES: u64 = 16 << 20;
/// How long to wait when the kernel says that an event is under way.
const STALL: Duration = Duration::from_millis(1);
/// How long a container that has no memory left may take to find some.
const MEMORY_LIMIT: Duration = Duration::from_secs(20);
/// How long to wait for memory between two tries.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);
/// Most pieces of all processes together; a process has about 40 bytes of ours for each, and what
/// it forks has them too.
const MAX_PIECES: usize = 1 << 23;
/// What forked tasks are called, from here on: others are called by their number in the images.
const FIRST_FORKED: u64 = 1 << 32;

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "the container reached its memory limit with {left} bytes still to come: give it more memory, or restore it without lazy-pages to see the limit at once"
    )]
    NoMemory { left: u64 },
    #[error("its memory is in more than {MAX_PIECES} pieces")]
    TooManyPieces,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// An address space.
#[derive(Debug)]
struct Space {
    uffd: Uffd,
    /// Whose it was at the dump.
    process: u32,
    pending: Pending,
    /// Where filling goes on.
    cursor: u64,
    /// Faults that could not be answered yet.
    waiting: Vec<u64>,
}

/// How a try to fill something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something is there now, or nobody has to bring it any more.
    Forward,
    /// Events have to be read first.
    Stalled,
    /// There is no memory just now.
    NoMemory,
    /// The process is gone.
    Gone,
}

/// All that one server knows.
#[derive(Debug)]
pub(super) struct Server {
    orders: OwnedFd,
    reports: OwnedFd,
    images: Images,
    spaces: BTreeMap<u64, Space>,
    /// Whose turn it is.
    turn: u64,
    next_forked: u64,
    /// All tasks have come, or nobody is left who could send some.
    complete: bool,
    /// What was to come in the beginning, and what was last told to be left.
    all: u64,
    told: u64,
    short_since: Option<Instant>,
    /// Nobody listens: the shim is gone.
    alone: bool,
    buffer: Vec<u8>,
}

impl Server {
    pub(super) fn new(orders: OwnedFd, reports: OwnedFd) -> Self {
        Self {
            orders,
            reports,
            images: Images::default(),
            spaces: BTreeMap::new(),
            turn: 0,
            next_forked: FIRST_FORKED,
            complete: false,
            all: 0,
            told: 0,
            short_since: None,
            alone: false,
            buffer: vec![0; usize::try_from(CHUNK_BYTES).unwrap_or_default()],
        }
    }

    /// Serves until all is there. If it cannot go on it says so and ends, and the shim kills the
    /// container before it lets go of its memory. Without a shim nobody would: then it goes on
    /// trying, and holds what it has until the container is gone.
    ///
    /// # Errors
    ///
    /// Why it could not go on.
    pub(super) fn run(mut self) -> Result<(), Error> {
        loop {
            match self.serve() {
                Ok(()) => {
                    self.report(&Report::Filled);
                    return Ok(());
                }
                Err(error) => {
                    self.report(&Report::Failed(error.to_string()));
                    if !self.alone {
                        return Err(error);
                    }
                    sleep(Duration::from_secs(1));
                }
            }
        }
    }

    fn serve(&mut self) -> Result<(), Error> {
        loop {
            if self.complete {
                self.release_filled();
                if self.spaces.is_empty() {
                    return Ok(());
                }
            }
            self.wait()?;
            self.answer_faults()?;
            if self.complete {
                self.fill()?;
            }
        }
    }

    /// Waits until there is something to do, and hears what there is.
    fn wait(&mut self) -> Result<(), Error> {
        let stalled = self.spaces.values().any(|s| !s.waiting.is_empty());
        let limit = match (self.complete, stalled) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => Some(STALL),
            (false, false) => None,
        };
        for id in self.ready(limit)? {
            match id {
                None => self.order()?,
                Some(id) => self.hear(id)?,
            }
        }
        Ok(())
    }

    /// The spaces that have something to say; `None` is the shim.
    fn ready(&self, limit: Option<Duration>) -> Result<Vec<Option<u64>>, Error> {
        let orders = (!self.complete).then_some((None, self.orders.as_fd()));
        let spaces = self
            .spaces
            .iter()
            .map(|(id, s)| (Some(*id), s.uffd.as_fd()));
        let (ids, mut fds): (Vec<_>, Vec<_>) = orders
            .into_iter()
            .chain(spaces)
            .map(|(id, fd)| (id, PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .unzip();
        let limit = limit.map(|l| Timespec {
            tv_sec: 0,
            tv_nsec: l.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(io_error("wait for faults")(e.into())),
        }
        let said = ids.into_iter().zip(&fds);
        let said = said.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(said.map(|(id, _)| id).collect())
    }

    fn order(&mut self) -> Result<(), Error> {
        let order = Order::receive(self.orders.as_fd());
        match order.map_err(io_error("read what the shim says"))? {
            Some(Order::Images {
                process,
                pagemap,
                pages,
            }) => self.images.add(process, pagemap, pages),
            Some(Order::Task { process, id, uffd }) => {
                let pending = self.images.pending(process);
                let pending = pending.map_err(io_error("read the images"))?;
                self.all += pending.bytes();
                self.add(id, uffd, process, pending)?;
                self.tell();
            }
            // Without the word the shim has died, and all that can be filled is here.
            Some(Order::End) | None => self.complete = true,
        }
        Ok(())
    }

    fn add(&mut self, id: u64, uffd: Uffd, process: u32, pending: Pending) -> Result<(), Error> {
        let before: usize = self.spaces.values().map(|s| s.pending.pieces()).sum();
        if before + pending.pieces() > MAX_PIECES {
            return Err(Error::TooManyPieces);
        }
        let space = Space {
            uffd,
            process,
            pending,
            cursor: 0,
            waiting: Vec::new(),
        };
        self.spaces.insert(id, space);
        Ok(())
    }

    /// Reads some events of a space.
    fn hear(&mut self, id: u64) -> Result<(), Error> {
        let Some(space) = self.spaces.get_mut(&id) else {
            return Ok(());
        };
        let events = space.uffd.events().map_err(io_error("read events"))?;
        let mut forked = Vec::new();
        for event in events {
            match event {
                Event::Fault(address) => space.waiting.push(address),
                // Nothing was filled since the fork: until this was read the kernel refused to.
                Event::Fork(uffd) => forked.push((uffd, space.process, space.pending.clone())),
                Event::Remap { from, to, bytes } => space.pending.remap(from, to, bytes),
                Event::Remove { start, end } | Event::Unmap { start, end } => {
                    space.pending.remove(start, end);
                }
            }
        }
        for (uffd, process, pending) in forked {
            let id = self.next_forked;
            self.next_forked += 1;
            // The shim first: from then on it outlives us.
            let uffd = self.pass_on(id, uffd)?;
            self.add(id, uffd, process, pending)?;
        }
        Ok(())
    }

    fn pass_on(&mut self, id: u64, uffd: Uffd) -> Result<Uffd, Error> {
        let copy = uffd.try_clone();
        let copy = copy.map_err(io_error("copy a file descriptor"))?;
        self.report(&Report::Forked { id, uffd: copy });
        Ok(uffd)
    }

    fn answer_faults(&mut self) -> Result<(), Error> {
        let waits = |(id, s): (&u64, &Space)| (!s.waiting.is_empty()).then_some(*id);
        let ids: Vec<u64> = self.spaces.iter().filter_map(waits).collect();
        for id in ids {
            let Some(space) = self.spaces.get_mut(&id) else {
                continue;
            };
            for address in std::mem::take(&mut space.waiting) {
                match answer(space, address, &mut self.images, &mut self.buffer)? {
                    Step::Forward => self.short_since = None,
                    Step::Stalled => space.waiting.push(address),
                    Step::NoMemory => {
                        space.waiting.push(address);
                        let left = space.pending.bytes();
                        endure(&mut self.short_since, left)?;
                    }
                    Step::Gone => {
                        self.release(id);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills a chunk of the space whose turn it is.
    fn fill(&mut self) -> Result<(), Error> {
        let after = self.spaces.range(self.turn..).next();
        let Some(id) = after
            .or_else(|| self.spaces.iter().next())
            .map(|(id, _)| *id)
        else {
            return Ok(());
        };
        self.turn = id + 1;
        let Some(space) = self.spaces.get_mut(&id) else {
            return Ok(());
        };
        let Some(part) = space.pending.next(space.cursor) else {
            return Ok(());
        };
        let step = bring(
            space,
            part.at_most(CHUNK_BYTES),
            &mut self.images,
            &mut self.buffer,
        )?;
        match step {
            Step::Forward => self.short_since = None,
            Step::Stalled => sleep(STALL.min(Duration::from_micros(50))),
            Step::NoMemory => {
                let left = space.pending.bytes();
                endure(&mut self.short_since, left)?;
            }
            Step::Gone => self.release(id),
        }
        self.tell_at_times();
        Ok(())
    }

    /// Lets go of what has all its memory. Closing ends the registration, so that what was never
    /// in use is ordinary memory from then on.
    fn release_filled(&mut self) {
        let filled = |(id, s): (&u64, &Space)| (s.pending.bytes() == 0).then_some(*id);
        let ids: Vec<u64> = self.spaces.iter().filter_map(filled).collect();
        for id in ids {
            self.release(id);
        }
    }

    fn release(&mut self, id: u64) {
        self.spaces.remove(&id);
        self.report(&Report::Gone { id });
    }

    fn left(&self) -> u64 {
        self.spaces.values().map(|s| s.pending.bytes()).sum()
    }

    fn tell_at_times(&mut self) {
        if self.left().abs_diff(self.told) >= TELL_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let bytes = self.left();
        self.told = bytes;
        self.report(&Report::Left {
            bytes,
            all: self.all.max(bytes),
        });
    }

    fn report(&mut self, report: &Report) {
        self.alone |= report.send(self.reports.as_fd()).is_err();
    }
}

/// Waits for memory, but not for ever.
fn endure(since: &mut Option<Instant>, left: u64) -> Result<(), Error> {
    if since.get_or_insert_with(Instant::now).elapsed() > MEMORY_LIMIT {
        return Err(Error::NoMemory { left });
    }
    sleep(MEMORY_PAUSE);
    Ok(())
}

/// Brings what a thread waits for: from the source, or else zeros.
fn answer(
    space: &mut Space,
    address: u64,
    source: &mut dyn Source,
    buffer: &mut [u8],
) -> Result<Step, Error> {
    let page_bytes = rustix::param::page_size() as u64;
    let page = address - address % page_bytes;
    match space.pending.at(page) {
        Some(part) => {
            // Filling goes on behind it, so who reads on finds more there already.
            bring(space, part.at_most(FAULT_BYTES), source, buffer)
        }
        None => judge(space, page, space.uffd.zero(page, page_bytes)),
    }
}

/// Fills a part from the source; less of it if it is more than one area.
fn bring(
    space: &mut Space,
    part: Part,
    source: &mut dyn Source,
    buffer: &mut [u8],
) -> Result<Step, Error> {
    let page_bytes = rustix::param::page_size() as u64;
    let bytes = usize::try_from(part.bytes).unwrap_or_default();
    let Some(pages) = buffer.get_mut(..bytes) else {
        return Ok(Step::Stalled);
    };
    let read = source.read(space.process, part.origin, pages);
    read.map_err(io_error("read the checkpoint's memory"))?;
    let mut bytes = part.bytes;
    loop {
        let pages = &buffer[..usize::try_from(bytes).unwrap_or_default()];
        let done = space.uffd.copy(part.address, pages);
        let several = bytes > page_bytes;
        if several && done.bytes == 0 && done.error == Some(Errno::NOENT) {
            bytes = (bytes / 2).next_multiple_of(page_bytes);
            continue;
        }
        space.cursor = part.address.saturating_add(done.bytes);
        return judge(space, part.address, done);
    }
}

/// What became of it: what is there, or cannot be, is not to come any more.
fn judge(space: &mut Space, address: u64, done: Done) -> Result<Step, Error> {
    let page_bytes = rustix::param::page_size() as u64;
    if done.bytes > 0 {
        space.pending.remove(address, address + done.bytes);
        return Ok(Step::Forward);
    }
    match done.error {
        None => Ok(Step::Forward),
        Some(Errno::AGAIN) => Ok(Step::Stalled),
        // It is there already, or the area is gone or not ours: then whoever waits looks again.
        Some(Errno::EXIST | Errno::NOENT) => {
            space.pending.remove(address, address + page_bytes);
            let woken = space.uffd.wake(address, page_bytes);
            woken.map_err(io_error("wake a thread"))?;
            Ok(Step::Forward)
        }
        Some(Errno::NOMEM) => Ok(Step::NoMemory),
        // ENOSPC is what older kernels say of a process that ends.
        Some(Errno::SRCH | Errno::NOSPC) => Ok(Step::Gone),
        Some(errno) => Err(io_error("put a page into the container")(errno.into())),
    }
}
