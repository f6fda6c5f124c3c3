"""What a node is to have, from the image; and topics' settings."""

from __future__ import annotations

from uuid import UUID

import pytest

from tidegate_core.errors import InvalidLogConfig
from tidegate_core.log.config import LogConfig
from tidegate_core.metadata.assignments import config_before_metadata, config_of, move_target, wanted_replicas
from tidegate_core.metadata.image import MetadataImage, Topic
from tidegate_core.metadata.topic_settings import (
    FIXED_SETTINGS,
    check_min_insync_replicas,
    describe_settings,
    note_on,
)
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import NodeId

ONE, TWO, THREE, FOUR, FIVE = (NodeId(number) for number in range(1, 6))
TOPIC = Topic(
    name="t",
    topic_id=UUID(int=7),
    replicas=((ONE, TWO), (TWO, THREE)),
    settings={"retention.ms": "1000", "min.insync.replicas": "2", "compression.type": "producer"},
)


def image_of(*topics: Topic) -> MetadataImage:
    image = MetadataImage(ONE)
    for topic in topics:
        image.apply(*topic.to_record())
    return image


def test_a_node_is_to_have_the_replicas_that_name_it() -> None:
    image = image_of(TOPIC)
    config = LogConfig(retention_ms=1000, segment_bytes=4096)
    defaults = {"segment.bytes": "4096", "retention.ms": "5"}
    wanted = wanted_replicas(image, TWO, defaults)
    assert wanted == {
        ("t", 0): (ReplicaKey(TOPIC.topic_id, 0), (ONE, TWO), config, False),
        ("t", 1): (ReplicaKey(TOPIC.topic_id, 1), (TWO, THREE), config, False),
    }
    assert list(wanted_replicas(image, ONE, defaults)) == [("t", 0)]
    assert wanted_replicas(image, FIVE, defaults) == {}


def test_a_partition_on_its_way_is_on_the_old_nodes_and_learnt_by_the_new_ones() -> None:
    moving = TOPIC.moving(0, (FOUR, TWO)).moving(0, (FIVE, TWO))
    image = image_of(moving)
    key = moving.key(0)
    learners = {node for node in (ONE, TWO, FOUR, FIVE) if wanted_replicas(image, node, {})["t", 0].is_learner}
    assert learners == {FOUR, FIVE}
    assert wanted_replicas(image, FIVE, {})["t", 0].voters == (ONE, TWO)
    assert ("t", 0) not in wanted_replicas(image, THREE, {})
    assert move_target(image, key) == (FIVE, TWO)
    assert move_target(image, moving.key(1)) is None
    assert move_target(image, ReplicaKey(UUID(int=99), 0)) is None
    image.apply(*moving.moved(0).to_record())
    assert wanted_replicas(image, FIVE, {})["t", 0] == (key, (FIVE, TWO), config_of(TOPIC.settings, {}), False)
    assert ("t", 0) not in wanted_replicas(image, FOUR, {})
    assert ("t", 0) not in wanted_replicas(image, ONE, {})


def test_nothing_is_deleted_from_a_log_before_the_metadata_is_read() -> None:
    for topic in ("__cluster_metadata", "anything"):
        config = config_before_metadata(topic)
        assert (config.retention_ms, config.retention_bytes, config.compacts) == (-1, -1, False)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("compression.type", "producer", "gzip"),
        ("unclean.leader.election.enable", "false", "true"),
        ("max.compaction.lag.ms", str(2**63 - 1), "1000"),
        ("remote.storage.enable", "False", "true"),
        ("flush.messages", "1", "never"),
        ("message.format.version", "2.8-IV1", "old"),
        ("min.insync.replicas", "2", "0"),
        ("leader.replication.throttled.replicas", "0:1,1:2", "some"),
    ],
)
def test_a_setting_without_effect_is_taken_where_that_is_what_happens_anyway(
    name: str, allowed: str, refused: str
) -> None:
    assert config_of({name: allowed}, {}) == LogConfig()
    with pytest.raises(InvalidLogConfig, match=name):
        config_of({name: refused}, {})
    assert note_on(name)


def test_every_setting_without_effect_is_described_with_a_value_that_is_taken() -> None:
    described = describe_settings(LogConfig(), {}, 3)
    assert config_of({name: described[name] for name in (*FIXED_SETTINGS, "min.insync.replicas")}, {}) == LogConfig()
    assert described["min.insync.replicas"] == "2"
    assert describe_settings(LogConfig(), {"min.insync.replicas": "1"}, 3)["min.insync.replicas"] == "1"
    assert note_on("retention.ms") is None


def test_nobody_is_promised_more_copies_than_a_majority() -> None:
    for factor, copies in ((1, 1), (2, 2), (3, 2), (5, 3)):
        check_min_insync_replicas({"min.insync.replicas": str(copies)}, factor)
        with pytest.raises(InvalidLogConfig, match="majority"):
            check_min_insync_replicas({"min.insync.replicas": str(copies + 1)}, factor)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InvalidLogConfig, match=r"no\.such"):
        config_of({"no.such": "1"}, {})
