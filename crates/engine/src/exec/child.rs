//! The forked process on its way to becoming the program: each step is done
//! with as much of the outside's rights as it needs and the next ones allow.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use cryo_sys::{process, sched, scm};
use libcontainer::seccomp::initialize_seccomp;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::passwd;
use super::place::Place;
use super::plan::{Capabilities, Label, Plan};
use crate::program;
use crate::protocol::{Failure, FailureKind};

/// `statfs` of a devpts.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// The message that brings the terminal's master.
const CONSOLE: &[u8] = b"console";

/// Becomes the program; comes back only if that fails.
pub(super) fn run(
    plan: &Plan,
    place: Place,
    init: i32,
    stdio: [Option<OwnedFd>; 3],
    report: BorrowedFd<'_>,
) -> Result<Infallible, Failure> {
    // Nobody inside may trace what still has rights of the outside.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(cannot("hide from tracers"))?;
    process::default_signals().map_err(cannot("reset its signals"))?;
    // These files are the host's, and soon out of reach.
    set_oom_score_adj(plan.oom_score_adj, init)?;
    let labels = plan
        .labels
        .iter()
        .map(open_label)
        .collect::<Result<Vec<_>, _>>()?;
    let stdio = match plan.terminal {
        None => Some(open_stdio(stdio).map_err(cannot("open /dev/null"))?),
        Some(_) => None,
    };

    place.enter().map_err(|(name, e)| {
        other(format!(
            "cannot enter the container's {name} namespace: {e}"
        ))
    })?;
    for (resource, limit) in &plan.limits {
        rustix::process::setrlimit(*resource, *limit).map_err(|e| {
            other(format!(
                "cannot set the limit {resource:?} to {limit:?}: {}",
                io::Error::from(e)
            ))
        })?;
    }
    let user_namespace = place
        .enter_user()
        .map_err(cannot("enter the container's user namespace"))?;
    if user_namespace {
        become_root();
    }
    // The container's root must not be reachable by a descriptor.
    drop(place);
    schedule(plan)?;

    rustix::process::setsid().map_err(cannot("make a session"))?;
    match (stdio, plan.terminal) {
        (Some(stdio), _) => attach(&stdio).map_err(cannot("attach its streams"))?,
        (None, size) => {
            let (master, slave) = open_terminal(plan.uid)?;
            if let Some(size) = size.flatten() {
                rustix::termios::tcsetwinsize(&master, size)
                    .map_err(cannot("size its terminal"))?;
            }
            scm::send(report, CONSOLE, &[master.as_fd()])
                .map_err(cannot("hand its terminal over"))?;
            rustix::process::ioctl_tiocsctty(&slave).map_err(cannot("take its terminal"))?;
            attach(&[slave]).map_err(cannot("attach its terminal"))?;
        }
    }
    process::close_on_exec_from(3).map_err(cannot("close its other files"))?;
    for (mut file, text) in labels {
        file.write_all(text.as_bytes())
            .map_err(|e| other(format!("cannot take the label {text:?}: {e}")))?;
    }

    rustix::process::umask(Mode::empty());
    let entered = enter_cwd(&plan.cwd)?;
    rustix::process::umask(Mode::from_raw_mode(plan.umask));
    drop_bounding(plan.capabilities.bounding).map_err(cannot("drop capabilities"))?;
    become_user(plan, user_namespace)?;
    if !entered {
        // Only the user may enter it, as on a network file system.
        rustix::process::chdir(&plan.cwd).map_err(|e| cwd_failure(&plan.cwd, e))?;
    }
    check_cwd()?;

    let mut env = plan.env.clone();
    if plan.variable("HOME").is_none() {
        env.push(format!("HOME={}", passwd::home(plan.uid)));
    }
    let program =
        program::named(&plan.program, plan.variable("PATH")).map_err(|message| Failure {
            kind: FailureKind::Spec,
            message,
        })?;
    let path = c_string(program.as_os_str().as_bytes())?;
    let args = c_strings(plan.args.clone())?;
    let env = c_strings(env)?;

    let seccomp = |()| -> Result<(), Failure> {
        let Some(profile) = &plan.seccomp else {
            return Ok(());
        };
        initialize_seccomp(profile)
            .map(drop)
            .map_err(|e| other(format!("cannot load the seccomp filter: {e}")))
    };
    // Without no_new_privs a filter needs CAP_SYS_ADMIN; with it, it is the
    // last thing, so that it need not permit what happens before.
    if plan.no_new_privs {
        set_capabilities(&plan.capabilities)?;
        rustix::thread::set_no_new_privs(true).map_err(cannot("set no_new_privs"))?;
        seccomp(())?;
    } else {
        seccomp(())?;
        set_capabilities(&plan.capabilities)?;
    }
    let error = process::execve(&path, &args, &env);
    Err(Failure {
        kind: FailureKind::Spec,
        message: format!("exec {}: {error}", program.display()),
    })
}

fn other(message: String) -> Failure {
    Failure {
        kind: FailureKind::Other,
        message,
    }
}

fn cannot<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Failure {
    move |e| other(format!("the process cannot {what}: {}", e.into()))
}

/// Without a value of its own the process gets the container's, not the low
/// one of the shim.
fn set_oom_score_adj(wanted: Option<i32>, init: i32) -> Result<(), Failure> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse::<i32>().ok()
    };
    let file = "/proc/self/oom_score_adj";
    let value = wanted.or_else(|| read(&format!("/proc/{init}/oom_score_adj")));
    match value {
        Some(value) if read(file) != Some(value) => match std::fs::write(file, value.to_string()) {
            Err(e) if wanted.is_some() => {
                Err(other(format!("cannot set oom_score_adj to {value}: {e}")))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// With the rights of the container's root, as its first process had.
fn schedule(plan: &Plan) -> Result<(), Failure> {
    if let Some((class, level)) = plan.io_priority {
        sched::set_io_priority(class, level).map_err(cannot("set its io priority"))?;
    }
    if let Some(scheduler) = plan.scheduler {
        sched::set_scheduler(scheduler).map_err(cannot("set its scheduler"))?;
    }
    if let Some(domain) = plan.personality {
        sched::set_personality(domain).map_err(cannot("set its personality"))?;
    }
    Ok(())
}

fn open_label(label: &Label) -> Result<(File, String), Failure> {
    let open = |file: &&str| {
        File::options()
            .write(true)
            .open(format!("/proc/self/attr/{file}"))
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for file in label.files {
        match open(file) {
            Ok(file) => return Ok((file, label.text.clone())),
            Err(e) => last = e,
        }
    }
    Err(Failure {
        kind: FailureKind::Spec,
        message: format!("this kernel takes no label {:?}: {last}", label.text),
    })
}

fn open_stdio(stdio: [Option<OwnedFd>; 3]) -> io::Result<Vec<OwnedFd>> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    stdio
        .into_iter()
        .map(|fd| fd.map_or_else(|| null().map(Into::into), Ok))
        .collect()
}

/// Makes these stdin, stdout and stderr; one alone is all three.
fn attach(fds: &[OwnedFd]) -> io::Result<()> {
    let fd = |n: usize| fds.get(n).or(fds.first());
    if let (Some(stdin), Some(stdout), Some(stderr)) = (fd(0), fd(1), fd(2)) {
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
    }
    Ok(())
}

/// Best effort: a user namespace without a root lets nobody make a cwd.
fn become_root() {
    let _ = rustix::thread::set_thread_groups(&[]);
    let _ = rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
    let _ = rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
}

/// A terminal of the container's own, and surely one: the container could have
/// put anything in the place of `/dev/pts/ptmx`.
fn open_terminal(uid: u32) -> Result<(OwnedFd, OwnedFd), Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Opened without effect first: a device's open could have one.
    let path = rustix::fs::openat(
        CWD,
        "/dev/pts/ptmx",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(cannot("find the container's /dev/pts/ptmx"))?;
    let is_ptmx = |fd: &OwnedFd| -> rustix::io::Result<bool> {
        let stat = rustix::fs::fstat(fd)?;
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let fs = rustix::fs::fstatfs(fd)?;
        Ok(device == (5, 2) && u64::try_from(fs.f_type).is_ok_and(|t| t == DEVPTS_MAGIC))
    };
    let strange = || other("the container's /dev/pts/ptmx is no terminal device".to_owned());
    if !is_ptmx(&path).map_err(cannot("look at /dev/pts/ptmx"))? {
        return Err(strange());
    }
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty())
        .map_err(cannot("open a terminal"))?;
    if !is_ptmx(&master).map_err(cannot("look at its terminal"))? {
        return Err(strange());
    }
    rustix::pty::unlockpt(&master).map_err(cannot("unlock its terminal"))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(cannot("open its terminal"))?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None)
        .map_err(cannot("own its terminal"))?;
    Ok((master, slave))
}

/// Whether the folder could be entered already; it is made if it is missing.
fn enter_cwd(cwd: &Path) -> Result<bool, Failure> {
    match rustix::process::chdir(cwd) {
        Ok(()) => return Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => return Ok(false),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(cwd_failure(cwd, e)),
    }
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o755);
    builder
        .recursive(true)
        .create(cwd)
        .map_err(|e| other(format!("cannot make the cwd {}: {e}", cwd.display())))?;
    rustix::process::chdir(cwd).map_err(|e| cwd_failure(cwd, e))?;
    Ok(true)
}

fn cwd_failure(cwd: &Path, error: Errno) -> Failure {
    Failure {
        kind: FailureKind::Spec,
        message: format!("chdir to cwd {}: {}", cwd.display(), io::Error::from(error)),
    }
}

/// A cwd such as `/proc/self/fd/7` must not lead out of the container.
fn check_cwd() -> Result<(), Failure> {
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(Failure {
            kind: FailureKind::Spec,
            message: "the current directory is outside of the container's root".to_owned(),
        }),
    }
}

fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS)
        .map(|n| CapabilitySet::from_bits_retain(1 << n))
        .filter(move |one| set.contains(*one))
}

fn drop_bounding(keep: CapabilitySet) -> rustix::io::Result<()> {
    for one in each(!keep) {
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) => rustix::thread::remove_capability_from_bounding_set(one)?,
            Ok(false) => {}
            // The first number that this kernel does not have.
            Err(Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Changes the ids and keeps the capabilities, in effect too.
fn become_user(plan: &Plan, user_namespace: bool) -> Result<(), Failure> {
    rustix::thread::set_keep_capabilities(true).map_err(cannot("keep its capabilities"))?;
    let groups: Vec<_> = plan.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace may forbid it; then there are none to give up.
        Err(Errno::PERM) if user_namespace && groups.is_empty() => {}
        result => result.map_err(cannot("set its groups"))?,
    }
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(cannot("set its group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(cannot("set its user"))?;
    rustix::thread::set_keep_capabilities(false).map_err(cannot("keep its capabilities"))?;
    let mut sets = rustix::thread::capabilities(None).map_err(cannot("read its capabilities"))?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(cannot("use its capabilities"))
}

fn set_capabilities(wanted: &Capabilities) -> Result<(), Failure> {
    let have = rustix::thread::capabilities(None).map_err(cannot("read its capabilities"))?;
    let missing = wanted.permitted - have.permitted;
    if !missing.is_empty() {
        return Err(Failure {
            kind: FailureKind::Spec,
            message: format!("this node has not the capabilities {missing:?} to give"),
        });
    }
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: wanted.effective,
            permitted: wanted.permitted,
            inheritable: wanted.inheritable,
        },
    )
    .map_err(cannot("set its capabilities"))?;
    for one in each(wanted.ambient) {
        match rustix::thread::configure_capability_in_ambient_set(one, true) {
            // Not permitted and inheritable both: the kernel has no such
            // ambient capability, and runc starts the process without.
            Ok(()) | Err(Errno::PERM) => {}
            Err(e) => return Err(cannot("set its ambient capabilities")(e)),
        }
    }
    Ok(())
}

fn c_strings(strings: Vec<String>) -> Result<Vec<CString>, Failure> {
    strings.into_iter().map(c_string).collect()
}

fn c_string(string: impl Into<Vec<u8>>) -> Result<CString, Failure> {
    CString::new(string).map_err(|_| Failure {
        kind: FailureKind::Spec,
        message: "an argument or variable holds a NUL byte".to_owned(),
    })
}
