def cgroup_mount():
    "cgroup mount | shows the container's own cgroup, which has this process"
    yield
    folder = "/sys/fs/cgroup/" + ("memory/" if os.path.isdir("/sys/fs/cgroup/memory") else "")
    pids = read(folder + "cgroup.procs").split()
    assert str(os.getpid()) in pids, pids


def limits():
    "limits that the new spec changes: memory, pids, cpu | the new ones hold"
    def limit(v1, v2):
        path = "/sys/fs/cgroup/" + (v1 if os.path.exists("/sys/fs/cgroup/" + v1) else v2)
        return read(path).split()[0]
    def all():
        return [limit("memory/memory.limit_in_bytes", "memory.max"), limit("pids/pids.max", "pids.max"),
                limit("cpu/cpu.cfs_quota_us", "cpu.max")]
    same(all(), [str(64 << 20), "50", "50000"])
    yield
    same(all(), [str(96 << 20), "60", "80000"])


def paths():
    "/proc/self/cgroup | names the new container's"
    before = read("/proc/self/cgroup")
    yield
    assert read("/proc/self/cgroup") != before, before
