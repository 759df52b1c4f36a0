//! The Task service over real ttrpc, with an engine that starts plain shells
//! instead of containers: orders, codes and states without root.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod bench;
mod execs;
mod loggers;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::api;
use cryo_shim::serve::TASK_V2;
use cryo_shim::task::reaper::Reaper;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

use bench::{Bench, Shells, code, limit};

// One test: the reaper is about all children of this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service() {
    let reaper = Reaper::start().unwrap();
    lives_and_orders(reaper.clone()).await;
    an_exit_that_beats_the_start(reaper.clone()).await;
    refusals(reaper.clone()).await;
    every_rpc_answers_by_code(reaper.clone()).await;
    the_dump_has_it_all(reaper.clone()).await;
    a_panic_is_an_answer_and_leaves_nothing(reaper.clone()).await;
    the_older_name_answers_too(reaper.clone()).await;
    updates_and_stats(reaper.clone()).await;
    execs::execs_live_and_are_told_in_order(reaper.clone()).await;
    execs::execs_are_refused(reaper.clone()).await;
    execs::an_exec_that_ends_before_its_start_is_answered(reaper.clone()).await;
    execs::the_containers_exit_comes_last(reaper.clone()).await;
    loggers::loggers_get_all_output(reaper.clone()).await;
    loggers::loggers_that_do_not_start_fail_the_create(reaper.clone()).await;
    loggers::loggers_that_do_not_end_are_ended(reaper).await;
}

async fn lives_and_orders(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    let pid = bench.create("a", "exit 3").await.unwrap();
    assert!(pid > 0);
    assert_eq!(bench.status("a").await.unwrap(), api::Status::CREATED);
    assert!(bench.dir.path().join("a/shim-binary-path").exists());
    assert_eq!(bench.start("a").await.unwrap(), pid);
    assert_eq!(bench.wait("a").await.unwrap(), 3);
    assert_eq!(bench.wait("a").await.unwrap(), 3, "Wait answers again");
    assert_eq!(bench.status("a").await.unwrap(), api::Status::STOPPED);
    assert_eq!(bench.delete("a").await.unwrap(), 3);
    assert_eq!(
        bench.events.topics(),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    assert!(!bench.dir.path().join("state/test/a").exists());
    // The id is free again.
    std::fs::remove_file(bench.dir.path().join("a/gate")).unwrap();
    bench.create("a", "exit 0").await.unwrap();
    // A created container is deleted with its process.
    assert_eq!(bench.delete("a").await.unwrap(), 137);
}

async fn an_exit_that_beats_the_start(reaper: Reaper) {
    let slow = Shells {
        slow_start: Duration::from_millis(200),
        ..Shells::default()
    };
    let bench = Bench::new(reaper, slow).await;
    bench.create("quick", "exit 0").await.unwrap();
    bench.start("quick").await.unwrap();
    assert_eq!(bench.wait("quick").await.unwrap(), 0);
    assert_eq!(
        bench.events.topics(),
        ["/tasks/create", "/tasks/start", "/tasks/exit"]
    );
    bench.delete("quick").await.unwrap();
}

async fn refusals(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    assert_eq!(code(bench.start("none").await).0, Code::NOT_FOUND);
    assert_eq!(
        code(bench.create_in("../x", Path::new("/tmp")).await).0,
        Code::INVALID_ARGUMENT
    );
    let mut elsewhere = api::CreateTaskRequest::new();
    elsewhere.id = "b".to_owned();
    elsewhere.bundle = bench.bundle("b", "exit 0").display().to_string();
    let mut options = Any::new();
    options.type_url = "containerd.runc.v1.Options".to_owned();
    options.value = [&[7 << 3 | 2, 6][..], b"/other"].concat();
    elsewhere.options = Some(options).into();
    let (root, text) = code(bench.client.create(limit(), &elsewhere).await);
    assert_eq!(root, Code::INVALID_ARGUMENT, "{text}");
    assert!(text.contains("Root is /other"), "{text}");
    let (no_spec, text) = code(bench.create_in("bare", bench.dir.path()).await);
    assert_eq!(no_spec, Code::INVALID_ARGUMENT, "{text}");
    assert!(text.contains("config.json"), "{text}");

    bench.create("a", "sleep 60").await.unwrap();
    assert_eq!(
        code(bench.create("a", "exit 0").await).0,
        Code::ALREADY_EXISTS
    );
    let (created, text) = code(bench.checkpoint("a").await);
    assert_eq!(created, Code::FAILED_PRECONDITION);
    assert!(text.contains("start it first"), "{text}");
    bench.start("a").await.unwrap();
    assert_eq!(code(bench.start("a").await).0, Code::FAILED_PRECONDITION);
    let (running, text) = code(bench.delete("a").await);
    assert_eq!(running, Code::FAILED_PRECONDITION);
    assert!(text.contains("cannot delete a running process"), "{text}");
    assert_eq!(code(bench.kill("a", 4711).await).0, Code::INVALID_ARGUMENT);
    bench.kill("a", 15).await.unwrap();
    assert_eq!(bench.wait("a").await.unwrap(), 128 + 15);
    assert_eq!(code(bench.kill("a", 15).await).0, Code::NOT_FOUND);
    assert_eq!(
        code(bench.checkpoint("a").await).0,
        Code::FAILED_PRECONDITION
    );
    bench.delete("a").await.unwrap();
    assert_eq!(code(bench.status("a").await).0, Code::NOT_FOUND);
}

/// The RPCs about a container, but for Create.
const RPCS: [&str; 14] = [
    "State",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
];

/// Those that an exec can be named in.
const EXEC_RPCS: [&str; 7] = [
    "State",
    "Start",
    "Delete",
    "Kill",
    "ResizePty",
    "CloseIO",
    "Wait",
];

impl Bench {
    /// Calls an RPC by its name; `Code::OK` when it works.
    async fn rpc(&self, name: &str, id: &str, exec_id: &str) -> (Code, String) {
        macro_rules! call {
            ($method:ident, $request:ty $(, $field:ident = $value:expr)*) => {{
                let mut request = <$request>::new();
                request.id = id.to_owned();
                $(request.$field = $value;)*
                self.client.$method(limit(), &request).await.map(drop)
            }};
        }
        let exec = exec_id.to_owned();
        let result = match name {
            "State" => call!(state, api::StateRequest, exec_id = exec),
            "Start" => call!(start, api::StartRequest, exec_id = exec),
            "Delete" => call!(delete, api::DeleteRequest, exec_id = exec),
            "Pids" => call!(pids, api::PidsRequest),
            "Pause" => call!(pause, api::PauseRequest),
            "Resume" => call!(resume, api::ResumeRequest),
            "Checkpoint" => self.checkpoint(id).await,
            "Kill" => call!(kill, api::KillRequest, exec_id = exec, signal = 18),
            "Exec" => self.exec(id, "new", "true").await,
            "ResizePty" => call!(resize_pty, api::ResizePtyRequest, exec_id = exec),
            "CloseIO" => call!(close_io, api::CloseIORequest, exec_id = exec, stdin = true),
            "Update" => {
                let mut any = Any::new();
                any.type_url =
                    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned();
                any.value = b"{}".to_vec();
                call!(update, api::UpdateTaskRequest, resources = Some(any).into())
            }
            "Wait" => call!(wait, api::WaitRequest, exec_id = exec),
            "Stats" => call!(stats, api::StatsRequest),
            other => panic!("{other}"),
        };
        match result {
            Ok(()) => (Code::OK, String::new()),
            Err(error) => code::<()>(Err(error)),
        }
    }

    /// Checks the codes of RPCs, and that no other changes anything.
    async fn answers(&self, state: &str, wanted: &[(&str, Code)]) {
        for (name, wanted) in wanted {
            let (code, text) = self.rpc(name, "a", "").await;
            assert_eq!(code, *wanted, "{name} of a {state} container: {text}");
        }
    }
}

async fn every_rpc_answers_by_code(reaper: Reaper) {
    const OK: Code = Code::OK;
    const REFUSED: Code = Code::FAILED_PRECONDITION;
    let bench = Bench::new(reaper, Shells::default()).await;
    for name in RPCS {
        let (unknown, text) = bench.rpc(name, "none", "").await;
        assert_eq!(unknown, Code::NOT_FOUND, "{name}: {text}");
        assert!(text.contains("none"), "{name}: {text}");
    }
    // Neither of these may fail: containerd would take the shim for dead.
    let mut request = api::ConnectRequest::new();
    request.id = "none".to_owned();
    bench.client.connect(limit(), &request).await.unwrap();

    bench.create("a", "sleep 60").await.unwrap();
    for name in EXEC_RPCS {
        let (unknown, text) = bench.rpc(name, "a", "none").await;
        assert_eq!(unknown, Code::NOT_FOUND, "{name} of an exec: {text}");
    }
    let always = [
        ("State", OK),
        ("Pids", OK),
        ("ResizePty", OK),
        ("CloseIO", OK),
        ("Stats", OK),
    ];
    let created = [
        ("Pause", REFUSED),
        ("Resume", REFUSED),
        ("Checkpoint", REFUSED),
        ("Exec", REFUSED),
        ("Update", OK),
        ("Kill", OK),
    ];
    bench.answers("created", &always).await;
    bench.answers("created", &created).await;
    bench.start("a").await.unwrap();
    let running = [
        ("Start", REFUSED),
        ("Resume", REFUSED),
        ("Delete", REFUSED),
        ("Update", OK),
        ("Kill", OK),
        ("Exec", OK),
        ("Exec", Code::ALREADY_EXISTS),
    ];
    bench.answers("running", &always).await;
    bench.answers("running", &running).await;
    bench.kill("a", 9).await.unwrap();
    bench.wait("a").await.unwrap();
    let stopped = [
        ("Start", REFUSED),
        ("Pause", REFUSED),
        ("Resume", REFUSED),
        ("Checkpoint", REFUSED),
        ("Exec", Code::ALREADY_EXISTS),
        ("Update", REFUSED),
        ("Kill", Code::NOT_FOUND),
        ("Wait", OK),
        ("Delete", OK),
        ("Delete", Code::NOT_FOUND),
    ];
    bench.answers("stopped", &always).await;
    bench.answers("stopped", &stopped).await;
    // With containers Shutdown is remembered, without it ends the service.
    let request = api::ShutdownRequest::new();
    bench.client.shutdown(limit(), &request).await.unwrap();
}

async fn the_dump_has_it_all(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    let out = bench.dir.path().join("out");
    let address = format!("file://{}", out.display());
    bench
        .create_to("a", "echo four; sleep 60", &address)
        .await
        .unwrap();
    bench.start("a").await.unwrap();
    bench.exec("a", "e", "true").await.unwrap();
    while std::fs::read_to_string(&out).unwrap_or_default() != "four\n" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let dump = bench.service.dump().await;
    assert_eq!(dump.shim.namespace, "test");
    assert!(
        dump.shim.fds > 3 && dump.shim.threads > 0,
        "{:?}",
        dump.shim
    );
    let [container] = &dump.containers[..] else {
        panic!("{dump:?}");
    };
    assert_eq!(
        (container.id.as_str(), container.phase.as_str()),
        ("a", "running")
    );
    assert!(container.pid.is_some() && container.operation.is_none());
    assert_eq!(container.streams[0].copied_bytes, 5);
    assert_eq!(container.execs[0].phase, "added");
    let json = serde_json::to_value(&dump).unwrap();
    assert_eq!(json["containers"][0]["streams"][0]["address"], address);
    let lines = dump.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    bench.kill("a", 9).await.unwrap();
    bench.wait("a").await.unwrap();
    bench.delete("a").await.unwrap();
    assert!(bench.service.dump().await.containers.is_empty());
}

async fn a_panic_is_an_answer_and_leaves_nothing(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    bench.engine.panics.store(true, Ordering::SeqCst);
    assert_eq!(code(bench.create("a", "exit 0").await).0, Code::INTERNAL);
    assert!(!bench.dir.path().join("state/test/a").exists());
    bench.engine.panics.store(false, Ordering::SeqCst);
    bench.create("a", "exit 0").await.unwrap();
    bench.delete("a").await.unwrap();
}

async fn the_older_name_answers_too(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    let mut request = ttrpc::Request::new();
    request.service = TASK_V2.to_owned();
    request.method = "Stats".to_owned();
    request.timeout_nano = 20_000_000_000;
    let (unknown, text) = code(bench.v2.request(request).await);
    assert_eq!(unknown, Code::NOT_FOUND, "{text}");
}

async fn updates_and_stats(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    let stats = async || {
        let mut request = api::StatsRequest::new();
        request.id = "a".to_owned();
        bench.client.stats(limit(), &request).await
    };
    let update = async |type_url: &str, json: &str| {
        let mut any = Any::new();
        any.type_url = type_url.to_owned();
        any.value = json.as_bytes().to_vec();
        let mut request = api::UpdateTaskRequest::new();
        request.id = "a".to_owned();
        request.resources = Some(any).into();
        bench.client.update(limit(), &request).await.map(drop)
    };
    let resources = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    assert_eq!(code(stats().await).0, Code::NOT_FOUND);
    assert_eq!(code(update(resources, "{}").await).0, Code::NOT_FOUND);
    bench.create("a", "exit 0").await.unwrap();
    let any = stats().await.unwrap().stats.unwrap();
    assert!(any.type_url.starts_with("io.containerd.cgroups.v"), "{any}");
    let limit = r#"{"memory":{"limit":1048576}}"#;
    update(resources, limit).await.unwrap();
    let seen = bench.engine.updates.lock().unwrap().pop().unwrap();
    assert_eq!(seen.memory().as_ref().unwrap().limit(), Some(1_048_576));
    for (type_url, json) in [
        (resources, "{"),
        ("x.y.Z", limit),
        (resources, r#"{"memory":1}"#),
    ] {
        let refused = code(update(type_url, json).await);
        assert_eq!(refused.0, Code::INVALID_ARGUMENT, "{}", refused.1);
    }
    bench.start("a").await.unwrap();
    bench.wait("a").await.unwrap();
    let stopped = code(update(resources, limit).await);
    assert_eq!(stopped.0, Code::FAILED_PRECONDITION, "{}", stopped.1);
    stats().await.unwrap();
    bench.delete("a").await.unwrap();
    assert_eq!(code(stats().await).0, Code::NOT_FOUND);
}
