"""What a person sees of the demo: a picture that moves on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.box import ROUNDED
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidegate.demo.counts import Counts
from tidegate.demo.proof import Proof

PLAIN_INTERVAL_S: Final = 1.0
"""Without a terminal, a line of counts at most this often."""

PICTURE_WIDTH: Final = 80
"""At most; the width of a terminal that nobody made wider."""

_WATER: Final = "cyan"


class Display:
    """Tells the story on stdout, or (where stdout belongs to data) on stderr."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._console = Console(stderr=to_stderr, highlight=False)
        self._start_s = time.monotonic()
        self._counts = Counts()
        self._uplink_is_cut = False
        self._plain_at_s = 0.0
        self._live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the demo runs; on a terminal the picture is drawn over and over."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._picture(), console=self._console, refresh_per_second=8, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def headline(self, text: str) -> None:
        """The first line."""
        self._print(Text.assemble(("Tidegate", f"bold {_WATER}"), "  ", text), f"Tidegate  {text}")

    def phase(self, text: str, *, uplink_is_cut: bool = False) -> None:
        """Say what happens now; it stays on the screen with its time."""
        self._uplink_is_cut = uplink_is_cut
        stamp = f"{time.monotonic() - self._start_s:5.1f} s"
        mark = "red" if uplink_is_cut else _WATER
        self._print(Text.assemble((stamp, "dim"), ("  ● ", mark), text), f"{stamp}  {text}")

    def counts(self, counts: Counts) -> None:
        """Show new counts."""
        self._counts = counts
        if self._live is not None:
            self._live.update(self._picture())
            return
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s >= self._plain_at_s + PLAIN_INTERVAL_S:
            self._plain_at_s = now_s
            self._say(
                f"{now_s - self._start_s:5.1f} s    published {counts.published:>7,}   buffered {counts.buffered:>7,}"
                f"   committed {counts.committed:>7,}   consumed {counts.consumed:>7,}"
            )

    def result(self, proof: Proof, seconds: float) -> None:
        """The table of the proof, and one line that says what it means."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(justify="left")
        table.add_column(justify="right")
        table.add_column(style="dim")
        for name, count, meaning, must_be_zero in proof.rows():
            style = ("bold red" if count else "bold green") if must_be_zero else "bold"
            table.add_row(name, Text(f"{count:,}", style), meaning)
        self._console.print()
        self._console.print(table)
        self._console.print()
        mark, style = ("✓", "bold green") if proof.holds else ("✗", "bold red")
        self._console.print(Text.assemble((f"{mark} {proof.sentence()}", style), (f"  {seconds:.0f} s in all.", "dim")))

    def data(self, line: str) -> None:
        """A line of data, on stdout."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _print(self, rich_text: RenderableType, plain: str) -> None:
        if self._console.is_terminal:
            self._console.print(rich_text)
        else:
            self._say(plain)

    def _say(self, line: str) -> None:
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def _picture(self) -> Panel:
        counts, cut = self._counts, self._uplink_is_cut
        flow = Table.grid(expand=True)
        for column in range(7):
            flow.add_column(justify="center", ratio=1 if column % 2 == 0 else None)
        pipe, broken = Text("━━━━━▶", _WATER), Text("━━✂━━▶", "bold red")
        names = [Text(name, f"bold {_WATER}") for name in ("devices", "edges", "core", "consumers")]
        flow.add_row(names[0], pipe, names[1], broken if cut else pipe, names[2], pipe, names[3])
        numbers = [
            Text(f"{counts.published:,}", "bold"),
            Text(f"{counts.buffered:,}", "bold yellow" if counts.buffered else "bold"),
            Text(f"{counts.committed:,}", "bold"),
            Text(f"{counts.consumed:,}", "bold"),
        ]
        flow.add_row(numbers[0], "", numbers[1], "", numbers[2], "", numbers[3])
        labels = [Text(label, "dim") for label in ("published", "buffered", "committed", "consumed")]
        flow.add_row(labels[0], "", labels[1], "", labels[2], "", labels[3])
        stamp, colour = f"{time.monotonic() - self._start_s:.0f} s", "red" if cut else _WATER
        return Panel(
            flow,
            box=ROUNDED,
            border_style=colour,
            subtitle=stamp,
            width=min(PICTURE_WIDTH, self._console.width),
            padding=(0, 1),
        )
