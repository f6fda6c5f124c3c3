"""The edge's disk fails a sync (EIO, injected into the running process): what was acknowledged is safe all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.device import Device
from tests.support.gateway import DEFAULT_STREAM, Gateway
from tests.support.injection import failing_syncs
from tests.support.processes import wait_until
from tests.support.seeds import seeded
from tidegate_wire.mqtt.packets import Puback


@pytest.mark.slow
@pytest.mark.peer("strace")
def test_an_edge_whose_sync_fails_ends_with_a_clear_error_and_delivers_what_it_acknowledged_after_a_restart(
    tmp_path: Path,
) -> None:
    chance = seeded()
    with Gateway(tmp_path) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=8)
        wait_until(lambda: gateway.acknowledged() > 100, 20, "the edge takes events")
        edge = gateway.part("edge")
        with failing_syncs(edge.pid, tmp_path / "strace.log", first=chance.randrange(1, 60)):
            code = edge.wait(20)
        assert code == 1
        assert "the event log in" in edge.output()
        assert "hint:" in edge.output()
        assert "Traceback" not in edge.output()
        acknowledged = gateway.acknowledged()
        assert acknowledged > 0
        gateway.start("edge")
        wait_until(lambda: gateway.verify()["acknowledged"] > acknowledged, 20, "the edge takes events again")
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)


@pytest.mark.slow
@pytest.mark.peer("strace")
def test_an_event_whose_sync_failed_is_not_acknowledged_and_what_was_acknowledged_before_is_delivered_once(
    tmp_path: Path,
) -> None:
    safe = [b"safe %d" % number for number in range(100)]
    with Gateway(tmp_path) as gateway, Device(gateway.ports["edge"], "pump-7") as device:
        gateway.start("edge")  # alone, so that the uplink commits nothing
        device.connect()
        device.publish_acknowledged(safe)
        edge = gateway.part("edge")
        with failing_syncs(edge.pid, tmp_path / "strace.log"):
            device.publish(b"unsafe", packet_id=101)
            with pytest.raises(ConnectionError):
                device.receive(Puback)
            assert edge.wait(20) == 1
        gateway.start("core", "bridge", "edge")
        device.connect()
        device.publish(b"unsafe", packet_id=101, dup=True)  # whether or not it is on the disk after all
        assert device.receive(Puback).packet_id == 101
        gateway.wait_drained(20)
        assert [event.payload for event in gateway.read(DEFAULT_STREAM)] == [*safe, b"unsafe"]
