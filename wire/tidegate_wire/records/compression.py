"""The codecs of record batches: all are read, zstd is written.

What is read comes from anyone, so each codec stops at a limit on its output before memory is taken for it. zstandard is
always there; gzip is the standard library's; snappy and LZ4 need cramjam, which an edge does without.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Final

import zstandard

from tidegate_wire.records.errors import CodecMissing, MalformedRecords, RecordsTooLarge
from tidegate_wire.records.header import Buffer, Compression

ZSTD_LEVEL_DEFAULT: Final = 3
"""zstd's own default: about 300 MB/s on one core, and most of what higher levels save."""

_ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to support; a frame that wants more memory than this is refused."""
_CHUNK_BYTES: Final = 256 * 1024
_GZIP_WBITS: Final = 31
_GZIP_MEMBERS_MAX: Final = 16
"""Producers write one; each further one copies what follows it, so thousands of tiny ones would cost a minute."""

_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16
"""Magic, version and compatible version (int32 each), written by snappy-java around blocks of raw snappy."""
_XERIAL_BLOCK: Final = struct.Struct(">i")

_LZ4_MAGIC: Final = 0x184D2204
_LZ4_FRAME_HEAD: Final = struct.Struct("<IBB")  # magic, flags, block descriptor
_LZ4_BLOCK_HEAD: Final = struct.Struct("<I")
_LZ4_FLAG_BLOCK_CHECKSUM: Final = 0x10
_LZ4_FLAG_CONTENT_SIZE: Final = 0x08
_LZ4_FLAG_CONTENT_CHECKSUM: Final = 0x04
_LZ4_FLAG_DICTIONARY: Final = 0x01
_LZ4_BLOCK_BYTES_MAX: Final = {4: 64 * 1024, 5: 256 * 1024, 6: 1024 * 1024, 7: 4 * 1024 * 1024}


def compress_zstd(data: bytes, level: int = ZSTD_LEVEL_DEFAULT) -> bytes:
    """`data` as one zstd frame with its content size."""
    # A compressor for each call: sharing one between threads is not safe, and making one takes 10 us a batch.
    return zstandard.ZstdCompressor(level=level).compress(data)


def decompress(codec: Compression, data: Buffer, bytes_max: int) -> Buffer:
    """The records that `data` is compressed from; `data` itself where the codec is NONE.

    Raises:
        RecordsTooLarge: they take more than `bytes_max` bytes.
        MalformedRecords: `data` is not what `codec` writes.
        CodecMissing: the codec's package is not installed.
    """
    return _DECOMPRESSORS[codec](data, bytes_max)


def _stored(data: Buffer, bytes_max: int) -> Buffer:
    if len(data) > bytes_max:
        raise _too_large(bytes_max)
    return data


def _gunzip(data: Buffer, bytes_max: int) -> bytes:
    output = b""
    try:
        for _ in range(_GZIP_MEMBERS_MAX):
            member = zlib.decompressobj(wbits=_GZIP_WBITS)
            output += member.decompress(data, bytes_max - len(output) + 1)
            if len(output) > bytes_max:
                raise _too_large(bytes_max)
            if not member.eof:
                raise MalformedRecords("gzip: the stream is cut")
            data = member.unused_data
            if not data:
                return output
    except zlib.error as error:
        raise MalformedRecords(f"gzip: {error}") from error
    raise MalformedRecords(f"gzip: more than {_GZIP_MEMBERS_MAX} members")


def _unzstd(data: Buffer, bytes_max: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    try:
        content_bytes = zstandard.frame_content_size(data)  # -1 where the frame does not say
        if content_bytes > bytes_max:
            raise _too_large(bytes_max)
        if content_bytes > 0:
            return decompressor.decompress(data, max_output_size=bytes_max, allow_extra_data=False)
        return _unzstd_stream(decompressor, data, bytes_max)
    except zstandard.ZstdError as error:
        raise MalformedRecords(f"zstd: {error}") from error


def _unzstd_stream(decompressor: zstandard.ZstdDecompressor, data: Buffer, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    room = bytes_max
    with decompressor.stream_reader(data, read_across_frames=True) as stream:
        while piece := stream.read(min(_CHUNK_BYTES, room + 1)):
            room -= len(piece)
            if room < 0:
                raise _too_large(bytes_max)
            pieces.append(piece)
    return b"".join(pieces)


def _unsnappy(data: Buffer, bytes_max: int) -> Buffer:
    view = memoryview(data)
    if bytes(view[: len(_XERIAL_MAGIC)]) != _XERIAL_MAGIC:
        return _unsnappy_block(view, bytes_max, bytes_max)
    output = bytearray()
    position, end = _XERIAL_HEADER_BYTES, len(view)
    while position < end:
        if end - position < _XERIAL_BLOCK.size:
            raise MalformedRecords("snappy: the stream is cut in a block's length")
        (block_bytes,) = _XERIAL_BLOCK.unpack_from(view, position)
        position += _XERIAL_BLOCK.size
        if not 0 < block_bytes <= end - position:
            raise MalformedRecords(f"snappy: a block of {block_bytes} bytes where {end - position} are left")
        output += _unsnappy_block(view[position : position + block_bytes], bytes_max - len(output), bytes_max)
        position += block_bytes
    return output


def _unsnappy_block(block: memoryview, room: int, bytes_max: int) -> memoryview:
    snappy = _cramjam("snappy").snappy
    try:
        if snappy.decompress_raw_len(block) > room:
            raise _too_large(bytes_max)
        return memoryview(snappy.decompress_raw(block))
    except _cramjam("snappy").DecompressionError as error:
        raise MalformedRecords(f"snappy: {error}") from error


def _unlz4(data: Buffer, bytes_max: int) -> memoryview:
    cramjam = _cramjam("LZ4")
    output = bytearray(min(_lz4_output_bytes_max(memoryview(data)), bytes_max))
    try:
        size_bytes = cramjam.lz4.decompress_into(data, output)
    except cramjam.DecompressionError as error:
        # The output has room for all that the blocks can hold, unless the limit cut it.
        if len(output) == bytes_max:
            raise RecordsTooLarge(f"LZ4: {error}; the limit is {bytes_max} bytes") from error
        raise MalformedRecords(f"LZ4: {error}") from error
    return memoryview(output)[:size_bytes]


def _lz4_output_bytes_max(view: memoryview) -> int:
    """What the frames of `view` can hold at most, read from their block heads: the LZ4 frame format, version 1.6."""
    total = position = 0
    try:
        while position < len(view):
            magic, flags, descriptor = _LZ4_FRAME_HEAD.unpack_from(view, position)
            block_bytes_max = _LZ4_BLOCK_BYTES_MAX.get(descriptor >> 4)
            if magic != _LZ4_MAGIC or block_bytes_max is None or flags & _LZ4_FLAG_DICTIONARY:
                raise MalformedRecords("LZ4: not a frame that record batches use")
            position += _LZ4_FRAME_HEAD.size + (8 if flags & _LZ4_FLAG_CONTENT_SIZE else 0) + 1
            trailer_bytes = 4 if flags & _LZ4_FLAG_BLOCK_CHECKSUM else 0
            while True:
                (head,) = _LZ4_BLOCK_HEAD.unpack_from(view, position)
                position += _LZ4_BLOCK_HEAD.size
                if head == 0:
                    break
                block_bytes = head & 0x7FFF_FFFF
                total += block_bytes if head >> 31 else min(block_bytes_max, block_bytes * 255)
                position += block_bytes + trailer_bytes
            position += 4 if flags & _LZ4_FLAG_CONTENT_CHECKSUM else 0
    except struct.error as error:
        raise MalformedRecords("LZ4: the frame is cut") from error
    return total


def _cramjam(codec: str) -> ModuleType:
    """The cramjam module, imported when the first batch needs it."""
    try:
        import cramjam  # noqa: PLC0415  # an edge runs without it
    except ImportError as error:
        raise CodecMissing(
            f"the batch is compressed with {codec}, which needs cramjam: pip install 'tidegate[core]'"
        ) from error
    return cramjam


def _too_large(bytes_max: int) -> RecordsTooLarge:
    return RecordsTooLarge(f"the records take more than the limit of {bytes_max} bytes")


_DECOMPRESSORS: Final[dict[Compression, Callable[[Buffer, int], Buffer]]] = {
    Compression.NONE: _stored,
    Compression.GZIP: _gunzip,
    Compression.SNAPPY: _unsnappy,
    Compression.LZ4: _unlz4,
    Compression.ZSTD: _unzstd,
}
