def pipes():
    "pipe | what was in it comes out, then what is written after"
    r, w = os.pipe()
    os.write(w, b"before")
    yield
    os.write(w, b"after")
    same(os.read(r, 100), b"beforeafter")


def fifos():
    "named fifo | what was in it comes out"
    os.mkfifo("/dev/shm/fifo")
    f = os.open("/dev/shm/fifo", os.O_RDWR)
    os.write(f, b"before")
    yield
    same(os.read(f, 100), b"before")


def offsets():
    "open file | offset, append flag, close-on-exec, a shared description stays shared"
    f = os.open("/dev/shm/offset", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(f, b"0123456789")
    os.lseek(f, 4, 0)
    other = os.dup(f)
    os.set_inheritable(other, True)
    yield
    same(os.read(f, 2), b"45")
    same(os.read(other, 2), b"67")
    assert fcntl.fcntl(f, fcntl.F_GETFL) & os.O_APPEND
    same((os.get_inheritable(f), os.get_inheritable(other)), (False, True))


def deleted_files():
    "deleted file that is open | content, size and no name"
    f = os.open("/dev/shm/deleted", os.O_RDWR | os.O_CREAT)
    os.write(f, b"x" * 5000)
    os.unlink("/dev/shm/deleted")
    yield
    same(os.pread(f, 10000, 0), b"x" * 5000)
    same(os.fstat(f).st_nlink, 0)
    assert not os.path.exists("/dev/shm/deleted")


def nameless_files():
    "O_TMPFILE | content"
    f = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE)
    os.write(f, b"nameless")
    yield
    same(os.pread(f, 100, 0), b"nameless")


def deleted_on_the_root():
    "deleted file of the root file system that is open | content"
    f = os.open("/deleted", os.O_RDWR | os.O_CREAT)
    os.write(f, b"of the root")
    os.unlink("/deleted")
    yield
    same(os.pread(f, 100, 0), b"of the root")


def working_directories():
    "open directory | entries made after the restore are seen through it"
    os.mkdir("/dev/shm/folder")
    f = os.open("/dev/shm/folder", os.O_RDONLY)
    yield
    write("/dev/shm/folder/new", "")
    same(os.listdir(f), ["new"])


def memfds():
    "memfd | content, seals, a mapping of it"
    f = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
    os.write(f, b"m" * 4096)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(f, fcntl.F_ADD_SEALS, seals)
    memory = mmap.mmap(f, 4096)
    yield
    same(fcntl.fcntl(f, fcntl.F_GET_SEALS), seals)
    memory[0:3] = b"new"
    same(os.pread(f, 5, 0), b"newmm")


def eventfds():
    "eventfd | its count"
    f = os.eventfd(7, os.EFD_NONBLOCK)
    yield
    same(os.eventfd_read(f), 7)
    refused(11, os.eventfd_read, f)


def timerfds():
    "timerfd | interval, and that it goes on"
    f = os.timerfd_create(time.CLOCK_MONOTONIC)
    os.timerfd_settime(f, initial=3600, interval=0.01)
    yield
    remains, interval = os.timerfd_gettime(f)
    same(round(interval, 3), 0.01)
    assert 3500 < remains < 3600, remains
    os.timerfd_settime(f, initial=0.01, interval=0.01)
    assert os.read(f, 8)


def signalfds():
    "signalfd | a signal that was pending, and one that comes after"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGWINCH])
    mask = struct.pack("Q", 1 << (signal.SIGUSR2 - 1) | 1 << (signal.SIGWINCH - 1))
    f = checked(libc.signalfd(-1, mask, 0))
    os.kill(os.getpid(), signal.SIGUSR2)
    yield
    assert readable(f)
    same(struct.unpack("I", os.read(f, 128)[:4]), (signal.SIGUSR2,))
    os.kill(os.getpid(), signal.SIGWINCH)
    same(struct.unpack("I", os.read(f, 128)[:4]), (signal.SIGWINCH,))


def epolls():
    "epoll | what it watches, edge-triggered, nested, and its data"
    r, w = os.pipe()
    inner, outer = select.epoll(), select.epoll()
    inner.register(r, select.EPOLLIN | select.EPOLLET)
    outer.register(inner.fileno(), select.EPOLLIN)
    yield
    os.write(w, b"x")
    same(outer.poll(5), [(inner.fileno(), select.EPOLLIN)])
    same(inner.poll(5), [(r, select.EPOLLIN)])
    same(inner.poll(0), [])


def inotifies():
    "inotify | its watch sees what is made after the restore"
    os.mkdir("/dev/shm/watched")
    f = checked(libc.inotify_init())
    watch = checked(libc.inotify_add_watch(f, b"/dev/shm/watched", 0x100))
    yield
    write("/dev/shm/watched/new", "")
    assert readable(f), "no event"
    same(struct.unpack("iI", os.read(f, 4096)[:8]), (watch, 0x100))


def socketpairs():
    "unix socket pair | what was queued, then both ways"
    a, b = socket.socketpair()
    a.send(b"before")
    yield
    same(b.recv(100), b"before")
    b.send(b"after")
    same(a.recv(100), b"after")


def datagram_pairs():
    "unix datagram pair | borders of queued messages"
    a, b = socket.socketpair(type=socket.SOCK_DGRAM)
    a.send(b"one")
    a.send(b"two")
    yield
    same((b.recv(100), b.recv(100)), (b"one", b"two"))


def passed_descriptors():
    "descriptor on its way through a unix socket | arrives, and is the pipe"
    a, b = socket.socketpair()
    r, w = os.pipe()
    os.write(w, b"inside")
    socket.send_fds(a, [b"x"], [r])
    os.close(r)
    yield
    _, (got,), _, _ = socket.recv_fds(b, 10, 1)
    same(os.read(got, 100), b"inside")


def unix_listeners():
    "listening unix socket with a name | takes a client after the restore"
    s = socket.socket(socket.AF_UNIX)
    s.bind("/dev/shm/socket")
    s.listen()
    yield
    client = socket.socket(socket.AF_UNIX)
    client.connect("/dev/shm/socket")
    server, _ = s.accept()
    client.send(b"hello")
    same(server.recv(100), b"hello")


def abstract_listeners():
    "listening abstract unix socket | takes a client after the restore"
    s = socket.socket(socket.AF_UNIX)
    s.bind("\0abstract")
    s.listen()
    yield
    client = socket.socket(socket.AF_UNIX)
    client.connect("\0abstract")
    s.accept()


def tcp_listeners():
    "listening TCP socket | address, options, takes a client after the restore"
    loopback_up()
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.bind(("127.0.0.1", 4000))
    s.listen()
    yield
    same(s.getsockname(), ("127.0.0.1", 4000))
    same(s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
    client = socket.create_connection(("127.0.0.1", 4000), timeout=5)
    server, _ = s.accept()
    client.send(b"hello")
    same(server.recv(100), b"hello")


def tcp6_listeners():
    "listening TCP socket for IPv6 and IPv4 | takes a client after the restore"
    s = socket.create_server(("::", 4001), family=socket.AF_INET6, dualstack_ipv6=True)
    yield
    socket.create_connection(("127.0.0.1", 4001), timeout=5)
    s.accept()


def udp_sockets():
    "UDP sockets, one connected | addresses, and a message after the restore"
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 4000))
    server.settimeout(5)
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect(("127.0.0.1", 4000))
    client.settimeout(5)
    name = client.getsockname()
    yield
    same(client.getsockname(), name)
    client.send(b"question")
    said, peer = server.recvfrom(100)
    same((said, peer), (b"question", name))
    server.sendto(b"answer", peer)
    same(client.recv(100), b"answer")


def netlink_sockets():
    "netlink socket | answers after the restore"
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.bind((0, 0))
    yield
    s.settimeout(5)
    s.send(struct.pack("=IHHIIBxHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))
    assert s.recv(65536)


def pseudoterminals():
    "pseudoterminal of the container's own | raw mode, size, both ways"
    master, slave = os.openpty()
    mode = termios.tcgetattr(slave)
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 44, 0, 0))
    yield
    same(termios.tcgetattr(slave)[3], mode[3])
    same(struct.unpack("HH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))[:4]), (33, 44))
    os.write(master, b"x")
    same(os.read(slave, 10), b"x")


def devices():
    "/dev/null, /dev/zero, /dev/urandom | still the devices"
    null, zero, random = (os.open(f"/dev/{n}", os.O_RDWR) for n in ("null", "zero", "urandom"))
    yield
    same(os.write(null, b"x"), 1)
    same(os.read(zero, 4), bytes(4))
    assert os.read(random, 16) != os.read(random, 16)


def pidfds():
    "pidfd of a child | tells its end"
    child = os.fork()
    if child == 0:
        signal.pause()
    f = os.pidfd_open(child)
    yield
    assert not readable(f, 0)
    signal.pidfd_send_signal(f, signal.SIGKILL)
    assert readable(f)
    same(os.waitpid(child, 0), (child, 9))


def mappings():
    "shared and private mappings | what a parent and a child write to each other; copy on write"
    shared, private = mmap.mmap(-1, 8192), mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared[0:6], private[0:6] = b"before", b"before"
    r, w = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(r, 1)
        shared[0:6], private[0:6] = b"after!", b"after!"
        os._exit(0)
    yield
    same((shared[0:6], private[0:6]), (b"before", b"before"))
    os.write(w, b"x")
    os.waitpid(child, 0)
    same((shared[0:6], private[0:6]), (b"after!", b"before"))


def file_mappings():
    "shared mapping of a file | what is written through it is in the file"
    with open("/dev/shm/mapped", "wb+") as f:
        f.write(b"x" * 4096)
        f.flush()
        memory = mmap.mmap(f.fileno(), 4096)
    yield
    memory[0:5] = b"after"
    memory.flush()
    same(read("/dev/shm/mapped")[:6], "afterx")


def advice():
    "memory with advice: huge pages, not for a fork, not for a core file, zeroed in a fork | content and advice"
    memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    size = 2 << 20
    for n, word in enumerate((14, 10, 16, 18)):
        memory.madvise(word, n * size, size)
        memory[n * size:n * size + 4] = b"word"
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    def flags(n):
        found = None
        for line in open("/proc/self/smaps"):
            head = line.split()[0].split("-")
            if len(head) == 2 and int(head[0], 16) <= address + n * size < int(head[1], 16):
                found = True
            if found and line.startswith("VmFlags:"):
                return line.split()[1:]
    for n, flag in enumerate(("hg", "dc", "dd", "wf")):
        assert flag in flags(n), (flag, flags(n))
    yield
    for n, flag in enumerate(("hg", "dc", "dd", "wf")):
        same(memory[n * size:n * size + 4], b"word")
        assert flag in flags(n), (flag, flags(n))


def locked():
    "locked memory | content, and is locked"
    memory = mmap.mmap(-1, 16384, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:4] = b"word"
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    checked(libc.mlock(ctypes.c_void_p(address), 16384))
    yield
    same((memory[:4], status("VmLck")), (b"word", "16 kB"))


def packets():
    "packet and raw sockets | see what is sent after the restore"
    loopback_up()
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packet.bind(("lo", 0))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    yield
    packet.settimeout(5)
    raw.settimeout(5)
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"a word", ("127.0.0.1", 4999))
    # Others send there, too.
    for s in (packet, raw):
        while not s.recv(2000).endswith(b"a word"):
            pass


def shared_segments():
    "System V shared memory, semaphores and messages | content, values, order"
    libc.shmat.restype = ctypes.c_void_p
    segment = checked(libc.shmget(0x10, 8192, 0o1600))
    memory = libc.shmat(segment, None, 0)
    ctypes.memmove(memory, b"word", 4)
    semaphores = checked(libc.semget(0x20, 2, 0o1600))
    checked(libc.semctl(semaphores, 1, 16, 7))
    queue = checked(libc.msgget(0x30, 0o1600))
    for word in (b"one", b"two"):
        checked(libc.msgsnd(queue, struct.pack("l8s", 1, word), 8, 0))
    yield
    same(ctypes.string_at(memory, 4), b"word")
    same(libc.shmget(0x10, 0, 0), segment)
    same((libc.semget(0x20, 0, 0), libc.semctl(semaphores, 1, 12)), (semaphores, 7))
    buffer = ctypes.create_string_buffer(16)
    found = [checked(libc.msgrcv(queue, buffer, 8, 0, 0)) and buffer.raw[8:11] for _ in range(2)]
    same(found, [b"one", b"two"])


def loopback_up():
    s = socket.socket(type=socket.SOCK_DGRAM)
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))


def loopback():
    "loopback device of an own network namespace | is up"
    yield
    assert int(read("/sys/class/net/lo/flags"), 16) & 1
