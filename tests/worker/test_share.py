from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.queue import database
from engine.queue.database import migrations
from engine.queue.errors import StoreDamagedError
from engine.queue.sqlite import open_store
from engine.worker.config import load_config
from engine.worker.share import Share, files_of, share_config, stranded
from tests.queue.mail import mail


def config_of(tmp_path, text):
    (tmp_path / "engine.toml").write_text(text)
    return load_config(tmp_path / "engine.toml")


@pytest.mark.parametrize("text", ["1/1", "2/3", "64/64"])
def test_a_shard_is_written_as_it_is_read(text):
    assert str(Share.parse(text)) == text


@pytest.mark.parametrize("text", ["", "1", "0/1", "2/1", "1/65", "a/b", "-1/2", "1/2/3", "²/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="allowed 1/2"):
        Share.parse(text)


@pytest.mark.parametrize(("limit", "count"), [(20, 1), (20, 3), (2, 3), (1, 8), (64, 64)])
def test_the_shares_are_the_whole_but_nobody_has_none(limit, count):
    shares = [Share(number, count).of(limit) for number in range(1, count + 1)]
    assert sum(shares) == max(limit, count)
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1


def test_each_process_has_files_of_its_own_and_the_log_of_outcomes_with_all(tmp_path):
    config = config_of(tmp_path, '[queue]\npath = "q/spool.db"\n[worker]\noutcomes = "/o.jsonl"\n')
    first, third = files_of(config), files_of(config, 3)
    assert first.store == tmp_path / "q/spool.db"
    assert third.store == tmp_path / "q/spool-3.db"
    assert (first.socket, third.socket) == (tmp_path / "engine.sock", tmp_path / "engine-3.sock")
    assert (first.state, third.state) == (tmp_path / "state.sqlite", tmp_path / "state-3.sqlite")
    assert first.outcomes == third.outcomes == Path("/o.jsonl")


TEXT = """
[defaults]
max_connections = 20
helo_name = "me.test"
[[paths]]
match = "*.slow.test"
max_connections = 2
tls = "off"
[[paths]]
match = "other.test"
tls = "require"
[tls_reports]
organization = "Me"
contact = "me@me.test"
unique = "x"
"""


def test_limits_of_a_site_are_divided_and_nothing_else_changes(tmp_path):
    config = config_of(tmp_path, TEXT)
    shared = share_config(config, Share(2, 3))
    assert shared.table.defaults.max_connections == 7
    assert shared.table.defaults.helo_name == "me.test"
    slow, other = (shared.table.settings((index,)) for index in (0, 1))
    assert (slow.max_connections, slow.tls) == (1, config.table.settings((0,)).tls)
    assert (other.max_connections, other.tls) == (7, config.table.settings((1,)).tls)
    assert shared.queue is config.queue


def test_reports_of_each_process_have_names_of_their_own(tmp_path):
    config = config_of(tmp_path, TEXT)
    names = [share_config(config, Share(number, 3)).tls_reporter.unique for number in (1, 2, 3)]
    assert names == ["x", "xp2", "xp3"]


def test_one_process_has_it_all(tmp_path):
    config = config_of(tmp_path, TEXT)
    assert share_config(config, Share()) is config


# ---- stores of processes that there are no more ---------------------------------------------------


async def test_mail_that_nobody_is_at_is_found(tmp_path):
    config = config_of(tmp_path, "[worker]\nprocesses = 2\n")
    for number, count in ((1, 1), (2, 1), (3, 0), (5, 2)):
        async with open_store(files_of(config, number).store) as store:
            for _ in range(count):
                await store.submit([mail(at=time.time())])
    (line,) = await stranded(config)
    assert line.startswith(
        f"{tmp_path}/spool-5.sqlite: 2 recipients are here, and nobody is at them with "
        "processes = 2; allowed 5 or more"
    )


async def test_a_store_of_an_earlier_release_that_is_empty_is_no_reason_to_refuse(
    tmp_path, monkeypatch
):
    config = config_of(tmp_path, "")
    with monkeypatch.context() as patch:
        patch.setattr(database, "migrations", lambda: migrations()[:-1])
        async with open_store(files_of(config, 2).store):
            pass
    assert await stranded(config) == []


async def test_without_other_stores_there_is_nothing_to_find(tmp_path):
    assert await stranded(config_of(tmp_path, "")) == []
    assert not list(tmp_path.glob("spool*"))


async def test_one_that_cannot_be_read_is_an_error(tmp_path):
    config = config_of(tmp_path, "")
    files_of(config, 2).store.write_bytes(b"no store" * 1000)
    with pytest.raises(StoreDamagedError, match=r"spool-2\.sqlite"):
        await stranded(config)
