"""`python -m tests.bench BENCHMARK`: what this engine costs, beside its peers.

Absolute figures say as much about the machine as about the programs; read the ratios.
"""

from __future__ import annotations

import argparse
import sys

from tests.bench import drain, footprint, handshakes, roundtrips, throughput


def main() -> int:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    throughput.add_arguments(
        commands.add_parser("throughput", help="messages a second to one sink, by every sender")
    )
    roundtrips.add_arguments(
        commands.add_parser("roundtrips", help="round trips of a message over a link of 100 ms")
    )
    handshakes.add_arguments(
        commands.add_parser("handshakes", help="TLS handshakes a second, full and resumed")
    )
    drain.add_arguments(
        commands.add_parser("drain", help="messages a second out of a durable queue")
    )
    footprint.add_arguments(
        commands.add_parser("memory", help="peak memory of `send --batch` with many messages")
    )
    commands.add_parser("startup", help="seconds until `python -m engine --help` has answered")
    arguments = parser.parse_args()
    match arguments.command:
        case "throughput":
            return throughput.run(arguments)
        case "roundtrips":
            return roundtrips.run(arguments)
        case "handshakes":
            return handshakes.run(arguments)
        case "drain":
            return drain.run(arguments)
        case "memory":
            return footprint.run_memory(arguments)
        case _:
            return footprint.run_startup()


if __name__ == "__main__":
    sys.exit(main())
