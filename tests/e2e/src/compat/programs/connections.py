s = socket.socket(type=socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 1))
s.close()


def connections():
    "TCP connection inside the container | what was queued, then both ways, options"
    listener = socket.create_server(("127.0.0.1", 4000))
    client = socket.create_connection(("127.0.0.1", 4000))
    server, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.send(b"before")
    yield
    for end in (client, server):
        end.settimeout(5)
    same(server.recv(100), b"before")
    server.send(b"after")
    same(client.recv(100), b"after")
    same(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)


def half_closed():
    "TCP connection that one side has shut | the other still sends"
    listener = socket.create_server(("127.0.0.1", 4001))
    client = socket.create_connection(("127.0.0.1", 4001))
    server, _ = listener.accept()
    client.shutdown(socket.SHUT_WR)
    yield
    client.settimeout(5)
    server.settimeout(5)
    same(server.recv(100), b"")
    server.send(b"after")
    same(client.recv(100), b"after")


def unix_connections():
    "unix connection inside the container | what was queued, then both ways"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/dev/shm/listener")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/dev/shm/listener")
    server, _ = listener.accept()
    client.send(b"before")
    yield
    same(server.recv(100), b"before")
    server.send(b"after")
    same(client.recv(100), b"after")
