"""The event log: events on the edge's own disk, from the acknowledgement to the device until the core has them."""

from tidegate_edge.event_log.changes import Change, CutRows, RefuseEvent, SettleCut, TakeProducer
from tidegate_edge.event_log.cuts import CutBatch, EncodedBatch, Refusal
from tidegate_edge.event_log.event import Event
from tidegate_edge.event_log.log import EventLog
from tidegate_edge.event_log.reader import Rows
from tidegate_edge.event_log.state import LogLimits, LogStats, StreamState, WhenFull

__all__ = [
    "Change",
    "CutBatch",
    "CutRows",
    "EncodedBatch",
    "Event",
    "EventLog",
    "LogLimits",
    "LogStats",
    "Refusal",
    "RefuseEvent",
    "Rows",
    "SettleCut",
    "StreamState",
    "TakeProducer",
    "WhenFull",
]
