//! The client against a real criu, as root on a machine that has one (the lab):
//!
//! ```text
//! cargo build -p cryo-criu --example real
//! hack/lab exec node-a /opt/cryo/bin/examples/real
//! ```
//!
//! Prints a line per step and ends with 1 if one is untrue.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cryo_criu::{
    Bind, Control, Criu, CriuError, DumpOptions, Event, External, MountPlan, Refusal,
    RestoreOptions,
};
use cryo_sys::spawn::{Child, Group, Spawn};
use rustix::process::{Pid, Signal};

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i >$0; sleep 0.05; done";
const PATH: &str = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let base = PathBuf::from("/tmp/cryo-real");
    let _ = std::fs::remove_dir_all(&base);
    std::fs::create_dir_all(&base).unwrap();
    let criu = Criu::find(None).unwrap();
    println!("probe: {:?}", criu.probe().unwrap());
    let mut bad = 0;
    let mut step = |name: &str, run: &dyn Fn(&Place)| {
        let place = Place::new(&criu, base.join(name));
        let start = Instant::now();
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&place))).is_ok();
        println!(
            "{} {name} ({} ms)",
            if ok { "ok  " } else { "FAIL" },
            start.elapsed().as_millis()
        );
        bad += u8::from(!ok);
    };
    step("leave-running", &leave_running);
    step("refused-post-dump", &refused_post_dump);
    for event in ["pre-dump", "network-lock", "query-ext-files", "post-dump"] {
        step(&format!("killed-at-{event}"), &|p| killed_at(p, event));
    }
    step("killed-in-memory", &killed_in_memory);
    step("killed-in-memory-threads", &killed_in_memory_threads);
    step("deadline-at-question", &deadline_at_question);
    step("restore", &restore);
    step("restore-refused", &restore_refused);
    step("restore-killed", &restore_killed);
    step("container", &|p| container(p, "private"));
    step("container-of-shared-mounts", &|p| {
        // As on a systemd machine: the container's mounts are slaves of shared ones.
        let dir = p.dir.as_path();
        rustix::mount::mount_bind(dir, dir).unwrap();
        rustix::mount::mount_change(dir, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        container(p, "slave");
        rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!after.contains("cryo-real"), "{after}");
    ExitCode::from(u8::from(bad > 0))
}

struct Place {
    criu: Criu,
    dir: PathBuf,
}

impl Place {
    fn new(criu: &Criu, dir: PathBuf) -> Self {
        for sub in ["images", "work", "work2"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        Self {
            criu: criu.clone(),
            dir,
        }
    }

    fn counter(&self) -> PathBuf {
        self.dir.join("count")
    }

    fn app(&self) -> Child {
        let app = Spawn::new("/bin/sh")
            .args(["-c", COUNT])
            .arg(self.counter())
            .env("PATH", PATH)
            .group(Group::Session)
            .spawn()
            .unwrap();
        self.counts(Duration::from_secs(3));
        app
    }

    fn read(&self) -> u64 {
        let text = std::fs::read_to_string(self.counter()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Waits until the application has counted on.
    fn counts(&self, limit: Duration) {
        let (from, start) = (self.read(), Instant::now());
        while self.read() <= from + 1 {
            assert!(start.elapsed() < limit, "it does not count on from {from}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn images(&self) -> OwnedFd {
        File::open(self.dir.join("images")).unwrap().into()
    }

    fn dump(&self, pid: Pid) -> DumpOptions {
        DumpOptions {
            leave_running: true,
            ..DumpOptions::new(pid.as_raw_pid(), self.images(), self.dir.join("work"))
        }
    }

    fn restore(&self) -> RestoreOptions {
        RestoreOptions::new(self.images(), self.dir.join("work2"))
    }

    fn dump_and_end(&self) {
        let mut app = self.app();
        let options = DumpOptions {
            leave_running: false,
            ..self.dump(app.pid())
        };
        self.criu
            .dump(options, &mut (), &Control::default())
            .unwrap();
        app.wait().unwrap();
    }
}

fn leave_running(p: &Place) {
    let app = p.app();
    let mut seen = Vec::new();
    let mut note = |e: &Event, _: Option<OwnedFd>| {
        seen.push(e.name().to_owned());
        Ok(())
    };
    p.criu
        .dump(p.dump(app.pid()), &mut note, &Control::default())
        .unwrap();
    println!("     asked: {seen:?}");
    p.counts(Duration::from_secs(3));
}

fn refused_post_dump(p: &Place) {
    let app = p.app();
    let options = DumpOptions {
        leave_running: false,
        ..p.dump(app.pid())
    };
    let mut no = |e: &Event, _: Option<OwnedFd>| match e {
        Event::PostDump => Err(Refusal::from("no")),
        _ => Ok(()),
    };
    let error = p
        .criu
        .dump(options, &mut no, &Control::default())
        .unwrap_err();
    println!("     {error}");
    p.counts(Duration::from_secs(3));
}

/// Our only other child is the application; criu has `swrk` in its command line.
fn kill_criu() {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let ours = stat
            .split(") ")
            .nth(1)
            .is_some_and(|rest| rest.split(' ').nth(1) == Some(&std::process::id().to_string()));
        if ours && (line.contains("criu") && !line.contains("count")) {
            rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            return;
        }
    }
    panic!("no criu to kill");
}

fn killed_at(p: &Place, event: &str) {
    let app = p.app();
    let mut killed = false;
    let mut kill = |e: &Event, _: Option<OwnedFd>| {
        if e.name() == event {
            killed = true;
            kill_criu();
        }
        Ok(())
    };
    let result = p
        .criu
        .dump(p.dump(app.pid()), &mut kill, &Control::default());
    if !killed {
        println!("     {event} was not asked");
        return;
    }
    println!("     {}", result.unwrap_err());
    p.counts(Duration::from_secs(3));
}

/// A deadline in the middle of the memory, without grace: criu is killed there.
fn killed_in_memory(p: &Place) {
    big(
        p,
        "import sys,time\nb=bytearray(1<<30)\nfor i in range(0,1<<30,4096): b[i]=1\n",
    );
}

fn killed_in_memory_threads(p: &Place) {
    big(
        p,
        "import sys,time,threading\nb=bytearray(1<<30)\nfor i in range(0,1<<30,4096): b[i]=1\n\
         for _ in range(8): threading.Thread(target=lambda: time.sleep(9999),daemon=True).start()\n",
    );
}

fn big(p: &Place, setup: &str) {
    let program = format!(
        "{setup}i=0\nwhile True:\n i+=1\n assert b[4096*(i%9999)]==1\n open(sys.argv[1],'w').write(str(i))\n time.sleep(0.05)\n"
    );
    let app = Spawn::new("/usr/bin/python3")
        .args(["-c", &program])
        .arg(p.counter())
        .env("PATH", PATH)
        .group(Group::Session)
        .spawn()
        .unwrap();
    p.counts(Duration::from_secs(30));
    for ms in [20, 60, 150, 300] {
        let control = Control {
            deadline: Some(Instant::now() + Duration::from_millis(ms)),
            grace: Duration::ZERO,
            ..Control::default()
        };
        match p.criu.dump(p.dump(app.pid()), &mut (), &control) {
            Ok(_) => println!("     {ms} ms: done before"),
            Err(e) => println!("     {ms} ms: {e}"),
        }
        p.counts(Duration::from_secs(5));
        let status = std::fs::read_to_string(format!("/proc/{}/status", app.pid().as_raw_pid()));
        let status = status.unwrap();
        assert!(status.contains("TracerPid:\t0"), "{status}");
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", app.pid().as_raw_pid())).unwrap();
    let shared = maps
        .lines()
        .filter(|l| l.contains("rwxs") || l.contains("rwxp"))
        .count();
    println!("     executable writable maps left in the application: {shared}");
    p.criu
        .dump(p.dump(app.pid()), &mut (), &Control::default())
        .unwrap();
    p.counts(Duration::from_secs(5));
}

fn deadline_at_question(p: &Place) {
    let app = p.app();
    let control = Control {
        deadline: Some(Instant::now()),
        ..Control::default()
    };
    let error = p
        .criu
        .dump(p.dump(app.pid()), &mut (), &control)
        .unwrap_err();
    println!("     {error}");
    assert!(matches!(
        error,
        CriuError::DeadlineExceeded { killed: false, .. }
    ));
    p.counts(Duration::from_secs(3));
}

fn end(pid: i32) {
    let pid = Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    // Ours by rst_sibling.
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
}

fn no_children() {
    let any = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
    assert_eq!(any.err(), Some(rustix::io::Errno::CHILD), "a child is left");
}

fn restore(p: &Place) {
    p.dump_and_end();
    let before = p.read();
    let mut seen = Vec::new();
    let mut note = |e: &Event, _: Option<OwnedFd>| {
        seen.push(e.name().to_owned());
        Ok(())
    };
    let done = p
        .criu
        .restore(p.restore(), &mut note, &Control::default())
        .unwrap();
    println!("     asked: {seen:?}");
    p.counts(Duration::from_secs(3));
    assert!(p.read() < before + 100);
    end(done.pid);
    no_children();
}

fn restore_refused(p: &Place) {
    p.dump_and_end();
    for at in ["pre-restore", "post-restore", "pre-resume"] {
        let before = p.read();
        let mut no = |e: &Event, _: Option<OwnedFd>| {
            if e.name() == at {
                Err(Refusal::from("no"))
            } else {
                Ok(())
            }
        };
        let error = p
            .criu
            .restore(p.restore(), &mut no, &Control::default())
            .unwrap_err();
        println!("     {error}");
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(p.read(), before, "an instruction ran");
        no_children();
    }
}

fn restore_killed(p: &Place) {
    p.dump_and_end();
    for at in ["pre-restore", "post-restore", "pre-resume"] {
        let before = p.read();
        let mut kill = |e: &Event, _: Option<OwnedFd>| {
            if e.name() == at {
                kill_criu();
            }
            Ok(())
        };
        let error = p
            .criu
            .restore(p.restore(), &mut kill, &Control::default())
            .unwrap_err();
        println!("     {error}");
        std::thread::sleep(Duration::from_millis(200));
        println!("     counted {} more", p.read() - before);
        no_children();
    }
}

/// Own mount and pid namespaces on a root of its own, with a volume; restored through a mount
/// plan, so that nothing is mounted here.
fn container(p: &Place, propagation: &str) {
    let (root, volume, criu_root) = (
        p.dir.join("root"),
        p.dir.join("volume"),
        p.dir.join("criu-root"),
    );
    for dir in ["proc", "bin", "dev", "vol", "old", "tmp"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::create_dir_all(&criu_root).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let script = format!(
        "mount --bind {root} {root} && mount --bind {volume} {root}/vol && \
         mount -t proc proc {root}/proc && cd {root} && busybox pivot_root . old && \
         exec /bin/busybox sh -c '/bin/busybox umount -l /old; exec <>/tmp/io >&0 2>&0; {count}' /vol/count",
        root = root.display(),
        volume = volume.display(),
        count = COUNT.replace("sleep", "/bin/busybox sleep"),
    );
    let mut app = Spawn::new("/usr/bin/unshare")
        .args([
            "-mpf",
            "--propagation",
            propagation,
            "--kill-child",
            "setsid",
            "/bin/sh",
            "-c",
            &script,
        ])
        .env("PATH", PATH)
        .group(Group::Session)
        .spawn()
        .unwrap();
    let inner = Place {
        criu: p.criu.clone(),
        dir: volume.clone(),
    };
    inner.counts(Duration::from_secs(3));
    let children = format!("/proc/{0}/task/{0}/children", app.pid().as_raw_pid());
    let init: i32 = std::fs::read_to_string(children)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let external = |value: &Path| vec![External::mount("/vol", value.to_str().unwrap()).unwrap()];
    let options = DumpOptions {
        leave_running: false,
        // unshare made its session outside.
        shell_job: true,
        external: external(Path::new("/vol")),
        root: Some(root.clone()),
        ..p.dump(Pid::from_raw(init).unwrap())
    };
    p.criu.dump(options, &mut (), &Control::default()).unwrap();
    app.wait().unwrap();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let options = RestoreOptions {
        shell_job: true,
        external: external(&volume),
        root: Some(criu_root.clone()),
        mounts: Some(MountPlan {
            binds: vec![Bind {
                source: root,
                target: criu_root,
            }],
            ..MountPlan::default()
        }),
        ..p.restore()
    };
    let done = p
        .criu
        .restore(options, &mut (), &Control::default())
        .unwrap();
    inner.counts(Duration::from_secs(3));
    let during = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(before, during, "a mount is left here");
    let theirs = std::fs::read_to_string(format!("/proc/{}/mountinfo", done.pid)).unwrap();
    println!(
        "     mounts: {}",
        theirs.trim().replace('\n', "\n             ")
    );
    end(done.pid);
    no_children();
}
