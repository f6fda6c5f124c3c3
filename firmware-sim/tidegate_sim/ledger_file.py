"""Writing the fleet's ledger, and its account of what is published and not acknowledged.

A "published" line is on its way to the file before the event is sent, and an "acknowledged" line before the device's
flash forgets the event; so whatever a consumer reads stands in the ledger, also after this process is killed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tidegate_sim.errors import FleetFilesError
from tidegate_wire.ledger import LedgerEntry, LedgerState

_TAIL_BYTES: Final = 4096
"""A line is shorter than this; the end of the last whole line is found in so many bytes."""


class LedgerAccount:
    """Counts what each device published and what was acknowledged, each event once, however often it is sent.

    A device without power may forget that an event was acknowledged, and have it acknowledged again.
    """

    def __init__(self, device_names: Iterable[str]) -> None:
        self.published = 0
        self.acknowledged = 0
        self._names = list(device_names)
        self._published_through = [0] * len(self._names)
        self._outstanding: list[set[int]] = [set() for _ in self._names]
        self._lines: list[str] = []

    @property
    def outstanding(self) -> int:
        """Events published and not acknowledged."""
        return self.published - self.acknowledged

    def on_publish(self, device: int, sequence: int) -> None:
        """Device number `device` is about to send an event."""
        if sequence > self._published_through[device]:
            self._published_through[device] = sequence
            self._outstanding[device].add(sequence)
            self.published += 1
            self._enter(device, sequence, "published")

    def on_acknowledged(self, device: int, sequence: int) -> None:
        """The event was acknowledged to the device."""
        if sequence in self._outstanding[device]:
            self._outstanding[device].remove(sequence)
            self.acknowledged += 1
            self._enter(device, sequence, "acknowledged")

    def take_lines(self) -> str:
        """The lines entered since the last call."""
        lines = "".join(self._lines)
        self._lines.clear()
        return lines

    def _enter(self, device: int, sequence: int, state: LedgerState) -> None:
        self._lines.append(LedgerEntry(self._names[device], sequence, state).to_line())


class LedgerFile:
    """The file; one fleet at a time may have it.

    Args:
        path: the file, made where it is missing; a last line that a crash cut is removed.

    Raises:
        FleetFilesError: another fleet has it.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise FleetFilesError(
                f"another fleet is writing the ledger {path}", hint="give each fleet its own --ledger"
            ) from error
        self._cut_torn_line()

    def write(self, lines: str) -> None:
        """Append whole lines.

        Raises:
            OSError: the file can't be written.
        """
        view = memoryview(lines.encode())
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """Close the file, and give it free."""
        os.close(self._fd)

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._fd, _TAIL_BYTES, start)
        os.ftruncate(self._fd, start + tail.rfind(b"\n") + 1)
