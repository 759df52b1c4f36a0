class Connection:
    def __init__(self):
        # The server may still be starting.
        for last in [False] * 600 + [True]:
            try:
                self.socket = socket.create_connection((ADDRESS, 7000), timeout=60)
                break
            except OSError:
                if last:
                    raise
                time.sleep(0.1)
        self.answers = self.socket.makefile("r")

    def __call__(self, question):
        self.socket.sendall(question.encode() + b"\n")
        answer = self.answers.readline()
        if not answer:
            raise OSError("closed")
        return answer.strip()


def grows(number, by=1):
    end, first = time.monotonic() + 60, number()
    while number() < first + by:
        assert time.monotonic() < end, (first, number())
        time.sleep(0.01)


def heap():
    "heap that four threads change all the while | their sums hold, they go on, garbage is collected"
    java = Connection()
    rounds = lambda: int(java("heap").split()[1])
    grows(rounds, 50000)
    collected = int(java("collected"))
    assert java("heap").startswith("true"), java("heap")
    yield
    assert java("heap").startswith("true"), java("heap")
    grows(rounds, 50000)
    assert int(java("collected")) > collected, collected
    assert java("heap").startswith("true"), java("heap")


def outside():
    "memory outside of the heap | the same"
    java = Connection()
    before = java("outside")
    yield
    same(java("outside"), before)


def threads():
    "threads | the same names and ids; a hundred virtual ones go on"
    java = Connection()
    before = java("threads")
    yield
    same(java("threads"), before)
    grows(lambda: int(java("virtual")), 1000)


def timer():
    "timer | goes on, and has no more ticks than the machine's time"
    java = Connection()
    grows(lambda: int(java("ticks").split()[0]), 5)
    yield
    grows(lambda: int(java("ticks").split()[0]), 5)
    ticks, limit = java("ticks").split()
    assert int(ticks) <= int(limit) + 1, (ticks, limit)


def file():
    "file that a line is written to all the while | no line is lost or there twice"
    java = Connection()
    grows(lambda: int(java("ticks").split()[0]), 5)
    yield
    ticks = int(java("ticks").split()[0])
    grows(lambda: int(java("ticks").split()[0]), 5)
    lines = [int(n) for n in read(volume() + "/lines").splitlines()]
    same(lines[:ticks], list(range(ticks)))


def connections():
    "connection, an echo all the while | each answer comes once and in order"
    java, answers, stop = Connection(), [], threading.Event()
    def load():
        while not stop.is_set():
            answers.append(java(f"echo {len(answers)}"))
    thread = threading.Thread(target=load)
    thread.start()
    while len(answers) < 50:
        time.sleep(0.01)
    yield
    before = len(answers)
    while thread.is_alive() and len(answers) < before + 50:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert len(answers) >= before + 50, len(answers)
    same(answers, [f"echo {n}" for n in range(len(answers))])
