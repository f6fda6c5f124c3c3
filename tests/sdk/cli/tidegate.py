"""Running `tidegate` as people do: a process, its exit code, and what it wrote where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def tidegate(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 30
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env=environment | (env or {}),
        cwd=cwd,
    )
