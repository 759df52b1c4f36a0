def changes():
    "changes of the root file system | new, changed and deleted files, folders, links, modes"
    write("/new", "new")
    write("/etc/group", "changed")
    os.unlink("/etc/passwd")
    os.makedirs("/a/b")
    os.symlink("/new", "/a/b/link")
    os.chmod("/new", 0o4711)
    log = os.open("/var-log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(log, b"before ")
    yield
    same((read("/a/b/link"), read("/etc/group")), ("new", "changed"))
    assert not os.path.exists("/etc/passwd")
    same(os.stat("/new").st_mode & 0o7777, 0o4711)
    os.write(log, b"after")
    same(read("/var-log"), "before after")
