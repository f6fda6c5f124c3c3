"""Votes on disk: what survives crashes, and what is found out about a disk that forgets or changes bytes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.errors import DiskFull, PartitionClosed, StorageFailed
from tidegate_core.raft.messages import ReplicaKey, VoteState
from tidegate_core.replication.vote_journal import SLOT_BYTES, SLOTS_MIN, VoteJournal
from tidegate_core.replication.vote_store import VoteStore
from tidegate_wire.identifiers import LeaderEpoch, NodeId

States = dict[ReplicaKey, VoteState]

_KEYS = [ReplicaKey(UUID(int=7), partition) for partition in range(4)]
_USED_BYTES = 6 * SLOT_BYTES
"""Of the file that `written` makes: the head and five records."""


def vote(epoch: int, voted_for: int | None = None, *, may_vote: bool = True) -> VoteState:
    return VoteState(LeaderEpoch(epoch), None if voted_for is None else NodeId(voted_for), may_vote)


_FIRST: Mapping[ReplicaKey, VoteState] = {_KEYS[0]: vote(3, 2), _KEYS[1]: vote(4, None, may_vote=False)}
_SECOND: Mapping[ReplicaKey, VoteState] = {_KEYS[0]: vote(5, 1), _KEYS[2]: vote(2**31 - 1, 0), _KEYS[3]: vote(0)}


@contextmanager
def opened(path: Path, *, must_exist: bool = True) -> Iterator[VoteJournal]:
    journal = VoteJournal(path, must_exist=must_exist)
    try:
        yield journal
    finally:
        journal.close()


def written(path: Path) -> tuple[bytes, bytes]:
    """The file with the first group, and with the second after it."""
    with opened(path, must_exist=False) as journal:
        journal.append(list(_FIRST.items()))
        before = path.read_bytes()
        journal.append(list(_SECOND.items()))
        return before, path.read_bytes()


def found(path: Path, data: bytes) -> tuple[States, bool]:
    """What a start finds in a file of these bytes; a second start must find the same."""
    path.write_bytes(data)
    with opened(path) as journal:
        first = journal.states, journal.is_damaged
    with opened(path) as journal:
        assert (journal.states, journal.is_damaged) == first
    return first


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=False)
    assert store.get(_KEYS[0]) is None
    await store.save(_FIRST)
    await store.save(_SECOND)
    store.forget([_KEYS[3]])
    await store.close()
    again = VoteStore.open(tmp_path / "votes", must_exist=True)
    assert not again.is_damaged
    assert [again.get(key) for key in _KEYS] == [_SECOND[_KEYS[0]], _FIRST[_KEYS[1]], _SECOND[_KEYS[2]], None]
    await again.close()


@given(
    groups=st.lists(
        st.dictionaries(
            st.builds(ReplicaKey, st.uuids(), st.integers(0, 2**31 - 1)),
            st.none()
            | st.builds(
                VoteState,
                st.integers(0, 2**31 - 1).map(LeaderEpoch),
                st.none() | st.integers(0, 2**31 - 1).map(NodeId),
                st.booleans(),
            ),
        )
    )
)
def test_any_states_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, groups: list[dict[ReplicaKey, VoteState | None]]
) -> None:
    path = tmp_path_factory.mktemp("votes") / "votes"
    expected: dict[ReplicaKey, VoteState | None] = {}
    with opened(path, must_exist=False) as journal:
        for group in groups:
            journal.append(list(group.items()))
            expected |= group
    with opened(path) as journal:
        assert journal.states == {key: state for key, state in expected.items() if state is not None}
        assert not journal.is_damaged


def test_a_group_torn_at_any_byte_leaves_the_records_before(tmp_path: Path) -> None:
    before, after = written(tmp_path / "votes")
    start, end = 3 * SLOT_BYTES, _USED_BYTES
    for cut in range(start, end + 1):
        states, is_damaged = found(tmp_path / "votes", after[:cut] + before[cut:])
        whole = (cut - start) // SLOT_BYTES
        assert states == {**_FIRST, **dict(list(_SECOND.items())[:whole])}, cut
        assert not is_damaged, cut


@pytest.mark.parametrize("lost", range(1, 8))
def test_a_group_whose_sectors_reached_the_disk_in_another_order_is_no_damage(tmp_path: Path, lost: int) -> None:
    _, after = written(tmp_path / "votes")
    data = bytearray(after)
    kept = dict(_FIRST)
    for place, (key, state) in enumerate(_SECOND.items()):
        if lost >> place & 1:
            data[(3 + place) * SLOT_BYTES : (4 + place) * SLOT_BYTES] = bytes(SLOT_BYTES)
        else:
            kept[key] = state
    assert found(tmp_path / "votes", bytes(data)) == (kept, False)


@pytest.mark.parametrize("slot", range(3))
def test_a_record_that_was_synced_and_is_empty_now_is_damage(tmp_path: Path, slot: int) -> None:
    _, after = written(tmp_path / "votes")
    data = bytearray(after)
    data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = bytes(SLOT_BYTES)
    assert found(tmp_path / "votes", bytes(data))[1]


@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_a_byte_that_changed_anywhere_is_damage(tmp_path: Path, flip: int) -> None:
    _, after = written(tmp_path / "votes")
    for at in range(_USED_BYTES):
        data = bytearray(after)
        data[at] ^= flip
        states, is_damaged = found(tmp_path / "votes", bytes(data))
        assert is_damaged, at
        for key, state in states.items():  # a record that changed is never believed
            assert state in (_FIRST.get(key), _SECOND.get(key)), at


def test_a_file_cut_at_any_byte_is_damage(tmp_path: Path) -> None:
    _, after = written(tmp_path / "votes")
    for size in (*range(_USED_BYTES + 1), len(after) - 1):
        assert found(tmp_path / "votes", after[:size])[1], size


def test_a_file_that_is_gone_is_damage_until_that_is_settled(tmp_path: Path) -> None:
    path = tmp_path / "votes"
    for _ in range(2):
        with opened(path) as journal:
            assert journal.is_damaged
            journal.append(list(_FIRST.items()))
    with opened(path) as journal:
        journal.settle_damage()
    with opened(path) as journal:
        assert not journal.is_damaged
        assert journal.states == _FIRST


async def test_settled_damage_is_found_no_more_and_nothing_saved_meanwhile_is_lost(tmp_path: Path) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=True)
    was_damaged = store.is_damaged
    await asyncio.gather(store.save(_FIRST), store.settle_damage(), store.save(_SECOND))
    assert (was_damaged, store.is_damaged) == (True, False)
    await store.close()
    with opened(tmp_path / "votes") as journal:
        assert (journal.states, journal.is_damaged) == ({**_FIRST, **_SECOND}, False)


async def test_saves_at_the_same_time_share_a_sync_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=False)
    syncs = 0
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    await asyncio.gather(*(store.save({_KEYS[0]: vote(epoch)}) for epoch in range(100)))
    assert syncs == 1
    assert store.get(_KEYS[0]) == vote(99)
    await store.close()
    with opened(tmp_path / "votes") as journal:
        assert journal.states == {_KEYS[0]: vote(99)}


async def test_a_file_without_room_is_written_anew_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "votes"
    store = VoteStore.open(path, must_exist=False)
    keys = [ReplicaKey(UUID(int=8), partition) for partition in range(900)]
    for epoch in range(12):
        await store.save({key: vote(epoch, epoch) for key in keys})
        assert path.stat().st_size == (1 + SLOTS_MIN) * SLOT_BYTES
    await store.close()
    with opened(path) as journal:
        assert journal.states == dict.fromkeys(keys, vote(11, 11))
        assert not journal.is_damaged


async def test_after_a_failed_sync_nothing_is_saved_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=False)

    def fails(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        answers = await asyncio.gather(store.save(_FIRST), store.save(_SECOND), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageFailed, StorageFailed]
    with pytest.raises(StorageFailed):
        await store.save(_FIRST)
    await store.close()


async def test_votes_are_saved_on_a_full_disk_while_the_file_has_room_and_again_when_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=False)
    keys = [ReplicaKey(UUID(int=8), partition) for partition in range(SLOTS_MIN // 2)]
    open_file = os.open

    def no_new_files(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_file(path, flags, mode)

    with monkeypatch.context() as full:
        full.setattr(os, "open", no_new_files)
        await store.save(dict.fromkeys(keys, vote(1)))
        await store.save(dict.fromkeys(keys, vote(2)))
        with pytest.raises(DiskFull):
            await store.save(dict.fromkeys(keys, vote(3)))
        assert store.get(keys[0]) == vote(2)
    await store.save(dict.fromkeys(keys, vote(4)))
    await store.close()
    with opened(tmp_path / "votes") as journal:
        assert journal.states == dict.fromkeys(keys, vote(4))


async def test_a_save_that_is_given_up_does_not_hold_up_the_next(tmp_path: Path) -> None:
    store = VoteStore.open(tmp_path / "votes", must_exist=False)
    given_up = asyncio.create_task(store.save(_FIRST))
    await asyncio.sleep(0)
    given_up.cancel()
    await store.save(_SECOND)
    await store.close()
    with pytest.raises(PartitionClosed):
        await store.save(_FIRST)
    with opened(tmp_path / "votes") as journal:
        assert journal.states == {**_FIRST, **_SECOND}
