"""Fleets against a real mosquitto: what a subscriber receives is what the ledger says."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.peers import require_peer
from tests.support.processes import Process, accepts_connections, free_port, wait_until
from tidegate_sim.errors import FleetFilesError, NoTargetAnsweredError
from tidegate_sim.service import run
from tidegate_sim.settings import SimSettings
from tidegate_wire.ledger import read_ledger

CONFIG = """
user root
allow_anonymous true
max_inflight_messages 0
max_queued_messages 0
persistence true
persistence_location {directory}/
"""


class Broker:
    """A mosquitto that keeps its port, and (over SIGTERM) its sessions; it stays root, if root starts it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._program = require_peer("mosquitto")
        self._directory = directory
        self._config = directory / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{CONFIG.format(directory=directory)}")
        self.process = self._start()

    def _start(self) -> Process:
        process = Process([self._program, "-c", str(self._config)], self._directory / "mosquitto.log")
        wait_until(lambda: accepts_connections(self.port), 10, "mosquitto listens")
        return process

    def restart(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = self._start()


class Subscriber:
    """A paho client with a session of its own that notes what arrives."""

    def __init__(self, port: int) -> None:
        self.received: dict[str, list[int]] = defaultdict(list)
        self.payloads: list[dict[str, Any]] = []
        self._subscribed = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False)
        self.client.on_connect = lambda client, *_: client.subscribe("sensors/#", qos=2)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._subscribed.wait(10)

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        payload = json.loads(message.payload)
        assert message.topic == f"sensors/{payload['device']}/{payload['quantity']}"
        self.payloads.append(payload)
        self.received[payload["device"]].append(payload["sequence"])

    async def wait_for(self, count: int) -> None:
        """Until `count` messages more have arrived than had before."""
        total = len(self.payloads) + count
        await asyncio.to_thread(wait_until, lambda: len(self.payloads) >= total, 20, f"{count} events arrive")

    async def wait_for_all(self, published: dict[str, set[int]]) -> None:
        """Until everything published has arrived."""

        def complete() -> bool:
            return all(set(self.received[device]) >= numbers for device, numbers in published.items())

        await asyncio.to_thread(wait_until, complete, 20, "everything arrives")

    def first_arrivals(self) -> dict[str, list[int]]:
        return {device: list(dict.fromkeys(sequences)) for device, sequences in self.received.items()}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    directory = tmp_path / "broker"
    directory.mkdir()
    broker = Broker(directory)
    yield broker
    broker.process.kill()


@contextmanager
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    subscribed = Subscriber(broker.port)
    try:
        yield subscribed
    finally:
        subscribed.client.disconnect()
        subscribed.client.loop_stop()


def sim_settings(tmp_path: Path, broker: Broker, **changes: Any) -> SimSettings:
    values: dict[str, Any] = {
        "target": [f"mqtt://127.0.0.1:{broker.port}"],
        "devices": 8,
        "rate": 50,
        "seconds": 2,
        "ledger": tmp_path / "ledger.jsonl",
        "status_file": tmp_path / "status.json",
        "reconnect_seconds_max": 0.5,
    }
    return SimSettings.model_validate(values | changes)


def ledger_sets(path: Path) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    published: dict[str, set[int]] = defaultdict(set)
    acknowledged: dict[str, set[int]] = defaultdict(set)
    for entry in read_ledger(path):
        (published if entry.state == "published" else acknowledged)[entry.device].add(entry.sequence)
    return published, acknowledged


def status_of(settings: SimSettings) -> dict[str, Any]:
    assert settings.status_file is not None
    status: dict[str, Any] = json.loads(settings.status_file.read_text(encoding="utf-8"))
    return status


@pytest.mark.peer("mosquitto")
@pytest.mark.parametrize(
    "changes", [{"qos": 1}, {"qos": 2}, {"qos": 1, "mqtt_version": "5"}, {"qos": 2, "mqtt_version": "5"}]
)
async def test_ledger_is_what_a_subscriber_receives(tmp_path: Path, broker: Broker, changes: dict[str, Any]) -> None:
    settings = sim_settings(tmp_path, broker, trace="bundled", **changes)
    with subscriber(broker) as subscribed:
        await run(settings)
        published, acknowledged = ledger_sets(tmp_path / "ledger.jsonl")
        assert published == acknowledged
        count = sum(map(len, published.values()))
        await subscribed.wait_for_all(published)
    assert subscribed.received == {device: list(range(1, len(numbers) + 1)) for device, numbers in published.items()}
    assert len(subscribed.received) == 8
    assert {payload["quantity"] for payload in subscribed.payloads} == {
        "ambient_temperature_system_failure",
        "machine_temperature_system_failure",
    }
    status = status_of(settings)
    assert status["published"] == status["acknowledged"] == count == 8 * 50 * 2
    assert (status["waiting"], status["skipped"], status["reconnects"], status["done"]) == (0, 0, 0, True)


@pytest.mark.peer("mosquitto")
@pytest.mark.parametrize("qos", [1, 2])
async def test_power_and_radio_losses_lose_nothing_and_keep_the_order(tmp_path: Path, broker: Broker, qos: int) -> None:
    settings = sim_settings(
        tmp_path, broker, qos=qos, seconds=3, power_loss_every=0.5, power_off_seconds=0.05, disconnect_every=0.5, seed=7
    )
    with subscriber(broker) as subscribed:
        await run(settings)
        published, acknowledged = ledger_sets(tmp_path / "ledger.jsonl")
        assert published == acknowledged
        await subscribed.wait_for_all(published)
    arrivals = subscribed.first_arrivals()
    assert arrivals == {device: list(range(1, len(numbers) + 1)) for device, numbers in published.items()}
    if qos == 2:
        assert arrivals == subscribed.received, "QoS 2 delivers once"
    status = status_of(settings)
    assert status["power_losses"] > 10
    assert status["radio_losses"] > 10
    assert {payload["boot"] for payload in subscribed.payloads} >= {1, 2, 3}


@pytest.mark.peer("mosquitto")
async def test_a_broker_that_restarts_gets_everything(tmp_path: Path, broker: Broker) -> None:
    settings = sim_settings(tmp_path, broker, seconds=4)
    with subscriber(broker) as subscribed:
        fleet = asyncio.create_task(run(settings))
        for _ in range(2):
            await subscribed.wait_for(100)
            await asyncio.to_thread(broker.restart, signal.SIGTERM)
        await fleet
        published, acknowledged = ledger_sets(tmp_path / "ledger.jsonl")
        assert published == acknowledged
        await subscribed.wait_for_all(published)
    assert status_of(settings)["reconnects"] >= 16


@pytest.mark.peer("mosquitto")
async def test_a_broker_killed_with_kill_nine_has_everything_acknowledged_in_the_end(
    tmp_path: Path, broker: Broker
) -> None:
    settings = sim_settings(tmp_path, broker, seconds=3)
    with subscriber(broker) as subscribed:
        fleet = asyncio.create_task(run(settings))
        await subscribed.wait_for(100)
        await asyncio.to_thread(broker.restart, signal.SIGKILL)
        await fleet
    published, acknowledged = ledger_sets(tmp_path / "ledger.jsonl")
    assert published == acknowledged
    assert {device: max(numbers) for device, numbers in published.items()} == dict.fromkeys(published, 150)
    for sequences in subscribed.first_arrivals().values():
        assert sequences == sorted(sequences)


@pytest.mark.peer("mosquitto")
async def test_a_fleet_goes_on_where_it_was_stopped(tmp_path: Path, broker: Broker) -> None:
    with subscriber(broker) as subscribed:
        first = asyncio.create_task(run(sim_settings(tmp_path, broker, seconds=60)))
        await subscribed.wait_for(100)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await run(sim_settings(tmp_path, broker, seconds=1))
        published, acknowledged = ledger_sets(tmp_path / "ledger.jsonl")
        assert published == acknowledged
        await subscribed.wait_for_all(published)
    assert {payload["boot"] for payload in subscribed.payloads} == {1, 2}
    assert subscribed.first_arrivals() == {
        device: list(range(1, len(numbers) + 1)) for device, numbers in published.items()
    }


@pytest.mark.peer("mosquitto")
async def test_devices_are_spread_over_several_targets(tmp_path: Path, broker: Broker) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    other = Broker(directory)
    try:
        with subscriber(broker) as one, subscriber(other) as two:
            targets = [f"mqtt://127.0.0.1:{broker.port}", f"mqtt://127.0.0.1:{other.port}"]
            await run(sim_settings(tmp_path, broker, target=targets, seconds=1))
            published, _ = ledger_sets(tmp_path / "ledger.jsonl")
            await one.wait_for_all({name: published[name] for name in ("d-0001", "d-0003", "d-0005", "d-0007")})
            await two.wait_for_all({name: published[name] for name in ("d-0002", "d-0004", "d-0006", "d-0008")})
        assert sorted(one.received) == ["d-0001", "d-0003", "d-0005", "d-0007"]
        assert sorted(two.received) == ["d-0002", "d-0004", "d-0006", "d-0008"]
    finally:
        other.process.kill()


async def test_without_a_broker_the_flash_fills_and_samples_are_counted_not_numbered(tmp_path: Path) -> None:
    settings = SimSettings.model_validate(
        {
            "target": [f"mqtt://127.0.0.1:{free_port()}"],
            "devices": 2,
            "rate": 100,
            "seconds": 0.5,
            "drain_seconds": 0,
            "flash_events": 20,
            "ledger": tmp_path / "ledger.jsonl",
            "status_file": tmp_path / "status.json",
        }
    )
    with pytest.raises(NoTargetAnsweredError, match="no device got a connection"):
        await run(settings)
    status = status_of(settings)
    assert (status["published"], status["waiting"], status["skipped"]) == (0, 40, 60)
    assert (tmp_path / "ledger.jsonl").read_text(encoding="utf-8") == ""


async def test_a_ledger_of_an_earlier_fleet_is_not_continued_with_numbers_from_one(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"device": "d-0001", "sequence": 1, "state": "published"}\n', encoding="utf-8")
    with pytest.raises(FleetFilesError, match="earlier fleet"):
        await run(SimSettings.model_validate({"target": ["mqtt://127.0.0.1:1"], "ledger": ledger}))
