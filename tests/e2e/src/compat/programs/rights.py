def seccomp():
    "seccomp filter of the spec | mode, and what it refuses"
    refused(1, os.mkdir, "/dev/shm/denied")
    yield
    same(status("Seccomp"), "2")
    refused(1, os.mkdir, "/dev/shm/denied")


def seccomp_of_a_thread():
    "seccomp filter that a child put over it | refuses in the child alone"
    r, w = os.pipe()
    go, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # rmdir answers EPERM.
        program = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 84, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7fff0000)
        code = ctypes.create_string_buffer(program)
        filter = struct.pack("HxxxxxxP", 4, ctypes.addressof(code))
        checked(libc.prctl(38, 1, 0, 0, 0))
        checked(libc.prctl(22, 2, filter))
        os.write(w, b"x")
        os.read(go, 1)
        try:
            os.rmdir("/nothing")
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    os.read(r, 1)
    yield
    refused(2, os.rmdir, "/nothing")
    os.write(tell, b"x")
    same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1)


def capabilities():
    "capabilities | all five sets, one of them dropped by the program itself"
    header, data = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    checked(libc.capget(header, data))
    sets = list(struct.unpack("6I", data))
    sets[0] &= ~1
    checked(libc.capset(header, struct.pack("6I", *sets)))
    keys = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    before = [status(key) for key in keys]
    assert before[1] != before[2], before
    yield
    same([status(key) for key in keys], before)
    refused(1, socket.sethostname, "x")


def no_new_privileges():
    "no_new_privs | is set"
    yield
    same(status("NoNewPrivs"), "1")


def groups():
    "supplementary groups | the same"
    before = status("Groups")
    assert "4321" in before, before
    yield
    same(status("Groups"), before)


def device_rules():
    "device rules | a device that the spec does not allow cannot be opened"
    yield
    os.mknod("/run/fuse", 0o20600, os.makedev(10, 229))
    refused(1, os.open, "/run/fuse", os.O_RDWR)


def root():
    "the root | is the container's own, with no way out"
    yield
    same(os.readlink("/proc/self/root"), "/")
    same(os.stat("/..").st_ino, os.stat("/").st_ino)
