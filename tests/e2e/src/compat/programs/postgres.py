# The server and its clients are in the container: psql processes on its unix socket.
BIN, DATA = "/usr/lib/postgresql/18/bin/", "/data/pg"
subprocess.run([BIN + "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8",
                "--no-locale", DATA], stdout=subprocess.DEVNULL, check=True)
server = subprocess.Popen([BIN + "postgres", "-D", DATA, "-c", "listen_addresses=", "-c", "shared_buffers=16MB",
                           "-c", "unix_socket_directories=/tmp", "-c", "max_connections=20"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while subprocess.run([BIN + "pg_isready", "-q", "-h", "/tmp"]).returncode:
    assert server.poll() is None, "postgres ended"
    time.sleep(0.05)


class Session:
    """psql on a connection of its own: statements in, rows out."""

    def __init__(self):
        self.psql = subprocess.Popen(
            [BIN + "psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-U", "postgres", "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __call__(self, statement):
        """The rows of a statement's answer."""
        self.psql.stdin.write(f"{statement};\n\\echo END\n")
        self.psql.stdin.flush()
        rows = []
        while (line := self.psql.stdout.readline()) != "END\n":
            if not line:
                raise OSError(f"{statement}: {rows}")
            rows.append(line.rstrip("\n"))
        return rows

    def one(self, statement):
        rows = self(statement)
        same(len(rows), 1)
        return rows[0]


def committed():
    "rows committed all the while | each that was acknowledged is there once"
    session, done, failed, stop = Session(), [], [], threading.Event()
    session("CREATE TABLE log (n int)")
    backend = session.one("SELECT pg_backend_pid()")
    def load():
        try:
            while not stop.is_set():
                same(session.one(f"INSERT INTO log VALUES ({len(done)}) RETURNING n"), str(len(done)))
                done.append(len(done))
        except Exception as e:
            failed.append(e)
    thread = threading.Thread(target=load)
    thread.start()
    while len(done) < 20 and not failed:
        time.sleep(0.01)
    yield
    before = len(done)
    while len(done) < before + 20 and not failed:
        time.sleep(0.01)
    stop.set()
    thread.join()
    same(failed, [])
    same([int(n) for n in Session()("SELECT n FROM log ORDER BY n")], done)
    same(session.one("SELECT pg_backend_pid()"), backend)


def transaction():
    "open transaction | sees what it wrote, nobody else does, and commits"
    session = Session()
    session("CREATE TABLE kept (word text)")
    session("BEGIN ISOLATION LEVEL REPEATABLE READ")
    session("INSERT INTO kept VALUES ('before')")
    transaction = session.one("SELECT txid_current()")
    yield
    same(session.one("SELECT txid_current()"), transaction)
    same(Session()("SELECT * FROM kept"), [])
    session("INSERT INTO kept VALUES ('after')")
    session("COMMIT")
    same(Session()("SELECT * FROM kept"), ["before", "after"])


def locks():
    "advisory lock, in the shared memory of all sessions | is held, another session gets it once it is given back"
    holder = Session()
    same(holder.one("SELECT pg_try_advisory_lock(7)"), "t")
    waiter, got = Session(), []
    thread = threading.Thread(target=lambda: got.append(waiter("SELECT pg_advisory_lock(7)")))
    thread.start()
    yield
    same((Session().one("SELECT pg_try_advisory_lock(7)"), got), ("f", []))
    same(holder.one("SELECT pg_advisory_unlock(7)"), "t")
    thread.join(60)
    same(got, [[""]])


def temporary():
    "session's own table, prepared statement, setting, cursor | are there"
    session = Session()
    session("SET application_name = 'frozen'")
    session("CREATE TEMPORARY TABLE own AS SELECT generate_series(1, 1000) AS n")
    session("PREPARE double AS SELECT $1::int * 2")
    session("DECLARE places CURSOR WITH HOLD FOR SELECT n FROM own ORDER BY n")
    same(session("FETCH 2 FROM places"), ["1", "2"])
    yield
    same(session.one("SHOW application_name"), "frozen")
    same(session.one("SELECT sum(n) FROM own"), "500500")
    same(session.one("EXECUTE double(21)"), "42")
    same(session("FETCH 2 FROM places"), ["3", "4"])


def background():
    "background processes | are those that were; the checkpointer, the writer of the log and a parallel worker do their work"
    types = "SELECT backend_type, pid FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'parallel worker', 'autovacuum worker') ORDER BY 1, 2"
    session = Session()
    before = session(types)
    for kind in ("checkpointer", "background writer", "walwriter", "io worker", "autovacuum launcher"):
        assert any(row.startswith(kind + "|") for row in before), before
    yield
    same(session(types), before)
    done = "SELECT num_requested FROM pg_stat_checkpointer"
    count = int(session.one(done))
    session("CHECKPOINT")
    end = time.monotonic() + 60
    while int(session.one(done)) <= count:
        assert time.monotonic() < end, count
        time.sleep(0.02)
    session("SET debug_parallel_query = on")
    same(session.one("SELECT count(*) FROM generate_series(1, 10)"), "10")


def log():
    "write-ahead log | reads to its end, and the tables' indexes hold"
    session = Session()
    start = session.one("SELECT pg_current_wal_insert_lsn()")
    session("CREATE TABLE indexed AS SELECT n, md5(n::text) AS word FROM generate_series(1, 5000) n")
    session("CREATE INDEX words ON indexed (word)")
    yield
    session("INSERT INTO indexed SELECT n, md5(n::text) FROM generate_series(5001, 6000) n")
    end = session.one("SELECT pg_current_wal_flush_lsn()")
    dumped = subprocess.run([BIN + "pg_waldump", "--quiet", "-p", DATA + "/pg_wal", "-s", start, "-e", end],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    same((dumped.returncode, dumped.stdout), (0, ""))
    session("SET enable_seqscan = off")
    same(session.one("SELECT count(*) FROM indexed WHERE word >= ''"), "6000")
