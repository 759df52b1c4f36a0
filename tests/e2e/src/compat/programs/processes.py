def forked(run):
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(77)
    return child


def ids():
    "child with a session and a process group of its own | pid, parent, group, session"
    def run():
        os.setsid()
        signal.pause()
    child = forked(run)
    while os.getsid(child) != child:
        time.sleep(0.01)
    yield
    same((os.getsid(child), os.getpgid(child), status("PPid", child)), (child, child, str(os.getpid())))
    os.kill(child, 9)
    same(os.waitpid(child, 0), (child, 9))


def groups():
    "process group of a child and a grandchild | a signal to the group ends both"
    r, w = os.pipe()
    def run():
        os.setpgid(0, 0)
        forked(signal.pause)
        os.write(w, b"x")
        signal.pause()
    child = forked(run)
    os.close(w)
    os.read(r, 1)
    yield
    same(os.getpgid(child), child)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Both had the other end.
    assert readable(r)
    same(os.read(r, 1), b"")


def leaderless():
    "process whose session's and group's leader has ended | session and group are as before"
    r, w = os.pipe()
    def leader():
        os.setsid()
        os.write(w, b"%d " % forked(signal.pause))
        os._exit(0)
    first = forked(leader)
    os.waitpid(first, 0)
    child = int(os.read(r, 100))
    yield
    same((os.getsid(child), os.getpgid(child)), (first, first))
    os.killpg(first, signal.SIGKILL)
    same(os.waitpid(child, 0), (child, 9))


def scheduling():
    "scheduling policy | the same"
    def run():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        signal.pause()
    child = forked(run)
    while os.sched_getscheduler(child) != os.SCHED_BATCH:
        time.sleep(0.01)
    yield
    same(os.sched_getscheduler(child), os.SCHED_BATCH)
    os.kill(child, 9)
    os.waitpid(child, 0)


def processors():
    "processors that a child is bound to | the same"
    child = forked(signal.pause)
    bound = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(child, bound)
    yield
    same(os.sched_getaffinity(child), bound)
    os.kill(child, 9)
    os.waitpid(child, 0)


def zombies():
    "zombie | its exit code is there to be taken"
    child = forked(lambda: os._exit(42))
    while status("State", child)[0] != "Z":
        time.sleep(0.01)
    yield
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 42)


def orphans():
    "orphan that the first process took over | is still its child"
    r, w = os.pipe()
    def run():
        os.write(w, b"%d " % forked(signal.pause))
        os._exit(0)
    os.waitpid(forked(run), 0)
    orphan = int(os.read(r, 100))
    yield
    same(status("PPid", orphan), "1")
    os.kill(orphan, 9)
    same(os.waitpid(orphan, 0), (orphan, 9))


def signals():
    "signal handlers, masks, pending signals | a blocked signal that was sent is delivered once unblocked"
    got = []
    signal.signal(signal.SIGHUP, lambda *_: got.append("HUP"))
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    os.kill(os.getpid(), signal.SIGHUP)
    yield
    same(signal.sigpending(), {signal.SIGHUP})
    same(signal.getsignal(signal.SIGQUIT), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    same(got, ["HUP"])


def threads():
    "twenty threads | each goes on with its own count, thread ids and names stay"
    go, counts = threading.Event(), [0] * 20
    def count(n):
        libc.prctl(15, f"thread{n}".encode(), 0, 0, 0)
        counts[n] = n
        go.wait()
        counts[n] += 100
    all = [threading.Thread(target=count, args=(n,)) for n in range(20)]
    for thread in all:
        thread.start()
    while counts != list(range(20)):
        time.sleep(0.01)
    before = [t.native_id for t in all]
    yield
    same(sorted(int(t) for t in os.listdir("/proc/self/task")), sorted([os.getpid(), *before]))
    same(read(f"/proc/self/task/{before[7]}/comm"), "thread7\n")
    go.set()
    for thread in all:
        thread.join()
    same(counts, [n + 100 for n in range(20)])


def sleepers():
    "child asleep in poll, nanosleep and a futex | wakes in its time"
    child = forked(lambda: (time.sleep(0.2), select.select([], [], [], 0.2), os._exit(5)))
    yield
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 5)


def sleeps():
    "child in nanosleep that does not go on after EINTR | sleeps on"
    child = subprocess.Popen(["busybox", "sleep", "1000"])
    while "nanosleep" not in read(f"/proc/{child.pid}/wchan"):
        time.sleep(0.01)
    yield
    time.sleep(0.2)
    same(child.poll(), None)
    child.kill()
    child.wait()


def timers():
    "interval timer | what remains, the interval, and that it rings"
    rung = threading.Event()
    signal.signal(signal.SIGALRM, lambda *_: rung.set())
    signal.setitimer(signal.ITIMER_REAL, 3600, 1)
    yield
    remains, interval = signal.getitimer(signal.ITIMER_REAL)
    same(round(interval), 1)
    assert 3500 < remains <= 3600, remains
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert rung.wait(5)


def limits():
    "resource limits, nice value, umask, oom_score_adj | the same"
    resource.setrlimit(resource.RLIMIT_CORE, (4096, 8192))
    os.nice(3)
    os.umask(0o027)
    write("/proc/self/oom_score_adj", "123")
    yield
    same(resource.getrlimit(resource.RLIMIT_CORE), (4096, 8192))
    same(resource.getrlimit(resource.RLIMIT_NOFILE), (1024, 1024))
    same(os.getpriority(os.PRIO_PROCESS, 0), 3)
    same(os.umask(0), 0o027)
    same(read("/proc/self/oom_score_adj").strip(), "123")


def places():
    "working directory, root, environment, command line, name | the same"
    os.mkdir("/dev/shm/cwd")
    os.mkdir("/dev/shm/root")
    os.chdir("/dev/shm/cwd")
    libc.prctl(15, b"renamed", 0, 0, 0)
    command, environment = read("/proc/self/cmdline"), read("/proc/self/environ")
    def jailed():
        os.chroot("/dev/shm/root")
        signal.pause()
    child = forked(jailed)
    while os.readlink(f"/proc/{child}/root") == "/":
        time.sleep(0.01)
    yield
    same(os.getcwd(), "/dev/shm/cwd")
    same(read("/proc/self/comm"), "renamed\n")
    same((read("/proc/self/cmdline"), read("/proc/self/environ")), (command, environment))
    same(os.readlink(f"/proc/{child}/root"), "/dev/shm/root")
    os.kill(child, 9)
    os.waitpid(child, 0)


def clocks():
    "clocks | the monotonic one does not go back, and leaves out the time in between"
    before = time.monotonic(), time.time()
    yield
    assert before[0] <= time.monotonic() < before[0] + 600
    assert time.time() > before[1]


def execs():
    "an exec that runs during the checkpoint with exit | is no part of it: it is gone, the container goes on"
    yield
    running = [p for p in os.listdir("/proc") if p.isdigit() and "of-an-" "exec" in read(f"/proc/{p}/cmdline")]
    same(running, [])
