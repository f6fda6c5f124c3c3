"""Partitions from what stands on the disk; `log.recovery` opens their logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.config import LogConfig
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.history import rebuild_producers
from tidegate_core.log.identity import PartitionIdentity, load_identity, write_identity
from tidegate_core.log.recovery import create_log, open_log
from tidegate_core.log.reset import finish_reset
from tidegate_core.log.snapshots import load_snapshot, remove_snapshots
from tidegate_core.partition import Partition
from tidegate_core.producers import ProducerStates
from tidegate_wire.records import BatchHeader


def open_partition(
    topic: str,
    index: int,
    directory: Path,
    config: LogConfig,
    *,
    files: OpenFiles,
    flusher: Flusher,
    discard: Callable[[Path], None],
    now_ms: int,
) -> Partition:
    """Recover the partition in `directory`, which may take a while; nobody leads it yet.

    Raises:
        OSError: the directory can't be read, or what it holds not be made safe.
        DamagedFile: what says whose partition it is can't be read.
    """
    identity = load_identity(directory)
    for path in finish_reset(directory):
        discard(path)
    replay_from, producers = load_snapshot(directory)

    def replay(header: BatchHeader) -> None:
        if header.producer_id >= 0:
            producers.record(header, now_ms)

    log = open_log(
        directory,
        config,
        files,
        discard=discard,
        now_ms=now_ms,
        identity=identity,
        replay_from=replay_from,
        batch_found=replay,
    )
    if replay_from > log.log_end_offset and log.failure is None:  # a crash while it was cut
        remove_snapshots(directory, log.log_end_offset)
        try:
            producers = rebuild_producers(log, log.log_end_offset, now_ms)
        except PartitionDamaged as error:
            log.damage = log.failure = error
    first = log.segments[0].base_offset
    if first > replay_from and identity.is_shared:
        problem = f"{directory}: who wrote the records before offset {first} is not known any more"
        log.damage = log.damage or PartitionDamaged(problem, hint="the partition is fetched anew from its leader")
    if len(log.voter_sets.latest[1]) > 1:  # another node has what is damaged here
        log.failure = log.failure or log.damage
    return Partition(topic, index, identity, log, producers, flusher, now_ms)


def create_partition(
    topic: str,
    index: int,
    directory: Path,
    config: LogConfig,
    *,
    files: OpenFiles,
    flusher: Flusher,
    discard: Callable[[Path], None],
    now_ms: int,
    identity: PartitionIdentity,
) -> Partition:
    """Make an empty partition in the existing empty `directory`; nobody leads it yet.

    Raises:
        OSError: the files can't be made.
    """
    write_identity(directory, identity)
    log = create_log(directory, config, files, discard=discard, now_ms=now_ms, voters=identity.voters)
    return Partition(topic, index, identity, log, ProducerStates(), flusher, now_ms)
