# What one has with `hostUsers: false` besides: after the restore the pod's users are others on the node.
def changes():
    "changes of the root file system that all may read | new, changed and deleted files, folders, links, modes"
    write("/new", "new")
    write("/etc/group", "changed")
    os.unlink("/etc/passwd")
    os.makedirs("/a/b")
    os.symlink("/new", "/a/b/link")
    os.chmod("/new", 0o755)
    log = os.open("/var-log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(log, b"before ")
    yield
    same((read("/a/b/link"), read("/etc/group")), ("new", "changed"))
    assert not os.path.exists("/etc/passwd")
    same(os.stat("/new").st_mode & 0o7777, 0o755)
    os.write(log, b"after")
    same(read("/var-log"), "before after")
    write("/new", "newer")


def mappings():
    "user namespace | the new pod's, whose users are others on the node"
    maps = [read(f"/proc/self/{n}").split() for n in ("uid_map", "gid_map")]
    same(maps, [["0", "100000", "65536"]] * 2)
    yield
    maps = [read(f"/proc/self/{n}").split() for n in ("uid_map", "gid_map")]
    same(maps, [["0", "300000", "65536"]] * 2)


def owners():
    "owners of files of the image and in volumes | the same users of the container"
    for path in ("/disk/owned", "/memory/owned"):
        write(path, "x")
        os.chown(path, 33, 44)
    seen = lambda path: (os.stat(path).st_uid, os.stat(path).st_gid)
    paths = ("/", "/bin", "/usr/bin", "/etc/hosts", "/var/run/secrets/token", "/disk/owned", "/memory/owned")
    before = [seen(path) for path in paths]
    same(before[0], (0, 0))
    same(before[-2:], [(33, 44)] * 2)
    yield
    same([seen(path) for path in paths], before)


def owners_of_changes():
    "owners of changed files of the root file system | the same users of the container"
    write("/owned", "x")
    os.chown("/owned", 33, 44)
    os.chmod("/owned", 0o4755)
    yield
    seen = os.stat("/owned")
    same((seen.st_uid, seen.st_gid, seen.st_mode & 0o7777), (33, 44, 0o4755))
    os.chown("/owned", 1, 1)


def another_user():
    "child of another user | is that user, may do what it might"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([7])
        os.setgid(44)
        os.setuid(33)
        os.read(reader, 1)
        try:
            open("/etc/shadow-of-root", "w")
            os._exit(1)
        except PermissionError:
            os._exit(20 + (os.getgroups() == [7]))
    while open(f"/proc/{pid}/status").read().find("Uid:\t33") < 0:
        time.sleep(0.01)
    yield
    assert "Uid:\t33\t33\t33\t33" in read(f"/proc/{pid}/status")
    os.write(writer, b"x")
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 21)


def filters():
    "seccomp filter, capabilities, no_new_privs | the same"
    seen = lambda: [status(n) for n in ("Seccomp", "Seccomp_filters", "CapEff", "CapBnd", "NoNewPrivs")]
    before = seen()
    same(before[0], "2")
    yield
    same(seen(), before)


def clocks():
    "clocks | the monotonic one does not go back, and leaves out the time in between"
    before = time.monotonic()
    yield
    passed = time.monotonic() - before
    assert 0 <= passed, passed
