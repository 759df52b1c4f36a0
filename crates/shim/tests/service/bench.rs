//! The service over ttrpc, and the engine behind it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{TaskClient, create_task};
use cryo_engine::{
    ClockOffset, CreateOptions, Enclosed, Engine, Error, ExecSpec, HookPhase, MappedRoot, Started,
    Target,
};
use cryo_shim::events::Recorder;
use cryo_shim::serve::both_versions;
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
pub(crate) struct Shells {
    pub(crate) gates: Mutex<HashMap<String, PathBuf>>,
    /// Start answers this much later than the program begins.
    pub(crate) slow_start: Duration,
    pub(crate) panics: AtomicBool,
    pub(crate) updates: Mutex<Vec<LinuxResources>>,
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

    fn time_namespace(&self, _: ClockOffset, _: ClockOffset) -> Result<OwnedFd, Error> {
        Err(Error::Gone)
    }

    fn binds(&self, _: &Target) -> Result<Vec<OwnedFd>, Error> {
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

pub(crate) struct Bench {
    pub(crate) service: Service,
    pub(crate) client: TaskClient,
    pub(crate) v2: Client,
    pub(crate) events: Arc<Recorder>,
    pub(crate) engine: Arc<Shells>,
    pub(crate) dir: tempfile::TempDir,
    _server: Server,
}

impl Bench {
    pub(crate) async fn new(reaper: Reaper, engine: Shells) -> Self {
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

    pub(crate) fn bundle(&self, id: &str, script: &str) -> PathBuf {
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
    pub(crate) fn logger(&self, scheme: &str, script: &str) -> String {
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
    pub(crate) fn running(&self, text: &str) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(text) && line.contains(&dir))
            .collect()
    }

    pub(crate) async fn create_to(
        &self,
        id: &str,
        script: &str,
        logger: &str,
    ) -> ttrpc::Result<u32> {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = self.bundle(id, script).display().to_string();
        request.stdout = logger.to_owned();
        request.stderr = logger.to_owned();
        self.client.create(limit(), &request).await.map(|a| a.pid)
    }

    pub(crate) async fn create_in(&self, id: &str, bundle: &Path) -> ttrpc::Result<u32> {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.display().to_string();
        self.client.create(limit(), &request).await.map(|a| a.pid)
    }

    pub(crate) async fn create(&self, id: &str, script: &str) -> ttrpc::Result<u32> {
        self.create_in(id, &self.bundle(id, script)).await
    }

    pub(crate) async fn start(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        self.client.start(limit(), &request).await.map(|a| a.pid)
    }

    pub(crate) async fn wait(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        self.client
            .wait(limit(), &request)
            .await
            .map(|a| a.exit_status)
    }

    pub(crate) async fn delete(&self, id: &str) -> ttrpc::Result<u32> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        self.client
            .delete(limit(), &request)
            .await
            .map(|a| a.exit_status)
    }

    pub(crate) async fn kill(&self, id: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.signal = signal;
        self.client.kill(limit(), &request).await.map(drop)
    }

    pub(crate) async fn status(&self, id: &str) -> ttrpc::Result<api::Status> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        self.client
            .state(limit(), &request)
            .await
            .map(|a| a.status.unwrap())
    }

    pub(crate) async fn exec(&self, id: &str, exec_id: &str, script: &str) -> ttrpc::Result<()> {
        self.exec_to(id, exec_id, script, "").await
    }

    pub(crate) async fn exec_to(
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

    pub(crate) async fn start_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.client.start(limit(), &request).await.map(|a| a.pid)
    }

    pub(crate) async fn wait_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let answer = self.client.wait(limit(), &request).await;
        answer.map(|a| a.exit_status)
    }

    pub(crate) async fn delete_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let answer = self.client.delete(limit(), &request).await;
        answer.map(|a| a.exit_status)
    }

    pub(crate) async fn kill_exec(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
    ) -> ttrpc::Result<()> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        self.client.kill(limit(), &request).await.map(drop)
    }

    pub(crate) async fn exec_state(
        &self,
        id: &str,
        exec_id: &str,
    ) -> ttrpc::Result<api::StateResponse> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.client.state(limit(), &request).await
    }

    pub(crate) async fn checkpoint(&self, id: &str) -> ttrpc::Result<()> {
        let mut request = api::CheckpointTaskRequest::new();
        request.id = id.to_owned();
        request.path = self.dir.path().join("images").display().to_string();
        self.client.checkpoint(limit(), &request).await.map(drop)
    }
}

pub(crate) fn limit() -> context::Context {
    context::with_duration(Duration::from_secs(30))
}

pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}
