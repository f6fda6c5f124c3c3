"""How much memory each process takes while a thousand devices publish once a second through the whole path."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.support.processes import Process

from bench.parts import bench_gateway, resident_mib
from bench.report import Measurement

DEVICES = 1_000
SECONDS = 12.0
SAMPLE_INTERVAL_S = 0.5


def run(directory: Path) -> list[Measurement]:
    with bench_gateway(directory) as gateway:
        for name in ("core", "bridge", "edge"):
            gateway.start(name)
        idle = gateway.resident_mib()
        command = [sys.executable, "-m", "tidegate", "sim", "--target", f"mqtt://{gateway.edge}"]
        command += ["--devices", str(DEVICES), "--rate", "1", "--seconds", str(SECONDS)]
        command += ["--ledger", str(directory / "ledger.jsonl")]
        highest: dict[str, float] = {}
        with Process(command, directory / "sim.log") as fleet:
            while fleet.running():
                now = gateway.resident_mib() | {"sim": resident_mib(fleet.pid)}
                highest = {name: max(value, highest.get(name, 0.0)) for name, value in now.items()}
                time.sleep(SAMPLE_INTERVAL_S)
            assert fleet.wait(10) == 0, fleet.output()
    load = f"{DEVICES:,} devices, {DEVICES:,} events/s"
    return [
        *(Measurement(subject=f"{name}, idle", value=value, unit="MiB RSS") for name, value in idle.items()),
        *(
            Measurement(subject=f"{name}, highest under load", value=value, unit="MiB RSS", note=load)
            for name, value in highest.items()
        ),
    ]
