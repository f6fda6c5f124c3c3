"""The agent: MQTT endpoint, event log and uplink of one edge, wired together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

import structlog

from tidegate_edge.event_log import EventLog, LogLimits
from tidegate_edge.router import Route, Router
from tidegate_edge.settings import EdgeSettings
from tidegate_edge.uplink import Uplink, UplinkOptions
from tidegate_wire.address import Address
from tidegate_wire.errors import ConfigError, UnreachableError
from tidegate_wire.mqtt import MqttEndpoint, ReceivedMessage

log = structlog.get_logger()


class Agent:
    """One edge. `start`, then `wait` until something fails or it is cancelled, then `close`."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._router = Router(
            [Route(stream=stream.name, filters=stream.topics) for stream in settings.streams], settings.default_stream
        )
        self._log: EventLog | None = None
        self._endpoint: MqttEndpoint | None = None
        self._uplink: asyncio.Task[None] | None = None

    async def start(self) -> Address:
        """Open the log, listen for devices, start the uplink; returns the address that is listened on.

        Raises:
            ConfigError, IntegrityError, EventLogFailed: the event log can't be used; see `errors`.
            UnreachableError: the address can't be listened on.
        """
        settings = self._settings
        names = (*(stream.name for stream in settings.streams), settings.default_stream)
        limits = LogLimits(
            backlog_bytes_max=settings.backlog_bytes_max,
            backlog_events_max=settings.backlog_events_max,
            when_full=settings.when_full,
            disk_free_bytes_min=settings.disk_free_bytes_min,
        )
        try:
            self._log = await EventLog.open(settings.data_dir, edge=settings.id, streams=names, limits=limits)
        except OSError as error:
            raise ConfigError(
                f"data_dir: {settings.data_dir} can't be used: {error.strerror}", hint="give a --data-dir to write to"
            ) from error
        stats = self._log.stats
        log.info("edge.log_opened", events=stats.events, batches=len(self._log.batches), lost=stats.lost_events)
        endpoint = MqttEndpoint(self._append, commit_interval_ms=settings.commit_interval_ms)
        try:
            address = await endpoint.start(Address.parse(settings.listen))
        except OSError as error:
            raise UnreachableError(
                f"listen: {settings.listen} can't be listened on: {error.strerror}",
                hint="is another broker running there? Give another --listen",
            ) from error
        self._endpoint = endpoint
        self._uplink = asyncio.create_task(Uplink(self._log, self._uplink_options()).run(), name="uplink")
        return address

    async def wait(self) -> None:
        """Return never; raises what ended the event log or the uplink.

        Raises:
            EventLogFailed, EventLogDamaged: the disk failed.
        """
        assert self._log is not None
        assert self._uplink is not None
        failed = asyncio.create_task(self._log.failed())
        try:
            await asyncio.wait({failed, self._uplink}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            await self._uplink
        finally:
            failed.cancel()

    async def close(self) -> None:
        """Stop listening, commit what was received, say goodbye to the broker, close the log."""
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._uplink is not None:
            self._uplink.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._uplink
        if self._log is not None:
            await self._log.close()

    async def _append(self, messages: Sequence[ReceivedMessage]) -> None:
        assert self._log is not None
        events = self._router.events(messages, time.time_ns() // 1_000_000)
        if events:
            await self._log.append(events)

    def _uplink_options(self) -> UplinkOptions:
        settings = self._settings
        by_device = {stream.name: stream.partition_by == "device" for stream in settings.streams}
        by_device[settings.default_stream] = settings.default_partition_by == "device"
        return UplinkOptions(
            edge=settings.id,
            address=Address.parse_mqtt_url(settings.uplink),
            by_device=by_device,
            linger_ms=settings.linger_ms,
            keepalive_s=settings.keepalive_s,
            reconnect_delay_max_s=settings.reconnect_delay_max_s,
            presence_interval_s=settings.presence_interval_s,
            software=f"tidegate-edge {version('tidegate')}",
        )
