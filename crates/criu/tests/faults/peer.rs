//! The scripted CRIU.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cryo_criu::proto::{
    CriuReq, CriuResp, DumpResp, Features, Notification, ReqType, RestoreResp, VersionResp,
};
use cryo_sys::scm;
use prost::Message;

struct Peer(OwnedFd);

impl Peer {
    fn request(&self) -> CriuReq {
        let (data, _) = scm::recv(self.0.as_fd(), 1 << 20).unwrap().unwrap();
        CriuReq::decode(&*data).unwrap()
    }

    fn say(&self, response: &CriuResp) {
        scm::send(self.0.as_fd(), &response.encode_to_vec(), &[]).unwrap();
    }

    /// Asks and returns the answer; `None` if the client is gone.
    fn ask_with(&self, script: &str, pid: Option<i32>, fd: Option<&OwnedFd>) -> Option<CriuReq> {
        let message = CriuResp {
            r#type: ReqType::Notify.into(),
            success: true,
            notify: Some(Notification {
                script: Some(script.to_owned()),
                pid,
            }),
            ..CriuResp::default()
        };
        let fds: Vec<_> = fd.map(AsFd::as_fd).into_iter().collect();
        scm::send(self.0.as_fd(), &message.encode_to_vec(), &fds).ok()?;
        let (data, _) = scm::recv(self.0.as_fd(), 1 << 20).ok()??;
        Some(CriuReq::decode(&*data).unwrap())
    }

    fn ask(&self, script: &str) -> bool {
        self.ask_with(script, None, None)
            .and_then(|a| a.notify_success)
            .unwrap_or(false)
    }

    fn done(&self, kind: ReqType, success: bool) {
        self.say(&CriuResp {
            r#type: kind.into(),
            success,
            dump: (kind == ReqType::Dump).then_some(DumpResp {
                restored: Some(false),
            }),
            // What CRIU says even of a success.
            cr_errmsg: Some("rlimit: Can't setup RLIMIT_NOFILE for self".to_owned()),
            ..CriuResp::default()
        });
    }
}

fn log(lines: &[&str]) {
    let mut text = String::from(
        "(00.000001) Error (criu/cr-restore.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n",
    );
    for line in lines {
        text.push_str(&format!("(00.002041)     12: Error (criu/x.c:1): {line}\n"));
    }
    std::fs::write("dump.log", &text).unwrap();
    std::fs::write("restore.log", &text).unwrap();
}

fn sleep_long() -> ! {
    std::thread::sleep(Duration::from_secs(60));
    std::process::exit(9);
}

pub(crate) fn play(script: &str) {
    let me = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    let sock =
        rustix::process::pidfd_getfd(&me, 3, rustix::process::PidfdGetfdFlags::empty()).unwrap();
    let p = Peer(sock);
    match script {
        "talks-and-exits" => {
            eprintln!("error while loading shared libraries: libnl-3.so.200");
            std::process::exit(127);
        }
        "old" | "new" | "odd" | "tracks" => return play_probe(&p, script),
        _ => {}
    }
    let request = p.request();
    match script {
        "works" => {
            assert!(p.ask("pre-dump") && p.ask("network-lock"));
            let answer = p.ask_with("query-ext-files", None, None).unwrap();
            assert_eq!(answer.opts.unwrap().external, ["mnt[/late]:/late"]);
            assert!(p.ask("post-dump"));
            p.done(ReqType::Dump, true);
        }
        "dies" => {
            p.ask("pre-dump");
            std::process::abort();
        }
        "exits-silently" => {}
        "garbage" => {
            scm::send(p.0.as_fd(), &[0xff; 40], &[]).unwrap();
            sleep_until_closed(&p);
        }
        "wrong-type" => p.done(ReqType::Restore, true),
        "empty-type" => p.done(ReqType::Empty, false),
        "unheard-type" => p.say(&CriuResp {
            r#type: 99,
            success: true,
            ..CriuResp::default()
        }),
        "oversize" => {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&p.0, 1 << 20).unwrap();
            scm::send(p.0.as_fd(), &vec![8; 300 << 10], &[]).unwrap();
            sleep_until_closed(&p);
        }
        "fails" => {
            log(&["inet: Connected TCP socket, consider using --tcp-established option."]);
            p.done(ReqType::Dump, false);
            std::process::exit(1);
        }
        "fails-without-log" => {
            p.done(ReqType::Dump, false);
            std::process::exit(1);
        }
        "fails-with-log-link" => {
            std::os::unix::fs::symlink("/etc/passwd", "dump.log").unwrap();
            p.done(ReqType::Dump, false);
            std::process::exit(1);
        }
        "disk-full" => {
            log(&[
                "Can't write pages: No space left on device",
                "Dumping FAILED.",
            ]);
            p.done(ReqType::Dump, false);
            std::process::exit(1);
        }
        "hangs" => sleep_long(),
        "hangs-after-answer" => {
            p.done(ReqType::Dump, true);
            sleep_long();
        }
        "slow" => {
            std::thread::sleep(Duration::from_millis(300));
            let consent = p.ask("network-lock");
            // Undoing asks too, and that is not refused.
            assert!(p.ask("network-unlock"));
            p.done(ReqType::Dump, consent);
        }
        "asks-post-dump" => {
            let consent = p.ask("post-dump");
            log(&["RPC client reported script error"]);
            p.done(ReqType::Dump, consent);
        }
        "unknown-question" => {
            assert!(p.ask("pre-stream"));
            p.done(ReqType::Dump, true);
        }
        "nameless-pid" => {
            p.ask("setup-namespaces");
        }
        "terminal" => {
            let (a, _b) = scm::pair().unwrap();
            assert!(p.ask_with("orphan-pts-master", None, Some(&a)).is_some());
            done_restore(&p, 4711);
        }
        "restores" => {
            assert_eq!(request.r#type(), ReqType::Restore);
            let inherit = &request.opts.unwrap().inherit_fd;
            assert_eq!((inherit[0].key.as_str(), inherit[0].fd), ("pipe:[1]", 4));
            let text = std::fs::read_to_string("/proc/self/fd/4").unwrap();
            assert_eq!(text, "inherited");
            done_restore(&p, 4711);
        }
        "pre-dumps" => {
            assert_eq!(request.r#type(), ReqType::SinglePreDump);
            let opts = request.opts.unwrap();
            assert_eq!(opts.track_mem, Some(true));
            assert_eq!(opts.parent_img.as_deref(), Some("../first"));
            assert!(p.ask("pre-dump") && p.ask("post-dump"));
            p.done(ReqType::SinglePreDump, true);
        }
        "fails-to-pre-dump" => {
            log(&["Tracking memory is not available. Consider omitting --track-mem option."]);
            p.done(ReqType::SinglePreDump, false);
            std::process::exit(1);
        }
        "restores-nobody" => p.done(ReqType::Restore, true),
        "restores-child" => {
            let mut child = std::process::Command::new("sleep")
                .arg("50")
                .spawn()
                .unwrap();
            let pid = Some(i32::try_from(child.id()).unwrap());
            for script in ["setup-namespaces", "post-restore", "pre-resume"] {
                let answer = p.ask_with(script, pid, None);
                if answer.is_none() || script != "pre-resume" && !consents(answer) {
                    std::process::exit(1);
                }
            }
            let killed = child.wait().unwrap().code().is_none();
            assert!(killed);
            p.done(ReqType::Restore, false);
        }
        other => panic!("no script {other}"),
    }
}

fn consents(answer: Option<CriuReq>) -> bool {
    answer.and_then(|a| a.notify_success).unwrap_or(false)
}

fn done_restore(p: &Peer, pid: i32) {
    p.say(&CriuResp {
        r#type: ReqType::Restore.into(),
        success: true,
        restore: Some(RestoreResp { pid }),
        ..CriuResp::default()
    });
}

fn sleep_until_closed(p: &Peer) {
    let _ = scm::recv(p.0.as_fd(), 64);
}

fn play_probe(p: &Peer, script: &str) {
    let major_number = if script == "old" { 3 } else { 4 };
    let request = p.request();
    assert_eq!(request.r#type(), ReqType::Version);
    assert_eq!(request.keep_open, Some(true));
    p.say(&CriuResp {
        r#type: ReqType::Version.into(),
        success: true,
        version: (script != "odd").then_some(VersionResp {
            major_number,
            minor_number: 2,
            sublevel: Some(1),
            ..VersionResp::default()
        }),
        ..CriuResp::default()
    });
    assert_eq!(p.request().r#type(), ReqType::FeatureCheck);
    p.say(&CriuResp {
        r#type: ReqType::FeatureCheck.into(),
        success: true,
        features: Some(Features {
            mem_track: Some(script == "tracks"),
            lazy_pages: Some(true),
            ..Features::default()
        }),
        ..CriuResp::default()
    });
}
