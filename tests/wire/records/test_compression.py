"""Each codec as the peers write it, cut, damaged, and as a bomb; and an edge without cramjam."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import cramjam
import pytest
import zstandard
from aiokafka.codec import snappy_encode
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.records.batches import wrap
from tidegate_wire.records import BatchError, CodecMissing, Compression, MalformedRecords, RecordsTooLarge, read_records
from tidegate_wire.records.compression import compress_zstd, decompress
from tidegate_wire.records.header import Buffer

LIMIT = 8 * 1024 * 1024


def _zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def _zstd_in_two_frames(data: bytes) -> bytes:
    half = len(data) // 2
    return _zstd_without_size(data[:half]) + _zstd_without_size(data[half:])


def _lz4_blocks_of_64_kib(data: bytes) -> bytes:
    compressor = cramjam.lz4.Compressor(level=1, content_checksum=True, block_linked=False)
    compressor.compress(data)
    return bytes(compressor.finish())


FORMS: dict[str, tuple[Compression, Callable[[bytes], bytes]]] = {
    "gzip": (Compression.GZIP, gzip.compress),
    "gzip in two members": (Compression.GZIP, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "snappy, raw": (Compression.SNAPPY, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "snappy, xerial": (Compression.SNAPPY, lambda data: bytes(snappy_encode(data))),
    "snappy, xerial, small blocks": (
        Compression.SNAPPY,
        lambda data: bytes(snappy_encode(data, xerial_compatible=True, xerial_blocksize=100)),
    ),
    "lz4": (Compression.LZ4, lambda data: bytes(cramjam.lz4.compress(data))),
    "lz4, content checksum": (Compression.LZ4, _lz4_blocks_of_64_kib),
    "lz4, two frames": (
        Compression.LZ4,
        lambda data: bytes(cramjam.lz4.compress(data[:9])) + bytes(cramjam.lz4.compress(data[9:])),
    ),
    "zstd": (Compression.ZSTD, compress_zstd),
    "zstd without content size": (Compression.ZSTD, _zstd_without_size),
    "zstd in two frames": (Compression.ZSTD, _zstd_in_two_frames),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=2000) | st.binary(max_size=10).map(lambda piece: piece * 20_000))
def test_every_form_a_peer_may_write_is_read(form: str, data: bytes) -> None:
    codec, compress = FORMS[form]
    assert bytes(decompress(codec, compress(data), LIMIT)) == data


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_output_up_to_the_limit_is_read_and_a_byte_more_is_not(form: str, data: st.DataObject) -> None:
    codec, compress = FORMS[form]
    size = data.draw(st.integers(min_value=1, max_value=100_000))
    compressed = compress(b"a" * size)
    assert len(decompress(codec, compressed, size)) == size
    with pytest.raises(RecordsTooLarge):
        decompress(codec, compressed, size - 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_bomb_is_refused_without_taking_its_memory(form: str) -> None:
    codec, compress = FORMS[form]
    bomb = compress(bytes(200 * 1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(RecordsTooLarge):
            decompress(codec, bomb, LIMIT)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * LIMIT


@pytest.mark.parametrize(
    ("codec", "header"),
    [
        (Compression.ZSTD, b"\x28\xb5\x2f\xfd\xc0" + b"\x00" + b"\xff" * 7 + b"\x7f"),  # content size 2**63 - 1
        (Compression.ZSTD, b"\x28\xb5\x2f\xfd\x00\xff" + b"\0" * 20),  # a window of terabytes
        (Compression.SNAPPY, b"\xff\xff\xff\xff\x0f"),  # 4 GiB announced
        (Compression.LZ4, b"\x04\x22\x4d\x18\x68\x70" + b"\xff" * 8 + b"\0" * 9),
    ],
)
def test_an_announced_size_is_not_believed(codec: Compression, header: bytes) -> None:
    with pytest.raises(MalformedRecords):
        decompress(codec, header, LIMIT)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_cut_stream_is_refused_or_yields_less(form: str, data: st.DataObject) -> None:
    codec, compress = FORMS[form]
    whole = compress(b"some records, " * 50)
    cut = whole[: data.draw(st.integers(min_value=0, max_value=len(whole) - 1))]
    try:
        output = decompress(codec, cut, LIMIT)
    except MalformedRecords:
        return
    # A form of several frames or blocks may end cleanly; the record count then tells that records are missing.
    assert len(output) < 14 * 50


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_damaged_stream_only_ever_raises_a_batch_error(form: str, data: st.DataObject) -> None:
    codec, compress = FORMS[form]
    damaged = bytearray(compress(b"some records, " * 50))
    for _ in range(data.draw(st.integers(min_value=1, max_value=4))):
        damaged[data.draw(st.integers(min_value=0, max_value=len(damaged) - 1))] = data.draw(st.integers(0, 255))
    output: Buffer = b""
    with contextlib.suppress(BatchError):
        output = decompress(codec, damaged, LIMIT)
    assert len(output) <= LIMIT


@pytest.mark.parametrize("codec", list(Compression))
@given(hostile=st.binary(max_size=300))
def test_hostile_input_only_ever_raises_a_batch_error(codec: Compression, hostile: bytes) -> None:
    output: Buffer = b""
    with contextlib.suppress(BatchError):
        output = decompress(codec, hostile, 1000)
    assert len(output) <= 1000


def test_a_gzip_stream_of_thousands_of_members_is_refused() -> None:
    with pytest.raises(MalformedRecords, match="members"):
        decompress(Compression.GZIP, gzip.compress(b"") * 50_000, LIMIT)


def test_a_compressed_batch_that_decompresses_to_no_records_is_malformed() -> None:
    with pytest.raises(MalformedRecords):
        list(read_records(wrap(zlib.compress(b"", wbits=31), 1, codec=Compression.GZIP)))


def test_higher_zstd_levels_are_smaller_and_read_the_same() -> None:
    data = b"".join(b'{"device": "d-%04d", "value": %d}' % (i % 7, i * i) for i in range(2_000))
    assert len(compress_zstd(data, 15)) < len(compress_zstd(data, 1))
    assert decompress(Compression.ZSTD, compress_zstd(data, 15), LIMIT) == data


def test_without_cramjam_everything_but_snappy_and_lz4_works_and_the_error_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['cramjam'] = None\n"
        "from tidegate_wire.records.compression import compress_zstd, decompress\n"
        "from tidegate_wire.records import CodecMissing, Compression\n"
        "assert decompress(Compression.ZSTD, compress_zstd(b'data'), 100) == b'data'\n"
        "for codec in (Compression.SNAPPY, Compression.LZ4):\n"
        "    try:\n"
        "        decompress(codec, bytes.fromhex('04224d18604082000000000000000000'), 100)\n"
        "    except CodecMissing as error:\n"
        "        print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output.count("pip install 'tidegate[core]'") == 2
    assert issubclass(CodecMissing, BatchError)
