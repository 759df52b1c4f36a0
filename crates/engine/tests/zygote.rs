//! The zygote as a real process, re-executed from this test program: answers,
//! deaths and leaks, without root and without containers.
#![allow(clippy::unwrap_used)] // a test's way to fail

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use cryo_engine::{CreateOptions, Engine as _, Error, FailureKind, HookPhase, Target, Zygote};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args
        .get(1)
        .is_some_and(|arg| arg == cryo_engine::ZYGOTE_ARG)
    {
        return match cryo_engine::zygote::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let tests: [(&str, fn()); 5] = [
        ("filters_are_read_back", filters_are_read_back),
        (
            "failures_are_sorted_and_named",
            failures_are_sorted_and_named,
        ),
        (
            "calls_do_not_wait_for_each_other",
            calls_do_not_wait_for_each_other,
        ),
        ("nothing_is_left_of_a_call", nothing_is_left_of_a_call),
        ("a_dead_zygote_is_an_answer", a_dead_zygote_is_an_answer),
    ];
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests
        .iter()
        .filter(|(n, _)| filter.is_none_or(|f| n.contains(f.as_str())))
    {
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *(if ok { &mut passed } else { &mut failed }) += 1;
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed\n");
    ExitCode::from(u8::from(failed > 0))
}

fn target(bundle: &Path) -> Target {
    Target {
        id: "test".to_owned(),
        bundle: bundle.to_owned(),
        root: bundle.join("engine"),
        scope: None,
    }
}

fn bundle(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

const HOOKED: &str = r#"{"ociVersion":"1.1.0","root":{"path":"rootfs"},"linux":{},
    "process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["true"]},
    "hooks":{"poststop":[{"path":"/bin/sh","args":["sh","-c","sleep 0.3"]}],
             "poststart":[{"path":"/bin/false"}]}}"#;

fn failures_are_sorted_and_named() {
    let zygote = Zygote::spawn().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let create =
        |dir: &Path| zygote.create(&target(dir), [None, None, None], CreateOptions::default());
    let error = create(empty.path()).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Spec, "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
    // No cgroup path.
    let error = create(bundle(HOOKED).path()).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Spec, "{error}");
    assert!(error.to_string().contains("cgroupsPath"), "{error}");

    let error = zygote.start(&target(empty.path())).unwrap_err();
    assert_eq!(error.kind(), FailureKind::Other, "{error}");
    // Nothing there to delete is fine.
    zygote.delete(&target(empty.path())).unwrap();

    let hooked = bundle(HOOKED);
    let error = zygote
        .hooks(&target(hooked.path()), &[HookPhase::Poststart], 1)
        .unwrap_err();
    assert!(
        error.to_string().contains("Poststart hook failed"),
        "{error}"
    );
}

fn filters_are_read_back() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: loading a filter without no_new_privs needs root");
        return;
    }
    let zygote = Zygote::spawn().unwrap();
    let filter = |seccomp: &str| {
        let linux = format!(r#""linux":{{{seccomp}}}"#);
        let config = HOOKED.replace(r#""linux":{}"#, &linux);
        zygote.seccomp_filter(&target(bundle(&config).path()))
    };
    let without = |call: &str| {
        let rule = format!(r#"{{"names":["{call}"],"action":"SCMP_ACT_ERRNO"}}"#);
        let profile =
            format!(r#""seccomp":{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
        filter(&profile).unwrap()
    };
    let mkdir = without("mkdir");
    assert!(
        mkdir.len() > 8 && mkdir.len().is_multiple_of(8),
        "{mkdir:?}"
    );
    assert_eq!(mkdir, without("mkdir"));
    assert_ne!(mkdir, without("rmdir"));
    // Nothing at all may be done after it.
    let none = filter(r#""seccomp":{"defaultAction":"SCMP_ACT_KILL_PROCESS"}"#).unwrap();
    assert!(!none.is_empty() && none != mkdir);

    let error = filter("").unwrap_err();
    assert_eq!(error.kind(), FailureKind::Spec, "{error}");
    let error = filter(r#""seccomp":{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap_err();
    assert!(
        error.to_string().contains("SCMP_ACT_NOTIFY cannot be used"),
        "{error}"
    );
}

fn calls_do_not_wait_for_each_other() {
    let zygote = Arc::new(Zygote::spawn().unwrap());
    // Each ends when all ten are there.
    let together = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {}; touch $$; for i in $(seq 600); do [ $(ls | wc -l) = 10 ] && exit; sleep 0.1; done; exit 1",
        together.path().display()
    );
    let hooked = bundle(&HOOKED.replace("sleep 0.3", &script));
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (zygote, target) = (Arc::clone(&zygote), target(hooked.path()));
            std::thread::spawn(move || zygote.hooks(&target, &[HookPhase::Poststop], 1))
        })
        .collect();
    for call in calls {
        call.join().unwrap().unwrap();
    }
}

fn nothing_is_left_of_a_call() {
    let zygote = Zygote::spawn().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let zygote_pid = zygote.pid().as_raw_nonzero();
    let count = |dir: String| std::fs::read_dir(dir).unwrap().count();
    let children = || {
        std::fs::read_to_string(format!("/proc/{zygote_pid}/task/{zygote_pid}/children")).unwrap()
    };
    zygote.delete(&target(empty.path())).unwrap();
    let fds = || {
        (
            count("/proc/self/fd".into()),
            count(format!("/proc/{zygote_pid}/fd")),
        )
    };
    let before = fds();
    for _ in 0..20 {
        zygote.start(&target(empty.path())).unwrap_err();
        zygote.delete(&target(empty.path())).unwrap();
    }
    assert_eq!(children(), "", "workers are reaped before their answer is");
    // The zygote closes its end of a call just after its last word.
    let settled = (0..3000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = fds();
        now.0 <= before.0 && now.1 <= before.1
    });
    assert!(settled, "{before:?} before, {:?} after", fds());
}

fn a_dead_zygote_is_an_answer() {
    let zygote = Arc::new(Zygote::spawn().unwrap());
    let hooked = bundle(HOOKED);
    let call = {
        let (zygote, target) = (Arc::clone(&zygote), target(hooked.path()));
        std::thread::spawn(move || zygote.hooks(&target, &[HookPhase::Poststop; 10], 1))
    };
    std::thread::sleep(std::time::Duration::from_millis(100));
    rustix::process::kill_process(zygote.pid(), rustix::process::Signal::KILL).unwrap();
    assert!(matches!(call.join().unwrap(), Err(Error::Gone)));
    assert!(matches!(
        zygote.delete(&target(hooked.path())),
        Err(Error::Gone)
    ));
}
