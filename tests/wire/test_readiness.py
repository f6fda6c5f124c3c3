from __future__ import annotations

import json
from pathlib import Path

from tidegate_wire.readiness import announce_ready


def test_the_facts_stand_in_the_file_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    announce_ready(path, listen="127.0.0.1:1883", node_id=1)
    assert json.loads(path.read_text()) == {"listen": "127.0.0.1:1883", "node_id": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_written_where_none_is_named(tmp_path: Path) -> None:
    announce_ready(None, listen="127.0.0.1:1883")
    assert list(tmp_path.iterdir()) == []
