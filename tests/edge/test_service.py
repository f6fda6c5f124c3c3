"""The whole edge as a process would run it: devices publish to it, a broker and a bridge stand behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.edge.scripted_bridge import ScriptedBridge
from tests.edge.support import EDGE, query, until
from tests.support.peers import require_peer
from tests.support.processes import free_port, mosquitto_broker
from tidegate_edge.errors import EventLogDamaged
from tidegate_edge.event_log.opening import FILE_NAME
from tidegate_edge.service import run
from tidegate_edge.settings import EdgeSettings
from tidegate_wire.address import Address
from tidegate_wire.errors import UnreachableError


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    directory = tmp_path / "broker"
    directory.mkdir()
    with mosquitto_broker(require_peer("mosquitto"), directory) as port:
        yield port


def edge_settings(tmp_path: Path, uplink_port: int, **fields: Any) -> EdgeSettings:
    values: dict[str, Any] = {
        "id": EDGE,
        "listen": "127.0.0.1:0",
        "uplink": f"mqtt://127.0.0.1:{uplink_port}",
        "data_dir": tmp_path / "data",
        "disk_free_bytes_min": 0,
        "reconnect_delay_max_s": 0.2,
        "ready_file": tmp_path / "ready.json",
    }
    return EdgeSettings.model_validate(values | fields)


@asynccontextmanager
async def serving(settings: EdgeSettings) -> AsyncIterator[Address]:
    assert settings.ready_file is not None
    settings.ready_file.unlink(missing_ok=True)
    task = asyncio.create_task(run(settings))
    try:
        await until(
            lambda: task.done() or bool(settings.ready_file and settings.ready_file.exists()), "the edge is ready"
        )
        if task.done():
            await task
        yield Address.parse(json.loads(settings.ready_file.read_text())["listen"])
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def publish_all(address: Address, client_id: str, messages: list[tuple[str, bytes, int]], **extra: Any) -> None:
    """As a device does, with paho's thread; returns when the last PUBACK came."""
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(address.host, address.port)
    client.loop_start()
    try:
        infos = [client.publish(topic, payload, qos=qos, **extra) for topic, payload, qos in messages]
        for info in infos:
            info.wait_for_publish(20)
            assert info.is_published()
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.mark.peer("mosquitto")
async def test_from_device_to_bridge(tmp_path: Path, broker: int) -> None:
    streams = [{"name": "alarms", "topics": ["+/alarm"]}]
    async with (
        ScriptedBridge(broker) as bridge,
        serving(edge_settings(tmp_path, broker, streams=streams)) as address,
    ):
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho types it not
        properties.UserProperty = [("time", "2023-11-14T22:13:20.123Z")]
        messages = [("pump/flow", b"%d" % number, 1 + number % 2) for number in range(200)]
        await asyncio.to_thread(publish_all, address, "d1", messages, properties=properties)
        await asyncio.to_thread(publish_all, address, "d2", [("pump/alarm", b"!", 1)])
        await bridge.until_stored(200)
        await bridge.until_stored(1, "alarms")
        assert [record.value for record in bridge.records()] == [b"%d" % number for number in range(200)]
        assert {record.timestamp_ms for record in bridge.records()} == {1_700_000_000_123}
        assert {record.key for record in bridge.records()} == {b"d1"}
    assert threading.active_count() == 1 + sum(
        thread.name.startswith("asyncio_") for thread in threading.enumerate()
    ), "no thread is left that would keep the process alive"


async def test_events_are_acknowledged_without_an_uplink_and_survive_a_restart(tmp_path: Path) -> None:
    settings = edge_settings(tmp_path, free_port())
    for life in range(3):
        async with serving(settings) as address:
            await asyncio.to_thread(publish_all, address, f"d{life}", [("t", b"%d" % n, 1) for n in range(50)])
    rows = query(tmp_path / "data", "SELECT sequence, device, payload FROM stream_events ORDER BY sequence")
    assert rows == [(life * 50 + n + 1, f"d{life}", b"%d" % n) for life in range(3) for n in range(50)]


async def test_an_edge_that_can_not_listen_says_so(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="can't be listened on") as caught:
            await run(edge_settings(tmp_path, free_port(), listen=f"127.0.0.1:{port}"))
    assert "another broker" in caught.value.hint


async def test_an_edge_with_a_damaged_log_does_not_start(tmp_path: Path) -> None:
    settings = edge_settings(tmp_path, free_port())
    settings.data_dir.mkdir()
    (settings.data_dir / FILE_NAME).write_bytes(b"something else altogether" * 1000)
    with pytest.raises(EventLogDamaged):
        await run(settings)
