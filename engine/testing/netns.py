"""Network namespaces of Linux: make two that can be joined, go inside, take them away again.

Used by `engine.testing.forwarder`, which makes them, and by `engine.testing.link`, which opens
sockets inside.  Needs root and the command `ip`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TUN: Final = Path("/dev/net/tun")
#: Where `ip netns` keeps the names.
_NAMES: Final = Path("/run/netns")
_SYSCTLS: Final = Path("/proc/sys")
_STATUS: Final = Path("/proc/self/status")
_OWN: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000
#: linux/if_tun.h: make an interface of this name, for IP packets, without a header of its own.
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IP_SECONDS: Final = 20.0
#: linux/capability.h.
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def what_is_missing() -> str | None:
    """Say what this machine or process lacks for namespaces that TUN devices join, if anything."""
    held = 0
    with contextlib.suppress(OSError):  # no Linux, no capabilities
        status = _STATUS.read_text(encoding="ascii", errors="replace")
        held = int(status.partition("CapEff:")[2].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if lacking:
        return f"root is needed (this process lacks {', '.join(lacking)})"
    if not TUN.exists():
        return f"{TUN} is needed (modprobe tun; for a container --device {TUN})"
    if find_ip() is None:
        return "the command ip is needed (Debian's package iproute2)"
    return None


def find_ip() -> str | None:
    """Where the command `ip` is, also for a user whose PATH has no `sbin`."""
    return shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def add(name: str) -> None:
    """Make a namespace.

    Raises:
        OSError: It cannot be made.
    """
    _ip("netns", "add", name)


def delete(name: str) -> None:
    """Take the name of a namespace away; it goes with the last process inside.

    Nothing happens where there is none.

    Raises:
        OSError: It is still there.
    """
    if (_NAMES / name).exists():
        _ip("netns", "delete", name)


def bring_up(name: str, device: str, addresses: Sequence[str]) -> None:
    """Set a namespace's loopback device and a device in it up, with addresses.

    Args:
        name: Of the namespace.
        device: That is in it.
        addresses: With the length of the prefix, such as `198.18.0.1/24`.

    Raises:
        OSError: A command failed.
    """
    lines = ["link set dev lo up", f"link set dev {device} up"]
    for address in addresses:
        # Nobody else can have the address, and nothing can be sent from one that is being tried.
        untried = " nodad" if ":" in address else ""
        lines.append(f"address add {address} dev {device}{untried}")
    _ip("-n", name, "-batch", "-", script="\n".join(lines) + "\n")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Be inside a namespace: sockets, TUN devices and `/proc/sys/net` are its own meanwhile.

    It holds for this thread, so the block must not wait for anything.

    Raises:
        OSError: There is no such namespace, or we may not enter it.
    """
    with contextlib.ExitStack() as stack:
        here, there = (
            stack.enter_context(open(path, "rb", buffering=0))  # noqa: PTH123 - no Path has it
            for path in (_OWN, _NAMES / name)
        )
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(here.fileno())


def open_tun(device: str) -> int:
    """Make a TUN device where we are, and return a descriptor of it that never waits.

    Reading takes the IP packets that leave through the device, writing makes them arrive there.
    The device goes when the descriptor is closed.

    Raises:
        OSError: It cannot be made.
    """
    descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def set_sysctl(name: str, value: str) -> None:
    """Set a kernel parameter where we are, such as `net.ipv4.tcp_fastopen`.

    Raises:
        OSError: There is none of this name, or it takes no such value.
    """
    path = _SYSCTLS.joinpath(*name.split("."))
    try:
        path.write_text(value, encoding="ascii")
    except OSError as error:
        raise OSError(error.errno, f"sysctl {name} = {value}: {error.strerror}") from error


def _setns(descriptor: int) -> None:
    # Python has os.setns from 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _ip(*words: str, script: str | None = None) -> None:
    try:
        done = subprocess.run(
            [find_ip() or "ip", *words],
            input=script or "",
            capture_output=True,
            text=True,
            timeout=_IP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"ip {' '.join(words)}: no answer within {_IP_SECONDS:g} s") from error
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
