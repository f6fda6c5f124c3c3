"""Batches that the bridge or the core will not take: other streams go on, and nothing vanishes in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.device import Device
from tests.support.gateway import DEFAULT_STREAM, Gateway, Wiring
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.seeds import seeded
from tidegate_wire.records import read_records

OTHER_STREAM = "vibration"
OTHER_TOPIC = "vibration/pump-7"

EDGE_CONFIG = f"""
reconnect_delay_max_s = 0.5
[[streams]]
name = "{OTHER_STREAM}"
topics = ["vibration/#"]
"""


@contextmanager
def two_streams(directory: Path) -> Iterator[tuple[Gateway, Relay]]:
    """A gateway whose edge has two streams; nothing is started."""
    config = directory / "edge.toml"
    config.write_text(EDGE_CONFIG)
    gateway = Gateway(directory, Wiring(options={"edge": ["--config", str(config)]}))
    with Relay(gateway.ports["bridge"]) as relay, gateway:
        gateway.wiring.uplink_port = relay.port
        yield gateway, relay


def events(name: bytes, count: int) -> list[bytes]:
    return [b"%s-%d" % (name, number) for number in range(count)]


def payloads(gateway: Gateway, stream: str) -> list[bytes]:
    return [event.payload for event in gateway.read(stream)]


def wait_read(gateway: Gateway, stream: str, expected: list[bytes]) -> None:
    wait_until(lambda: len(payloads(gateway, stream)) >= len(expected), 20, f"{stream} arrives")
    assert payloads(gateway, stream) == expected


@pytest.mark.slow
def test_a_stream_that_the_bridge_does_not_allow_waits_at_the_edge_until_it_does_and_others_go_on(
    tmp_path: Path,
) -> None:
    with two_streams(tmp_path) as (gateway, relay), Device(gateway.ports["edge"], "pump-7") as device:
        allowing = gateway.wiring.options["bridge"] = []
        gateway.start("core", "bridge", "edge")
        device.connect()
        relay.drop_publishes(b"/ack")
        sent = events(b"in-flight", 50)
        device.publish_acknowledged(sent, topic=OTHER_TOPIC)
        wait_read(gateway, OTHER_STREAM, sent)
        gateway.kill("bridge")
        relay.mend()

        gateway.wiring.options["bridge"] = ["--streams", DEFAULT_STREAM]
        gateway.start("bridge")
        waiting = events(b"waiting", 500)
        device.publish_acknowledged(waiting, topic=OTHER_TOPIC)
        allowed = events(b"allowed", 500)
        device.publish_acknowledged(allowed)
        wait_read(gateway, DEFAULT_STREAM, allowed)
        assert "uplink.stream_not_" in gateway.part("edge").output()
        assert payloads(gateway, OTHER_STREAM) == sent
        gateway.kill("edge")
        gateway.start("edge")
        device.connect()
        device.publish_acknowledged(events(b"more", 10))
        wait_read(gateway, DEFAULT_STREAM, allowed + events(b"more", 10))

        gateway.kill("bridge")
        gateway.wiring.options["bridge"] = allowing
        gateway.start("bridge")
        wait_read(gateway, OTHER_STREAM, sent + waiting)
        gateway.wait_drained(20)
        assert gateway.losses() == []


@pytest.mark.slow
def test_a_batch_that_the_core_refuses_for_good_is_kept_and_accounted_for_and_later_events_go_on(
    tmp_path: Path,
) -> None:
    chance = seeded()
    with two_streams(tmp_path) as (gateway, _), Device(gateway.ports["edge"], "pump-7") as device:
        gateway.start("core", "bridge")
        make_topic(gateway, OTHER_STREAM, max_message_bytes=65_536)
        gateway.start("edge")
        device.connect()
        sent: list[bytes] = []
        other: list[bytes] = []
        expected: set[bytes] = set()
        for round_number in range(3):
            small = events(b"small-%d" % round_number, 100)
            large = chance.randbytes(100_000)  # it does not get smaller by compression
            after = events(b"after-%d" % round_number, 100)
            later = events(b"later-%d" % round_number, 100)
            plain = events(b"plain-%d" % round_number, 100)
            known = len(gateway.losses())
            device.publish_acknowledged([*small, large, *after], topic=OTHER_TOPIC)
            device.publish_acknowledged(plain)
            wait_until(lambda known=known: len(gateway.losses()) > known, 20, "a loss record arrives")  # type: ignore[misc]
            device.publish_acknowledged(later, topic=OTHER_TOPIC)
            sent += [*small, large, *after, *later]
            other += plain
            expected.update(later)
        gateway.wait_drained(30)
        wait_read(gateway, DEFAULT_STREAM, other)

        read = payloads(gateway, OTHER_STREAM)
        losses = gateway.losses()
        assert len(read) + sum(loss.count for loss in losses) == len(sent)
        lost = {number for loss in losses for number in range(loss.first_sequence, loss.last_sequence + 1)}
        assert read == [payload for number, payload in enumerate(sent, start=1) if number not in lost]
        assert {number for number, payload in enumerate(sent, start=1) if len(payload) > 1_000} <= lost
        assert expected <= set(read), "later events of the stream go on"
        assert all("message_too_large" in loss.reason and loss.stream == OTHER_STREAM for loss in losses), losses

        kept = gateway.query_edge("SELECT first_sequence, record_count, record_batch FROM refused_batches")
        assert {(first, count) for first, count, _ in kept} == {(loss.first_sequence, loss.count) for loss in losses}
        for first, count, record_batch in kept:
            values = [record.value for record in read_records(record_batch)]
            assert values == sent[first - 1 : first - 1 + count], "the refused bytes are the events"


def make_topic(gateway: Gateway, name: str, *, max_message_bytes: int) -> None:
    admin = AdminClient({"bootstrap.servers": gateway.address("core")})
    topic = NewTopic(name, 4, 1, config={"max.message.bytes": str(max_message_bytes)})
    admin.create_topics([topic])[name].result(10)
