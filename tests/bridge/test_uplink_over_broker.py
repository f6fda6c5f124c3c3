"""Edges and bridges meet at a broker of another project; behind the bridges a real core."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.bridge.batches import cut
from tests.bridge.conftest import Stage
from tests.bridge.fake_edge import FakeEdge
from tests.bridge.waiting import eventually
from tests.support.brokers import amqtt_broker
from tests.support.peers import require_peer
from tests.support.processes import free_port, mosquitto_broker
from tidegate_wire.uplink.event import EDGES_STREAM
from tidegate_wire.uplink.topics import UplinkKind

BATCHES = 60


@pytest.fixture
def mosquitto() -> str:
    return require_peer("mosquitto")


async def _send_and_count(stage: Stage, port: int, bridges: int, **settings: object) -> list[bytes | None]:
    """What is stored after an edge sent BATCHES batches through `bridges` bridges at a broker."""
    core = await stage.core()
    for _ in range(bridges):
        facts = await stage.bridge(core, broker=f"mqtt://127.0.0.1:{port}", **settings)
        assert facts["broker"] == f"mqtt://127.0.0.1:{port}"
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        for sequence in range(BATCHES):
            edge.send(cut(producer_id, sequence, [b"event %d" % sequence]))
        await edge.wait_for_stored(range(BATCHES))
    return [record.value for record in await stage.read(core, "telemetry")]


EXPECTED = [b"event %d" % sequence for sequence in range(BATCHES)]


async def test_through_mosquitto(stage: Stage, mosquitto: str, tmp_path: Path) -> None:
    with mosquitto_broker(mosquitto, tmp_path) as port:
        assert await _send_and_count(stage, port, bridges=1) == EXPECTED


async def test_two_bridges_share_the_batches_of_one_edge_at_mosquitto_and_keep_their_order(
    stage: Stage, mosquitto: str, tmp_path: Path
) -> None:
    with mosquitto_broker(mosquitto, tmp_path) as port:
        assert await _send_and_count(stage, port, bridges=2) == EXPECTED


async def test_two_bridges_that_both_take_every_batch_store_each_once(
    stage: Stage, mosquitto: str, tmp_path: Path
) -> None:
    with mosquitto_broker(mosquitto, tmp_path) as port:
        assert await _send_and_count(stage, port, bridges=2, shared_subscription=False) == EXPECTED


async def test_through_a_broker_without_mqtt_5_and_without_shared_subscriptions(stage: Stage) -> None:
    async with amqtt_broker() as port:
        assert await _send_and_count(stage, port, bridges=1) == EXPECTED


async def test_presence_through_mosquitto_with_the_last_will(stage: Stage, mosquitto: str, tmp_path: Path) -> None:
    with mosquitto_broker(mosquitto, tmp_path) as port:
        core = await stage.core()
        await stage.bridge(core, broker=f"mqtt://127.0.0.1:{port}")
        async with FakeEdge("edge-1", port, protocol=MQTTProtocolVersion.MQTTv5) as edge:
            presence = edge.be_present(online=True)
            values: list[bytes | None] = []
            while presence.encode() not in values:
                values = [record.value for record in await stage.read(core, EDGES_STREAM)]


async def test_a_broker_that_refuses_the_bridge_is_tried_again(stage: Stage, mosquitto: str, tmp_path: Path) -> None:
    core = await stage.core()
    port = free_port()
    bridge = asyncio.create_task(stage.bridge(core, broker=f"mqtt://127.0.0.1:{port}"))
    directory = tmp_path / "closed"
    directory.mkdir()
    with mosquitto_broker(mosquitto, directory, port=port, allow_anonymous=False):
        await eventually(
            lambda: "not authorised" in (directory / "mosquitto.log").read_text(encoding="utf-8").lower(),
            "the bridge is refused",
        )
    with mosquitto_broker(mosquitto, tmp_path, port=port):
        await bridge
        async with FakeEdge("edge-1", port) as edge:
            assert (await edge.say_hello("telemetry")).producer_id is not None


async def test_a_broker_that_restarts_is_joined_again(stage: Stage, mosquitto: str, tmp_path: Path) -> None:
    core = await stage.core()
    port = free_port()
    with mosquitto_broker(mosquitto, tmp_path, port=port):
        await stage.bridge(core, broker=f"mqtt://127.0.0.1:{port}")
        async with FakeEdge("edge-1", port) as edge:
            producer_id = (await edge.say_hello("telemetry")).producer_id
            assert producer_id is not None
            assert (await edge.send_and_wait(cut(producer_id, 0, [b"event 0"]))).error is None
    with mosquitto_broker(mosquitto, tmp_path, port=port):
        async with FakeEdge("edge-1", port) as edge:

            def answered() -> bool:
                if not edge.acks:
                    edge.send(cut(producer_id, 0, [b"event 0"]))
                    edge.send(cut(producer_id, 1, [b"event 1"]))
                return bool(edge.acks)

            await eventually(answered, "the bridge is back")
            await edge.wait_for_stored([0, 1])
    assert [record.value for record in await stage.read(core, "telemetry")] == [b"event 0", b"event 1"]


async def test_other_topics_at_the_broker_are_none_of_the_bridges_business(
    stage: Stage, mosquitto: str, tmp_path: Path
) -> None:
    with mosquitto_broker(mosquitto, tmp_path) as port:
        await stage.bridge(await stage.core(), broker=f"mqtt://127.0.0.1:{port}")
        async with FakeEdge("edge-1", port) as edge:
            edge.client.publish("sensors/temperature", b"20.5", 1)
            edge.client.publish("tidegate/v1/not an edge/batch", b"", 1)
            edge.publish(UplinkKind.BATCH, b"not a batch")
            assert (await edge.say_hello("telemetry")).producer_id is not None
