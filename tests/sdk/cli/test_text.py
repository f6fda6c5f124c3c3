from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.cli.text import printable


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b'{"temperature": 21.5, "unit": "\xc2\xb0C"}', '{"temperature": 21.5, "unit": "°C"}'),
        (b"\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        (b"a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("a\u2028b", "a\\u2028b"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(data: bytes | str, shown: str) -> None:
    assert printable(data) == shown


@given(st.binary())
def test_nothing_but_printable_characters_comes_out(data: bytes) -> None:
    assert printable(data).isprintable()
