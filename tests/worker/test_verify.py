from __future__ import annotations

import json

import pytest
import trio

from engine.testing.dns import serve_dns
from engine.testing.server import serve_script
from engine.testing.sink import open_sink
from engine.worker.verify import VerifyOptions, verify
from tests.worker.test_send import KEYS

A, B = "a@y.test", "b@y.test"
GREETED = "S: 220 mx.test\nC~ EHLO *\nS: 250-mx.test\nS: 250 PIPELINING\n"
SETS = ("helo_name=me.test", "tls=off")


async def run(capsys, *addresses: str, port: int = 0, **options) -> tuple[int, str, str]:
    hosts = (f"127.0.0.1:{port}",) if port else ()
    made = VerifyOptions(addresses, hosts=hosts, sets=SETS + options.pop("sets", ()), **options)
    # The command has a Trio of its own.
    status = await trio.to_thread.run_sync(verify, made)
    out, err = capsys.readouterr()
    return status, out, err


async def test_each_address_has_a_line_of_json(capsys):
    script = GREETED + "C: MAIL FROM:<>\nC: RCPT TO:<a@y.test>\nC: RCPT TO:<b@y.test>\n"
    script += "S: 250 ok\nS: 250 2.1.5 fine\nS: 550 5.1.1 who\n"
    async with serve_script(script) as server:
        status, out, err = await run(capsys, A, B, port=server.port, as_json=True)

    first, second = map(json.loads, out.splitlines())
    assert (status, err) == (69, "")
    assert list(first) == [*KEYS, "catch_all"]
    assert (first["recipient"], first["status"], first["stage"]) == (A, "accepted", "rcpt")
    assert (second["recipient"], second["status"]) == (B, "failed")


async def test_people_get_a_table(capsys):
    async with open_sink() as sink:
        status, out, err = await run(capsys, A, port=sink.port, catch_all=True)

    assert (status, err) == (0, "")
    assert A in out
    assert "accepted (as any address there)" in " ".join(out.split())
    assert sink.statistics().messages == 0


async def test_answers_outlive_the_run_where_there_is_a_file(capsys, tmp_path):
    state = str(tmp_path / "state.sqlite")
    async with open_sink() as sink:
        for _ in range(2):
            status, out, _ = await run(capsys, A, port=sink.port, state=state, as_json=True)
            assert (status, json.loads(out)["status"]) == (0, "accepted")
        assert sink.statistics().connections == 1


async def test_what_is_no_address_is_said_and_the_rest_is_asked(capsys):
    async with open_sink() as sink:
        status, out, err = await run(capsys, "a y.test", A, port=sink.port, as_json=True)

    assert status == 65
    assert err.startswith("a y.test: ")
    assert json.loads(out)["status"] == "accepted"


async def test_a_domain_without_mail_fails_and_one_without_answer_is_deferred(
    capsys, tmp_path, nursery
):
    zone = {"y.test": {"MX": ["0 ."]}, "slow.test": {"MX": "SERVFAIL"}}
    server = await nursery.start(serve_dns, zone)
    config = tmp_path / "engine.toml"
    config.write_text(f'[dns]\nservers = ["{server}"]\n')
    status, out, _ = await run(capsys, A, "c@slow.test", config=str(config), as_json=True)

    first, second = map(json.loads, out.splitlines())
    assert (first["status"], first["enhanced"]) == ("failed", "5.1.10")
    assert second["status"] == "deferred"
    assert status == 69


@pytest.mark.parametrize(
    ("options", "status"),
    [({"config": "/none.toml"}, 66), ({"sets": ("port=0",)}, 78)],
    ids=str,
)
async def test_a_configuration_that_cannot_be_used_ends_it(options, status, capsys):
    found, out, err = await run(capsys, A, **options)

    assert (found, out) == (status, "")
    assert err
