def refused_to_a_child(lock):
    child = os.fork()
    if child == 0:
        try:
            lock(os.open("/dev/shm/locked", os.O_RDWR))
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def posix():
    "record lock (fcntl) | another process does not get it"
    f = os.open("/dev/shm/locked", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
    yield
    assert refused_to_a_child(lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10))
    assert not refused_to_a_child(lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20))


def flock():
    "flock | another open file does not get it"
    f = os.open("/dev/shm/flocked", os.O_RDWR | os.O_CREAT)
    fcntl.flock(f, fcntl.LOCK_EX)
    yield
    other = os.open("/dev/shm/flocked", os.O_RDWR)
    refused(11, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(f, fcntl.LOCK_UN)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
