//! Further processes of a container.

use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExit;
use cryo_shim::events::Recorder;
use cryo_shim::task::reaper::Reaper;
use ttrpc::Code;

use crate::bench::{Bench, Shells, code};

pub(crate) async fn execs_live_and_are_told_in_order(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    bench.create("a", "sleep 60").await.unwrap();
    bench.start("a").await.unwrap();
    let log = bench.dir.path().join("log");
    let stdout = format!("file://{}", log.display());
    bench
        .exec_to("a", "e", "echo out; sleep 0.2; exit 4", &stdout)
        .await
        .unwrap();
    let state = bench.exec_state("a", "e").await.unwrap();
    assert_eq!(state.status.unwrap(), api::Status::CREATED);
    assert_eq!((state.pid, state.id.as_str()), (0, "e"));
    let pid = bench.start_exec("a", "e").await.unwrap();
    let state = bench.exec_state("a", "e").await.unwrap();
    assert_eq!(state.status.unwrap(), api::Status::RUNNING);
    assert_eq!((state.pid, state.stdout), (pid, stdout));
    assert_eq!(bench.wait_exec("a", "e").await.unwrap(), 4);
    assert_eq!(bench.wait_exec("a", "e").await.unwrap(), 4, "answers again");
    let state = bench.exec_state("a", "e").await.unwrap();
    assert_eq!(state.status.unwrap(), api::Status::STOPPED);
    assert_eq!(state.exit_status, 4);
    assert_eq!(bench.delete_exec("a", "e").await.unwrap(), 4);
    assert_eq!(std::fs::read_to_string(log).unwrap(), "out\n");
    assert_eq!(code(bench.exec_state("a", "e").await).0, Code::NOT_FOUND);
    // The container goes on, and the id is free.
    assert_eq!(bench.status("a").await.unwrap(), api::Status::RUNNING);
    bench.exec("a", "e", "sleep 60").await.unwrap();
    bench.start_exec("a", "e").await.unwrap();
    bench.kill_exec("a", "e", 9).await.unwrap();
    assert_eq!(bench.wait_exec("a", "e").await.unwrap(), 137);
    assert_eq!(
        bench.events.topics(),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
        ]
    );
    bench.kill("a", 9).await.unwrap();
    bench.wait("a").await.unwrap();
    bench.delete("a").await.unwrap();
}

pub(crate) async fn execs_are_refused(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    assert_eq!(code(bench.exec("a", "e", "true").await).0, Code::NOT_FOUND);
    bench.create("a", "sleep 60").await.unwrap();
    let (created, text) = code(bench.exec("a", "e", "true").await);
    assert_eq!(created, Code::FAILED_PRECONDITION);
    assert!(text.contains("created"), "{text}");
    bench.start("a").await.unwrap();
    assert_eq!(code(bench.start_exec("a", "e").await).0, Code::NOT_FOUND);
    assert_eq!(code(bench.wait_exec("a", "e").await).0, Code::NOT_FOUND);
    assert_eq!(
        code(bench.exec("a", "../e", "true").await).0,
        Code::INVALID_ARGUMENT
    );
    bench.exec("a", "e", "sleep 60").await.unwrap();
    assert_eq!(
        code(bench.exec("a", "e", "true").await).0,
        Code::ALREADY_EXISTS
    );
    assert_eq!(
        code(bench.kill_exec("a", "e", 9).await).0,
        Code::FAILED_PRECONDITION
    );
    bench.start_exec("a", "e").await.unwrap();
    assert_eq!(
        code(bench.start_exec("a", "e").await).0,
        Code::FAILED_PRECONDITION
    );
    let (running, text) = code(bench.delete_exec("a", "e").await);
    assert_eq!(running, Code::FAILED_PRECONDITION);
    assert!(text.contains("cannot delete a running process"), "{text}");
    bench.kill_exec("a", "e", 9).await.unwrap();
    bench.wait_exec("a", "e").await.unwrap();
    assert_eq!(code(bench.kill_exec("a", "e", 9).await).0, Code::NOT_FOUND);
    // What never ran is deleted all the same, and so is what could not.
    bench.exec("a", "never", "true").await.unwrap();
    assert_eq!(bench.delete_exec("a", "never").await.unwrap(), 0);
    bench.exec("a", "bad", "fail").await.unwrap();
    let (_, text) = code(bench.start_exec("a", "bad").await);
    assert!(text.contains("told to fail"), "{text}");
    bench.delete_exec("a", "bad").await.unwrap();
    bench.exec("a", "late", "true").await.unwrap();
    bench.kill("a", 9).await.unwrap();
    bench.wait("a").await.unwrap();
    for refused in [
        bench.exec("a", "x", "true").await,
        bench.start_exec("a", "late").await.map(drop),
    ] {
        assert_eq!(code(refused).0, Code::FAILED_PRECONDITION);
    }
    bench.delete("a").await.unwrap();
}

pub(crate) async fn an_exec_that_ends_before_its_start_is_answered(reaper: Reaper) {
    let slow = Shells {
        slow_start: Duration::from_millis(200),
        ..Shells::default()
    };
    let bench = Bench::new(reaper, slow).await;
    bench.create("a", "sleep 60").await.unwrap();
    bench.start("a").await.unwrap();
    bench.exec("a", "e", "exit 0").await.unwrap();
    bench.start_exec("a", "e").await.unwrap();
    assert_eq!(bench.wait_exec("a", "e").await.unwrap(), 0);
    assert_eq!(
        bench.events.topics()[2..],
        ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    );
    bench.kill("a", 9).await.unwrap();
    bench.wait("a").await.unwrap();
    bench.delete("a").await.unwrap();
}

/// Whose ends were told, in order.
fn exits(events: &Recorder) -> Vec<String> {
    events
        .events()
        .iter()
        .filter_map(|e| e.message::<TaskExit>())
        .map(|e| e.id)
        .collect()
}

pub(crate) async fn the_containers_exit_comes_last(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    bench.create("a", "sleep 60").await.unwrap();
    bench.start("a").await.unwrap();
    bench.exec("a", "e", "sleep 0.5; exit 9").await.unwrap();
    bench.start_exec("a", "e").await.unwrap();
    bench.kill("a", 9).await.unwrap();
    assert_eq!(bench.wait("a").await.unwrap(), 137);
    assert_eq!(exits(&bench.events), ["e", "a"]);
    assert_eq!(bench.wait_exec("a", "e").await.unwrap(), 9);
    bench.delete("a").await.unwrap();
}
