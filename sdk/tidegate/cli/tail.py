"""`tidegate tail`: print the events of a stream as they come."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from tidegate.cli.extras import extra_required
from tidegate.cli.failures import failures_reported
from tidegate.cli.running import run_until_stopped
from tidegate.cli.text import printable
from tidegate_wire.errors import ConfigError

if TYPE_CHECKING:
    from tidegate.event import Event
    from tidegate.kafka_settings import Start

HELP = """\b
Examples:
  tidegate tail events --core 127.0.0.1:9092
  tidegate tail events --core 127.0.0.1:9092 --from earliest --count 10
  tidegate tail events --core 127.0.0.1:9092 --from 2026-05-01T06:00 --json | jq .payload

Print the events of a stream as they come, until Ctrl-C. A line is: event time, partition and offset, edge, device,
MQTT topic, payload. What a terminal would obey is shown escaped. With --json a line is an object whose payload is
text, or payload_base64 where it is not UTF-8.
"""


def tail(
    *,
    stream: Annotated[str, typer.Argument(help="The stream to read.", show_default=False)],
    core: Annotated[str, typer.Option(help="Addresses of the core, HOST:PORT[,HOST:PORT...].", metavar="HOST:PORT")],
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to begin; a time is ISO 8601, UTC if it names no zone.",
            metavar="earliest|latest|TIME",
        ),
    ] = "latest",
    count: Annotated[int | None, typer.Option(min=1, help="End after this many events.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="How long to try to reach the core, in seconds.")] = 10.0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Print the events of a stream as they come."""
    with failures_reported(debug=debug, prints_data=True):
        start = _parse_start(begin)
        with extra_required("tail", "sdk"):
            import tidegate.consumer  # noqa: F401, PLC0415 # a missing client is said here, in one line
        run_until_stopped(_tail(stream, core, start, count, timeout, as_json=as_json))


def _parse_start(text: str) -> Start:
    if text in ("earliest", "latest"):
        return cast(Literal["earliest", "latest"], text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--from: {text!r} is not earliest, latest or a time such as 2026-05-01T06:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


async def _tail(stream: str, core: str, start: Start, count: int | None, timeout_s: float, *, as_json: bool) -> None:
    from tidegate import Consumer  # noqa: PLC0415 # `tidegate --help` must not load a Kafka client

    to_line = _json_line if as_json else _text_line
    left = count
    with _ended_with_stdout():
        async with Consumer(stream, core=core, start=start, timeout_s=timeout_s) as consumer:
            async for events in consumer.batches():
                shown: Sequence[Event] = events if left is None else events[:left]
                sys.stdout.write("".join([to_line(event) for event in shown]))
                sys.stdout.flush()
                if left is not None:
                    left -= len(shown)
                    if left == 0:
                        return


def _text_line(event: Event) -> str:
    time = _time(event.event_time_ms) or f"{event.event_time_ms} ms"
    who = printable(f"{event.edge or '-'} {event.device or '-'} {event.topic or '-'}")
    return f"{time} {event.partition}:{event.offset} {who} {printable(event.payload)}\n"


def _json_line(event: Event) -> str:
    fields: dict[str, Any] = {
        "stream": event.stream,
        "partition": event.partition,
        "offset": event.offset,
        "edge": event.edge,
        "device": event.device,
        "topic": event.topic,
        "sequence": event.sequence,
        "event_time": _time(event.event_time_ms),
        "event_time_ms": event.event_time_ms,
        "receive_time": None if event.receive_time_ms is None else _time(event.receive_time_ms),
    }
    try:
        fields["payload"] = event.payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = base64.b64encode(event.payload).decode()
    return json.dumps(fields) + "\n"  # ASCII only, so nothing in it can reach a terminal as a command


def _time(time_ms: int) -> str | None:
    """ISO 8601 in UTC; None where a device's clock is beyond the years that have one."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


@contextmanager
def _ended_with_stdout() -> Iterator[None]:
    """Cancel this task when whoever reads our output is gone, also while there is nothing to write.

    Raises:
        BrokenPipeError: in place of the cancellation.
    """
    descriptor = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def stop() -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(descriptor)
        task.cancel()

    loop.add_reader(descriptor, stop)  # the writing end of a pipe becomes "readable" when its other end is closed
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(descriptor)
