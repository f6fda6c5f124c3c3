"""A replica against a simple model, the list of its batches: whatever it is told to do, and wherever it crashes."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.log.support import NOW_MS, checkpoint, make_batch, open_or_create, values
from tidegate_core.errors import CorruptBatchRefused
from tidegate_core.log.config import LogConfig
from tidegate_core.log.control import leader_change, voters_record
from tidegate_core.log.files import OpenFiles
from tidegate_core.log.flusher import Flusher
from tidegate_core.log.partition_snapshot import PartitionSnapshot
from tidegate_core.partition import Partition
from tidegate_core.producers import ProducerStates
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.records import BatchHeader, iter_batches, stamp

CONFIG = LogConfig(segment_bytes=700)
VOTERS = (NodeId(1), NodeId(2), NodeId(3))
STEPS = (
    "lead",
    "follow",
    "append",
    "append",
    "append",
    "append control",
    "append bad",
    "sync",
    "commit",
    "truncate",
    "truncate",
    "reset",
    "delete",
    "checkpoint",
    "roll",
    "reopen",
    "crash",
)


@dataclass
class Batch:
    data: bytes
    voters: tuple[NodeId, ...] | None = None
    header: BatchHeader = field(init=False)

    def __post_init__(self) -> None:
        self.header = BatchHeader.parse(self.data)

    @property
    def end(self) -> int:
        return self.header.last_offset + 1


class Replica:
    """A partition, its model, and what can be done to both."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.rng = random.Random(seed)
        self.files = OpenFiles(3)
        self.flusher = Flusher()
        self.batches: list[Batch] = []
        self.start = self.end = self.high_watermark = self.synced = 0
        self.epoch = 0
        self.base_epoch = -1
        self.base_voters: tuple[NodeId, ...] = VOTERS
        self.base_producers = ProducerStates()
        self.partition = self.opened()

    def opened(self) -> Partition:
        return open_or_create(self.directory, CONFIG, self.files, self.flusher, voters=VOTERS)

    async def close(self) -> None:
        await self.flusher.close()
        self.partition.close()

    # --- the model

    @property
    def last_epoch(self) -> int:
        return self.batches[-1].header.leader_epoch if self.batches else self.base_epoch

    def producers(self, end: int | None = None) -> ProducerStates:
        states = self.base_producers.copy()
        for batch in self.batches:
            if batch.header.producer_id >= 0 and (end is None or batch.end <= end):
                states.record(batch.header, NOW_MS)
        return states

    def voters(self, end: int | None = None) -> tuple[int, tuple[NodeId, ...]]:
        found: tuple[int, tuple[NodeId, ...]] = (-1, self.base_voters)
        for batch in self.batches:
            if batch.voters is not None and (end is None or batch.end <= end):
                found = (batch.header.base_offset, batch.voters)
        return found

    def cut(self, offset: int) -> None:
        first_cut = next((batch.header.base_offset for batch in self.batches if batch.end > offset), self.end)
        self.batches = [batch for batch in self.batches if batch.end <= offset]
        if offset < self.end:  # maybe within a gap, of which it does not matter to which batch it belongs
            self.end = self.partition.log_end_offset
            assert (self.batches[-1].end if self.batches else self.base_end) <= self.end <= first_cut
            self.on_disk = min(self.on_disk, self.end)

    base_end = 0
    """Where the log began when it was made or reset."""
    committed = 0
    """The highest high watermark there ever was: after a restart the replica does not know it, but is not cut below."""

    on_disk = 0
    """What was synced without a word to who waits."""

    def check(self) -> None:
        partition = self.partition
        assert partition.failure is None
        assert not partition.is_damaged
        assert (partition.log_start_offset, partition.log_end_offset) == (self.start, self.end)
        assert partition.high_watermark == self.high_watermark
        assert partition.synced_offset <= self.end
        assert partition.last_epoch == self.last_epoch
        assert (partition.voters_offset, partition.voters) == self.voters()
        assert states(partition.producers) == states(self.producers())
        kept = [batch for batch in self.batches if batch.end > self.start]
        assert self.read(partition.read_for_replica, self.end) == [batch.data for batch in kept]
        committed = [batch.data for batch in kept if batch.end <= self.high_watermark]
        assert self.read(lambda at, limit: partition.read(at, limit).buffers, self.high_watermark) == committed
        for batch in kept:
            epoch = batch.header.leader_epoch
            if epoch != partition.leader_epoch:
                ends = [later.header.base_offset for later in self.batches if later.header.leader_epoch > epoch]
                expected = (epoch, max(ends[0], self.start) if ends else self.end)
                assert partition.end_offset_for_epoch(epoch) == expected

    def read(self, read: object, end: int) -> list[bytes]:
        assert callable(read)
        found: list[bytes] = []
        offset = self.start
        while offset < end:
            buffers: Sequence[bytes] = read(Offset(offset), self.rng.choice([0, 300, 100_000]))
            batches = [bytes(batch) for buffer in buffers for batch in iter_batches(buffer)]
            if not batches:
                break
            found += batches
            offset = BatchHeader.parse(batches[-1]).last_offset + 1
        return found

    # --- making batches

    def new_batch(self, base: int, epoch: int, producers: ProducerStates, *, may_have_gap: bool) -> Batch:
        rng = self.rng
        base += rng.randrange(1, 4) if may_have_gap and rng.random() < 0.1 else 0
        if rng.random() < 0.15:
            voters = tuple(NodeId(node) for node in rng.sample(range(1, 6), rng.randrange(1, 4)))
            data = voters_record(voters).to_batch(NOW_MS)
            stamp(data, Offset(base), LeaderEpoch(epoch))
            return Batch(bytes(data), voters)
        count = rng.randrange(1, 4)
        producer = (-1, -1, -1)
        if rng.random() < 0.6:
            producer_id = rng.randrange(3)
            known = producers.get(producer_id)  # type: ignore[arg-type]  # a NewType of int
            producer = (producer_id, 0, 0)
            if known is not None and rng.random() < 0.2:
                producer = (producer_id, known.epoch + 1, 0)
            elif known is not None:
                producer = (producer_id, known.epoch, known.batches[-1].last_sequence + 1)
        data = bytearray(make_batch(values(count, rng.choice([0, 40, 300])), producer=producer))
        stamp(data, Offset(base), LeaderEpoch(epoch))
        batch = Batch(bytes(data))
        if producer[0] >= 0:
            producers.record(batch.header, NOW_MS)
        return batch

    def from_leader(self, *, may_have_gap: bool = True) -> list[Batch]:
        producers, base, epoch = self.producers(), self.end, max(self.last_epoch, 0)
        batches: list[Batch] = []
        for _ in range(self.rng.randrange(1, 6)):
            last_epoch = batches[-1].header.leader_epoch if batches else self.last_epoch
            epoch = self.rng.randrange(epoch, self.epoch + 1)
            if epoch > last_epoch >= 0:
                batches.append(self.new_epoch(base, epoch))
            else:
                batches.append(self.new_batch(base, epoch, producers, may_have_gap=may_have_gap))
            base = batches[-1].end
        return batches

    @staticmethod
    def new_epoch(base: int, epoch: int) -> Batch:
        """With this record a leader begins."""
        data = leader_change(NodeId(1), VOTERS).to_batch(NOW_MS)
        stamp(data, Offset(base), LeaderEpoch(epoch))
        return Batch(bytes(data))

    # --- steps

    def lead(self) -> None:
        if any(producer.batches[-1].last_offset >= self.end for _, producer in self.partition.producers.items()):
            return  # it began anew, and lacks records that are committed: nobody would vote for it
        self.epoch += 1
        self.partition.lead(LeaderEpoch(self.epoch))
        if self.last_epoch >= 0:
            self.append_control()

    def follow(self) -> None:
        self.epoch += 1
        self.partition.follow(LeaderEpoch(self.epoch))

    def append(self) -> None:
        partition = self.partition
        if not partition.is_leader:
            batches = self.from_leader()
            partition.append_as_follower(memoryview(b"".join(batch.data for batch in batches)), NOW_MS)
            self.batches += batches
            self.end = batches[-1].end
            return
        batch = self.new_batch(self.end, self.epoch, self.producers(), may_have_gap=False)
        if batch.voters is None:
            result = partition.append_as_leader(memoryview(batch.data), NOW_MS)
            assert (result.base_offset, result.end_offset) == (self.end, batch.end)
            if batch.header.producer_id >= 0:
                again = partition.append_as_leader(memoryview(batch.data), NOW_MS)
                assert again.is_duplicate
                assert (again.base_offset, again.end_offset) == (self.end, batch.end)
        else:
            assert partition.append_control(voters_record(batch.voters), NOW_MS) == batch.end
        self.batches.append(batch)
        self.end = batch.end

    def append_control(self) -> None:
        if self.partition.is_leader:
            batch = self.new_epoch(self.end, self.epoch)
            assert self.partition.append_control(leader_change(NodeId(1), VOTERS), NOW_MS) == batch.end
            self.batches.append(batch)
            self.end = batch.end

    def append_bad(self) -> None:
        """Anything that is not what a leader would send is refused as a whole."""
        if self.partition.is_leader:
            return
        rng = self.rng
        batches = self.from_leader(may_have_gap=False)
        data = bytearray(b"".join(batch.data for batch in batches))
        match rng.randrange(5):
            case 0:
                data = data[: rng.randrange(1, len(data))]
                if len(data) in {sum(len(batch.data) for batch in batches[:count]) for count in range(6)}:
                    return
            case 1:
                at = rng.choice([at for at in range(len(data)) if self.is_covered(at, batches)])
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                stamp(memoryview(data), Offset(self.end - 1), LeaderEpoch(max(self.last_epoch, 0)))
            case 3:
                stamp(memoryview(data), Offset(self.end), LeaderEpoch(self.epoch + 1))
            case _:
                if self.last_epoch <= 0:
                    return
                stamp(memoryview(data), Offset(self.end), LeaderEpoch(self.last_epoch - 1))
        with pytest.raises(CorruptBatchRefused):
            self.partition.append_as_follower(memoryview(data), NOW_MS)

    @staticmethod
    def is_covered(at: int, batches: Sequence[Batch]) -> bool:
        """Whether the byte is covered by a batch's CRC."""
        for batch in batches:
            if at < len(batch.data):
                return at >= 17
            at -= len(batch.data)
        return False

    async def sync(self) -> None:
        async with asyncio.timeout(20):
            await self.partition.synced(Offset(self.end))
        assert self.partition.synced_offset == self.end

    def commit(self) -> None:
        ends = [batch.end for batch in self.batches if self.high_watermark < batch.end]
        if ends:
            self.high_watermark = self.rng.choice(ends)
            self.committed = max(self.committed, self.high_watermark)
            self.partition.set_high_watermark(Offset(self.high_watermark))

    def truncate(self) -> None:
        if self.partition.is_leader:
            return
        offset = self.rng.randrange(min(self.committed, self.end), self.end + 2)
        self.partition.truncate(Offset(offset))
        self.cut(offset)

    def reset(self) -> None:
        """To where a leader's log begins: here, further back, or beyond the end of this one."""
        if self.partition.is_leader:
            return
        rng = self.rng
        offset = rng.randrange(max(self.end - 5, 0), self.end + 50)
        producers = self.producers()
        snapshot = PartitionSnapshot.decode(
            PartitionSnapshot(
                offset=Offset(offset),
                leader_epochs=((LeaderEpoch(self.epoch), Offset(offset - 1)),) if offset else (),
                voters=self.voters()[1],
                producers=producers,
                app_state=rng.choice([None, b"", b"state"]),
                compacted_to=Offset(0),
            ).encode()
        )
        self.partition.reset(snapshot)
        self.base_voters, self.base_producers = self.voters()[1], producers
        self.base_epoch = self.epoch if offset else -1
        self.batches = []
        self.start = self.end = self.base_end = self.high_watermark = self.committed = self.on_disk = offset
        assert self.partition.synced_offset == offset

    def delete(self) -> None:
        offset = self.rng.randrange(self.start, self.high_watermark + 1)
        if offset > self.partition.synced_offset:
            self.on_disk = self.end  # a log's start is never after what is on disk of it
        self.start = self.partition.delete_before(Offset(offset))
        assert self.start == offset

    async def checkpoint(self) -> None:
        await checkpoint(self.partition)

    def roll(self) -> None:
        self.partition.log.roll(NOW_MS)

    async def reopen(self) -> None:
        await self.sync()
        await self.restart()

    async def crash(self) -> None:
        """What was not synced is lost from some byte on."""
        self.partition.close()
        self.synced = max(self.partition.synced_offset, self.partition.log.recovery_offset, min(self.on_disk, self.end))
        await self.flusher.drain()
        kept = self.rng.randrange(self.synced, self.end + 1)
        self.lose_after(kept)
        self.partition = self.opened()
        found = self.partition.log_end_offset
        assert found >= self.synced
        self.cut(found)
        self.restarted()

    def lose_after(self, offset: int) -> None:
        """Cut the files somewhere in the batch that holds `offset`."""
        for path in sorted(self.directory.glob("*.log"), reverse=True):
            if int(path.stem) > offset:
                path.unlink()
                path.with_suffix(".index").unlink(missing_ok=True)
                continue
            at = 0
            for batch in iter_batches(path.read_bytes()):
                header = BatchHeader.parse(batch)
                if header.last_offset >= offset:
                    os.truncate(path, at + self.rng.randrange(len(batch)))
                    return
                at += len(batch)
            return

    async def restart(self) -> None:
        await self.flusher.drain()
        self.partition.close()
        self.partition = self.opened()
        self.restarted()

    def restarted(self) -> None:
        self.high_watermark = self.start
        self.partition.follow(LeaderEpoch(self.epoch))
        assert not self.partition.is_leader
        assert self.partition.synced_offset == self.end

    async def step(self, name: str) -> None:
        done = getattr(self, name.replace(" ", "_"))()
        if done is not None:
            await done


def states(producers: ProducerStates) -> dict[int, object]:
    """Without the order, and when they wrote."""
    return {producer_id: (producer.epoch, producer.batches) for producer_id, producer in producers.items()}


async def run(names: Sequence[str], seed: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="replica-"))
    replica = Replica(directory / "p", seed)
    try:
        replica.check()
        for name in names:
            await replica.step(name)
            replica.check()
        await replica.reopen()
        replica.check()
    finally:
        await replica.close()
        shutil.rmtree(directory)


@settings(max_examples=150, deadline=None)
@given(names=st.lists(st.sampled_from(STEPS), min_size=5, max_size=50), seed=st.integers(0, 2**32))
def test_replica_is_what_its_model_is_after_every_step(names: list[str], seed: int) -> None:
    asyncio.run(run(names, seed))
