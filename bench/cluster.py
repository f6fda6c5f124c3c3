"""Three core nodes: what a majority's disks cost, for how long a dead leader is missed, what idling costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import KafkaError, Message, Producer
from tests.support.cluster import Cluster

from bench.parts import bench_gateway, cpu_seconds, resident_mib
from bench.report import Measurement

LOADS = ((100, 1_000_000), (1_024, 200_000))
"""Bytes of a message, and how many."""

PARTITIONS = 4
SYNC_MESSAGES = 2_000
KILLS = 20
IDLE_PARTITIONS = 1_000
IDLE_S = 20.0


def run(directory: Path) -> list[Measurement]:
    rows: list[Measurement] = []
    with bench_gateway(directory / "alone") as gateway:
        (directory / "alone").mkdir()
        gateway.start("core")
        for message_bytes, count in LOADS:
            rows += _throughput("one node", gateway.core, message_bytes, count)
        rows += _latency("one node", gateway.core)
    with Cluster(directory / "three", 3) as cluster:
        cluster.start()
        for message_bytes, count in LOADS:
            cluster.create_topic(f"bench-{message_bytes}", PARTITIONS)
            rows += _throughput("three nodes", cluster.bootstrap, message_bytes, count)
        cluster.create_topic("sync", 1)
        rows += _latency("three nodes", cluster.bootstrap)
        rows += _failover(cluster)
    with Cluster(directory / "idle", 3) as cluster:
        cluster.start()
        rows += _idle(cluster)
    return rows


def _throughput(what: str, core: str, message_bytes: int, count: int) -> list[Measurement]:
    rows: list[Measurement] = []
    for verb in ("produce", "consume"):
        arguments = {"core": core, "topic": f"bench-{message_bytes}", "message_bytes": message_bytes, "count": count}
        seconds = _elsewhere("bench.kafka", verb, json.dumps(arguments))[0]
        subject, note = f"{what}: {verb} {message_bytes} B", f"{count:,} messages, {PARTITIONS} partitions, acks=all"
        rows.append(Measurement(subject=subject, value=count / seconds, unit="messages/s", note=note))
        rows.append(Measurement(subject=subject, value=message_bytes * count / 1e6 / seconds, unit="MB/s"))
    return rows


def _latency(what: str, core: str) -> list[Measurement]:
    half, most = _elsewhere("bench.cluster", "synchronous", core)
    note = f"{SYNC_MESSAGES:,} messages of 100 B, each after the one before was acknowledged"
    return [
        Measurement(subject=f"{what}: synchronous produce p50", value=half, unit="ms", note=note),
        Measurement(subject=f"{what}: synchronous produce p99", value=most, unit="ms"),
    ]


def synchronous(core: str) -> tuple[float, float]:
    """p50 and p99 in ms of producing one message and waiting for its acknowledgement."""
    producer = Producer({"bootstrap.servers": core, "enable.idempotence": True, "linger.ms": 0})
    producer.list_topics("sync", timeout=10)
    times_ms: list[float] = []
    for number in range(SYNC_MESSAGES + 100):
        start_s = time.perf_counter()
        producer.produce("sync", b"x" * 100, partition=0)
        producer.flush()
        if number >= 100:  # the first ones find their way
            times_ms.append((time.perf_counter() - start_s) * 1000)
    times_ms.sort()
    return times_ms[len(times_ms) // 2], times_ms[len(times_ms) * 99 // 100]


def _failover(cluster: Cluster) -> list[Measurement]:
    """kill -9 of a partition's leader, to the next acknowledgement of a producer that never stops."""
    cluster.create_topic("failover", 1)
    missed: list[float] = []
    for _ in range(KILLS):
        leader = cluster.leader("failover", 0)
        missed.append(_missed_s(cluster, leader))
        cluster.start(leader)
        cluster.wait_in_step("failover", 1)
    note = f"{KILLS} leaders killed with kill -9 under a producer; to its next acknowledgement"
    return [
        Measurement(subject="three nodes: leader missed, median", value=statistics.median(missed), unit="s", note=note),
        Measurement(subject="three nodes: leader missed, worst", value=max(missed), unit="s"),
    ]


def _missed_s(cluster: Cluster, leader: int) -> float:
    acknowledged_s: list[float] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is None:
            acknowledged_s.append(time.perf_counter())

    producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True, "linger.ms": 0})
    end_s = time.perf_counter() + 1.0
    while time.perf_counter() < end_s:
        _produce_one(producer, delivered)
    cluster.kill(leader)
    killed_s = time.perf_counter()
    before = len(acknowledged_s)
    while True:
        _produce_one(producer, delivered)
        later = [at_s for at_s in acknowledged_s[before:] if at_s > killed_s + 0.005]  # after what was on its way
        if later:
            break
        if time.perf_counter() - killed_s > 60:
            raise TimeoutError("nothing is acknowledged a minute after the leader's death")
    producer.flush(30)
    return later[0] - killed_s


def _produce_one(producer: Producer, delivered: Callable[[KafkaError | None, Message], None]) -> None:
    producer.produce("failover", b"x" * 100, partition=0, on_delivery=delivered)
    producer.poll(0.005)


def _idle(cluster: Cluster) -> list[Measurement]:
    cluster.create_topic("idle", IDLE_PARTITIONS)
    cluster.wait_in_step("idle", IDLE_PARTITIONS, timeout_s=120)
    time.sleep(5)
    pids = {node: cluster.part(node).pid for node in cluster.running()}
    before = {node: cpu_seconds(pid) for node, pid in pids.items()}
    time.sleep(IDLE_S)
    shares = [100 * (cpu_seconds(pid) - before[node]) / IDLE_S for node, pid in pids.items()]
    note = f"{IDLE_PARTITIONS:,} partitions with three replicas, nothing to do; the node that takes most"
    return [
        Measurement(subject="three nodes idle: of one core", value=max(shares), unit="%", note=note),
        Measurement(
            subject="three nodes idle: resident", value=max(resident_mib(pid) for pid in pids.values()), unit="MiB"
        ),
    ]


def _elsewhere(module: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {result.stderr[-2000:]}")
    return [float(number) for number in result.stdout.split()]


if __name__ == "__main__":
    print(*{"synchronous": synchronous}[sys.argv[1]](sys.argv[2]))
