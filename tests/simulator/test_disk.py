import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.simulator.disk import Disks, Loss, NodeDisk

CUTS = (Loss.EVERYTHING, Loss.TAIL, Loss.SECTORS)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    disks = Disks(tmp_path, Random(1))
    with disks.watched():
        yield disks


def _write(path: Path, data: bytes, *, at: int = 0, sync: bool = True) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, data, at)
    if sync:
        os.fdatasync(descriptor)
    os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def _outcomes(disks: Disks, prepare_name: str, loss: Loss, tries: int = 60) -> set[tuple[tuple[str, bytes], ...]]:
    """What is there after a crash, in many tries."""
    found = set()
    for number in range(tries):
        disk = disks.disk(f"{prepare_name}-{loss.name}-{number}")
        _PREPARE[prepare_name](disk)
        disk.crash(loss)
        root = disk.next_life()
        found.add(tuple((str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*.txt"))))
    return found


def _synced(disk: NodeDisk) -> None:
    _write(disk.root / "a.txt", b"one")
    _sync_directory(disk.root)


def _appended(disk: NodeDisk) -> None:
    _synced(disk)
    _write(disk.root / "a.txt", b"2" * 1500, at=3, sync=False)


def _new_name(disk: NodeDisk) -> None:
    _write(disk.root / "a.txt", b"one")


def _replaced(disk: NodeDisk) -> None:
    _synced(disk)
    _write(disk.root / "new", b"two")
    (disk.root / "new").rename(disk.root / "a.txt")


def _removed(disk: NodeDisk) -> None:
    _synced(disk)
    (disk.root / "a.txt").unlink()


def _moved_and_made_again(disk: NodeDisk) -> None:
    _synced(disk)
    (disk.root / "a.txt").rename(disk.root / "b.txt")
    _write(disk.root / "a.txt", b"two")


def _in_a_new_directory(disk: NodeDisk) -> None:
    (disk.root / "d").mkdir()
    _write(disk.root / "d" / "a.txt", b"one")
    _sync_directory(disk.root / "d")


_PREPARE = {
    function.__name__: function
    for function in (_synced, _appended, _new_name, _replaced, _removed, _moved_and_made_again, _in_a_new_directory)
}


@pytest.mark.parametrize("loss", Loss)
def test_what_was_synced_with_its_name_survives_everything(disks: Disks, loss: Loss) -> None:
    assert _outcomes(disks, "_synced", loss) == {(("a.txt", b"one"),)}


def test_kill_nine_leaves_what_was_not_synced(disks: Disks) -> None:
    assert _outcomes(disks, "_appended", Loss.NOTHING) == {(("a.txt", b"one" + b"2" * 1500),)}


def test_bytes_that_were_not_synced_are_lost_torn_or_kept(disks: Disks) -> None:
    assert _outcomes(disks, "_appended", Loss.EVERYTHING) == {(("a.txt", b"one"),)}
    tails = {dict(outcome)["a.txt"] for outcome in _outcomes(disks, "_appended", Loss.TAIL)}
    whole = b"one" + b"2" * 1500
    assert all(whole.startswith(tail) and tail.startswith(b"one") for tail in tails)
    assert len(tails) > 10
    sectors = {dict(outcome)["a.txt"] for outcome in _outcomes(disks, "_appended", Loss.SECTORS)}
    assert any(b"\0" * 512 in left for left in sectors), "a size without its bytes"
    assert all(left.startswith(b"one") for left in sectors)


def test_a_name_is_lost_or_kept_until_its_directory_is_synced(disks: Disks) -> None:
    assert _outcomes(disks, "_new_name", Loss.EVERYTHING) == {()}
    assert _outcomes(disks, "_new_name", Loss.SECTORS) == {(), (("a.txt", b"one"),)}


def test_a_rename_is_lost_or_kept_as_a_whole(disks: Disks) -> None:
    assert _outcomes(disks, "_replaced", Loss.SECTORS) == {(("a.txt", b"one"),), (("a.txt", b"two"),)}
    assert _outcomes(disks, "_moved_and_made_again", Loss.SECTORS) == {
        (("a.txt", b"one"),),
        (("b.txt", b"one"),),
        (("a.txt", b"two"), ("b.txt", b"one")),
    }


def test_what_was_removed_may_come_back(disks: Disks) -> None:
    assert _outcomes(disks, "_removed", Loss.SECTORS) == {(), (("a.txt", b"one"),)}


@pytest.mark.parametrize("loss", CUTS)
def test_a_file_is_gone_with_the_directory_whose_name_is_lost(disks: Disks, loss: Loss) -> None:
    assert () in _outcomes(disks, "_in_a_new_directory", loss)


def test_what_was_not_synced_before_kill_nine_is_not_safe_after_it(disks: Disks) -> None:
    disk = disks.disk("1")
    _appended(disk)
    (disk.root / "a.txt").rename(disk.root / "b.txt")
    disk.crash(Loss.NOTHING)
    assert (disk.next_life() / "b.txt").read_bytes() == b"one" + b"2" * 1500
    disk.crash(Loss.EVERYTHING)
    assert (disk.next_life() / "a.txt").read_bytes() == b"one"


def test_a_failed_sync_saves_nothing_and_no_later_one_does(disks: Disks) -> None:
    disk = disks.disk("1")
    _synced(disk)
    disk.fails_at = disk.operations + 1
    with pytest.raises(OSError, match="Input/output error"):
        _write(disk.root / "a.txt", b"two")
    _write(disk.root / "a.txt", b"two")
    disk.crash(Loss.EVERYTHING)
    assert (disk.next_life() / "a.txt").read_bytes() == b"one"


def test_a_power_cut_in_the_middle_keeps_what_was_synced_before_and_nothing_after(disks: Disks) -> None:
    disk = disks.disk("1")
    cuts: list[int] = []
    disk.on_cut = lambda: cuts.append(disk.operations)
    disk.cut_at = 4
    _synced(disk)
    for value in (b"two", b"six"):
        _write(disk.root / "a.txt", value)
    assert cuts == [4]
    assert (disk.next_life() / "a.txt").read_bytes() in (b"two", b"six")


def test_a_full_disk_takes_what_replaces_bytes_and_nothing_more(disks: Disks) -> None:
    disk = disks.disk("1")
    _synced(disk)
    disk.is_full = True
    _write(disk.root / "a.txt", b"two")
    with pytest.raises(OSError, match="No space"):
        _write(disk.root / "a.txt", b"four")
    _write(disks.disk("2").root / "a.txt", b"somebody else's disk has room")
    disk.is_full = False
    _write(disk.root / "a.txt", b"four")


def test_a_flipped_bit_stands_where_it_was_wanted(disks: Disks) -> None:
    disk = disks.disk("1")
    _synced(disk)
    disk.crash(Loss.NOTHING)
    assert disk.flip(lambda name, data: range(1, 2) if name == "a.txt" else range(0)) == "a.txt at byte 1"
    left = (disk.next_life() / "a.txt").read_bytes()
    assert sum((old ^ new).bit_count() for old, new in zip(b"one", left, strict=True)) == 1
    assert (left[0], left[2]) == (b"o"[0], b"e"[0])


def test_how_much_of_a_file_is_safe(disks: Disks) -> None:
    disk = disks.disk("1")
    _appended(disk)
    assert disk.safe_bytes(disk.root / "a.txt") == 3
    _write(disk.root / "a.txt", b"X", at=1, sync=False)
    assert disk.safe_bytes(disk.root / "a.txt") == 1


def test_what_a_dead_life_still_does_is_not_seen(disks: Disks) -> None:
    disk = disks.disk("1")
    _synced(disk)
    old_root = disk.root
    descriptor = os.open(old_root / "a.txt", os.O_RDWR)
    disk.crash(Loss.NOTHING)
    os.pwrite(descriptor, b"two", 0)
    os.fdatasync(descriptor)
    os.close(descriptor)
    assert (disk.next_life() / "a.txt").read_bytes() == b"one"
    assert not old_root.exists()
