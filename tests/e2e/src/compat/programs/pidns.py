def pids():
    "pid namespace by path | is that one, with the same pid in it"
    before, pid = os.readlink("/proc/self/ns/pid"), os.getpid()
    yield
    same((os.readlink("/proc/self/ns/pid"), os.getpid()), (before, pid))
    assert pid > 1, pid


def children():
    "child in it | the same pid and parent"
    child = os.fork()
    if child == 0:
        signal.pause()
    yield
    same(status("PPid", child), str(os.getpid()))
    os.kill(child, 9)
    os.waitpid(child, 0)
