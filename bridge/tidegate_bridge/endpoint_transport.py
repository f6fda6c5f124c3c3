"""Edges connect to the bridge itself: our own MQTT endpoint in front of the uplink service.

PUBACK says here that the bridge has a batch in its hands, within its limits; that the core has it, only the `ack` says.
An edge keeps its events until that, and when the bridge dies its connection dies with it, so it sends them again.

Only uplink topics are taken. A client that publishes anything else is a device that was pointed at the bridge by
mistake: a PUBACK would promise it something that is not so, and MQTT 3.1.1 knows no refusal, so the connection is
closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidegate_bridge.uplink_service import UplinkService
from tidegate_wire.address import Address
from tidegate_wire.mqtt import EndpointLimits, MqttEndpoint, PublishRefused, ReceivedMessage
from tidegate_wire.uplink.topics import FROM_EDGE, parse_topic

_PACKET_SPARE_BYTES: Final = 64 * 1024
"""What a PUBLISH has around a batch: topic, MQTT 5 properties, the batch's prefix with the stream's name."""


class EndpointTransport:
    """Listens for edges."""

    def __init__(self, batch_bytes_max: int) -> None:
        self._endpoint = MqttEndpoint(
            self._append, limits=EndpointLimits(packet_bytes_max=batch_bytes_max + _PACKET_SPARE_BYTES)
        )
        self._service: UplinkService | None = None

    def publish(self, topic: str, payload: bytes) -> None:
        """Send a message to whoever subscribed; what it loses, the uplink asks for again."""
        self._endpoint.publish(topic, payload)

    async def start(self, service: UplinkService, address: Address) -> Address:
        """Listen, and hand what comes to `service`; returns the address it really listens on.

        Raises:
            OSError: the address can't be listened on.
        """
        self._service = service
        return await self._endpoint.start(address)

    async def close(self) -> None:
        """Say goodbye to every edge."""
        await self._endpoint.close()

    async def _append(self, messages: Sequence[ReceivedMessage]) -> None:
        service = self._service
        assert service is not None, "messages before start"
        strangers: dict[str, str] = {}
        for message in messages:
            parsed = parse_topic(message.topic)
            if parsed is None or parsed[1] not in FROM_EDGE:
                strangers[message.client_id] = message.topic
                continue
            if not service.has_room:
                await service.room()
            service.receive(*parsed, message.payload)
        if strangers:
            topic = next(iter(strangers.values()))
            raise PublishRefused(strangers.keys(), f"{topic!r} is no uplink topic; devices publish to an edge")
