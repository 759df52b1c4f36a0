import hashlib, http.client


def connection():
    # The server may still be starting.
    for last in [False] * 600 + [True]:
        client = http.client.HTTPConnection(ADDRESS, timeout=60)
        try:
            client.connect()
            # Or it would connect again where a connection was closed.
            client.auto_open = False
            return client
        except OSError:
            if last:
                raise
            time.sleep(0.1)


def get(client, path):
    client.request("GET", path)
    answer = client.getresponse()
    return answer.status, answer.read().decode()


def processes():
    """The master's children, by their pids in this node."""
    parent = lambda p: int(status("PPid", p))
    all = [int(p) for p in os.listdir("/proc") if p.isdigit()]
    found = []
    for p in all:
        try:
            if parent(p) == pid():
                found.append(p)
        except (OSError, StopIteration):
            pass
    return found


def inside(p):
    return int(status("NSpid", p).split()[-1])


def keep_alive():
    "keep-alive connection, a request all the while | is never closed, each request is answered and logged once"
    client, answers, stop = connection(), [], threading.Event()
    port = client.sock.getsockname()[1]
    def load():
        while not stop.is_set():
            answers.append(get(client, f"/hello?n={len(answers)}"))
    thread = threading.Thread(target=load)
    thread.start()
    while len(answers) < 20:
        time.sleep(0.01)
    yield
    before = len(answers)
    while thread.is_alive() and len(answers) < before + 20:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert len(answers) >= before + 20, answers[-1]
    same(answers, [(200, f"hello {n}\n") for n in range(len(answers))])
    logged = lambda: [l for l in read(volume() + "/access.log").splitlines() if l.startswith(f"{port} ")]
    wanted = [f"{port} 200 /hello?n={n}" for n in range(len(answers))]
    end = time.monotonic() + 60
    while logged() != wanted:
        assert time.monotonic() < end, (logged()[-1:], wanted[-1:])
        time.sleep(0.02)


def download():
    "slow download of 32 MiB | goes on to its last byte"
    content = os.urandom(1 << 20) * 32
    with open(volume() + "/large", "wb") as f:
        f.write(content)
    client = connection()
    client.request("GET", "/large")
    answer = client.getresponse()
    found, woken = [], threading.Event()
    def load():
        while part := answer.read(64 << 10):
            found.append(part)
            woken.wait(0.05)
    thread = threading.Thread(target=load)
    thread.start()
    while len(found) < 5:
        time.sleep(0.01)
    yield
    assert len(found) < 500, len(found)
    woken.set()
    thread.join()
    same(hashlib.sha256(b"".join(found)).digest(), hashlib.sha256(content).digest())


def workers():
    "master and its workers | have the pids they had; a reload has others take over"
    client = connection()
    before = {inside(p) for p in processes()}
    same((inside(pid()), len(before)), (1, 2))
    yield
    same((inside(pid()), {inside(p) for p in processes()}), (1, before))
    os.kill(pid(), signal.SIGHUP)
    end = time.monotonic() + 60
    while len([p for p in processes() if inside(p) not in before]) < 2:
        assert time.monotonic() < end, processes()
        time.sleep(0.02)
    same(get(connection(), "/hello?n=new"), (200, "hello new\n"))


def listener():
    "listening socket | takes new clients, in each worker"
    yield
    for n in range(20):
        same(get(connection(), f"/hello?n={n}"), (200, f"hello {n}\n"))
