//! The publisher against a containerd that restarts, dawdles, refuses or is not there.
#![allow(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

mod fake;

use std::time::{Duration, Instant, SystemTime};

use cryo_shim::events::{self, Config, EventSink as _, Publisher};
use fake::{FakeContainerd, Manner};

const LONG: Duration = Duration::from_secs(10);

fn quick() -> Config {
    Config {
        send_timeout: Duration::from_millis(500),
        backoff: (Duration::from_millis(5), Duration::from_millis(50)),
        give_up_after: Duration::from_secs(30),
        ..Config::default()
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }
    fn daemon(&self) -> FakeContainerd {
        FakeContainerd::at(&self.dir.path().join("c.sock.ttrpc"))
    }
    fn publisher(&self, config: Config) -> Publisher {
        let address = self.dir.path().join("c.sock.ttrpc");
        // containerd says a plain path; unix:// works too.
        Publisher::new(address.to_str().unwrap(), "default", config)
    }
}

fn want(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("/tasks/oom c{n}")).collect()
}

fn send(publisher: &Publisher, from: usize, to: usize) {
    for n in from..to {
        events::oom(publisher, &format!("c{n}"));
    }
}

#[tokio::test]
async fn order_is_kept() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Polite).await;
    let publisher = place.publisher(quick());
    send(&publisher, 0, 300);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 300));
    assert_eq!(publisher.dropped(), 0);
}

#[tokio::test]
async fn unix_prefix_is_understood() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Polite).await;
    let address = format!("unix://{}/c.sock.ttrpc", place.dir.path().display());
    let publisher = Publisher::new(&address, "default", quick());
    send(&publisher, 0, 1);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 1));
}

#[tokio::test]
async fn down_at_the_start() {
    let place = Place::new();
    let mut daemon = place.daemon();
    let publisher = place.publisher(quick());
    send(&publisher, 0, 5);
    let error = publisher.flush(Duration::from_millis(100)).await;
    assert_eq!(error.unwrap_err().waiting, 5);
    daemon.start(Manner::Polite).await;
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 5));
}

#[tokio::test]
async fn restarts_lose_nothing() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Polite).await;
    let publisher = place.publisher(quick());
    for round in 0..4 {
        send(&publisher, round * 20, round * 20 + 10);
        publisher.flush(LONG).await.unwrap();
        daemon.stop().await;
        // These meet a dead connection.
        send(&publisher, round * 20 + 10, round * 20 + 20);
        tokio::time::sleep(Duration::from_millis(60)).await;
        daemon.start(Manner::Polite).await;
    }
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 80));
    assert_eq!(publisher.dropped(), 0);
}

#[tokio::test]
async fn a_restart_between_two_events_is_not_even_noticed() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Polite).await;
    let publisher = place.publisher(Config {
        // Any pause would break the limit below.
        backoff: (LONG, LONG),
        ..quick()
    });
    send(&publisher, 0, 1);
    publisher.flush(LONG).await.unwrap();
    daemon.stop().await;
    daemon.start(Manner::Polite).await;
    let begun = Instant::now();
    send(&publisher, 1, 2);
    publisher.flush(LONG).await.unwrap();
    assert!(begun.elapsed() < LONG / 2);
    assert_eq!(daemon.seen(), want(0, 2));
}

#[tokio::test]
async fn slow_is_waited_for() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Slow(Duration::from_millis(30))).await;
    let publisher = place.publisher(quick());
    send(&publisher, 0, 10);
    // On this one thread, that would have had the daemon wait as well.
    assert!(daemon.seen().is_empty(), "publishing blocks");
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 10));
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Silent).await;
    let publisher = place.publisher(Config {
        send_timeout: Duration::from_millis(50),
        ..quick()
    });
    send(&publisher, 0, 3);
    assert!(publisher.flush(Duration::from_millis(200)).await.is_err());
    daemon.stop().await;
    daemon.start(Manner::Polite).await;
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 3));
}

#[tokio::test]
async fn a_refused_event_does_not_hold_up_the_rest() {
    let place = Place::new();
    let mut daemon = place.daemon();
    daemon.start(Manner::Refuses("/tasks/paused")).await;
    let publisher = place.publisher(quick());
    events::paused(&publisher, "c0");
    send(&publisher, 1, 3);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(1, 3));
    assert_eq!(publisher.dropped(), 1);
}

#[tokio::test]
async fn old_events_are_given_up_and_counted() {
    let place = Place::new();
    let publisher = place.publisher(Config {
        give_up_after: Duration::from_millis(100),
        ..quick()
    });
    send(&publisher, 0, 5);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(publisher.dropped(), 5);
    // A day old, but it gets its one attempt.
    let mut daemon = place.daemon();
    daemon.start(Manner::Polite).await;
    let mut event = events::Event::new(
        "/tasks/oom",
        &containerd_shim_protos::events::task::TaskOOM {
            container_id: "c5".into(),
            ..Default::default()
        },
    );
    event.at = SystemTime::now() - Duration::from_secs(86_400);
    publisher.send(event);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(5, 6));
}

#[tokio::test]
async fn a_full_queue_drops_the_newest_and_counts() {
    let place = Place::new();
    let mut daemon = place.daemon();
    let publisher = place.publisher(Config {
        queue: 4,
        ..quick()
    });
    send(&publisher, 0, 1);
    // The first is on its way when the others come.
    tokio::time::sleep(Duration::from_millis(50)).await;
    send(&publisher, 1, 10);
    assert_eq!(publisher.dropped(), 5);
    daemon.start(Manner::Polite).await;
    publisher.flush(LONG).await.unwrap();
    assert_eq!(daemon.seen(), want(0, 5));
}

#[tokio::test]
async fn nowhere_to_send() {
    let publisher = Publisher::new("", "default", quick());
    send(&publisher, 0, 3);
    publisher.flush(LONG).await.unwrap();
    assert_eq!(publisher.dropped(), 3);
}
