"""The topics of the uplink: `tidegate/v1/{edge}/{kind}`."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

PREFIX: Final = "tidegate/v1"

EDGE_ID_MAX_LENGTH: Final = 128
"""Keeps every uplink topic short of 200 bytes, and an edge's id readable in a table."""

_EDGE_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{EDGE_ID_MAX_LENGTH - 1}}}")


class UplinkKind(StrEnum):
    """What an uplink message is; the last level of its topic."""

    HELLO = "hello"
    WELCOME = "welcome"
    BATCH = "batch"
    ACK = "ack"
    PRESENCE = "presence"
    CONFIG = "config"
    COMMAND = "command"


FROM_EDGE: Final = (UplinkKind.HELLO, UplinkKind.BATCH, UplinkKind.PRESENCE)
TO_EDGE: Final = (UplinkKind.WELCOME, UplinkKind.ACK, UplinkKind.CONFIG, UplinkKind.COMMAND)


def is_edge_id(text: str) -> bool:
    """Whether `text` may name an edge: a letter or digit, then letters, digits, `.`, `_`, `-`; at most 128."""
    return _EDGE_ID.fullmatch(text) is not None


def topic(edge: str, kind: UplinkKind) -> str:
    """The topic on which `edge` and its bridge exchange `kind`."""
    assert is_edge_id(edge), edge
    return f"{PREFIX}/{edge}/{kind.value}"


def filter_for(kind: UplinkKind) -> str:
    """The topic filter that matches `kind` of every edge."""
    return f"{PREFIX}/+/{kind.value}"


def parse_topic(text: str) -> tuple[str, UplinkKind] | None:
    """The edge and kind an uplink topic names; None if it is not an uplink topic."""
    levels = text.split("/")
    if len(levels) != 4 or f"{levels[0]}/{levels[1]}" != PREFIX or not is_edge_id(levels[2]):
        return None
    try:
        return levels[2], UplinkKind(levels[3])
    except ValueError:
        return None
