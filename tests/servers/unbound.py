"""unbound, serving records that a test wrote, for lookups that cross a real socket.

It validates: zones can be signed, and what was changed behind the signatures is bogus.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.servers.process import HOST, free_port, home, running
from tests.servers.provision import installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# One authoritative zone at the root holds whatever names the test wants, and answers for all
# others with NXDOMAIN instead of asking a network that is not there.
CONFIGURATION = """\
server:
  interface: {host}@{port}
  directory: "{home}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  logfile: ""
  do-daemonize: no
  do-ip6: no
  num-threads: 1
  module-config: "{modules}"
{anchors}
  ede: yes
  do-not-query-localhost: no
  edns-buffer-size: 1232
  # unbound answers these by itself unless told not to.
  local-zone: "test." nodefault
  local-zone: "invalid." nodefault
  local-zone: "127.in-addr.arpa." nodefault
remote-control:
  control-enable: no
auth-zone:
  name: "."
  zonefile: "{home}/zone"
  for-downstream: {downstream}
  for-upstream: yes
  fallback-enabled: no
"""

SIGNED = """\
auth-zone:
  name: "{name}"
  zonefile: "{home}/{file}"
  for-downstream: no
  for-upstream: yes
  fallback-enabled: no
"""

ZONE = """\
$ORIGIN .
$TTL 60
. IN SOA ns.test. hostmaster.test. 1 3600 600 86400 60
. IN NS ns.test.
"""


@dataclass(frozen=True, slots=True)
class SignedZone:
    """A zone with signatures, which the name server trusts.

    Attributes:
        name: such as `example.test`.
        records: lines of a zone file, with absolute names.
        forged: texts, and what stands in their place after the zone was signed.
    """

    name: str
    records: str
    forged: Sequence[tuple[str, str]] = ()

    def sign(self) -> tuple[str, str]:
        """Return the signed zone as a file, and the trust anchor for it."""
        import dns.dnssec
        import dns.zone
        from cryptography.hazmat.primitives.asymmetric import ec

        origin = f"{self.name}."
        text = f"$TTL 60\n{origin} SOA ns.{origin} host.{origin} 1 3600 600 86400 60\n"
        text += f"{origin} NS ns.{origin}\nns.{origin} A {HOST}\n{self.records}\n"
        zone = dns.zone.from_text(text, origin, relativize=False)
        key = ec.generate_private_key(ec.SECP256R1())
        dnskey = dns.dnssec.make_dnskey(
            key.public_key(), dns.dnssec.Algorithm.ECDSAP256SHA256, flags=257
        )
        with zone.writer() as changes:
            dns.dnssec.sign_zone(
                zone, changes, keys=[(key, dnskey)], add_dnskey=True, dnskey_ttl=60, lifetime=86400
            )
        signed = zone.to_text(relativize=False)
        for old, new in self.forged:
            assert old in signed, old
            signed = signed.replace(old, new)
        anchor = dns.dnssec.make_ds(zone.origin, dnskey, "SHA256").to_text()
        return signed, f'  trust-anchor: "{origin} IN DS {anchor}"'


@dataclass(frozen=True, slots=True)
class NameServer:
    """A running name server.

    Attributes:
        port: for UDP and TCP alike.
        host: the address it listens on.
    """

    port: int
    host: str = HOST


@contextmanager
def start(records: str, *signed: SignedZone) -> Iterator[NameServer]:
    """Run unbound for the length of the block.

    Args:
        records: lines of a zone file (RFC 1035 §5.1) with absolute names, such as
            `ok.test. IN MX 10 mx.ok.test.`; the time to live is 60 seconds unless stated.
        signed: zones with signatures; answers are validated where there are any.
    """
    program = installed("unbound")
    with home("unbound") as folder:
        port = free_port()
        (folder / "zone").write_text(f"{ZONE}{records}\n")
        configuration = folder / "unbound.conf"
        zones, anchors = [], []
        for number, zone in enumerate(signed):
            text, anchor = zone.sign()
            (folder / f"signed{number}").write_text(text)
            zones.append(SIGNED.format(name=f"{zone.name}.", home=folder, file=f"signed{number}"))
            anchors.append(anchor)
        main = CONFIGURATION.format(
            home=folder,
            host=HOST,
            port=port,
            modules="validator iterator" if signed else "iterator",
            anchors="\n".join(anchors),
            # What is answered from a zone without asking upstream is not validated.
            downstream="no" if signed else "yes",
        )
        configuration.write_text(main + "".join(zones))
        with running("unbound", [program, "-d", "-c", configuration], folder) as process:
            process.wait_for_port(port)
            yield NameServer(port)
