use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Seek;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::ptr;
use std::time::Instant;

use super::exec::c_string;
use super::*;

fn sh(script: &str) -> Spawn {
    Spawn::new("/bin/sh").arg("-c").arg(script)
}

/// Runs it to the end with its output in a file; returns both.
fn output(spawn: Spawn) -> (Exit, String) {
    let mut file = tempfile::tempfile().expect("file");
    let fd = file.try_clone().expect("dup").into();
    let mut child = spawn.fd(fd, 1).spawn().expect("spawn");
    let exit = child.wait().expect("wait");
    file.rewind().expect("rewind");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    (exit, text)
}

fn file_with(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("file");
    io::Write::write_all(&mut file, text.as_bytes()).expect("write");
    file.rewind().expect("rewind");
    file.into()
}

fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: {what} needs root");
    }
    root
}

#[test]
fn exit_codes_and_signals_are_told() {
    assert_eq!(output(sh("exit 3")).0, Exit::Code(3));
    assert_eq!(output(sh("kill -9 $$")).0, Exit::Signal(9));
    assert_eq!(Exit::Signal(9).to_string(), "signal 9");
}

#[test]
fn what_is_no_namespace_is_named() {
    let spawn = sh("exit 0").namespace(file_with(""));
    let error = spawn.spawn().expect_err("an ordinary file");
    assert!(
        error.to_string().ends_with("failed to enter a namespace"),
        "{error}"
    );
    if is_root("entering a namespace") {
        let own = File::open("/proc/self/ns/cgroup").expect("open");
        let (exit, text) = output(sh("readlink /proc/self/ns/cgroup").namespace(own.into()));
        assert!(exit.success());
        let wanted = std::fs::read_link("/proc/self/ns/cgroup").expect("link");
        assert_eq!(Path::new(text.trim()), wanted);
    }
}

#[test]
fn environment_is_only_what_is_given() {
    let (_, text) = output(Spawn::new("/usr/bin/env").env("ONE", "1").env("TWO", "a=b"));
    assert_eq!(text, "ONE=1\nTWO=a=b\n");
    assert_eq!(output(Spawn::new("/usr/bin/env")).1, "");
}

#[test]
fn descriptors_arrive_under_their_numbers() {
    let spawn = sh("cat <&7; cat <&5; cat <&0")
        .env("PATH", "/usr/bin:/bin")
        .fd(file_with("seven "), 7)
        .fd(file_with("five "), 5)
        .fd(file_with("in"), 0);
    assert_eq!(output(spawn).1, "seven five in");
}

#[test]
fn numbers_that_overlap_sources_are_kept_apart() {
    // Ask for each source under the other's number.
    let (a, b) = (file_with("a"), file_with("b"));
    let (na, nb) = (a.as_raw_fd(), b.as_raw_fd());
    let spawn = sh(&format!("cat /proc/self/fd/{na} /proc/self/fd/{nb}"))
        .env("PATH", "/usr/bin:/bin")
        .fd(a, nb)
        .fd(b, na);
    assert_eq!(output(spawn).1, "ba");
}

#[test]
fn nothing_else_is_inherited() {
    // One without CLOEXEC, as a careless library would leave it.
    let leak = file_with("leak");
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).expect("setfd");
    let spawn =
        sh("i=0; while [ $i -lt 200 ]; do [ -L /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done")
            .fd(file_with(""), 9);
    let (_, text) = output(spawn);
    let seen: BTreeSet<&str> = text.split_whitespace().collect();
    assert_eq!(seen, BTreeSet::from(["0", "1", "2", "9"]));
    drop(leak);
}

#[test]
fn signals_are_as_new() {
    // The test runner ignores SIGPIPE; the child must not.
    let (_, text) = output(Spawn::new("/bin/cat").arg("/proc/self/status"));
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        let want = format!("{name}:\t0000000000000000");
        assert!(text.lines().any(|l| l == want), "{text}");
    }
}

#[test]
fn groups_and_sessions_are_its_own() {
    let stat = |group| {
        let (_, text) = output(Spawn::new("/bin/cat").arg("/proc/self/stat").group(group));
        let mut fields = text.split(' ');
        let pid = fields.next().expect("pid").to_owned();
        let rest: Vec<String> = fields.skip(3).take(2).map(str::to_owned).collect();
        (pid, rest)
    };
    let (pid, rest) = stat(Group::Session);
    assert_eq!(rest, [pid.clone(), pid]);
    let (pid, rest) = stat(Group::Own);
    assert_eq!(rest[0], pid);
    assert_ne!(rest[1], pid);
}

#[test]
fn working_directory_is_the_given_one() {
    let dir = tempfile::tempdir().expect("dir");
    let fd = File::open(dir.path()).expect("open").into();
    let (_, text) = output(Spawn::new("/bin/pwd").arg("-P").cwd(fd));
    let want = dir.path().canonicalize().expect("canonical");
    assert_eq!(Path::new(text.trim_end()), want);
}

#[test]
fn failures_name_the_step_and_leave_nothing() {
    let error = Spawn::new("/nonexistent/criu").spawn().expect_err("fails");
    assert_eq!(
        error.to_string(),
        "cannot start /nonexistent/criu: failed to execute it"
    );
    let kind = error.io_error().map(io::Error::kind);
    assert_eq!(kind, Some(io::ErrorKind::NotFound));
    let error = sh("true\0").spawn().expect_err("fails");
    assert!(error.io_error().is_none());
    let error = sh("true").fd(file_with(""), -1).spawn().expect_err("fails");
    assert!(matches!(error, SpawnError::Invalid { .. }));
}

#[test]
fn waiting_has_a_limit_and_a_drop_kills() {
    let mut child = Spawn::new("/bin/sleep").arg("100").spawn().expect("spawn");
    let start = Instant::now();
    let waited = child.wait_timeout(Duration::from_millis(30)).expect("wait");
    assert_eq!(waited, None);
    assert!(start.elapsed() >= Duration::from_millis(30));
    let pid = child.pid();
    drop(child);
    assert!(rustix::process::test_kill_process(pid).is_err());

    let mut child = Spawn::new("/bin/sleep").arg("100").spawn().expect("spawn");
    child.kill(Signal::TERM).expect("kill");
    assert_eq!(child.wait().expect("wait"), Exit::Signal(15));
    assert_eq!(child.wait().expect("again"), Exit::Signal(15));
    child
        .kill(Signal::TERM)
        .expect("an ended child is no error");
}

#[test]
fn many_threads_spawn_without_mixing_descriptors() {
    std::thread::scope(|scope| {
        for t in 0..4 {
            scope.spawn(move || {
                for i in 0..10 {
                    let word = format!("{t}-{i}");
                    let spawn = sh("cat <&6")
                        .env("PATH", "/usr/bin:/bin")
                        .fd(file_with(&word), 6);
                    assert_eq!(output(spawn).1, word);
                }
            });
        }
    });
}

#[test]
fn privileged_mounts_end_with_the_program() {
    if !is_root("a mount namespace") {
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    std::fs::create_dir(&source).expect("mkdir");
    std::fs::create_dir(&target).expect("mkdir");
    std::fs::write(source.join("file"), "inside").expect("write");
    let plan = || MountPlan {
        binds: vec![Bind {
            source: source.clone(),
            target: target.clone(),
        }],
        ..MountPlan::default()
    };
    let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let script = format!(
        "cat {0}/file; grep -c ' {0} .* shared:' /proc/self/mountinfo",
        target.display()
    );
    let (_, text) = output(sh(&script).env("PATH", "/usr/bin:/bin").mounts(plan()));
    assert_eq!(text, "inside1\n");
    let after = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert_eq!(before, after);

    let bad = MountPlan {
        binds: vec![Bind {
            source: dir.path().join("absent"),
            target,
        }],
        ..MountPlan::default()
    };
    let error = sh("true").mounts(bad).spawn().expect_err("fails");
    assert!(error.to_string().contains("absent to"), "{error}");
}

/// The host's mounts are shared on a systemd machine. In a scratch namespace that is made
/// so, a bind must not come back, and a mount of the host must still arrive.
#[test]
fn privileged_nothing_propagates_to_a_shared_host() {
    if !is_root("a mount namespace") {
        return;
    }
    // This test again as the "host", with a shared mount to work on.
    const INNER: &str = "CRYO_TEST_SHARED_HOST";
    let me = std::env::current_exe().expect("self");
    if std::env::var_os(INNER).is_none() {
        let dir = tempfile::tempdir().expect("dir");
        let spawn = Spawn::new(me)
            .args(["--exact", "--nocapture"])
            .arg("spawn::tests::privileged_nothing_propagates_to_a_shared_host")
            .env(INNER, dir.path())
            .mounts(MountPlan::default());
        let (exit, text) = output(spawn);
        assert!(exit.success(), "{text}");
        return;
    }
    let dir = PathBuf::from(std::env::var_os(INNER).expect("dir"));
    mount("none", &dir, "tmpfs", 0);
    mount("none", &dir, "", libc::MS_SHARED);
    let (source, target) = (dir.join("source"), dir.join("target"));
    for path in [&source, &target, &dir.join("late")] {
        std::fs::create_dir(path).expect("mkdir");
    }
    // The source is a shared mount too, as an overlay under a shared parent is.
    mount("none", &source, "tmpfs", 0);
    std::fs::create_dir(source.join("sub")).expect("mkdir");
    let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let plan = MountPlan {
        binds: vec![Bind {
            source,
            target: target.clone(),
        }],
        ..MountPlan::default()
    };
    let (out, theirs) = crate::scm::pair().expect("pair");
    let script = format!(
        "mount -t tmpfs none {0}/sub && echo ready >&8; read x <&8; \
             grep -c ' {1}/late ' /proc/self/mountinfo",
        target.display(),
        dir.display()
    );
    let mut file = tempfile::tempfile().expect("file");
    let mut child = sh(&script)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .fd(theirs, 8)
        .fd(file.try_clone().expect("dup").into(), 1)
        .mounts(plan)
        .spawn()
        .expect("spawn");
    let ready = crate::scm::recv(out.as_fd(), 64)
        .expect("recv")
        .expect("ready");
    assert_eq!(ready.0, b"ready\n");
    let during = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert_eq!(before, during, "a bind came back");
    mount("none", &dir.join("late"), "tmpfs", 0);
    // One byte: the shell reads byte by byte and would lose the rest of a packet.
    crate::scm::send(out.as_fd(), b"\n", &[]).expect("send");
    child.wait().expect("wait");
    file.rewind().expect("rewind");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "1\n", "a mount of the host did not arrive");
}

fn mount(source: &str, target: &Path, fstype: &str, flags: libc::c_ulong) {
    let c = |s: &OsStr| c_string(s).expect("string");
    let (source, target) = (c(source.as_ref()), c(target.as_os_str()));
    let fstype = c(fstype.as_ref());
    // SAFETY: three NUL-terminated strings that outlive the call.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            flags,
            ptr::null(),
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn no_descriptor_is_leaked() {
    // In a process of its own: other tests open descriptors at the same time.
    const INNER: &str = "CRYO_TEST_FD_COUNT";
    if std::env::var_os(INNER).is_none() {
        let spawn = Spawn::new(std::env::current_exe().expect("self"))
            .args(["--exact", "spawn::tests::no_descriptor_is_leaked"])
            .env(INNER, "1");
        let (exit, text) = output(spawn);
        assert!(exit.success(), "{text}");
        return;
    }
    let count = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let before = count();
    for _ in 0..5 {
        let extra = file_with("x");
        sh("exit 1")
            .fd(extra, 4)
            .spawn()
            .expect("spawn")
            .wait()
            .expect("wait");
        Spawn::new("/nonexistent").spawn().expect_err("fails");
    }
    assert_eq!(count(), before);
    let raw = file_with("kept").into_raw_fd();
    assert_eq!(count(), before + 1);
    // SAFETY: `raw` was owned by us until into_raw_fd just now.
    drop(unsafe { OwnedFd::from_raw_fd(raw) });
}
