"""Reading streams with librdkafka: everything here blocks, and runs on the one thread that `Consumer` gives it.

Offsets are resolved here and nowhere else, in a group and without one: what the group committed, else where the caller
wants to start. librdkafka's own reset is switched off, because it jumps over expired events without a word.
Why librdkafka: docs/adr/0005.
"""

from __future__ import annotations

import difflib
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from confluent_kafka import OFFSET_STORED, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as KafkaConsumer

from tidegate import kafka_errors, kafka_settings
from tidegate.errors import StreamTruncatedError, UnknownStreamError, UnreachableError
from tidegate.event import Event, StreamPartition
from tidegate.kafka_events import to_event
from tidegate.kafka_settings import ReaderOptions, Start

_log = logging.getLogger("tidegate.consumer")

_NEVER: Final = 2**63
"""Beyond the last offset that there can be."""

_STREAMS_NAMED_MAX: Final = 10
"""In a hint, which should stay a line or two."""

_PARTITIONS_CHECK_INTERVAL_S: Final = 30.0
"""Nobody tells us of a stream that was deleted, nor, without a group, of partitions that were added."""

_PARTITIONS_CHECK_TIMEOUT_S: Final = 1.0
"""The consumer can't be closed meanwhile, so a core that is gone must not hold it up for long."""


@dataclass(slots=True)
class Reading:
    """What one call of `KafkaReader.read` brought."""

    events: list[Event] = field(default_factory=list)
    revoked: list[StreamPartition] = field(default_factory=list)
    """Partitions that went away during the call: what is still buffered of them must not be delivered."""
    finished: bool = False
    """With `until_end`: nothing more will come."""


class KafkaReader:
    """A librdkafka consumer and its positions. One thread makes all calls; librdkafka's callbacks run inside them."""

    expired_events: int = 0

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options
        self._positions: dict[StreamPartition, int] = {}  # of our partitions, the next offset; negative: not known yet
        self._ends: dict[StreamPartition, int] | None = None
        self._displaced: set[StreamPartition] = set()  # librdkafka has stopped reading them, for want of an offset
        self._revoked: list[StreamPartition] = []
        self._revoke_commits: Mapping[StreamPartition, int] = {}
        self._failure: KafkaError | None = None
        self._core_down = True  # until it answered once; that it never did is an error, not a warning
        self._partitions_checked_s = 0.0
        configuration = kafka_settings.defaults() | dict(options.client_options) | kafka_settings.required(options)
        with kafka_errors.translated(options.core):
            self._client = KafkaConsumer(configuration | {"error_cb": self._on_error}, logger=_LibrdkafkaLog())

    # --- opening and closing

    def open(self) -> None:
        """Find the streams, and take part in the group or take all partitions.

        Raises:
            UnreachableError: the core did not answer in time.
            UnknownStreamError: it has no such stream.
            RefusedError: it does not let us read.
        """
        partitions = self._find_partitions(self._options.timeout_s)
        self._core_down = False
        if self._options.group is not None:
            self._client.subscribe(
                list(self._options.streams),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
            return
        with kafka_errors.translated(self._options.core):
            if self._options.until_end:
                self._ends = {partition: self._watermarks(partition)[1] for partition in partitions}
            # Last, because the core answers a connection's questions in turn, and a Fetch may wait for half a second.
            self._take(self._resolve(partitions))

    def close(self) -> None:
        """Leave the group and close the connections; what was not committed stays uncommitted."""
        self._client.close()

    def _find_partitions(self, timeout_s: float) -> list[StreamPartition]:
        with kafka_errors.translated(self._options.core):
            topics = self._client.list_topics(timeout=timeout_s).topics
        found: list[StreamPartition] = []
        for stream in self._options.streams:
            topic = topics.get(stream)
            if topic is None or topic.error is not None:
                raise UnknownStreamError(
                    f"{self._options.core} has no stream {stream!r}", hint=_streams_hint(stream, topics)
                )
            found += [StreamPartition(stream, partition) for partition in sorted(topic.partitions)]
        self._partitions_checked_s = time.monotonic()
        return found

    # --- reading

    def read(self, events_max: int, timeout_s: float, revoke_commits: Mapping[StreamPartition, int]) -> Reading:
        """Wait for events, at most `timeout_s`; return with those that are there.

        Args:
            events_max: How many events to return at most.
            timeout_s: How long to wait for the first.
            revoke_commits: Positions to commit for those partitions that the group takes away during the call.

        Raises:
            UnknownStreamError: a stream was deleted.
            RefusedError: the core does not let us read.
            IntegrityError: a record batch is damaged, or the stream is shorter than what was read of it.
        """
        self._look_at_partitions()
        self._revoke_commits = revoke_commits
        self._revoked = []
        with kafka_errors.translated(self._options.core):
            if self._ends is not None and not self._unfinished():
                return Reading(finished=True)
            first = self._client.poll(timeout_s)
            messages: Sequence[Message] = ()
            if first is not None:
                messages = (first, *self._client.consume(events_max - 1, 0)) if events_max > 1 else (first,)
            if self._failure is not None:
                raise KafkaException(self._failure)
            events = self._to_events(messages)
            self._resume_displaced()
        self._revoke_commits = {}  # leaving the group must not commit them again, over newer ones
        finished = self._ends is not None and not self._unfinished()
        return Reading(events=events, revoked=self._revoked, finished=finished)

    def _to_events(self, messages: Sequence[Message]) -> list[Event]:
        """The hot path: messages come in runs of one partition, and what is the same for a run is done once."""
        events: list[Event] = []
        append, positions = events.append, self._positions
        run: StreamPartition | None = None
        topic, index, end, wanted = "", -1, 0, False
        for message in messages:
            error = message.error()
            if error is not None:
                run = None  # it may move positions
                self._on_partition_error(message, error)
                continue
            if run is None or message.partition() != index or message.topic() != topic:
                topic, index = sys.intern(message.topic() or ""), message.partition() or 0
                run = StreamPartition(topic, index)
                wanted = run in positions and run not in self._revoked
                end = _NEVER if self._ends is None else self._ends[run]
            offset = message.offset()
            assert offset is not None
            if not wanted:
                continue
            positions[run] = offset + 1
            if offset < end:
                append(to_event(message, topic, index, offset))
        for partition in self._given_back(messages):
            self._reposition(partition, positions[partition])
        self._core_down = self._core_down and not events
        return events

    def _given_back(self, messages: Sequence[Message]) -> set[StreamPartition]:
        """Partitions taken away and given back within one call: which of their messages came after is not known."""
        if not self._revoked:
            return set()
        seen = {StreamPartition(message.topic() or "", message.partition() or 0) for message in messages}
        return seen & set(self._revoked) & self._positions.keys()

    def _unfinished(self) -> bool:
        assert self._ends is not None
        return any(self._positions[partition] < end for partition, end in self._ends.items())

    def _look_at_partitions(self) -> None:
        """Whether the streams are still there, which librdkafka keeps to itself; without a group, also what is new."""
        if time.monotonic() - self._partitions_checked_s < _PARTITIONS_CHECK_INTERVAL_S:
            return
        self._partitions_checked_s = time.monotonic()
        try:
            partitions = self._find_partitions(_PARTITIONS_CHECK_TIMEOUT_S)
            added = [partition for partition in partitions if partition not in self._positions]
            if added and self._options.group is None and self._ends is None:
                with kafka_errors.translated(self._options.core):
                    self._take(self._resolve(added, "earliest"))  # they are new, so nothing in them was seen
        except UnreachableError:
            return  # the connection is librdkafka's to mend; the next look is as good

    # --- what librdkafka tells us

    def _on_partition_error(self, message: Message, error: KafkaError) -> None:
        partition = StreamPartition(message.topic() or "", message.partition() or 0)
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            offset = message.offset()
            if offset is not None and partition in self._positions:
                self._positions[partition] = max(self._positions[partition], offset)
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._displaced.add(partition)
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            _log.warning("left the group: the application took longer than max.poll.interval.ms over one event")
        elif kafka_errors.is_passing(error):
            _log.debug("passing error of %s[%d]: %s", *partition, error)
        else:
            raise KafkaException(error)

    def _resume_displaced(self) -> None:
        """Go on with partitions that have no place to read from, unless the core is gone; then at the next call."""
        for partition in self._displaced & self._positions.keys():
            try:
                self._resume(partition)
            except KafkaException as error:
                if not kafka_errors.is_passing(error.args[0]):
                    raise
                return
            self._displaced.discard(partition)

    def _resume(self, partition: StreamPartition) -> None:
        """The group has no offset, or it is outside the log: retention overtook us, or the log lost its end."""
        position = self._positions[partition]
        if position < 0:
            fresh = self._resolve([partition])
            self._reposition(partition, fresh[partition])
            self._write_down_beginnings(fresh)
            return
        low, high = self._watermarks(partition)
        if position > high:
            raise StreamTruncatedError(
                f"{partition.stream}[{partition.partition}] ends at offset {high}, but was read up to {position}",
                hint="the core lost committed events, or was restored from a backup; to go on, start a new group",
            )
        expired = max(low - position, 0)
        if expired:
            self.expired_events += expired
            _log.warning(
                "retention deleted %d events of %s[%d] before they were read: offsets %d to %d",
                expired,
                *partition,
                position,
                low - 1,
            )
        self._reposition(partition, max(low, position))

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._core_down:
            self._core_down = True
            _log.warning("the core at %s does not answer; trying on", self._options.core)
        elif error.fatal() or kafka_errors.is_refusal(error):
            self._failure = error

    # --- the group

    def _on_assign(self, _client: KafkaConsumer, assigned: list[TopicPartition]) -> None:
        partitions = [StreamPartition(item.topic, item.partition) for item in assigned]
        try:
            committed = self._committed(partitions)
            fresh = self._resolve([partition for partition in partitions if partition not in committed])
        except KafkaException as error:
            if not kafka_errors.is_passing(error.args[0]):
                raise
            # librdkafka asks again once the core answers; where the group has no offset it says so as of a gap.
            self._take(dict.fromkeys(partitions, OFFSET_STORED))
            return
        self._take(committed | fresh)
        self._write_down_beginnings(fresh)

    def _committed(self, partitions: Sequence[StreamPartition]) -> dict[StreamPartition, int]:
        """The group's offsets, of those partitions that have one."""
        asked = [TopicPartition(*partition) for partition in partitions]
        answered = self._client.committed(asked, timeout=self._options.timeout_s) if asked else []
        for item in answered:
            if item.error is not None:
                raise KafkaException(item.error)
        return {StreamPartition(item.topic, item.partition): item.offset for item in answered if item.offset >= 0}

    def _write_down_beginnings(self, fresh: Mapping[StreamPartition, int]) -> None:
        """So that whoever takes over before our first commit begins at the same place, and skips nothing."""
        if fresh:
            self._commit_or_warn(fresh, "where the group begins is not written down yet")

    def _on_revoke(self, _client: KafkaConsumer, revoked: list[TopicPartition]) -> None:
        partitions = [StreamPartition(item.topic, item.partition) for item in revoked]
        positions = {p: self._revoke_commits[p] for p in partitions if p in self._revoke_commits}
        if positions:
            self._commit_or_warn(positions, "the last events of revoked partitions come again")
        self._give_up(partitions)

    def _commit_or_warn(self, positions: Mapping[StreamPartition, int], consequence: str) -> None:
        try:
            self._client.commit(offsets=_topic_partitions(positions), asynchronous=False)
        except KafkaException as error:
            _log.warning("a commit failed, %s: %s", consequence, error)

    def _on_lost(self, _client: KafkaConsumer, lost: list[TopicPartition]) -> None:
        """Someone else may have had them for a while already: nothing may be committed."""
        self._give_up([StreamPartition(item.topic, item.partition) for item in lost])

    def _take(self, positions: dict[StreamPartition, int]) -> None:
        self._positions.update(positions)
        self._client.incremental_assign(_topic_partitions(positions))

    def _reposition(self, partition: StreamPartition, offset: int) -> None:
        """Read on from `offset`; unlike a seek this works whatever librdkafka is doing with the partition."""
        self._client.incremental_unassign([TopicPartition(*partition)])
        self._take({partition: offset})

    def _give_up(self, partitions: list[StreamPartition]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._displaced.discard(partition)
        self._revoked += partitions
        self._client.incremental_unassign([TopicPartition(*partition) for partition in partitions])

    # --- offsets

    def commit(self, positions: Mapping[StreamPartition, int]) -> Mapping[StreamPartition, int]:
        """Store the group's positions of those partitions that are still ours; return these once the core has them.

        Raises:
            CommitRefusedError: the group has moved on without us.
            UnreachableError: the core did not answer in time.
        """
        ours = {partition: offset for partition, offset in positions.items() if partition in self._positions}
        if ours:
            with kafka_errors.translated(self._options.core):
                for item in self._client.commit(offsets=_topic_partitions(ours), asynchronous=False) or ():
                    if item.error is not None:
                        raise KafkaException(item.error)
        return ours

    def ends(self) -> dict[StreamPartition, tuple[int, int]]:
        """For each of our partitions: the offset after what was handed over, and the end offset now.

        Raises:
            UnreachableError: the core did not answer in time.
        """
        with kafka_errors.translated(self._options.core):
            return {
                partition: (position, self._end(partition))
                for partition, position in self._positions.items()
                if position >= 0
            }

    def _end(self, partition: StreamPartition) -> int:
        """The end offset as of the last Fetch, which is now: a Fetch is always waiting for what is new."""
        _, end = self._client.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return end if end >= 0 else self._watermarks(partition)[1]  # nothing fetched yet

    def _resolve(self, partitions: Sequence[StreamPartition], start: Start | None = None) -> dict[StreamPartition, int]:
        start = self._options.start if start is None else start
        if isinstance(start, datetime):
            wanted = [TopicPartition(*partition, int(start.timestamp() * 1000)) for partition in partitions]
            found = self._client.offsets_for_times(wanted, timeout=self._options.timeout_s) if wanted else []
            return {
                partition: item.offset if item.offset >= 0 else self._watermarks(partition)[1]
                for partition, item in zip(partitions, found, strict=True)
            }
        if isinstance(start, Mapping):
            return {p: start[p.partition] if p.partition in start else self._watermarks(p)[0] for p in partitions}
        side = 0 if start == "earliest" else 1
        return {partition: self._watermarks(partition)[side] for partition in partitions}

    def _watermarks(self, partition: StreamPartition) -> tuple[int, int]:
        """First offset and end offset, asked of the core now."""
        return self._client.get_watermark_offsets(TopicPartition(*partition), timeout=self._options.timeout_s)


class _LibrdkafkaLog:
    """librdkafka's own lines, for whoever looks for the cause of a bad connection; we log what they mean."""

    def log(self, _level: int, message: str, *arguments: object) -> None:
        _log.debug(message, *arguments)


def _topic_partition(partition: StreamPartition, offset: int) -> TopicPartition:
    return TopicPartition(partition.stream, partition.partition, offset)


def _topic_partitions(positions: Mapping[StreamPartition, int]) -> list[TopicPartition]:
    return [_topic_partition(partition, offset) for partition, offset in positions.items()]


def _streams_hint(wanted: str, streams: Iterable[str]) -> str:
    """The streams there are, the likeliest first."""
    named = sorted(stream for stream in streams if not stream.startswith("__"))
    if not named:
        return "it has no streams yet: they begin with their first event"
    near = difflib.get_close_matches(wanted, named, _STREAMS_NAMED_MAX)
    shown = list(dict.fromkeys((*near, *named)))
    more = f" and {len(shown) - _STREAMS_NAMED_MAX} more" if len(shown) > _STREAMS_NAMED_MAX else ""
    return f"it has {', '.join(shown[:_STREAMS_NAMED_MAX])}{more}"
