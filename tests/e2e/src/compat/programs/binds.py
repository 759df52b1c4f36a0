# The sources are other files after the restore: copies, but for `which`.
def files():
    "bind of a file from a new source | is the new one"
    same(read("/which"), "first\n")
    yield
    same(read("/which"), "second\n")


def folders():
    "bind of a folder from a new source | what was written before is there, what is written is on the node"
    write("/data/before", "before")
    f = os.open("/data/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(f, b"before ")
    yield
    same(read("/data/which"), "second\n")
    same(read("/data/before"), "before")
    os.write(f, b"after")
    same(read("/data/log"), "before after")


def nested():
    "bind in a bind, from new sources | both are the new ones"
    same(read("/data/inner/which"), "first\n")
    yield
    same((read("/data/which"), read("/data/inner/which")), ("second\n", "second\n"))
    refused(30, write, "/data/inner/x", "x")


def tmpfs_in_bind():
    "tmpfs in a bind | its content"
    write("/data/tmp/word", "word")
    yield
    same(read("/data/tmp/word"), "word")


def read_only():
    "read-only bind | cannot be written"
    yield
    refused(30, write, "/readonly/x", "x")
    same(read("/readonly/which"), "second\n")


def listeners():
    "listening unix socket in a bind | takes a client after the restore"
    s = socket.socket(socket.AF_UNIX)
    s.bind("/data/socket")
    s.listen()
    yield
    client = socket.socket(socket.AF_UNIX)
    client.connect("/data/socket")
    s.accept()
