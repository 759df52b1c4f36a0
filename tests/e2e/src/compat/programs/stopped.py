# Without CONT the children stay as they are, whatever else is sent to them.
def stopped_child(run=signal.pause):
    child = os.fork()
    if child == 0:
        run()
        os._exit(77)
    os.kill(child, signal.SIGSTOP)
    # Waited for, so that the parent is told of it no more.
    same(os.WSTOPSIG(os.waitpid(child, os.WUNTRACED)[1]), signal.SIGSTOP)
    return child


def stopped():
    "process stopped by SIGSTOP | is stopped still, and goes on by SIGCONT"
    r, w = os.pipe()
    child = stopped_child(lambda: (signal.sigwait([signal.SIGUSR1]), os.write(w, b"went on")))
    yield
    same(status("State", child)[0], "T")
    os.kill(child, signal.SIGCONT)
    same(os.waitpid(child, os.WCONTINUED), (child, 0xffff))
    os.kill(child, signal.SIGUSR1)
    assert readable(r)
    same(os.read(r, 100), b"went on")
    os.waitpid(child, 0)


def threads():
    "process with threads, stopped by SIGSTOP | all of them are stopped still"
    r, w = os.pipe()
    def run():
        for _ in range(3):
            threading.Thread(target=signal.pause).start()
        os.write(w, b"x")
        signal.pause()
    child = os.fork()
    if child == 0:
        run()
    os.read(r, 1)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    states = lambda: [read(f"/proc/{child}/task/{t}/stat").rsplit(")", 1)[1].split()[0]
                      for t in os.listdir(f"/proc/{child}/task")]
    while states() != ["T"] * 4:
        time.sleep(0.01)
    yield
    same(states(), ["T"] * 4)
    os.kill(child, signal.SIGKILL)
    same(os.waitpid(child, 0), (child, 9))


def pending():
    "signal that was sent to a stopped process | ends it, once it goes on or before"
    child = stopped_child()
    os.kill(child, signal.SIGTERM)
    yield
    # Restored, both are pending, and the kernel may deliver the other one before SIGSTOP.
    assert status("State", child)[0] in "TZ"
    os.kill(child, signal.SIGCONT)
    same(os.waitpid(child, 0), (child, signal.SIGTERM))
