from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_wire.uplink.event import partition_for
from tidegate_wire.uplink.topics import UplinkKind, filter_for, is_edge_id, parse_topic, topic


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True), st.sampled_from(UplinkKind))
def test_a_topic_names_its_edge_and_kind(edge: str, kind: UplinkKind) -> None:
    assert is_edge_id(edge)
    assert parse_topic(topic(edge, kind)) == (edge, kind)


@pytest.mark.parametrize(
    "text",
    ["", "tidegate/v1/e", "tidegate/v2/e/batch", "tidegate/v1//batch", "tidegate/v1/e/other", "tidegate/v1/a/b/batch"],
)
def test_other_topics_are_not_uplink_topics(text: str) -> None:
    assert parse_topic(text) is None


@pytest.mark.parametrize("edge", ["", "-a", "a b", "a/b", "a+", "#", "é", "x" * 129])
def test_an_edge_id_can_stand_in_a_topic(edge: str) -> None:
    assert not is_edge_id(edge)


def test_the_filter_stands_for_every_edge() -> None:
    assert filter_for(UplinkKind.BATCH) == "tidegate/v1/+/batch"


@given(st.text(max_size=30), st.integers(1, 1000))
def test_a_key_keeps_its_partition(key: str, partitions: int) -> None:
    assert 0 <= partition_for(key, partitions) < partitions
    assert partition_for(key, partitions) == partition_for(key, partitions)


def test_partitions_of_known_keys_never_change() -> None:
    assert [partition_for(f"edge-{i}", 8) for i in range(8)] == [5, 3, 1, 7, 4, 2, 0, 6]
