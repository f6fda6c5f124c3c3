"""The fleet: what happens to which device when, and what of it goes to ledger, flash and network, in that order.

Synchronous: the service calls `advance` with the time and then `commit`, some hundred times a second; links call the
`on_...` methods between them. So one commit serves the whole fleet: one write to the ledger, one to the flash, one to
each connection that has something to send.

Power fails between two commits, at one of three instants that differ in what survives: before the flash is written,
after it, or while a packet is half sent.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, IntEnum
from random import Random
from typing import NamedTuple, Protocol

from tidegate_sim.device import Device, DeviceProfile, Transmission
from tidegate_sim.flash import Flash
from tidegate_sim.ledger_file import LedgerAccount, LedgerFile
from tidegate_sim.settings import SimSettings
from tidegate_sim.signals import QUANTITIES, UNITS, DriftingClock, SignalKind, synthesize
from tidegate_sim.status import FleetStatus
from tidegate_sim.traces import Trace


class Link(Protocol):
    """A device's radio: connects by itself while it has power, and tells the fleet."""

    def power_on(self) -> None:
        """Begin to connect."""

    def power_off(self) -> None:
        """Drop the connection without DISCONNECT, and stay silent."""

    def drop(self) -> None:
        """Lose the connection without DISCONNECT, and connect again."""

    def send(self, transmissions: Sequence[Transmission], *, cut_at: float = 1.0) -> None:
        """Send packets; `cut_at` below 1 sends only that part of their bytes."""


class DeviceSetup(NamedTuple):
    """One device of a fleet before it is switched on."""

    profile: DeviceProfile
    signal: Iterator[float]
    clock: DriftingClock
    rng: Random


def set_up_devices(settings: SimSettings, traces: Sequence[Trace], unix_ms: float) -> list[DeviceSetup]:
    """The devices of a fleet; the same settings and traces give the same devices."""
    return [_set_up_device(settings, traces, unix_ms, number) for number in range(settings.devices)]


def _set_up_device(settings: SimSettings, traces: Sequence[Trace], unix_ms: float, number: int) -> DeviceSetup:
    name = f"{settings.name}-{number + 1:04d}"
    rng = Random(f"{settings.seed}/{name}")
    clock = DriftingClock.seeded(rng, unix_ms)
    if traces:
        trace = traces[number % len(traces)]
        quantity, unit = trace.quantity, ""
        signal = trace.replay(rng.randrange(len(trace.values)))
    else:
        kinds = list(SignalKind)
        kind = kinds[number % len(kinds)] if settings.signal == "mixed" else settings.signal
        quantity, unit = QUANTITIES[kind], UNITS[kind]
        signal = synthesize(kind, Random(rng.random()))
    profile = DeviceProfile(
        name=name,
        quantity=quantity,
        unit=unit,
        window_events_max=settings.window,
        flash_events_max=settings.flash_events,
        qos=settings.qos,
    )
    return DeviceSetup(profile, signal, clock, rng)


class _Due(IntEnum):
    SAMPLE = 0
    POWER_LOSS = 1
    POWER_BACK = 2
    RADIO_LOSS = 3


class _PowerFails(Enum):
    BEFORE_FLASH = 0
    BEFORE_SEND = 1
    DURING_SEND = 2


class Fleet:
    """Devices, their flash and their ledger.

    Args:
        settings: rates, faults, and for how long.
        setups: the devices.
        flash: theirs, device by device.
        ledger: where the account's lines go; None writes none.
    """

    def __init__(
        self, settings: SimSettings, setups: Sequence[DeviceSetup], flash: Flash, ledger: LedgerFile | None
    ) -> None:
        self.status = FleetStatus(devices=len(setups))
        self._settings = settings
        self._setups = setups
        self._flash = flash
        self._ledger = ledger
        self._account = LedgerAccount(setup.profile.name for setup in setups)
        self._devices: list[Device | None] = [None] * len(setups)
        self._links: list[Link] = []
        self._failing: dict[int, _PowerFails] = {}
        self._touched: set[int] = set()
        """Devices that may have something to commit or to send."""
        self._agenda: list[tuple[float, int, _Due]] = []
        """A heap of what is due when (fleet time in seconds) for which device."""
        self._samples_due = [0] * len(setups)
        """Samples of each device whose time has come, taken or not."""
        self._phases_s = [setup.rng.uniform(0.0, 1.0 / settings.rate) for setup in setups]
        self._handlers: dict[_Due, Callable[[int, float], None]] = {
            _Due.SAMPLE: self._take_samples,
            _Due.POWER_LOSS: self._lose_power,
            _Due.POWER_BACK: self._power_back,
            _Due.RADIO_LOSS: self._lose_radio,
        }

    def start(self, links: Sequence[Link]) -> None:
        """Switch every device on; `links[i]` is the radio of device i."""
        assert len(links) == len(self._setups)
        self._links = list(links)
        for index, setup in enumerate(self._setups):
            self._switch_on(index)
            self._plan(self._phases_s[index], index, _Due.SAMPLE)
            self._plan_fault(0.0, index, _Due.POWER_LOSS, self._settings.power_loss_every, setup.rng)
            self._plan_fault(0.0, index, _Due.RADIO_LOSS, self._settings.disconnect_every, setup.rng)

    def advance(self, now_s: float) -> None:
        """Do everything that is due at `now_s`, seconds after the start."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= now_s:
            _, index, due = heapq.heappop(agenda)
            self._handlers[due](index, now_s)

    def commit(self) -> None:
        """Write ledger and flash, then send.

        Raises:
            OSError: ledger or flash can't be written; nothing was sent.
        """
        outgoing: list[tuple[int, list[Transmission]]] = []
        account = self._account
        for index in self._touched | self._failing.keys():
            device = self._devices[index]
            if device is None or self._failing.get(index) is _PowerFails.BEFORE_FLASH:
                continue
            ready = device.ready()
            for sequence in ready.acknowledged:
                account.on_acknowledged(index, sequence)
            self._flash.append(index, ready.flash)
            if ready.transmissions:
                outgoing.append((index, ready.transmissions))
                for transmission in ready.transmissions:
                    if transmission.payload is not None:
                        account.on_publish(index, transmission.sequence)
        self._touched.clear()
        lines = account.take_lines()
        if self._ledger is not None and lines:
            self._ledger.write(lines)
        self._flash.commit()
        for index, transmissions in outgoing:
            self._send(index, transmissions)
        for index in self._failing:
            self._devices[index] = None
            self._links[index].power_off()
        self._failing.clear()

    def is_drained(self) -> bool:
        """Whether every device has power, and nothing un-acknowledged."""
        return all(device is not None and not device.unacknowledged for device in self._devices)

    def refresh_status(self) -> FleetStatus:
        """The counts, brought up to date."""
        status = self.status
        status.published, status.acknowledged = self._account.published, self._account.acknowledged
        status.in_flight = self._account.outstanding
        status.waiting = sum(
            len(self._flash.images[index].events) if device is None else device.unacknowledged
            for index, device in enumerate(self._devices)
        )
        return status

    def on_connected(self, index: int, receive_maximum: int) -> None:
        """A link has its CONNACK."""
        device = self._devices[index]
        assert device is not None, "a device without power does not connect"
        self.status.connected += 1
        self.status.connects += 1
        self.status.reconnects = max(0, self.status.connects - len(self._setups))
        device.connected(receive_maximum)
        self._touched.add(index)

    def on_disconnected(self, index: int) -> None:
        """A link that had its CONNACK lost its connection."""
        self.status.connected -= 1
        device = self._devices[index]
        if device is not None:
            device.disconnected()

    def on_puback(self, index: int, packet_id: int) -> None:
        """See `Device.on_puback`, also for what it raises."""
        self._device_on_air(index).on_puback(packet_id)

    def on_pubrec(self, index: int, packet_id: int) -> None:
        """See `Device.on_pubrec`, also for what it raises."""
        self._device_on_air(index).on_pubrec(packet_id)

    def on_pubcomp(self, index: int, packet_id: int) -> None:
        """See `Device.on_pubcomp`, also for what it raises."""
        self._device_on_air(index).on_pubcomp(packet_id)

    def _device_on_air(self, index: int) -> Device:
        device = self._devices[index]
        assert device is not None, "a device without power has no connection"
        self._touched.add(index)
        return device

    def _switch_on(self, index: int) -> None:
        self._devices[index] = Device(self._setups[index].profile, self._flash.images[index])
        self._touched.add(index)
        self._links[index].power_on()

    def _send(self, index: int, transmissions: list[Transmission]) -> None:
        failing = self._failing.get(index)
        if failing is None:
            self._links[index].send(transmissions)
        elif failing is _PowerFails.DURING_SEND:
            self._links[index].send(transmissions, cut_at=self._setups[index].rng.random())

    def _take_samples(self, index: int, now_s: float) -> None:
        settings, setup, device = self._settings, self._setups[index], self._devices[index]
        count, phase_s = self._samples_due[index], self._phases_s[index]
        due_s = phase_s + count / settings.rate
        self.status.behind_ms_max = max(self.status.behind_ms_max, int((now_s - due_s) * 1000))
        while due_s <= now_s and due_s < settings.seconds:
            value = next(setup.signal)
            if device is not None and not device.sample(setup.clock.time_ms(due_s), value):
                self.status.skipped += 1
            count += 1
            due_s = phase_s + count / settings.rate
        self._samples_due[index] = count
        self._touched.add(index)
        self._plan(due_s, index, _Due.SAMPLE)

    def _lose_power(self, index: int, now_s: float) -> None:
        rng = self._setups[index].rng
        self.status.power_losses += 1
        self._failing[index] = rng.choice(list(_PowerFails))
        back_s = now_s + self._settings.power_off_seconds
        heapq.heappush(self._agenda, (back_s, index, _Due.POWER_BACK))
        self._plan_fault(back_s, index, _Due.POWER_LOSS, self._settings.power_loss_every, rng)

    def _power_back(self, index: int, now_s: float) -> None:
        if index in self._failing:  # it fails in this very commit: with an off time of 0 it comes back in the next
            heapq.heappush(self._agenda, (now_s + 0.001, index, _Due.POWER_BACK))
        else:
            self._switch_on(index)

    def _lose_radio(self, index: int, now_s: float) -> None:
        self.status.radio_losses += 1
        if self._devices[index] is not None:
            self._links[index].drop()
        rng = self._setups[index].rng
        self._plan_fault(now_s, index, _Due.RADIO_LOSS, self._settings.disconnect_every, rng)

    def _plan_fault(self, after_s: float, index: int, due: _Due, every_s: float | None, rng: Random) -> None:
        if every_s is not None:
            self._plan(after_s + rng.expovariate(1.0 / every_s), index, due)

    def _plan(self, due_s: float, index: int, due: _Due) -> None:
        """What falls behind the last sample is not planned: then the fleet drains in peace."""
        if due_s < self._settings.seconds:
            heapq.heappush(self._agenda, (due_s, index, due))
