"""Received messages on their way to `append`, in groups, and the acknowledgements that wait for them.

While one group is appended the next one fills: a slower log gets larger groups, and no timer is needed. A group is
released whole: everything in it is acknowledged, or nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from typing import Final, Protocol

from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.stats import EndpointStats

MESSAGE_OVERHEAD_BYTES: Final = 250
"""What a held message takes in memory beside its packet's bytes (measured: 210 to 245)."""


class Acks:
    """What one connection is owed when a group is safe."""

    __slots__ = ("pubacks", "pubrecs", "repeated")

    def __init__(self, pubacks: list[bytes] | None = None) -> None:
        self.pubacks: list[bytes] = [] if pubacks is None else pubacks
        """Packet ids, two bytes each, in the order received."""
        self.pubrecs: list[int] = []
        """Packet ids of QoS 2 messages of this group."""
        self.repeated: list[int] = []
        """Packet ids of QoS 2 messages of an earlier group that were sent again."""


class Publisher(Protocol):
    """A connection, as the intake sees it; compared by identity."""

    client_id: str

    def acknowledge(self, acks: Acks) -> None:
        """Everything in `acks` is safe."""

    def abandon(self, acks: Acks, now_s: float) -> None:
        """Nothing in `acks` is safe: close without acknowledging."""

    def resume(self, now_s: float) -> None:
        """There is room again: go on reading."""


class Group:
    """The messages of one call of `append`."""

    __slots__ = ("acks", "has_retained", "held_bytes", "messages", "packet_bytes")

    def __init__(self) -> None:
        self.messages: list[ReceivedMessage] = []
        self.acks: dict[Publisher, Acks] = {}
        """Every connection with a message in this group, also if it is owed nothing (QoS 0)."""
        self.packet_bytes = 0
        self.held_bytes = 0
        self.has_retained = False

    def __bool__(self) -> bool:
        return bool(self.messages or self.acks)

    def acks_for(self, publisher: Publisher) -> Acks:
        """What `publisher` is owed for this group."""
        acks = self.acks.get(publisher)
        if acks is None:
            acks = self.acks[publisher] = Acks()
        return acks

    def drop_clients(self, client_ids: Set[str]) -> tuple[int, int]:
        """Take out the messages of some clients; returns their number and how much less the group holds."""
        kept = [message for message in self.messages if message.client_id not in client_ids]
        dropped = len(self.messages) - len(kept)
        held = self.held_bytes * dropped // max(1, len(self.messages))
        self.messages = kept
        self.held_bytes -= held
        return dropped, held


class Intake:
    """The groups that wait, the last of which fills; bounded by `held_bytes_max`, past which publishers pause."""

    def __init__(self, limits: EndpointLimits, stats: EndpointStats) -> None:
        self._limits = limits
        self._stats = stats
        self._full: deque[Group] = deque()
        self._filling = Group()
        self._paused: dict[Publisher, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether publishers must pause."""
        return self._stats.held_bytes >= self._limits.held_bytes_max

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits for `append`."""
        return not self._filling and not self._full

    @property
    def has_full_group(self) -> bool:
        """Whether a group waits that will not grow any more."""
        return bool(self._full)

    def open_group(self) -> Group:
        """The group that fills, with room for one message at least."""
        group = self._filling
        limits = self._limits
        if len(group.messages) >= limits.group_messages_max or group.packet_bytes >= limits.group_bytes_max:
            self._full.append(group)
            group = self._filling = Group()
        return group

    def count(self, group: Group, messages: int, packet_bytes: int) -> None:
        """Account for messages that were added to `group`."""
        held = packet_bytes + messages * MESSAGE_OVERHEAD_BYTES
        group.packet_bytes += packet_bytes
        group.held_bytes += held
        stats = self._stats
        stats.held_bytes += held
        stats.messages_received += messages

    def add(self, message: ReceivedMessage) -> Group:
        """Add one message; returns the group it is in."""
        group = self.open_group()
        group.messages.append(message)
        group.has_retained |= message.retain
        self.count(group, 1, message.content_bytes)
        return group

    def pause(self, publisher: Publisher) -> None:
        """`publisher` stops until there is room."""
        self._stats.read_pauses += 1
        self._paused[publisher] = None

    def forget(self, publisher: Publisher) -> None:
        """`publisher` is gone; what it sent before stays."""
        self._paused.pop(publisher, None)

    def take(self) -> Group | None:
        """The next group for `append`, or None where nothing waits."""
        if self._full:
            return self._full.popleft()
        if not self._filling:
            return None
        group = self._filling
        self._filling = Group()
        return group

    def appended(self, group: Group) -> None:
        """`group` is safe: acknowledge it."""
        stats = self._stats
        stats.groups_appended += 1
        stats.messages_appended += len(group.messages)
        stats.held_bytes -= group.held_bytes
        for publisher, acks in group.acks.items():
            publisher.acknowledge(acks)

    def failed(self, group: Group, now_s: float) -> None:
        """`group` is not safe: drop it, and what its clients sent after it, so that they send all in order again."""
        stats = self._stats
        stats.append_failures += 1
        stats.held_bytes -= group.held_bytes
        stats.messages_unappended += len(group.messages)
        client_ids = {publisher.client_id for publisher in group.acks}
        self._abandon(client_ids, (*self._full, self._filling), list(group.acks.items()), now_s)

    def refused(self, group: Group, client_ids: Set[str], now_s: float) -> None:
        """Take out of `group`, and of what waits, all that some clients sent, and close them."""
        self._abandon(client_ids, (group, *self._full, self._filling), [], now_s)

    def _abandon(
        self, client_ids: Set[str], groups: Sequence[Group], abandoned: list[tuple[Publisher, Acks]], now_s: float
    ) -> None:
        """Drop what some clients sent in some groups, and close them and whoever was `abandoned` before."""
        stats = self._stats
        for group in groups:
            dropped, held = group.drop_clients(client_ids)
            stats.messages_unappended += dropped
            stats.held_bytes -= held
            theirs = [publisher for publisher in group.acks if publisher.client_id in client_ids]
            abandoned += [(publisher, group.acks.pop(publisher)) for publisher in theirs]
        for publisher, acks in abandoned:
            publisher.abandon(acks, now_s)

    def resume_paused(self, now_s: float) -> None:
        """Let paused publishers go on, the one that waits longest first, while there is room."""
        for publisher in list(self._paused):
            if self.is_full:
                return
            if publisher in self._paused:
                del self._paused[publisher]
                publisher.resume(now_s)
