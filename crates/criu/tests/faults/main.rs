//! The client against a scripted CRIU that dies, lies, hangs and refuses.
//!
//! Every case also checks that no process and no descriptor is left.
#![allow(missing_docs, clippy::unwrap_used)]

mod peer;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cryo_criu::options::{self, Checkpoint, Layer, Raw, Source};
use cryo_criu::request::External;
use cryo_criu::{
    Abort, Cause, Control, Criu, CriuError, DumpOptions, Event, Exit, Notify, Operation, Probe,
    Refusal, RestoreOptions, Version,
};

/// Not a test: the scripted CRIU, when `peer.sh` has started this program.
#[test]
fn peer() {
    if let Ok(script) = std::env::var("CRYO_PEER") {
        peer::play(&script);
        std::process::exit(0);
    }
}

/// A place for one case: a "criu" that plays `script`, images, a work directory.
struct Case {
    dir: tempfile::TempDir,
    criu: Criu,
}

impl Case {
    fn dump(&self) -> DumpOptions {
        let images = File::open(self.dir.path().join("images")).unwrap();
        DumpOptions::new(1, images.into(), self.work())
    }

    fn restore(&self) -> RestoreOptions {
        let images = File::open(self.dir.path().join("images")).unwrap();
        RestoreOptions::new(images.into(), self.work())
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }
}

/// Runs a case alone, and compares descriptors and children before and after.
fn case(script: &str, run: impl FnOnce(&Case)) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["images", "work"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let exe = std::env::current_exe().unwrap();
        std::fs::write(dir.path().join("exe"), exe.to_str().unwrap()).unwrap();
        let criu = dir.path().join(script);
        let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/peer.sh");
        std::os::unix::fs::symlink(peer, &criu).unwrap();
        run(&Case {
            criu: Criu::new(criu),
            dir,
        });
    }
    assert_eq!(fds(), before, "descriptors leaked");
    let any = rustix::process::waitid(
        rustix::process::WaitId::All,
        rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT,
    );
    assert_eq!(any.err(), Some(rustix::io::Errno::CHILD), "a child is left");
}

/// Ends what hangs fast.
fn impatient() -> Control<'static> {
    Control {
        deadline: Some(Instant::now() + Duration::from_millis(100)),
        grace: Duration::from_millis(200),
        ..Control::default()
    }
}

fn patient() -> Control<'static> {
    Control {
        deadline: Some(Instant::now() + Duration::from_secs(30)),
        grace: Duration::from_secs(10),
        ..Control::default()
    }
}

fn dump_error(script: &str, control: &Control<'_>, check: impl FnOnce(CriuError)) {
    case(script, |c| {
        let error = c.criu.dump(c.dump(), &mut (), control).unwrap_err();
        let text = error.to_string();
        assert!(
            !text.contains("errno 0") && !text.contains("RLIMIT"),
            "{text}"
        );
        check(error);
    });
}

/// As the options ask for it, where memory is tracked.
fn pre_dump(case: &Case) -> Result<(), CriuError> {
    let mut layer = Layer::<Checkpoint>::new(Source::Request);
    layer.put("pre-dump", Raw::Bool(true)).unwrap();
    layer.put("parent-path", Raw::Text("../first")).unwrap();
    let mut probe = Probe::new(Version::new(4, 2, 1));
    probe.mem_track = true;
    let options = options::resolve(&[&layer], &probe).unwrap();
    let dump = options.apply(case.dump());
    case.criu.pre_dump(dump, &mut (), &Control::default())
}

#[test]
fn a_pre_dump_takes_memory_and_is_answered_as_one() {
    case("pre-dumps", |case| pre_dump(case).unwrap());
}

#[test]
fn a_pre_dump_that_fails_says_why() {
    case("fails-to-pre-dump", |case| {
        let error = pre_dump(case).unwrap_err();
        assert!(
            error.to_string().contains("racking memory")
                || error
                    .failure()
                    .is_some_and(|f| f.diagnosis.to_string().contains("racking memory")),
            "{error}"
        );
    });
}

#[test]
fn a_pre_dump_answered_as_a_dump_is_no_success() {
    case("wrong-type", |case| {
        let error = pre_dump(case).unwrap_err();
        assert!(matches!(error, CriuError::Protocol { .. }), "{error}");
    });
}

#[test]
fn tracked_memory_is_what_the_probe_says() {
    case("tracks", |case| {
        assert!(case.criu.probe().unwrap().mem_track)
    });
}

#[test]
fn a_dump_that_works() {
    struct Recorder(Vec<Event>);
    impl Notify for Recorder {
        fn notify(&mut self, event: &Event, fd: Option<OwnedFd>) -> Result<(), Refusal> {
            assert!(fd.is_none());
            self.0.push(event.clone());
            Ok(())
        }
        fn more_external(&mut self) -> Vec<External> {
            vec![External::mount("/late", "/late").unwrap()]
        }
    }
    case("works", |c| {
        let mut seen = Recorder(Vec::new());
        c.criu.dump(c.dump(), &mut seen, &patient()).unwrap();
        let want = [
            Event::PreDump,
            Event::NetworkLock,
            Event::QueryExtFiles,
            Event::PostDump,
        ];
        assert_eq!(seen.0, want);
    });
}

#[test]
fn a_death_in_the_middle_is_told() {
    dump_error("dies", &patient(), |e| match e {
        CriuError::Died {
            exit, operation, ..
        } => {
            assert_eq!((exit, operation), (Exit::Signal(6), Operation::Dump));
        }
        other => panic!("{other}"),
    });
}

#[test]
fn a_death_is_seen_while_others_hold_the_connection() {
    dump_error("leaves-a-holder", &patient(), |e| {
        assert!(
            matches!(
                e,
                CriuError::Died {
                    exit: Exit::Signal(9),
                    ..
                }
            ),
            "{e}"
        );
    });
}

#[test]
fn an_exit_without_an_answer_is_a_death() {
    dump_error("exits-silently", &patient(), |e| {
        assert!(
            matches!(
                e,
                CriuError::Died {
                    exit: Exit::Code(0),
                    ..
                }
            ),
            "{e}"
        );
    });
}

#[test]
fn a_program_that_cannot_start_shows_its_words() {
    dump_error("talks-and-exits", &patient(), |e| {
        assert!(
            matches!(
                e,
                CriuError::Died {
                    exit: Exit::Code(127),
                    ..
                }
            ),
            "{e}"
        );
        assert!(e.to_string().contains("libnl-3.so.200"), "{e}");
    });
}

#[test]
fn nonsense_is_a_broken_protocol() {
    for script in [
        "garbage",
        "wrong-type",
        "empty-type",
        "unheard-type",
        "nameless-pid",
    ] {
        dump_error(script, &patient(), |e| {
            assert!(matches!(e, CriuError::Protocol { .. }), "{script}: {e}");
        });
    }
}

#[test]
fn privileged_an_oversized_message_is_a_broken_protocol() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a socket buffer of that size needs root");
        return;
    }
    dump_error("oversize", &patient(), |e| {
        assert!(matches!(e, CriuError::Protocol { .. }), "{e}");
        assert!(e.to_string().contains("over the limit"), "{e}");
    });
}

#[test]
fn a_failure_names_its_cause_and_remedy() {
    for (script, cause) in [
        ("fails", Cause::TcpEstablished),
        ("disk-full", Cause::DiskFull),
        ("fails-without-log", Cause::Unknown),
    ] {
        dump_error(script, &patient(), |e| match &e {
            CriuError::Failed { failure, .. } => {
                assert_eq!(failure.diagnosis.cause, cause);
                assert!(e.to_string().contains(cause.remedy()), "{e}");
                assert_eq!(failure.log.is_some(), cause != Cause::Unknown);
            }
            other => panic!("{other}"),
        });
    }
}

#[test]
fn a_link_in_place_of_the_log_is_not_read() {
    dump_error("fails-with-log-link", &patient(), |e| {
        assert_eq!(e.failure().unwrap().log, None);
    });
}

#[test]
fn a_hang_past_the_deadline_is_killed() {
    dump_error("hangs", &impatient(), |e| {
        assert!(
            matches!(e, CriuError::DeadlineExceeded { killed: true, .. }),
            "{e}"
        );
    });
}

#[test]
fn a_late_question_is_refused_and_undone() {
    let control = Control {
        grace: Duration::from_secs(5),
        ..impatient()
    };
    dump_error("slow", &control, |e| {
        assert!(
            matches!(e, CriuError::DeadlineExceeded { killed: false, .. }),
            "{e}"
        );
    });
}

#[test]
fn another_thread_can_end_it() {
    case("hangs", |c| {
        let abort = Abort::new().unwrap();
        abort.trigger();
        let control = Control {
            abort: Some(&abort),
            grace: Duration::from_millis(200),
            ..patient()
        };
        let error = c.criu.dump(c.dump(), &mut (), &control).unwrap_err();
        assert!(
            matches!(error, CriuError::Cancelled { killed: true, .. }),
            "{error}"
        );
    });
    case("slow", |c| {
        let abort = Abort::new().unwrap();
        let control = Control {
            abort: Some(&abort),
            grace: Duration::from_secs(5),
            ..patient()
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                abort.trigger();
            });
            let error = c.criu.dump(c.dump(), &mut (), &control).unwrap_err();
            assert!(
                matches!(error, CriuError::Cancelled { killed: false, .. }),
                "{error}"
            );
        });
    });
}

#[test]
fn a_finished_dump_stays_finished() {
    // The program stays after its answer: killed, but the dump is done.
    case("hangs-after-answer", |c| {
        let control = Control {
            grace: Duration::from_millis(100),
            ..patient()
        };
        c.criu.dump(c.dump(), &mut (), &control).unwrap();
    });
}

#[test]
fn a_closed_connection_without_an_exit_is_killed() {
    let control = Control {
        grace: Duration::from_millis(200),
        ..patient()
    };
    dump_error("closes", &control, |e| {
        assert!(
            matches!(
                e,
                CriuError::Died {
                    exit: Exit::Signal(9),
                    ..
                }
            ),
            "{e}"
        );
    });
}

#[test]
fn our_refusal_comes_back_in_our_words() {
    case("asks-post-dump", |c| {
        let mut no = |event: &Event, _: Option<OwnedFd>| {
            assert_eq!(*event, Event::PostDump);
            Err(Refusal::from("the archive does not fit"))
        };
        let error = c.criu.dump(c.dump(), &mut no, &patient()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "criu dump was refused at post-dump: the archive does not fit"
        );
    });
}

#[test]
fn a_question_of_a_newer_criu_is_passed_on() {
    case("unknown-question", |c| {
        let mut seen = None;
        let mut note = |event: &Event, _: Option<OwnedFd>| {
            seen = Some(event.clone());
            Ok(())
        };
        c.criu.dump(c.dump(), &mut note, &patient()).unwrap();
        assert_eq!(seen, Some(Event::Other("pre-stream".to_owned())));
    });
}

#[test]
fn a_panic_in_a_callback_leaves_nothing() {
    case("works", |c| {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut bang = |_: &Event, _: Option<OwnedFd>| panic!("bang");
            let _ = c.criu.dump(c.dump(), &mut bang, &patient());
        });
        assert!(std::panic::catch_unwind(run).is_err());
    });
}

#[test]
fn a_terminal_is_handed_over() {
    case("terminal", |c| {
        let mut master = None;
        let mut take = |event: &Event, fd: Option<OwnedFd>| {
            assert_eq!(*event, Event::OrphanPtsMaster);
            master = fd;
            Ok(())
        };
        let done = c.criu.restore(c.restore(), &mut take, &patient()).unwrap();
        assert_eq!(done.pid, 4711);
        assert!(master.is_some());
    });
}

#[test]
fn a_restore_gives_its_descriptors_and_tells_the_pid() {
    case("restores", |c| {
        let path = c.dir.path().join("inherited");
        std::fs::write(&path, "inherited").unwrap();
        let mut options = c.restore();
        let file = File::open(&path).unwrap();
        options.inherit_fds = vec![("pipe:[1]".to_owned(), file.into())];
        let done = c.criu.restore(options, &mut (), &patient()).unwrap();
        assert_eq!(done.pid, 4711);
    });
    case("restores-nobody", |c| {
        let error = c
            .criu
            .restore(c.restore(), &mut (), &patient())
            .unwrap_err();
        assert!(matches!(error, CriuError::Protocol { .. }), "{error}");
    });
}

#[test]
fn a_refusal_before_resuming_kills_the_tree() {
    case("restores-child", |c| {
        let mut no = |event: &Event, _: Option<OwnedFd>| match event {
            Event::PreResume => Err(Refusal::from("it has too many capabilities")),
            _ => Ok(()),
        };
        let error = c
            .criu
            .restore(c.restore(), &mut no, &patient())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "criu restore was refused at pre-resume: it has too many capabilities"
        );
    });
}

#[test]
fn a_probe_is_remembered_and_an_old_criu_refused() {
    let runs = |c: &Case| {
        let text = std::fs::read_to_string(c.dir.path().join("runs")).unwrap();
        text.lines().count()
    };
    case("new", |c| {
        let probe = c.criu.probe().unwrap();
        assert_eq!(probe.version.to_string(), "4.2.1");
        assert!(probe.lazy_pages && !probe.mem_track);
        assert_eq!(c.criu.probe().unwrap(), probe);
        assert_eq!(runs(c), 1);
    });
    case("old", |c| {
        for _ in 0..2 {
            let text = c.criu.probe().unwrap_err().to_string();
            let path = c.criu.binary().display().to_string();
            assert!(text.contains("3.2.1") && text.contains("4.0") && text.contains(&path));
        }
        assert_eq!(runs(c), 1);
    });
    for script in ["odd", "exits-silently"] {
        case(script, |c| {
            let error = c.criu.probe().unwrap_err();
            assert!(
                matches!(error, CriuError::Protocol { .. } | CriuError::Died { .. }),
                "{error}"
            );
        });
    }
}

#[test]
fn a_missing_criu_says_where_it_was_looked_for() {
    case("gone", |c| {
        let gone = Path::new("/nonexistent/criu");
        for error in [
            Criu::find(Some(gone)).unwrap_err(),
            Criu::new(gone).probe().unwrap_err(),
            Criu::new(gone)
                .dump(c.dump(), &mut (), &patient())
                .unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("/nonexistent/criu") && text.contains("install"),
                "{text}"
            );
        }
        let text = std::fs::write(c.dir.path().join("plain"), "no program");
        text.unwrap();
        let error = Criu::new(c.dir.path().join("plain"))
            .dump(c.dump(), &mut (), &patient())
            .unwrap_err();
        assert!(matches!(error, CriuError::Spawn(_)), "{error}");
    });
}

#[test]
fn a_missing_work_directory_is_told() {
    case("works", |c| {
        std::fs::remove_dir(c.work()).unwrap();
        let error = c.criu.dump(c.dump(), &mut (), &patient()).unwrap_err();
        assert!(error.to_string().contains("work directory"), "{error}");
    });
}

#[test]
fn bad_options_start_nothing() {
    case("works", |c| {
        for bad in [
            DumpOptions { pid: 0, ..c.dump() },
            DumpOptions {
                log_file: "../x".to_owned(),
                ..c.dump()
            },
        ] {
            let error = c.criu.dump(bad, &mut (), &patient()).unwrap_err();
            assert!(matches!(error, CriuError::BadOption(_)), "{error}");
        }
        assert!(!c.dir.path().join("runs").exists());
        assert!(External::mount("a]b", "x").is_err());
    });
}
