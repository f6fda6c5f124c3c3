"""How a part tells whoever started it that it listens, and where: one small JSON file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def announce_ready(path: Path | None, **facts: Any) -> None:
    """Write `facts` as one JSON object to `path` (nothing where it is None); readers never see half of it.

    Raises:
        OSError: the file can't be written.
    """
    if path is None:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    partial.replace(path)
