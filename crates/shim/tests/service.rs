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
use cryo_engine::{
    CreateOptions, Enclosed, Engine, Error, ExecSpec, HookPhase, MappedRoot, Started, Target,
};
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
        [_, stdout, stderr]: [Option<OwnedFd>; 3],
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
        let mut command = Command::new("sh");
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            command.stdout(stdout).stderr(stderr);
        }
        let child = command.args(["-c", &wait]).spawn().unwrap();
        drop(command);
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
        drop(command);
        std::thread::sleep(self.slow_start);
        Ok(started(&child))
    }

    fn mount_root(&self, _: &MappedRoot, _: &Path) -> Result<OwnedFd, Error> {
        unreachable!("no test has a root of that kind")
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

    fn cgroup_namespace(&self, _: &Target) -> Result<OwnedFd, Error> {
        Err(Error::Gone)
    }

    fn enclose(&self, _: &Target) -> Result<Enclosed, Error> {
        Err(Error::Gone)
    }

    fn end_scope(&self, _: &Target) -> Result<(), Error> {
        Ok(())
    }

    fn seccomp_filter(&self, _: &Target) -> Result<Vec<u8>, Error> {
        Err(Error::Gone)
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
    service: Service,
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
            .register_service(both_versions(create_task(Arc::new(service.clone()))));
        server.start().await.unwrap();
        let client = TaskClient::new(Client::connect(&address).await.unwrap());
        let v2 = Client::connect(&address).await.unwrap();
        Self {
            service,
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

    /// A script as a logger; answers its address.
    fn logger(&self, scheme: &str, script: &str) -> String {
        let path = self.dir.path().join(format!("logger-{scheme}"));
        let text = format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n");
        // Written by another process: a thread that forks meanwhile would make it "busy".
        let write = "cat >\"$1\"; chmod 755 \"$1\"";
        let mut child = Command::new("sh")
            .args(["-c", write, "sh"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        // Whoever reaps it: afterwards the file is there.
        let _ = child.wait();
        format!("{scheme}://{}", path.display())
    }

    /// The processes of this bench with `text` in their command line, zombies too.
    fn running(&self, text: &str) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(text) && line.contains(&dir))
            .collect()
    }

    async fn create_to(&self, id: &str, script: &str, logger: &str) -> ttrpc::Result<u32> {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = self.bundle(id, script).display().to_string();
        request.stdout = logger.to_owned();
        request.stderr = logger.to_owned();
        self.client.create(limit(), &request).await.map(|a| a.pid)
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
    context::with_duration(Duration::from_secs(30))
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
    every_rpc_answers_by_code(reaper.clone()).await;
    the_dump_has_it_all(reaper.clone()).await;
    a_panic_is_an_answer_and_leaves_nothing(reaper.clone()).await;
    the_older_name_answers_too(reaper.clone()).await;
    updates_and_stats(reaper.clone()).await;
    execs_live_and_are_told_in_order(reaper.clone()).await;
    execs_are_refused(reaper.clone()).await;
    an_exec_that_ends_before_its_start_is_answered(reaper.clone()).await;
    the_containers_exit_comes_last(reaper.clone()).await;
    loggers_get_all_output(reaper.clone()).await;
    loggers_that_do_not_start_fail_the_create(reaper.clone()).await;
    loggers_that_do_not_end_are_ended(reaper).await;
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

/// Copies both streams, and tells what the logger was given.
const LOGGER: &str = r#"
to=$2
{ echo "id=$CONTAINER_ID ns=$CONTAINER_NAMESPACE args=$*"; ls -l /proc/$$/fd; env; } >"$to.start"
cat <&4 >"$to.err" 5>&- &
exec 4<&-
printf x >&5
exec 5>&-
cat <&3 >"$to.out"
wait
echo done >"$to.end""#;

async fn loggers_get_all_output(reaper: Reaper) {
    let bench = Bench::new(reaper, Shells::default()).await;
    for scheme in ["binary", "binary-v2"] {
        let logger = bench.logger(scheme, LOGGER);
        let to = bench.dir.path().join(scheme);
        let read = |name: &str| {
            let text = std::fs::read_to_string(to.with_extension(name));
            text.unwrap_or_else(|e| format!("{name}: {e}"))
        };
        let address = format!("{logger}?to={}", to.display());
        let script = "yes out | head -c 1048576; echo err >&2; exec sleep 60";
        bench.create_to("a", script, &address).await.unwrap();
        given(
            &read("start"),
            &format!("id=a ns=test args=to {}", to.display()),
        );
        bench.start("a").await.unwrap();

        // An exec has one of its own, under its own name.
        let exec_to = bench.dir.path().join(format!("{scheme}-exec"));
        let address = format!("{logger}?to={}", exec_to.display());
        bench
            .exec_to("a", "e", "echo exec", &address)
            .await
            .unwrap();
        bench.start_exec("a", "e").await.unwrap();
        bench.wait_exec("a", "e").await.unwrap();
        bench.delete_exec("a", "e").await.unwrap();
        let read_exec = |name| std::fs::read_to_string(exec_to.with_extension(name)).unwrap();
        assert!(read_exec("start").starts_with("id=e ns=test"));
        assert_eq!(read_exec("out"), "exec\n");
        assert_eq!(read_exec("end"), "done\n");

        // Its own end, so that all is written.
        while read("err") != "err\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.kill("a", 9).await.unwrap();
        bench.wait("a").await.unwrap();
        bench.delete("a").await.unwrap();
        assert_eq!(read("end"), "done\n", "Delete waits for the logger");
        assert!(
            read("out") == "out\n".repeat(262_144),
            "{}",
            read("out").len()
        );
        std::fs::remove_file(bench.dir.path().join("a/gate")).unwrap();
    }
}

/// Checks what a logger was started with: arguments, environment, descriptors.
fn given(seen: &str, wanted: &str) {
    let (first, rest) = seen.split_once('\n').unwrap();
    assert_eq!(first, wanted);
    let shells_own = ["PWD", "OLDPWD", "SHLVL", "_", "PATH"];
    let mut variables: Vec<_> = rest
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .filter(|name| !shells_own.contains(name))
        .collect();
    variables.sort_unstable();
    assert_eq!(variables, ["CONTAINER_ID", "CONTAINER_NAMESPACE"], "{seen}");
    let mut numbers = Vec::new();
    for line in rest.lines() {
        let Some((number, target)) = line.split_once(" -> ") else {
            continue;
        };
        let number: u32 = number.rsplit(' ').next().unwrap().parse().unwrap();
        if number >= 10 {
            // The shell's own: its script, and what it saves beside redirections.
            assert!(
                target.contains("/logger-") || target == "/dev/null",
                "{seen}"
            );
            continue;
        }
        if number > 2 {
            assert!(target.starts_with("pipe:"), "{seen}");
        }
        numbers.push(number);
    }
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5], "{seen}");
}

async fn loggers_that_do_not_start_fail_the_create(reaper: Reaper) {
    let bench = Bench::new(reaper.clone(), Shells::default()).await;
    let silent = Bench::new(reaper, Shells::default()).await;
    let refused = async |bench: &Bench, logger: &str, why: &str| {
        let (refused, text) = code(bench.create_to("a", "exit 0", logger).await);
        assert_eq!(refused, Code::FAILED_PRECONDITION, "{text}");
        assert!(text.contains(why), "{text}");
        assert!(!bench.dir.path().join("state/test/a").exists());
    };
    // As long as the limit, so beside the others.
    let late = async {
        let logger = silent.logger("binary-v2", "exec sleep 60");
        refused(&silent, &logger, "is not ready after").await;
    };
    let others = async {
        for (scheme, script, why) in [
            (
                "binary",
                "exit 3",
                "ended with status 3 before it was ready",
            ),
            (
                "binary-v2",
                "exit 0",
                "ended with status 0 before it was ready",
            ),
            ("binary-v2", "exec 5>&-; sleep 60", "without a byte"),
        ] {
            refused(&bench, &bench.logger(scheme, script), why).await;
        }
        refused(&bench, "binary:///nonexistent/logger", "No such file").await;
        // An end without a failure is what the older protocol lets pass.
        let logger = bench.logger("binary", "exit 0");
        bench.create_to("a", "exit 0", &logger).await.unwrap();
        bench.delete("a").await.unwrap();
    };
    tokio::join!(late, others);
    assert_eq!(bench.running("logger-"), Vec::<String>::new());
    assert_eq!(silent.running("logger-"), Vec::<String>::new());
}

async fn loggers_that_do_not_end_are_ended(reaper: Reaper) {
    let benches = [
        // Ends when it is asked to, and only then.
        (
            Bench::new(reaper.clone(), Shells::default()).await,
            "trap 'echo asked >$2; exit 0' TERM; exec 5>&-; while :; do sleep 0.1; done",
            "asked\n",
        ),
        // Does not even then.
        (
            Bench::new(reaper, Shells::default()).await,
            "trap '' TERM; echo deaf >$2; exec 5>&-; while :; do sleep 0.1; done",
            "deaf\n",
        ),
    ];
    let [one, two] = benches.each_ref().map(async |(bench, script, said)| {
        let to = bench.dir.path().join("said");
        let logger = format!("{}?to={}", bench.logger("binary", script), to.display());
        bench.create_to("a", "exit 0", &logger).await.unwrap();
        assert_eq!(bench.running("logger-").len(), 1);
        bench.start("a").await.unwrap();
        bench.wait("a").await.unwrap();
        bench.delete("a").await.unwrap();
        assert_eq!(std::fs::read_to_string(to).unwrap(), *said);
        assert_eq!(bench.running("logger-"), Vec::<String>::new());
    });
    tokio::join!(one, two);
}
