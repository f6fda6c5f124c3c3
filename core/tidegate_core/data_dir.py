"""Whose a data directory is: one process holds it, and it belongs to one node of one cluster.

DIR/lock            held (flock) while the core runs; contains its process id
DIR/meta.json       format version, cluster id, node id
DIR/TOPIC-INDEX/    a partition
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidegate_core.errors import DataDirError
from tidegate_core.log.files import replace_file
from tidegate_wire.identifiers import NodeId

FORMAT_VERSION: Final = 1
LOCK_NAME: Final = "lock"
META_NAME: Final = "meta.json"

_PARTITION_DIRECTORY = re.compile(r"(?P<topic>[a-zA-Z0-9._-]{1,249})-(?P<index>0|[1-9][0-9]{0,9})")


@dataclass(slots=True)
class DataDir:
    """A locked data directory."""

    path: Path
    cluster_id: str
    _lock: int

    @classmethod
    def claim(cls, path: Path, *, node_id: NodeId, cluster_id: str | None) -> DataDir:
        """Lock the directory and check that it is this node's; an empty one becomes so.

        Raises:
            DataDirError: in use, another node's or cluster's, or written by a newer version.
            OSError: it can't be made, read or written.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            found = _check_meta(path / META_NAME, node_id, cluster_id)
            if found is None:
                found = cluster_id or base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
                meta = {"format_version": FORMAT_VERSION, "cluster_id": found, "node_id": node_id}
                replace_file(path / META_NAME, json.dumps(meta).encode() + b"\n", durable=True)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, found, lock)

    def partitions(self) -> Iterator[tuple[str, int, Path]]:
        """Topic, index and directory of each partition."""
        for path in sorted(self.path.iterdir()):
            match = _PARTITION_DIRECTORY.fullmatch(path.name)
            if match is not None and path.is_dir():
                yield match["topic"], int(match["index"]), path

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


def _lock(path: Path) -> int:
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise DataDirError(
            f"{path} is in use by another process (pid {holder})", hint="stop it, or choose another --data-dir"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _check_meta(path: Path, node_id: NodeId, cluster_id: str | None) -> str | None:
    """The cluster id that the directory has, or None if it is nobody's yet."""
    try:
        meta = json.loads(path.read_bytes())
        version, found_cluster, found_node = meta["format_version"], meta["cluster_id"], meta["node_id"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{path} can't be read: {error}", hint="restore it from a copy; the logs are intact"
        ) from error
    if version != FORMAT_VERSION:
        raise DataDirError(
            f"{path.parent} has format version {version}, this is {FORMAT_VERSION}",
            hint="run the version that wrote it",
        )
    if found_node != node_id:
        raise DataDirError(
            f"{path.parent} belongs to node {found_node}, this is node {node_id}", hint="check --data-dir"
        )
    if cluster_id is not None and found_cluster != cluster_id:
        raise DataDirError(
            f"{path.parent} belongs to cluster {found_cluster}, this is {cluster_id}", hint="check --data-dir"
        )
    return str(found_cluster)
