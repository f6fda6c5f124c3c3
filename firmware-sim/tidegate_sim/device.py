"""One device, without I/O: samples into flash, sends a window of it, sends again what was not acknowledged.

Every event gets the next sequence, from 1, and the MQTT packet id that follows from it, so an event keeps its packet id
through every reconnect and power loss. `ready()` hands out what has to happen now, in the order in which it has to
happen: acknowledgements into the ledger, records into the flash, and only then packets to the network. A device that
loses power is thrown away; the next one starts from what the flash held.

After a reconnect everything un-acknowledged is sent again before anything new, in order, with DUP where it may have
been sent before, whether or not the broker still has the session: the event log behind an edge knows it by packet id
and payload. MQTT 3.1.1, 4.3 and 4.4; MQTT 5, 4.3, 4.4 and 4.9 (Receive Maximum).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tidegate_sim.errors import UnexpectedAcknowledgementError
from tidegate_sim.flash import FlashImage, FlashKind, FlashRecord, erased
from tidegate_wire.identifiers import PacketId

FLASH_EVENTS_LIMIT: Final = 65_535
"""Packet ids follow from sequences, and there are this many; more un-acknowledged events would share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What does not change in a device's life."""

    name: str
    """Also its MQTT client id."""
    quantity: str
    unit: str
    qos: int = 1
    window_events_max: int = 100
    """Un-acknowledged events on the way at once; a broker's Receive Maximum can lower it."""
    flash_events_max: int = 16_384
    """Un-acknowledged events that the flash can hold; when it is full the device stops sampling."""

    def __post_init__(self) -> None:
        assert 1 <= self.flash_events_max <= FLASH_EVENTS_LIMIT, self.flash_events_max
        assert self.window_events_max >= 1, self.window_events_max
        assert self.qos in {1, 2}, self.qos


@dataclass(slots=True)
class Transmission:
    """A packet to send: a PUBLISH, or (QoS 2, payload None) a PUBREL."""

    sequence: int
    packet_id: PacketId
    payload: bytes | None
    dup: bool


@dataclass(slots=True)
class Ready:
    """What the shell has to do now, in the order of the fields."""

    acknowledged: list[int] = field(default_factory=list)
    """Sequences to enter into the ledger, before the flash forgets them."""
    flash: list[FlashRecord] = field(default_factory=list)
    """To be in the flash before anything is sent."""
    transmissions: list[Transmission] = field(default_factory=list)


def packet_id_of(sequence: int) -> PacketId:
    """The packet id of an event: its sequence, wrapped into 1 to 65535."""
    return PacketId((sequence - 1) % FLASH_EVENTS_LIMIT + 1)


class Device:
    """A device from one power-on to the next.

    Args:
        profile: what it is.
        image: what its flash holds; read once, now.
    """

    def __init__(self, profile: DeviceProfile, image: FlashImage) -> None:
        self.profile = profile
        self.boot = image.boot + 1
        self.skipped_samples = 0
        """Samples not taken since power-on because the flash was full; they got no sequence."""
        self._unacknowledged = dict(image.events)
        self._received = set(image.received)
        self._next_sequence = image.next_sequence
        self._first = next(iter(self._unacknowledged), self._next_sequence)
        """The oldest un-acknowledged sequence, or the next one to be given out."""
        self._maybe_sent_through = self._next_sequence - 1
        """A PUBLISH up to here may have been sent before. What flash holds at power-on may have been."""
        self._window = 0
        """Events that may be on the way at once; 0 while there is no connection."""
        self._in_flight = 0
        self._send_next = self._first
        """The first sequence not yet sent on this connection."""
        self._ready = Ready(flash=[FlashRecord(FlashKind.BOOT, self.boot)])
        self._erased: list[int] = []
        name, what, unit = (json.dumps(text) for text in (profile.name, profile.quantity, profile.unit))
        self._payload_start = f'{{"device":{name},"boot":{self.boot},"sequence":'
        self._payload_end = f',"quantity":{what},"unit":{unit}}}' if profile.unit else f',"quantity":{what}}}'

    @property
    def unacknowledged(self) -> int:
        """How many events wait for their acknowledgement."""
        return len(self._unacknowledged)

    def sample(self, time_ms: int, value: float) -> bool:
        """Take a sample: an event with the next sequence, or False (and a count) where the flash is full."""
        sequence = self._next_sequence
        if sequence - self._first >= self.profile.flash_events_max:
            self.skipped_samples += 1
            return False
        text = f'{self._payload_start}{sequence},"time_ms":{time_ms},"value":{value}{self._payload_end}'
        payload = text.encode()
        self._unacknowledged[sequence] = payload
        self._next_sequence = sequence + 1
        self._ready.flash.append(FlashRecord(FlashKind.EVENT, sequence, payload))
        return True

    def connected(self, receive_maximum: int = FLASH_EVENTS_LIMIT) -> None:
        """A connection is open: everything un-acknowledged goes out again, in order, before anything new."""
        self._window = min(self.profile.window_events_max, receive_maximum)
        self._in_flight = 0
        self._send_next = self._first

    def disconnected(self) -> None:
        """The connection is gone; nothing is sent until the next one."""
        self._window = 0
        self._ready.transmissions.clear()

    def on_puback(self, packet_id: int) -> None:
        """The broker has the event (QoS 1).

        Raises:
            UnexpectedAcknowledgementError: no such event is in flight on this connection.
        """
        self._finish(self._in_flight_sequence(packet_id))

    def on_pubrec(self, packet_id: int) -> None:
        """The broker has taken the event (QoS 2): from now on only the PUBREL is sent.

        Raises:
            UnexpectedAcknowledgementError: no such event is in flight on this connection.
        """
        sequence = self._in_flight_sequence(packet_id)
        if sequence not in self._received:
            self._received.add(sequence)
            self._ready.flash.append(FlashRecord(FlashKind.RECEIVED, sequence))
        self._ready.transmissions.append(Transmission(sequence, packet_id_of(sequence), None, False))

    def on_pubcomp(self, packet_id: int) -> None:
        """The broker has the event, once (QoS 2).

        Raises:
            UnexpectedAcknowledgementError: no event with a PUBREC is in flight under this packet id.
        """
        sequence = self._in_flight_sequence(packet_id)
        if sequence not in self._received:
            raise UnexpectedAcknowledgementError(f"PUBCOMP for packet id {packet_id} came before its PUBREC")
        self._received.discard(sequence)
        self._finish(sequence)

    def ready(self) -> Ready:
        """What has to happen now; every entry is handed out once."""
        ready, self._ready = self._ready, Ready()
        if self._erased:
            ready.acknowledged = self._erased
            ready.flash.extend(_erasures(self._erased))
            self._erased = []
        self._fill_window(ready.transmissions)
        return ready

    def _fill_window(self, transmissions: list[Transmission]) -> None:
        sequence, end = self._send_next, self._next_sequence
        while self._in_flight < self._window and sequence < end:
            payload = self._unacknowledged.get(sequence)
            if payload is not None:
                self._in_flight += 1
                sent = payload if sequence not in self._received else None
                dup = sent is not None and sequence <= self._maybe_sent_through
                transmissions.append(Transmission(sequence, packet_id_of(sequence), sent, dup))
            sequence += 1
        self._send_next = sequence
        self._maybe_sent_through = max(self._maybe_sent_through, sequence - 1)

    def _in_flight_sequence(self, packet_id: int) -> int:
        sequence = self._first + (packet_id - packet_id_of(self._first)) % FLASH_EVENTS_LIMIT
        if self._window == 0 or sequence >= self._send_next or sequence not in self._unacknowledged:
            raise UnexpectedAcknowledgementError(f"packet id {packet_id} is not in flight")
        return sequence

    def _finish(self, sequence: int) -> None:
        del self._unacknowledged[sequence]
        self._in_flight -= 1
        self._erased.append(sequence)
        while self._first < self._next_sequence and self._first not in self._unacknowledged:
            self._first += 1


def _erasures(sequences: Iterable[int]) -> Iterator[FlashRecord]:
    """One record for each run of consecutive sequences."""
    first = count = 0
    for sequence in sequences:
        if count and sequence == first + count:
            count += 1
            continue
        if count:
            yield erased(first, count)
        first, count = sequence, 1
    if count:
        yield erased(first, count)
