"""Check at start what settings name for TLS: files, keys and ciphers that cannot be used.

Called by whoever starts something with settings; what may be wrong is `engine.net.tls_material`'s to
say, which brings OpenSSL along and so is loaded only where there is anything to check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.paths import refuse_wherever

if TYPE_CHECKING:
    from engine.paths import SettingsTable
    from engine.settings import Problem, Settings


def names_files(table: SettingsTable) -> bool:
    """Whether `refuse_bad_files` has anything to do."""
    rules = (table.settings((number,)) for number in range(len(table.rules)))
    return any(map(_has_material, (table.defaults, *rules)))


def refuse_bad_files(table: SettingsTable) -> None:
    """Refuse files, keys and ciphers for TLS that cannot be used.  Reads them: it blocks.

    Raises:
        ConfigError: A problem for each of them.
    """
    refuse_wherever(table, file_problems)


def file_problems(settings: Settings) -> list[Problem]:
    """Find what is wrong with the files, keys and ciphers for TLS; blocks where there are any."""
    if not _has_material(settings):
        return []
    from engine.net.tls_material import TlsMaterial, material_problems  # it brings OpenSSL along

    return material_problems(TlsMaterial.from_settings(settings))


def _has_material(settings: Settings) -> bool:
    return any((settings.tls_ca_file, settings.tls_certificate, settings.tls_ciphers))
