"""Drives a `Group` as its coordinator does: with a clock of its own, and answers collected by token."""

from __future__ import annotations

import itertools
import struct
from typing import Any

from tidegate_core.groups.group import Group, GroupRules, GroupState
from tidegate_core.groups.messages import (
    JoinReply,
    JoinRequest,
    JoinResult,
    StoredGroup,
    StoreGroup,
    SyncReply,
    SyncRequest,
    SyncResult,
)
from tidegate_wire.kafka.messages import ErrorCode

SESSION_MS = 10_000
REBALANCE_MS = 30_000


def subscription(*topics: str, version: int = 1) -> bytes:
    parts = [struct.pack(">hi", version, len(topics))]
    parts += [struct.pack(">h", len(topic)) + topic.encode() for topic in topics]
    return b"".join(parts) + b"\xff\xff\xff\xff\x00\x00\x00\x00"


def rules(initial_delay_ms: int = 0, members_max: int = 100) -> GroupRules:
    numbers = itertools.count(1)
    return GroupRules(
        initial_delay_ms=initial_delay_ms,
        members_max=members_max,
        new_member_id=lambda prefix: f"{prefix}-{next(numbers)}",
        wall_clock_ms=lambda: 1_700_000_000_000,
    )


def join_request(client: str = "c", member_id: str = "", **fields: Any) -> JoinRequest:
    return JoinRequest(
        **{
            "group_id": "g",
            "member_id": member_id,
            "instance_id": None,
            "client_id": client,
            "client_host": "127.0.0.1",
            "session_timeout_ms": SESSION_MS,
            "rebalance_timeout_ms": REBALANCE_MS,
            "protocol_type": "consumer",
            "protocols": (("range", subscription("t")),),
            "knows_member_id": False,
            "may_skip_assignment": False,
        }
        | fields
    )


class GroupDriver:
    def __init__(self, group: Group | None = None, *, stores_at_once: bool = True, **of_rules: Any) -> None:
        self.group = group or Group("g", rules(**of_rules))
        self.now_ms = 1_000_000
        self.stores_at_once = stores_at_once
        self.joins: dict[object, JoinResult] = {}
        self.syncs: dict[object, SyncResult] = {}
        self.stored: list[StoredGroup] = []
        self.unstored: list[int] = []
        self._tokens = itertools.count(1)

    def state(self) -> GroupState:
        return self.group.state

    def _collect(self) -> None:
        effects = self.group.effects
        while effects:
            effect = effects.pop(0)
            match effect:
                case JoinReply(token=token, result=result):
                    assert token not in self.joins, "answered twice"
                    self.joins[token] = result
                case SyncReply(token=token, result=result):
                    assert token not in self.syncs, "answered twice"
                    self.syncs[token] = result
                case StoreGroup(number=number, group=group):
                    self.stored.append(group)
                    if self.stores_at_once:
                        self.group.stored(number, ErrorCode.none, self.now_ms)
                    else:
                        self.unstored.append(number)

    def end_store(self, error: ErrorCode = ErrorCode.none) -> None:
        self.group.stored(self.unstored.pop(0), error, self.now_ms)
        self._collect()

    def begun(self, client: str) -> JoinResult:
        """The answer to a join, after the generation was written down that it began."""
        token = self.join(client)
        self.end_store()
        return self.joins[token]

    def join(self, client: str = "c", member_id: str = "", **fields: Any) -> int:
        token = next(self._tokens)
        self.group.join(join_request(client, member_id, **fields), token, self.now_ms)
        self._collect()
        return token

    def sync(self, joined: JoinResult, assignments: dict[str, bytes] | None = None, **fields: Any) -> int:
        token = next(self._tokens)
        request: dict[str, Any] = {
            "group_id": "g",
            "generation": joined.generation,
            "member_id": joined.member_id,
            "instance_id": None,
            "protocol_type": None,
            "protocol_name": None,
            "assignments": assignments or {},
        } | fields
        self.group.sync(SyncRequest(**request), token, self.now_ms)
        self._collect()
        return token

    def heartbeat(self, joined: JoinResult, instance_id: str | None = None) -> ErrorCode:
        error = self.group.heartbeat(joined.member_id, instance_id, joined.generation, self.now_ms)
        self._collect()
        return error

    def leave(self, *leaving: Any) -> list[ErrorCode]:
        errors = self.group.leave(leaving, self.now_ms)
        self._collect()
        return errors

    def advance(self, time_ms: int) -> None:
        """Let time pass, with a tick at each deadline on the way."""
        end_ms = self.now_ms + time_ms
        for _ in range(1000):
            deadline_ms = self.group.next_deadline_ms()
            if deadline_ms is None or deadline_ms > end_ms:
                break
            self.now_ms = max(self.now_ms, deadline_ms)
            self.group.tick(self.now_ms)
            self._collect()
        else:
            raise AssertionError("a tick does not move the deadline on")
        self.now_ms = end_ms

    def stable_members(self, *clients: str, **fields: Any) -> list[JoinResult]:
        """Members that joined, synced and got an assignment; the first one leads."""
        tokens = [self.join(client, **fields) for client in clients]
        results = [self.joins[token] for token in tokens if token in self.joins and self.joins[token].generation > 0]
        while len(results) < len(clients) or len({result.generation for result in results}) > 1:
            members = [member.member_id for member in self.group.members]
            tokens = [self.join(member_id=member_id, **fields) for member_id in members]
            results = [self.joins[token] for token in tokens]
        leader = next(result for result in results if result.leader_id == result.member_id)
        for result in results:
            if result is not leader:
                self.sync(result)
        self.sync(leader, {member.member_id: member.member_id.encode() for member in leader.members})
        return results
