"""A snapshot of the metadata as bytes: a line that says how many records follow, then one line of JSON each. No I/O."""

from __future__ import annotations

import json
from typing import Final

from tidegate_core.errors import PartitionDamaged
from tidegate_core.metadata.image import MetadataImage, MetadataRecord

_FORMAT: Final = 1


def encode_snapshot(image: MetadataImage) -> bytes:
    """The whole image."""
    records = image.to_records()
    lines = [json.dumps({"format": _FORMAT, "records": len(records)})]
    for key, value in records:
        assert value is not None
        lines.append(json.dumps([key.decode(), json.loads(value)], separators=(",", ":"), sort_keys=True))
    return "\n".join(lines).encode() + b"\n"


def decode_snapshot(data: bytes | memoryview) -> list[MetadataRecord]:
    """The records that make the image.

    Raises:
        PartitionDamaged: these are not the bytes of a snapshot, or not all of them.
    """
    try:
        head, *lines = bytes(data).decode().splitlines()
        fields = json.loads(head)
        if fields["format"] != _FORMAT:
            raise PartitionDamaged(
                f"a snapshot of the metadata has format {fields['format']}, this is {_FORMAT}",
                hint="run the version that wrote it",
            )
        records: list[MetadataRecord] = []
        for line in lines:
            key, value = json.loads(line)
            records.append((str(key).encode(), json.dumps(value, separators=(",", ":"), sort_keys=True).encode()))
        if len(records) != fields["records"]:
            raise PartitionDamaged(f"a snapshot of the metadata has {len(records)} of {fields['records']} records")
    except (ValueError, KeyError, TypeError) as error:
        raise PartitionDamaged(f"a snapshot of the metadata can't be read: {error!r}") from error
    return records
