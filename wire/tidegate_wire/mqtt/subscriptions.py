"""Who receives what: the subscriptions of all sessions, and the route of a topic through them.

A session gets one copy of a message, however many of its filters match: at their highest QoS, with all their
identifiers (MQTT 5, section 3.3.4). Of each share group one session gets it (section 4.8.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from tidegate_wire.mqtt.packets import Subscription
from tidegate_wire.mqtt.topic_tree import TopicTree
from tidegate_wire.mqtt.topics import split_shared

_CACHED_ROUTES_MAX: Final = 8_192
"""Routes remembered by topic, as many as topic names are; a change of subscriptions forgets them all."""
_CACHED_TARGETS_MAX: Final = 100_000
"""Targets of all routes remembered; with a thousand subscribers to everything, a hundred topics."""


class Subscriber(Protocol):
    """Whoever holds a subscription; compared by identity."""

    client_id: str

    @property
    def is_connected(self) -> bool:
        """Whether a message would go out now."""


S = TypeVar("S", bound=Subscriber)


@dataclass(frozen=True, slots=True)
class Grant:
    """A subscription as it was granted."""

    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    identifiers: tuple[int, ...] = ()

    @classmethod
    def of(cls, subscription: Subscription, identifiers: tuple[int, ...]) -> Grant:
        """All that `subscription` asks for is granted."""
        return cls(subscription.qos, subscription.no_local, subscription.retain_as_published, identifiers)


def _merged(grants: Iterable[Grant]) -> Grant | None:
    """One grant for all that match; None for none."""
    listed = list(grants)
    if len(listed) < 2:
        return listed[0] if listed else None
    return Grant(
        max(grant.qos for grant in listed),
        False,
        any(grant.retain_as_published for grant in listed),
        tuple(identifier for grant in listed for identifier in grant.identifiers),
    )


@dataclass(slots=True)
class Target(Generic[S]):
    """A session that a route leads to."""

    subscriber: S
    grant: Grant
    """For messages of other clients."""
    own_grant: Grant | None
    """For messages that the subscriber itself published; None where every filter says No Local."""


@dataclass(slots=True)
class ShareGroup(Generic[S]):
    """The members of one `$share/{group}/{filter}`, in turn."""

    members: dict[S, Grant] = field(default_factory=dict)
    _turn: int = 0

    def next(self) -> tuple[S, Grant]:
        """The member whose turn it is; one without a connection only where none has one."""
        members = list(self.members.items())
        for _ in members:
            self._turn = (self._turn + 1) % len(members)
            if members[self._turn][0].is_connected:
                break
        else:
            self._turn = (self._turn + 1) % len(members)
        return members[self._turn]


@dataclass(slots=True)
class Route(Generic[S]):
    """Where a topic's messages go."""

    targets: list[Target[S]]
    groups: list[ShareGroup[S]]


class Subscriptions(Generic[S]):
    """The subscriptions of every session of an endpoint."""

    def __init__(self) -> None:
        self._plain: TopicTree[dict[S, Grant]] = TopicTree()
        self._shared: TopicTree[dict[str, ShareGroup[S]]] = TopicTree()
        self._size = 0
        self._routes: dict[str, Route[S]] = {}
        self._routed_targets = 0

    def __len__(self) -> int:
        return self._size

    def add(self, subscriber: S, topic_filter: str, grant: Grant) -> bool:
        """Add a subscription, or change it; True if it is new."""
        self._forget_routes()
        shared = split_shared(topic_filter)
        if shared is None:
            members = self._plain.get(topic_filter)
            if members is None:
                members = {}
                self._plain.set(topic_filter, members)
        else:
            groups = self._shared.get(shared.topic_filter)
            if groups is None:
                groups = {}
                self._shared.set(shared.topic_filter, groups)
            members = groups.setdefault(shared.group, ShareGroup()).members
        is_new = subscriber not in members
        self._size += is_new
        members[subscriber] = grant
        return is_new

    def remove(self, subscriber: S, topic_filter: str) -> bool:
        """Remove a subscription; False if there was none."""
        self._forget_routes()
        shared = split_shared(topic_filter)
        if shared is None:
            members = self._plain.get(topic_filter)
            if members is None or members.pop(subscriber, None) is None:
                return False
            self._size -= 1
            if not members:
                self._plain.remove(topic_filter)
            return True
        groups = self._shared.get(shared.topic_filter)
        group = None if groups is None else groups.get(shared.group)
        if groups is None or group is None or group.members.pop(subscriber, None) is None:
            return False
        self._size -= 1
        if not group.members:
            del groups[shared.group]
            if not groups:
                self._shared.remove(shared.topic_filter)
        return True

    def route(self, topic: str) -> Route[S]:
        """Where messages of `topic` go."""
        route = self._routes.get(topic)
        if route is None:
            if len(self._routes) >= _CACHED_ROUTES_MAX or self._routed_targets >= _CACHED_TARGETS_MAX:
                self._forget_routes()
            route = self._routes[topic] = self._find(topic)
            self._routed_targets += len(route.targets)
        return route

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._routed_targets = 0

    def _find(self, topic: str) -> Route[S]:
        grants: dict[S, list[Grant]] = {}
        for members in self._plain.matching(topic):
            for subscriber, grant in members.items():
                grants.setdefault(subscriber, []).append(grant)
        targets = []
        for subscriber, matching in grants.items():
            merged = _merged(matching)
            assert merged is not None
            own = _merged(single for single in matching if not single.no_local)
            targets.append(Target(subscriber, merged, own))
        groups = [group for by_name in self._shared.matching(topic) for group in by_name.values()]
        return Route(targets, groups)
