def masked():
    "masked file and folder | empty, and cannot be written"
    yield
    same(os.listdir("/sys/firmware"), [])
    refused(30, os.mkdir, "/sys/firmware/x")
    same(read("/etc/passwd"), "")


def read_only_paths():
    "read-only path | cannot be written"
    yield
    refused(30, write, "/proc/sys/kernel/domainname", "x")
    refused(30, os.mkdir, "/mnt/x")


def read_only_root():
    "read-only root | cannot be written, mounts on it can"
    yield
    refused(30, os.mkdir, "/x")
    write("/run/x", "")


def tmpfs():
    "tmpfs | files, links, owner, mode, times, size limit"
    os.makedirs("/run/folder/below")
    write("/run/folder/file", "content")
    os.symlink("file", "/run/folder/link")
    os.link("/run/folder/file", "/run/folder/hard")
    os.chmod("/run/folder/file", 0o640)
    os.chown("/run/folder/below", 12, 34)
    os.utime("/run/folder/file", (1000, 2000))
    yield
    same(read("/run/folder/link"), "content")
    found = os.stat("/run/folder/file")
    same((found.st_mode & 0o7777, found.st_nlink, int(found.st_mtime)), (0o640, 2, 2000))
    below = os.stat("/run/folder/below")
    same((below.st_uid, below.st_gid), (12, 34))
    size = os.statvfs("/run")
    same(size.f_blocks * size.f_frsize, 64 << 20)


def attributes():
    "extended attributes on a tmpfs | the same"
    # One that each kernel has there: those of users are new since 6.6.
    name, value = "security.capability", struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
    write("/run/attributes", "")
    os.setxattr("/run/attributes", name, value)
    yield
    same(os.getxattr("/run/attributes", name), value)


def shared_memory():
    "/dev/shm | content and mode"
    write("/dev/shm/word", "word")
    yield
    same(read("/dev/shm/word"), "word")
    same(os.stat("/dev/shm").st_mode & 0o7777, 0o1777)


def mount_options():
    "options of the mounts | nosuid, nodev, noexec, ro as before"
    def options():
        fields = [line.split() for line in open("/proc/self/mountinfo")]
        return sorted((f[4], f[5], f[f.index("-") + 1]) for f in fields)
    before = options()
    yield
    same(options(), before)


def propagation():
    "propagation of the mounts | as before"
    def tags():
        fields = [line.split() for line in open("/proc/self/mountinfo")]
        return sorted((f[4], [t.split(":")[0] for t in f[6:f.index("-")]]) for f in fields)
    before = tags()
    yield
    same(tags(), before)


def queues():
    "mqueue file system | is mounted"
    yield
    os.statvfs("/dev/mqueue")
    assert " /dev/mqueue " in read("/proc/self/mountinfo")
