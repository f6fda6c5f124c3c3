"""Whose a data directory is: one process holds it, and it belongs to one node of one cluster.

The directory's own id is made with it, so that a node whose disk was wiped is told from the one it was before.

DIR/lock            held (flock) while the core runs; contains its process id
DIR/meta.json       format version, node id, directory id; once the node has a cluster, that one's id and founders
DIR/votes           votes in elections, of all partitions
DIR/TOPIC-INDEX/    a partition
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from crc32c import crc32c

from tidegate_core.errors import DataDirError
from tidegate_core.log.files import replace_file
from tidegate_core.log.identity import PartitionIdentity, id_of_old_topic, write_identity
from tidegate_wire.identifiers import NodeId

FORMAT_VERSION: Final = 2
_SINGLE_NODE_VERSION: Final = 1
"""Before there were clusters: brought up to date when it is opened."""

LOCK_NAME: Final = "lock"
META_NAME: Final = "meta.json"

_PARTITION_DIRECTORY = re.compile(r"(?P<topic>[a-zA-Z0-9._-]{1,249})-(?P<index>0|[1-9][0-9]{0,9})")


Founders = tuple[tuple[NodeId, UUID], ...]
"""The nodes that voted on metadata when the cluster began, and the ids of their directories."""


@dataclass(slots=True)
class DataDir:
    """A locked data directory."""

    path: Path
    node_id: NodeId
    directory_id: UUID
    cluster_id: str | None
    """None until the node belongs to a cluster."""
    founders: Founders
    is_replacement: bool
    """The cluster was there before this directory was: what this node had acknowledged before may be gone."""
    _lock: int

    @classmethod
    def claim(cls, path: Path, *, node_id: NodeId) -> DataDir:
        """Lock the directory and check that it is this node's; an empty one becomes so.

        Raises:
            DataDirError: in use, another node's, or written by a newer version.
            OSError: it can't be made, read or written.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            meta = _load_meta(path / META_NAME, node_id)
            if meta is None:
                directory = cls(path, node_id, uuid4(), None, (), False, lock)
                directory._write()
                return directory
            founders = tuple((NodeId(node), UUID(found)) for node, found in meta["founders"])
            directory_id = UUID(meta["directory_id"])
            return cls(path, node_id, directory_id, meta["cluster_id"], founders, meta["is_replacement"], lock)
        except BaseException:
            os.close(lock)
            raise

    def found(self, cluster_id: str, founders: Founders, *, is_replacement: bool) -> None:
        """The node belongs to this cluster from now on; on disk when this returns.

        Raises:
            OSError: it can't be written.
        """
        assert self.cluster_id is None
        self.cluster_id, self.founders, self.is_replacement = cluster_id, founders, is_replacement
        try:
            self._write()
        except OSError:
            self.cluster_id, self.founders, self.is_replacement = None, (), False
            raise

    def _write(self) -> None:
        meta = {
            "format_version": FORMAT_VERSION,
            "cluster_id": self.cluster_id,
            "node_id": self.node_id,
            "directory_id": str(self.directory_id),
            "founders": [[node, str(directory)] for node, directory in self.founders],
            "is_replacement": self.is_replacement,
        }
        _save_meta(self.path / META_NAME, meta)

    def partitions(self) -> Iterator[tuple[str, int, Path]]:
        """Topic, index and directory of each partition."""
        yield from _partitions(self.path)

    def release(self) -> None:
        """Let another process have it; once is enough."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _partitions(path: Path) -> Iterator[tuple[str, int, Path]]:
    for directory in sorted(path.iterdir()):
        match = _PARTITION_DIRECTORY.fullmatch(directory.name)
        if match is not None and directory.is_dir():
            yield match["topic"], int(match["index"]), directory


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


def new_cluster_id() -> str:
    """A random one, written as Kafka writes them."""
    return base64.urlsafe_b64encode(uuid4().bytes).rstrip(b"=").decode()


def _load_meta(path: Path, node_id: NodeId) -> dict[str, Any] | None:
    """What the directory says of itself, as of this version; None if it is nobody's yet."""
    try:
        meta: dict[str, Any] = json.loads(path.read_bytes())
        version, found_node = meta["format_version"], meta["node_id"]
        is_whole = version != FORMAT_VERSION or meta.pop("crc32c") == _crc(meta)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirError(
            f"{path} can't be read: {error}", hint="restore it from a copy; the logs are intact"
        ) from error
    if not is_whole:
        raise DataDirError(f"{path}: the CRC does not fit", hint="restore it from a copy; the logs are intact")
    if version not in {_SINGLE_NODE_VERSION, FORMAT_VERSION}:
        raise DataDirError(
            f"{path.parent} has format version {version}, this is {FORMAT_VERSION}",
            hint="run the version that wrote it",
        )
    if found_node != node_id:
        raise DataDirError(
            f"{path.parent} belongs to node {found_node}, this is node {node_id}", hint="check --data-dir"
        )
    return meta if version == FORMAT_VERSION else _upgrade(path, meta)


def _upgrade(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Bring a directory up to date that was one node's alone, without topic ids; a crash leaves it as it was."""
    node_id = NodeId(meta["node_id"])
    for topic, _, directory in _partitions(path.parent):
        write_identity(directory, PartitionIdentity(id_of_old_topic(topic), (node_id,)))
    directory_id = str(uuid4())
    meta = {
        **meta,
        "format_version": FORMAT_VERSION,
        "directory_id": directory_id,
        "founders": [[node_id, directory_id]],
        "is_replacement": False,
    }
    _save_meta(path, meta)
    return meta


def _save_meta(path: Path, meta: dict[str, Any]) -> None:
    replace_file(path, json.dumps({**meta, "crc32c": _crc(meta)}).encode() + b"\n", durable=True)


def _crc(meta: dict[str, Any]) -> int:
    return int(crc32c(json.dumps(meta, sort_keys=True).encode()))
