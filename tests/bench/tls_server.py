"""`python -m tests.bench.tls_server PORT CERTIFICATE KEY VERSION`: STARTTLS, EHLO and QUIT, no mail.

Blocking sockets and a few threads: what it does in between costs as little as Python allows, so
that the clients are what is measured.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading

REPLIES = {b"EHLO": b"250-bench.test\r\n250 STARTTLS\r\n", b"STAR": b"220 go ahead\r\n"}


def main(port, certificate, key, version):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=100)
    for _ in range(16):
        threading.Thread(target=serve, args=(listener, context)).start()


def serve(listener, context):
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            converse(sock, context)
        except OSError:
            pass
        finally:
            sock.close()


def converse(sock, context):
    sock.sendall(b"220 bench.test ESMTP\r\n")
    while command := sock.recv(1000)[:4].upper():
        if command == b"QUIT":
            sock.sendall(b"221 bye\r\n")
            sock.recv(1000)
            return
        sock.sendall(REPLIES[command])
        if command == b"STAR":
            sock = context.wrap_socket(sock, server_side=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
