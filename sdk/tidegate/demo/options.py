"""What can be asked of the demo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How long, how many, and how the result is printed."""

    seconds: int = 20
    """How long the devices publish."""
    devices: int = 50
    outage_s: int = 6
    """For how long the uplink is cut; 0 leaves it."""
    json_output: bool = False
    """Print the six counts as one JSON object on stdout, and the story on stderr."""
