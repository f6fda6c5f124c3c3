"""How a fleet does: counts for the status file, twice a second, and the summary at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(slots=True, kw_only=True)
class FleetStatus:
    """The counts of one run of a fleet."""

    devices: int
    connected: int = 0
    """Devices with a connection now."""
    published: int = 0
    """Events sent at least once in this run."""
    acknowledged: int = 0
    in_flight: int = 0
    """Published and not acknowledged."""
    waiting: int = 0
    """Held in the devices' flash: in flight, or not sent yet."""
    skipped: int = 0
    """Samples not taken because a flash was full; they have no sequence, so nothing numbered is missing."""
    connects: int = 0
    reconnects: int = 0
    power_losses: int = 0
    radio_losses: int = 0
    behind_ms_max: int = 0
    """How late the latest sample was taken. Beyond some tens of ms this machine is too slow for the fleet."""
    done: bool = False

    def to_json(self) -> str:
        """The counts as one JSON object on one line."""
        return json.dumps(asdict(self))


def write_status(path: Path, status: FleetStatus) -> None:
    """Write the counts so that a reader sees all of them or the ones before.

    Raises:
        OSError: the file can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(status.to_json() + "\n", encoding="utf-8")
    partial.replace(path)
