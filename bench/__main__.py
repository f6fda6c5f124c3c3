"""`python -m bench [NAME ...]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import cluster, drain, facts, kafka, latency, memory, puback
from bench.report import Measurement, print_table

BENCHMARKS: dict[str, Callable[[Path], list[Measurement]]] = {
    "puback": puback.run,
    "drain": drain.run,
    "kafka": kafka.run,
    "cluster": cluster.run,
    "latency": latency.run,
    "memory": memory.run,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the real processes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all of them by default")
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"tidegate-bench-{name}-") as directory:
            machine = facts.gather(Path(directory))
            if name == names[0]:
                print(facts.sentence(machine))
            started_s = time.monotonic()
            measurements = BENCHMARKS[name](Path(directory))
        print_table(name, measurements, time.monotonic() - started_s)
        result = {"benchmark": name, "machine": machine, "measurements": [row.as_dict() for row in measurements]}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.flush()


main()
