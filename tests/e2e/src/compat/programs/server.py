# Sends numbers and gives back what comes, on each of its connections.
import os, socket, threading, time


def numbers(client):
    n = 0
    while True:
        client.sendall(b"%d\n" % n)
        n += 1
        if n % 1000 == 0:
            time.sleep(0.01)


def back(client):
    while data := client.recv(65536):
        client.sendall(data)


def serve(port, what):
    server = socket.create_server(("0.0.0.0", port))
    while True:
        client, _ = server.accept()
        threading.Thread(target=what, args=(client,)).start()


def datagrams():
    server = socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 9003))
    while True:
        data, client = server.recvfrom(65536)
        server.sendto(data, client)


for port, what in ((9001, numbers), (9002, back)):
    threading.Thread(target=serve, args=(port, what)).start()
threading.Thread(target=datagrams).start()
