# In front of each program. A program is a list of generators: what is before `yield` makes an
# object, what is after it looks at the object when the container was restored. Their docstrings
# are the rows of docs/compatibility.md: the object, a bar, what is looked at.
import array, ctypes, fcntl, inspect, mmap, os, resource, select, signal, socket, struct
import subprocess, sys, tempfile, termios, threading, time

libc = ctypes.CDLL(None, use_errno=True)


def same(found, wanted):
    assert found == wanted, f"{found!r}, wanted {wanted!r}"


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def refused(errno, function, *arguments):
    try:
        function(*arguments)
    except OSError as e:
        return same(e.errno, errno)
    raise AssertionError(f"{function.__name__}{arguments} was allowed")


def read(path):
    with open(path) as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def status(key, pid="self"):
    return next(l.split(":", 1)[1].strip() for l in open(f"/proc/{pid}/status") if l.startswith(key + ":"))


def readable(fd, seconds=5):
    return bool(select.select([fd], [], [], seconds)[0])


def woken():
    signal.sigwait([signal.SIGUSR1])


def main(only):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    made = []
    for function in [f for f in globals().values() if inspect.isgeneratorfunction(f)]:
        row = function.__doc__
        if not row.startswith(only and only + " | "):
            continue
        made.append((row, function()))
        next(made[-1][1])
    print("ready", flush=True)
    woken()
    for row, objects in made:
        try:
            next(objects, None)
            print("kept", row, flush=True)
        except Exception as e:
            print("lost", row, "|", f"{type(e).__name__}: {e}", flush=True)
    print("done", flush=True)
    # Without the collector's and the threads' last words.
    os._exit(0)
