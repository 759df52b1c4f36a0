def terminals():
    "terminal | standard input, output and error are one"
    yield
    same([os.isatty(n) for n in range(3)], [True] * 3)
    assert os.ttyname(0).startswith("/dev/"), os.ttyname(0)


def modes():
    "its modes | echo off, signals off"
    mode = termios.tcgetattr(0)
    mode[3] &= ~(termios.ECHO | termios.ISIG)
    termios.tcsetattr(0, termios.TCSANOW, mode)
    yield
    same(termios.tcgetattr(0)[3], mode[3])


def control():
    "its session | it controls the session, and its foreground group is the same"
    before = os.tcgetpgrp(0)
    yield
    same((os.tcgetpgrp(0), termios.tcgetsid(0) if hasattr(termios, "tcgetsid") else os.getsid(0)), (before, os.getsid(0)))
    os.close(os.open("/dev/tty", os.O_RDWR))
