"""How many QoS 1 messages a second are acknowledged: the edge, on disk each time, beside mosquitto, in memory."""

from __future__ import annotations

from pathlib import Path

from tests.support.peers import require_peer
from tests.support.processes import TidegatePart, free_port, mosquitto_broker

from bench.generator import Load, generate_elsewhere
from bench.report import Measurement

CLIENTS = (1, 10)
WINDOW = 100
PAYLOAD_BYTES = 100
SECONDS = 5.0

MOSQUITTO_LIMITS = "max_inflight_messages 0\nmax_queued_messages 0"


def run(directory: Path) -> list[Measurement]:
    rows: list[Measurement] = []
    for clients in CLIENTS:
        folder = directory / f"{clients}"
        folder.mkdir()
        rows.append(_edge(folder, clients))
        rows.append(_mosquitto(folder, clients, persistence=False))
        rows.append(_mosquitto(folder, clients, persistence=True))
    return rows


def _edge(directory: Path, clients: int) -> Measurement:
    arguments = ["edge", "--id", "bench", "--listen", "127.0.0.1:0", "--data-dir", str(directory / "edge")]
    arguments += ["--uplink", f"mqtt://127.0.0.1:{free_port()}"]
    with TidegatePart(arguments, directory, env={"TIDEGATE_EDGE_LOG_LEVEL": "error"}) as edge:
        rate = _measure(edge.wait_ready()["listen"], clients)
    return _row("tidegate edge, SQLite FULL", clients, rate, "on disk before each PUBACK; the uplink is down")


def _mosquitto(directory: Path, clients: int, *, persistence: bool) -> Measurement:
    config = MOSQUITTO_LIMITS
    if persistence:
        config += f"\nuser root\npersistence true\npersistence_location {directory}/"
    with mosquitto_broker(require_peer("mosquitto"), directory, extra_config=config) as port:
        rate = _measure(f"127.0.0.1:{port}", clients)
    name = f"mosquitto, persistence {'on' if persistence else 'off'}"
    return _row(name, clients, rate, "saves to disk now and then" if persistence else "in memory")


def _measure(server: str, clients: int) -> float:
    load = Load(server=server, clients=clients, window=WINDOW, payload_bytes=PAYLOAD_BYTES, seconds=SECONDS)
    return generate_elsewhere(load).per_second


def _row(name: str, clients: int, rate: float, note: str) -> Measurement:
    plural = "client" if clients == 1 else "clients"
    return Measurement(subject=f"{name}, {clients} {plural}", value=rate, unit="PUBACK/s", note=note)
