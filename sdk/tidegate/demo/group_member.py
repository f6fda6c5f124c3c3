"""A member of the demo's consumer group: an application as it would be written, noting what it saw.

`python -m tidegate.demo.group_member CORE GROUP STREAM OUTPUT` appends a line `device sequence` for each event.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Final

from tidegate import Consumer
from tidegate.cli.running import run_until_stopped
from tidegate.errors import CommitRefusedError, UnknownStreamError

_RETRY_INTERVAL_S: Final = 0.2


async def run(core: str, group: str, stream: str, output: Path) -> None:
    """Read until cancelled, from when the stream is there: it comes with its first event."""
    while True:
        try:
            await _consume(core, group, stream, output)
        except UnknownStreamError:
            await asyncio.sleep(_RETRY_INTERVAL_S)


async def _consume(core: str, group: str, stream: str, output: Path) -> None:
    async with Consumer(stream, core=core, group=group, start="earliest") as consumer:
        with output.open("a", encoding="utf-8") as lines:
            async for events in consumer.batches():
                for event in events:
                    payload = event.json()
                    lines.write(f"{payload['device']} {payload['sequence']}\n")
                lines.flush()
                with contextlib.suppress(CommitRefusedError):  # another member has the partition, and gets them again
                    await consumer.commit()


if __name__ == "__main__":
    run_until_stopped(run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
