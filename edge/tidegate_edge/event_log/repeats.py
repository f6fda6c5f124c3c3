"""Recognises a PUBLISH that a device sends again although it was stored: the acknowledgement did not reach the device.

For each device the log remembers what was stored last under each packet identifier, as one number of 64 bits:

    packet identifier << 32 | CRC-32 of topic and payload

A PUBLISH with the DUP flag whose number is the last one remembered for its identifier was stored, and is answered
without being stored again. One without DUP is new (MQTT 3.1.1, section 4.4) and takes the identifier over.

What remains ambiguous: a device that uses an identifier again for an identical topic and payload, and loses exactly
that PUBLISH, sends what nobody can tell from a repeat of the one before. Devices that put a time or a number into the
payload, or go round all 65,535 identifiers, are never in that case.

The numbers are written to disk in the transaction that stores the events: a line in a journal for each transaction, and
all windows that changed, whenever the journal has grown to `JOURNAL_ENTRIES_MAX`. So the memory of what was stored
does not depend on the rows, which leave when the core has them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

ENTRIES_PER_DEVICE_MAX: Final = 65_535
"""All packet identifiers. MQTT 3.1.1 has no Receive Maximum, and a client may have every one unacknowledged: paho-mqtt
sends everything that it has queued when it comes back."""

ENTRIES_MAX: Final = 1 << 20
"""Entries of all devices: 8 MiB, up to twice that while windows fill. With more than 16 devices each has less than all
identifiers, with 1,024 it has 1,024 (what an MQTT 5 client may have unacknowledged), with 32,768 still 32."""

DEVICES_MAX: Final = 32_768
"""Devices remembered; the one that was heard longest ago is forgotten first."""

JOURNAL_ENTRIES_MAX: Final = 1 << 18
"""Events between two writings of the windows. More is a longer start (a quarter of a second), less is more wear on the
card: the windows of 16 busy devices are 8 MiB, so 32 bytes an event."""

_ENTRY_TYPE: Final = "Q"
_PACKET_ID_SHIFT: Final = 32


class RepeatWindows:
    """What each device sent last. Changed only after the transaction that says the same to the disk has committed."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, array[int]] = OrderedDict()
        self._changed: set[str] = set()
        self._forgotten: set[str] = set()
        self.journal_entries = 0

    def __len__(self) -> int:
        return len(self._windows)

    def last_sent(self, device: str) -> dict[int, int]:
        """The device's last entry for each packet identifier that it is remembered to have used."""
        return {entry >> _PACKET_ID_SHIFT: entry for entry in self._windows.get(device, ())}

    def load(self, device: str, entries: bytes) -> None:
        """Take a window from disk; devices come in the order in which they were heard."""
        window = array(_ENTRY_TYPE)
        window.frombytes(entries)
        self._windows[device] = window

    def add(self, devices: Iterable[str], entries: Iterable[int]) -> None:
        """Take what a committed transaction stored, in its order."""
        windows = self._windows
        length_max = self._length_max()
        touched: dict[str, array[int]] = {}
        count = 0
        for device, entry in zip(devices, entries, strict=True):
            count += 1
            window = touched.get(device)
            if window is None:
                window = windows.get(device)
                if window is None:
                    window = windows[device] = array(_ENTRY_TYPE)
                touched[device] = window
            window.append(entry)
        self.journal_entries += count
        for device, window in touched.items():
            windows.move_to_end(device)
            if len(window) > 2 * length_max:  # so that the cost of moving the rest is shared by as many entries
                del window[:-length_max]
        self._changed.update(touched)
        while len(windows) > DEVICES_MAX:
            device, _ = windows.popitem(last=False)
            self._changed.discard(device)
            self._forgotten.add(device)

    def unsaved(self) -> tuple[list[str], list[tuple[str, bytes]]]:
        """Devices forgotten, and windows changed (the ones heard longest ago first), since `saved`."""
        length_max = self._length_max()
        changed = [
            (device, window[-length_max:].tobytes())
            for device, window in self._windows.items()
            if device in self._changed
        ]
        return [device for device in self._forgotten if device not in self._windows], changed

    def saved(self) -> None:
        """What `unsaved` gave is on disk, and the journal is empty."""
        self._changed.clear()
        self._forgotten.clear()
        self.journal_entries = 0

    def _length_max(self) -> int:
        return min(ENTRIES_PER_DEVICE_MAX, ENTRIES_MAX // max(1, len(self._windows)))


def entries_from_bytes(data: bytes) -> array[int]:
    """A journal line's entries."""
    entries = array(_ENTRY_TYPE)
    entries.frombytes(data)
    return entries
