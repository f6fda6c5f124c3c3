"""A wall clock that jumps under a running process, by libfaketime; its monotonic clock goes on as it should."""

from __future__ import annotations

from pathlib import Path

from tests.support.peers import require_peer


class JumpingClock:
    """The clock of the processes that are started with `env`.

    libfaketime 0.9.10 breaks `time.sleep` in them, which waits for a moment of the monotonic clock; asyncio, select and
    threads' waits are as they should be.
    """

    def __init__(self, path: Path) -> None:
        """`path` is a file that holds how far the clock is off."""
        self._path = path
        self.jump(0)

    @property
    def env(self) -> dict[str, str]:
        """Variables of a process that is to live by this clock; skips the test where libfaketime is missing."""
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: float) -> None:
        """Be off the true time by so much from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+f}s\n" if seconds else "+0s\n", encoding="utf-8")
        new.replace(self._path)  # at once: the processes read it at every look at the clock


def _library() -> Path:
    """The threads' variant, beside which the `faketime` command is installed."""
    prefix = Path(require_peer("faketime")).parent.parent
    found = sorted(prefix.glob("lib/**/libfaketimeMT.so.1"))
    assert found, f"{prefix} has the faketime command, but no libfaketimeMT.so.1"
    return found[0]
