# Counts on stdout, ten times a second. Whenever /order appears, a child that had made an object is
# killed, and a new one makes the object named there and says "ready NAME" or "cannot NAME: WHY".
# As an exec with the argument "outside" it is what the container's tree does not have: it binds
# sockets, and leaves its pid in /outsider.
import ctypes, fcntl, mmap, os, resource, select, signal, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
# x86-64.
NR = {"memfd_secret": 447, "landlock_create_ruleset": 444, "fsopen": 430, "open_tree": 428, "io_uring_setup": 425,
      "userfaultfd": 323, "bpf": 321, "seccomp": 317, "sched_setattr": 314, "fanotify_init": 300,
      "perf_event_open": 298, "inotify_init1": 294, "eventfd2": 290, "signalfd4": 289, "timerfd_create": 283,
      "unshare": 272, "mq_unlink": 241, "mq_open": 240, "io_setup": 206, "prctl": 157, "ptrace": 101}
if os.uname().machine != "x86_64":
    NR = {}
FILES, FS, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME = (
    0x400, 0x200, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80)
keep = []


def call(name, *args):
    args = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args]
    rc = libc.syscall(ctypes.c_long(NR[name]), *args)
    if rc < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return rc


def struct_at(data):
    buffer = ctypes.create_string_buffer(data, len(data))
    keep.append(buffer)
    return ctypes.addressof(buffer)


def unshare(flags):
    call("unshare", flags)


def grandchild(work):
    """Runs `work` in a process of its own that stays; what it returns is sent back."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work(theirs)
            theirs.send(b"ok" if answer is None else answer)
        except Exception as e:
            theirs.send(f"{e}".encode())
            os._exit(1)
        ours.close()
        theirs.close()
        while True:
            signal.pause()
    theirs.close()
    answer = ours.recv(1000)
    if answer != b"ok":
        raise OSError(answer.decode(errors="replace"))
    ours.close()
    return pid


def in_a_namespace(flags):
    grandchild(lambda _: unshare(flags))


def in_a_pid_namespace():
    def work(_):
        unshare(NEWPID)
        if os.fork() == 0:
            while True:
                signal.pause()
    grandchild(work)


def in_a_thread(flags):
    result = []
    done = threading.Event()

    def work():
        try:
            unshare(flags)
        except Exception as e:
            result.append(e)
        done.set()
        while True:
            time.sleep(1000)
    threading.Thread(target=work, daemon=True).start()
    done.wait()
    if result:
        raise result[0]


def io_uring():
    fd = call("io_uring_setup", 4, struct_at(bytes(120)))
    keep.append(mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))


def bpf_map():
    # BPF_MAP_CREATE of an array with one entry.
    call("bpf", 0, struct_at(struct.pack("<IIII", 2, 4, 4, 1) + bytes(112)), 128)


def seccomp_filter(flags):
    call("prctl", 38, 1, 0, 0, 0)
    allow = struct_at(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))
    return call("seccomp", 1, flags, struct_at(struct.pack("<HxxxxxxQ", 1, allow)))


def secret_memory():
    fd = call("memfd_secret", 0)
    os.ftruncate(fd, 4096)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0))


def message_queue():
    call("mq_open", b"queue\0", os.O_CREAT | os.O_RDWR, 0o600, 0)
    call("mq_unlink", b"queue\0")


def device(name, major, minor):
    path = f"/tmp/{name}"
    if not os.path.exists(path):
        os.mknod(path, 0o600 | 0o020000, os.makedev(major, minor))
    return os.open(path, os.O_RDWR)


def tun():
    fd = device("tun", 10, 200)
    # TUNSETIFF: IFF_TUN | IFF_NO_PI, under a name that the kernel chooses.
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sh22x", b"", 0x1001))
    return fd


def deleted(size, link=False):
    path = f"/tmp/deleted{size}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, os.urandom(size))
    if link:
        if os.path.exists(path + "-other"):
            os.unlink(path + "-other")
        os.link(path, path + "-other")
    os.unlink(path)
    return fd


def mapped_deleted():
    fd = deleted(3 << 20)
    keep.append(mmap.mmap(fd, 3 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ))
    os.close(fd)


def lock_file(name="lock"):
    f = open(f"/tmp/{name}", "w")
    keep.append(f)
    return f


def lease():
    open("/tmp/lease", "w").close()
    fcntl.fcntl(os.open("/tmp/lease", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)


def unix_outside(kind, path=None):
    s = socket.socket(socket.AF_UNIX, kind)
    s.connect(path or f"/outside-{int(kind)}.sock")
    keep.append(s)


def listening(proto=0):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
    s.bind(("127.0.0.1", 0))
    s.listen(8)
    keep.append(s)
    return s


def tcp(accept):
    server = listening()
    client = socket.create_connection(server.getsockname())
    keep.append(client)
    if accept:
        keep.append(server.accept())


def tcp_closed():
    listening()
    keep.extend([socket.socket(), socket.socket()])


def corked():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("127.0.0.1", 9))
    s.setsockopt(socket.IPPROTO_UDP, 1, 1)
    s.send(b"held back")
    keep.append(s)


def netlink_queue():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    # RTM_GETLINK, all of them.
    s.send(struct.pack("<IHHIIB15x", 32, 18, 0x301, 1, 0, 0))
    keep.append(s)


def udp_queue():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    s.sendto(b"not read", s.getsockname())
    keep.append(s)


def kept_socket(*kind):
    keep.append(socket.socket(*kind))


def foreign_socket():
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(NEWNET)
            foreign = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            socket.send_fds(theirs, [b"ok"], [foreign.fileno()])
        except Exception as e:
            theirs.send(str(e).encode())
        os._exit(0)
    answer, fds, _, _ = socket.recv_fds(ours, 1000, 1)
    os.waitpid(pid, 0)
    if answer != b"ok":
        raise OSError(answer.decode())
    keep.append(fds)


def outside_pidfd():
    with open("/outsider") as f:
        return os.pidfd_open(int(f.read()))


def outside():
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        s = socket.socket(socket.AF_UNIX, kind)
        s.bind(f"/outside-{int(kind)}.sock")
        if kind == socket.SOCK_STREAM:
            s.listen(8)
        keep.append(s)
    with open("/outsider.new", "w") as f:
        f.write(str(os.getpid()))
    os.rename("/outsider.new", "/outsider")
    while True:
        time.sleep(1000)


def empty_namespace():
    r, w = os.pipe()
    r2, w2 = os.pipe()
    pid = os.fork()
    if pid == 0:
        unshare(NEWNET)
        os.write(w, b".")
        os.read(r2, 1)
        os._exit(0)
    os.read(r, 1)
    os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    os.write(w2, b".")
    os.waitpid(pid, 0)


def traced():
    pid = grandchild(lambda _: None)
    # PTRACE_SEIZE
    call("ptrace", 0x4206, pid, 0, 0)


def deadline():
    attr = struct.pack("<IIQiIQQQ", 48, 6, 0, 0, 0, 10_000_000, 100_000_000, 100_000_000)
    call("sched_setattr", 0, struct_at(attr), 0)


def odd_name():
    fcntl.flock(lock_file("a\n\x1b[31m\u202eb" + "x" * 200), fcntl.LOCK_EX)


def many():
    """Twenty processes, each with as many descriptors as it may have, a lock behind each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    fd = os.open("/tmp/many", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    for _ in range(min(limit - 20, 5_000)):
        os.dup(fd)
    for _ in range(19):
        grandchild(lambda _: None)


def zombie():
    if os.fork() == 0:
        os._exit(0)


def epolls():
    inner, outer = select.epoll(), select.epoll()
    inner.register(os.eventfd(0), select.EPOLLIN)
    outer.register(inner.fileno(), select.EPOLLIN)
    keep.extend([inner, outer])


def descriptors_on_their_way():
    a, b = socket.socketpair()
    x, y = socket.socketpair()
    socket.send_fds(a, [b"."], [x.fileno()])
    keep.extend([a, b, y])


def own_pidfd():
    os.pidfd_open(grandchild(lambda _: None))


def tmpfile():
    os.write(os.open("/tmp", os.O_RDWR | os.O_TMPFILE), b"nameless")


def fine():
    import pty
    makers = {
        "eventfd": lambda: os.eventfd(1), "epoll": epolls, "descriptors": descriptors_on_their_way,
        "timerfd": lambda: call("timerfd_create", 1, 0), "signalfd": lambda: call("signalfd4", -1, struct_at(bytes(8)), 8, 0),
        "inotify": lambda: call("inotify_init1", 0), "memfd": lambda: os.memfd_create("x"), "pidfd": own_pidfd,
        "pair": lambda: keep.append(socket.socketpair()), "listening": listening,
        "udp": lambda: kept_socket(socket.AF_INET, socket.SOCK_DGRAM), "udp6": lambda: kept_socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "raw": lambda: kept_socket(socket.AF_INET, socket.SOCK_RAW, 1), "packet": lambda: kept_socket(socket.AF_PACKET, socket.SOCK_RAW),
        "netlink": lambda: kept_socket(socket.AF_NETLINK, socket.SOCK_RAW), "pty": pty.openpty, "zombie": zombie,
        "aio": lambda: call("io_setup", 8, struct_at(bytes(8))), "deleted": lambda: deleted(4096), "tmpfile": tmpfile,
        "seccomp": lambda: seccomp_filter(0), "urandom": lambda: os.open("/dev/urandom", os.O_RDONLY),
        "pipe": os.pipe, "directory": lambda: os.open("/", os.O_RDONLY), "own-namespace": lambda: os.open("/proc/self/ns/net", os.O_RDONLY),
    }
    for name, make in makers.items():
        try:
            make()
        except Exception as e:
            print(f"cannot fine.{name}: {e}", flush=True)


# An anonymous object in a descriptor that python closes when it forgets it is kept by its number.
OBJECTS = {
    "io_uring": io_uring,
    "userfaultfd": lambda: call("userfaultfd", 1),
    "perf-event": lambda: call("perf_event_open", struct_at(struct.pack("<IIQ", 1, 64, 0) + bytes(24) + struct.pack("<Q", 0x60) + bytes(16)), 0, -1, -1, 0),
    "bpf": bpf_map,
    "seccomp-notify": lambda: seccomp_filter(8),
    "landlock": lambda: call("landlock_create_ruleset", struct_at(struct.pack("<Q", 1)), 8, 0),
    "fscontext": lambda: call("fsopen", b"tmpfs\0", 0),
    "fuse": lambda: device("fuse", 10, 229),
    "tun": tun,
    "secret-memory": secret_memory,
    "huge-memfd": lambda: os.memfd_create("huge", os.MFD_HUGETLB),
    # Without a reserve, which no page is taken for.
    "huge-mapping": lambda: mmap.mmap(-1, 2 << 20, flags=0x40000 | 0x4000 | 0x22),
    "message-queue": message_queue,
    "open-tree": lambda: call("open_tree", -100, b"/tmp\0", 1),
    "deleted-large": lambda: deleted(2 << 20),
    "deleted-mapped": mapped_deleted,
    "deleted-linked": lambda: deleted(10, link=True),
    "flock": lambda: fcntl.flock(lock_file(), fcntl.LOCK_EX),
    "posix-lock": lambda: fcntl.lockf(lock_file(), fcntl.LOCK_EX),
    "lease": lease,
    "unix-datagram": lambda: unix_outside(socket.SOCK_DGRAM),
    "unix-stream": lambda: unix_outside(socket.SOCK_STREAM),
    "unix-elsewhere": lambda: unix_outside(socket.SOCK_DGRAM, "/elsewhere.sock"),
    "foreign-socket": foreign_socket,
    "tcp": lambda: tcp(True),
    "tcp-closed": tcp_closed,
    "tcp-in-flight": lambda: tcp(False),
    "mptcp": lambda: listening(262),
    "vsock": lambda: kept_socket(40, socket.SOCK_STREAM),
    "xdp": lambda: kept_socket(44, socket.SOCK_RAW),
    "corked-udp": corked,
    "netlink-queue": netlink_queue,
    "pidfd": outside_pidfd,
    "traced": traced,
    "nested-pid": in_a_pid_namespace,
    "nested-user": lambda: in_a_namespace(NEWUSER),
    "nested-uts": lambda: in_a_namespace(NEWUTS),
    "nested-ipc": lambda: in_a_namespace(NEWIPC),
    "nested-cgroup": lambda: in_a_namespace(NEWCGROUP),
    "nested-time": lambda: in_a_namespace(NEWTIME),
    "nested-net": lambda: in_a_namespace(NEWNET),
    "empty-namespace": empty_namespace,
    "deadline": deadline,
    "thread-files": lambda: in_a_thread(FILES),
    "thread-directory": lambda: in_a_thread(FS),
    "thread-namespace": lambda: in_a_thread(NEWUTS),
    "semaphore": lambda: os.eventfd(3, os.EFD_SEMAPHORE),
    "odd-name": odd_name,
    "many": many,
    "udp-queue": udp_queue,
    "fine": fine,
    "nothing": lambda: None,
}


def make(name):
    os.setpgid(0, 0)
    try:
        keep.append(OBJECTS[name]())
        print(f"ready {name}", flush=True)
    except Exception as e:
        print(f"cannot {name}: {e or type(e).__name__}", flush=True)
    while True:
        time.sleep(1000)


if sys.argv[1:] == ["outside"]:
    outside()
child = None
count = 0
while True:
    print(count, flush=True)
    count += 1
    time.sleep(0.1)
    if os.path.exists("/order"):
        with open("/order") as f:
            order = f.read()
        os.unlink("/order")
        if child:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        child = os.fork()
        if child == 0:
            make(order)
    try:
        # What the killed child leaves behind.
        while os.waitpid(-1, os.WNOHANG)[0] not in (0, child):
            pass
    except ChildProcessError:
        pass
