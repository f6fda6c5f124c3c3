"""Bugs planted on purpose, each one that somebody's Raft once had: a simulator that does not find them proves nothing.

They are put into the real classes for the time of a test, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tidegate_core.raft.messages import VoteRequest, VoteResponse
from tidegate_core.raft.replica import Replica, Role, majority_offset
from tidegate_wire.identifiers import Offset


@contextmanager
def leader_counts_its_own_records_before_they_are_synced() -> Iterator[None]:
    real = Replica._move_high_watermark

    def move(self: Replica) -> None:
        log = self._log
        ends = [
            log.log_end_offset if voter == self.node_id else self._progress_of(voter).end_offset for voter in log.voters
        ]
        offset = Offset(majority_offset(ends))
        if offset > self.high_watermark and (offset > self.epoch_start or self.epoch_start == 0):
            self.high_watermark = offset
        real(self)

    with patch.object(Replica, "_move_high_watermark", move):
        yield


@contextmanager
def votes_are_not_saved() -> Iterator[None]:
    real = Replica.on_vote_request

    def on_vote_request(self: Replica, request: VoteRequest, now_ms: int, **known: Any) -> VoteResponse:
        response = real(self, request, now_ms, **known)
        if response.is_granted and not request.is_pre_vote:
            self.unsaved = None
        return response

    with patch.object(Replica, "on_vote_request", on_vote_request):
        yield


@contextmanager
def records_of_older_epochs_commit() -> Iterator[None]:
    real = Replica._move_high_watermark

    def move(self: Replica) -> None:
        epoch_start, self.epoch_start = self.epoch_start, Offset(-1)
        try:
            real(self)
        finally:
            self.epoch_start = epoch_start

    with patch.object(Replica, "_move_high_watermark", move):
        yield


@contextmanager
def candidates_do_not_ask_before_they_stand() -> Iterator[None]:
    with patch.object(Replica, "_ask", Replica._stand):
        yield


@contextmanager
def pre_votes_are_granted_although_the_leader_is_heard() -> Iterator[None]:
    real = Replica.on_vote_request

    def on_vote_request(self: Replica, request: VoteRequest, now_ms: int, *, hears_leader: bool) -> VoteResponse:
        if not request.is_pre_vote or self.role is Role.HALTED:
            return real(self, request, now_ms, hears_leader=hears_leader)
        is_granted = request.epoch > self.epoch and self._is_up_to_date(request)
        return VoteResponse(self.epoch, self.leader, is_granted=is_granted, is_pre_vote=True)

    with patch.object(Replica, "on_vote_request", on_vote_request):
        yield


@contextmanager
def votes_go_to_shorter_logs() -> Iterator[None]:
    with patch.object(Replica, "_is_up_to_date", lambda _self, _request: True):
        yield


@contextmanager
def replicas_that_lost_their_disk_vote_as_before() -> Iterator[None]:
    real = Replica.on_vote_request

    def on_vote_request(self: Replica, request: VoteRequest, now_ms: int, **known: Any) -> VoteResponse:
        response = real(self, request, now_ms, **known)
        return VoteResponse(
            response.epoch, response.leader, is_granted=response.is_granted, is_pre_vote=response.is_pre_vote
        )

    with patch.object(Replica, "on_vote_request", on_vote_request):
        yield


RAFT_MUTANTS = (
    leader_counts_its_own_records_before_they_are_synced,
    votes_are_not_saved,
    records_of_older_epochs_commit,
    candidates_do_not_ask_before_they_stand,
    pre_votes_are_granted_although_the_leader_is_heard,
    votes_go_to_shorter_logs,
    replicas_that_lost_their_disk_vote_as_before,
)
"""Found by the Raft level."""
