"""The file `partition.metadata`: whose records a directory holds. Written once, before the first record.

A topic that is deleted and made again has another id; its partitions must not go on with the old one's records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

from tidegate_core.log.files import DamagedFile, replace_file, seal_twice, unseal_either
from tidegate_wire.identifiers import NodeId

IDENTITY_NAME: Final = "partition.metadata"
_KIND: Final = b"TGPARTI1"
_NAMESPACE: Final = UUID("6f6d1d52-4f0e-5b0e-9f0a-7469646567a7")

METADATA_TOPIC: Final = "__cluster_metadata"
METADATA_TOPIC_ID: Final = UUID(int=1)


def id_of_old_topic(topic: str) -> UUID:
    """The id of a topic that was made before topics had ids."""
    return METADATA_TOPIC_ID if topic == METADATA_TOPIC else uuid5(_NAMESPACE, topic)


@dataclass(frozen=True, slots=True)
class PartitionIdentity:
    """The content of the file."""

    topic_id: UUID
    voters: tuple[NodeId, ...]
    """Those the partition was made with; later ones are in the log."""
    stands_in: bool = False
    """A new copy of a log that was set aside as damaged, not complete yet."""
    was_shared: bool = False
    """The log had records that gave other nodes a say; they may be deleted."""

    @property
    def is_shared(self) -> bool:
        """Whether another node has, or once had, a say in it."""
        return self.was_shared or self.stands_in or len(self.voters) > 1


def write_identity(directory: Path, identity: PartitionIdentity) -> None:
    """Write the file; the caller syncs the directory.

    Raises:
        OSError: it was not written.
    """
    content = {
        "topic_id": str(identity.topic_id),
        "voters": list(identity.voters),
        "stands_in": identity.stands_in,
        "was_shared": identity.was_shared,
        "directory": directory.name,
    }
    replace_file(directory / IDENTITY_NAME, seal_twice(_KIND, json.dumps(content).encode() + b"\n"), durable=True)


def load_identity(directory: Path) -> PartitionIdentity:
    """Read the file.

    Raises:
        OSError: it can't be read; FileNotFoundError if there is none.
        DamagedFile: it is something else.
    """
    content = _load(directory)
    try:
        voters = tuple(NodeId(int(voter)) for voter in content["voters"])
        topic_id, stands_in, was_shared = UUID(content["topic_id"]), content["stands_in"], content["was_shared"]
        return PartitionIdentity(topic_id, voters, bool(stands_in), bool(was_shared))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{directory / IDENTITY_NAME}: {error!r}") from error


def load_directory_name(directory: Path) -> str:
    """What the directory was called when the file was written.

    Raises:
        OSError, DamagedFile: as `load_identity`.
    """
    return str(_load(directory)["directory"])


def _load(directory: Path) -> dict[str, Any]:
    data = (directory / IDENTITY_NAME).read_bytes()
    try:
        content: dict[str, Any] = json.loads(unseal_either(_KIND, data))
    except ValueError as error:
        raise DamagedFile(f"{directory / IDENTITY_NAME}: {error}") from error
    return content
