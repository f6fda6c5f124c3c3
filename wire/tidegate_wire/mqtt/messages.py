"""What passes between the endpoint and the program that hosts it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

_USER_PROPERTY_OVERHEAD_BYTES: Final = 200
"""What a user property takes in memory beside its text (measured: 175; a tuple and two strings)."""


@dataclass(slots=True)
class ReceivedMessage:
    """One PUBLISH from a client. Not frozen because a frozen dataclass takes three times as long to make; nobody
    changes one.
    """

    client_id: str
    topic: str
    """A topic name: valid UTF-8, not empty, without wildcards or U+0000; a topic alias is already resolved."""
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    """The client says that it sent this before. Whether it was stored then is for `append` to find out."""
    packet_id: int = 0
    """1 to 65535, chosen by the client; 0 for QoS 0."""
    user_properties: tuple[tuple[str, str], ...] = ()
    """MQTT 5, as all that follow; the default stands for absent."""
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    payload_format_indicator: int | None = None
    """0: bytes, 1: the payload is UTF-8."""
    message_expiry_interval_s: int | None = None

    @property
    def content_bytes(self) -> int:
        """What it counts against limits of bytes: topic, payload and properties."""
        size = len(self.topic) + len(self.payload) + len(self.correlation_data or b"")
        size += len(self.content_type or "") + len(self.response_topic or "")
        for name, value in self.user_properties:
            size += len(name) + len(value) + _USER_PROPERTY_OVERHEAD_BYTES
        return size


class PublishRefused(Exception):  # noqa: N818  # says what it is
    """Raised by `append` when it took a group but for everything that some clients sent in it: only these clients are
    closed without acknowledgement.
    """

    def __init__(self, client_ids: Set[str], reason: str) -> None:
        super().__init__(reason)
        self.client_ids = client_ids


Append = Callable[[Sequence[ReceivedMessage]], Awaitable[None]]
"""Takes a group of messages and returns when every one is safe, in the order given; only then they are acknowledged.

While it waits, nothing is acknowledged. If it raises `PublishRefused`, the clients that it names are closed without
acknowledgement; if it raises anything else, all clients of the group.
"""
