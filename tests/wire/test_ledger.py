from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_wire.ledger import LedgerEntry, LedgerError, LedgerState, read_ledger

states: st.SearchStrategy[LedgerState] = st.sampled_from(["published", "acknowledged"])
entries = st.builds(LedgerEntry, st.text(), st.integers(min_value=1), states)


@given(st.lists(entries))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, written: list[LedgerEntry]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    path.write_text("".join(entry.to_line() for entry in written), encoding="utf-8", newline="")
    assert list(read_ledger(path)) == written


def test_a_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = LedgerEntry("d", 1, "published")
    path.write_text(whole.to_line() + LedgerEntry("d", 2, "published").to_line()[:-1])
    assert list(read_ledger(path)) == [whole]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "{}",
        '{"device": "d", "sequence": 1}',
        '{"device": "d", "sequence": "1", "state": "published"}',
        '{"device": 7, "sequence": 1, "state": "published"}',
        '{"device": "d", "sequence": 1, "state": "lost"}',
    ],
)
def test_another_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(LedgerEntry("d", 1, "published").to_line() + line + "\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 2"):
        list(read_ledger(path))
