"""`tidegate verify` as a process: planted faults in a real core are found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.sdk.cli.tidegate import tidegate
from tests.sdk.streams import Core
from tests.support.processes import free_port
from tidegate_wire.ledger import LedgerEntry


def write_ledger(path: Path, acknowledged: Iterable[tuple[str, int]]) -> Path:
    lines = []
    for device, sequence in acknowledged:
        lines += [LedgerEntry(device, sequence, "published"), LedgerEntry(device, sequence, "acknowledged")]
    path.write_text("".join(entry.to_line() for entry in lines))
    return path


def write_stream(core: Core, events: Iterable[tuple[str, int]]) -> str:
    stream = core.new_stream(partitions=2)
    producer = core.producer()
    for device, sequence in events:
        payload = json.dumps({"device": device, "sequence": sequence}).encode()
        producer.produce(stream, value=payload, partition=0 if device == "a" else 1)
    assert producer.flush(10) == 0
    return stream


EVENTS = [(device, sequence) for device in ("a", "b") for sequence in range(1, 51)]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return write_ledger(tmp_path / "ledger.jsonl", EVENTS)


def test_a_stream_that_has_everything_once_and_in_order(core: Core, ledger: Path) -> None:
    stream = write_stream(core, EVENTS)
    result = tidegate("verify", "--core", core.address, "--ledger", str(ledger), "--stream", stream)
    assert (result.returncode, result.stderr) == (0, "")
    counts = dict(line[:26].rsplit(maxsplit=1) for line in result.stdout.splitlines()[:6])
    assert counts == {
        "published": "100",
        "acknowledged": "100",
        "read": "100",
        "lost": "0",
        "duplicated": "0",
        "out of order": "0",
    }
    assert result.stdout.splitlines()[-1] == "Every acknowledged event was read exactly once, in order."


def test_a_loss_a_double_and_a_swap_are_found_with_their_offsets(core: Core, ledger: Path) -> None:
    events = list(EVENTS)
    events.remove(("a", 17))
    events.insert(events.index(("a", 30)), ("a", 5))
    place = events.index(("b", 8))
    events[place], events[place + 1] = events[place + 1], events[place]
    stream = write_stream(core, events)
    arguments = ["verify", "--core", core.address, "--ledger", str(ledger), "--stream", stream]

    result = tidegate(*arguments, "--json")
    assert result.returncode == 5
    assert result.stderr == "error: 1 lost, 1 duplicated, 1 out of order\n"
    counts = json.loads(result.stdout)
    assert (counts["published"], counts["acknowledged"], counts["read"]) == (100, 100, 99)
    assert (counts["lost"], counts["duplicated"], counts["out_of_order"]) == (1, 1, 1)
    assert counts["lost_examples"] == [{"device": "a", "sequence": 17}]
    assert counts["duplicated_examples"] == [
        {"device": "a", "sequence": 5, "stream": stream, "partition": 0, "offset": 28}
    ]
    (misplaced,) = counts["out_of_order_examples"]
    assert (misplaced["sequence"], misplaced["offset"], misplaced["after_sequence"]) == (8, 8, 9)

    result = tidegate(*arguments)
    assert result.returncode == 5
    assert "lost: a #17" in result.stdout
    assert f"duplicated: a #5 again at {stream}[0] offset 28" in result.stdout
    assert f"out of order: b #8 at {stream}[1] offset 8, after #9 at offset 7" in result.stdout


def test_several_ledgers_and_streams_are_taken_together(core: Core, tmp_path: Path) -> None:
    ledgers = [
        write_ledger(tmp_path / f"{device}.jsonl", [event for event in EVENTS if event[0] == device])
        for device in ("a", "b")
    ]
    streams = [write_stream(core, EVENTS[:50]), write_stream(core, EVENTS[50:])]
    arguments = [option for path in ledgers for option in ("--ledger", str(path))]
    arguments += [option for stream in streams for option in ("--stream", stream)]
    result = tidegate("verify", "--core", core.address, *arguments, "--json")
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["read"] == 100


def test_events_of_others_do_not_count(core: Core, ledger: Path) -> None:
    stream = write_stream(core, [*EVENTS, ("stranger", 1), ("stranger", 1)])
    result = tidegate("verify", "--core", core.address, "--ledger", str(ledger), "--stream", stream, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["not_in_ledger"] == 2


def test_a_ledger_that_is_not_there_or_not_one_is_a_usage_error(core: Core, tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.jsonl", tmp_path / "broken.jsonl"
    broken.write_text('{"device": "a", "sequence": 1, "state": "published"}\nhello\n')
    result = tidegate("verify", "--core", core.address, "--ledger", str(missing))
    assert (result.returncode, result.stderr) == (
        2,
        f"error: --ledger: {missing}: can't be read: No such file or directory\n",
    )
    result = tidegate("verify", "--core", core.address, "--ledger", str(broken))
    assert result.returncode == 2
    assert f"{broken}, line 2" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_core_that_does_not_answer_is_exit_code_3(ledger: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = tidegate("verify", "--core", address, "--ledger", str(ledger), "--timeout", "1")
    assert (result.returncode, result.stdout) == (3, "")


def test_a_stream_that_is_not_there_is_refused(core: Core, ledger: Path) -> None:
    result = tidegate("verify", "--core", core.address, "--ledger", str(ledger), "--stream", "nothing")
    assert (result.returncode, result.stdout) == (4, "")
