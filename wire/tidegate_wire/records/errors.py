"""What can be wrong with a record batch.

BatchError               the bytes are not a record batch that can be used; the message says why
+-- TornBatch            the buffer ends inside a batch: a torn write, or a Fetch cut at its size limit
+-- UnsupportedMagic     a message set of Kafka before 0.11 (magic 0 or 1), or no batch at all
+-- CorruptBatch         the CRC does not fit the bytes
+-- MalformedRecords     the CRC fits, but what is inside is no sequence of records, or does not decompress
|   +-- RecordsTooLarge  decompressed, the records pass the reader's limit
+-- CodecMissing         a codec whose package is not installed; the message names the extra that brings it
"""

from __future__ import annotations


class BatchError(ValueError):
    """The bytes are not a record batch that can be used; the message says why."""


class TornBatch(BatchError):  # noqa: N818  # says what the batch is
    """The buffer ends inside a batch.

    `position` is where in the buffer that batch begins: everything before it is whole.
    """

    def __init__(self, message: str, *, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class UnsupportedMagic(BatchError):  # noqa: N818  # says what the batch is
    """The magic byte is not 2."""


class CorruptBatch(BatchError):  # noqa: N818  # says what the batch is
    """The CRC in the header is not that of the bytes."""


class MalformedRecords(BatchError):  # noqa: N818  # says what the batch is
    """The batch's payload is not the sequence of records that its header promises."""


class RecordsTooLarge(MalformedRecords):
    """The records take more bytes than the reader allows (a decompression bomb, or a limit set too low)."""


class CodecMissing(BatchError):  # noqa: N818  # says what the batch is
    """The batch is compressed with a codec whose package is not installed here."""
