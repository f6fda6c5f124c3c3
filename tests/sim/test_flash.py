"""The flash file: what survives a crash at any byte, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_sim import flash as flash_module
from tidegate_sim.errors import FlashDamagedError, FleetFilesError
from tidegate_sim.flash import Flash, FlashImage, FlashKind, FlashRecord, encode_record, erased


def event(sequence: int, payload: bytes = b"{}") -> FlashRecord:
    return FlashRecord(FlashKind.EVENT, sequence, payload)


def write(path: Path, *batches: list[FlashRecord], device: int = 0) -> None:
    flash = Flash(path, fleet="d", devices=2)
    for batch in batches:
        flash.append(device, batch)
        flash.commit()
    flash.close()


def read(path: Path) -> list[FlashImage]:
    flash = Flash(path, fleet="d", devices=2)
    flash.close()
    return flash.images


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    write(path, [FlashRecord(FlashKind.BOOT, 3), event(1, b"a"), event(2, b"b"), event(3, b"c")])
    write(path, [erased(1, 1), FlashRecord(FlashKind.RECEIVED, 2)], [event(4, b"d")])
    other, image = read(path)[1], read(path)[0]
    assert image == FlashImage(boot=3, next_sequence=5, events={2: b"b", 3: b"c", 4: b"d"}, received={2})
    assert other == FlashImage()


def test_what_was_not_committed_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    flash = Flash(path, fleet="d", devices=2)
    flash.append(0, [event(1)])
    assert flash.images[0].events == {}
    flash.close()
    assert read(path)[0] == FlashImage()


def test_a_crash_at_any_byte_of_a_write_leaves_the_records_before_it(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    write(path)
    header = path.read_bytes()
    records = [event(1, b"first"), event(2, b"second")]
    whole = header + b"".join(encode_record(0, record) for record in records)
    ends = [len(header), len(header) + len(encode_record(0, records[0])), len(whole)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        survivors = sum(end <= size for end in ends) - 1
        assert read(path)[0].next_sequence == max(0, survivors) + 1
        write(path, [event(survivors + 1 if survivors > 0 else 1, b"after")])
        assert read(path)[0].events[max(1, survivors + 1)] == b"after"


def test_damage_that_no_crash_makes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    write(path, [event(1, b"first"), event(2, b"second")])
    data = bytearray(path.read_bytes())
    data[-len(encode_record(0, event(2, b"second"))) - 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FlashDamagedError, match="damaged"):
        read(path)
    path.write_bytes(b"not a flash file at all")
    with pytest.raises(FlashDamagedError, match="not a flash file"):
        read(path)


def test_two_fleets_never_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    first = Flash(path, fleet="d", devices=2)
    with pytest.raises(FleetFilesError, match="another fleet is running"):
        Flash(path, fleet="d", devices=2)
    first.close()
    with pytest.raises(FleetFilesError, match="other device names"):
        Flash(path, fleet="e", devices=2)


def test_a_smaller_fleet_does_not_forget_devices(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    write(path, [event(1)], device=1)
    with pytest.raises(FleetFilesError, match="device 1"):
        Flash(path, fleet="d", devices=1)


def test_the_file_stays_small_however_much_goes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_module, "REWRITE_BYTES_MIN", 4096)
    path = tmp_path / "flash"
    flash = Flash(path, fleet="d", devices=2)
    for sequence in range(1, 3_000):
        flash.append(0, [event(sequence, b"x" * 50)])
        if sequence > 10:
            flash.append(0, [erased(sequence - 10, 1)])
        flash.commit()
        assert path.stat().st_size < 3 * 4096
    expected = flash.images[0]
    with pytest.raises(FleetFilesError):
        Flash(path, fleet="d", devices=2)
    flash.close()
    assert read(path)[0] == expected
    assert len(expected.events) == 10
    assert not list(tmp_path.glob("*.partial"))


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(("event", "ack", "received", "boot")))))
def test_an_image_is_remade_by_its_own_records(steps: list[tuple[int, str]]) -> None:
    flash = Flash(None, fleet="d", devices=2)
    for device, step in steps:
        image = flash.images[device]
        oldest = next(iter(image.events), None)
        match step:
            case "event":
                record = event(image.next_sequence, b"payload")
            case "boot":
                record = FlashRecord(FlashKind.BOOT, image.boot + 1)
            case "ack" if oldest is not None:
                record = erased(oldest, 1)
            case "received" if oldest is not None:
                record = FlashRecord(FlashKind.RECEIVED, oldest)
            case _:
                continue
        flash.append(device, [record])
        flash.commit()
    for image in flash.images:
        again = FlashImage()
        for record in image.records():
            again.apply(record)
        assert again == image
