"""How fast a backlog runs out: a million events wait at an edge, then the bridge comes up."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from bench.generator import Load, generate_elsewhere
from bench.parts import StreamEnd, bench_gateway
from bench.report import Measurement

EVENTS = 1_000_000
PAYLOAD_BYTES = 100
CLIENTS = 10
WINDOW = 1_000
TIMEOUT_S = 300.0


def run(directory: Path) -> list[Measurement]:
    with bench_gateway(directory) as gateway:
        gateway.start("core")
        gateway.start("edge")
        load = Load(server=gateway.edge, clients=CLIENTS, window=WINDOW, payload_bytes=PAYLOAD_BYTES, packets=EVENTS)
        filled = generate_elsewhere(load)
        disk_bytes = sum(path.stat().st_size for path in (directory / "edge").rglob("*") if path.is_file())
        with closing(StreamEnd(gateway.core)) as end:
            gateway.start("bridge")
            start_s, cpu_before = time.perf_counter(), gateway.cpu_seconds()
            seconds = end.wait_for(EVENTS, TIMEOUT_S) - start_s
        cpu = {name: value - cpu_before[name] for name, value in gateway.cpu_seconds().items()}
        resident = gateway.resident_mib()
    payload = f"{EVENTS:,} events of {PAYLOAD_BYTES} B"
    return [
        Measurement(subject="filling the edge", value=filled.per_second, unit="PUBACK/s", note=payload),
        Measurement(subject="disk of the edge", value=disk_bytes / EVENTS, unit="B/event", note="payload 100 B"),
        Measurement(
            subject="edge -> bridge -> core",
            value=EVENTS / seconds,
            unit="events/s",
            note=f"{seconds:.1f} s from the bridge being ready to the last event committed",
        ),
        *(Measurement(subject=f"CPU of {name} meanwhile", value=value, unit="s") for name, value in cpu.items()),
        *(
            Measurement(subject=f"RSS of {name} afterwards", value=value, unit="MiB")
            for name, value in resident.items()
        ),
    ]
