"""A device that did not hear the acknowledgement sends again: its event is downstream once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.device import Device
from tests.support.gateway import DEFAULT_STREAM, Gateway
from tests.support.processes import wait_until
from tests.support.seeds import seeded
from tidegate_wire.mqtt.packets import ProtocolVersion, Puback, Pubcomp, Pubrec, Pubrel


@contextmanager
def gateway_and_device(
    directory: Path, version: ProtocolVersion = ProtocolVersion.V311
) -> Iterator[tuple[Gateway, Device]]:
    with Gateway(directory) as gateway, Device(gateway.ports["edge"], "pump-7", version=version) as device:
        gateway.start("core", "bridge", "edge")
        device.connect()
        yield gateway, device


def payloads(gateway: Gateway) -> list[bytes]:
    """What the core has, in order: all is from one edge, so in one partition."""
    return [event.payload for event in gateway.read(DEFAULT_STREAM)]


def wait_stored(gateway: Gateway, payload: bytes) -> None:
    """Until the edge's log has the event, or had it, and the core has it."""

    def is_stored() -> bool:
        rows = gateway.query_edge("SELECT payload FROM all_events")
        return (payload,) in rows or payload in payloads(gateway)

    wait_until(is_stored, 10, "the edge stores the event")


def restart_edge(gateway: Gateway, device: Device) -> None:
    gateway.kill("edge")
    gateway.start("edge")
    assert not device.connect().session_present


def assert_downstream(gateway: Gateway, expected: list[bytes]) -> None:
    """The core has exactly these, and nothing more is on its way."""
    wait_until(lambda: len(payloads(gateway)) >= len(expected), 20, "the events arrive")
    gateway.wait_drained(20)
    assert payloads(gateway) == expected


@pytest.mark.parametrize("version", list(ProtocolVersion), ids=["3.1.1", "5"])
def test_a_qos_1_publish_sent_again_after_the_edge_was_killed_is_there_once(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    with gateway_and_device(tmp_path, version) as (gateway, device):
        device.publish(b"41 C", packet_id=7)
        wait_stored(gateway, b"41 C")  # the PUBACK was written or was just about to be; nobody read it
        restart_edge(gateway, device)
        device.publish(b"41 C", packet_id=7, dup=True)
        assert device.receive(Puback).packet_id == 7
        assert_downstream(gateway, [b"41 C"])


def test_a_publish_sent_again_after_it_was_forwarded_and_freed_is_there_once(tmp_path: Path) -> None:
    with gateway_and_device(tmp_path) as (gateway, device):
        device.publish(b"41 C", packet_id=7)
        assert_downstream(gateway, [b"41 C"])
        restart_edge(gateway, device)
        device.publish(b"41 C", packet_id=7, dup=True)
        assert device.receive(Puback).packet_id == 7
        device.publish(b"last", packet_id=8)
        assert device.receive(Puback).packet_id == 8
        assert_downstream(gateway, [b"41 C", b"last"])


def test_a_window_of_publishes_sent_again_over_several_kills_is_there_once_and_in_order(tmp_path: Path) -> None:
    window = [(b"reading %d" % number, number) for number in range(1, 101)]
    with gateway_and_device(tmp_path) as (gateway, device):
        for payload, packet_id in window[:60]:
            device.publish(payload, packet_id)
        wait_stored(gateway, window[59][0])
        for _ in range(2):
            restart_edge(gateway, device)
            for payload, packet_id in window[:60]:
                device.publish(payload, packet_id, dup=True)
            for _, packet_id in window[:60]:
                assert device.receive(Puback).packet_id == packet_id
        for payload, packet_id in window[60:]:
            device.publish(payload, packet_id)
            assert device.receive(Puback).packet_id == packet_id
        assert_downstream(gateway, [payload for payload, _ in window])


@pytest.mark.slow
@pytest.mark.parametrize("qos", [1, 2])
def test_thousands_sent_at_once_by_a_client_without_receive_maximum_are_there_once(tmp_path: Path, qos: int) -> None:
    """What paho-mqtt does when it comes back after an outage, to an edge that is killed before it hears an answer."""
    backlog = [(b"reading %d" % number, number) for number in range(1, 10_001)]
    answer: type[Puback] | type[Pubrec] = Puback if qos == 1 else Pubrec
    with gateway_and_device(tmp_path) as (gateway, device):
        for payload, packet_id in backlog:
            device.publish(payload, packet_id, qos=qos)
        wait_stored(gateway, backlog[-1][0])
        restart_edge(gateway, device)
        for payload, packet_id in backlog:
            device.publish(payload, packet_id, qos=qos, dup=True)
        for _, packet_id in backlog:
            assert device.receive(answer).packet_id == packet_id
        if qos == 2:
            for _, packet_id in backlog:
                device.send(Pubrel(packet_id=packet_id))
                assert device.receive(Pubcomp).packet_id == packet_id
        assert_downstream(gateway, [payload for payload, _ in backlog])


def test_a_new_publish_that_uses_the_packet_id_again_is_stored(tmp_path: Path) -> None:
    """With DUP too: the first one may have been lost on the way, so that the repeat is all that arrives."""
    with gateway_and_device(tmp_path) as (gateway, device):
        device.publish(b"first", packet_id=7)
        assert device.receive(Puback).packet_id == 7
        restart_edge(gateway, device)
        device.publish(b"second", packet_id=7)
        assert device.receive(Puback).packet_id == 7
        device.publish(b"third", packet_id=7, dup=True)
        assert device.receive(Puback).packet_id == 7
        device.publish(b"third", packet_id=7)  # without DUP: the device measured the same once more
        assert device.receive(Puback).packet_id == 7
        assert_downstream(gateway, [b"first", b"second", b"third", b"third"])


@pytest.mark.parametrize("version", list(ProtocolVersion), ids=["3.1.1", "5"])
def test_a_qos_2_publish_whose_pubrec_was_lost_with_the_edge_is_there_once(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    with gateway_and_device(tmp_path, version) as (gateway, device):
        device.publish(b"41 C", packet_id=7, qos=2)
        wait_stored(gateway, b"41 C")
        restart_edge(gateway, device)
        device.publish(b"41 C", packet_id=7, qos=2, dup=True)
        assert device.receive(Pubrec).packet_id == 7
        device.send(Pubrel(packet_id=7))
        assert device.receive(Pubcomp).packet_id == 7
        device.publish(b"42 C", packet_id=7, qos=2)  # the exchange is over: the id is free for another
        assert device.receive(Pubrec).packet_id == 7
        device.send(Pubrel(packet_id=7))
        assert device.receive(Pubcomp).packet_id == 7
        assert_downstream(gateway, [b"41 C", b"42 C"])


@pytest.mark.parametrize("version", list(ProtocolVersion), ids=["3.1.1", "5"])
def test_a_qos_2_exchange_that_goes_on_with_pubrel_after_a_kill_is_there_once(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    with gateway_and_device(tmp_path, version) as (gateway, device):
        device.publish(b"41 C", packet_id=7, qos=2)
        assert device.receive(Pubrec).packet_id == 7
        restart_edge(gateway, device)
        device.send(Pubrel(packet_id=7))
        assert device.receive(Pubcomp).packet_id == 7
        assert_downstream(gateway, [b"41 C"])


@pytest.mark.slow
def test_a_paho_client_over_many_kills_of_the_edge_has_each_event_there_once_and_in_order(tmp_path: Path) -> None:
    """QoS 1: of a QoS 2 message whose PUBCOMP is missing, paho forgets over two attempts to connect that it was sent,
    and sends a new PUBLISH without DUP.
    """
    chance = seeded()
    count = 15_000
    confirmed: set[int] = set()

    def on_publish(_client: Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        confirmed.add(mid)

    with Gateway(tmp_path) as gateway:
        gateway.start("core", "bridge", "edge")
        client = Client(CallbackAPIVersion.VERSION2, client_id="paho-1", clean_session=False)
        client.on_publish = on_publish
        client.reconnect_delay_set(1, 1)
        client.max_queued_messages_set(0)
        client.connect("127.0.0.1", gateway.ports["edge"])
        for number in range(count):  # before the loop runs: a reconnecting paho sends what is new before what waits
            client.publish("sensors/paho", b"event %d" % number, qos=1)
        client.loop_start()
        try:
            kills = 0
            while len(confirmed) < count and kills < 5:
                stage = len(confirmed)
                wait_until(lambda stage=stage: len(confirmed) > stage, 20, "the client is connected")  # type: ignore[misc]
                time.sleep(chance.uniform(0.0, 0.1))  # the random instant, in the middle of what is in flight
                gateway.kill("edge")
                gateway.start("edge")
                kills += 1
            assert kills > 1, "the kills came too late"
            wait_until(lambda: len(confirmed) == count, 30, "every event is acknowledged")
        finally:
            client.disconnect()
            client.loop_stop()
        gateway.wait_drained(20)
        assert payloads(gateway) == [b"event %d" % number for number in range(count)]


@pytest.mark.slow
def test_a_fleet_with_qos_2_over_kills_of_the_edge_loses_and_doubles_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with Gateway(tmp_path) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=8, arguments=("--qos", "2"))
        wait_until(lambda: gateway.acknowledged() > 0, 20, "the fleet publishes")
        for _ in range(4):
            time.sleep(chance.uniform(0.1, 0.8))  # the random instant
            gateway.kill("edge")
            gateway.start("edge")
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
