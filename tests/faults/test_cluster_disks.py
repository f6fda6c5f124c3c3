"""Disks of cluster nodes that are full, slow, fail a sync, or give back other bits than they were given."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.support.cluster import Cluster
from tests.support.injection import failing_syncs, slow_syncs
from tests.support.processes import wait_until
from tests.support.seeds import seeded
from tests.support.tmpfs import SmallDisk, small_disk
from tests.support.trial import PARTITIONS, TOPIC, Trial, round_timeout_s, rounds, trial

DISK_BYTES = 48 * 1024 * 1024
OBSERVED_S = 2.0
"""How long a bad disk stays bad beyond what it takes to get by."""
SLOW_MS = 500

pytestmark = pytest.mark.slow


@contextmanager
def on_small_disks(directory: Path, fault: str) -> Iterator[tuple[Trial, dict[int, SmallDisk]]]:
    cluster = Cluster(directory)
    with ExitStack() as stack:
        disks: dict[int, SmallDisk] = {}
        for node_id, plan in cluster.plans.items():
            mount = directory / f"mount-{node_id}"
            mount.mkdir()
            disks[node_id] = stack.enter_context(small_disk(mount, DISK_BYTES))
            plan.data_dir = disks[node_id].path / "core"
        yield stack.enter_context(trial(fault, cluster)), disks


@pytest.mark.timeout(round_timeout_s(1, 60))
def test_a_leader_whose_disk_is_full_makes_way_and_comes_back(tmp_path: Path) -> None:
    chance = seeded()
    with on_small_disks(tmp_path, "disk of a leader is full, then has room") as (under, disks):
        for _ in range(rounds(1)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            disks[victim].fill()
            under.recovered(under.hit(), led)
            time.sleep(OBSERVED_S)
            disks[victim].make_room()
            under.healed()
        under.finish()


@pytest.mark.timeout(round_timeout_s(1, 60))
def test_a_cluster_whose_disks_are_all_full_refuses_serves_reads_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    with on_small_disks(tmp_path, "disks of all nodes are full, then have room") as (under, disks):
        for _ in range(rounds(1)):
            for disk in disks.values():
                disk.fill()
            under.hit()
            acknowledged = wait_still(under)
            log = under.load.read_log(20)
            assert sum(map(len, log.values())) >= acknowledged, "reads are served from a full disk"
            for disk in disks.values():
                disk.make_room()
            under.recovered(time.monotonic())
            under.healed()
        under.finish()


def wait_still(under: Trial) -> int:
    """How many events are acknowledged, once no more are."""
    deadline_s = time.monotonic() + 30
    while True:
        acknowledged = under.load.history.acknowledged
        time.sleep(OBSERVED_S)
        if under.load.history.acknowledged == acknowledged:
            return acknowledged
        assert time.monotonic() < deadline_s, "events are acknowledged although the disks are full"


@pytest.mark.peer("strace")
@pytest.mark.timeout(round_timeout_s(1, 60))
def test_a_leader_whose_disk_fails_its_syncs_stops_and_the_others_go_on(tmp_path: Path) -> None:
    chance = seeded()
    with trial("EIO on every sync of a leader", Cluster(tmp_path)) as under:
        for number in range(rounds(1)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            with failing_syncs(under.cluster.part(victim).pid, tmp_path / f"strace-{number}"):
                under.recovered(under.hit(), led)
                time.sleep(OBSERVED_S)
                leads_on = set(under.led_by(victim)) & set(led)
                assert not leads_on, f"node {victim} leads {leads_on} although its syncs fail"
            if victim in under.cluster.running():
                under.cluster.kill(victim)
            under.cluster.start(victim)
            under.healed()
        under.finish()


@pytest.mark.peer("strace")
@pytest.mark.timeout(round_timeout_s(1, 90))
@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
def test_syncs_that_take_half_a_second_slow_the_cluster_and_lose_nothing(tmp_path: Path, everywhere: bool) -> None:
    where = "all nodes" if everywhere else "a leader"
    with trial(f"every sync of {where} takes 500 ms longer", Cluster(tmp_path)) as under, ExitStack() as stack:
        victim = under.cluster.leader(TOPIC, 0)
        led = range(PARTITIONS) if everywhere else under.led_by(victim)
        for node_id in under.cluster.node_ids if everywhere else (victim,):
            pid = under.cluster.part(node_id).pid
            stack.enter_context(slow_syncs(pid, tmp_path / f"strace-{node_id}", delay_ms=SLOW_MS))
        under.recovered(under.hit(), led)
        time.sleep(OBSERVED_S * rounds(1))
        under.load.wait_progress(time.monotonic(), 15.0, led, "some seconds of slow syncs")
        stack.close()
        under.healed()
        under.finish()


SEGMENT = f"{TOPIC}-*/*.log"
FLIPPED_BYTES_MIN = 200
FLIPS: dict[str, tuple[str, slice | None]] = {
    "a segment": (SEGMENT, None),
    "the base offset of a batch": (SEGMENT, slice(0, 8)),
    "the length of a batch": (SEGMENT, slice(8, 12)),
    "the leader epoch of a batch": (SEGMENT, slice(12, 16)),
    "the metadata's segment": ("__cluster_metadata-0/*.log", None),
    "a segment of committed offsets": ("__consumer_offsets-*/*.log", None),
    "a snapshot": ("*/*.snapshot", None),
    "the votes": ("votes", None),
}
"""Files of a data directory, and the bytes of a batch's header in them. Some are not under the batch's CRC, so that
nothing but the log around them can tell."""


@pytest.mark.timeout(round_timeout_s(1, 240))
def test_bits_that_flipped_while_a_node_was_down_are_found_and_repaired_from_the_others(tmp_path: Path) -> None:
    chance = seeded()
    with trial("a bit flipped in a file of a node that was down", Cluster(tmp_path)) as under:
        for what in [what for _ in range(rounds(1)) for what in chance.sample(list(FLIPS), len(FLIPS))]:
            victim = chance.choice(under.cluster.node_ids)
            data_dir = under.cluster.plans[victim].data_dir
            wait_until(lambda: holds(data_dir, what), 10, f"there is something of {what} to damage")  # noqa: B023 # called at once
            under.cluster.stop(victim)
            flip_a_bit(data_dir, what, chance)
            under.hit()
            under.cluster.start(victim)
            under.healed()
            if under.times % 2 == 0:
                other = chance.choice([node_id for node_id in under.cluster.node_ids if node_id != victim])
                under.cluster.kill(other)  # the repaired node now makes the majority
                under.load.wait_progress(time.monotonic(), 15.0, None, f"a bit of {what} flipped and another node died")
                under.cluster.start(other)
                under.healed()
        under.finish()


def largest(data_dir: Path, what: str) -> Path | None:
    return max(data_dir.glob(FLIPS[what][0]), key=lambda found: found.stat().st_size, default=None)


def holds(data_dir: Path, what: str) -> bool:
    """Whether there is enough of it: some batches, in a log."""
    path = largest(data_dir, what)
    return path is not None and path.stat().st_size >= FLIPPED_BYTES_MIN


def flip_a_bit(data_dir: Path, what: str, chance: Random) -> None:
    """In the middle of the largest file that fits, so that no torn tail explains it."""
    field = FLIPS[what][1]
    path = largest(data_dir, what)
    assert path is not None
    data = bytearray(path.read_bytes())
    written = len(data.rstrip(b"\0"))
    if field is None:
        position = chance.randrange(written // 4, written * 3 // 4)
    else:
        begins = list(batch_positions(data))
        begin = chance.choice(begins[len(begins) // 4 : len(begins) * 3 // 4])
        position = begin + chance.randrange(field.start, field.stop)
    bit = chance.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    print(f"{what}: flipped bit {bit} of byte {position} of {path.relative_to(data_dir)}, {len(data)} bytes")  # noqa: T201 # shown when the test fails


def batch_positions(data: bytes | bytearray) -> Iterator[int]:
    """Where record batches begin: the length after the base offset leads from one to the next."""
    position = 0
    while position + 61 <= len(data) and (length := struct.unpack_from(">i", data, position + 8)[0]) > 0:
        yield position
        position += 12 + length
