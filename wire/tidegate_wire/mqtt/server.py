"""All of an endpoint but its sockets: the broker, the intake and the connections, sans-IO.

Everything happens in turns. A turn begins with what a socket, the clock or `append` brings, and ends with `flush`: each
connection then writes once, whatever was sent to it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from tidegate_wire.mqtt.broker import Broker
from tidegate_wire.mqtt.connection import Link, ServerConnection
from tidegate_wire.mqtt.intake import Group, Intake
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.stats import EndpointStats
from tidegate_wire.mqtt.topics import TopicNames, check_topic_name


class Server:
    """Whoever runs it takes groups from `intake`, has them appended, and says so with `appended` or `failed`, in order.

    `make_client_id` is asked for an id for each client that brings none; the callbacks are `MqttEndpoint`'s.
    """

    def __init__(
        self,
        limits: EndpointLimits,
        stats: EndpointStats,
        *,
        make_client_id: Callable[[], str],
        on_connect: Callable[[str], None] | None = None,
        on_disconnect: Callable[[str, str], None] | None = None,
    ) -> None:
        self.limits = limits
        self.stats = stats
        self.make_client_id = make_client_id
        self.on_connect = on_connect
        self.on_disconnect = on_disconnect
        self.intake = Intake(limits, stats)
        self.broker = Broker(limits, stats, publish_will=self._take_will)
        self.topics = TopicNames(bytes_max=limits.topic_bytes_max, levels_max=limits.topic_levels_max)
        self.connections: dict[str, ServerConnection] = {}
        """By client id, those that CONNECT was accepted from."""
        self.unflushed: list[ServerConnection] = []
        """Those with something to write when the turn ends."""

    def accept(self, link: Link, *, peer: str, now_s: float) -> ServerConnection:
        """The connection for a new socket."""
        return ServerConnection(self, link, peer=peer, now_s=now_s)

    def publish(self, message: ReceivedMessage, now_s: float) -> None:
        """Deliver a message of the host program.

        Raises:
            ProtocolViolationError: its topic is not a topic name.
        """
        check_topic_name(message.topic)
        self.broker.publish(message, now_s)

    def appended(self, group: Group, now_s: float) -> None:
        """`group` is safe: acknowledge its messages, then deliver them."""
        self.intake.appended(group)
        if group.has_retained or self.broker.has_subscribers:
            for message in group.messages:
                self.broker.publish(message, now_s)
        self.intake.resume_paused(now_s)

    def failed(self, group: Group, now_s: float) -> None:
        """`group` is not safe: close its connections."""
        self.intake.failed(group, now_s)
        self.intake.resume_paused(now_s)

    def refused(self, group: Group, client_ids: Set[str], now_s: float) -> None:
        """`group` is safe but for what some clients sent in it: close those, acknowledge and deliver the rest."""
        self.intake.refused(group, client_ids, now_s)
        self.appended(group, now_s)

    def flush(self) -> None:
        """End a turn: every connection writes what it gathered, once."""
        unflushed = self.unflushed
        while unflushed:
            unflushed.pop().flush()

    def _take_will(self, message: ReceivedMessage) -> None:
        self.intake.add(message)
