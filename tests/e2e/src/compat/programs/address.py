def connection(port):
    # The server may still be starting.
    for last in [False] * 600 + [True]:
        try:
            return socket.create_connection((ADDRESS, port), timeout=60)
        except OSError:
            if last:
                raise
            time.sleep(0.1)


def loaded(load, done):
    """Runs a load beside; answers once it has got on by so much more."""
    threading.Thread(target=load, daemon=True).start()
    def on():
        before, end = len(done), time.monotonic() + 60
        while len(done) < before + 100:
            assert time.monotonic() < end, f"{len(done)} is all that came"
            time.sleep(0.01)
    on()
    return on


def comes():
    "TCP connection, data from the container all the while | goes on, not a byte lost or there twice"
    numbers = connection(9001).makefile("r")
    found, wrong = [], []
    def load():
        for line in numbers:
            if int(line) != len(found):
                wrong.append(line)
            found.append(line)
    on = loaded(load, found)
    yield
    on()
    same(wrong, [])


def goes():
    "TCP connection, data to the container and back all the while | goes on, not a byte lost or there twice"
    client, found, wrong, stop = connection(9002), [], [], threading.Event()
    def send():
        n = 0
        while not stop.is_set():
            client.sendall(b"%d\n" % n)
            n += 1
            if n % 1000 == 0:
                time.sleep(0.01)
    def load():
        for line in client.makefile("r"):
            if int(line) != len(found):
                wrong.append(line)
            found.append(line)
    threading.Thread(target=send, daemon=True).start()
    on = loaded(load, found)
    yield
    on()
    stop.set()
    same(wrong, [])


def idle():
    "idle TCP connection | both ends are where they were"
    client = connection(9002)
    client.sendall(b"before")
    same(client.recv(100), b"before")
    ends = client.getsockname(), client.getpeername()
    yield
    client.sendall(b"after")
    same(client.recv(100), b"after")
    same((client.getsockname(), client.getpeername()), ends)


def listeners():
    "listening TCP socket | takes new clients"
    yield
    client = connection(9002)
    client.sendall(b"new")
    same(client.recv(100), b"new")


def datagrams():
    "UDP socket | answers at its address"
    client = socket.socket(type=socket.SOCK_DGRAM)
    client.connect((ADDRESS, 9003))
    client.settimeout(0.2)
    def asked(word):
        for _ in range(50):
            client.send(word)
            try:
                if client.recv(100) == word:
                    return
            except OSError:
                pass
        raise AssertionError("no answer")
    asked(b"before")
    yield
    asked(b"after")
