"""What other nodes ask (`replication.messages`), on the port that clients use."""

from __future__ import annotations

import asyncio
import struct
from typing import Final
from uuid import UUID

from tidegate_core.replication.bootstrap import Greeter
from tidegate_core.replication.codec import decode, encode
from tidegate_core.replication.messages import Hello, PeerRequest, PeerResponse, Refused
from tidegate_core.replication.peers import PeerHandler, PeerName
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode, MessageError, RequestHeader

NAMES_MAX: Final = 1000
"""Client ids whose check is remembered; there are as many as there are nodes."""

_FRAME: Final = struct.Struct(">ii")


class PeerServer:
    """Checks who asks, and answers. `cluster_id` is None until this node belongs to a cluster."""

    def __init__(self, cluster_id: str | None) -> None:
        self.cluster_id = cluster_id
        self.greeter: Greeter | None = None
        self.handler: PeerHandler | None = None
        """None until there is something to answer with."""
        self.heard: dict[NodeId, tuple[UUID, float]] = {}
        """From which directory a node asked last, and when (loop's clock)."""
        self._loop = asyncio.get_running_loop()
        self._names: dict[str, tuple[PeerName, NodeId]] = {}

    async def answer(self, header: RequestHeader, frame: memoryview) -> list[bytes | memoryview]:
        """The answer to a node's request, as the buffers of a whole frame.

        Raises:
            MessageError: it is not the request of a node.
        """
        name, asked = self._parse(header.client_id or "")
        message = decode(frame[header.body_offset :].toreadonly())
        buffers = encode(await self._answer(name, asked, message))
        size_bytes = sum(map(len, buffers)) + 4
        return [_FRAME.pack(size_bytes, header.correlation_id), *buffers]

    async def _answer(self, name: PeerName, asked: NodeId, message: PeerRequest | PeerResponse) -> PeerResponse:
        if self.greeter is None:
            return Refused(ErrorCode.broker_not_available, "this node has just started")
        if isinstance(message, Hello):
            return self.greeter.hello(message)
        if asked != self.greeter.node_id:
            return Refused(ErrorCode.broker_not_available, f"this is node {self.greeter.node_id}, not node {asked}")
        if self.cluster_id is None or name.cluster_id != self.cluster_id:
            return Refused(
                ErrorCode.inconsistent_cluster_id, f"this is cluster {self.cluster_id}, not {name.cluster_id or 'none'}"
            )
        self._hear(name)
        if self.handler is None:
            return Refused(ErrorCode.broker_not_available, "this node has just started")
        if isinstance(message, PeerResponse):
            raise MessageError(f"a {type(message).__name__} is not a request")
        return await self.handler.handle(name.node_id, message)

    def _hear(self, name: PeerName) -> None:
        self.heard.pop(name.node_id, None)
        self.heard[name.node_id] = name.directory_id, self._loop.time()
        if len(self.heard) > NAMES_MAX:
            del self.heard[next(iter(self.heard))]

    def _parse(self, client_id: str) -> tuple[PeerName, NodeId]:
        parsed = self._names.get(client_id)
        if parsed is None:
            parsed = PeerName.parse(client_id)
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            self._names[client_id] = parsed
        return parsed
