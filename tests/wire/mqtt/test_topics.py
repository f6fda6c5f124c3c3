"""Topic filters match as the specification says, also through the tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_wire.mqtt.topic_tree import TopicTree
from tidegate_wire.mqtt.topics import SharedFilter, split_shared

_level = st.sampled_from(["a", "b", "", "$s"])
names = st.lists(_level, min_size=1, max_size=4).map("/".join).filter(bool)
filters = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]),
    st.lists(_level | st.just("+"), max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7, level by level: the model that the tree is held to."""
    filter_levels, topic_levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and filter_levels[0] in ("+", "#"):
        return False
    for index, level in enumerate(filter_levels):
        if level == "#":
            return True
        if index >= len(topic_levels) or level not in ("+", topic_levels[index]):
            return False
    return len(filter_levels) == len(topic_levels)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "a/b", True),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/uptime", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/b", "a/B", False),
    ],
)
def test_examples_of_the_specification(topic_filter: str, topic: str, expected: bool) -> None:
    stored: TopicTree[str] = TopicTree()
    stored.set(topic_filter, "x")
    assert stored.matching(topic) == (["x"] if expected else [])
    named: TopicTree[str] = TopicTree()
    named.set(topic, "x")
    assert named.matched_by(topic_filter) == (["x"] if expected else [])
    assert matches(topic_filter, topic) is expected


@given(st.sets(filters), names)
def test_the_filters_of_a_tree_that_match_a_name(stored: set[str], topic: str) -> None:
    tree: TopicTree[str] = TopicTree()
    for topic_filter in stored:
        tree.set(topic_filter, topic_filter)
    assert sorted(tree.matching(topic)) == sorted(one for one in stored if matches(one, topic))


@given(st.sets(names), filters)
def test_the_names_of_a_tree_that_a_filter_matches(stored: set[str], topic_filter: str) -> None:
    tree: TopicTree[str] = TopicTree()
    for name in stored:
        tree.set(name, name)
    assert sorted(tree.matched_by(topic_filter)) == sorted(one for one in stored if matches(topic_filter, one))


@given(st.lists(st.tuples(st.booleans(), names)))
def test_a_tree_that_was_changed_holds_what_a_dictionary_would(steps: list[tuple[bool, str]]) -> None:
    tree: TopicTree[int] = TopicTree()
    model: dict[str, int] = {}
    for number, (is_set, name) in enumerate(steps):
        if is_set:
            tree.set(name, number)
            model[name] = number
        else:
            assert tree.remove(name) == model.pop(name, None)
        assert len(tree) == len(model)
        assert {name: tree.get(name) for name in model} == model
    for name in list(model):
        tree.remove(name)
    assert not tree._root.children, "no empty levels stay behind"


def test_shared_filters_are_split_at_the_share_name() -> None:
    assert split_shared("$share/g/a/+") == SharedFilter("g", "a/+")
    assert split_shared("$share/g//a") == SharedFilter("g", "/a")
    assert split_shared("$SYS/a") is None
    assert split_shared("$shared/g/a") is None
