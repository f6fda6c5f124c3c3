"""Reads the topics out of a consumer's subscription, which is written in the embedded `consumer` protocol."""

from __future__ import annotations

import struct
from functools import lru_cache

from tidegate_core.protocol.primitives import read_string
from tidegate_wire.kafka.messages import MessageError

_HEAD = struct.Struct(">hi")  # version, number of topics


@lru_cache(
    maxsize=1024
)  # the same bytes come with every join of a member, and are asked for at every expiry of offsets
def subscribed_topics(metadata: bytes) -> frozenset[str]:
    """The topics a member reads; none where the metadata is not a subscription.

    Every version begins with its number and the topics; what follows is passed over.
    """
    view = memoryview(metadata)
    try:
        _, count = _HEAD.unpack_from(view)
        offset = _HEAD.size
        topics = []
        for _ in range(count):
            topic, offset = read_string(view, offset)
            topics.append(topic)
    except (struct.error, MessageError, UnicodeDecodeError):
        return frozenset()
    return frozenset(topics)
