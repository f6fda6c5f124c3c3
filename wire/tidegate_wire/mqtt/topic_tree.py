"""A trie over topic levels. It holds filters and is asked with a name, or holds names and is asked with a filter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class _Node(Generic[V]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.value: V | None = None


class TopicTree(Generic[V]):
    """One value for each path of topic levels."""

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, path: str) -> V | None:
        """The value at exactly `path`."""
        node: _Node[V] | None = self._root
        for level in path.split("/"):
            node = node.children.get(level) if node is not None else None
        return None if node is None else node.value

    def set(self, path: str, value: V) -> None:
        """Put `value` at `path`, in place of what was there."""
        node = self._root
        for level in path.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        self._size += node.value is None
        node.value = value

    def remove(self, path: str) -> V | None:
        """Take the value at `path` out, and the levels that lead to nothing else."""
        levels = path.split("/")
        nodes = [self._root]
        for level in levels:
            child = nodes[-1].children.get(level)
            if child is None:
                return None
            nodes.append(child)
        removed = nodes[-1].value
        self._size -= removed is not None
        nodes[-1].value = None
        for parent, level in zip(nodes[-2::-1], reversed(levels), strict=True):
            child = parent.children[level]
            if child.children or child.value is not None:
                break
            del parent.children[level]
        return removed

    def matching(self, topic: str) -> list[V]:
        """The values of the stored filters that match a topic name (MQTT 5, section 4.7)."""
        found: list[V] = []
        nodes = [self._root]
        hidden = topic.startswith("$")  # a leading wildcard does not match these
        for depth, level in enumerate(topic.split("/")):
            wildcards = depth > 0 or not hidden
            following: list[_Node[V]] = []
            for node in nodes:
                children = node.children
                if (child := children.get(level)) is not None:
                    following.append(child)
                if wildcards:
                    if (child := children.get("+")) is not None:
                        following.append(child)
                    if (child := children.get("#")) is not None and child.value is not None:
                        found.append(child.value)
            nodes = following
            if not nodes:
                return found
        for node in nodes:
            if node.value is not None:
                found.append(node.value)
            # "a/#" matches "a" too
            if (child := node.children.get("#")) is not None and child.value is not None:
                found.append(child.value)
        return found

    def matched_by(self, topic_filter: str) -> list[V]:
        """The values of the stored topic names that a filter matches."""
        nodes = [self._root]
        for depth, level in enumerate(topic_filter.split("/")):
            if level == "#":
                return [value for node in nodes for value in _below(node, hide=depth == 0)]
            if level == "+":
                nodes = [
                    child
                    for node in nodes
                    for name, child in node.children.items()
                    if depth > 0 or not name.startswith("$")
                ]
            else:
                nodes = [child for node in nodes if (child := node.children.get(level)) is not None]
        return [node.value for node in nodes if node.value is not None]


def _below(root: _Node[V], *, hide: bool) -> Iterator[V]:
    """The values of `root` and all nodes under it; `hide` leaves out children whose name begins with $."""
    if root.value is not None:
        yield root.value
    waiting = [child for name, child in root.children.items() if not (hide and name.startswith("$"))]
    while waiting:
        node = waiting.pop()
        if node.value is not None:
            yield node.value
        waiting.extend(node.children.values())
