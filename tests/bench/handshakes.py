"""TLS handshakes a second, full and resumed: this engine's, beside aiosmtplib's.

Each is a whole visit without mail: connect, EHLO, STARTTLS, EHLO again, QUIT, with the certificate
verified.  The server is a process of its own with a processor of its own, and so is each client.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.sinks import PROCESSORS, free_port, pin, wait_for
from tests.bench.throughput import SENDERS, timed
from tests.certificates import make, rsa_key, write_chain

CLIENTS = {
    "aiosmtplib": ("aiosmtplib_tls.py", "full"),
    "this engine": ("this_engine_tls.py", "full"),
    "this engine, resumed": ("this_engine_tls.py", "resumed"),
}


def add_arguments(parser):
    parser.add_argument("--handshakes", type=int, default=1000, help="by each client in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=10, help="open at a time")
    parser.add_argument("--versions", default="1.3,1.2", help="of TLS")


def run(arguments):
    for version in arguments.versions.split(","):
        with serving(f"TLSv{version.replace('.', '_')}") as (port, ca_file):
            results = {}
            for _ in range(arguments.rounds):
                for name, (script, kind) in CLIENTS.items():
                    command = [sys.executable, str(SENDERS / script), str(port)]
                    command += [str(arguments.handshakes), str(arguments.connections)]
                    command += [kind, str(ca_file)]
                    results.setdefault(name, []).append(
                        timed(command, dict(os.environ), arguments.handshakes)
                    )
        print(
            f"\nTLS {version}, {arguments.handshakes} visits, medians of {arguments.rounds} rounds"
        )
        print_table(results)
    return 0


@contextmanager
def serving(version):
    """Run the server with an RSA certificate, as most have one; yield its port and its CA file."""
    port = free_port()
    root = make("root", is_ca=True, key=rsa_key(2048))
    leaf = make("mx", root, names=["mx.bench.test"], key=rsa_key(2048))
    with tempfile.TemporaryDirectory() as folder:
        ca_file = Path(folder, "ca.pem")
        ca_file.write_bytes(root.pem)
        command = [sys.executable, "-m", "tests.bench.tls_server", str(port)]
        command += [*map(str, write_chain(Path(folder), [leaf])), version]
        process = subprocess.Popen(command)
        pin(process, PROCESSORS[-1])
        try:
            wait_for(port)
            yield port, ca_file
        finally:
            process.kill()
            process.wait(10)


def print_table(results):
    peer = median(rate for rate, _, _ in results["aiosmtplib"])
    print(f"{'client':<22}{'visits/s':>10}{'CPU ms each':>13}{'to aiosmtplib':>15}")
    for name, rounds in results.items():
        rate, cpu, _ = (median(column) for column in zip(*rounds, strict=True))
        print(f"{name:<22}{rate:>10,.0f}{cpu:>13.3f}{rate / peer:>13.2f} x")
