"""A topic's log configuration, by Kafka's names and with Kafka's defaults except where a comment says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from tidegate_core.errors import InvalidLogConfig

TimestampType = Literal["CreateTime", "LogAppendTime"]
UNLIMITED: Final = -1
_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1
_DAY_MS: Final = 24 * 60 * 60 * 1000


def _setting(name: str, default: Any, *, low: int = 0, high: int = _INT64_MAX) -> Any:
    return field(default=default, metadata={"name": name, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How a topic's partitions keep their records. Times are in milliseconds, sizes in bytes; -1 is no limit."""

    segment_bytes: int = _setting("segment.bytes", 2**30, low=14, high=_INT32_MAX)
    """A segment is closed and a new one begun before it would grow past this."""

    segment_ms: int = _setting("segment.ms", 7 * _DAY_MS, low=1)
    """A segment is closed this long after its first append, however small."""

    retention_ms: int = _setting("retention.ms", 7 * _DAY_MS, low=UNLIMITED)
    """A segment goes this long after its last append. By arrival, not by the records' own timestamps as in Kafka: an
    edge that was offline for weeks sends old events, and they must not be deleted as they arrive."""

    retention_bytes: int = _setting("retention.bytes", UNLIMITED, low=UNLIMITED)
    """The oldest segments go while the log would still hold this much without them."""

    cleanup_policy: frozenset[str] = _setting("cleanup.policy", frozenset({"delete"}))
    """`delete` (by age and size), `compact` (keep each key's newest value), or both."""

    max_message_bytes: int = _setting("max.message.bytes", 1_048_588, high=_INT32_MAX)
    """The largest record batch, header included."""

    min_cleanable_dirty_ratio: float = _setting("min.cleanable.dirty.ratio", 0.5)
    """Compact once this share of the log's bytes was never compacted."""

    min_compaction_lag_ms: int = _setting("min.compaction.lag.ms", 0)
    """Leave a segment alone for at least this long after its last append."""

    delete_retention_ms: int = _setting("delete.retention.ms", _DAY_MS)
    """How long a compacted log keeps tombstones, so that a slow reader sees them."""

    message_timestamp_type: TimestampType = _setting("message.timestamp.type", "CreateTime")  # noqa: RUF009  # a field
    """Whether records keep their own time or get the time of the append."""

    message_timestamp_after_max_ms: int = _setting("message.timestamp.after.max.ms", _INT64_MAX)
    """Refuse batches with a timestamp further ahead of the clock. Without limit, as in Kafka 3: an edge that was
    refused for its clock could never send what it holds."""

    @property
    def compacts(self) -> bool:
        """Whether old values of a key are removed."""
        return "compact" in self.cleanup_policy

    @property
    def deletes(self) -> bool:
        """Whether old segments are removed."""
        return "delete" in self.cleanup_policy

    @classmethod
    def from_names(cls, settings: Mapping[str, str | None]) -> LogConfig:
        """Read Kafka's names and texts, as CreateTopics carries them; None is the default.

        Raises:
            InvalidLogConfig: a name is unknown, or a value not allowed.
        """
        by_name = {item.metadata["name"]: item for item in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in settings.items():
            item = by_name.get(name)
            if item is None:
                raise InvalidLogConfig(
                    f"unknown topic setting {name!r}", hint=f"known are {', '.join(sorted(by_name))}"
                )
            if text is not None:
                values[item.name] = _parse(name, text, item.metadata["low"], item.metadata["high"])
        return cls(**values)

    def to_names(self) -> dict[str, str]:
        """Every setting by Kafka's name, as DescribeConfigs tells it."""
        return {item.metadata["name"]: _text(getattr(self, item.name)) for item in fields(self)}


def _text(value: object) -> str:
    return ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def _parse(name: str, text: str, low: int, high: int) -> object:
    if name == "cleanup.policy":
        policies = frozenset(part.strip() for part in text.split(","))
        if not policies <= {"delete", "compact"}:
            raise InvalidLogConfig(f"{name} = {text!r}: allowed are delete, compact, and compact,delete")
        return policies
    if name == "message.timestamp.type":
        if text not in ("CreateTime", "LogAppendTime"):
            raise InvalidLogConfig(f"{name} = {text!r}: allowed are CreateTime and LogAppendTime")
        return text
    is_ratio = name == "min.cleanable.dirty.ratio"
    try:
        number = float(text) if is_ratio else int(text)
    except ValueError as error:
        raise InvalidLogConfig(f"{name} = {text!r} is not a number") from error
    if is_ratio:
        high = 1
    if not low <= number <= high:
        raise InvalidLogConfig(f"{name} = {text!r}: allowed is {low} to {high}")
    return number
