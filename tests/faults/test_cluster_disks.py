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


FLIPPED_BYTES_MIN = 300
"""So much of a file that it holds some batches."""

BATCH_FIELDS: dict[str, slice | None] = {
    "anywhere": None,
    "in the base offset of a batch": slice(0, 8),
    "in the length of a batch": slice(8, 12),
    "in the leader epoch of a batch": slice(12, 16),
}
"""Bytes of a batch's header that are not under its CRC: nothing but the log around them can tell."""

OTHER_FILES = {
    "the metadata": "__cluster_metadata-0/*.log",
    "committed offsets": "__consumer_offsets-*/*.log",
    "a snapshot of producers": f"{TOPIC}-*/*.snapshot",
    "the votes": "votes",
}


@pytest.mark.timeout(round_timeout_s(1, 120))
def test_bits_of_a_log_that_flipped_while_a_node_was_down_are_found_and_repaired_from_the_others(
    tmp_path: Path,
) -> None:
    """Each in another partition: no more than a minority of a partition's replicas is damaged."""
    chance = seeded()
    for number in range(rounds(1)):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        with trial("a bit flipped in a segment of a node that was down", Cluster(directory)) as under:
            for index, (where, field) in enumerate(BATCH_FIELDS.items()):
                victim = preferred_leader(under, index)
                data_dir = under.cluster.plans[victim].data_dir
                path = wait_content(data_dir, f"{TOPIC}-{index}/*.log")
                under.cluster.stop(victim)
                flip_a_bit(path, where, field, chance)
                under.hit()
                under.cluster.start(victim)
                under.healed()
                wait_until(lambda: is_found(under, path), 30, f"the flipped bit {where} of {path} is found")  # noqa: B023 # called at once
                under.healed()
            kill_another(under, victim, chance)
            under.finish()


def preferred_leader(under: Trial, index: int) -> int:
    """The node that leads a partition again soon after it was started, and so reads it for consumers."""
    view = under.cluster.view(under.cluster.leader(TOPIC, index), TOPIC)
    assert view is not None
    assert view.partitions is not None
    return view.partitions[index].replicas[0]


def is_found(under: Trial, path: Path) -> bool:
    """Have a consumer read everything, and see whether the node that has the file noticed."""
    under.load.read_log(10)
    return any(
        "log_damaged" in line and str(path) in line
        for node_id in under.cluster.node_ids
        for line in under.cluster.output(node_id).splitlines()
    )


@pytest.mark.timeout(round_timeout_s(1, 120))
def test_bits_of_other_files_that_flipped_while_a_node_was_down_do_no_harm(tmp_path: Path) -> None:
    chance = seeded()
    for number in range(rounds(1)):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        with trial("a bit flipped in another file of a node that was down", Cluster(directory)) as under:
            for what, pattern in OTHER_FILES.items():
                victim = chance.choice(under.cluster.node_ids)
                data_dir = under.cluster.plans[victim].data_dir
                if not pattern.endswith(".snapshot"):  # which is written when the node stops
                    wait_content(data_dir, pattern)
                under.cluster.stop(victim)
                flip_a_bit(wait_content(data_dir, pattern), f"in {what}", None, chance)
                under.hit()
                under.cluster.start(victim)
                under.healed()
            kill_another(under, victim, chance)
            under.finish()


def kill_another(under: Trial, repaired: int, chance: Random) -> None:
    """What was repaired now makes the majority."""
    other = chance.choice([node_id for node_id in under.cluster.node_ids if node_id != repaired])
    under.cluster.kill(other)
    under.load.wait_progress(time.monotonic(), 15.0, None, f"node {repaired} was repaired and node {other} died")
    under.cluster.start(other)
    under.healed()


def wait_content(data_dir: Path, pattern: str) -> Path:
    """The largest file that fits, once there is enough in it to be damaged."""
    found: list[Path] = []

    def is_there() -> bool:
        sizes = {path: len(path.read_bytes().rstrip(b"\0")) for path in data_dir.glob(pattern)}
        found[:] = [path for path, size in sizes.items() if size == max(sizes.values())]
        return bool(found) and (sizes[found[0]] >= FLIPPED_BYTES_MIN or found[0].suffix == ".snapshot")

    wait_until(is_there, 20, f"{pattern} holds something")
    return found[0]


def flip_a_bit(path: Path, where: str, field: slice | None, chance: Random) -> None:
    """In the middle of the file, so that no torn tail explains it."""
    data = bytearray(path.read_bytes())
    if field is None:
        written = len(data.rstrip(b"\0"))
        position = chance.randrange(written // 4, written * 3 // 4)
    else:
        begins = list(batch_positions(data))
        position = chance.choice(begins[len(begins) // 4 : len(begins) * 3 // 4]) + chance.randrange(
            field.start, field.stop
        )
    bit = chance.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    print(f"flipped bit {bit} of byte {position} of {path}, {where}")  # noqa: T201 # shown when the test fails


def batch_positions(data: bytes | bytearray) -> Iterator[int]:
    """Where record batches begin: the length after the base offset leads from one to the next."""
    position = 0
    while position + 61 <= len(data) and (length := struct.unpack_from(">i", data, position + 8)[0]) > 0:
        yield position
        position += 12 + length
