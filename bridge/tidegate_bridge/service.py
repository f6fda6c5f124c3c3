"""A running bridge: the uplink service with the transport that the settings name."""

from __future__ import annotations

import asyncio
import contextlib
from random import SystemRandom

import structlog

from tidegate_bridge.backoff import Chance
from tidegate_bridge.broker_transport import BrokerTransport
from tidegate_bridge.endpoint_transport import EndpointTransport
from tidegate_bridge.errors import BridgeConfigError
from tidegate_bridge.settings import BridgeSettings
from tidegate_bridge.uplink_service import UplinkService
from tidegate_wire.address import Address
from tidegate_wire.readiness import announce_ready

_log = structlog.get_logger()


async def run(settings: BridgeSettings) -> None:
    """Serve until cancelled, then answer what is in flight, for a few seconds at most.

    A core that does not answer is waited for; edges then get no welcome, and keep their events.

    Raises:
        BridgeConfigError: the address can't be listened on.
        OSError: the ready file can't be written.
    """
    chance = SystemRandom().random
    if settings.listen is not None:
        await _listen(settings, Address.parse(settings.listen), chance)
    else:
        assert settings.broker is not None, "the settings check that there is one of the two"
        await _subscribe(settings, Address.parse_mqtt_url(settings.broker), chance)


async def _listen(settings: BridgeSettings, address: Address, chance: Chance) -> None:
    transport = EndpointTransport(settings.batch_bytes_max)
    async with UplinkService(settings, transport.publish, chance=chance) as service:
        try:
            listening = await transport.start(service, address)
        except OSError as error:
            raise BridgeConfigError(
                f"listen = {address}: {error.strerror or error}", hint="choose another port, or stop what uses it"
            ) from error
        try:
            announce_ready(settings.ready_file, listen=str(listening), core=list(settings.core))
            _log.info("bridge_listens", address=str(listening), core=settings.core)
            await asyncio.Event().wait()
        finally:
            await service.drain()
            await transport.close()
            _log.info("bridge_stopped", **service.stats.to_log())


async def _subscribe(settings: BridgeSettings, broker: Address, chance: Chance) -> None:
    transport = BrokerTransport(
        broker, shared=settings.shared_subscription, batch_bytes_max=settings.batch_bytes_max, chance=chance
    )

    def ready() -> None:
        announce_ready(settings.ready_file, listen=None, broker=settings.broker, core=list(settings.core))

    async with UplinkService(settings, transport.publish, chance=chance) as service:
        running = asyncio.create_task(transport.run(service, ready))
        try:
            await asyncio.shield(running)
        finally:
            await service.drain()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            _log.info("bridge_stopped", **service.stats.to_log())
