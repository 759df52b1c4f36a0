def namespace():
    "cgroup namespace of its own | the container's cgroup is its root"
    # On v1 that of the memory controller; its unified hierarchy is systemd's alone.
    def own():
        lines = read("/proc/self/cgroup").splitlines()
        return [l for l in lines if ":memory:" in l] or [l for l in lines if l.startswith("0::")]
    assert all(line.endswith(":/") for line in own()), own()
    yield
    assert all(line.endswith(":/") for line in own()), own()


def cgroup_mount():
    "cgroup mount in it | shows the container's own cgroup, which has this process"
    yield
    folder = "/sys/fs/cgroup/" + ("memory/" if os.path.isdir("/sys/fs/cgroup/memory") else "")
    pids = read(folder + "cgroup.procs").split()
    assert str(os.getpid()) in pids, pids
