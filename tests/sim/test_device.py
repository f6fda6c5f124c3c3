"""The device without I/O: what it sends, what it sends again, and what survives losses and power cuts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_sim.device import FLASH_EVENTS_LIMIT, Device, DeviceProfile, Transmission, packet_id_of
from tidegate_sim.errors import UnexpectedAcknowledgementError
from tidegate_sim.flash import Flash, FlashImage, FlashKind, FlashRecord

PROFILE = DeviceProfile(name="d-0001", quantity="temperature", unit="Cel", window_events_max=4, flash_events_max=12)


def sent(device: Device) -> list[Transmission]:
    return device.ready().transmissions


def sequences(transmissions: list[Transmission]) -> list[int]:
    return [transmission.sequence for transmission in transmissions]


def device_with(samples: int, profile: DeviceProfile = PROFILE, image: FlashImage | None = None) -> Device:
    device = Device(profile, image or FlashImage())
    for number in range(samples):
        assert device.sample(1_000 + number, 20.5)
    return device


def test_payload_names_device_boot_and_sequence() -> None:
    device = device_with(1)
    device.connected()
    payload = sent(device)[0].payload
    assert payload is not None
    assert json.loads(payload) == {
        "device": "d-0001",
        "boot": 1,
        "sequence": 1,
        "time_ms": 1_000,
        "value": 20.5,
        "quantity": "temperature",
        "unit": "Cel",
    }


def test_nothing_is_sent_without_a_connection() -> None:
    device = device_with(3)
    ready = device.ready()
    assert ready.transmissions == []
    assert [record.kind for record in ready.flash] == [FlashKind.BOOT, *[FlashKind.EVENT] * 3]


def test_window_bounds_what_is_on_the_way_and_moves_with_each_ack() -> None:
    device = device_with(6)
    device.connected()
    assert sequences(sent(device)) == [1, 2, 3, 4]
    device.on_puback(packet_id_of(1))
    assert sequences(sent(device)) == [5]


def test_receive_maximum_of_the_broker_lowers_the_window() -> None:
    device = device_with(6)
    device.connected(receive_maximum=2)
    assert sequences(sent(device)) == [1, 2]


def test_an_ack_goes_to_the_ledger_and_erases_flash_in_runs() -> None:
    device = device_with(4)
    device.connected()
    device.ready()
    for sequence in (1, 2, 4):
        device.on_puback(packet_id_of(sequence))
    ready = device.ready()
    assert ready.acknowledged == [1, 2, 4]
    assert [(record.kind, record.sequence) for record in ready.flash] == [(FlashKind.ERASED, 1), (FlashKind.ERASED, 4)]


def test_reconnect_sends_again_with_dup_same_id_and_bytes_before_anything_new() -> None:
    device = device_with(3)
    device.connected()
    first = sent(device)
    device.on_puback(packet_id_of(1))
    device.disconnected()
    assert device.sample(2_000, 1.0)
    device.connected()
    again = sent(device)
    assert [(t.sequence, t.dup) for t in again] == [(2, True), (3, True), (4, False)]
    assert [replace(t, dup=True) for t in first[1:]] == again[:2]


def test_an_ack_for_something_not_in_flight_is_refused() -> None:
    device = device_with(6)
    with pytest.raises(UnexpectedAcknowledgementError):
        device.on_puback(1)
    device.connected()
    device.ready()
    device.on_puback(packet_id_of(2))
    for packet_id in (packet_id_of(2), packet_id_of(5), 60_000):
        with pytest.raises(UnexpectedAcknowledgementError):
            device.on_puback(packet_id)


def test_full_flash_stops_sampling_and_counts_instead_of_dropping() -> None:
    device = device_with(PROFILE.flash_events_max)
    assert not device.sample(9_000, 1.0)
    assert device.skipped_samples == 1
    device.connected()
    device.ready()
    device.on_puback(packet_id_of(1))
    assert device.sample(9_001, 1.0)
    assert device.unacknowledged == PROFILE.flash_events_max


def test_packet_ids_wrap_and_stay_unique_among_what_is_not_acknowledged() -> None:
    profile = DeviceProfile(name="d", quantity="q", unit="", window_events_max=3, flash_events_max=FLASH_EVENTS_LIMIT)
    image = FlashImage()
    image.apply(FlashRecord(FlashKind.NEXT, FLASH_EVENTS_LIMIT - 1))
    device = device_with(4, profile, image)
    device.connected()
    assert [t.packet_id for t in sent(device)] == [65_534, 65_535, 1]
    device.on_puback(65_535)
    device.on_puback(1)
    device.on_puback(65_534)
    assert [t.packet_id for t in sent(device)] == [2]


def test_qos_2_releases_only_what_flash_remembers_as_received() -> None:
    profile = replace(PROFILE, qos=2)
    device = device_with(2, profile)
    device.connected()
    device.ready()
    device.on_pubrec(1)
    ready = device.ready()
    assert ready.flash == [FlashRecord(FlashKind.RECEIVED, 1)]
    assert ready.transmissions == [Transmission(1, packet_id_of(1), None, False)]
    with pytest.raises(UnexpectedAcknowledgementError):
        device.on_pubcomp(2)
    device.disconnected()
    device.connected()
    assert [(t.sequence, t.payload is None, t.dup) for t in sent(device)] == [(1, True, False), (2, False, True)]
    device.on_pubcomp(1)
    assert device.ready().acknowledged == [1]


class World:
    """A device, its flash, a network that loses, and a broker that sees what arrives."""

    def __init__(self, qos: int) -> None:
        self.profile = replace(PROFILE, qos=qos)
        self.flash = Flash(None, fleet="d", devices=1)
        self.device = Device(self.profile, self.flash.images[0])
        self.online = False
        self.to_broker: list[Transmission] = []
        self.to_device: list[tuple[str, int]] = []
        self.arrived: list[int] = []
        """Sequences in the order of their first arrival."""
        self.seen: dict[int, tuple[int, bytes]] = {}
        self.released: set[int] = set()
        """QoS 2: sequences whose PUBREL arrived; the broker would take their PUBLISH for a new message."""
        self.sent_before: set[int] = set()
        self.acknowledged: set[int] = set()
        self.clock_ms = 0

    def sample(self) -> None:
        self.clock_ms += 7
        self.device.sample(self.clock_ms, self.clock_ms / 8)

    def connect(self) -> None:
        if not self.online:
            self.online = True
            self.device.connected()

    def disconnect(self) -> None:
        if self.online:
            self.online = False
            self.to_broker.clear()
            self.to_device.clear()
            self.device.disconnected()

    def commit(self, *, power_fails: bool = False) -> None:
        ready = self.device.ready()
        self.acknowledged.update(ready.acknowledged)
        self.flash.append(0, ready.flash)
        self.flash.commit()
        if not power_fails:
            for transmission in ready.transmissions:
                if transmission.payload is not None:
                    assert transmission.dup or transmission.sequence not in self.sent_before
                    self.sent_before.add(transmission.sequence)
            self.to_broker += ready.transmissions

    def lose_power(self) -> None:
        self.disconnect()
        self.device = Device(self.profile, self.flash.images[0])

    def commit_and_lose_power(self) -> None:
        self.commit(power_fails=True)
        self.lose_power()

    def packet_arrives(self) -> None:
        if not self.to_broker:
            return
        transmission = self.to_broker.pop(0)
        if transmission.payload is None:
            assert transmission.sequence in self.seen
            self.released.add(transmission.sequence)
            self.to_device.append(("pubcomp", transmission.packet_id))
            return
        assert transmission.sequence not in self.released
        known = self.seen.setdefault(transmission.sequence, (transmission.packet_id, transmission.payload))
        assert known == (transmission.packet_id, transmission.payload)
        if transmission.sequence not in self.arrived:
            self.arrived.append(transmission.sequence)
        self.to_device.append(("puback" if self.profile.qos == 1 else "pubrec", transmission.packet_id))

    def ack_arrives(self) -> None:
        if self.to_device:
            kind, packet_id = self.to_device.pop(0)
            {"puback": self.device.on_puback, "pubrec": self.device.on_pubrec, "pubcomp": self.device.on_pubcomp}[kind](
                packet_id
            )

    def check(self) -> None:
        assert self.arrived == list(range(1, len(self.arrived) + 1)), "first arrivals are in order, without gaps"
        assert self.acknowledged <= set(self.arrived)
        assert len(self.to_broker) + len(self.to_device) <= PROFILE.window_events_max

    def heal(self) -> None:
        self.connect()
        for _ in range(500):
            self.commit()
            while self.to_broker or self.to_device:
                self.packet_arrives()
                self.ack_arrives()
        assert self.device.unacknowledged == 0
        assert self.acknowledged == set(self.arrived)


STEPS = ("sample", "connect", "disconnect", "commit", "lose_power", "commit_and_lose_power", "packet_arrives")


@given(
    qos=st.sampled_from((1, 2)),
    steps=st.lists(
        st.sampled_from((*STEPS, "sample", "commit", "connect", "packet_arrives", "ack_arrives", "ack_arrives")),
        min_size=60,
        max_size=200,
    ),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_lost_every_number_arrives_in_order_with_the_same_id_and_bytes(qos: int, steps: list[str]) -> None:
    world = World(qos)
    for step in steps:
        getattr(world, step)()
        world.check()
    world.heal()
    world.check()
