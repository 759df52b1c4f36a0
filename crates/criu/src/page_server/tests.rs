//! A server that has this process's memory to give, and clients as they may be.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(600);

/// Memory of ours, page by page different, and who serves it.
struct Fixture {
    memory: Vec<u8>,
    start: u64,
    pages: u64,
    tasks: Tasks,
    server: Server,
}

impl Fixture {
    fn new(pages: u64) -> Self {
        let page = page();
        let memory: Vec<u8> = (0..(pages + 1) * page)
            .map(|i| (i / page * 7) as u8)
            .collect();
        let start = (memory.as_ptr() as u64).next_multiple_of(page);
        Self {
            memory,
            start,
            pages,
            tasks: Tasks::of([(1, File::open("/proc/self/mem").unwrap())]),
            server: Server::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
        }
    }

    fn left(&self) -> Left {
        let mut left = Left::default();
        left.add(1, self.start, self.pages * page());
        left
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.address().unwrap()).unwrap()
    }

    fn content(&self, address: u64, bytes: u64) -> &[u8] {
        let from = (address - self.memory.as_ptr() as u64) as usize;
        &self.memory[from..from + bytes as usize]
    }

    /// Serves while `clients` runs.
    fn serve(&self, limit: Duration, clients: impl FnOnce() + Send) -> Stopped {
        // A client that fails ends it too.
        let gone = Abort::new().unwrap();
        thread::scope(|scope| {
            let wake = gone.as_fd();
            let left = self.left();
            let server = scope.spawn(move || {
                let deadline = Instant::now() + limit;
                self.server.serve(&self.tasks, &left, &[wake], deadline)
            });
            let failed = scope.spawn(clients).join().is_err();
            if failed {
                gone.trigger();
            }
            let stopped = server.join().unwrap();
            assert!(!failed, "a client failed");
            stopped
        })
    }
}

fn page() -> u64 {
    rustix::param::page_size() as u64
}

fn request(command: u64, pages: u64, address: u64, process: u64) -> Vec<u8> {
    [command, pages, address, process]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect()
}

/// Asks for pages; how many came, and them.
fn get(mut stream: &TcpStream, address: u64, pages: u64) -> (u64, Vec<u8>) {
    stream.write_all(&request(7, pages, address, 1)).unwrap();
    let mut head = [0; 32];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(
        head,
        wire::answer(1, address, u64::from(head[8]) | u64::from(head[9]) << 8)
    );
    let pages = u64::from_le_bytes(head[8..16].try_into().unwrap());
    let mut content = vec![0; (pages * page()) as usize];
    stream.read_exact(&mut content).unwrap();
    (pages, content)
}

fn close(mut stream: &TcpStream) -> i32 {
    stream.write_all(&request(0x1023, 0, 0, 0)).unwrap();
    let mut status = [0; 4];
    stream.read_exact(&mut status).unwrap();
    i32::from_le_bytes(status)
}

fn is_closed(mut stream: &TcpStream) -> bool {
    // A reset is an end too: what it sent was not read.
    !matches!(stream.read(&mut [0; 1]), Ok(1..))
}

#[test]
fn a_client_that_had_all_and_says_so_is_the_end() {
    let fixture = Fixture::new(2000);
    let stopped = fixture.serve(LONG, || {
        let stream = fixture.connect();
        let (mut at, end) = (fixture.start, fixture.start + fixture.pages * page());
        while at < end {
            let (pages, content) = get(&stream, at, 4000);
            assert!(pages > 0 && pages * page() <= MAX_ANSWER);
            assert!(content == fixture.content(at, pages * page()));
            at += pages * page();
        }
        // Once more is no harm.
        get(&stream, fixture.start, 1);
        assert_eq!(close(&stream), 0);
    });
    assert!(matches!(stopped, Stopped::Complete), "{stopped:?}");
}

#[test]
fn each_client_has_to_have_all_by_itself() {
    let fixture = Fixture::new(4);
    let stopped = fixture.serve(LONG, || {
        // A scanner: it comes and goes.
        drop(fixture.connect());
        let first = fixture.connect();
        get(&first, fixture.start, 1);
        assert_ne!(close(&first), 0, "three pages are missing");
        let second = fixture.connect();
        get(&second, fixture.start, 4);
        // It had all, and goes without a word.
        drop(second);
        let third = fixture.connect();
        get(&third, fixture.start + page(), 3);
        assert_ne!(close(&third), 0, "one page is missing");
        let last = fixture.connect();
        get(&last, fixture.start, 4);
        assert_eq!(close(&last), 0);
    });
    assert!(matches!(stopped, Stopped::Complete), "{stopped:?}");
}

#[test]
fn strange_clients_are_dropped_and_get_nothing() {
    let fixture = Fixture::new(2);
    let stopped = fixture.serve(LONG, || {
        let start = fixture.start;
        for bytes in [
            request(7, 1, start - page(), 1),
            request(7, 1, start + 2 * page(), 1),
            request(7, 1, start, 2),
            request(7, 1, start, 1 << 32 | 1),
            request(7, 0, start, 1),
            request(7, 1, start + 1, 1),
            request(6, 1, start, 1),
            request(4, 0, 0, 0),
            request(0x99, 0, 0, 0),
            vec![0xff; 32],
            vec![7; 31],
        ] {
            let mut stream = fixture.connect();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(is_closed(&stream), "{bytes:?}");
        }
        let stream = fixture.connect();
        assert_eq!(get(&stream, start, u64::MAX).0, 2);
        assert_eq!(close(&stream), 0);
    });
    assert!(matches!(stopped, Stopped::Complete), "{stopped:?}");
}

#[test]
fn silent_clients_hold_nobody_up() {
    let fixture = Fixture::new(2);
    let stopped = fixture.serve(LONG, || {
        let _silent: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| fixture.connect()).collect();
        let stream = fixture.connect();
        get(&stream, fixture.start, 2);
        assert!(is_closed(&fixture.connect()), "one too many");
        assert_eq!(close(&stream), 0);
    });
    assert!(matches!(stopped, Stopped::Complete), "{stopped:?}");
}

#[test]
fn the_time_ends_whatever_the_clients_do() {
    let fixture = Fixture::new(2000);
    let stopped = fixture.serve(Duration::from_millis(300), || {
        let mut slow = fixture.connect();
        // It asks, and reads nothing.
        for _ in 0..64 {
            if slow.write_all(&request(7, 1000, fixture.start, 1)).is_err() {
                break;
            }
        }
        let silent = fixture.connect();
        assert!(is_closed(&silent));
    });
    assert!(matches!(stopped, Stopped::TimedOut), "{stopped:?}");
}

#[test]
fn a_wake_ends_it() {
    let fixture = Fixture::new(1);
    let abort = Abort::new().unwrap();
    abort.trigger();
    let wakes = [fixture.server.0.as_fd(), abort.as_fd()];
    let stopped = fixture.server.serve(
        &fixture.tasks,
        &fixture.left(),
        &wakes,
        Instant::now() + LONG,
    );
    assert!(matches!(stopped, Stopped::Woken(1)), "{stopped:?}");
}

#[test]
fn memory_that_is_gone_is_the_end_too() {
    let fixture = Fixture::new(1);
    let mut left = Left::default();
    left.add(1, 0, page());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = fixture.connect();
            stream.write_all(&request(7, 1, 0, 1)).unwrap();
            assert!(is_closed(&stream));
        });
        let deadline = Instant::now() + LONG;
        let stopped = fixture.server.serve(&fixture.tasks, &left, &[], deadline);
        assert!(matches!(stopped, Stopped::Failed(_)), "{stopped:?}");
    });
}
