"""Metadata records as a controller could write them, drawn by Hypothesis."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from tidegate_core.metadata.image import (
    MetadataRecord,
    NodeInfo,
    Replicas,
    Topic,
    node_registered,
    node_unregistered,
    producer_ids_taken,
    topic_deleted,
)
from tidegate_wire.identifiers import NodeId, ProducerId

NAMES = ("a", "b", "c.d", "e-f")

node_ids = st.integers(1, 6).map(NodeId)
replicas: st.SearchStrategy[Replicas] = st.lists(node_ids, min_size=1, max_size=3, unique=True).map(tuple)
topic_ids = st.integers(2, 40).map(lambda number: UUID(int=number))
settings = st.dictionaries(st.sampled_from(["retention.ms", "segment.bytes"]), st.integers(14, 99).map(str), max_size=2)


@st.composite
def topics(draw: st.DrawFn) -> Topic:
    name = draw(st.sampled_from(NAMES))
    number = draw(st.integers(0, 9))
    topic = Topic(
        name=name,
        topic_id=UUID(int=2 + number * len(NAMES) + NAMES.index(name)),  # no two topics have one id
        replicas=tuple(draw(st.lists(replicas, min_size=1, max_size=4))),
        settings=draw(settings),
    )
    for index in range(topic.partition_count):
        for target in draw(st.lists(replicas, max_size=2)):
            topic = topic.moving(index, target)
    return topic


@st.composite
def node_infos(draw: st.DrawFn) -> NodeInfo:
    return NodeInfo(
        host=draw(st.sampled_from(["10.0.0.1", "node.example", "::1"])),
        port=draw(st.integers(1, 65535)),
        peer_host="peer.example",
        peer_port=draw(st.integers(1, 65535)),
        directory_id=UUID(int=draw(st.integers(0, 2**128 - 1))),
    )


records: st.SearchStrategy[MetadataRecord] = st.one_of(
    topics().map(Topic.to_record),
    st.sampled_from(NAMES).map(topic_deleted),
    st.builds(node_registered, node_ids, node_infos()),
    node_ids.map(node_unregistered),
    st.integers(0, 2**62).map(lambda number: producer_ids_taken(ProducerId(number))),
    st.just((b"something:newer", b"{}")),
)
