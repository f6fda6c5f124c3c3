"""What the edge's tests share."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tidegate_edge.event_log import Event, EventLog, LogLimits, Rows
from tidegate_edge.event_log.opening import FILE_NAME

EDGE = "edge-1"


def event(number: int, *, stream: str = "events", device: str = "d1", **fields: Any) -> Event:
    """An event whose payload names device and number."""
    values: dict[str, Any] = {
        "topic": f"sensors/{device}",
        "event_time_ms": 1_700_000_000_000 + number,
        "receive_time_ms": 1_700_000_000_500 + number,
        "payload": json.dumps({"device": device, "sequence": number}).encode(),
        "packet_id": 0,
        "headers": None,
        "dup": False,
    }
    return Event(stream=stream, device=device, **(values | fields))


@asynccontextmanager
async def open_log(
    directory: Path, *streams: str, limits: LogLimits | None = None, edge: str = EDGE
) -> AsyncIterator[EventLog]:
    log = await EventLog.open(directory, edge=edge, streams=streams or ("events",), limits=limits or small_disk())
    try:
        yield log
    finally:
        await log.close()


def small_disk(**limits: Any) -> LogLimits:
    """Limits that do not depend on how full the disk of the test machine is."""
    return LogLimits(**({"disk_free_bytes_min": 0, "reserve_bytes": 0} | limits))


async def stored(log: EventLog, stream: str = "events") -> list[dict[str, Any]]:
    """The JSON payloads of a stream, in the order of their sequences."""

    def convert(rows: Rows) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in rows.payloads]

    return await log.read(stream, 1, 2**62, convert, rows_max=10**6, bytes_max=2**40) or []


def query(directory: Path, sql: str) -> list[Any]:
    """What a person sees with the sqlite3 shell."""
    connection = sqlite3.connect(f"file:{directory / FILE_NAME}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Poll until `condition` holds; an AssertionError names `what` never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.005)
