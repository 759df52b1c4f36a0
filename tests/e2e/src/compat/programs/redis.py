# A client of redis, which stays where it is when the server moves.
class Redis:
    def __init__(self):
        # The server may still be starting.
        for last in [False] * 600 + [True]:
            try:
                self.socket = socket.create_connection((ADDRESS, 6379), timeout=60)
                break
            except OSError:
                if last:
                    raise
                time.sleep(0.1)
        self.answers = self.socket.makefile("rb")

    def send(self, *words):
        words = [str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def answer(self):
        line = self.answers.readline()
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self.answers.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        raise OSError(f"redis answers {line!r}")

    def __call__(self, *words):
        self.send(*words)
        return self.answer()


def keys():
    "keys of each type | the same"
    redis = Redis()
    for n in range(2000):
        redis.send("SET", f"key{n}", "value" * (n % 50) + str(n))
    for n in range(2000):
        same(redis.answer(), "OK")
    redis("RPUSH", "list", *range(1000))
    redis("HSET", "hash", *range(1000))
    redis("SADD", "set", *range(1000))
    redis("ZADD", "sorted", *range(1000))
    digest = lambda: [
        *(redis("GET", f"key{n}") for n in range(0, 2000, 7)),
        redis("LRANGE", "list", 0, -1), sorted(redis("HGETALL", "hash")), sorted(redis("SMEMBERS", "set")),
        redis("ZRANGE", "sorted", 0, -1, "WITHSCORES"),
    ]
    before = digest()
    yield
    same(digest(), before)
    same(redis("EXISTS", *(f"key{n}" for n in range(2000))), 2000)


def counts():
    "a connection with fifty INCR on their way all the while | each is answered once and in order, none is lost"
    redis, said, stop = Redis(), [], threading.Event()
    def load():
        for _ in range(50):
            redis.send("INCR", "count")
        while not stop.is_set():
            said.append(redis.answer())
            redis.send("INCR", "count")
        said.extend(redis.answer() for _ in range(50))
    thread = threading.Thread(target=load)
    thread.start()
    while len(said) < 500:
        time.sleep(0.01)
    yield
    before = len(said)
    while thread.is_alive() and len(said) < before + 500:
        time.sleep(0.01)
    stop.set()
    thread.join()
    same(said, list(range(1, len(said) + 1)))
    same(int(Redis()("GET", "count")), len(said))


def blocked():
    "client blocked in BLPOP | gets what is pushed after the restore"
    redis = Redis()
    redis.send("BLPOP", "queue", 0)
    yield
    Redis()("RPUSH", "queue", "word")
    same(redis.answer(), ["queue", "word"])


def subscriber():
    "subscriber | gets what is published after the restore"
    redis = Redis()
    redis("SUBSCRIBE", "news")
    yield
    same(Redis()("PUBLISH", "news", "word"), 1)
    same(redis.answer(), ["message", "news", "word"])


def transaction():
    "transaction that was begun | is done with what was queued before"
    redis = Redis()
    redis("WATCH", "watched")
    redis("MULTI")
    redis("SET", "a", 1)
    redis("INCR", "a")
    yield
    same(redis("EXEC"), ["OK", 2])


def expiry():
    "key that expires | in its time"
    redis = Redis()
    redis("SET", "short", "x", "EX", 3600)
    yield
    assert 3000 < redis("TTL", "short") <= 3600
    redis("PEXPIRE", "short", 1)
    while redis("GET", "short"):
        time.sleep(0.01)


def rewriting():
    "append-only file | a child of the restored server writes it anew"
    redis = Redis()
    yield
    redis("BGREWRITEAOF")
    state = lambda: dict(l.split(":", 1) for l in redis("INFO", "persistence").split() if ":" in l)
    end = time.monotonic() + 60
    while state()["aof_rewrite_in_progress"] != "0" or state()["aof_rewrite_scheduled"] != "0":
        assert time.monotonic() < end, state()
        time.sleep(0.02)
    same((state()["aof_last_bgrewrite_status"], state()["aof_last_write_status"]), ("ok", "ok"))
    assert int(state()["aof_base_size"]) > 2000, state()
