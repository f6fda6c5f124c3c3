"""From CONNECT to the end of a connection: sessions, take-over, keep-alive, wills."""

from __future__ import annotations

import pytest

from tests.wire.mqtt.bench import V5, V311, Bench
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    ProtocolVersion,
    Publish,
    Pubrec,
    Suback,
    Will,
)
from tidegate_wire.mqtt.properties import Properties
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode

BOTH = pytest.mark.parametrize("version", list(ProtocolVersion))


def refusal(bench: Bench, connect: Connect) -> ReasonCode | ConnectReturnCode:
    client = bench.socket(connect.version)
    client.send(connect)
    (connack,) = client.read()
    assert isinstance(connack, Connack)
    assert client.closed
    return connack.reason_code


def disconnect_reason(packets: list[Packet]) -> ReasonCode:
    (packet,) = packets
    assert isinstance(packet, Disconnect)
    return packet.reason_code


def test_a_3_1_1_client_is_accepted_in_four_bytes() -> None:
    client = Bench().connect("c")
    assert client.connack == Connack(reason_code=ConnectReturnCode.ACCEPTED)
    client.send(Pingreq())
    assert client.read() == [Pingresp()]


def test_an_mqtt_5_client_is_told_the_limits() -> None:
    limits = EndpointLimits(receive_maximum=7, packet_bytes_max=1234, topic_alias_maximum=3, keep_alive_max_s=60)
    bench = Bench(limits)
    properties = bench.connect("c", version=V5, keep_alive_s=30).connack.properties
    assert properties == Properties(receive_maximum=7, maximum_packet_size=1234, topic_alias_maximum=3)
    for asked_s in (0, 61):
        assert bench.connect("c", version=V5, keep_alive_s=asked_s).connack.properties.server_keep_alive_s == 60


def test_a_session_expiry_above_the_limit_is_lowered_and_told() -> None:
    bench = Bench(EndpointLimits(session_expiry_max_s=100))
    asked = Properties(session_expiry_interval_s=0xFFFF_FFFF)
    assert bench.connect("a", version=V5, properties=asked).connack.properties.session_expiry_interval_s == 100
    asked = Properties(session_expiry_interval_s=100)
    assert bench.connect("b", version=V5, properties=asked).connack.properties.session_expiry_interval_s is None


def test_a_client_without_an_id_is_given_one() -> None:
    bench = Bench()
    assert bench.connect("", version=V5).connack.properties.assigned_client_identifier == "made-1"
    bench.connect("")
    assert sorted(bench.server.connections) == ["made-1", "made-2"]
    assert refusal(bench, Connect(client_id="", clean_start=False)) is ConnectReturnCode.IDENTIFIER_REJECTED


def test_connects_that_cannot_be_granted_are_refused_with_their_reason() -> None:
    bench = Bench(EndpointLimits(client_id_bytes_max=4, topic_bytes_max=5))
    assert refusal(bench, Connect(client_id="12345")) is ConnectReturnCode.IDENTIFIER_REJECTED
    assert refusal(bench, Connect(client_id="12345", version=V5)) is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
    enhanced = Properties(authentication_method="SCRAM-SHA-1")
    assert (
        refusal(bench, Connect(client_id="c", version=V5, properties=enhanced)) is ReasonCode.BAD_AUTHENTICATION_METHOD
    )
    will = Will(topic="123456")
    assert refusal(bench, Connect(client_id="c", version=V5, will=will)) is ReasonCode.TOPIC_NAME_INVALID
    will = Will(topic="w", payload=bytes(20_000))
    assert refusal(bench, Connect(client_id="c", version=V5, will=will)) is ReasonCode.QUOTA_EXCEEDED
    assert refusal(bench, Connect(client_id="c", will=will)) is ConnectReturnCode.SERVER_UNAVAILABLE
    assert bench.stats.connections_refused == 6
    assert bench.stats.sessions_now == 0


def test_unknown_protocol_levels_are_told_so_in_the_form_they_may_know() -> None:
    bench = Bench()
    old = bench.socket(V311)
    old.send_bytes(b"\x10\x0f\0\6MQIsdp\3\2\0\0\0\1c")
    assert old.read() == [Connack(reason_code=ConnectReturnCode.UNACCEPTABLE_PROTOCOL_VERSION)]
    new = bench.socket(V5)
    new.send_bytes(b"\x10\x0e\0\4MQTT\6\2\0\0\0\0\1c")
    assert new.read() == [Connack(reason_code=ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)]
    assert old.closed
    assert new.closed


def test_a_socket_that_sends_something_else_first_is_closed_without_a_word() -> None:
    bench = Bench()
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xc0\x00", b"\x10\x02\0\4", b"\x16\x03\x01\x02\x00\x01"):
        client = bench.socket()
        client.send_bytes(data)
        assert client.closed
        assert client.read() == []


def test_no_connect_in_time_closes_even_a_client_that_drips_bytes() -> None:
    bench = Bench(EndpointLimits(connect_timeout_ms=2000))
    client = bench.socket()
    for byte in b"\x10\x0d\0\4MQ":
        client.send_bytes(bytes((byte,)))
        bench.wait(0.5)
        if client.closed:
            break
    assert client.closed
    assert bench.stats.connect_timeouts == 1


@BOTH
def test_a_second_connect_is_a_protocol_error(version: ProtocolVersion) -> None:
    bench = Bench()
    client = bench.connect("c", version=version)
    client.send(Connect(client_id="c", version=version))
    assert client.closed
    if version is V5:
        assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR
    assert bench.gone == [("c", "protocol error")]


@pytest.mark.parametrize(
    "packet",
    [Connack(reason_code=ReasonCode.SUCCESS), Pingresp(), Suback(packet_id=1, reason_codes=()), Auth()],
)
def test_packets_that_only_servers_send_are_a_protocol_error(packet: Packet) -> None:
    client = Bench().connect("c", version=V5)
    client.send(packet)
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR


def test_malformed_and_oversized_packets_close_only_their_connection() -> None:
    bench = Bench(EndpointLimits(packet_bytes_max=100))
    other = bench.connect("other")
    five = bench.connect("five", version=V5)
    five.send_bytes(b"\x30\xff\xff\xff\x7f")
    assert disconnect_reason(five.read()) is ReasonCode.PACKET_TOO_LARGE
    three = bench.connect("three")
    three.send_bytes(b"\x36\x00")
    assert three.closed
    assert three.read() == []
    other.send(Pingreq())
    assert other.read() == [Pingresp()]
    assert bench.stats.protocol_errors == 2


def test_what_comes_behind_the_last_word_is_ignored_and_the_socket_ends_after_a_while() -> None:
    bench = Bench(EndpointLimits(linger_timeout_ms=1000))
    client = bench.connect("c", version=V5)
    client.send_bytes(b"\x36\x00" + bytes(100))
    assert client.closed_for_writing
    client.send_bytes(bytes(1000))
    assert not client.socket_gone
    bench.wait(1.5)
    assert client.socket_gone


@BOTH
def test_a_client_id_that_connects_again_takes_over(version: ProtocolVersion) -> None:
    bench = Bench()
    first = bench.connect("c", version=version)
    second = bench.connect("c", version=version)
    assert first.closed
    if version is V5:
        assert disconnect_reason(first.read()) is ReasonCode.SESSION_TAKEN_OVER
    first.drop()
    second.send(Pingreq())
    assert second.read() == [Pingresp()]
    assert bench.server.connections["c"] is second.connection
    assert bench.stats.takeovers == 1


def test_a_thousand_take_overs_leave_one_session() -> None:
    bench = Bench()
    for _ in range(1000):
        client = bench.connect("c", clean_start=False)
        client.subscribe("a/#", 1)
    assert bench.stats.sessions_now == 1
    assert list(bench.server.connections) == ["c"]
    bench.connect("p").publish("a/b", b"once")
    bench.append_all()
    assert client.payloads() == [b"once"]


def test_a_3_1_1_session_outlives_its_connection_unless_it_is_clean() -> None:
    bench = Bench()
    client = bench.connect("c", clean_start=False)
    assert not client.connack.session_present
    client.subscribe("a", 1)
    client.drop()
    again = bench.connect("c", clean_start=False)
    assert again.connack.session_present
    again.drop()
    assert not bench.connect("c", clean_start=True).connack.session_present
    bench.clients[-1].drop()
    assert bench.stats.sessions_now == 0


def test_an_mqtt_5_session_ends_when_its_expiry_is_over() -> None:
    bench = Bench()
    expiry = Properties(session_expiry_interval_s=10)
    client = bench.connect("c", version=V5, properties=expiry)
    client.subscribe("a", 1)
    client.drop()
    bench.wait(9)
    client = bench.connect("c", version=V5, clean_start=False, properties=expiry)
    assert client.connack.session_present
    client.drop()
    bench.wait(11)
    assert bench.stats.sessions_now == 0
    assert not bench.server.broker.has_subscribers
    assert not bench.connect("c", version=V5, clean_start=False).connack.session_present


def test_disconnect_may_change_the_expiry_but_not_begin_one() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5, properties=Properties(session_expiry_interval_s=10))
    client.disconnect(properties=Properties(session_expiry_interval_s=100))
    bench.wait(50)
    assert bench.stats.sessions_now == 1
    client = bench.connect("d", version=V5)
    client.disconnect(properties=Properties(session_expiry_interval_s=100))
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR


def test_the_session_left_longest_ago_makes_room_for_a_new_one() -> None:
    bench = Bench(EndpointLimits(sessions_max=2))
    for client_id in ("old", "older"):
        bench.connect(client_id, clean_start=False)
    bench.clients[1].drop()
    bench.clients[0].drop()
    bench.connect("new")
    assert bench.stats.sessions_evicted == 1
    assert bench.server.broker.session("older") is None
    bench.connect("old", clean_start=False)
    assert refusal(bench, Connect(client_id="more", version=V5)) is ReasonCode.QUOTA_EXCEEDED


@BOTH
def test_silence_for_one_and_a_half_keep_alives_ends_a_connection(version: ProtocolVersion) -> None:
    bench = Bench()
    client = bench.connect("c", version=version, keep_alive_s=10)
    bench.wait(14)
    client.send(Pingreq())
    bench.wait(14.5)
    assert client.read() == [Pingresp()]
    bench.wait(1)
    assert client.closed
    if version is V5:
        assert disconnect_reason(client.read()) is ReasonCode.KEEP_ALIVE_TIMEOUT
    assert bench.stats.keep_alive_timeouts == 1


def test_a_3_1_1_client_without_keep_alive_may_be_silent() -> None:
    bench = Bench()
    client = bench.connect("c", keep_alive_s=0)
    bench.wait(20_000)
    assert not client.closed


def watcher(bench: Bench) -> list[bytes]:
    """The payloads on topic `will` so far."""
    bench.append_all()
    return bench.clients[0].payloads()


def bench_with_watcher(version: ProtocolVersion = V311) -> Bench:
    bench = Bench()
    bench.connect("watcher", version=version).subscribe("will", 1)
    return bench


def test_a_will_is_appended_and_delivered_when_the_network_goes() -> None:
    bench = bench_with_watcher()
    client = bench.connect("c", will=Will(topic="will", payload=b"gone", qos=1))
    client.drop()
    assert bench.clients[0].read() == [], "not before it is safe"
    assert watcher(bench) == [b"gone"]
    assert [(m.client_id, m.topic, m.qos, m.packet_id) for m in bench.appended] == [("c", "will", 1, 0)]


def test_a_will_is_dropped_with_disconnect_unless_the_client_asks_for_it() -> None:
    bench = bench_with_watcher()
    will = Will(topic="will", payload=b"gone")
    bench.connect("a", will=will).disconnect()
    bench.connect("b", version=V5, will=will).disconnect()
    assert watcher(bench) == []
    bench.connect("b", version=V5, will=will).disconnect(ReasonCode.DISCONNECT_WITH_WILL)
    assert watcher(bench) == [b"gone"]


def test_keep_alive_protocol_error_and_take_over_publish_the_will() -> None:
    bench = bench_with_watcher()
    bench.connect("a", keep_alive_s=1, will=Will(topic="will", payload=b"silent"))
    bench.wait(2)
    assert watcher(bench) == [b"silent"]
    bench.connect("b", will=Will(topic="will", payload=b"wrong")).send_bytes(b"\x00\x00")
    assert watcher(bench) == [b"wrong"]
    bench.connect("c", will=Will(topic="will", payload=b"taken over"))
    bench.connect("c")
    assert watcher(bench) == [b"taken over"]


def test_a_delayed_will_waits_and_a_client_that_returns_takes_it_back() -> None:
    bench = bench_with_watcher()
    will = Will(topic="will", payload=b"late", properties=Properties(will_delay_interval_s=5))
    expiry = Properties(session_expiry_interval_s=60)
    bench.connect("c", version=V5, will=will, properties=expiry).drop()
    bench.wait(4)
    bench.connect("c", version=V5, clean_start=False, will=will, properties=expiry).drop()
    bench.wait(4)
    assert watcher(bench) == []
    bench.wait(2)
    assert watcher(bench) == [b"late"]
    bench.wait(60)
    assert watcher(bench) == [], "once"


def test_a_delayed_will_comes_at_the_latest_with_the_end_of_the_session() -> None:
    bench = bench_with_watcher()
    will = Will(topic="will", payload=b"late", properties=Properties(will_delay_interval_s=50))
    bench.connect("c", version=V5, will=will, properties=Properties(session_expiry_interval_s=3)).drop()
    bench.wait(2)
    assert watcher(bench) == []
    bench.wait(2)
    assert watcher(bench) == [b"late"]
    bench.connect("c", version=V5, will=will, properties=Properties(session_expiry_interval_s=30)).drop()
    bench.connect("c", version=V5, clean_start=True)
    assert watcher(bench) == [b"late"], "a clean start ends the session"


def test_a_will_carries_its_properties_and_may_be_retained() -> None:
    bench = bench_with_watcher(V5)
    properties = Properties(content_type="text/plain", user_properties=(("k", "v"),))
    will = Will(topic="will", payload=b"x", retain=True, properties=properties)
    bench.connect("c", version=V5, will=will).drop()
    bench.append_all()
    assert bench.clients[0].read() == [Publish(topic="will", payload=b"x", properties=properties)]
    (retained,) = bench.connect("late").subscribe("will")
    assert retained == Publish(topic="will", payload=b"x", retain=True)


def test_a_server_that_shuts_down_publishes_no_wills() -> None:
    bench = bench_with_watcher()
    client = bench.connect("c", version=V5, will=Will(topic="will"))
    client.connection.shut_down(bench.now_s)
    assert disconnect_reason(client.read()) is ReasonCode.SERVER_SHUTTING_DOWN
    assert watcher(bench) == []


def test_pubrec_for_what_was_sent_at_qos_1_is_a_protocol_error() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5)
    client.subscribe("a", 1)
    client.publish("a", b"x", 1)
    bench.append_all()
    client.read()
    client.send(Pubrec(packet_id=1))
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR
