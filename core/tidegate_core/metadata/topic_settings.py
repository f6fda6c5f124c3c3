"""Topics' settings by Kafka's names: those that logs have, and those that are taken because tools send them. No I/O.

A setting of the second kind is taken only with values that this cluster honours without doing anything for it; any
other value is refused with the reason, so that nobody believes in a setting that does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from tidegate_core.errors import InvalidLogConfig
from tidegate_core.log.config import LogConfig

MIN_INSYNC_REPLICAS: Final = "min.insync.replicas"


class FixedSetting(NamedTuple):
    """A setting with nothing to set."""

    is_allowed: Callable[[str], bool]
    value: str
    """What this cluster does, as a value of the setting."""
    note: str
    """Why no other value is taken, or why the value makes no difference."""


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


_NUMBER: Final = _matches(r"[0-9]{1,19}")
_BOOLEAN: Final = _matches(r"(?i:true|false)")
_LONG_MAX: Final = str(2**63 - 1)

FIXED_SETTINGS: Final[Mapping[str, FixedSetting]] = {
    "compression.type": FixedSetting(
        _matches("producer"), "producer", "batches are kept as producers compressed them; only 'producer' is possible"
    ),
    "unclean.leader.election.enable": FixedSetting(
        _matches("(?i:false)"), "false", "a leader has every acknowledged record; only 'false' is possible"
    ),
    "max.compaction.lag.ms": FixedSetting(
        _matches(_LONG_MAX), _LONG_MAX, f"compaction goes by the dirty ratio alone; only {_LONG_MAX} is possible"
    ),
    "message.timestamp.before.max.ms": FixedSetting(
        _matches(_LONG_MAX), _LONG_MAX, f"old events are taken however late they come; only {_LONG_MAX} is possible"
    ),
    "remote.storage.enable": FixedSetting(
        _matches("(?i:false)"), "false", "logs are kept on the nodes' own disks; only 'false' is possible"
    ),
    "flush.messages": FixedSetting(_NUMBER, "1", "every acknowledged record is synced, whatever this says"),
    "flush.ms": FixedSetting(_NUMBER, "0", "every acknowledged record is synced, whatever this says"),
    "file.delete.delay.ms": FixedSetting(_NUMBER, "0", "files are removed in the background, at once"),
    "index.interval.bytes": FixedSetting(_NUMBER, "4096", "the index has its own density, whatever this says"),
    "segment.index.bytes": FixedSetting(_NUMBER, "10485760", "the index grows with its segment, whatever this says"),
    "segment.jitter.ms": FixedSetting(_NUMBER, "0", "segments are rolled without jitter, whatever this says"),
    "preallocate": FixedSetting(_BOOLEAN, "false", "segments grow as they are written, whatever this says"),
    "message.downconversion.enable": FixedSetting(
        _BOOLEAN, "false", "only the newest record format is served, whatever this says"
    ),
    "message.format.version": FixedSetting(
        _matches(r"[1-9][0-9.]*(-IV[0-9]+)?"), "3.0-IV1", "only the newest record format is kept, whatever this says"
    ),
    "leader.replication.throttled.replicas": FixedSetting(
        _matches(r"[0-9:,*]*"), "", "recovery is slowed down by recovery_bytes_per_s, whatever this says"
    ),
    "follower.replication.throttled.replicas": FixedSetting(
        _matches(r"[0-9:,*]*"), "", "recovery is slowed down by recovery_bytes_per_s, whatever this says"
    ),
}


def majority(replication_factor: int) -> int:
    """How many replicas have every acknowledged record on their disks."""
    return replication_factor // 2 + 1


def log_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that logs have, of `settings`, after a look at the others.

    Raises:
        InvalidLogConfig: one of the others has a value that is not honoured here.
    """
    own: dict[str, str] = {}
    for name, text in settings.items():
        fixed = FIXED_SETTINGS.get(name)
        if fixed is not None:
            if not fixed.is_allowed(text):
                raise InvalidLogConfig(f"{name} = {text!r}: {fixed.note}")
        elif name == MIN_INSYNC_REPLICAS:
            if not _NUMBER(text) or int(text) < 1:
                raise InvalidLogConfig(f"{name} = {text!r} is not a number of replicas")
        else:
            own[name] = text
    return own


def check_min_insync_replicas(settings: Mapping[str, str], replication_factor: int) -> None:
    """Refuse to promise more copies than an acknowledgement stands for.

    Raises:
        InvalidLogConfig: `min.insync.replicas` is above the majority of the replicas.
    """
    copies = majority(replication_factor)
    if int(settings.get(MIN_INSYNC_REPLICAS, "1")) > copies:
        raise InvalidLogConfig(
            f"{MIN_INSYNC_REPLICAS} = {settings[MIN_INSYNC_REPLICAS]}: with {replication_factor} replicas a record is "
            f"acknowledged when {copies} have it, a majority; no more can be asked for"
        )


def describe_settings(config: LogConfig, settings: Mapping[str, str], replication_factor: int) -> dict[str, str]:
    """Every setting of a topic by Kafka's name, and its value."""
    others = {name: fixed.value for name, fixed in FIXED_SETTINGS.items()}
    others[MIN_INSYNC_REPLICAS] = str(majority(replication_factor))
    values = config.to_names() | {name: settings.get(name, value) for name, value in others.items()}
    return dict(sorted(values.items()))


def note_on(name: str) -> str | None:
    """What to know of a setting that changes nothing."""
    if name == MIN_INSYNC_REPLICAS:
        return "an acknowledged record is on a majority of the replicas' disks, whatever this says"
    fixed = FIXED_SETTINGS.get(name)
    return None if fixed is None else fixed.note
