"""The checker of histories itself: it finds each kind of broken promise, by hand and on a real core."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.support.cluster import Cluster
from tests.support.history import Commit, CommittedSeen, History, Read, Sent, Verdict, check
from tests.support.injection import lying_syncs
from tests.support.load import Load, encode
from tests.support.power_cut import PowerCutDisks

TOPIC = "events"

WritableLog = dict[int, list[tuple[int, str, int]]]


def good() -> tuple[History, WritableLog]:
    """Two devices on two partitions with five events each, all acknowledged, read, and committed."""
    log: WritableLog = {index: [(offset, f"d{index}", offset) for offset in range(5)] for index in range(2)}
    history = History()
    for index, records in log.items():
        for offset, device, sequence in records:
            history.sent.append(Sent(device, sequence, index, sent_s=offset, acked_s=offset + 0.5, offset=offset))
            history.reads.append(Read("reader", index, offset, device, sequence))
        history.commits += [Commit(index, 2, done_s=3.0), Commit(index, 5, done_s=6.0)]
        history.committed_seen += [CommittedSeen(index, 2, 3.5, 3.6), CommittedSeen(index, 5, 7.0, 7.1)]
    return history, log


def faults(verdict: Verdict) -> dict[str, int]:
    return {name: count for name in Verdict.FAULTS if (count := getattr(verdict, name))}


def test_a_history_without_fault_holds() -> None:
    history, log = good()
    verdict = check(history, log)
    assert verdict.holds, verdict
    assert verdict.acknowledged == verdict.sent == 10


def lose(history: History, log: WritableLog) -> None:
    del log[0][4]
    del history.reads[4]


def double(history: History, log: WritableLog) -> None:
    log[0].append((5, "d0", 2))


def reorder(history: History, log: WritableLog) -> None:
    log[0][1], log[0][2] = (1, "d0", 2), (2, "d0", 1)
    history.sent[1].offset, history.sent[2].offset = 2, 1
    history.reads[1], history.reads[2] = Read("reader", 0, 1, "d0", 2), Read("reader", 0, 2, "d0", 1)


def misplace(history: History, log: WritableLog) -> None:
    history.sent[3].offset = 4


def invent(history: History, log: WritableLog) -> None:
    log[1].append((5, "d1", 99))


def change(history: History, log: WritableLog) -> None:
    """A consumer was given an event that no longer is where it was read."""
    history.sent[4] = replace(history.sent[4], acked_s=None, offset=None, failure="_MSG_TIMED_OUT")
    del log[0][4]


def skip(history: History, log: WritableLog) -> None:
    del history.reads[7]


def fall(history: History, log: WritableLog) -> None:
    history.committed_seen.append(CommittedSeen(1, 3, 8.0, 8.1))


def fall_unseen(history: History, log: WritableLog) -> None:
    """Lower than what was stored, although nobody had seen that yet."""
    history.committed_seen[1] = CommittedSeen(0, 2, 6.5, 6.6)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lose, {"lost": 1, "unread": 1}),
        (double, {"doubled": 1}),
        (reorder, {"reordered": 1}),
        (misplace, {"misplaced": 1}),
        (invent, {"invented": 1}),
        (change, {"changed": 1}),
        (skip, {"unread": 1}),
        (fall, {"offsets_fell": 1}),
        (fall_unseen, {"offsets_fell": 1}),
    ],
)
def test_each_kind_of_fault_is_found_and_no_other(
    spoil: Callable[[History, WritableLog], None], expected: dict[str, int]
) -> None:
    history, log = good()
    spoil(history, log)
    verdict = check(history, log)
    assert faults(verdict) == expected, verdict
    assert not verdict.holds
    assert all(f"{fault}: " in str(verdict) for fault in expected)


def test_an_event_whose_producer_was_told_of_a_failure_may_be_in_the_log_or_not_but_not_twice() -> None:
    history, log = good()
    history.sent += [
        Sent("d0", 5, 0, sent_s=8.0, failure="_MSG_TIMED_OUT"),
        Sent("d0", 6, 0, sent_s=8.0, failure="_MSG_TIMED_OUT"),
    ]
    log[0].append((6, "d0", 5))
    verdict = check(history, log)
    assert verdict.holds, verdict
    assert verdict.failed == 2
    log[0].append((7, "d0", 5))
    assert faults(check(history, log)) == {"doubled": 1}


def test_a_committed_offset_that_is_overtaken_while_it_is_asked_for_has_not_fallen() -> None:
    history, log = good()
    history.committed_seen.append(CommittedSeen(0, 2, asked_s=5.9, answered_s=6.2))
    assert check(history, log).holds


def test_a_group_that_had_no_time_to_read_is_not_blamed() -> None:
    history, log = good()
    history.reads.clear()
    assert check(history, log, group_is_done=False).holds


@pytest.mark.slow
def test_on_a_core_that_is_killed_under_load_the_promise_holds_and_forgeries_are_found(tmp_path: Path) -> None:
    with Cluster(tmp_path, size=1) as cluster:
        cluster.start()
        cluster.create_topic(TOPIC, 2)
        with Load(cluster.bootstrap, TOPIC, partitions=2, devices=4) as load:
            killed_s = kill_and_restart(cluster)
            assert load.wait_progress(killed_s, 20) > 0
            verdict = load.finish()
        assert verdict.holds, verdict
        assert verdict.acknowledged == verdict.sent > 0
        assert load.history.commits != []
        assert load.history.committed_seen != []

        for device, sequence in (("d0", 3), ("d1", 0)):  # a second time, by a producer that is not idempotent
            produce(cluster, device, sequence, partition=int(device[1:]))
        produce(cluster, "stranger", 1, partition=0)
        load.history.sent.append(Sent("d0", 100_000, 0, sent_s=0.0, acked_s=1.0))
        forged = check(load.history, load.read_log(10), group_is_done=False)
        assert faults(forged) == {"doubled": 2, "invented": 1, "lost": 1}, forged


@pytest.mark.slow
@pytest.mark.peer("strace")
@pytest.mark.peer("mkfs.xfs")
def test_what_a_disk_that_lies_about_syncs_loses_in_a_power_cut_is_found(tmp_path: Path) -> None:
    """The other way round the power cut of an honest disk would prove nothing."""
    with PowerCutDisks(tmp_path, 1) as disks, Cluster(tmp_path, 1, data_dirs={1: disks.paths[1] / "core"}) as cluster:
        cluster.start()
        cluster.create_topic(TOPIC, 1)
        with Load(cluster.bootstrap, TOPIC, partitions=1) as load:
            with lying_syncs(cluster.part(1).pid, tmp_path / "strace"):
                load.wait_progress(time.monotonic(), 20)
                cluster.freeze(1)
                disks.cut()
                cluster.kill(1)
            disks.power_on()
            cluster.start(1)
            verdict = load.finish(timeout_s=5)
    assert verdict.lost > 0, verdict
    assert load.client_errors != [], "an idempotent producer finds out as well"


def kill_and_restart(cluster: Cluster) -> float:
    """When the node was dead."""
    cluster.kill(1)
    killed_s = time.monotonic()
    cluster.start(1)
    return killed_s


def produce(cluster: Cluster, device: str, sequence: int, *, partition: int) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap})
    producer.produce(TOPIC, partition=partition, key=device.encode(), value=encode(device, sequence))
    assert producer.flush(10) == 0
