"""What a file system may be asked twice, and what not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from tidegate_core.log.files import replace_file, sync_directory


def _broken_disk(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_directory_whose_sync_failed_is_not_taken_for_synced_when_the_next_one_works(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with patch.object(os, "fsync", _broken_disk), pytest.raises(OSError, match="Input/output error"):
        sync_directory(tmp_path)
    with pytest.raises(OSError, match="earlier sync"):
        sync_directory(tmp_path)
    with pytest.raises(OSError, match="earlier sync"):
        replace_file(tmp_path / "checkpoint", b"new", durable=True)
    (tmp_path / "other").mkdir()
    sync_directory(tmp_path / "other")


def test_a_file_that_could_not_be_synced_replaces_nothing_and_is_not_used_again(tmp_path: Path) -> None:
    replace_file(tmp_path / "votes", b"old", durable=True)
    with patch.object(os, "fdatasync", _broken_disk), pytest.raises(OSError, match="Input/output error"):
        replace_file(tmp_path / "votes", b"new", durable=True)
    assert [path.name for path in tmp_path.iterdir()] == ["votes"]
    assert (tmp_path / "votes").read_bytes() == b"old"
