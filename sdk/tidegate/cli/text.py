"""Bytes and text of devices as a terminal may show them."""

from __future__ import annotations


def printable(data: bytes | str) -> str:
    """The text with everything escaped that a terminal might obey, or that would change how the rest reads.

    That is whatever Unicode does not call printable: control characters, line separators, direction overrides; and
    bytes that are not UTF-8.
    """
    text = data if isinstance(data, str) else data.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
