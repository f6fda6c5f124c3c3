"""`Consumer`: read streams as an asynchronous iterator of events.

The blocking client (`kafka_reader`) runs on one thread of the consumer's own; this file is the asyncio side: what is
handed to the application, and when it counts as handled. `progress` keeps the books.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import Final, Self, TypeVar

from tidegate import kafka_settings
from tidegate.errors import ConfigError
from tidegate.event import Event, StreamPartition
from tidegate.kafka_reader import KafkaReader, Reading
from tidegate.kafka_settings import ConsumerLimits, ReaderOptions, Start
from tidegate.progress import Progress, lost_partition
from tidegate_wire.address import Address, AddressError

T = TypeVar("T")

_POLL_TIMEOUT_S: Final = 0.1
"""How long the thread waits for an event before it looks whether anything else is to be done, a commit say."""

_POLL_INTERVAL_S: Final = 1.0
"""An application that is slow over a batch still takes part in its group at least this often, between two events."""

_AUTO_COMMIT_INTERVAL_S: Final = 1.0
"""After a crash, the events of about the last second come again."""


class Consumer:
    """Reads one or more streams; to be used with `async with` and `async for`.

    ```python
    async with Consumer("telemetry", core="127.0.0.1:9092", group="dashboards", start="earliest") as consumer:
        async for event in consumer:
            print(event.device, event.json())
            await consumer.commit()
    ```

    With a `group`, its members share the partitions, and each partition goes on where the group committed last.
    Without one, the consumer reads all partitions, and nothing is remembered. Events of a partition come in order,
    each once, but for those that a group's member got and did not commit: its successor gets them again.

    Args:
        streams: The streams' names.
        core: Addresses of the core, `HOST:PORT[,HOST:PORT...]`; any Kafka cluster will do.
        group: The consumer group, or None to read without one.
        start: Where to begin a partition: `"earliest"`, `"latest"`, a time (an aware datetime), or
            `{partition: offset}` (partitions that are not named begin at their first event). In a group this is for
            partitions that the group has never committed; the place is then written down at once, so that "latest"
            skips nothing later.
        auto_commit: Commit by itself, about every second and at the end. An event counts as handled once the loop
            asked for the next one.
        until_end: Stop after the events that were there when the consumer started; only without a group.
        timeout_s: How long the core may take to answer at the start, and to a commit. Later the consumer waits for a
            core that is gone as long as it takes.
        limits: What is held in memory at most.
        client_options: Further options of librdkafka, `security.protocol` say, for a Kafka cluster that needs them.

    Raises:
        ConfigError: the arguments do not fit together.
        UnreachableError: (on entry, from `commit` and `lag`) the core did not answer in time.
        UnknownStreamError: (on entry, or when a stream is deleted) the core has no such stream.
        RefusedError: the core does not let this consumer read.
        IntegrityError: (while iterating) a record batch is damaged, or a stream lost its end.
    """

    def __init__(
        self,
        *streams: str,
        core: str,
        group: str | None = None,
        start: Start = "earliest",
        auto_commit: bool = False,
        until_end: bool = False,
        timeout_s: float = 10.0,
        limits: ConsumerLimits | None = None,
        client_options: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        self._options = ReaderOptions(
            streams=streams,
            core=core,
            group=group,
            start=start,
            until_end=until_end,
            timeout_s=timeout_s,
            limits=limits or ConsumerLimits(),
            client_options=client_options or {},
        )
        _check(self._options, auto_commit=auto_commit)
        self._auto_commit = auto_commit
        self._progress = Progress()
        self._reader: KafkaReader | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._reading: asyncio.Future[Reading] | None = None
        self._awaited = False
        self._finished = False
        self._batch: list[Event] = []
        self._yielded = 0  # how many of the batch the application got
        self._handled = 0  # how many of them it has done with: it asked for more
        self._recorded = 0  # how many of them `_progress` knows of
        self._polled_s = 0.0
        self._committed_s = 0.0

    # --- opening and closing

    async def __aenter__(self) -> Self:
        assert self._thread is None, "a consumer is opened once"
        self._reader = KafkaReader(self._options)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidegate-consumer")
        self._committed_s = time.monotonic()
        try:
            await self._call(self._reader.open)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """Commit what was handled (with `auto_commit`), and leave; to the end, even if cancelled meanwhile."""
        if self._thread is None or self._reader is None:
            return
        thread, reader = self._thread, self._reader
        self._thread = None
        self._record(self._handled)
        positions = self._progress.uncommitted() if self._auto_commit else {}

        def leave() -> None:
            try:
                if positions:
                    reader.commit(positions)
            finally:
                reader.close()

        closing = asyncio.get_running_loop().run_in_executor(thread, leave)
        cancelled = False
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError:
                cancelled = True
        thread.shutdown(wait=False)
        if self._reading is not None and not self._reading.cancelled():
            self._reading.exception()  # nobody waits for it any more
        if cancelled:
            closing.exception()
            raise asyncio.CancelledError
        closing.result()

    def _start_call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        if self._thread is None:
            raise RuntimeError("the consumer is not open: use `async with Consumer(...) as consumer`")
        return asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _call(self, function: Callable[[], T]) -> T:
        """Run a blocking call on the reader's thread; the call goes on if we are cancelled."""
        return await asyncio.shield(self._start_call(function))

    def _open_reader(self) -> KafkaReader:
        if self._reader is None:
            raise RuntimeError("the consumer is not open: use `async with Consumer(...) as consumer`")
        return self._reader

    # --- iterating

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._handled = self._yielded
        if self._yielded == len(self._batch) or time.monotonic() - self._polled_s > _POLL_INTERVAL_S:
            await self._refill()
        event = self._batch[self._yielded]
        self._yielded += 1
        return event

    def batches(self) -> BatchIterator:
        """Iterate over lists of events, as they arrive, each of at most `limits.batch_events_max`: for throughput.

        A whole list counts as delivered; with `auto_commit` it counts as handled once the loop asked for the next.
        """
        return BatchIterator(self._next_batch)

    async def _next_batch(self) -> list[Event]:
        self._handled = self._yielded
        await self._refill()
        batch = self._batch[self._yielded :]
        self._yielded = len(self._batch)
        return batch

    async def _refill(self) -> None:
        """Return with at least one event to deliver.

        Raises:
            StopAsyncIteration: with `until_end`, there is none.
        """
        while True:
            if self._auto_commit and time.monotonic() - self._committed_s > _AUTO_COMMIT_INTERVAL_S:
                await self.commit()
            if not self._finished:
                await self._read()
            if self._yielded < len(self._batch):
                return
            if self._finished:
                raise StopAsyncIteration

    async def _read(self) -> None:
        """One call of the reader; if we are cancelled, its outcome is for the next one who asks."""
        if self._awaited:
            raise RuntimeError("another task is waiting for this consumer's next event")
        self._record(self._yielded)
        if self._reading is None:
            self._reading = self._start_reading()
        self._awaited = True
        try:
            await asyncio.wait([self._reading])
        finally:
            self._awaited = False
        reading, self._reading = self._reading, None
        self._take(reading.result())

    def _start_reading(self) -> asyncio.Future[Reading]:
        reader = self._open_reader()
        commits = self._progress.uncommitted() if self._auto_commit else {}
        if self._yielded < len(self._batch):  # only to take part in the group
            return self._start_call(lambda: reader.read(1, 0.0, commits))
        events_max = self._options.limits.batch_events_max
        return self._start_call(lambda: reader.read(events_max, _POLL_TIMEOUT_S, commits))

    def _take(self, reading: Reading) -> None:
        waiting = self._batch[self._yielded :]
        if reading.revoked:
            revoked = set(reading.revoked)
            waiting = [event for event in waiting if (event.stream, event.partition) not in revoked]
            self._progress.release(revoked)
        self._batch = waiting + reading.events
        self._yielded = self._handled = self._recorded = 0
        self._finished = reading.finished
        self._polled_s = time.monotonic()

    # --- committing

    async def commit(self, event: Event | None = None) -> None:
        """Tell the group what is handled, and return when the core has stored it.

        Args:
            event: Everything of this event's partition up to and including it; None means every event that the
                application got so far, of all partitions that are still this consumer's. Never moves back.

        Raises:
            ConfigError: the consumer has no group.
            CommitRefusedError: the partitions went to another member, which gets the events again.
            UnreachableError: the core did not answer in time; the commit may or may not have been stored.
            ValueError: the event was not delivered by this consumer.
        """
        if self._options.group is None:
            raise ConfigError("commit needs a group: Consumer(..., group=NAME)")
        reader = self._open_reader()
        self._record(self._yielded)
        positions = self._progress.uncommitted() if event is None else self._progress.uncommitted_up_to(event)
        if positions:
            stored = await self._call(lambda: reader.commit(positions))
            self._progress.commit_done(stored)
            if event is not None and not stored:
                raise lost_partition(StreamPartition(event.stream, event.partition))
        self._committed_s = time.monotonic()

    def _record(self, count: int) -> None:
        if count > self._recorded:
            self._progress.deliver(self._batch[self._recorded : count])
            self._recorded = count

    # --- looking

    @property
    def positions(self) -> dict[StreamPartition, int]:
        """For each partition that delivered something, the offset after the last event that the application got."""
        self._record(self._yielded)
        return self._progress.positions

    @property
    def expired_events(self) -> int:
        """How many events retention deleted before this consumer read them; each gap is logged as a warning."""
        return self._open_reader().expired_events

    async def lag(self) -> dict[StreamPartition, int]:
        """For each partition of this consumer, how many offsets lie between the application and the end.

        Raises:
            UnreachableError: the core did not answer in time.
        """
        ends = await self._call(self._open_reader().ends)
        waiting: dict[StreamPartition, int] = {}
        for event in self._batch[self._yielded :]:
            waiting.setdefault(StreamPartition(event.stream, event.partition), event.offset)
        return {
            partition: max(end - waiting.get(partition, position), 0) for partition, (position, end) in ends.items()
        }


class BatchIterator:
    """What `Consumer.batches` returns."""

    def __init__(self, next_batch: Callable[[], Awaitable[list[Event]]]) -> None:
        self._next_batch = next_batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        return await self._next_batch()


def _check(options: ReaderOptions, *, auto_commit: bool) -> None:
    """Refuse arguments that do not fit together, before anything is connected."""
    streams, start = options.streams, options.start
    if not streams or not all(streams) or len(set(streams)) < len(streams):
        raise ConfigError(f"streams: {', '.join(map(repr, streams)) or 'none'}: name one or more, each once")
    try:
        Address.parse_list(options.core)
    except AddressError as error:
        raise ConfigError(f"core: {error}") from error
    if options.group is None and auto_commit:
        raise ConfigError("auto_commit: nothing can be committed without a group")
    if options.group is not None and (not options.group or options.until_end):
        raise ConfigError("group: must not be empty" if not options.group else "until_end: only without a group")
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigError(f"start: {start} has no time zone; give an aware datetime, datetime.now(UTC) say")
    elif isinstance(start, Mapping):
        if len(streams) > 1:
            raise ConfigError("start: offsets by partition are for one stream")
        if any(partition < 0 or offset < 0 for partition, offset in start.items()):
            raise ConfigError("start: partitions and offsets are 0 or more")
    elif start not in ("earliest", "latest"):
        raise ConfigError(f"start: {start!r} is not 'earliest', 'latest', a datetime or {{partition: offset}}")
    taken = sorted(kafka_settings.required(options).keys() & options.client_options.keys())
    if taken:
        raise ConfigError(f"client_options: {taken[0]} is set by Consumer itself")
