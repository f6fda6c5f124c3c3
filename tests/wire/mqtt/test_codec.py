"""Every packet survives encoding and decoding, however it is cut; nothing else gets through."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.mqtt.strategies import connects, packets, publishes
from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.errors import (
    MalformedPacketError,
    MqttError,
    PacketTooLargeError,
    ProtocolViolationError,
    UnsupportedVersionError,
)
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Packet,
    ProtocolVersion,
    Puback,
    Publish,
    Subscribe,
    Subscription,
)
from tidegate_wire.mqtt.properties import Properties
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode
from tidegate_wire.mqtt.topics import TopicNames

V311, V5 = ProtocolVersion.V311, ProtocolVersion.V5
versions = st.sampled_from(ProtocolVersion)


def as_publish(message: ReceivedMessage) -> Publish:
    return Publish(
        topic=message.topic,
        payload=message.payload,
        qos=message.qos,
        retain=message.retain,
        dup=message.dup,
        packet_id=message.packet_id,
    )


def decode(data: bytes, version: ProtocolVersion | None = V5, packet_bytes_max: int = 1000) -> list[Packet]:
    return Decoder(version=version, packet_bytes_max=packet_bytes_max).feed(data)


@given(st.data())
def test_every_packet_survives_encoding_and_decoding(data: st.DataObject) -> None:
    version = data.draw(versions)
    sent = data.draw(st.lists(packets(version), min_size=1, max_size=5))
    received = Decoder(version=version).feed(b"".join(encode(packet, version) for packet in sent))
    assert received == sent


@given(st.data())
def test_connect_tells_the_decoder_its_version(data: st.DataObject) -> None:
    version = data.draw(versions)
    sent: list[Packet] = [data.draw(connects(version)), data.draw(packets(version))]
    decoder = Decoder()
    assert decoder.feed(b"".join(encode(packet, version) for packet in sent)) == sent
    assert decoder.version is version


@given(st.data())
def test_packets_fed_in_any_pieces_are_the_same_packets(data: st.DataObject) -> None:
    version = data.draw(versions)
    sent: list[Packet] = [
        data.draw(connects(version)),
        *data.draw(st.lists(packets(version), min_size=1, max_size=4)),
    ]
    stream = b"".join(encode(packet, version) for packet in sent)
    size = data.draw(st.integers(1, 7))
    decoder = Decoder()
    received = [packet for at in range(0, len(stream), size) for packet in decoder.feed(stream[at : at + size])]
    assert received == sent
    assert decoder.buffered_bytes == 0


@given(st.binary(max_size=300), st.one_of(st.none(), versions))
def test_arbitrary_bytes_end_in_packets_or_an_mqtt_error(data: bytes, version: ProtocolVersion | None) -> None:
    decoder = Decoder(version=version, packet_bytes_max=1000)
    with contextlib.suppress(MqttError):
        decoder.feed(data)


@given(st.data())
def test_a_flipped_byte_ends_in_packets_or_an_mqtt_error(data: st.DataObject) -> None:
    version = data.draw(versions)
    stream = bytearray(encode(data.draw(packets(version)), version))
    stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MqttError):
        decode(bytes(stream), version)


@given(st.data())
def test_the_fast_way_takes_the_same_messages_as_the_slow_way(data: st.DataObject) -> None:
    version = data.draw(versions)
    sent = data.draw(st.lists(publishes(version) | packets(version), max_size=8))
    stream = b"".join(encode(packet, version) for packet in sent)
    cut = data.draw(st.integers(0, len(stream)))
    decoder = Decoder(version=version)
    messages: list[ReceivedMessage] = []
    packet_ids: list[bytes] = []
    received: list[Packet] = []
    messages_max, bytes_max = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 500))
    for piece in (stream[:cut], stream[cut:]):
        decoder.append(piece)
        while True:
            before = len(messages)
            decoder.take_publishes("c", messages, packet_ids, messages_max=messages_max, bytes_max=bytes_max)
            assert len(messages) - before <= messages_max
            received.extend(map(as_publish, messages[before:]))
            packet = decoder.next_packet()
            if packet is None and len(messages) == before:
                break
            if packet is not None:
                received.append(packet)
    assert received == sent
    assert packet_ids == [message.packet_id.to_bytes(2, "big") for message in messages if message.qos]


def test_the_fast_way_leaves_what_is_wrong_to_the_slow_way() -> None:
    for wrong in (b"\x32\x05\0\1a\0\0", b"\x32\x05\0\1#\0\1", b"\x30\x02\0\5", b"\x30\x03\0\0x", b"\x30\x80\0\0\1a"):
        decoder = Decoder(version=V311)
        decoder.append(b"\x30\x04\0\1ax" + wrong + bytes(10))
        messages: list[ReceivedMessage] = []
        decoder.take_publishes("c", messages, [], messages_max=10, bytes_max=1000)
        assert [message.payload for message in messages] == [b"x"]
        with pytest.raises(MqttError):
            decoder.next_packet()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x00\x00", "packet type 0"),
        (b"\x36\x07\0\1a\0\1\0x", "QoS 3"),
        (b"\x38\x04\0\1a\0", "DUP with QoS 0"),
        (b"\x60\x02\0\1", "PUBREL without its reserved bit"),
        (b"\x80\x06\0\1\0\1a\0", "SUBSCRIBE without its reserved bit"),
        (b"\xc1\x00", "PINGREQ with a flag"),
        (b"\xc0\x01\0", "PINGREQ with a body"),
        (b"\xe1\x00", "DISCONNECT with a flag"),
        (b"\x30\x80\x80\x80\x80\x01", "a remaining length of five bytes"),
        (b"\xc0\x80\x00", "a remaining length in more bytes than it needs"),
        (b"\x32\x06\0\1a\0\0\0", "packet id 0 in PUBLISH"),
        (b"\x40\x02\0\0", "packet id 0 in PUBACK"),
        (b"\x82\x07\0\0\0\0\1a\0", "packet id 0 in SUBSCRIBE"),
        (b"\x30\x05\0\2\xc3\x28\0", "a topic that is not UTF-8"),
        (b"\x30\x06\0\3\xed\xa0\x80\0", "a surrogate"),
        (b"\x30\x04\0\1\0\0", "U+0000"),
        (b"\x30\x02\0\5", "a topic longer than the packet"),
        (b"\x30\x01\0", "a topic length cut short"),
        (b"\x32\x04\0\1a\0", "a packet id cut short"),
        (b"\x30\x05\0\1a\x05\0", "properties longer than the packet"),
        (b"\x30\x06\0\1a\x02\x7f\0", "an unknown property"),
        (b"\x30\x07\0\1a\x03\x21\0\1", "a property of another packet"),
        (b"\x30\x05\0\1a\x01\x01", "a property without its value"),
        (b"\x82\x07\0\1\0\0\1a\x03", "a subscription of QoS 3"),
        (b"\x82\x07\0\1\0\0\1a\x30", "retain handling 3"),
        (b"\x82\x07\0\1\0\0\1a\x40", "a reserved bit of a subscription"),
        (b"\x82\x06\0\1\0\0\0\0", "an empty filter"),
        (b"\x82\x09\0\1\0\0\3a/#b"[:-1] + b"b\0", "# with something beside it"),
        (b"\x82\x0a\0\1\0\0\4a+/b\0", "+ with something beside it"),
        (b"\x82\x0b\0\1\0\0\5#/a/b\0", "# before the end"),
        (b"\x82\x0f\0\1\0\0\x09$share//a\0", "a share name of nothing"),
        (b"\x82\x0f\0\1\0\0\x09$share/g/\0", "a shared filter of nothing"),
        (b"\x82\x10\0\1\0\0\x0a$share/+/a\0", "a share name with a wildcard"),
        (b"\x40\x03\0\1\x7f", "an unknown reason code"),
        (b"\x20\x03\x02\0\0", "a reserved flag of CONNACK"),
        (b"\x40\x05\0\1\0\0\0", "bytes behind the last field"),
    ],
)
def test_malformed_packets_are_refused_as_malformed(data: bytes, what: str) -> None:
    with pytest.raises(MalformedPacketError) as caught:
        decode(data)
    assert caught.value.reason_code is ReasonCode.MALFORMED_PACKET, what


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x30\x04\0\1+\0", ReasonCode.TOPIC_NAME_INVALID),
        (b"\x30\x06\0\3a/#\0", ReasonCode.TOPIC_NAME_INVALID),
        (b"\x30\x03\0\0\0", ReasonCode.TOPIC_NAME_INVALID),
        (b"\x30\x08\0\1a\x04\x01\x01\x01\x01", ReasonCode.PROTOCOL_ERROR),  # a property twice
        (b"\x30\x06\0\1a\x02\x01\x02", ReasonCode.PROTOCOL_ERROR),  # payload format 2
        (b"\x30\x07\0\1a\x03\x23\0\0", ReasonCode.TOPIC_ALIAS_INVALID),
        (b"\x82\x09\0\1\2\x0b\0\0\1a\0", ReasonCode.PROTOCOL_ERROR),  # subscription identifier 0
        (b"\x82\x0b\0\1\4\x0b\1\x0b\2\0\1a\0", ReasonCode.PROTOCOL_ERROR),  # two of them
        (b"\x82\x03\0\1\0", ReasonCode.PROTOCOL_ERROR),  # no filter
        (b"\x30\xfe\x03\0\1a\xf9\x03" + b"\x26\0\0\0\0" * 101, ReasonCode.QUOTA_EXCEEDED),
        (b"\xa2\x03\0\1\0", ReasonCode.PROTOCOL_ERROR),
        (b"\x30\x08\0\1a\x04\x08\0\1+", ReasonCode.TOPIC_NAME_INVALID),  # response topic with a wildcard
    ],
)
def test_what_the_specification_forbids_is_refused_with_its_reason_code(data: bytes, reason: ReasonCode) -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        decode(data)
    assert caught.value.reason_code is reason


def connect_bytes(*, name: bytes = b"MQTT", level: int = 4, flags: int = 2, rest: bytes = b"\0\1c") -> bytes:
    body = len(name).to_bytes(2, "big") + name + bytes((level, flags)) + b"\0\0" + (b"\0" if level == 5 else b"") + rest
    return bytes((0x10, len(body))) + body


@pytest.mark.parametrize(
    "data",
    [
        connect_bytes(name=b"HTTP"),
        connect_bytes(flags=0x03),
        connect_bytes(flags=0x08 | 0x02),
        connect_bytes(flags=0x20 | 0x02),
        connect_bytes(flags=0x04 | 0x18, rest=b"\0\1c\0\1w\0\0"),
        connect_bytes(flags=0x40, rest=b"\0\1c\0\1p"),
        connect_bytes(flags=0x80),
        connect_bytes(rest=b"\0\1c\0"),
        connect_bytes(rest=b"\0\1\0"),
    ],
)
def test_a_wrong_connect_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPacketError):
        decode(data, None)


def test_a_will_for_no_topic_is_refused() -> None:
    with pytest.raises(ProtocolViolationError) as caught:
        decode(connect_bytes(flags=0x06, rest=b"\0\1c\0\1#\0\0"), None)
    assert caught.value.reason_code is ReasonCode.TOPIC_NAME_INVALID


@pytest.mark.parametrize(("name", "level"), [(b"MQIsdp", 3), (b"MQTT", 3), (b"MQTT", 6)])
def test_other_protocol_levels_are_unsupported(name: bytes, level: int) -> None:
    with pytest.raises(UnsupportedVersionError) as caught:
        decode(connect_bytes(name=name, level=level), None)
    assert caught.value.level == level


def test_the_first_packet_must_be_connect() -> None:
    with pytest.raises(ProtocolViolationError):
        decode(b"\xc0\x00", None)


def test_mqtt_5_packets_are_not_taken_on_a_3_1_1_connection() -> None:
    for data in (b"\xf0\x00", b"\x40\x04\0\1\0\0", b"\xe0\x01\0"):
        with pytest.raises(MalformedPacketError):
            decode(data, V311)


def test_a_large_publish_is_refused_at_its_header_and_not_buffered() -> None:
    decoder = Decoder(version=V311, packet_bytes_max=1000)
    with pytest.raises(PacketTooLargeError):
        decoder.feed(b"\x30\xff\xff\xff\x7f")
    with pytest.raises(PacketTooLargeError):
        decode(b"\x30\xe9\x07", V311)  # 1001
    assert decode(b"\x30\xe8\x07" + b"\0\1a" + bytes(997), V311) == [Publish(topic="a", payload=bytes(997))]


def test_limits_on_topics_are_the_decoders() -> None:
    topics = TopicNames(bytes_max=5, levels_max=2)
    assert topics.decode(b"a/b") == "a/b"
    for raw in (b"a/b/c", b"abcdef"):
        with pytest.raises(ProtocolViolationError) as caught:
            topics.decode(raw)
        assert caught.value.reason_code is ReasonCode.TOPIC_NAME_INVALID


@pytest.mark.parametrize(
    ("packet", "version"),
    [
        (Publish(topic="a", qos=1), V311),
        (Publish(topic="a", packet_id=1), V311),
        (Publish(topic="a", qos=3, packet_id=1), V311),
        (Publish(topic="a", properties=Properties(content_type="x")), V311),
        (Publish(topic="a" * 65_536), V311),
        (Connect(client_id="c", keep_alive_s=65_536), V311),
        (Connect(client_id="c", password=b"p"), V311),
        (Connect(client_id="c", version=V5), V311),
        (Publish(topic="a", properties=Properties(receive_maximum=1)), V5),
        (Publish(topic="a", properties=Properties(topic_alias=0)), V5),
        (Publish(topic="a", properties=Properties(topic_alias=65_536)), V5),
        (Publish(topic="a", properties=Properties(payload_format_indicator=2)), V5),
        (Puback(packet_id=0), V5),
        (Puback(packet_id=1, reason_code=ReasonCode.QUOTA_EXCEEDED), V311),
        (Connack(reason_code=ReasonCode.SUCCESS), V311),
        (Connack(reason_code=ConnectReturnCode.ACCEPTED), V5),
        (Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="a", no_local=True),)), V311),
        (Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="a\0"),)), V5),
    ],
)
def test_what_no_packet_can_carry_is_not_encoded(packet: Any, version: ProtocolVersion) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(packet, version)
