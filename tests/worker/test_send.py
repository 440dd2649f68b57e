from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from engine.testing.dns import serve_dns
from engine.testing.server import serve_script
from engine.testing.sink import open_sink
from engine.worker.run import Manner
from engine.worker.send import SendOptions
from engine.worker.send import send as send_command

if TYPE_CHECKING:
    from pathlib import Path

    import trio

    from tests.worker.conftest import Send

CONTENT = "Subject: hello\n\nworld\n"

#: Section 2 of the contract, in its order.
KEYS = [
    "message",
    "recipient",
    "status",
    "scope",
    "stage",
    "cause",
    "reply",
    "enhanced",
    "text",
    "host",
    "address",
    "port",
    "local_address",
    "source",
    "transaction",
    "connection",
    "features",
    "timings",
    "attempts",
]
FEATURES = [
    "pipelining",
    "early_pipelining",
    "chunking",
    "prdr",
    "lmtp",
    "fast_open",
    "proxy",
    "auth",
    "tls",
]
TIMINGS = ["route", "connect", "tls", "hello", "transaction", "total"]


@pytest.fixture
def message(tmp_path: Path) -> Path:
    file = tmp_path / "message.eml"
    file.write_text(CONTENT)
    return file


def line(*recipients: object, sender: str = "a@x.test", **changes: object) -> str:
    record = {"sender": sender, "recipients": recipients, "content": CONTENT} | changes
    return json.dumps(record) + "\n"


# ---- one message ----------------------------------------------------------------------------------


async def test_a_message_is_delivered(send: Send, message: Path):
    async with open_sink(keep=True) as sink:
        result = await send("b@y.test", sender="a@x.test", message=message, port=sink.port)
        (received,) = sink.messages

    assert (result.status, result.err) == (0, "")
    assert (received.reverse_path, received.recipients) == ("a@x.test", ("b@y.test",))
    assert received.content == CONTENT.replace("\n", "\r\n").encode()


async def test_a_record_has_exactly_the_keys_of_the_contract(send: Send, message: Path):
    async with open_sink() as sink:
        result = await send("b@y.test", "reject@y.test", sender="", message=message, port=sink.port)

    assert result.status == 69
    for record in result.records:
        assert list(record) == KEYS
        assert list(record["features"]) == FEATURES
        assert list(record["timings"]) == TIMINGS
    delivered, failed = sorted(result.records, key=lambda record: record["status"])
    assert delivered["reply"] == {"code": 250, "enhanced": "2.0.0", "lines": ["2.0.0 accepted"]}
    assert (delivered["scope"], delivered["cause"]) == (None, "reply")
    assert (delivered["address"], delivered["port"]) == ("127.0.0.1", sink.port)
    assert (delivered["connection"], delivered["transaction"]) == (1, 1)
    assert (failed["scope"], failed["stage"], failed["enhanced"]) == ("recipient", "rcpt", "5.1.1")


async def test_a_recipient_of_no_domain_has_a_full_record_too(
    send: Send, message: Path, tmp_path: Path, nursery: trio.Nursery
):
    config = tmp_path / "engine.toml"
    server = await nursery.start(serve_dns, {})
    config.write_text(f'[dns]\nservers = ["{server}"]\n')
    result = await send(
        "b@nowhere.test", sender="", message=message, config=config, transcripts=True
    )

    (record,) = result.records
    assert result.status == 69
    assert list(record) == [*KEYS, "transcript"]
    assert (record["stage"], record["cause"], record["enhanced"]) == ("route", "dns", "5.1.2")
    nothing = ("reply", "host", "address", "port", "local_address", "source", "transaction")
    assert {record[key] for key in (*nothing, "connection", "transcript")} == {None}


async def test_a_transcript_is_the_dialogue_in_script_notation(send: Send, message: Path):
    script = """
        S: 220 mx.test ESMTP
        C~ EHLO *
        S: 250 mx.test
        C: MAIL FROM:<>
        S: 250 ok
        C: RCPT TO:<b@y.test>
        S: 250 ok
        C: DATA
        S: 354 go on
        C= the content
        S: 250 done
    """
    async with serve_script(script) as server:
        result = await send(
            "b@y.test",
            sender="<>",
            message=message,
            port=server.port,
            sets=("helo_name=me.test",),
            transcripts=True,
        )
    (record,) = result.records
    assert record["transcript"] == [
        "S: 220 mx.test ESMTP",
        "C: EHLO me.test",
        "S: 250 mx.test",
        "C: MAIL FROM:<>",
        "S: 250 ok",
        "C: RCPT TO:<b@y.test>",
        "S: 250 ok",
        "C: DATA",
        "S: 354 go on",
        "C= 28 octets",
        "S: 250 done",
    ]


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",), ("PIPELINING", "CHUNKING")], ids=str)
@pytest.mark.parametrize(
    "recipients",
    [("b@y.test", "reject@y.test"), ("reject@y.test",), ("close-after-dot@y.test",)],
    ids=str,
)
@pytest.mark.parametrize("lines", [1, 4000])
async def test_a_transcript_is_the_server_that_reproduces_the_case(
    keywords, recipients, lines, send: Send, tmp_path: Path
):
    letter = tmp_path / "letter"
    letter.write_text("Subject: x\n\n" + "a line of a content\n" * lines)
    options = {"sender": "a@x.test", "message": letter, "transcripts": True}
    async with open_sink(extensions=keywords) as sink:
        first = await send(*recipients, port=sink.port, sets=("helo_name=me.test",), **options)
    transcript = max((record["transcript"] for record in first.records), key=len)
    async with serve_script("\n".join(transcript)) as server:
        again = await send(*recipients, port=server.port, sets=("helo_name=me.test",), **options)

    assert again.status == first.status
    assert [record["reply"] for record in again.records] == [
        record["reply"] for record in first.records
    ]


@pytest.mark.parametrize(
    ("recipients", "status"),
    [
        (["b@y.test"], 0),
        (["b@y.test", "defer@y.test"], 75),
        (["close-after-dot@y.test"], 75),
        (["defer@y.test", "reject@y.test"], 69),
        (["b@y.test", "nobody"], 65),
        (["nobody", "reject@y.test"], 65),
        (["nobody"], 65),
    ],
)
async def test_the_exit_status_says_how_it_ended(
    send: Send, message: Path, recipients: list[str], status: int
):
    async with open_sink() as sink:
        result = await send(*recipients, sender="a@x.test", message=message, port=sink.port)
    assert result.status == status
    assert len(result.records) == len([each for each in recipients if "@" in each])


async def test_a_malformed_sender_sends_nothing(send: Send, message: Path):
    async with open_sink() as sink:
        result = await send("b@y.test", "c", sender="a", message=message, port=sink.port)
        assert sink.statistics().connections == 0
    assert (result.status, result.out) == (65, "")
    assert result.err.splitlines() == [
        '--sender a: no "@"; allowed is local-part@domain',
        'RECIPIENT c: no "@"; allowed is local-part@domain',
    ]


async def test_a_message_file_that_is_missing_is_66(send: Send, tmp_path: Path):
    result = await send("b@y.test", sender="", message=tmp_path / "no.eml", port=1)
    assert (result.status, result.out) == (66, "")
    assert result.err == f"{tmp_path}/no.eml: No such file or directory\n"


async def test_a_content_that_cannot_be_sent_is_65(send: Send, tmp_path: Path):
    (tmp_path / "bad.eml").write_bytes(b"Subject: a\n\n\0")
    result = await send("b@y.test", sender="", message=tmp_path / "bad.eml", port=1)
    assert (result.status, result.out) == (65, "")
    assert result.err.startswith(f"{tmp_path}/bad.eml: NUL in line 3: ")


# ---- a batch --------------------------------------------------------------------------------------


async def test_a_batch_is_sent_over_shared_connections(send: Send, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text("".join(line(f"r+{n}@y.test", f"q+{n}@z.test") for n in range(200)))
    async with open_sink() as sink:
        result = await send(batch=file, port=sink.port, sets=("max_connections=5",))
        assert sink.statistics().connections <= 5
        assert sink.statistics().messages == 200

    assert result.status == 0
    seen = [(record["message"], record["recipient"]) for record in result.records]
    assert len(seen) == len(set(seen)) == 400
    assert {message for message, _ in seen} == {str(n) for n in range(1, 201)}


async def test_a_bad_line_is_reported_and_the_rest_is_sent(send: Send, tmp_path: Path):
    file = tmp_path / "batch"
    file.write_text(line("b@y.test") + "nonsense\n" + line("c@y.test", "nobody", "reject@y.test"))
    async with open_sink() as sink:
        result = await send(batch=file, port=sink.port)

    assert result.status == 65
    assert result.statuses == {
        "b@y.test": "delivered",
        "c@y.test": "delivered",
        "reject@y.test": "failed",
    }
    assert result.err.splitlines() == [
        f"{file} line 2: found no JSON: expecting value at position 1; allowed JSON",
        f"{file} line 3: recipients[1]: address 'nobody': no \"@\"; allowed is local-part@domain",
    ]


async def test_a_line_whose_file_is_missing_is_66_and_the_rest_is_sent(send: Send, tmp_path: Path):
    file = tmp_path / "batch"
    missing = {"sender": "", "recipients": ["b@y.test"], "message": "no.eml"}
    file.write_text(json.dumps(missing) + "\n" + line("c@y.test", "reject@y.test"))
    async with open_sink() as sink:
        result = await send(batch=file, port=sink.port)
    assert result.status == 66
    assert result.statuses == {"c@y.test": "delivered", "reject@y.test": "failed"}


async def test_a_batch_that_is_missing_is_66(send: Send, tmp_path: Path):
    result = await send(batch=tmp_path / "missing")
    assert (result.status, result.out) == (66, "")


async def test_an_empty_batch_is_a_success(send: Send, tmp_path: Path):
    (tmp_path / "batch").touch()
    result = await send(batch=tmp_path / "batch")
    assert (result.status, result.out, result.err) == (0, "", "")


# ---- where to, and how ----------------------------------------------------------------------------


async def test_routes_of_the_configuration_are_followed(send: Send, message: Path, tmp_path: Path):
    config = tmp_path / "engine.toml"
    async with open_sink() as one, open_sink() as other:
        config.write_text(f"""
            [[routes]]
            match = "y.test"
            hosts = ["127.0.0.1:{one.port}"]
            [[routes]]
            match = "*"
            hosts = ["127.0.0.1:{other.port}"]
        """)
        result = await send("b@y.test", "c@z.test", sender="", message=message, config=config)

    ports = {record["recipient"]: record["port"] for record in result.records}
    assert ports == {"b@y.test": one.port, "c@z.test": other.port}


async def test_hosts_of_the_command_line_win_over_routes(send: Send, message: Path, tmp_path: Path):
    config = tmp_path / "engine.toml"
    config.write_text('[[routes]]\nmatch = "*"\nhosts = ["127.0.0.1:1"]\n')
    async with open_sink() as sink:
        result = await send("b@y.test", sender="", message=message, config=config, port=sink.port)
    assert result.status == 0


async def test_a_setting_of_the_command_line_wins_over_the_file(
    send: Send, message: Path, tmp_path: Path
):
    config = tmp_path / "engine.toml"
    config.write_text('[defaults]\nhelo_name = "file.test"\n')
    script = """
        S: 220 mx.test ESMTP
        C: EHLO option.test
        S: 421 no
    """
    async with serve_script(script) as server:
        result = await send(
            "b@y.test",
            sender="",
            message=message,
            config=config,
            port=server.port,
            sets=("helo_name=option.test",),
        )
    assert result.records[0]["stage"] == "hello"


async def test_mail_to_ourselves_is_refused_unless_switched_off(
    send: Send, message: Path, tmp_path: Path, nursery: trio.Nursery
):
    config = tmp_path / "engine.toml"
    zone = {"y.test": {"MX": ["10 mx.y.test"]}, "mx.y.test": {"A": ["127.0.0.1"]}}
    server = await nursery.start(serve_dns, zone)
    async with open_sink() as sink:
        text = f'[dns]\nservers = ["{server}"]\n[defaults]\nport = {sink.port}\n'
        config.write_text(text)
        refused = await send("b@y.test", sender="", message=message, config=config)
        config.write_text(text + "[routing]\nown_addresses = []\n")
        taken = await send("b@y.test", sender="", message=message, config=config)
    assert refused.records[0]["stage"] == "route"
    assert refused.records[0]["enhanced"].endswith(".4.6")
    assert taken.statuses == {"b@y.test": "delivered"}


def test_a_configuration_that_cannot_be_read_is_66(tmp_path: Path, capfd: pytest.CaptureFixture):
    options = SendOptions(batch="/dev/null", config=str(tmp_path / "no.toml"))
    assert send_command(options) == 66
    assert capfd.readouterr() == ("", f"{tmp_path}/no.toml: No such file or directory\n")


def test_every_problem_of_the_configuration_is_said_and_nothing_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture
):
    config = tmp_path / "engine.toml"
    config.write_text("[defaults]\nport = 0\nmax_connections = 0\n")
    options = SendOptions(batch="/nonexistent", config=str(config), sets=("keepalive=7",))

    assert send_command(options) == 78
    out, err = capfd.readouterr()
    assert out == ""
    assert [text.partition(": found")[0] for text in err.splitlines()] == [
        f"{config}:2: defaults.port",
        f"{config}:3: defaults.max_connections",
        "--set keepalive=7",
    ]


def test_hosts_are_checked_before_anything_else():
    with pytest.raises(ValueError, match="no port"):
        send_command(SendOptions(batch="/nonexistent", hosts=("a.test:x",), manner=Manner()))
