"""What a link between two network namespaces lets through; see benches/ranks. `listen [both]`, or ADDRESS RATE [both]."""

import socket
import sys
import threading
import time

PORT = 9099
CHUNK = bytes(1 << 20)


def send(connection, count):
    for _ in range(count):
        connection.sendall(CHUNK)


def receive(connection, count):
    left = count * len(CHUNK)
    while left:
        left -= len(connection.recv(min(left, 1 << 20)))


both = sys.argv[-1] == "both"
if sys.argv[1] == "listen":
    with socket.create_server(("", PORT)) as server:
        connection, _ = server.accept()
        count = int.from_bytes(connection.recv(8), "little")
        back = threading.Thread(target=send, args=(connection, count if both else 0))
        back.start()
        receive(connection, count)
        back.join()
        connection.sendall(b"!")
else:
    count = {"100mbit": 12, "1gbit": 120, "10gbit": 600}[sys.argv[2]]
    for _ in range(100):
        try:
            connection = socket.create_connection((sys.argv[1], PORT))
            break
        except OSError:
            time.sleep(0.05)
    connection.sendall(count.to_bytes(8, "little"))
    started = time.perf_counter()
    back = threading.Thread(target=receive, args=(connection, count if both else 0))
    back.start()
    send(connection, count)
    back.join()
    connection.recv(1)
    seconds = time.perf_counter() - started
    print(f"{8 * count * len(CHUNK) / seconds / 1e6:.0f} Mbit/s")
