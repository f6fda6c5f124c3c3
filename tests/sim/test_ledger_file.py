"""The fleet's ledger: each event once, whole lines only, one fleet at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate_sim.errors import FleetFilesError
from tidegate_sim.ledger_file import LedgerAccount, LedgerFile
from tidegate_wire.ledger import LedgerEntry, read_ledger


def test_an_event_sent_and_acknowledged_again_is_entered_once(tmp_path: Path) -> None:
    account = LedgerAccount(["d-0001", "d-0002"])
    for sequence in (1, 2, 1, 2):
        account.on_publish(0, sequence)
    account.on_publish(1, 1)
    for sequence in (2, 2, 1):
        account.on_acknowledged(0, sequence)
    assert (account.published, account.acknowledged, account.outstanding) == (3, 2, 1)
    path = tmp_path / "ledger.jsonl"
    ledger = LedgerFile(path)
    ledger.write(account.take_lines())
    ledger.write(account.take_lines())
    ledger.close()
    assert list(read_ledger(path)) == [
        LedgerEntry("d-0001", 1, "published"),
        LedgerEntry("d-0001", 2, "published"),
        LedgerEntry("d-0002", 1, "published"),
        LedgerEntry("d-0001", 2, "acknowledged"),
        LedgerEntry("d-0001", 1, "acknowledged"),
    ]


def test_a_line_cut_by_a_crash_is_removed_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = LedgerEntry("d-0001", 1, "published")
    path.write_text(whole.to_line() * 100 + whole.to_line()[:20], encoding="utf-8")
    ledger = LedgerFile(path)
    ledger.write(LedgerEntry("d-0001", 2, "published").to_line())
    ledger.close()
    entries = list(read_ledger(path))
    assert entries[-1].sequence == 2
    assert len(entries) == 101


def test_two_fleets_never_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = LedgerFile(path)
    with pytest.raises(FleetFilesError, match="another fleet is writing"):
        LedgerFile(path)
    ledger.close()
    LedgerFile(path).close()
