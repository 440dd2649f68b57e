from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.queue.decision import Unknown
from engine.worker.sections import QueueSection, WorkerSection, shard_file


def test_without_anything_said_they_have_values_to_work_with():
    assert QueueSection().path == "spool.sqlite"
    assert QueueSection().unknown_policy is Unknown.RETRY
    assert WorkerSection().processes == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("path",) for value in ("", 5, "a\0b")),
        ("bounce", "never"),
        ("bounce_name", "not a name"),
        ("bounce_from", "Ärger@x.test"),
        ("return_octets", 0),
        ("max_message_octets", "50"),
        ("remember", "0s"),
        ("nonsense", 1),
    ],
)
def test_what_cannot_be_used_is_refused(name, value):
    with pytest.raises(ValidationError):
        QueueSection.model_validate({name: value})


def test_the_bound_of_messages_may_have_a_unit():
    section = QueueSection.model_validate({"max_message_octets": "2 MiB"})
    assert section.max_message_octets == 2 * 1024 * 1024
    assert QueueSection().max_message_octets == 50 * 1024 * 1024


def test_an_empty_list_of_waits_is_never():
    assert QueueSection.model_validate({"warn_after": []}).warn_after == ()


@pytest.mark.parametrize(
    ("name", "shard", "expected"),
    [
        ("spool.sqlite", 1, "/srv/mail/spool.sqlite"),
        ("spool.sqlite", 2, "/srv/mail/spool-2.sqlite"),
        ("/run/engine.sock", 3, "/run/engine-3.sock"),
        ("sub/spool", 2, "/srv/mail/sub/spool-2"),
    ],
)
def test_each_process_has_files_of_its_own(name, shard, expected):
    assert shard_file(Path("/srv/mail"), name, shard) == Path(expected)
