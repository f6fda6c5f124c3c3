"""The command as a whole: help, versions, what it loads, how it fails."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from tests.sdk.cli.tidegate import tidegate

COMMANDS = ("core", "bridge", "edge", "sim", "tail", "verify", "demo")
HEAVY = (
    "aiosqlite",
    "confluent_kafka",
    "cramjam",
    "kio",
    "paho",
    "structlog",
    "tidegate.demo",
    "tidegate_bridge",
    "tidegate_core",
    "tidegate_edge",
    "tidegate_sim",
    "tidegate_wire.kafka",
    "tidegate_wire.mqtt",
    "zstandard",
)


def test_help_names_every_command_and_shows_examples_first() -> None:
    result = tidegate("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    usage, examples, *_ = [line for line in result.stdout.splitlines() if line.strip()]
    assert usage.startswith("Usage: tidegate")
    assert examples.strip() == "Examples:"
    listed = result.stdout.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_examples_first_and_that_call_itself(command: str) -> None:
    result = tidegate(command, "--help")
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0].startswith(f"Usage: tidegate {command} ")
    assert lines[1] == "Examples:"
    assert f"tidegate {command}" in lines[2]
    assert "Options:" in lines


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tail", "--help"], ["verify", "--help"]])
def test_help_loads_no_part_and_no_kafka_client(arguments: list[str]) -> None:
    script = (
        "import sys, tidegate.cli\n"
        "try:\n    tidegate.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = sorted(name for name in {HEAVY!r} if name in sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    result = tidegate("--version")
    assert result.stdout == f"tidegate {importlib.metadata.version('tidegate')}\n"


def test_no_command_shows_the_help_and_is_a_usage_error() -> None:
    result = tidegate()
    assert result.returncode == 2
    assert "Commands:" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["tial"], "tail"), (["core", "--lisen", "x"], "--listen"), (["verify", "--ledgr", "x"], "--ledger")],
)
def test_a_slip_of_the_pen_is_answered_with_the_nearest(arguments: list[str], nearest: str) -> None:
    result = tidegate(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert nearest in result.stderr


@pytest.mark.parametrize("command", ["core", "bridge", "edge"])
def test_a_missing_package_is_one_line_that_says_what_to_install(command: str) -> None:
    script = (
        "import sys, tidegate.cli\n"
        "for name in ('kio', 'aiosqlite', 'paho', 'crc32c', 'zstandard'):\n    sys.modules[name] = None\n"
        "tidegate.cli.main()\n"
    )
    needed = {
        "core": ["--node-id", "1", "--data-dir", "unused"],
        "bridge": ["--listen", "127.0.0.1:0", "--core", "127.0.0.1:1"],
        "edge": ["--id", "a", "--data-dir", "unused", "--uplink", "mqtt://127.0.0.1:1"],
    }
    arguments = [command, *needed[command]]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert f"pip install 'tidegate[{command}]'" in result.stderr


def test_a_missing_kafka_client_is_said_by_the_command_and_by_the_import() -> None:
    hide = "import sys\nsys.modules['confluent_kafka'] = None\n"
    command = [sys.executable, "-c", hide + "import tidegate.cli\ntidegate.cli.main()"]
    result = subprocess.run(
        [*command, "tail", "telemetry", "--core", "127.0.0.1:1"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "pip install 'tidegate[sdk]'" in result.stderr
    result = subprocess.run(
        [sys.executable, "-c", hide + "from tidegate import Consumer"], capture_output=True, text=True, check=False
    )
    assert "pip install 'tidegate[sdk]'" in result.stderr.splitlines()[-1]
