"""The command `explain`: with a name server and mail hosts on loopback, as a user would run it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from engine.delivery.host_memory import HostMemory
from engine.outcome import Peer
from engine.queue.hints import open_hints
from engine.smtp.errors import AddressSyntaxError
from engine.testing.dns import FakeDns, serve_dns
from engine.testing.sink import open_sink
from engine.worker.config import load_config
from engine.worker.explain import ExplainOptions, explain, explain_all, read_domain
from engine.worker.hosts import read_hosts
from tests.certificates import make, server_context
from tests.worker.conftest import Files, Result
from tests.worker.explaining import ZONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from engine.worker.config import Config

    Explain = Callable[..., Awaitable[Result]]

ROOT = make("Root", is_ca=True)
GOOD = make("mx.local.test", ROOT, names=["mx.local.test"])
OTHER = make("other.test", ROOT, names=["other.test"])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "engine.toml"


@pytest.fixture
def ask(files: Files, config: Path, nursery: trio.Nursery) -> Explain:
    """Run `explain` against a DNS literal; by default with JSON."""

    async def run(
        *addresses: str,
        zone: Any = ZONE,
        hosts: Sequence[str] = (),
        sets: Sequence[str] = (),
        toml: str = "",
        **options: Any,
    ) -> Result:
        server = await nursery.start(serve_dns, zone)
        first = f'[routing]\nown_addresses = []\n[dns]\nservers = ["{server}"]\n'
        loaded = written(config, first + toml, sets)
        out = os.open(files.out, os.O_WRONLY | os.O_TRUNC)
        err = os.open(files.err, os.O_WRONLY | os.O_TRUNC)
        try:
            asked = ExplainOptions(addresses, **{"as_json": True} | options, stdout=out, stderr=err)
            status = await explain_all(asked, loaded, read_hosts(hosts) or loaded.routes)
        finally:
            os.close(out)
            os.close(err)
        return Result(status, files.out.read_text(), files.err.read_text())

    return run


def written(file: Path, text: str, sets: Sequence[str] = ()) -> Config:
    """Write a configuration and read it."""
    file.write_text(text)
    return load_config(file, sets)


def local(port: int, *records: str) -> FakeDns:
    """A DNS in which `local.test` is served on this machine, with signed zones."""
    zone: dict[str, Any] = {
        "local.test": {"MX": ["10 mx.local.test"]},
        "mx.local.test": {"A": ["127.0.0.1"]},
    }
    if records:
        zone[f"_{port}._tcp.mx.local.test"] = {"TLSA": list(records)}
    return FakeDns(zone, authentic=["local.test"])


def record(issued: Any) -> str:
    usage, selector, matching, data = issued.tlsa(3, 1, 1)
    return f"{usage} {selector} {matching} {data.hex()}"


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("bob@Example.test", "example.test"),
        ("<bob@x.test>", "x.test"),
        ("x.test", "x.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("bob@[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
    ],
)
def test_a_mailbox_or_a_domain_is_explained(address, domain):
    assert read_domain(address) == domain


@pytest.mark.parametrize("address", ["", "a b", "x..test", "@x.test", "bob@", "\x1b[2J"])
def test_anything_else_is_refused_by_its_own_name(address):
    with pytest.raises(AddressSyntaxError) as caught:
        read_domain(address)
    assert "postmaster" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


async def test_each_address_has_its_object_in_order(ask: Explain):
    asked = ("b@x.test", "closed.test", "c@x.test", "broken.test")
    result = await ask(*asked)
    assert [each["address"] for each in result.records] == list(asked)
    assert [each["result"] for each in result.records] == ["tried", "failed", "tried", "deferred"]
    assert result.err == ""


async def test_a_domain_is_looked_into_once(ask: Explain):
    dns = FakeDns(ZONE)
    await ask("a@x.test", "b@x.test", "x.test", zone=dns)
    assert dns.asked["x.test", "MX"] == 1


@pytest.mark.parametrize(
    ("addresses", "status"),
    [
        (["x.test"], 0),
        (["x.test", "broken.test"], 75),
        (["broken.test", "closed.test"], 69),
        (["nowhere.test"], 69),
        (["x.test", "a b"], 65),
        (["a b", "closed.test", "broken.test"], 65),
    ],
)
async def test_the_exit_status_says_the_worst(ask: Explain, addresses: list[str], status: int):
    result = await ask(*addresses)
    assert result.status == status
    assert len(result.records) == len([each for each in addresses if " " not in each])


async def test_a_malformed_address_is_said_and_the_others_are_explained(ask: Explain):
    result = await ask("a b", "x.test")
    assert result.err.startswith("address 'a b': ")
    assert [each["address"] for each in result.records] == ["x.test"]


async def test_the_text_is_for_people(ask: Explain):
    result = await ask("bob@x.test", "closed.test", as_json=False)
    lines = result.out.splitlines()
    assert lines[:2] == ["bob@x.test  tried", " Mail        would be tried at 4 addresses"]
    assert " Site        backup.test,mx1.x.test,mx2.x.test" in lines
    assert "closed.test  failed" in lines
    assert " Mail        5.1.10 closed.test takes no mail (null MX)" in lines
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith(" ")]


# ---- options -------------------------------------------------------------------------------------


async def test_hosts_settings_and_rules_are_those_of_send(ask: Explain, config: Path):
    toml = '[defaults]\nport = 26\n[[paths]]\nmatch = "192.0.2.7"\nmax_connections = 2\n'
    result = await ask("x.test", hosts=["192.0.2.7"], sets=["helo_name=me.test"], toml=toml)
    (found,) = result.records
    assert (found["way"]["kind"], found["site"]) == ("static", "192.0.2.7")
    assert found["settings"] == [
        {"name": "helo_name", "value": "me.test", "source": "--set"},
        {"name": "port", "value": 26, "source": f"{config}:6"},
        {"name": "max_connections", "value": 2, "source": f"{config}:9"},
    ]
    assert found["rules"] == [f'[[paths]] 1 "192.0.2.7" ({config}:8)']
    assert found["hosts"][0]["places"][0]["hello_name"] == "me.test"


async def test_routes_of_the_configuration_count(ask: Explain):
    toml = '[[routes]]\nmatch = "x.test"\nhosts = ["192.0.2.7:2525"]\n'
    one, other = (await ask("x.test", "one.test", toml=toml)).records
    assert (one["way"]["kind"], one["way"]["rule"]) == ("static", "x.test")
    assert one["hosts"][0]["places"][0]["port"] == 2525
    assert other["way"]["kind"] == "mx"


async def test_whether_any_name_server_is_trusted_is_told(ask: Explain):
    (found,) = (await ask("x.test")).records
    assert found["is_validating"] is True
    (found,) = (await ask("x.test", toml='trusted = ["192.0.2.53"]\n')).records
    assert found["is_validating"] is False


async def test_what_is_known_comes_from_the_state(ask: Explain, tmp_path: Path):
    state = tmp_path / "state.sqlite"
    async with open_hints(state) as hints:
        HostMemory(hints, Peer("mx.one.test", "192.0.2.9", 25)).note_stream(is_taken=True)
    (found,) = (await ask("one.test", state=str(state))).records
    assert found["hosts"][0]["places"][0]["known"]["takes_streams"] is True
    (found,) = (await ask("one.test")).records
    assert found["hosts"][0]["places"][0]["known"]["takes_streams"] is None


def test_who_only_asks_makes_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    state = tmp_path / "state.sqlite"
    options = ExplainOptions(("x.test",), ("127.0.0.1:9",), state=str(state), as_json=True)
    assert explain(options) == 0
    assert not state.exists()
    out, err = capfd.readouterr()
    assert err == f"{state}: no such file; nothing is known of hosts\n"
    assert json.loads(out)["result"] == "tried"


def test_a_configuration_that_cannot_be_used_ends_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert explain(ExplainOptions(("x.test",), config=str(tmp_path / "no.toml"))) == 66
    assert explain(ExplainOptions(("x.test",), sets=("port=0",))) == 78
    assert capfd.readouterr().out == ""


def test_hosts_are_checked_before_anything_else():
    with pytest.raises(ValueError, match="no port"):
        explain(ExplainOptions(("x.test",), ("a.test:x",)))


# ---- looking at hosts ----------------------------------------------------------------------------


async def test_nobody_is_connected_to_without_being_asked_to(ask: Explain):
    async with open_sink() as sink:
        result = await ask("local.test", zone=local(sink.port), sets=[f"port={sink.port}"])
        assert sink.statistics().connections == 0
    assert result.records[0]["hosts"][0]["places"][0]["probe"] is None


async def test_a_look_begins_no_mail_and_says_quit(ask: Explain, tmp_path: Path):
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    async with open_sink(tls=server_context([GOOD])) as sink:
        sets = [f"port={sink.port}", f"tls_ca_file={tmp_path}/ca.pem"]
        zone = local(sink.port, record(GOOD))
        result = await ask("b@local.test", zone=zone, sets=sets, probes=True)
        statistics = sink.statistics()
    assert (statistics.connections, statistics.messages, statistics.recipients) == (1, 0, 0)
    assert result.status == 0
    (found,) = result.records
    assert found["text"].endswith("over TLSv1.3, verified by TLSA records")
    probe = found["hosts"][0]["places"][0]["probe"]
    assert probe["is_good"] is True
    assert probe["tls"]["certificate"]["names"] == ["mx.local.test"]
    judgements = {each["by"]: each["is_met"] for each in probe["tls"]["judgements"]}
    assert judgements == {"chain": True, "name": True, "dane": True}
    assert "STARTTLS" in probe["hello"]
    assert "STARTTLS" not in probe["hello_over_tls"]
    assert probe["round_trip"] > 0


async def test_a_certificate_that_does_not_do_makes_mail_wait(ask: Explain):
    async with open_sink(tls=server_context([OTHER])) as sink:
        zone = local(sink.port, record(GOOD))
        result = await ask("local.test", zone=zone, sets=[f"port={sink.port}"], probes=True)
    assert result.status == 75
    (found,) = result.records
    assert (found["result"], found["enhanced"]) == ("deferred", "4.7.5")
    assert "no TLSA record matches" in found["text"]
    names = found["hosts"][0]["places"][0]["probe"]["tls"]["certificate"]["names"]
    assert names == ["other.test"]


async def test_a_host_that_a_policy_forbids_is_not_looked_at(ask: Explain):
    async with open_sink() as sink:
        zone = local(sink.port)
        sets = [f"port={sink.port}", "dane=require"]
        result = await ask("local.test", zone=zone, sets=sets, probes=True)
        assert sink.statistics().connections == 0
    assert (result.status, result.records[0]["result"]) == (69, "forbidden")
    assert result.records[0]["hosts"][0]["places"][0]["probe"] is None


async def test_hosts_that_are_out_of_reach_are_told(ask: Explain):
    async with open_sink() as sink:
        port = sink.port
    result = await ask("local.test", zone=local(port), sets=[f"port={port}"], probes=True)
    assert result.status == 75
    assert "Connection refused" in result.records[0]["text"]


async def test_a_look_at_a_hostile_host_is_safe_to_print(ask: Explain):
    from engine.testing.server import serve_script

    script = """
        S+ 220 \\x1b[2J\\x1b]0;owned\\x07\\r\\n
        C~ EHLO *
        S+ 250-mx\\r\\n250 X-\\x1b[31m\\x07 \\xff\\r\\n
    """
    async with serve_script(script) as server:
        zone = local(server.port)
        result = await ask(
            "local.test", zone=zone, sets=[f"port={server.port}"], probes=True, as_json=False
        )
    assert result.status == 0
    assert all(character.isprintable() or character == "\n" for character in result.out)
    assert "\\x1b[2J" in result.out


async def test_a_reader_that_went_away_ends_it(config: Path, nursery: trio.Nursery):
    server = await nursery.start(serve_dns, ZONE)
    loaded = written(config, f'[dns]\nservers = ["{server}"]\n')
    reader, writer = os.pipe()
    os.close(reader)
    options = ExplainOptions(("x.test",) * 3, as_json=True, stdout=writer)
    try:
        assert await explain_all(options, loaded, ()) == 75
    finally:
        os.close(writer)


async def test_it_ends_where_many_domains_are_slow(ask: Explain):
    zone = {f"{number}.test": {"MX": "TIMEOUT"} for number in range(20)}
    with trio.fail_after(20):
        result = await ask(*zone, zone=zone, toml='timeout = "200ms"\n')
    assert [each["result"] for each in result.records] == ["deferred"] * 20
