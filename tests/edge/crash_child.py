"""Appends to an event log, settles what it appended, and writes down what was acknowledged, until it is killed.

    python -m tests.edge.crash_child DIRECTORY LEDGER FIRST

Each line of the ledger is written after the event log said that the numbers up to it are stored, or freed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from tests.edge.support import event, small_disk
from tidegate_edge.event_log import CutRows, EncodedBatch, EventLog, SettleCut
from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerEpoch, ProducerId


async def append(log: EventLog, ledger: int, first: int) -> None:
    """Numbers from `first` on, in groups; each number is the packet identifier too, so that a repeat is known."""
    chance = random.Random(first)
    number = first
    while True:
        numbers = range(number, number + chance.randint(1, 300))
        repeats = [event(n, packet_id=n % 65_535 + 1, dup=True) for n in range(max(1, number - 20), number)]
        fresh = [event(n, packet_id=n % 65_535 + 1) for n in numbers]
        await log.append([*repeats, *fresh])
        number = numbers[-1] + 1
        os.write(ledger, f"stored {number - 1}\n".encode())


async def free(log: EventLog, ledger: int) -> None:
    """Cut and settle behind the appends."""
    chance = random.Random(1)
    while True:
        state = log.stats.streams["events"]
        if state.uncut < 500:
            await asyncio.sleep(0.001)
            continue
        first, last = state.first_uncut, state.first_uncut + chance.randint(1, 400) - 1
        (batch,) = await log.change(
            CutRows(
                stream="events",
                read_from=first,
                first_sequence=first,
                last_sequence=EventSequence(last),
                device_partitions=0,
                producer_id=ProducerId(1),
                producer_epoch=ProducerEpoch(0),
                batches=[
                    EncodedBatch(
                        partition=0,
                        base_sequence=BatchSequence(0),
                        record_count=last - first + 1,
                        record_batch=b"x",
                        crc=0,
                    )
                ],
            )
        )
        os.write(ledger, f"freeing {last}\n".encode())
        await log.change(SettleCut(cut=batch.cut))
        os.write(ledger, f"freed {last}\n".encode())


async def main(directory: Path, ledger_path: Path, first: int) -> None:
    log = await EventLog.open(directory, edge="edge-1", streams=("events",), limits=small_disk())
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for batch in log.batches:  # a cut that the last life left behind
            os.write(ledger, f"freeing {batch.last_sequence}\n".encode())
            await log.change(SettleCut(cut=batch.cut))
            os.write(ledger, f"freed {batch.last_sequence}\n".encode())
        os.write(ledger, b"ready\n")
        await asyncio.gather(append(log, ledger, first), free(log, ledger))
    finally:
        await log.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
