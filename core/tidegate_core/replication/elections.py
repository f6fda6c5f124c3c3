"""Carries votes between replicas and their voters, those of many partitions in one message, and never before the vote
store has what they depend on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from tidegate_core.errors import DiskFull, StorageError
from tidegate_core.raft.messages import BeginEpoch, EndEpoch, ReplicaKey, VoteRequest, VoteResponse, VoteState
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import (
    BeginEpochs,
    EndEpochs,
    Lane,
    VoteAnswers,
    Votes,
)
from tidegate_core.replication.peers import PeerError, PeerNetwork
from tidegate_core.replication.vote_store import VoteStore
from tidegate_wire.identifiers import NodeId

RETRY_DISK_FULL_S: Final = 1.0
"""Before votes are saved again for which there was no room."""

_log = structlog.get_logger()


class Elections:
    """Owned by the replica manager."""

    def __init__(
        self,
        hosted: Mapping[ReplicaKey, HostedReplica],
        votes: VoteStore,
        network: PeerNetwork,
        *,
        settle: Callable[[HostedReplica], None],
        votes_failed: Callable[[StorageError], None],
        begin_heard: Callable[[NodeId], None],
        now_ms: Callable[[], int],
        timeout_ms: int,
    ) -> None:
        self._hosted = hosted
        self._votes = votes
        self._network = network
        self._settle = settle
        self._votes_failed = votes_failed
        self._begin_heard = begin_heard
        self._now_ms = now_ms
        self._timeout_s = timeout_ms / 1000
        self._unsaved: dict[ReplicaKey, HostedReplica] = {}
        self._asking: dict[ReplicaKey, HostedReplica] = {}
        self._beginning: dict[NodeId, dict[ReplicaKey, BeginEpoch]] = defaultdict(dict)
        self._ending: dict[NodeId, dict[ReplicaKey, EndEpoch]] = defaultdict(dict)
        self._is_scheduled = False
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop; nothing is saved or said any more."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def attend(self, hosted: HostedReplica) -> None:
        """Save and send what a replica has to say, together with all others of this turn of the loop."""
        replica = hosted.replica
        if replica.unsaved is not None:
            if replica.unsaved is not hosted.saving:
                self._unsaved[hosted.key] = hosted
                self._schedule()
        elif replica.has_requests:
            self._asking[hosted.key] = hosted
            self._schedule()

    def begin_epoch(self, hosted: HostedReplica, voters: Iterable[NodeId]) -> None:
        """Tell voters that this node leads."""
        message = BeginEpoch(hosted.replica.node_id, hosted.replica.epoch)
        for voter in voters:
            if voter != hosted.replica.node_id:
                self._beginning[voter][hosted.key] = message
        self._schedule()

    def end_epoch(self, key: ReplicaKey, message: EndEpoch, voters: Iterable[NodeId]) -> None:
        """Tell voters that this node leads no more."""
        for voter in voters:
            if voter != message.leader:
                self._ending[voter][key] = message
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            self._spawn(self._save_all(list(unsaved.values())))
        asking, self._asking = self._asking, {}
        requests: dict[NodeId, list[tuple[ReplicaKey, VoteRequest]]] = defaultdict(list)
        for key, hosted in asking.items():
            if hosted.replica.unsaved is None:
                for request in hosted.replica.take_requests():
                    requests[request.voter].append((key, request.message))
        for voter, wanted in requests.items():
            self._spawn(self._ask(voter, wanted))
        beginning, self._beginning = self._beginning, defaultdict(dict)
        for voter, begun in beginning.items():
            self._spawn(self._tell_begin(voter, BeginEpochs(list(begun.items()))))
        ending, self._ending = self._ending, defaultdict(dict)
        for voter, ended in ending.items():
            self._spawn(self._tell_end(voter, EndEpochs(list(ended.items()))))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- saving

    async def _save_all(self, replicas: Iterable[HostedReplica]) -> None:
        states: dict[ReplicaKey, tuple[HostedReplica, VoteState]] = {}
        for hosted in replicas:
            state = hosted.replica.unsaved
            if state is not None:
                hosted.saving = state
                states[hosted.key] = hosted, state
        if not states:
            return
        try:
            await self._votes.save({key: state for key, (_, state) in states.items()})
        except DiskFull as error:
            _log.warning("votes_not_saved_yet", error=str(error))
            for hosted, state in states.values():
                if hosted.saving is state:
                    hosted.saving = None
            asyncio.get_running_loop().call_later(RETRY_DISK_FULL_S, self._retry, list(states))
            return
        except StorageError as error:
            self._votes_failed(error)
            return
        now_ms = self._now_ms()
        for key, (hosted, state) in states.items():
            if hosted.saving is state:
                hosted.saving = None
            if self._hosted.get(key) is hosted:
                hosted.replica.saved(state, now_ms)
                self._settle(hosted)

    def _retry(self, keys: Iterable[ReplicaKey]) -> None:
        for key in keys:
            hosted = self._hosted.get(key)
            if hosted is not None:
                self.attend(hosted)

    # --- asking

    async def _ask(self, voter: NodeId, requests: list[tuple[ReplicaKey, VoteRequest]]) -> None:
        try:
            answer = await self._network.request(voter, Lane.CONTROL, Votes(requests), self._timeout_s)
        except PeerError:
            return  # the candidate asks again when its time is over
        if not isinstance(answer, VoteAnswers):
            return
        now_ms = self._now_ms()
        for key, response in answer.answers:
            hosted = self._hosted.get(key)
            if hosted is None:
                continue
            if response is None:
                hosted.replica.on_unknown_here(now_ms)
            else:
                hosted.replica.on_vote_response(voter, response, now_ms)
            self._settle(hosted)

    async def _tell_begin(self, voter: NodeId, message: BeginEpochs) -> None:
        try:
            await self._network.request(voter, Lane.CONTROL, message, self._timeout_s)
        except PeerError:
            return  # said again while the voter does not fetch
        self._begin_heard(voter)

    async def _tell_end(self, voter: NodeId, message: EndEpochs) -> None:
        try:
            await self._network.request(voter, Lane.CONTROL, message, self._timeout_s)
        except PeerError:
            return  # it will find out by itself

    # --- answering

    async def on_votes(self, message: Votes, hears_leader: Callable[[HostedReplica], bool]) -> VoteAnswers:
        """Answer candidates; a vote that is given is on disk when this returns."""
        now_ms = self._now_ms()
        answers: list[tuple[ReplicaKey, VoteResponse | None]] = []
        touched: list[HostedReplica] = []
        for key, request in message.requests:
            hosted = self._hosted.get(key)
            if hosted is None:
                answers.append((key, None))
                continue
            response = hosted.replica.on_vote_request(request, now_ms, hears_leader=hears_leader(hosted))
            answers.append((key, response))
            if hosted.replica.unsaved is not None:
                touched.append(hosted)
            self._settle(hosted)
        if touched:
            # As a task, so that it shares a sync with what `attend` was told of, and goes on when the candidate's
            # connection breaks, which cancels this.
            await asyncio.shield(self._spawn(self._save_all(touched)))
            answers = [
                (key, response if response is None or self._is_kept(key, response) else None)
                for key, response in answers
            ]
        return VoteAnswers(answers)

    def _is_kept(self, key: ReplicaKey, response: VoteResponse) -> bool:
        """Whether the vote store took the vote, which it did not if its disk failed or is full."""
        hosted = self._hosted.get(key)
        is_saved = hosted is not None and hosted.saving is None and hosted.replica.unsaved is None
        return not response.is_granted or response.is_pre_vote or is_saved

    def on_begin_epochs(self, message: BeginEpochs) -> None:
        """Leaders announced themselves."""
        now_ms = self._now_ms()
        for key, begun in message.epochs:
            hosted = self._hosted.get(key)
            if hosted is not None:
                hosted.replica.on_begin_epoch(begun, now_ms)
                self._settle(hosted)

    def on_end_epochs(self, message: EndEpochs) -> None:
        """Leaders step down."""
        now_ms = self._now_ms()
        for key, ended in message.epochs:
            hosted = self._hosted.get(key)
            if hosted is not None:
                hosted.replica.on_end_epoch(ended, now_ms)
                self._settle(hosted)
