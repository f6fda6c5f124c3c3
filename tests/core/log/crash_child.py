"""A process that appends and says on stdout what was committed; tests kill it, or let its system calls fail.

    python -m tests.core.log.crash_child DIR SEED BATCHES_MAX [FILE_BYTES_MAX]

Each line is JSON: `{"committed": end_offset, "producer": id, "sequence": last}`, `{"refused": "DiskFull"}`, or
`{"failed": "StorageFailed"}`. Producers send with five batches in flight, and send again what was refused.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
from pathlib import Path

from tests.core.log.support import ALONE, NODE, TOPIC_ID, make_batch
from tidegate_core.data_dir import DataDir
from tidegate_core.errors import DiskFull, PartitionError
from tidegate_core.log.config import LogConfig
from tidegate_core.log_manager import LogManager, lead_alone, wall_clock_ms
from tidegate_core.partition import Partition

CONFIG = LogConfig(segment_bytes=40_000)
PRODUCERS = 3
RETRY_DELAY_S = 0.02


def say(**facts: object) -> None:
    os.write(1, (json.dumps(facts) + "\n").encode())


async def produce(partition: Partition, producer_id: int, seed: int, batches_max: int) -> None:
    rng = random.Random(seed * PRODUCERS + producer_id)
    known = partition.producers.get(producer_id)  # type: ignore[arg-type]  # a NewType of int
    sequence = known.batches[-1].last_sequence + 1 if known is not None else 0
    window = asyncio.Semaphore(5)
    tasks: set[asyncio.Task[None]] = set()

    async def confirm(end_offset: int, last_sequence: int) -> None:
        try:
            await partition.committed(end_offset)  # type: ignore[arg-type]  # a NewType of int
            say(committed=end_offset, producer=producer_id, sequence=last_sequence)
        except PartitionError as error:
            say(failed=type(error).__name__)
        finally:
            window.release()

    for _ in range(batches_max):
        count = rng.randint(1, 5)
        records = [
            (b"p%d" % producer_id, b"%d:%d:" % (producer_id, sequence + at) + b"." * rng.choice([0, 100, 2000]))
            for at in range(count)
        ]
        batch = make_batch(records, producer=(producer_id, 0, sequence), time_ms=wall_clock_ms())
        await window.acquire()
        while True:
            try:
                result = partition.append_as_leader(memoryview(batch), wall_clock_ms())
                break
            except DiskFull:
                say(refused="DiskFull")
                await asyncio.sleep(RETRY_DELAY_S)
            except PartitionError as error:
                say(failed=type(error).__name__)
                return
        task = asyncio.create_task(confirm(result.end_offset, sequence + count - 1))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        sequence += count
        if rng.random() < 0.02:
            partition.request_checkpoint()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)


async def main(path: Path, seed: int, batches_max: int) -> None:
    data_dir = DataDir.claim(path, node_id=NODE)
    async with await LogManager.open(data_dir, config_of=lambda topic: CONFIG) as manager:
        try:
            partition = manager.partitions.get(("events", 0)) or manager.create("events", 0, CONFIG, TOPIC_ID, ALONE)
        except PartitionError as error:
            say(failed=type(error).__name__)
            return
        lead_alone(partition)
        say(opened=partition.log_end_offset)
        await asyncio.gather(*(produce(partition, number, seed, batches_max) for number in range(PRODUCERS)))
        say(done=partition.high_watermark)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
