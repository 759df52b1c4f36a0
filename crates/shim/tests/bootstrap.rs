//! `start`, `-info` and `-v` end to end, with real processes.
//!
//! The shim executes itself again, so this test program is the shim: called with a shim's flags
//! it runs `main_entry` with a small server behind, else it runs the tests.
#![allow(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, DeleteResponse, ShutdownRequest,
};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::shim_async::{Task, TaskClient, create_task};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use cryo_shim::args::Flags;
use cryo_shim::bootstrap::{self, StartEnv, socket};
use cryo_shim::entry::{self, BoxError, Entry};
use cryo_shim::serve::{self, Shutdown};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message as _, MessageField};
use ttrpc::asynchronous::{Client, TtrpcContext};
use ttrpc::context;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let is_shim = args.get(1).is_some_and(|arg| {
        ["-namespace", "-info", "-v", "-nonsense", "-help"]
            .map(OsString::from)
            .contains(arg)
    });
    if is_shim {
        let entry = Entry {
            serve: shim,
            delete: |_| {
                Ok(DeleteResponse {
                    exit_status: 137,
                    ..Default::default()
                })
            },
            annotations: HashMap::new,
        };
        return cryo_shim::main_entry(args, &entry);
    }
    tests(&args)
}

// The shim.

struct Service {
    shutdown: Shutdown,
}

#[async_trait]
impl Task for Service {
    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            version: std::env::var("CRYO_LOG_LEVEL").unwrap_or_default(),
            // Room for one more thing that a test wants to know.
            task_pid: u32::from(cryo_sys::process::core_scheduling_cookie().is_some()),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.shutdown.trigger();
        Ok(Empty::new())
    }
}

fn shim(flags: &Flags) -> Result<(), BoxError> {
    let listener = serve::take_listener()?;
    serve::become_subreaper()?;
    entry::init_log(flags);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        let service = Service {
            shutdown: shutdown.clone(),
        };
        let services = serve::both_versions(create_task(Arc::new(service)));
        serve::serve(listener, services, shutdown, async || {}, async |_| {}).await
    })?;
    Ok(())
}

// The tests.

fn tests(args: &[OsString]) -> ExitCode {
    let all: &[(&str, fn())] = &[
        ("one_shim_per_group", one_shim_per_group),
        ("files_of_the_bundle", files_of_the_bundle),
        ("the_process", the_process),
        ("a_stale_socket_is_replaced", a_stale_socket_is_replaced),
        (
            "concurrent_starts_make_one_shim",
            concurrent_starts_make_one_shim,
        ),
        ("every_form_of_stdin", every_form_of_stdin),
        (
            "the_option_root_is_left_for_later",
            the_option_root_is_left_for_later,
        ),
        (
            "core_scheduling_is_given_or_refused",
            core_scheduling_is_given_or_refused,
        ),
        ("containerd_1_7", containerd_1_7),
        ("failures_go_to_stderr", failures_go_to_stderr),
        (
            "a_failed_start_leaves_nothing",
            a_failed_start_leaves_nothing,
        ),
        ("serving_by_hand_is_refused", serving_by_hand_is_refused),
        ("info_and_version", info_and_version),
        ("delete_prints_its_message", delete_prints_its_message),
        ("signals_end_it", signals_end_it),
        ("log_goes_to_the_fifo", log_goes_to_the_fifo),
    ];
    let words: Vec<_> = args.iter().skip(1).filter_map(|arg| arg.to_str()).collect();
    if words.contains(&"--list") {
        for (name, _) in all {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filter = words.iter().find(|word| !word.starts_with('-'));
    let (mut run, mut failed) = (0, 0);
    println!();
    for (name, test) in all {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        run += 1;
        failed += u32::from(!passed);
    }
    let passed = run - failed;
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed\n");
    ExitCode::from(u8::from(failed > 0))
}

/// A node: a socket directory and bundles; shims started here end with it.
struct Node {
    dir: tempfile::TempDir,
    addresses: std::sync::Mutex<Vec<String>>,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::Builder::new().prefix("n").tempdir().unwrap(),
            addresses: std::sync::Mutex::default(),
        }
    }

    fn sockets(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.dir.path().join(id);
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        bundle
    }

    fn params(&self, id: &str) -> BootstrapParams {
        BootstrapParams {
            instance_id: id.into(),
            namespace: "default".into(),
            containerd_version: "2.3.4".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
            socket_dir: Some(self.sockets().to_str().unwrap().into()),
            ..Default::default()
        }
    }

    /// Runs `start` as containerd 2.3 does, and checks the form of its answer.
    fn start(&self, id: &str, bundle: &Path) -> String {
        let output = run(
            bundle,
            id,
            &["start"],
            &self.params(id).write_to_bytes().unwrap(),
        );
        let address = address(&output);
        self.addresses.lock().unwrap().push(address.clone());
        address
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for address in self.addresses.lock().unwrap().drain(..) {
            let _ = call(&address, async |task| {
                task.shutdown(soon(), &ShutdownRequest::new()).await
            });
        }
    }
}

fn run(bundle: &Path, id: &str, action: &[&str], stdin: &[u8]) -> Output {
    let args = [
        "-namespace",
        "default",
        "-address",
        "/run/c.sock",
        "-id",
        id,
    ];
    run_with(bundle, &[&args, action].concat(), stdin)
}

fn run_with(cwd: &Path, args: &[&str], stdin: &[u8]) -> Output {
    run_in(cwd, args, stdin, &[])
}

fn run_in(cwd: &Path, args: &[&str], stdin: &[u8], env: &[(&str, &str)]) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(args)
        .current_dir(cwd)
        .env("TTRPC_ADDRESS", "/run/c.sock.ttrpc")
        .env("KEPT", "kept")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    // Ends only if the long-lived shim holds neither pipe.
    child.wait_with_output().unwrap()
}

/// JSON on stdout and nothing else anywhere.
fn address(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert_eq!(stderr, "");
    let address = stdout
        .strip_prefix("{\"version\":3,\"address\":\"")
        .and_then(|rest| rest.strip_suffix("\",\"protocol\":\"ttrpc\"}"))
        .unwrap_or_else(|| panic!("{stdout}"));
    assert!(address.starts_with("unix:///"), "{address}");
    address.to_owned()
}

fn soon() -> context::Context {
    context::with_duration(Duration::from_secs(30))
}

fn call<T>(
    address: &str,
    what: impl AsyncFnOnce(TaskClient) -> ttrpc::Result<T>,
) -> ttrpc::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { what(TaskClient::new(Client::connect(address).await?)).await })
}

fn connect(address: &str) -> ConnectResponse {
    call(address, async |task| {
        task.connect(soon(), &ConnectRequest::new()).await
    })
    .unwrap()
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn one_shim_per_group() {
    let node = Node::new();
    let pod = node.bundle("pod", "{}");
    let first = node.start("pod", &pod);
    let member = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
    let second = node.start("c1", &node.bundle("c1", member));
    let alone = node.start("c2", &node.bundle("c2", "{}"));
    assert_eq!(first, second);
    assert_ne!(first, alone);
    assert_eq!(connect(&first).shim_pid, connect(&second).shim_pid);
    assert_ne!(connect(&first).shim_pid, connect(&alone).shim_pid);

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.sockets()), 0o711);
    assert_eq!(
        mode(Path::new(first.strip_prefix("unix://").unwrap())),
        0o600
    );
}

fn files_of_the_bundle() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let address = node.start("c1", &bundle);
    let written = fs::read_to_string(bundle.join("shim-binary-path")).unwrap();
    assert_eq!(Path::new(&written), std::env::current_exe().unwrap());
    assert_eq!(bootstrap::socket_dir_of(&bundle), node.sockets());
    // Only containerd 1.7 wants one.
    assert!(!bundle.join("address").exists());
    let path = socket::path(&node.sockets(), "/run/c.sock", "default", "c1").unwrap();
    assert_eq!(address, socket::address(&path));
}

fn the_process() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let address = node.start("c1", &bundle);
    let shim = connect(&address);
    assert_eq!(shim.version, "info");
    let proc = PathBuf::from(format!("/proc/{}", shim.shim_pid));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), bundle);
    for fd in 0..3 {
        let target = fs::read_link(proc.join(format!("fd/{fd}"))).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "fd {fd}");
    }
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let pid = shim.shim_pid.to_string();
    assert_eq!((fields[2], fields[3]), (&*pid, &*pid), "group and session");
    let environ = fs::read_to_string(proc.join("environ")).unwrap();
    for var in [
        "TTRPC_ADDRESS=/run/c.sock.ttrpc",
        "NAMESPACE=default",
        "KEPT=kept",
    ] {
        assert!(environ.split('\0').any(|found| found == var), "{var}");
    }
    let line = fs::read_to_string(proc.join("cmdline")).unwrap();
    assert!(
        line.contains("-id\0c1\0") && !line.contains("start"),
        "{line:?}"
    );

    let score = |pid: &str| -> i32 {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse().unwrap()
    };
    // This process stands for containerd.
    let want = (score("self") + 1).min(1000);
    assert_eq!(score(&pid), want);
}

fn a_stale_socket_is_replaced() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let address = node.start("c1", &bundle);
    let pid = connect(&address).shim_pid;
    kill(pid, rustix::process::Signal::KILL);
    eventually("the shim is gone", || {
        std::os::unix::net::UnixStream::connect(address.strip_prefix("unix://").unwrap()).is_err()
    });
    assert!(Path::new(address.strip_prefix("unix://").unwrap()).exists());
    assert_eq!(node.start("c1", &bundle), address);
    assert_ne!(connect(&address).shim_pid, pid);
}

fn concurrent_starts_make_one_shim() {
    let node = Node::new();
    let member = r#"{"annotations":{"io.containerd.runc.v2.group":"g"}}"#;
    let bundles: Vec<_> = (0..6)
        .map(|n| (format!("c{n}"), node.bundle(&format!("c{n}"), member)))
        .collect();
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = bundles
            .iter()
            .map(|(id, bundle)| scope.spawn(|| node.start(id, bundle)))
            .collect();
        starts.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let pids: std::collections::HashSet<_> = addresses
        .iter()
        .map(|address| connect(address).shim_pid)
        .collect();
    assert_eq!(pids.len(), 1);
}

/// `start` without a process of its own, for what only a library can set: the default directory.
fn start_here(node: &Node, bundle: &Path, stdin: Vec<u8>, containerd: &Path) -> String {
    let flags = Flags {
        id: "c1".into(),
        namespace: "default".into(),
        address: "/run/c.sock".into(),
        publish_binary: containerd.into(),
        ..Flags::default()
    };
    let env = StartEnv {
        stdin,
        bundle: bundle.into(),
        env: std::env::vars_os().collect(),
        default_socket_dir: node.sockets(),
    };
    let answer = bootstrap::start(&flags, &env).unwrap();
    let path = socket::path(&node.sockets(), "/run/c.sock", "default", "c1").unwrap();
    node.addresses.lock().unwrap().push(socket::address(&path));
    answer
}

fn every_form_of_stdin() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let options = Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: vec![8, 1],
        ..Any::default()
    };
    let mut with_options = node.params("c1");
    with_options.extensions.push(Extension {
        value: MessageField::some(options.clone()),
        ..Default::default()
    });
    let answers: std::collections::HashSet<_> = [
        Vec::new(),
        options.write_to_bytes().unwrap(),
        with_options.write_to_bytes().unwrap(),
    ]
    .map(|stdin| start_here(&node, &bundle, stdin, Path::new("")))
    .into();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(
        answers
            .iter()
            .all(|answer| answer.starts_with("{\"version\":3,"))
    );

    for (stdin, want) in [
        (
            node.params("c2").write_to_bytes().unwrap(),
            "mixed up two starts",
        ),
        (
            b"\x07garbage".to_vec(),
            "neither BootstrapParams nor an Any",
        ),
    ] {
        let output = run(&bundle, "c1", &["start"], &stdin);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(want), "{text}");
    }
}

fn the_option_root_is_left_for_later() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    assert_eq!(bootstrap::state_root_of(&bundle), None);
    let with_root = |root: &str| {
        let mut params = node.params("c1");
        let mut value = vec![7 << 3 | 2, u8::try_from(root.len()).unwrap()];
        value.extend(root.as_bytes());
        params.extensions.push(Extension {
            value: MessageField::some(Any {
                type_url: "containerd.runc.v1.Options".into(),
                value,
                ..Any::default()
            }),
            ..Default::default()
        });
        run(&bundle, "c1", &["start"], &params.write_to_bytes().unwrap())
    };
    let refused = with_root("relative");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("option Root \"relative\""), "{text}");
    assert!(!node.sockets().exists());
    let address = address(&with_root("/run/other"));
    node.addresses.lock().unwrap().push(address);
    let root = bootstrap::state_root_of(&bundle);
    assert_eq!(root.as_deref(), Some(Path::new("/run/other")));
}

fn core_scheduling_is_given_or_refused() {
    // A thread of its own: there the cookie ends with it.
    let here = std::thread::spawn(cryo_sys::process::new_core_scheduling_cookie);
    let here = here.join().unwrap();
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let args = [
        "-namespace",
        "default",
        "-address",
        "/run/c.sock",
        "-id",
        "c1",
        "start",
    ];
    let stdin = node.params("c1").write_to_bytes().unwrap();
    let output = run_in(&bundle, &args, &stdin, &[("SCHED_CORE", "1")]);
    if let Err(error) = here {
        println!("no core scheduling here: {error}");
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("core scheduling cookie"), "{text}");
        assert!(text.contains("CONFIG_SCHED_CORE"), "{text}");
        assert_eq!(fs::read_dir(node.sockets()).unwrap().count(), 0);
        return;
    }
    let address = address(&output);
    node.addresses.lock().unwrap().push(address.clone());
    assert_eq!(connect(&address).task_pid, 1, "no cookie");
}

fn containerd_1_7() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let containerd = node.dir.path().join("containerd");
    fs::write(
        &containerd,
        go_program("github.com/containerd/containerd/cmd/containerd"),
    )
    .unwrap();
    let answer = start_here(&node, &bundle, Vec::new(), &containerd);
    assert!(answer.starts_with("{\"version\":2,"), "{answer}");
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    assert!(answer.contains(&address), "{address}");
    assert_ne!(connect(&address).shim_pid, 0);
}

/// An ELF file with nothing but a Go program's build information.
fn go_program(package: &str) -> Vec<u8> {
    let strings: &[u8] = b"\0.go.buildinfo\0";
    let info = format!("path\t{package}\n");
    let mut file = b"\x7fELF\x02\x01".to_vec();
    file.resize(64, 0);
    file.extend_from_slice(strings);
    file.extend_from_slice(info.as_bytes());
    let table = file.len() as u64;
    file.resize(file.len() + 2 * 64, 0);
    let mut put = |at: u64, bytes: &[u8]| file[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(0x28, &table.to_le_bytes());
    put(0x3a, &64u16.to_le_bytes());
    put(0x3c, &2u16.to_le_bytes());
    put(0x3e, &0u16.to_le_bytes());
    let extents = [(64, strings.len()), (64 + strings.len(), info.len())];
    for ((at, size), section) in extents.into_iter().zip([table, table + 64]) {
        put(section, &u32::from(section != table).to_le_bytes());
        put(section + 0x18, &(at as u64).to_le_bytes());
        put(section + 0x20, &(size as u64).to_le_bytes());
    }
    file
}

fn failures_go_to_stderr() {
    let node = Node::new();
    let bundle = node.bundle("c1", "[]");
    let output = run(&bundle, "c1", &["start"], b"");
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("config.json is not an OCI spec"), "{text}");

    let output = run_with(&bundle, &["-nonsense"], b"");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.starts_with("flag provided but not defined: -nonsense\n"),
        "{text}"
    );
    assert!(text.contains("usage:"), "{text}");
}

fn a_failed_start_leaves_nothing() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let mut params = node.params("c1");
    params.socket_dir = Some(format!("/{}", "x".repeat(60)));
    let output = run(&bundle, "c1", &["start"], &params.write_to_bytes().unwrap());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("longer than 106 bytes"), "{text}");

    params.socket_dir = Some("relative".into());
    let output = run(&bundle, "c1", &["start"], &params.write_to_bytes().unwrap());
    assert!(!output.status.success());
    assert!(!node.sockets().exists());
}

fn serving_by_hand_is_refused() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let output = run(&bundle, "c1", &[], b"");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        text.contains("descriptor 3 is not a listening unix socket"),
        "{text}"
    );
}

fn info_and_version() {
    let node = Node::new();
    let output = run_with(node.dir.path(), &["-info"], b"");
    assert_eq!(output.stderr, b"");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.cryo.v2");
    let output = run_with(node.dir.path(), &["-v"], b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains(concat!("Version:  ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    assert!(run_with(node.dir.path(), &["-help"], b"").status.success());
}

fn delete_prints_its_message() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let output = run(
        &bundle,
        "c1",
        &["-bundle", bundle.to_str().unwrap(), "delete"],
        b"",
    );
    assert_eq!(output.stderr, b"");
    let answer = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(answer.exit_status, 137);
}

fn signals_end_it() {
    use rustix::process::Signal;
    for signal in [Signal::TERM, Signal::INT] {
        let node = Node::new();
        let bundle = node.bundle("c1", "{}");
        let address = node.start("c1", &bundle);
        let pid = connect(&address).shim_pid;
        kill(pid, Signal::PIPE);
        kill(pid, Signal::USR1);
        assert_eq!(connect(&address).shim_pid, pid);
        kill(pid, signal);
        let path = Path::new(address.strip_prefix("unix://").unwrap());
        eventually("the socket is gone", || !path.exists());
        node.addresses.lock().unwrap().clear();
    }
}

fn log_goes_to_the_fifo() {
    let node = Node::new();
    let bundle = node.bundle("c1", "{}");
    let path = bundle.join("log");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &path,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
    let mut fifo = cryo_shim::log::open_fifo(&path).unwrap();
    let mut params = node.params("c1");
    params.log_level = protobuf::EnumOrUnknown::from_i32(-4);
    let output = run(&bundle, "c1", &["start"], &params.write_to_bytes().unwrap());
    let address = address(&output);
    node.addresses.lock().unwrap().push(address.clone());
    let shim = connect(&address);
    assert_eq!(shim.version, "debug");
    let mut buffer = vec![0; 65536];
    let n = fifo.read(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let serving = text.lines().find(|line| line.contains("serving")).unwrap();
    assert!(serving.starts_with("time=\"2"), "{serving}");
    assert!(
        serving.ends_with(&format!("level=info msg=\"serving\" pid={}", shim.shim_pid)),
        "{serving}"
    );
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
