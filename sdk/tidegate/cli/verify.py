"""`tidegate verify`: the ledgers of simulated devices against what the core has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from tidegate.cli.extras import extra_required
from tidegate.cli.failures import failures_reported, say
from tidegate.cli.running import run_until_stopped
from tidegate.cli.text import printable
from tidegate.verification import Verdict, Verification
from tidegate_wire.errors import ConfigError, IntegrityError
from tidegate_wire.ledger import LedgerError, read_ledger

HELP = """\b
Examples:
  tidegate verify --core 127.0.0.1:9092 --ledger ledger.jsonl
  tidegate verify --core 127.0.0.1:9092 --ledger north.jsonl --ledger south.jsonl --stream events --json

Compare what simulated devices published and had acknowledged (their ledgers, from `tidegate sim --ledger`) with what
a fresh consumer reads, from the beginning to the end that each partition has now.

\b
lost          acknowledged to the device, and not read
duplicated    read more than once
out of order  read after a higher sequence of the same device, in the same partition

Exit code 0 if all three are 0, else 5.
"""

DEFAULT_STREAM: Final = "events"

_PROGRESS_INTERVAL_S: Final = 2.0
_PROGRESS_CHECK_ENTRIES: Final = 65_536


def verify(
    *,
    core: Annotated[str, typer.Option(help="Addresses of the core, HOST:PORT[,HOST:PORT...].", metavar="HOST:PORT")],
    ledger: Annotated[list[Path], typer.Option(help="A ledger; may be given several times.", show_default=False)],
    stream: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A stream to read; may be given several times.  [default: {DEFAULT_STREAM}]", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="How long to try to reach the core, in seconds.")] = 10.0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare what was acknowledged to devices with what the core has."""
    with failures_reported(debug=debug, prints_data=True):
        with extra_required("verify", "sdk"):
            import tidegate.consumer  # noqa: F401, PLC0415 # a missing client is said here, in one line
        verification = Verification()
        progress = _Progress()
        for path in ledger:
            _read_ledger(path, verification, progress)
        streams = tuple(dict.fromkeys(stream or [DEFAULT_STREAM]))
        finished = run_until_stopped(_read_streams(streams, core, timeout, verification, progress))
        if not finished:
            raise KeyboardInterrupt
        verdict = verification.verdict()
        typer.echo(verdict.to_json() if as_json else _report(verdict))
        if not verdict.holds:
            raise IntegrityError(
                f"{verdict.lost} lost, {verdict.duplicated} duplicated, {verdict.out_of_order} out of order"
            )


def _read_ledger(path: Path, verification: Verification, progress: _Progress) -> None:
    try:
        for number, entry in enumerate(read_ledger(path), start=1):
            verification.add_ledger_entry(entry)
            if number % _PROGRESS_CHECK_ENTRIES == 0:
                progress.show(f"{path}: {number:,} entries")
    except OSError as error:
        raise ConfigError(f"--ledger: {path}: can't be read: {error.strerror}") from error
    except LedgerError as error:
        raise ConfigError(f"--ledger: {error}") from error


async def _read_streams(
    streams: tuple[str, ...], core: str, timeout_s: float, verification: Verification, progress: _Progress
) -> bool:
    from tidegate import Consumer  # noqa: PLC0415 # `tidegate --help` must not load a Kafka client

    count = 0
    async with Consumer(*streams, core=core, until_end=True, timeout_s=timeout_s) as consumer:
        async for events in consumer.batches():
            for event in events:
                verification.add_read(event.payload, event.stream, event.partition, event.offset)
            count += len(events)
            progress.show(f"{', '.join(streams)}: {count:,} events read")
        if consumer.expired_events:
            say(f"note: retention deleted {consumer.expired_events:,} events while they were being read")
    return True


class _Progress:
    """A line on stderr every now and then, so that a long run is not a silent one."""

    def __init__(self) -> None:
        self._shown_s = time.monotonic()

    def show(self, line: str) -> None:
        now = time.monotonic()
        if now - self._shown_s >= _PROGRESS_INTERVAL_S:
            self._shown_s = now
            say(line)


def _report(verdict: Verdict) -> str:
    rows = [
        ("published", verdict.published, "sent by the devices"),
        ("acknowledged", verdict.acknowledged, "answered with PUBACK or PUBREC"),
        ("read", verdict.read, "of those published, by a fresh consumer"),
        ("lost", verdict.lost, "acknowledged, and not read"),
        ("duplicated", verdict.duplicated, "read more than once"),
        ("out of order", verdict.out_of_order, "read after a higher sequence of the same device"),
    ]
    if verdict.not_in_ledger:
        rows.append(("not in ledger", verdict.not_in_ledger, "read, but published by others"))
    lines = [f"{name:<13} {count:>12,}  {meaning}" for name, count, meaning in rows]
    lines += [f"lost: {printable(lost.device)} #{lost.sequence}" for lost in verdict.lost_examples]
    lines += [
        f"duplicated: {printable(event.device)} #{event.sequence} again at {event.stream}[{event.partition}] offset"
        f" {event.offset}"
        for event in verdict.duplicated_examples
    ]
    lines += [
        f"out of order: {printable(event.device)} #{event.sequence} at {event.stream}[{event.partition}] offset"
        f" {event.offset}, after #{event.after_sequence} at offset {event.after_offset}"
        for event in verdict.out_of_order_examples
    ]
    if verdict.holds:
        lines.append("Every acknowledged event was read exactly once, in order.")
    return "\n".join(lines)
