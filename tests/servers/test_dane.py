"""Our verdict by TLSA records beside OpenSSL's own, certificate by certificate, record by record."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from engine.net.stream import SocketStream
from engine.net.tls import TlsClient
from engine.net.tls_errors import TlsFailed
from engine.net.tls_material import TlsMaterial
from engine.outcome import Peer
from engine.security import Tlsa, TlsDemand, TlsLevel
from tests.certificates import CLIENTS_ONLY, NOT_SIGNING, SERVERS, make, rsa_key
from tests.servers.openssl import dane_options, s_client, serve
from tests.servers.process import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.certificates import Issued

pytestmark = pytest.mark.servers

NAME = "mx1.example.test"

ROOT = make("root", is_ca=True)
OTHER = make("root", is_ca=True)  # of the same name, with another key
INTER = make("inter", ROOT, is_ca=True)
FAKE_INTER = make("inter", is_ca=True)
GOOD = make("good", INTER, names=[NAME])

_SHORT = make("short", is_ca=True, path_length=0)
_OVERLONG = make("overlong", _SHORT, is_ca=True)
_NARROW = make("narrow", is_ca=True, permitted="example.test")
_NARROWER = make("narrower", is_ca=True, permitted="other.test")
_NO_CA = make("no-ca", ROOT)
_UNSIGNING = make("unsigning", ROOT, is_ca=True, key_usage=NOT_SIGNING)
_BARE = make("bare", is_bare=True)
_OLD_INTER = make("old-inter", ROOT, is_ca=True, days=(-30, -1))
_CLIENTS_INTER = make("clients-inter", ROOT, is_ca=True, usages=CLIENTS_ONLY)
_SERVERS_INTER = make("servers-inter", ROOT, is_ca=True, usages=SERVERS)
_RSA_ROOT = make("rsa-root", is_ca=True, key=rsa_key(2048))
_COMPRESSED = ec.generate_private_key(ec.SECP384R1())

#: What servers show, by what is to be said about it.
CHAINS: dict[str, list[Issued]] = {
    "good": [GOOD, INTER, ROOT],
    "good, without its root": [GOOD, INTER],
    "good, alone": [GOOD],
    "good, in disorder": [GOOD, ROOT, INTER],
    "good, with a stranger": [GOOD, OTHER, INTER, ROOT],
    "directly below the root": [make("d", ROOT, names=[NAME]), ROOT],
    "directly below the root, alone": [make("d", ROOT, names=[NAME])],
    "expired": [make("e", INTER, names=[NAME], days=(-30, -1)), INTER, ROOT],
    "not yet valid": [make("n", INTER, names=[NAME], days=(1, 30)), INTER, ROOT],
    "wrong name": [make("w", INTER, names=["mx.other.test"]), INTER, ROOT],
    "wildcard": [make("*", INTER, names=["*.example.test"]), INTER, ROOT],
    "wildcard too high": [make("*", INTER, names=["*.test"]), INTER, ROOT],
    "part of a wildcard": [make("*", INTER, names=["mx*.example.test"]), INTER, ROOT],
    "upper case": [make("u", INTER, names=["MX1.Example.TEST"]), INTER, ROOT],
    "common name only": [make(NAME, INTER), INTER, ROOT],
    "common name beside others": [make(NAME, INTER, names=["mx.other.test"]), INTER, ROOT],
    "address only": [make("i", INTER, names=["127.0.0.1"]), INTER, ROOT],
    "self-signed": [make("s", names=[NAME])],
    "self-signed authority": [make("s", names=[NAME], is_ca=True)],
    "missing intermediate": [GOOD, ROOT],
    "weak key": [make("k", INTER, names=[NAME], key=rsa_key(1024)), INTER, ROOT],
    "RSA": [make("r", _RSA_ROOT, names=[NAME], key=rsa_key(2048)), _RSA_ROOT],
    "P-384": [make("p", INTER, names=[NAME], key=_COMPRESSED), INTER, ROOT],
    "for clients only": [make("c", INTER, names=[NAME], usages=CLIENTS_ONLY), INTER, ROOT],
    "for servers": [make("c", INTER, names=[NAME], usages=SERVERS), INTER, ROOT],
    "authority for clients only": [
        make("c", _CLIENTS_INTER, names=[NAME]), _CLIENTS_INTER, ROOT,
    ],
    "authority for servers": [make("c", _SERVERS_INTER, names=[NAME]), _SERVERS_INTER, ROOT],
    "forged": [make("f", FAKE_INTER, names=[NAME]), INTER, ROOT],
    "path too long": [make("t", _OVERLONG, names=[NAME]), _OVERLONG, _SHORT],
    "inside the constraint": [make("t", _NARROW, names=[NAME]), _NARROW],
    "outside the constraint": [make("t", _NARROWER, names=[NAME]), _NARROWER],
    "below no authority": [make("t", _NO_CA, names=[NAME]), _NO_CA, ROOT],
    "below one that may not sign": [make("t", _UNSIGNING, names=[NAME]), _UNSIGNING, ROOT],
    "below one without extensions": [make("t", _BARE, names=[NAME]), _BARE],
    "below an expired one": [make("t", _OLD_INTER, names=[NAME]), _OLD_INTER, ROOT],
}  # fmt: skip


def records_for(name: str) -> dict[str, list[Tlsa]]:
    """The records each chain is held against, by what is to be said about them."""
    chain = CHAINS[name]
    leaf, top = chain[0], chain[-1]
    found = {
        "3 1 1": [leaf.tlsa(3, 1, 1)],
        "2 0 1 of the last": [top.tlsa(2, 0, 1)],
        "2 1 2 of the root": [leaf.path[-1].tlsa(2, 1, 2)],
        "2 0 0 of the root": [leaf.path[-1].tlsa(2, 0, 0)],
    }
    if name in {"good", "expired", "self-signed", "weak key", "RSA", "P-384"}:
        found |= {f"3 {s} {m}": [leaf.tlsa(3, s, m)] for s in (0, 1) for m in (0, 1, 2)}
    if name == "good":
        found |= {f"2 {s} {m}": [INTER.tlsa(2, s, m)] for s in (0, 1) for m in (0, 1, 2)}
        found |= {
            "3 1 1 of another": [OTHER.tlsa(3, 1, 1)],
            "3 1 1 of another, then ours": [OTHER.tlsa(3, 1, 1), leaf.tlsa(3, 1, 1)],
            "3 1 1 of the authority": [INTER.tlsa(3, 1, 1)],
            "2 1 1 of the leaf": [leaf.tlsa(2, 1, 1)],
            "3 of another and 2 of ours": [OTHER.tlsa(3, 1, 1), ROOT.tlsa(2, 0, 1)],
            "2 of another and 3 of ours": [OTHER.tlsa(2, 0, 1), leaf.tlsa(3, 0, 1)],
            "2 0 1 of another": [OTHER.tlsa(2, 0, 1)],
            "2 0 0 of another": [OTHER.tlsa(2, 0, 0)],
            "a digest cut short": [Tlsa(3, 1, 1, leaf.tlsa(3, 1, 1).data[:-1] + b"\0")],
        }
    if name.startswith(("good", "directly", "wrong name", "expired", "missing", "path too long")):
        found |= {
            "2 1 0 of the root": [leaf.path[-1].tlsa(2, 1, 0)],
            "2 1 0 of the intermediate": [INTER.tlsa(2, 1, 0)],
            "2 1 0 of another": [OTHER.tlsa(2, 1, 0)],
            "2 0 0 of the intermediate": [INTER.tlsa(2, 0, 0)],
        }
    return found


#: Chains where we say something else than OpenSSL when the records are of usage 2, and why.
DIFFERENT = {
    # It takes the first certificate of the issuer's name for the issuer; we find the one that is.
    "good, with a stranger": {"2 0 1 of the last", "2 1 2 of the root", "2 1 0 of the root"},
    # RFC 7672 §3.2.3: a wildcard is the whole first label.
    "part of a wildcard": {"2 0 1 of the last", "2 1 2 of the root", "2 0 0 of the root"},
}


@dataclass
class Servers:
    """One `s_server` for each chain, started when first asked for."""

    stack: ExitStack
    ports: dict[str, int] = field(default_factory=dict)

    def port(self, name: str) -> int:
        if name not in self.ports:
            self.ports[name] = self.stack.enter_context(serve(CHAINS[name]))
        return self.ports[name]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


async def our_verdict(port: int, records: Sequence[Tlsa]) -> tuple[bool, str]:
    stream = SocketStream((await trio.open_tcp_stream(HOST, port)).socket._sock)
    demand = TlsDemand(TlsLevel.VERIFY, "dane", (NAME,), NAME, tuple(records))
    peer = Peer(NAME, HOST, port)
    try:
        tls = await TlsClient().start(stream, demand, TlsMaterial(), peer=peer, seconds=10)
    except TlsFailed as failure:
        return False, failure.text
    assert tls.facts.verified == "dane"
    tls.stream.close()
    return True, str(tls.peer.record)


@pytest.mark.parametrize("name", CHAINS)
async def test_our_verdict_is_openssls(name, servers):
    port = servers.port(name)
    same, different = set(), {}

    async def compare(what, records):
        # How strong a key must be is not DANE's matter but a setting of OpenSSL's.
        level = ["-cipher", "DEFAULT@SECLEVEL=0"] if name == "weak key" else []
        theirs, said = await s_client(port, *level, *dane_options(NAME, records))
        ours, text = await our_verdict(port, records)
        assert theirs == ("matched" in said or "signed the certificate" in said), said
        if ours == theirs:
            same.add(what)
        else:
            different[what] = f"{what}\nours: {text}\ntheirs: {said}"

    async with trio.open_nursery() as nursery:
        for what, records in records_for(name).items():
            nursery.start_soon(compare, what, records)
    assert different.keys() == DIFFERENT.get(name, set()), "\n".join(different.values())
    assert same | different.keys() == records_for(name).keys()


def test_the_matrix_is_large():
    assert sum(len(records_for(name)) for name in CHAINS) > 200
