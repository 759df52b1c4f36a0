# The namespaces are those of a container beside this one, which runs all the time.
def inode(kind):
    return os.readlink(f"/proc/self/ns/{kind}")


before = {kind: inode(kind) for kind in ("net", "ipc", "uts", "pid")}


def network():
    "network namespace by path | is that one, and a listening socket in it is reached"
    s = socket.socket()
    s.bind(("127.0.0.1", 4000))
    s.listen()
    yield
    same(inode("net"), before["net"])
    same(s.getsockname(), ("127.0.0.1", 4000))


def ipc():
    "ipc namespace by path | is that one"
    yield
    same(inode("ipc"), before["ipc"])


def uts():
    "uts namespace by path | is that one"
    yield
    same(inode("uts"), before["uts"])
