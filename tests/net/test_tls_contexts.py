"""Contexts are made once, off the loop, and again when their files change."""

from __future__ import annotations

import logging
import os
import ssl
import threading

import pytest
import trio

from engine.net import tls_contexts
from engine.net.tls_contexts import TlsContexts
from engine.net.tls_material import TlsMaterial, make_context
from tests.certificates import make

ROOT = make("root", is_ca=True)


@pytest.fixture
def made(monkeypatch):
    """Count the contexts made, and see in which thread."""
    threads = []

    def counted(material, *, verifies):
        threads.append(threading.current_thread())
        return make_context(material, verifies=verifies)

    monkeypatch.setattr(tls_contexts, "make_context", counted)
    return threads


@pytest.fixture
def material(tmp_path):
    (tmp_path / "ca.pem").write_bytes(ROOT.pem)
    return TlsMaterial(ca_file=str(tmp_path / "ca.pem"))


def change(material, octets):
    file = material.ca_file
    with open(file, "wb") as opened:  # noqa: PTH123
        opened.write(octets)
    later = os.stat(file).st_mtime + 10  # noqa: PTH116
    os.utime(file, (later, later))


async def test_a_context_is_made_once_however_many_ask_and_not_on_the_loop(made, material):
    contexts = TlsContexts()
    found = []

    async def ask():
        found.append(await contexts.get(material, verifies=True))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len(set(map(id, found))) == 1
    (thread,) = made
    assert thread is not threading.main_thread()


async def test_a_context_without_files_is_made_at_once(made):
    await TlsContexts().get(TlsMaterial(), verifies=False)
    assert made == [threading.main_thread()]


async def test_other_material_is_another_context(made, material):
    contexts = TlsContexts()
    first = await contexts.get(material, verifies=True)
    assert first.verify_mode is ssl.CERT_REQUIRED
    second = await contexts.get(material, verifies=False)
    assert second.verify_mode is ssl.CERT_NONE
    third = await contexts.get(TlsMaterial(), verifies=False)
    assert len({first, second, third}) == 3


async def test_it_stays_as_long_as_its_files_do(made, material, autojump_clock):
    contexts = TlsContexts()
    context = await contexts.get(material, verifies=True)
    await trio.sleep(1000)
    assert await contexts.get(material, verifies=True) is context
    assert len(made) == 1


async def test_a_changed_file_is_a_new_context_a_minute_later(made, material, autojump_clock):
    contexts = TlsContexts()
    context = await contexts.get(material, verifies=True)
    other = make("other", is_ca=True)
    change(material, other.pem)
    assert await contexts.get(material, verifies=True) is context
    await trio.sleep(61)
    renewed = await contexts.get(material, verifies=True)
    assert renewed.get_ca_certs(binary_form=True) == [other.der]


@pytest.mark.parametrize("content", [b"", b"junk", None])
async def test_a_file_that_goes_bad_is_a_warning_and_the_old_context_goes_on(
    made, material, content, autojump_clock, caplog
):
    contexts = TlsContexts()
    context = await contexts.get(material, verifies=True)
    if content is None:
        os.unlink(material.ca_file)  # noqa: PTH108
    else:
        change(material, content)
    await trio.sleep(61)
    with caplog.at_level(logging.WARNING, "engine.net"):
        assert await contexts.get(material, verifies=True) is context
    (record,) = caplog.records
    assert "the old ones are" in record.getMessage()
    change(material, ROOT.pem)
    await trio.sleep(61)
    assert await contexts.get(material, verifies=True) is not context


async def test_what_was_never_good_raises_each_time(tmp_path):
    contexts = TlsContexts()
    bad = TlsMaterial(ca_file=str(tmp_path / "none.pem"))
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            await contexts.get(bad, verifies=True)


async def test_only_so_many_are_kept(made):
    contexts = TlsContexts()
    first = await contexts.get(TlsMaterial(ciphers="HIGH"), verifies=False)
    for number in range(64):
        await contexts.get(TlsMaterial(ciphers="HIGH" + ":HIGH" * (number + 1)), verifies=False)
    assert await contexts.get(TlsMaterial(ciphers="HIGH"), verifies=False) is not first
    assert len(contexts._kept) == len(contexts._looked) == 64
