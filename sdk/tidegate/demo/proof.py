"""The proof at the end: the ledger of the devices against what a fresh consumer reads."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tidegate.demo.errors import PartFailedError

VERIFY_TIMEOUT_S: Final = 60.0
INTEGRITY_EXIT_CODE: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The six counts of `tidegate verify`, and what the consumer group missed while everything broke around it."""

    published: int
    acknowledged: int
    read: int
    lost: int
    duplicated: int
    out_of_order: int
    missed_by_group: int

    @property
    def holds(self) -> bool:
        """Whether everything acknowledged was read once and in order, and the group saw it too."""
        return not (self.lost or self.duplicated or self.out_of_order or self.missed_by_group) and self.read > 0

    def rows(self) -> Iterator[tuple[str, int, str, bool]]:
        """Name, count, meaning, and whether it must be zero."""
        yield "published", self.published, "sent by the devices", False
        yield "acknowledged", self.acknowledged, "PUBACK: on an edge's disk", False
        yield "read", self.read, "by a consumer that started afterwards", False
        yield "lost", self.lost, "acknowledged, and not read", True
        yield "duplicated", self.duplicated, "read more than once", True
        yield "out of order", self.out_of_order, "read behind a later one of the same device", True
        if self.missed_by_group:
            yield "missed", self.missed_by_group, "acknowledged, and not seen by the consumer group", True

    def sentence(self) -> str:
        """What it means."""
        if self.holds:
            return "Every acknowledged event was read exactly once, in order."
        return "The promise does not hold: see above."

    def to_json(self) -> str:
        """The six counts as one JSON object."""
        fields = asdict(self)
        del fields["missed_by_group"]
        return json.dumps(fields)


async def prove(core: str, stream: str, ledger: Path, *, missed_by_group: int) -> Proof:
    """Run `tidegate verify` as a process of its own.

    Raises:
        PartFailedError: it did not answer.
    """
    arguments = ["-m", "tidegate", "verify", "--core", core, "--stream", stream, "--ledger", str(ledger), "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            stdout, stderr = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise PartFailedError(f"tidegate verify is not done after {VERIFY_TIMEOUT_S:.0f} s") from error
        raise
    if process.returncode not in {0, INTEGRITY_EXIT_CODE}:
        raise PartFailedError(f"tidegate verify failed:\n{stderr.decode(errors='replace')[-2000:]}")
    counts = json.loads(stdout)
    return Proof(
        published=counts["published"],
        acknowledged=counts["acknowledged"],
        read=counts["read"],
        lost=counts["lost"],
        duplicated=counts["duplicated"],
        out_of_order=counts["out_of_order"],
        missed_by_group=missed_by_group,
    )
