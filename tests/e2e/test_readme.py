"""README.md: what it tells people to type is typed, on other ports and in another folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.peers import require_peer
from tests.support.processes import Process, accepts_connections, free_port, wait_until

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BY_HAND = TEXT[TEXT.index("## Try it by hand") :]
COMMANDS = [line.strip() for line in BY_HAND.split("```")[0].splitlines() if line.startswith("    ")]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PAYLOAD = '{"temperature": 71.3}'


class Typed:
    """Runs README's commands with its ports and folder replaced."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self.ports = {number: free_port() for number in (9092, 1883, 1884)}

    def here(self, text: str) -> str:
        for number, port in self.ports.items():
            text = re.sub(rf"\b{number}\b", str(port), text)
        return text.replace("/tmp/tidegate", str(self._directory))

    def words(self, start: str) -> list[str]:
        """The one command that begins so, as a shell would split it."""
        (command,) = (line for line in COMMANDS if line.startswith(start))
        words = shlex.split(self.here(command.removesuffix("&")))
        return [sys.executable, "-m", *words] if words[0] == "tidegate" else words

    def in_background(self, start: str, port: int) -> None:
        process = self._stack.enter_context(Process(self.words(start), self._directory / f"{port}.log"))
        wait_until(lambda: not process.running() or accepts_connections(self.ports[port]), 30, f"{start} listens")
        assert process.running(), process.output()

    def output(self, words: list[str], expected: str) -> str:
        """What a command prints until `expected` is there."""
        log = self._directory / "output.log"
        log.unlink(missing_ok=True)
        with Process(words, log) as process:
            wait_until(lambda: not process.running() or expected in process.output(), 30, f"{words} prints {expected}")
            return process.output()


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    with ExitStack() as stack:
        typed = Typed(tmp_path_factory.mktemp("readme"), stack)
        typed.in_background("tidegate core", 9092)
        typed.in_background("tidegate bridge", 1884)
        typed.in_background("tidegate edge", 1883)
        require_peer("mosquitto_pub")
        subprocess.run(typed.words("mosquitto_pub"), check=True, timeout=30)
        yield typed


def test_tail_shows_what_mosquitto_pub_published(typed: Typed) -> None:
    assert f"sensors/boiler {PAYLOAD}" in typed.output(typed.words("tidegate tail"), PAYLOAD)


def test_kcat_shows_the_event_with_its_headers(typed: Typed) -> None:
    require_peer("kcat")
    printed = typed.output(typed.words("kcat"), PAYLOAD)
    assert re.search(r"edge=oslo-3,topic=sensors/boiler,sequence=1,received=\d+ " + re.escape(PAYLOAD), printed)


def test_the_consumer_prints_the_event(typed: Typed) -> None:
    printed = typed.output([sys.executable, "-u", "-c", typed.here(PROGRAM)], "71.3")
    assert "oslo-3" in printed
    assert "sensors/boiler {'temperature': 71.3}" in printed


def test_the_first_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^ {4}make (\w+)", TEXT, re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
