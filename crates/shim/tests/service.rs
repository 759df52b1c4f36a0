//! The Task service over real ttrpc, with an engine that starts plain shells
//! instead of containers: orders, codes and states without root.

#![allow(clippy::unwrap_used)] // a test's way to fail

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::shim_async::{TaskClient, create_task};
use cryo_engine::{CreateOptions, Engine, Error, ExecSpec, HookPhase, Started, Target};
use cryo_shim::events::Recorder;
use cryo_shim::serve::{TASK_V2, both_versions};
use cryo_shim::task::context::Shared;
use cryo_shim::task::reaper::Reaper;
use cryo_shim::task::service::Service;
use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::any::Any;
use rustix::process::Pid;
use ttrpc::asynchronous::{Client, Server};
use ttrpc::{Code, context};

/// Runs the bundle's `args[0]` as a shell script when the container is started.
#[derive(Debug, Default)]
struct Shells {
    gates: Mutex<HashMap<String, PathBuf>>,
    /// Start answers this much later than the program begins.
    slow_start: Duration,
    panics: AtomicBool,
    updates: Mutex<Vec<LinuxResources>>,
}

impl Engine for Shells {
    #[expect(clippy::zombie_processes, reason = "the shim's reaper waits")]
    fn create(
        &self,
        target: &Target,
        _: [Option<OwnedFd>; 3],
        _: CreateOptions,
    ) -> Result<Started, Error> {
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        let spec = cryo_engine::spec::load(&target.bundle).unwrap();
        let script = spec.process().as_ref().unwrap().args().as_ref().unwrap()[0].clone();
        let gate = target.bundle.join("gate");
        let wait = format!(
            "until [ -e {} ]; do sleep 0.01; done; {script}",
            gate.display()
        );
        let child = Command::new("sh").args(["-c", &wait]).spawn().unwrap();
        self.gates.lock().unwrap().insert(target.id.clone(), gate);
        Ok(started(&child))
    }

    /// Runs `args[0]` as a script; `fail` fails.
    #[expect(clippy::zombie_processes, reason = "the shim's reaper waits")]
    fn exec(
        &self,
        _: &Target,
        spec: &ExecSpec<'_>,
        [_, stdout, _]: [Option<OwnedFd>; 3],
    ) -> Result<Started, Error> {
        let process: serde_json::Value = serde_json::from_slice(spec.process).unwrap();
        let script = process["args"][0].as_str().unwrap().to_owned();
        if script == "fail" {
            return Err(Error::Io(std::io::Error::other("told to fail")));
        }
        let mut command = Command::new("sh");
        if let Some(stdout) = stdout {
            command.stdout(stdout);
        }
        let child = command.args(["-c", &script]).spawn().unwrap();
        std::thread::sleep(self.slow_start);
        Ok(started(&child))
    }

    fn start(&self, target: &Target) -> Result<(), Error> {
        std::fs::write(&self.gates.lock().unwrap()[&target.id], "").unwrap();
        std::thread::sleep(self.slow_start);
        Ok(())
    }

    fn delete(&self, _: &Target) -> Result<(), Error> {
        Ok(())
    }

    fn limit(&self, _: &Target) -> Result<(), Error> {
        Ok(())
    }

    fn update(&self, _: &Target, resources: &LinuxResources) -> Result<(), Error> {
        self.updates.lock().unwrap().push(resources.clone());
        Ok(())
    }

    fn hooks(&self, _: &Target, _: &[HookPhase], _: i32) -> Result<(), Error> {
        Ok(())
    }
}

fn started(child: &std::process::Child) -> Started {
    Started {
        pid: Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        console: None,
    }
}

struct Bench {
    client: TaskClient,
    v2: Client,
    events: Arc<Recorder>,
    engine: Arc<Shells>,
    dir: tempfile::TempDir,
    _server: Server,
}

impl Bench {
    async fn new(reaper: Reaper, engine: Shells) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, engine) = (Arc::new(Recorder::default()), Arc::new(engine));
        let service = Service::new(Arc::new(Shared {
            namespace: "test".to_owned(),
            engine: engine.clone(),
            events: events.clone(),
            reaper,
            state_root: dir.path().join("state"),
            config: dir.path().join("config.toml"),
        }));
        let address = format!("unix://{}", dir.path().join("socket").display());
        let mut server = Server::new()
            .bind(&address)
            .unwrap()
            .register_service(both_versions(create_task(Arc::new(service))));
        server.start().await.unwrap();
        let client = TaskClient::new(Client::connect(&address).await.unwrap());
        let v2 = Client::connect(&address).await.unwrap();
        Self {
            client,
            v2,
            events,
            engine,
            dir,
            _server: server,
        }
    }

    fn bundle(&self, id: &str, script: &str) -> PathBuf {
        let bundle = self.dir.path().join(id);
        std::fs::create_dir_all(&bundle).unwrap();
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","root":{{"path":"rootfs"}},
                "process":{{"cwd":"/","args":["{script}"],"user":{{"uid":{},"gid":{}}}}},
                "linux":{{"cgroupsPath":"/cryo-service-test/{id}"}}}}"#,
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        std::fs::write(bundle.join("config.json"), spec).unwrap();
        bundle
    }

    async fn create_in(&self, id: &str, bundle: &Path) -> ttrpc::Result<u32> {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.display().to_string();
        self.client.create(limit(), &request).await.map(|a| a.pid)
    }

    async fn create(&self, id: &str, script: &str) -> ttrpc::Result<u32> {
        self.create_in(id, &self.bundle(id, script)).await
    }

    async fn start(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        self.client.start(limit(), &request).await.map(|a| a.pid)
    }

    async fn wait(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        self.client
            .wait(limit(), &request)
            .await
            .map(|a| a.exit_status)
    }

    async fn delete(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        self.client
            .delete(limit(), &request)
            .await
            .map(|a| a.exit_status)
    }

    async fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.signal = signal;
        self.client.kill(limit(), &request).await.map(drop)
    }

    async fn status(&self, id: &str) -> ttrpc::Result<api::Status> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        self.client
            .state(limit(), &request)
            .await
            .map(|a| a.status.unwrap())
    }

    async fn exec(&self, id: &str, exec_id: &str, script: &str) -> ttrpc::Result<()> {
        self.exec_to(id, exec_id, script, "").await
    }

    async fn exec_to(
        &self,
        id: &str,
        exec_id: &str,
        script: &str,
        stdout: &str,
    ) -> ttrpc::Result<()> {
        let mut request = api::ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.stdout = stdout.to_owned();
        let mut spec = Any::new();
        spec.value = serde_json::to_vec(&serde_json::json!({
            "args": [script], "cwd": "/",
            "user": {
                "uid": rustix::process::getuid().as_raw(),
                "gid": rustix::process::getgid().as_raw(),
            },
        }))
        .unwrap();
        request.spec = Some(spec).into();
        self.client.exec(limit(), &request).await.map(drop)
    }

    async fn start_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.client.start(limit(), &request).await.map(|a| a.pid)
    }

    async fn wait_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let answer = self.client.wait(limit(), &request).await;
        answer.map(|a| a.exit_status)
    }

    async fn delete_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let answer = self.client.delete(limit(), &request).await;
        answer.map(|a| a.exit_status)
    }

    async fn kill_exec(&self, id: &str, exec_id: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.client.kill(limit(), &request).await.map(drop)
    }

    async fn exec_state(&self, id: &str, exec_id: &str) -> ttrpc::Result<api::StateResponse> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.client.state(limit(), &request).await
    }

    async fn checkpoint(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = api::CheckpointTaskRequest::new();
        request.id = id.to_owned();
        request.path = self.dir.path().join("images").display().to_string();
        self.client.checkpoint(limit(), &request).await.map(drop)
    }
}

fn limit() -> context::Context {
    context::with_duration(Duration::from_secs(20))
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}

// One test: the reaper is about all children of this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service() {
    let reaper = Reaper::start().unwrap();
    lives_and_orders(reaper.clone()).await;
    an_exit_that_beats_the_start(reaper.clone()).await;
    refusals(reaper.clone()).await;
    a_panic_is_an_answer_and_leaves_nothing(reaper.clone()).await;
    the_older_name_answers_too(reaper.clone()).await;
    updates_and_stats(reaper.clone()).await;
    execs_live_and_are_told_in_order(reaper.clone()).await;
    execs_are_refused(reaper.clone()).await;
    an_exec_that_ends_before_its_start_is_answered(reaper.clone()).await;
    the_containers_exit_comes_last(reaper).await;
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

async fn execs_live_and_are_told_in_order(reaper: Reaper) {
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

async fn execs_are_refused(reaper: Reaper) {
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

async fn an_exec_that_ends_before_its_start_is_answered(reaper: Reaper) {
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

async fn the_containers_exit_comes_last(reaper: Reaper) {
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
