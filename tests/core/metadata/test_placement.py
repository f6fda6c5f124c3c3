"""Where new partitions go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_core.metadata.image import Replicas
from tidegate_core.metadata.placement import check_assignment, check_count, check_room, place_partitions
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode


def nodes(count: int) -> list[NodeId]:
    return [NodeId(10 + number) for number in range(count)]


def spread(counts: Counter[NodeId], among: list[NodeId]) -> int:
    values = [counts[node] for node in among]
    return max(values) - min(values)


def replicas_of(placed: tuple[Replicas, ...]) -> Counter[NodeId]:
    return Counter(node for replicas in placed for node in replicas)


def leaders_of(placed: tuple[Replicas, ...]) -> Counter[NodeId]:
    return Counter(replicas[0] for replicas in placed)


@given(st.integers(1, 9), st.integers(1, 60), st.data())
def test_a_topic_on_an_empty_cluster_is_spread_evenly(node_count: int, count: int, data: st.DataObject) -> None:
    factor = data.draw(st.integers(1, node_count))
    placed = place_partitions(nodes(node_count), count, factor)
    assert len(placed) == count
    assert all(len(set(replicas)) == factor for replicas in placed)
    assert spread(replicas_of(placed), nodes(node_count)) <= 1
    assert spread(leaders_of(placed), nodes(node_count)) <= 1
    assert placed == place_partitions(nodes(node_count)[::-1], count, factor)


@given(st.integers(2, 7), st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=12))
def test_many_topics_are_spread_too_and_above_all_their_leaders(node_count: int, topics: list[tuple[int, int]]) -> None:
    everything: tuple[Replicas, ...] = ()
    for count, factor in topics:
        placed = place_partitions(nodes(node_count), count, min(factor, node_count), in_all=everything)
        assert spread(replicas_of(placed), nodes(node_count)) <= 2
        assert spread(leaders_of(placed), nodes(node_count)) <= 1
        everything += placed
    assert spread(replicas_of(everything), nodes(node_count)) <= 5
    assert spread(leaders_of(everything), nodes(node_count)) <= 2


def test_partitions_that_are_added_fill_up_what_the_topic_lacks() -> None:
    three = nodes(3)
    first = place_partitions(three, 2, 1)
    more = place_partitions(three, 1, 1, in_topic=first, in_all=first)
    assert set(replicas_of(first + more).values()) == {1}


def test_a_node_that_joined_gets_its_share_of_a_new_topic_and_not_all_of_it() -> None:
    old = place_partitions(nodes(3), 30, 3)
    placed = place_partitions(nodes(4), 8, 3, in_all=old)
    assert spread(replicas_of(placed), nodes(4)) <= 1
    assert spread(leaders_of(placed), nodes(4)) <= 1


def test_the_same_followers_are_not_always_together() -> None:
    """Or else two nodes that die together take more partitions with them than they need to."""
    placed = place_partitions(nodes(6), 60, 3)
    assert len({frozenset(replicas) for replicas in placed}) >= 6


def test_nodes_that_are_down_are_taken_only_where_the_others_are_not_enough() -> None:
    down = {NodeId(10)}
    placed = place_partitions(nodes(4), 12, 3, is_alive=lambda node: node not in down)
    assert 10 not in replicas_of(placed)
    placed = place_partitions(nodes(3), 6, 3, is_alive=lambda node: node not in down)
    assert replicas_of(placed)[NodeId(10)] == 6
    assert leaders_of(placed) == {11: 3, 12: 3}


@pytest.mark.parametrize("factor", [0, -1, 4, 100])
def test_a_replication_factor_that_can_not_be_is_refused(factor: int) -> None:
    with pytest.raises(KafkaError) as raised:
        place_partitions(nodes(3), 1, factor)
    assert raised.value.code is ErrorCode.invalid_replication_factor


@pytest.mark.parametrize("wanted", [(), (10, 10), (10, 99)])
def test_an_assignment_that_can_not_be_is_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(KafkaError) as raised:
        check_assignment(nodes(3), tuple(NodeId(node) for node in wanted))
    assert raised.value.code is ErrorCode.invalid_replica_assignment


def test_a_node_takes_so_many_replicas_and_no_more() -> None:
    check_room([(NodeId(1), NodeId(2))] * 5, 5)
    with pytest.raises(KafkaError, match="node 1 would have 6"):
        check_room([(NodeId(1), NodeId(2))] * 5 + [(NodeId(1),)], 5)
    check_count([(NodeId(1),)] * 4, 2, 3, nodes=2, replicas_max=5)
    with pytest.raises(KafkaError) as raised:
        check_count([], 2**31, 3, nodes=3, replicas_max=4000)  # told without placing them
    assert raised.value.code is ErrorCode.policy_violation
