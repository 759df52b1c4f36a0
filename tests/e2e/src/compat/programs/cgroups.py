def own(controller):
    """The folder of this process's cgroup: what a mount of v1 shows, and a place in one of v2, which shows the node's."""
    folder = "/sys/fs/cgroup/" + controller
    if os.path.isdir(folder):
        return folder
    return "/sys/fs/cgroup" + next(l for l in read("/proc/self/cgroup").splitlines() if l.startswith("0::"))[3:]


def cgroup_mount():
    "cgroup mount | shows the container's own cgroup, which has this process"
    yield
    pids = read(own("memory") + "/cgroup.procs").split()
    assert str(os.getpid()) in pids, pids


def limits():
    "limits that the new spec changes: memory, pids, cpu | the new ones hold"
    def limit(controller, v1, v2):
        path = own(controller) + "/"
        return read(path + (v1 if os.path.exists(path + v1) else v2)).split()[0]
    def all():
        return [limit("memory", "memory.limit_in_bytes", "memory.max"), limit("pids", "pids.max", "pids.max"),
                limit("cpu", "cpu.cfs_quota_us", "cpu.max")]
    same(all(), [str(64 << 20), "50", "50000"])
    yield
    same(all(), [str(96 << 20), "60", "80000"])


def paths():
    "/proc/self/cgroup | names the new container's"
    before = read("/proc/self/cgroup")
    yield
    assert read("/proc/self/cgroup") != before, before
