def maps():
    "user namespace | uid and gid maps, setgroups"
    before = [read(f"/proc/self/{n}").split() for n in ("uid_map", "gid_map", "setgroups")]
    same(before[0], ["0", "0", "65536"])
    yield
    same([read(f"/proc/self/{n}").split() for n in ("uid_map", "gid_map", "setgroups")], before)


def capabilities():
    "capabilities in it | the same"
    before = status("CapEff")
    yield
    same(status("CapEff"), before)


def devices():
    "devices, which are binds in a user namespace | work"
    f = os.open("/dev/null", os.O_RDWR)
    yield
    same(os.write(f, b"x"), 1)
    assert os.urandom(4)
    os.close(os.open("/dev/full", os.O_RDWR))
