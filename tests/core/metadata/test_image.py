"""The image, record by record, and its snapshots."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.metadata.strategies import records, topics
from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.identity import id_of_old_topic
from tidegate_core.metadata import image as image_module
from tidegate_core.metadata.image import (
    MetadataImage,
    MetadataRecord,
    NodeInfo,
    Topic,
    node_registered,
    node_unregistered,
    producer_ids_taken,
    topic_deleted,
)
from tidegate_core.metadata.snapshot import decode_snapshot, encode_snapshot
from tidegate_wire.identifiers import NodeId, ProducerId

ONE, TWO, THREE, FOUR, FIVE = (NodeId(number) for number in range(1, 6))


def image_of(*applied: MetadataRecord) -> MetadataImage:
    image = MetadataImage(ONE)
    for key, value in applied:
        image.apply(key, value)
    return image


def content(image: MetadataImage) -> object:
    ids = [UUID(int=number) for number in range(60)]
    return (
        image.topics,
        image.nodes,
        image.next_producer_id,
        [image.is_deleted(topic_id) for topic_id in ids],
        [image.topic_by_id(topic_id) for topic_id in ids],
        image.to_records(),
    )


def topic(name: str = "t", number: int = 7, **fields: object) -> Topic:
    values = {"replicas": ((ONE, TWO, THREE), (TWO, THREE, ONE))} | fields
    return Topic(name=name, topic_id=UUID(int=number), **values)  # type: ignore[arg-type]  # the fields of a test


@given(st.lists(records, max_size=30), st.lists(records, max_size=30))
def test_a_snapshot_and_the_records_after_it_make_what_all_records_make(
    before: list[MetadataRecord], after: list[MetadataRecord]
) -> None:
    follower = MetadataImage(ONE)
    follower.begin_anew(decode_snapshot(encode_snapshot(image_of(*before))))
    for key, value in after:
        follower.apply(key, value)
    assert content(follower) == content(image_of(*before, *after))


@given(st.lists(records, max_size=20), st.lists(records, max_size=20))
def test_a_snapshot_takes_the_place_of_what_was_known_and_says_what_changed(
    known: list[MetadataRecord], snapshot: list[MetadataRecord]
) -> None:
    image, leader = image_of(*known), image_of(*snapshot)
    before = dict(image.topics)
    image.take_changes()
    image.begin_anew(decode_snapshot(encode_snapshot(leader)))
    assert content(image) == content(leader)
    changes = image.take_changes()
    gone = {one.topic_id for one in before.values()} - {one.topic_id for one in image.topics.values()}
    assert gone <= set(changes.deleted)
    assert {*before, *image.topics} <= set(changes.topics)


@given(st.lists(records, max_size=30))
def test_changes_name_every_topic_and_node_that_differs(applied: list[MetadataRecord]) -> None:
    image = MetadataImage(ONE)
    for key, value in applied:
        topics_before, nodes_before, version = dict(image.topics), dict(image.nodes), image.version
        image.apply(key, value)
        changes = image.take_changes()
        names = {*topics_before, *image.topics}
        assert {name for name in names if topics_before.get(name) != image.topics.get(name)} <= set(changes.topics)
        ids = {*nodes_before, *image.nodes}
        assert {node for node in ids if nodes_before.get(node) != image.nodes.get(node)} <= set(changes.nodes)
        assert image.version > version
        assert not image.take_changes().topics


@given(topics())
def test_a_topic_is_read_as_it_was_written(written: Topic) -> None:
    image = image_of(written.to_record())
    assert image.topics[written.name] == written
    assert image.topic_by_id(written.topic_id) == written


@given(st.data())
def test_a_torn_snapshot_is_refused(data: st.DataObject) -> None:
    whole = encode_snapshot(image_of(*data.draw(st.lists(records, min_size=1, max_size=5))))
    with pytest.raises(PartitionDamaged):
        decode_snapshot(whole[: data.draw(st.integers(0, len(whole) - 2))])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"[]\n", b'{"records": 0}\n', b'{"format": 1, "records": 1}\n[1]\n']
)
def test_what_is_no_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(PartitionDamaged):
        decode_snapshot(data)


def test_a_snapshot_of_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(PartitionDamaged, match="format 2") as raised:
        decode_snapshot(b'{"format": 2, "records": 0}\n')
    assert raised.value.hint is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"topic:t", b"not json"),
        (b"topic:t", b"[]"),
        (b"topic:t", b'{"id": "no", "replicas": [], "settings": {}}'),
        (b"topic:t", b'{"settings": {}}'),
        (b"node:one", b"{}"),
        (b"node:1", b'{"host": "a"}'),
        (b"producer-ids", b'{"next": "soon"}'),
        (b"\xff\xff", b"{}"),
    ],
)
def test_a_record_that_is_none_of_ours_is_damage(key: bytes, value: bytes) -> None:
    with pytest.raises(PartitionDamaged):
        MetadataImage(ONE).apply(key, value)


def test_topics_that_one_node_wrote_before_there_were_ids_are_on_that_node() -> None:
    value = b'{"partitions":3,"settings":{"retention.ms":"1000"}}'
    for node in (ONE, FIVE):
        image = MetadataImage(node)
        image.apply(b"topic:old", value)
        old = image.topics["old"]
        assert old.replicas == ((node,), (node,), (node,))
        assert old.topic_id == id_of_old_topic("old")
        assert old.settings == {"retention.ms": "1000"}
        assert image.topic_by_id(id_of_old_topic("old")) is old
    image.apply(b"topic:old", None)
    assert image.is_deleted(id_of_old_topic("old"))
    image.apply(b"topic:old", value)
    assert not image.is_deleted(id_of_old_topic("old"))


def test_a_topic_of_the_same_name_is_another_one() -> None:
    image = image_of(topic(number=7).to_record(), topic_deleted("t"), topic(number=8).to_record())
    assert image.is_deleted(UUID(int=7))
    assert not image.is_deleted(UUID(int=8))
    assert image.topic_by_id(UUID(int=7)) is None
    assert image.take_changes().deleted == {UUID(int=7): "t"}
    image.apply(*topic(number=9).to_record())  # also if nobody said that the one before was deleted
    assert image.is_deleted(UUID(int=8))


def test_only_the_newest_deletions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "DELETED_TOPICS_MAX", 3)
    image = MetadataImage(ONE)
    for number in range(2, 8):
        image.apply(*topic(number=number).to_record())
        image.apply(*topic_deleted("t"))
    assert [image.is_deleted(UUID(int=number)) for number in range(2, 8)] == [False] * 3 + [True] * 3


def test_nodes_come_and_go() -> None:
    info = NodeInfo(host="h", port=1, peer_host="p", peer_port=2, directory_id=UUID(int=5))
    image = image_of(node_registered(TWO, info), node_registered(THREE, info), node_unregistered(THREE))
    assert image.nodes == {TWO: info}
    assert list(image.take_changes().nodes) == [TWO, THREE]


def test_producer_ids_are_a_number_that_a_person_can_read() -> None:
    key, value = producer_ids_taken(ProducerId(3000))
    assert (key, json.loads(value or b"")) == (b"producer-ids", {"next": 3000})
    assert image_of((key, value)).next_producer_id == 3000


# A partition on its way.


def test_a_move_has_both_the_old_and_the_new_nodes_until_it_is_over() -> None:
    moving = topic().moving(0, (FOUR, ONE, FIVE))
    assert moving.replicas[0] == (ONE, TWO, THREE)
    assert moving.hosts(0) == (FOUR, ONE, FIVE, TWO, THREE)
    assert (moving.adding(0), moving.removing(0)) == ((FOUR, FIVE), (TWO, THREE))
    assert (moving.hosts(1), moving.adding(1), moving.removing(1)) == ((TWO, THREE, ONE), (), ())
    moved = moving.moved(0)
    assert moved.replicas == ((FOUR, ONE, FIVE), (TWO, THREE, ONE))
    assert not moved.reassigning


def test_nodes_of_a_target_that_was_given_up_stay_until_the_move_is_over() -> None:
    """They may vote by then: without them there might be no majority."""
    moving = topic().moving(0, (FOUR, FIVE, NodeId(6))).moving(0, (ONE, TWO, NodeId(9)))
    assert set(moving.hosts(0)) == {1, 2, 3, 4, 5, 6, 9}
    cancelled = moving.moving(0, moving.replicas[0])
    assert cancelled.reassigning[0] == (ONE, TWO, THREE)
    assert set(cancelled.hosts(0)) == {1, 2, 3, 4, 5, 6, 9}
    assert set(cancelled.moved(0).hosts(0)) == {1, 2, 3}


@given(topics(), st.lists(st.lists(st.integers(1, 9).map(NodeId), min_size=1, max_size=4, unique=True), max_size=4))
def test_no_node_that_was_ever_asked_leaves_before_a_move_is_over(made: Topic, targets: list[list[NodeId]]) -> None:
    ever = set(made.hosts(0))
    for target in targets:
        made = made.moving(0, tuple(target))
        ever |= set(target)
        assert set(made.hosts(0)) == ever
        assert made.hosts(0)[: len(target)] == tuple(target)
        assert len(set(made.hosts(0))) == len(made.hosts(0))
        read = image_of(made.to_record()).topics[made.name]
        assert read == made
