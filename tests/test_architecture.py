"""What ARCHITECTURE.md says of the code's shape, held by tests."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "wire/tidegate_wire",
    "core/tidegate_core",
    "edge/tidegate_edge",
    "bridge/tidegate_bridge",
    "sdk/tidegate",
    "firmware-sim/tidegate_sim",
)
LINES_MAX = 600
"""A longer file probably has two subjects."""

SANS_IO = (
    "wire/tidegate_wire/records/**/*.py",
    "wire/tidegate_wire/uplink/*.py",
    "wire/tidegate_wire/mqtt/decode.py",
    "wire/tidegate_wire/mqtt/encode.py",
    "wire/tidegate_wire/mqtt/topics.py",
    "wire/tidegate_wire/mqtt/session.py",
    "wire/tidegate_wire/mqtt/broker.py",
    "edge/tidegate_edge/uplink/window.py",
    "bridge/tidegate_bridge/lane.py",
    "bridge/tidegate_bridge/batch_checks.py",
    "bridge/tidegate_bridge/verdicts.py",
    "bridge/tidegate_bridge/streams.py",
    "bridge/tidegate_bridge/backoff.py",
    "bridge/tidegate_bridge/kafka/api.py",
    "bridge/tidegate_bridge/kafka/produce.py",
    "bridge/tidegate_bridge/kafka/cluster.py",
    "core/tidegate_core/producers.py",
    "core/tidegate_core/groups/group.py",
    "core/tidegate_core/groups/member.py",
    "core/tidegate_core/groups/coordinator.py",
    "core/tidegate_core/groups/records.py",
    "core/tidegate_core/log/control.py",
    "core/tidegate_core/log/partition_snapshot.py",
    "core/tidegate_core/metadata/assignments.py",
    "core/tidegate_core/metadata/image.py",
    "core/tidegate_core/metadata/placement.py",
    "core/tidegate_core/metadata/snapshot.py",
    "core/tidegate_core/metadata/topic_settings.py",
    "core/tidegate_core/raft/*.py",
    "core/tidegate_core/replication/codec.py",
    "core/tidegate_core/replication/fields.py",
    "core/tidegate_core/replication/messages.py",
    "core/tidegate_core/replication/leaders.py",
    "core/tidegate_core/replication/reassignment.py",
    "core/tidegate_core/replication/throttle.py",
    "core/tidegate_core/protocol/*.py",
    "firmware-sim/tidegate_sim/device.py",
)
"""Protocol code: clock, randomness and bytes are given in."""

IO_MODULES = {"asyncio", "socket", "ssl", "time", "random", "secrets", "threading", "subprocess", "selectors"}


def _sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("pattern", SANS_IO)
def test_protocol_code_does_no_io(pattern: str) -> None:
    paths = list(ROOT.glob(pattern))
    assert paths, f"{pattern} names no file"
    for path in paths:
        assert not _imported(path) & IO_MODULES, path


def test_no_file_has_two_subjects() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _sources()}
    assert {path: lines for path, lines in long.items() if lines > LINES_MAX} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in _sources() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_every_file_named_in_architecture_md_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:wire|core|edge|bridge|sdk|firmware-sim|tests|docs|bench)/[\w./-]+)`", text))
    assert named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_decision_record_is_listed() -> None:
    directory = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (directory / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in directory.glob("[0-9]*.md")}


def test_nothing_unfinished_is_committed() -> None:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-nE", r"\b(TODO|FIXME|XXX|NotImplementedError)\b", "--", "*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in found.stdout.splitlines() if not line.startswith("tests/test_architecture.py")]
    assert lines == []
