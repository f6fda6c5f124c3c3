"""A full disk: nothing more is acknowledged, nothing acknowledged is lost, and room is all it takes to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import DEFAULT_STREAM, Gateway, Wiring
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.tmpfs import SmallDisk, small_disk

_MIB = 1024 * 1024
EDGE_DISK_BYTES = 48 * _MIB
"""Room for the reserve twice, a write-ahead log that was not copied yet, and some thousand events."""
CORE_DISK_BYTES = 32 * _MIB

OBSERVED_S = 1.5
"""How long it is watched that nothing happens."""


@contextmanager
def edge_on_small_disk(directory: Path, *options: str) -> Iterator[tuple[Gateway, SmallDisk, Relay]]:
    with small_disk(directory, EDGE_DISK_BYTES) as disk:
        wiring = Wiring(
            options={"edge": ["--disk-free-bytes-min", "0", "--reconnect-delay-max-s", "0.5", *options]},
            data_dirs={"edge": disk.path / "edge"},
        )
        gateway = Gateway(directory, wiring)
        with Relay(gateway.ports["bridge"]) as relay, gateway:
            wiring.uplink_port = relay.port
            gateway.start("core", "bridge", "edge")
            yield gateway, disk, relay


def assert_nothing_is_acknowledged(gateway: Gateway) -> None:
    acknowledged, published = gateway.acknowledged(), gateway.published()
    time.sleep(OBSERVED_S)
    assert gateway.acknowledged() == acknowledged
    assert acknowledged < published, "the fleet does not publish, so that nothing was tested"


@pytest.mark.slow
def test_an_edge_whose_disk_another_program_fills_goes_on_by_itself_when_there_is_room(tmp_path: Path) -> None:
    with edge_on_small_disk(tmp_path) as (gateway, disk, _):
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=6)
        wait_until(lambda: gateway.acknowledged() > 200, 20, "the edge takes events")
        disk.fill()
        edge = gateway.part("edge")
        wait_until(lambda: "event_log.appends_wait" in edge.output(), 20, "the edge says that its disk is full")
        assert "disk_full" in edge.output()
        gateway.wait_drained(20)  # what it has still runs to the core, and is freed
        assert_nothing_is_acknowledged(gateway)
        before = gateway.acknowledged()
        disk.make_room()
        wait_until(lambda: gateway.acknowledged() > before, 20, "the edge takes events again")
        assert fleet.wait(40) == 0, fleet.output()
        assert edge.running()
        gateway.assert_holds(20)


@pytest.mark.slow
def test_an_edge_whose_backlog_fills_its_disk_goes_on_when_the_uplink_is_back(tmp_path: Path) -> None:
    with edge_on_small_disk(tmp_path) as (gateway, disk, relay):
        relay.cut()
        fleet = gateway.start_fleet(devices=20, rate_hz=2000.0, seconds=6, arguments=("--flash-events", "60000"))
        edge = gateway.part("edge")
        wait_until(lambda: "event_log.appends_wait" in edge.output(), 20, "the backlog fills the disk")
        assert disk.free_bytes < EDGE_DISK_BYTES / 4
        assert_nothing_is_acknowledged(gateway)
        relay.mend()
        wait_until(lambda: "event_log.appends_resume" in edge.output(), 30, "there is room again")
        assert fleet.wait(60) == 0, fleet.output()
        gateway.assert_holds(30)


@pytest.mark.slow
def test_an_edge_killed_while_its_disk_is_full_loses_nothing(tmp_path: Path) -> None:
    with edge_on_small_disk(tmp_path) as (gateway, disk, relay):
        relay.cut()
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=6)
        wait_until(lambda: gateway.acknowledged() > 200, 20, "the edge takes events")
        disk.fill()
        edge = gateway.part("edge")
        wait_until(lambda: "event_log.appends_wait" in edge.output(), 20, "the edge says that its disk is full")
        gateway.kill("edge")
        disk.fill()
        relay.mend()
        gateway.start("edge")
        wait_until(lambda: len(gateway.read(DEFAULT_STREAM)) > 0, 20, "the edge sends what it has")
        gateway.wait_drained(20)
        disk.make_room()
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_a_core_with_a_full_disk_refuses_and_serves_reads_and_goes_on_when_there_is_room(
    tmp_path: Path, restarts: bool
) -> None:
    with small_disk(tmp_path, CORE_DISK_BYTES) as disk:
        wiring = Wiring(
            options={"edge": ["--reconnect-delay-max-s", "0.5"], "bridge": ["--retry-ms", "500"]},
            data_dirs={"core": disk.path / "core"},
        )
        with Gateway(tmp_path, wiring) as gateway:
            gateway.start("core", "bridge", "edge")
            fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=6)
            wait_until(lambda: len(gateway.read(DEFAULT_STREAM)) > 200, 20, "events reach the core")
            disk.fill()
            wait_until(lambda: gateway.backlog() > 500, 20, "events wait at the edge")
            before = gateway.read(DEFAULT_STREAM)
            assert len(before) > 200
            if restarts:
                gateway.kill("core")
                gateway.start("core")
            acknowledged = gateway.acknowledged()
            time.sleep(OBSERVED_S)
            during = gateway.read(DEFAULT_STREAM)
            assert [event.payload for event in during[: len(before)]] == [event.payload for event in before]
            assert gateway.acknowledged() > acknowledged or not fleet.running(), "the edge takes events all the while"
            disk.make_room()
            assert fleet.wait(40) == 0, fleet.output()
            gateway.assert_holds(30)
            gateway.wait_drained(20)
            assert gateway.losses() == [], "a full disk is no reason to give a batch up"
            assert "partition_failed" not in gateway.part("core").output(), "nor for the core to give a partition up"
