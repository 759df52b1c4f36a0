def namespace():
    "cgroup namespace of its own | the container's cgroup is its root"
    own = [line for line in read("/proc/self/cgroup").splitlines() if ":memory:" in line or line.startswith("0::")]
    assert any(line.endswith(":/") for line in own), own
    yield
    own = [line for line in read("/proc/self/cgroup").splitlines() if ":memory:" in line]
    assert all(line.endswith(":/") for line in own), own


def cgroup_mount():
    "cgroup mount in it | shows the container's own cgroup, which has this process"
    yield
    folder = "/sys/fs/cgroup/" + ("memory/" if os.path.isdir("/sys/fs/cgroup/memory") else "")
    pids = read(folder + "cgroup.procs").split()
    assert str(os.getpid()) in pids, pids
