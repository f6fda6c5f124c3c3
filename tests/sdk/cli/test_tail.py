"""`tidegate tail` as a process, on a real core."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sdk.cli.tidegate import tidegate
from tests.sdk.streams import Core
from tests.support.processes import free_port, wait_until


@contextmanager
def tailing(core: Core, stream: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tidegate", "tail", stream, "--core", core.address, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stuck = threading.Timer(60, process.kill)
        stuck.start()
        try:
            yield process
        finally:
            stuck.cancel()
            process.kill()


def test_a_line_shows_when_where_who_and_what(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 2, partitions=1)
    result = tidegate("tail", stream, "--core", core.address, "--from", "earliest", "--count", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        '2023-11-14T22:13:20.001Z 0:0 plant-7 d-0 plant/7/d-0 {"device": "d-0", "sequence": 1}',
        '2023-11-14T22:13:20.002Z 0:1 plant-7 d-0 plant/7/d-0 {"device": "d-0", "sequence": 2}',
    ]


def test_json_has_everything_of_an_event(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1)
    result = tidegate("tail", stream, "--core", core.address, "--from", "earliest", "--count", "1", "--json")
    assert json.loads(result.stdout) == {
        "stream": stream,
        "partition": 0,
        "offset": 0,
        "edge": "plant-7",
        "device": "d-0",
        "topic": "plant/7/d-0",
        "sequence": 1,
        "event_time": "2023-11-14T22:13:20.001Z",
        "event_time_ms": 1_700_000_000_001,
        "receive_time": "2023-11-14T22:13:21.001Z",
        "payload": '{"device": "d-0", "sequence": 1}',
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_a_device_sends_reaches_the_terminal_as_a_command(core: Core, as_json: bool) -> None:
    stream = core.new_stream(partitions=1)
    producer = core.producer()
    hostile = b"\x1b]0;owned\x07\r\n\xc2\x9b31m\xff\xe2\x80\xae"
    producer.produce(stream, key=b"d\x1b[2J", value=hostile, headers=[("edge", b"e\n"), ("topic", b"t\x07")])
    assert producer.flush(10) == 0
    arguments = ["tail", stream, "--core", core.address, "--from", "earliest", "--count", "1"]
    result = tidegate(*arguments, *(["--json"] if as_json else []))
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1
    assert result.stdout.rstrip("\n").isprintable()
    assert "payload_base64" in result.stdout if as_json else "\\x1b]0;owned\\x07\\r\\n\\x9b31m" in result.stdout


def test_an_event_of_no_year_is_shown(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1, time_ms=2**60)
    result = tidegate("tail", stream, "--core", core.address, "--from", "earliest", "--count", "1")
    assert result.stdout.startswith(f"{2**60} ms 0:0 plant-7")


def test_from_a_time(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 5, partitions=1)
    begin = "2023-11-14T22:13:20.004"  # UTC, as no zone is named
    result = tidegate("tail", stream, "--core", core.address, "--from", begin, "--count", "1")
    assert '"sequence": 4}' in result.stdout


def test_a_start_that_is_no_time_is_a_usage_error() -> None:
    result = tidegate("tail", "telemetry", "--core", "127.0.0.1:1", "--from", "yesterday")
    assert result.returncode == 2
    assert result.stderr == "error: --from: 'yesterday' is not earliest, latest or a time such as 2026-05-01T06:00\n"


def test_it_waits_for_what_comes_and_ctrl_c_ends_it_cleanly(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1)
    with tailing(core, stream, "--from", "earliest") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert '"sequence": 1}' in process.stdout.readline()
        core.produce(stream, 1, partitions=1, first=2)
        assert '"sequence": 2}' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_closed_pipe_ends_it_cleanly_while_events_come(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 5000, partitions=1)
    with tailing(core, stream, "--from", "earliest") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_closed_pipe_ends_it_cleanly_while_nothing_comes(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1)
    with tailing(core, stream, "--from", "earliest") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0


def test_a_second_ctrl_c_ends_it_though_its_output_is_stuck(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 5000, partitions=1)
    with tailing(core, stream, "--from", "earliest") as process:
        assert process.stdout is not None
        wait_until(lambda: _blocked_in_write(process.pid), 20, "the pipe is full")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: _ignores_or_defaults(process.pid), 20, "the first Ctrl-C was seen")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in {-signal.SIGINT, 130}


def _blocked_in_write(pid: int) -> bool:
    with open(f"/proc/{pid}/task/{pid}/wchan", encoding="ascii") as wchan:  # noqa: PTH123 # not a file on disk
        return "pipe" in wchan.read()


def _ignores_or_defaults(pid: int) -> bool:
    """Whether SIGINT is no longer caught."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 # not a file on disk
        caught = next(line for line in status if line.startswith("SigCgt")).split()[1]
    return not int(caught, 16) & (1 << (signal.SIGINT - 1))


def test_an_unknown_stream_is_refused(core: Core) -> None:
    stream = core.new_stream()
    result = tidegate("tail", f"{stream}s", "--core", core.address)
    assert result.returncode == 4
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error == f"error: {core.address} has no stream '{stream}s'"
    assert hint.startswith(f"hint: it has {stream}")


def test_a_core_that_does_not_answer_is_exit_code_3() -> None:
    address = f"127.0.0.1:{free_port()}"
    result = tidegate("tail", "telemetry", "--core", address, "--timeout", "1")
    assert (result.returncode, result.stdout) == (3, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: the core at {address} does not answer")
    assert hint.startswith("hint: ")


def test_debug_shows_where_an_error_came_from() -> None:
    result = tidegate("tail", "telemetry", "--core", "nowhere", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "error: core: 'nowhere' is not HOST:PORT" in result.stderr


def test_output_to_a_full_disk_is_an_error(core: Core) -> None:
    if not os.path.exists("/dev/full"):  # noqa: PTH110 # a device, not a path of ours
        pytest.skip("no /dev/full here")
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1)
    command = [sys.executable, "-m", "tidegate", "tail", stream, "--core", core.address]
    with open("/dev/full", "w", encoding="ascii") as full:  # noqa: PTH123 # as above
        result = subprocess.run(
            [*command, "--from", "earliest"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30
        )
    assert result.returncode == 1
    assert "error: " in result.stderr
