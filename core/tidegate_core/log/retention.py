"""Which segments a topic's retention lets go: whole ones, oldest first, and only what is below the high watermark.

Age counts from a segment's last append, that is from arrival: the records' own times may be weeks old when an edge
comes back, or wrong when a device's clock is.
"""

from __future__ import annotations

from tidegate_core.log.log import Log
from tidegate_core.log.segment import Segment
from tidegate_wire.identifiers import Offset


def retention_start(log: Log, high_watermark: Offset, now_ms: int) -> Offset | None:
    """Where the log may begin now; None if nothing may go."""
    config = log.config
    if not config.deletes:
        return None
    start: Offset | None = None
    excess_bytes = log.size_bytes - config.retention_bytes if config.retention_bytes >= 0 else 0
    for segment in log.segments[:-1]:
        excess_bytes -= segment.size_bytes
        is_old = _is_expired(segment, config.retention_ms, now_ms)
        is_too_much = config.retention_bytes >= 0 and excess_bytes >= 0
        if segment.end_offset > high_watermark or not (is_old or is_too_much):
            return start
        start = segment.end_offset
    active = log.segments[-1]
    if active.size_bytes and active.end_offset <= high_watermark and _is_expired(active, config.retention_ms, now_ms):
        start = active.end_offset
    return start


def _is_expired(segment: Segment, retention_ms: int, now_ms: int) -> bool:
    return 0 <= retention_ms < now_ms - segment.last_append_ms
