from __future__ import annotations

import inspect

import pytest

from engine import aio, blocking
from engine import engine as native
from engine.errors import ConfigError
from engine.signature import takes_arguments_of


class Native:
    def __init__(self, host: str, *, port: int = 25) -> None:
        """Make the one."""


class Wrapper:
    @takes_arguments_of(Native.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        """Make the other."""
        self.given = args, kwargs


def test_a_constructor_shows_the_arguments_of_another_and_its_own_text():
    assert inspect.signature(Wrapper) == inspect.signature(Native)
    assert Wrapper.__init__.__doc__ == "Make the other."
    assert Wrapper.__init__.__qualname__ == "Wrapper.__init__"


def test_it_is_given_what_it_was_called_with():
    assert Wrapper("mx.test", port=2525).given == (("mx.test",), {"port": 2525})


@pytest.mark.parametrize("constructor", [blocking.Engine, aio.Engine])
def test_a_hosted_engine_takes_whatever_an_engine_takes(constructor: type):
    assert inspect.signature(constructor) == inspect.signature(native.Engine)
    with pytest.raises(ConfigError):
        constructor(routes=[("no good pattern", [])])
    with pytest.raises(TypeError, match="bogus"):
        constructor(bogus=1)
