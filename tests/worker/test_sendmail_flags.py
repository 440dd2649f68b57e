from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.worker.sendmail_flags import Flags, read_flags


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("", Flags()),
        ("a@x.test b@x.test", Flags(recipients=("a@x.test", "b@x.test"))),
        ("-t -i", Flags(from_header=True, ignores_dots=True)),
        ("-ti", Flags(from_header=True, ignores_dots=True)),
        ("-oi", Flags(ignores_dots=True)),
        ("-oem -odb -om", Flags()),
        ("-f me@x.test a", Flags(sender="me@x.test", recipients=("a",))),
        ("-fme@x.test a", Flags(sender="me@x.test", recipients=("a",))),
        ("-r me@x.test", Flags(sender="me@x.test")),
        ("-f <>", Flags(sender="<>")),
        ("-tf me@x.test", Flags(from_header=True, sender="me@x.test")),
        ("-F Me", Flags(name="Me")),
        ("-N never", Flags(notify=frozenset({"never"}))),
        ("-N success,Failure", Flags(notify=frozenset({"success", "failure"}))),
        ("-R HDRS -V abc", Flags(ret="hdrs", envid="abc")),
        ("-R full", Flags(ret="full")),
        ("-B 8BITMIME -B7bit", Flags()),
        ("-bm -v -d0.1 -n -m -U -G -h 3 -L tag -O a=b -X log -A m -p x", Flags()),
        ("-q15m", Flags(runs_queue=True)),
        ("-vq a", Flags(runs_queue=True, recipients=("a",))),
        ("-bp", Flags(shows_queue=True)),
        ("-C e.toml -Cf.toml", Flags(config="f.toml")),
        ("a -t b", Flags(from_header=True, recipients=("a", "b"))),
        ("-i -- -t", Flags(ignores_dots=True, recipients=("-t",))),
        ("-", Flags(recipients=("-",))),
        ("-i -f me@x.test -t", Flags(ignores_dots=True, sender="me@x.test", from_header=True)),
    ],
)
def test_flags_are_read_as_programs_write_them(line, flags):
    assert read_flags(line.split()) == flags


def test_a_sender_may_be_empty():
    assert read_flags(["-f", "", "a"]) == Flags(sender="", recipients=("a",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-bs", "-bm .*the default.* and -bp"),
        ("-bd", 'found "d"'),
        ("-b", 'found ""'),
        ("-z", '"-z": found an unknown flag; allowed are -t, -i'),
        ("-tz", '"-z"'),
        ("--batch", '"--batch": found an unknown flag'),
        ("-f", "-f: found no value"),
        ("-tN", "-N: found no value"),
        ("-N sometimes", '-N: found "sometimes"; allowed never'),
        ("-N never,failure", "-N"),
        ("-N ,", "-N"),
        ("-R some", "allowed full or hdrs"),
        ("-B 9BIT", "7BIT or 8BITMIME"),
        ("-s", "unknown flag"),
    ],
)
def test_what_is_unknown_is_refused_and_said(line, said):
    with pytest.raises(ValueError, match=said):
        read_flags(line.split())


@pytest.mark.parametrize("envid", ["", "a\nb", "é", "x" * 101])
def test_an_identifier_that_cannot_be_sent_is_refused(envid):
    with pytest.raises(ValueError, match=r"RFC 3461 §4\.4"):
        read_flags(["-V", envid])


@given(st.lists(st.text(max_size=5) | st.sampled_from(["-t", "-i", "-f", "-N", "--", "-bp"])))
def test_any_arguments_are_read_or_refused(arguments):
    try:
        flags = read_flags(arguments)
    except ValueError as error:
        assert "allowed" in str(error)  # noqa: PT017 - either may come
    else:
        assert len(flags.recipients) <= len(arguments)
