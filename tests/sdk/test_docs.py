"""docs/sdk.md: its programs run, and it leaves nothing of the public API out."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate
import tidegate.errors
from tests.sdk.streams import Core
from tests.support.processes import wait_until
from tidegate import Consumer, ConsumerLimits, Event

TEXT = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def telemetry(core: Core) -> Core:
    core.produce("telemetry", 100)
    return core


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_of_the_documentation_runs(telemetry: Core, tmp_path: Path, number: int) -> None:
    program = PROGRAMS[number].replace("127.0.0.1:9092", telemetry.address)
    assert program != PROGRAMS[number]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=file, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: process.poll() is not None or output.stat().st_size > 0, 30, "the program prints")
        finally:
            process.kill()
            process.wait()
    printed = output.read_text()
    assert printed
    assert "Traceback" not in printed, printed


def test_the_documentation_has_programs() -> None:
    assert len(PROGRAMS) >= 5


@pytest.mark.parametrize("name", sorted(name for name in (*dir(Event), *dir(Consumer)) if not name.startswith("_")))
def test_every_attribute_is_documented(name: str) -> None:
    assert re.search(rf"[`.]{name}\b", TEXT)


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for callable_ in (Consumer, ConsumerLimits)
        for name in inspect.signature(callable_).parameters
        if name != "streams"
    ),
)
def test_every_parameter_is_documented(name: str) -> None:
    assert re.search(rf"[`.(, ]{name}\b", TEXT)


@pytest.mark.parametrize("name", [*tidegate.__all__, *tidegate.errors.__all__])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert hasattr(tidegate, name) or hasattr(tidegate.errors, name)
    assert re.search(rf"\b{name}\b", TEXT)
