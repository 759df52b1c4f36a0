# What every container of a pod has, as the kubelet makes it; its sources are others after the restore.
def managed_files():
    "/etc/hosts, /etc/resolv.conf | those of the new pod"
    assert read("/etc/hosts") == "first\n" and "first.example" in read("/etc/resolv.conf")
    yield
    same(read("/etc/hosts"), "second\n")
    assert "second.example" in read("/etc/resolv.conf"), read("/etc/resolv.conf")


def termination_log():
    "termination log | is written on the node"
    write("/dev/termination-log", "before\n")
    yield
    with open("/dev/termination-log", "a") as f:
        f.write("after\n")
    same(read("/dev/termination-log"), "before\nafter\n")


def secrets():
    "tmpfs with a service account's token, read-only | the new token, not to be written"
    same(read("/var/run/secrets/token"), "first\n")
    yield
    same(read("/var/run/secrets/token"), "second\n")
    refused(30, write, "/var/run/secrets/token", "x")


def empty_dirs():
    "emptyDir on disk and in memory | what came with the volume is there, open files go on"
    files = []
    for path in ("/disk/log", "/memory/log"):
        files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND))
        os.write(files[-1], b"before ")
    yield
    for f, path in zip(files, ("/disk/log", "/memory/log")):
        os.write(f, b"after")
        same(read(path), "before after")


def shared_memory():
    "/dev/shm of the pod | is the new pod's, 64 MiB"
    yield
    write("/dev/shm/x", "x")
    size = os.statvfs("/dev/shm")
    same(size.f_blocks * size.f_frsize, 64 << 20)


def names():
    "host name | the new pod's"
    yield
    same((socket.gethostname(), read("/etc/hostname")), ("second-host", "second-host\n"))


def listeners():
    "listening TCP socket in the pod's network | takes a client of the pod after the restore"
    s = socket.create_server(("0.0.0.0", 4000))
    yield
    client = socket.create_connection(("127.0.0.1", 4000), timeout=5)
    s.accept()
    same(client.getpeername(), ("127.0.0.1", 4000))
