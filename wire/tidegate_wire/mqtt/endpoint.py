"""The asyncio shell: sockets in, groups of messages out, acknowledgements back."""

from __future__ import annotations

from collections.abc import Callable

from tidegate_wire.address import Address
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import Append
from tidegate_wire.mqtt.stats import EndpointStats


class MqttEndpoint:
    """An MQTT 3.1.1 and 5 server whose PUBACK waits for `append`.

    `commit_interval_ms` is how long a group fills before it is appended, at least: it trades latency for fewer
    commits. `on_connect(client_id)` and `on_disconnect(client_id, reason)` are told of clients as they come and go.
    """

    stats: EndpointStats

    def __init__(
        self,
        append: Append,
        *,
        limits: EndpointLimits | None = None,
        appends_in_flight_max: int = 1,
        commit_interval_ms: int = 0,
        on_connect: Callable[[str], None] | None = None,
        on_disconnect: Callable[[str, str], None] | None = None,
    ) -> None:
        raise NotImplementedError

    async def start(self, address: Address) -> Address:
        """Listen; returns the address it really listens on (port 0 asks for a free port).

        Raises:
            OSError: the address can't be listened on.
        """
        raise NotImplementedError

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Deliver a message of the host program to subscribers; it is not appended.

        Raises:
            ValueError: `topic` is not a topic name, or `qos` is not 0, 1 or 2.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Stop listening, tell MQTT 5 clients that the server shuts down, and close their sockets."""
        raise NotImplementedError
