"""How fast a Kafka client writes to the core and reads from it: confluent-kafka, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from bench.parts import bench_gateway
from bench.report import Measurement

LOADS = ((100, 2_000_000), (1_024, 600_000))
"""Bytes of a message, and how many."""

BATCH = 10_000

SYNC_WRITES = 4
"""A group commit of the core under this load has about so many MiB: four partitions, a batch of each."""


def run(directory: Path) -> list[Measurement]:
    rows: list[Measurement] = []
    with bench_gateway(directory) as gateway:
        gateway.start("core")
        for message_bytes, count in LOADS:
            alone = _disk_alone(directory / "disk", message_bytes * count)
            note = f"the disk alone: the same bytes, written 1 MiB at a time, fdatasync after every {SYNC_WRITES} MiB"
            rows.append(Measurement(subject=f"write {message_bytes} B", value=alone, unit="MB/s", note=note))
            for verb in ("produce", "consume"):
                seconds = _elsewhere(verb, gateway.core, message_bytes, count)
                megabytes = message_bytes * count / 1e6
                subject = f"{verb} {message_bytes} B"
                acks = ", acks=all, idempotent" if verb == "produce" else ""
                note = f"{count:,} messages, 4 partitions{acks}"
                rows.append(Measurement(subject=subject, value=count / seconds, unit="messages/s", note=note))
                rows.append(Measurement(subject=subject, value=megabytes / seconds, unit="MB/s"))
    return rows


def _disk_alone(path: Path, size_bytes: int) -> float:
    """MB/s of writing and syncing so many bytes, with nothing else: what the core could reach at most here."""
    block = b"x" * 2**20
    start_s = time.perf_counter()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for number in range(max(1, size_bytes // len(block))):
            os.write(descriptor, block)
            if number % SYNC_WRITES == 0:
                os.fdatasync(descriptor)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()
    return size_bytes / 1e6 / (time.perf_counter() - start_s)


def produce(core: str, topic: str, message_bytes: int, count: int) -> float:
    """Seconds from the first message to the last acknowledgement."""
    failures: list[KafkaError] = []
    producer = Producer(
        {
            "bootstrap.servers": core,
            "enable.idempotence": True,
            "linger.ms": 10,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 2_000_000,
            "queue.buffering.max.kbytes": 1_000_000,
            "error_cb": failures.append,
        }
    )
    producer.list_topics(topic, timeout=10)
    value = b"x" * message_bytes
    start_s = time.perf_counter()
    for number in range(count):
        producer.produce(topic, value)
        if number % BATCH == 0:
            producer.poll(0)
    left = producer.flush(120)
    seconds = time.perf_counter() - start_s
    if left or failures:
        raise RuntimeError(f"{left} messages were not acknowledged: {failures[:3]}")
    return seconds


def consume(core: str, topic: str, message_bytes: int, count: int) -> float:
    """Seconds from asking for the first message to having the last."""
    consumer = Consumer(
        {
            "bootstrap.servers": core,
            "group.id": f"bench-{topic}",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 4_000_000,
            "queued.min.messages": 1_000_000,
            "check.crcs": True,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    got, start_s = 0, time.perf_counter()
    consumer.assign([TopicPartition(topic, index, 0) for index in partitions])
    while got < count:
        messages = consumer.consume(BATCH, 0.1)
        for message in messages:
            error = message.error()
            if error is not None:
                raise RuntimeError(str(error))
            assert len(message.value() or b"") == message_bytes
        got += len(messages)
    seconds = time.perf_counter() - start_s
    consumer.close()
    return seconds


def _elsewhere(verb: str, core: str, message_bytes: int, count: int) -> float:
    arguments = {"core": core, "topic": f"bench-{message_bytes}", "message_bytes": message_bytes, "count": count}
    command = [sys.executable, "-m", "bench.kafka", verb, json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(f"{verb} failed: {result.stderr[-2000:]}")
    return float(result.stdout)


if __name__ == "__main__":
    print({"produce": produce, "consume": consume}[sys.argv[1]](**json.loads(sys.argv[2])))
