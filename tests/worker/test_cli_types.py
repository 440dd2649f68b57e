from __future__ import annotations

import click
import pytest

from engine.worker.cli_types import SetType


@pytest.mark.parametrize("text", ["port=25", "port=", " tls = off ", "proxy=socks5://h?weight=3"])
def test_a_setting_is_taken_as_it_stands(text: str):
    assert SetType().convert(text, None, None) == text


@pytest.mark.parametrize("text", ["port", "", "=5", " =5", "hunter2"])
def test_what_has_no_key_is_refused_and_not_shown(text: str):
    with pytest.raises(click.BadParameter) as caught:
        SetType().convert(text, None, None)
    assert caught.value.message == 'found no "KEY="; allowed KEY=VALUE'
