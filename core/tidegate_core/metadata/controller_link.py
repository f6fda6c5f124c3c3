"""The way to the controller from any node: a request that only the controller can answer is passed on to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from tidegate_core.metadata.controller import Controller, NewTopic
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.protocol.translate import compose
from tidegate_core.protocol.versions import Api, newest
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_wire.kafka.messages import ErrorCode, decode_response, encode_request, request_type, response_type

CONTROLLER_WAIT_S: Final = 5.0
"""How long a request waits for a controller: several elections."""

LEADERS_WAIT_S: Final = 5.0
"""How long whoever had partitions made waits until they have leaders, so that they can be written at once."""

RETRY_S: Final = 0.02
"""Between two looks for a controller, or for what it did: a small part of an election."""

THIS_NODE: Final = ""
"""In place of a client's host, in requests that nodes make themselves; no client has it."""

_LENGTH_BYTES: Final = 4
_DEFAULT: Final = -1

Forward = Callable[[bytes | memoryview, str, float], Awaitable[bytes | memoryview]]
"""Passes a request frame, of a client's host, on to the controller, and returns the response frame; the last argument
is for how long that may take (s).

Raises:
    KafkaError: NOT_CONTROLLER: there is none, and nothing was done. REQUEST_TIMED_OUT: it did not answer, and nobody
        knows what it did.
"""


class ControllerLink:
    """Owned by a node; `controller` is its own, which most of the time is not the active one."""

    def __init__(self, controller: Controller, leaders: LeaderDirectory, forward: Forward) -> None:
        self._controller = controller
        self._leaders = leaders
        self._forward = forward

    async def ask(self, frame: bytes | memoryview, host: str, timeout_s: float) -> bytes | memoryview | None:
        """The controller's answer to a request frame; None if this node is the controller, and has to answer.

        Waits up to `timeout_s` for a controller, and as long for its answer, but at least CONTROLLER_WAIT_S.

        Raises:
            KafkaError: NOT_CONTROLLER, REQUEST_TIMED_OUT: as `Forward`.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + min(timeout_s, CONTROLLER_WAIT_S)
        while not self._controller.is_active:
            try:
                return await self._forward(frame, host, max(timeout_s, CONTROLLER_WAIT_S))
            except KafkaError as error:
                if error.code is not ErrorCode.not_controller or loop.time() >= deadline_s:
                    raise
            await asyncio.sleep(RETRY_S)
        return None

    async def create_topic(self, wanted: NewTopic) -> None:
        """Make a topic that something on this node needs; it is in the image, and has leaders, when this returns.

        That somebody else makes it at the same time is no error.

        Raises:
            KafkaError, InvalidLogConfig: it can't be made.
            PartitionError: the controller's disk failed.
        """
        assert wanted.assignment is None
        topic = {
            "name": wanted.name,
            "num_partitions": wanted.partition_count,
            "replication_factor": _DEFAULT if wanted.replication_factor is None else wanted.replication_factor,
            "assignments": [],
            "configs": [{"name": name, "value": value} for name, value in wanted.settings.items()],
        }
        try:
            response = await self._request(Api.CREATE_TOPICS, {"topics": [topic]})
            if response is None:
                await self._controller.create_topic(wanted)
            else:
                _check(response.topics[0].error_code, response.topics[0].error_message)
        except KafkaError as error:
            if error.code is not ErrorCode.topic_already_exists:
                raise
        if not await self.is_usable(wanted.name, LEADERS_WAIT_S):
            raise KafkaError(ErrorCode.leader_not_available, f"topic {wanted.name!r} has no leaders yet")

    async def allocate_producer_ids(self) -> range:
        """A block of producer ids that nobody was ever given.

        Raises:
            KafkaError, PartitionError: there is no controller, or it could not write that.
        """
        response = await self._request(Api.ALLOCATE_PRODUCER_IDS, {"broker_id": _DEFAULT})
        if response is None:
            return await self._controller.allocate_producer_ids()
        _check(response.error_code, None)
        return range(response.producer_id_start, response.producer_id_start + response.producer_id_len)

    async def _request(self, api: Api, fields: Mapping[str, Any]) -> Any:
        version = newest(api)
        frame = encode_request(compose(request_type(api, version), fields), 0, None)
        answer = await self.ask(memoryview(frame)[_LENGTH_BYTES:], THIS_NODE, CONTROLLER_WAIT_S)
        if answer is None:
            return None
        return decode_response(response_type(api, version), memoryview(answer)[_LENGTH_BYTES:])[1]

    async def is_usable(self, name: str, timeout_s: float) -> bool:
        """Return when this node knows a topic and who leads its partitions, or after `timeout_s`; says which."""
        image = self._controller.image
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while (topic := image.topics.get(name)) is None:
            if loop.time() >= deadline_s:
                return False
            await asyncio.sleep(RETRY_S)
        keys = [topic.key(index) for index in range(topic.partition_count)]
        return await leaders_known(self._leaders, keys, deadline_s - loop.time())


def _check(code: ErrorCode, message: str | None) -> None:
    if code is not ErrorCode.none:
        raise KafkaError(code, message or f"the controller says {code.name}")


async def leaders_known(leaders: LeaderDirectory, keys: Iterable[ReplicaKey], timeout_s: float) -> bool:
    """Return when all these partitions have a leader, or after `timeout_s`; says which."""
    missing = {key for key in keys if leaders.get(key) is None}
    if not missing:
        return True
    done = asyncio.get_running_loop().create_future()

    def changed(key: ReplicaKey) -> None:
        if key in missing and leaders.get(key) is not None:
            missing.discard(key)
            if not missing and not done.done():
                done.set_result(None)

    leaders.on_change.append(changed)
    try:
        async with asyncio.timeout(timeout_s):
            await done
    except TimeoutError:
        return False
    finally:
        leaders.on_change.remove(changed)
    return True
