"""What options on the command line take, where several commands share them.

Part of `engine.worker.cli`: only click is imported with it.
"""

from __future__ import annotations

import click


class SetType(click.ParamType[str]):
    """`KEY=VALUE`; whether the key is known and the value good is the configuration's to say."""

    name = "key=value"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text when it has a key; fail as bad usage when not."""
        key, equals, _ = value.partition("=")
        if not equals or not key.strip():
            # Not quoted: it may be a secret whose key is missing.
            self.fail('found no "KEY="; allowed KEY=VALUE', param, ctx)
        return value
