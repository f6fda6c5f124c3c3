"""Fleets against Tidegate's own MQTT endpoint: in QoS 2 each event once, through power cuts and lost connections."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from tidegate_sim.service import run
from tidegate_sim.settings import SimSettings
from tidegate_wire.address import Address
from tidegate_wire.ledger import read_ledger
from tidegate_wire.mqtt import MqttEndpoint, ReceivedMessage


@pytest.mark.parametrize("version", ["3.1.1", "5"])
@pytest.mark.parametrize("qos", [1, 2])
async def test_the_endpoint_gets_every_event_in_order_and_once_in_qos_2(tmp_path: Path, qos: int, version: str) -> None:
    arrived: dict[str, list[int]] = defaultdict(list)

    async def append(messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            payload = json.loads(message.payload)
            assert payload["device"] == message.client_id
            arrived[message.client_id].append(payload["sequence"])

    endpoint = MqttEndpoint(append)
    address = await endpoint.start(Address("127.0.0.1", 0))
    settings = SimSettings.model_validate(
        {
            "target": [f"mqtt://{address}"],
            "devices": 10,
            "rate": 100,
            "seconds": 3,
            "qos": qos,
            "mqtt_version": version,
            "ledger": tmp_path / "ledger.jsonl",
            "power_loss_every": 0.7,
            "power_off_seconds": 0.05,
            "disconnect_every": 0.7,
            "reconnect_seconds_max": 0.5,
        }
    )
    try:
        await run(settings)
    finally:
        await endpoint.close()
    published: dict[str, set[int]] = defaultdict(set)
    acknowledged: dict[str, set[int]] = defaultdict(set)
    for entry in read_ledger(tmp_path / "ledger.jsonl"):
        (published if entry.state == "published" else acknowledged)[entry.device].add(entry.sequence)
    assert published == acknowledged
    first_arrivals = {device: list(dict.fromkeys(sequences)) for device, sequences in arrived.items()}
    assert first_arrivals == {device: list(range(1, len(numbers) + 1)) for device, numbers in published.items()}
    if qos == 2:
        assert first_arrivals == arrived
