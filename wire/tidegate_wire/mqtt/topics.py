"""Topic names and topic filters (MQTT 5, section 4.7 and 4.8.2)."""

from __future__ import annotations

from typing import Final, NamedTuple

from tidegate_wire.mqtt.errors import MalformedPacketError, ProtocolViolationError
from tidegate_wire.mqtt.primitives import decode_utf8
from tidegate_wire.mqtt.reason_codes import ReasonCode

SHARE_PREFIX: Final = "$share/"

_SPECIFICATION_BYTES_MAX: Final = 65_535
_CACHED_NAMES_MAX: Final = 8_192
"""Topic names a cache keeps; full, it starts anew. At 200 bytes each the cache stays below 4 MB."""


class SharedFilter(NamedTuple):
    """The two parts of `$share/{group}/{filter}`."""

    group: str
    topic_filter: str


class TopicNames:
    """Checks topic names, and remembers the ones that passed: devices send the same few again and again."""

    __slots__ = ("_bytes_max", "_levels_max", "known")

    def __init__(
        self, *, bytes_max: int = _SPECIFICATION_BYTES_MAX, levels_max: int = _SPECIFICATION_BYTES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._levels_max = levels_max
        self.known: dict[bytes, str] = {}
        """Names by their UTF-8 bytes; a hot path looks here first and calls `decode` for the others."""

    def decode(self, raw: bytes) -> str:
        """The topic name that `raw` is.

        Raises:
            MalformedPacketError: it is not a UTF-8 string.
            ProtocolViolationError: it is no topic name, or one above the limits.
        """
        name = self.known.get(raw)
        if name is not None:
            return name
        if len(raw) > self._bytes_max:
            raise ProtocolViolationError(
                f"a topic name of {len(raw)} bytes; at most {self._bytes_max} are taken", ReasonCode.TOPIC_NAME_INVALID
            )
        name = decode_utf8(raw)
        check_topic_name(name)
        if name.count("/") >= self._levels_max:
            raise ProtocolViolationError(
                f"a topic name of more than {self._levels_max} levels", ReasonCode.TOPIC_NAME_INVALID
            )
        if len(self.known) >= _CACHED_NAMES_MAX:
            self.known.clear()
        self.known[raw] = name
        return name


def check_topic_name(name: str) -> None:
    """Refuse what is no topic name.

    Raises:
        ProtocolViolationError: it is empty, or has a wildcard.
    """
    if not name or "+" in name or "#" in name:
        raise ProtocolViolationError(
            f"{name[:40]!r} is not a topic name: it is empty or has a wildcard", ReasonCode.TOPIC_NAME_INVALID
        )


def check_topic_filter(text: str) -> None:
    """Refuse what is no topic filter, shared or not.

    Raises:
        MalformedPacketError: it is empty, a wildcard does not stand where it may, or a share name is wrong.
    """
    shared = split_shared(text)
    topic_filter = text if shared is None else shared.topic_filter
    if not topic_filter:
        raise MalformedPacketError(f"{text[:40]!r} is not a topic filter: it is empty")
    levels = topic_filter.split("/")
    if any(len(level) > 1 and ("+" in level or "#" in level) for level in levels) or "#" in levels[:-1]:
        raise MalformedPacketError(
            f"{text[:40]!r} is not a topic filter: + and # stand for whole levels, # only for the last"
        )
    if shared is not None and (not shared.group or "+" in shared.group or "#" in shared.group):
        raise MalformedPacketError(f"{text[:40]!r}: a share name has at least one character and no wildcard")


def split_shared(text: str) -> SharedFilter | None:
    """The parts of a shared subscription's filter; None for every other filter."""
    if not text.startswith(SHARE_PREFIX):
        return None
    group, _, topic_filter = text[len(SHARE_PREFIX) :].partition("/")
    return SharedFilter(group, topic_filter)
