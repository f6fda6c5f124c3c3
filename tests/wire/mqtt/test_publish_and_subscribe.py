"""Messages in and out: acknowledgement after append, QoS 0 to 2, retained, shared, windows, queues."""

from __future__ import annotations

import pytest

from tests.wire.mqtt.bench import V5, V311, Bench, Client
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Disconnect,
    Packet,
    ProtocolVersion,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from tidegate_wire.mqtt.properties import Properties
from tidegate_wire.mqtt.reason_codes import ReasonCode

BOTH = pytest.mark.parametrize("version", list(ProtocolVersion))


def disconnect_reason(packets: list[Packet]) -> ReasonCode:
    packet = packets[-1]
    assert isinstance(packet, Disconnect)
    return packet.reason_code


# From the client to the log


@BOTH
def test_acknowledgements_wait_for_append(version: ProtocolVersion) -> None:
    bench = Bench()
    client = bench.connect("c", version=version)
    client.publish("a", b"zero", 0)
    client.publish("a", b"one", 1, packet_id=7)
    client.publish("a", b"two", 2, packet_id=8)
    group = bench.take_group()
    assert client.read() == []
    bench.finish(group)
    assert client.read() == [Puback(packet_id=7), Pubrec(packet_id=8)]
    assert [(m.payload, m.qos, m.packet_id) for m in bench.appended] == [
        (b"zero", 0, 0),
        (b"one", 1, 7),
        (b"two", 2, 8),
    ]
    assert bench.stats.acks_sent == 2
    assert bench.stats.held_bytes == 0


def test_all_acknowledgements_of_a_group_are_one_write() -> None:
    bench = Bench()
    client = bench.connect("c")
    client.send(*(Publish(topic="a", payload=b"x", qos=1, packet_id=number) for number in range(1, 101)))
    writes = client.writes
    bench.finish(bench.take_group())
    assert client.writes == writes + 1
    assert client.read() == [Puback(packet_id=number) for number in range(1, 101)]


def test_while_a_group_is_appended_the_next_one_fills() -> None:
    bench = Bench()
    a, b = bench.connect("a"), bench.connect("b")
    a.publish("t", b"1", 1)
    first = bench.take_group()
    a.publish("t", b"2", 1, packet_id=2)
    b.publish("t", b"3", 1)
    second = bench.take_group()
    assert [message.payload for message in second.messages] == [b"2", b"3"]
    bench.finish(first)
    assert a.read() == [Puback(packet_id=1)]
    assert b.read() == []
    bench.finish(second)
    assert b.read() == [Puback(packet_id=1)]


def test_a_group_is_bounded_by_messages_and_bytes() -> None:
    bench = Bench(EndpointLimits(group_messages_max=3, group_bytes_max=1000))
    client = bench.connect("c")
    client.send(*(Publish(topic="a", payload=b"x", qos=1, packet_id=number) for number in range(1, 8)))
    client.send(*(Publish(topic="a", payload=bytes(600), qos=2, packet_id=number) for number in range(8, 12)))
    sizes = []
    while (group := bench.server.intake.take()) is not None:
        sizes.append([len(message.payload) for message in group.messages])
        bench.finish(group)
    assert sizes == [[1, 1, 1], [1, 1, 1], [1, 600, 600], [600, 600]]
    assert len(client.read()) == 11


def test_what_a_message_carries_is_passed_on_whole() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5)
    properties = Properties(
        payload_format_indicator=1,
        message_expiry_interval_s=60,
        content_type="text/plain",
        response_topic="answer",
        correlation_data=b"id",
        user_properties=(("k", "1"), ("k", "2")),
    )
    client.publish("a/b", "21 °C".encode(), 1, packet_id=3, retain=True, dup=True, properties=properties)
    bench.append_all()
    assert bench.appended == [
        ReceivedMessage(
            "c",
            "a/b",
            "21 °C".encode(),
            1,
            True,
            True,
            3,
            (("k", "1"), ("k", "2")),
            "text/plain",
            "answer",
            b"id",
            1,
            60,
        )
    ]


@BOTH
def test_a_repeated_qos_2_publish_is_answered_and_not_appended_again(version: ProtocolVersion) -> None:
    bench = Bench()
    client = bench.connect("c", version=version)
    client.publish("a", b"x", 2)
    group = bench.take_group()
    client.publish("a", b"x", 2, dup=True)  # before the first one is safe
    assert client.read() == []
    bench.finish(group)
    assert client.read() == [Pubrec(packet_id=1)]
    bench.append_all()
    assert client.read() == [Pubrec(packet_id=1)]
    client.publish("a", b"x", 2, dup=True)
    bench.append_all()
    assert client.read() == [Pubrec(packet_id=1)]
    client.send(Pubrel(packet_id=1))
    assert client.read() == [Pubcomp(packet_id=1)]
    assert len(bench.appended) == 1
    assert bench.stats.duplicates_answered == 2
    client.publish("a", b"the id is free again", 2)
    bench.append_all()
    assert len(bench.appended) == 2


def test_qos_2_is_exactly_once_across_a_reconnect() -> None:
    bench = Bench()
    client = bench.connect("c", clean_start=False)
    client.publish("a", b"x", 2)
    group = bench.take_group()
    client.drop()
    client = bench.connect("c", clean_start=False)
    client.publish("a", b"x", 2, dup=True)
    bench.finish(group)
    bench.append_all()
    assert client.read() == [Pubrec(packet_id=1)]
    client.drop()
    client = bench.connect("c", clean_start=False)
    client.send(Pubrel(packet_id=1))
    assert client.read() == [Pubcomp(packet_id=1)]
    assert len(bench.appended) == 1


def test_pubrel_for_nothing_is_answered_and_mqtt_5_is_told() -> None:
    bench = Bench()
    client = bench.connect("c")
    client.send(Pubrel(packet_id=5))
    assert client.read() == [Pubcomp(packet_id=5)]
    client = bench.connect("d", version=V5)
    client.send(Pubrel(packet_id=5))
    assert client.read() == [Pubcomp(packet_id=5, reason_code=ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]


def test_pubrel_before_pubrec_is_a_protocol_error() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5)
    client.publish("a", b"x", 2)
    client.send(Pubrel(packet_id=1))
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR


@pytest.mark.parametrize("qos", [1, 2])
def test_more_than_receive_maximum_is_refused_and_no_more_than_that_is_taken(qos: int) -> None:
    bench = Bench(EndpointLimits(receive_maximum=3))
    client = bench.connect("c", version=V5)
    for _ in range(3):  # the allowance comes back with each acknowledgement
        client.send(*(Publish(topic="a", payload=b"x", qos=qos, packet_id=number) for number in (1, 2, 3)))
        bench.append_all()
        client.send(*(Pubrel(packet_id=number) for number in (1, 2, 3) if qos == 2))
    client.read()
    zero = [Publish(topic="a", payload=b"0") for _ in range(5)]
    client.send(*zero, *(Publish(topic="a", payload=b"x", qos=qos, packet_id=number) for number in range(1, 10)))
    assert disconnect_reason(client.read()) is ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
    bench.append_all()
    assert len(bench.appended) == 9 + 5 + 3


@pytest.mark.parametrize("qos", [1, 2])
def test_a_3_1_1_client_knows_no_receive_maximum(qos: int) -> None:
    """paho-mqtt sends all that it has queued when it comes back, before it answers a PUBREC."""
    bench = Bench(EndpointLimits(receive_maximum=3))
    client = bench.connect("c")
    client.send(*(Publish(topic="a", payload=b"x", qos=qos, packet_id=number) for number in range(1, 10)))
    bench.append_all()
    assert len(client.read()) == 9
    assert bench.stats.qos2_now == (9 if qos == 2 else 0)
    client.send(*(Pubrel(packet_id=number) for number in range(1, 10) if qos == 2))
    assert bench.stats.qos2_now == 0


def test_packet_ids_of_qos_2_messages_are_bounded_over_all_sessions_and_given_back_when_sessions_end() -> None:
    bench = Bench(EndpointLimits(qos2_total_max=5))
    a, b = bench.connect("a"), bench.connect("b")
    for client, count in ((a, 3), (b, 3)):
        client.send(*(Publish(topic="t", payload=b"x", qos=2, packet_id=number + 1) for number in range(count)))
    bench.append_all()
    assert len(a.read()) == 3
    assert b.closed
    assert bench.stats.qos2_now == 3  # the session of b ended with its connection
    a.send(*(Publish(topic="t", payload=b"x", qos=2, packet_id=number) for number in (4, 5)))
    bench.append_all()
    assert len(a.read()) == 2


def test_topic_aliases_are_resolved_per_connection() -> None:
    bench = Bench(EndpointLimits(topic_alias_maximum=2))
    client = bench.connect("c", version=V5, properties=Properties(session_expiry_interval_s=60))
    client.publish("a/b", b"1", 1, properties=Properties(topic_alias=2))
    client.publish("", b"2", 1, packet_id=2, properties=Properties(topic_alias=2))
    client.publish("c", b"3", 1, packet_id=3, properties=Properties(topic_alias=2))
    client.publish("", b"4", 0, properties=Properties(topic_alias=2))
    bench.append_all()
    assert [message.topic for message in bench.appended] == ["a/b", "a/b", "c", "c"]
    client = bench.connect("c", version=V5, clean_start=False)
    client.publish("", b"5", properties=Properties(topic_alias=2))
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR
    client = bench.connect("c", version=V5)
    client.publish("a", b"6", properties=Properties(topic_alias=3))
    assert disconnect_reason(client.read()) is ReasonCode.TOPIC_ALIAS_INVALID


def test_when_append_fails_the_groups_connections_are_closed_without_acknowledgement() -> None:
    bench = Bench()
    bystander = bench.connect("bystander")
    a, b, quiet = bench.connect("a"), bench.connect("b", version=V5), bench.connect("quiet")
    a.publish("t", b"a1", 1)
    b.publish("t", b"b1", 2)
    quiet.publish("t", b"q1", 0)
    group = bench.take_group()
    bystander.publish("t", b"y1", 1)
    a.publish("t", b"a2", 1, packet_id=2)
    bench.fail(group)
    assert a.closed
    assert a.read() == []
    assert b.closed
    assert disconnect_reason(b.read()) is ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
    assert quiet.closed
    bench.append_all()
    assert [message.payload for message in bench.appended] == [b"y1"], "a2 must not overtake a1"
    assert bystander.read() == [Puback(packet_id=1)]
    assert bench.stats.append_failures == 1
    assert bench.stats.messages_unappended == 4
    assert bench.stats.held_bytes == 0


def test_a_qos_2_message_whose_append_failed_is_taken_when_it_is_sent_again() -> None:
    bench = Bench()
    client = bench.connect("c", clean_start=False)
    client.publish("a", b"x", 2)
    bench.fail(bench.take_group())
    client = bench.connect("c", clean_start=False)
    client.publish("a", b"x", 2, dup=True)
    bench.append_all()
    assert client.read() == [Pubrec(packet_id=1)]
    assert len(bench.appended) == 1


def test_at_the_limit_of_held_bytes_publishers_are_not_read_and_keep_alive_waits() -> None:
    bench = Bench(EndpointLimits(held_bytes_max=1000))
    a, b = bench.connect("a", keep_alive_s=10), bench.connect("b", keep_alive_s=10)
    idle = bench.connect("idle", keep_alive_s=3600)
    a.send(*(Publish(topic="t", payload=bytes(100), qos=1, packet_id=number) for number in range(1, 4)))
    assert bench.stats.read_pauses == 0
    a.publish("t", b"over", 1, packet_id=4)
    b.publish("t", b"over", 1)
    assert [client.reading for client in (a, b, idle)] == [False, False, True]
    first = bench.take_group()
    bench.wait(1000)
    assert bench.gone == []
    assert len(first.messages) == 3
    bench.finish(first)
    assert [client.reading for client in (a, b, idle)] == [True, True, True]
    bench.append_all()
    assert a.read() == [Puback(packet_id=number) for number in (1, 2, 3, 4)]
    assert b.read() == [Puback(packet_id=1)]
    bench.wait(20)
    assert sorted(bench.gone) == [("a", "keep alive timeout"), ("b", "keep alive timeout")]


# From the broker to its subscribers


@BOTH
@pytest.mark.parametrize(("published", "subscribed"), [(p, s) for p in range(3) for s in range(3)])
def test_a_message_is_delivered_at_the_lower_qos(version: ProtocolVersion, published: int, subscribed: int) -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=version)
    subscriber.subscribe("a/+", subscribed)
    bench.connect("p").publish("a/b", b"x", published)
    assert subscriber.read() == [], "not before it is safe"
    bench.append_all()
    qos = min(published, subscribed)
    assert subscriber.read() == [Publish(topic="a/b", payload=b"x", qos=qos, packet_id=1 if qos else 0)]


def test_a_qos_2_delivery_goes_through_its_four_packets() -> None:
    bench = Bench()
    subscriber = bench.connect("s", clean_start=False)
    subscriber.subscribe("a", 2)
    bench.connect("p").publish("a", b"x", 2)
    bench.append_all()
    subscriber.read()
    subscriber.drop()
    subscriber = bench.connect("s", clean_start=False)
    assert subscriber.inbox == [Publish(topic="a", payload=b"x", qos=2, packet_id=1, dup=True)]
    subscriber.read()
    subscriber.send(Pubrec(packet_id=1))
    assert subscriber.read() == [Pubrel(packet_id=1)]
    subscriber.drop()
    subscriber = bench.connect("s", clean_start=False)
    assert subscriber.inbox == [Pubrel(packet_id=1)], "the message itself is delivered"
    subscriber.send(Pubcomp(packet_id=1))
    subscriber.drop()
    assert bench.connect("s", clean_start=False).inbox == []


def test_a_refused_qos_2_delivery_is_over() -> None:
    bench = Bench(EndpointLimits(inflight_max=1))
    subscriber = bench.connect("s", version=V5)
    subscriber.subscribe("a", 2)
    publisher = bench.connect("p")
    publisher.publish("a", b"1", 2)
    publisher.publish("a", b"2", 2, packet_id=2)
    bench.append_all()
    assert subscriber.payloads() == [b"1"]
    subscriber.send(Pubrec(packet_id=1, reason_code=ReasonCode.QUOTA_EXCEEDED))
    assert subscriber.payloads() == [b"2"]
    subscriber.send(Pubrec(packet_id=77))
    assert subscriber.read() == [Pubrel(packet_id=77, reason_code=ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]


def test_unsubscribe_ends_delivery() -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=V5)
    subscriber.subscribe("a", 1)
    subscriber.send(Unsubscribe(packet_id=4, topic_filters=("a", "never")))
    codes = (ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)
    assert subscriber.read() == [Unsuback(packet_id=4, reason_codes=codes)]
    bench.connect("p").publish("a", b"x")
    bench.append_all()
    assert subscriber.read() == []
    assert not bench.server.broker.has_subscribers
    old = bench.connect("o")
    old.send(Unsubscribe(packet_id=4, topic_filters=("a",)))
    assert old.read() == [Unsuback(packet_id=4)]


def test_overlapping_filters_bring_one_copy_with_all_identifiers() -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=V5)
    subscriber.subscribe("a/#", 0, identifier=1)
    subscriber.subscribe("a/b", 1, identifier=2)
    bench.connect("p").publish("a/b", b"x", 1)
    bench.append_all()
    (packet,) = subscriber.read()
    assert isinstance(packet, Publish)
    assert packet.qos == 1
    assert sorted(packet.properties.subscription_identifiers) == [1, 2]


def test_no_local_keeps_a_clients_own_messages_from_it() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5)
    client.subscribe("a", no_local=True)
    client.publish("a", b"mine")
    bench.connect("d").publish("a", b"theirs")
    bench.append_all()
    assert client.payloads() == [b"theirs"]
    client.subscribe("+")
    client.publish("a", b"mine")
    bench.append_all()
    assert client.payloads() == [b"mine"], "the other filter has no No Local"


def test_subscriptions_beyond_the_limits_are_refused_one_by_one() -> None:
    bench = Bench(EndpointLimits(subscriptions_per_session_max=1, topic_bytes_max=6, topic_levels_max=3))
    filters = ("a", "b", "a/b/c/d", "1234567")
    subscribe = Subscribe(packet_id=1, subscriptions=tuple(Subscription(topic_filter=text) for text in filters))
    client = bench.connect("five", version=V5)
    client.send(subscribe)
    invalid = ReasonCode.TOPIC_FILTER_INVALID
    assert client.read() == [
        Suback(packet_id=1, reason_codes=(ReasonCode.SUCCESS, ReasonCode.QUOTA_EXCEEDED, invalid, invalid))
    ]
    client = bench.connect("three")
    client.send(subscribe)
    assert client.read() == [
        Suback(packet_id=1, reason_codes=(ReasonCode.SUCCESS, *[ReasonCode.UNSPECIFIED_ERROR] * 3))
    ]


def test_subscriptions_of_all_sessions_are_bounded_together() -> None:
    bench = Bench(EndpointLimits(subscriptions_max=2))
    first, second = bench.connect("a"), bench.connect("b", version=V5)
    first.subscribe("x")
    first.subscribe("$share/g/x")
    first.subscribe("x", 1)  # a change, not one more
    second.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="x"),)))
    assert second.read() == [Suback(packet_id=1, reason_codes=(ReasonCode.QUOTA_EXCEEDED,))]
    first.drop()
    second.subscribe("x")


def test_properties_reach_mqtt_5_subscribers_and_3_1_1_subscribers_get_the_payload() -> None:
    bench = Bench()
    five, three = bench.connect("five", version=V5), bench.connect("three")
    for subscriber in (five, three):
        subscriber.subscribe("#", 0)
    properties = Properties(
        payload_format_indicator=1,
        content_type="t",
        response_topic="r",
        correlation_data=b"c",
        user_properties=(("a", "b"), ("a", "c")),
    )
    bench.connect("p", version=V5).publish("a", b"x", 1, properties=properties)
    bench.append_all()
    assert five.read() == [Publish(topic="a", payload=b"x", properties=properties)]
    assert three.read() == [Publish(topic="a", payload=b"x")]


# Retained messages


def test_the_last_retained_message_greets_a_new_subscription() -> None:
    bench = Bench()
    publisher = bench.connect("p")
    for topic, payload in (("a/1", b"old"), ("a/1", b"new"), ("a/2", b"gone"), ("a/2", b""), ("b", b"other")):
        publisher.publish(topic, payload, retain=True)
    bench.append_all()
    subscriber = bench.connect("s")
    assert subscriber.subscribe("a/+") == [Publish(topic="a/1", payload=b"new", retain=True)]
    publisher.publish("a/1", b"live", retain=True)
    bench.append_all()
    assert subscriber.read() == [Publish(topic="a/1", payload=b"live", retain=False)]
    assert bench.stats.retained_now == 2


def test_retain_handling_and_retain_as_published() -> None:
    bench = Bench()
    publisher = bench.connect("p")
    publisher.publish("a", b"x", retain=True)
    bench.append_all()
    client = bench.connect("s", version=V5)
    assert client.subscribe("a", retain_handling=2) == []
    assert client.subscribe("a", retain_handling=1) == [], "the subscription is not new"
    assert len(client.subscribe("a", retain_handling=0)) == 1
    assert len(client.subscribe("+", retain_handling=1, retain_as_published=True)) == 1
    assert client.subscribe("$share/g/a") == []
    publisher.publish("a", b"y", retain=True)
    bench.append_all()
    assert Publish(topic="a", payload=b"y", retain=True) in client.read()


def test_retained_messages_are_bounded_by_count_and_bytes() -> None:
    bench = Bench(EndpointLimits(retained_messages_max=2, retained_bytes_max=100))
    publisher = bench.connect("p")
    publisher.publish("big", bytes(200), retain=True)
    for number in range(4):
        publisher.publish(f"t{number}", b"x", retain=True)
    publisher.publish("t0", b"replaced", retain=True)
    bench.append_all()
    retained = bench.connect("s").subscribe("#")
    assert sorted(packet.payload for packet in retained if isinstance(packet, Publish)) == [b"replaced", b"x"]
    assert bench.stats.retained_dropped == 3


def test_a_retained_message_expires() -> None:
    bench = Bench()
    publisher = bench.connect("p", version=V5)
    publisher.publish("a", b"x", retain=True, properties=Properties(message_expiry_interval_s=10))
    bench.append_all()
    bench.wait(4)
    (packet,) = bench.connect("s", version=V5).subscribe("a")
    assert isinstance(packet, Publish)
    assert packet.properties.message_expiry_interval_s == 6
    bench.wait(7)
    assert bench.connect("t", version=V5).subscribe("#") == []
    assert bench.stats.retained_now == 0


# Shared subscriptions


def test_a_shared_subscription_goes_round_and_leaves_out_who_is_away() -> None:
    bench = Bench()
    members = [bench.connect(name, version=V5, properties=Properties(session_expiry_interval_s=60)) for name in "abc"]
    for member in members:
        member.subscribe("$share/g/t/#", 1)
    outside = bench.connect("o")
    outside.subscribe("t/#", 1)
    publisher = bench.connect("p")
    publisher.send(*(Publish(topic="t/1", payload=bytes((n,)), qos=1, packet_id=n) for n in range(1, 10)))
    bench.append_all()
    received = [member.payloads() for member in members]
    assert [len(payloads) for payloads in received] == [3, 3, 3]
    assert sorted(payload for payloads in received for payload in payloads) == [bytes((n,)) for n in range(1, 10)]
    assert len(outside.payloads()) == 9
    members[0].drop()
    publisher.send(*(Publish(topic="t/1", payload=bytes((n,)), qos=1, packet_id=n) for n in range(1, 5)))
    bench.append_all()
    assert [len(member.payloads()) for member in members] == [0, 2, 2]


def test_when_every_member_is_away_messages_wait_for_one_of_them() -> None:
    bench = Bench()
    member = bench.connect("a", clean_start=False)
    member.subscribe("$share/g/t", 1)
    member.drop()
    bench.connect("p").publish("t", b"x", 1)
    bench.append_all()
    assert [
        packet.payload for packet in bench.connect("a", clean_start=False).inbox if isinstance(packet, Publish)
    ] == [b"x"]


def test_no_local_on_a_shared_subscription_is_a_protocol_error() -> None:
    bench = Bench()
    client = bench.connect("c", version=V5)
    client.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="$share/g/t", no_local=True),)))
    assert disconnect_reason(client.read()) is ReasonCode.PROTOCOL_ERROR


def test_members_that_leave_leave_nothing_behind() -> None:
    bench = Bench()
    for name in "ab":
        bench.connect(name).subscribe("$share/g/t", 1)
    for client in list(bench.clients):
        client.drop()
    assert not bench.server.broker.has_subscribers
    bench.connect("p").publish("t", b"x", 1)
    bench.append_all()


# Windows and queues


def flood(bench: Bench, number: int, qos: int = 1) -> None:
    """Publish `number` messages whose payloads are their numbers."""
    publisher = bench.connect("p")
    publisher.send(
        *(Publish(topic="a", payload=b"%d" % n, qos=qos, packet_id=n if qos else 0) for n in range(1, number + 1))
    )
    bench.append_all()


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last + 1)]


def test_a_subscriber_gets_no_more_than_its_window_until_it_acknowledges() -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=V5, properties=Properties(receive_maximum=3))
    subscriber.subscribe("a", 1)
    flood(bench, 10)
    assert subscriber.payloads() == numbers(1, 3)
    subscriber.acknowledge(2)
    assert subscriber.payloads() == numbers(4, 4)
    subscriber.acknowledge(1, 3, 4)
    assert subscriber.payloads() == numbers(5, 7)


def test_what_waits_for_an_absent_session_is_bounded_and_its_drops_are_counted() -> None:
    bench = Bench(EndpointLimits(queued_messages_max=5))
    subscriber = bench.connect("s", clean_start=False)
    subscriber.subscribe("a", 1)
    subscriber.drop()
    flood(bench, 8)
    assert bench.stats.queue_dropped == 3
    again = bench.connect("s", clean_start=False)
    assert [packet.payload for packet in again.inbox if isinstance(packet, Publish)] == numbers(1, 5)


@pytest.mark.parametrize("limits", [{"queued_bytes_max": 2000}, {"queued_bytes_total_max": 2000}])
def test_what_waits_is_bounded_by_bytes_of_one_and_of_all_sessions(limits: dict[str, int]) -> None:
    bench = Bench(EndpointLimits(**limits))
    bench.connect("s", clean_start=False).subscribe("a", 1)
    bench.clients[0].drop()
    flood(bench, 100)
    waiting = bench.connect("s", clean_start=False)
    assert 0 < len(waiting.payloads()) < 10
    assert bench.stats.queue_dropped > 90
    waiting.acknowledge(*range(1, 11))
    flood(bench, 3)
    assert len(waiting.payloads()) == 3, "acknowledged messages give their bytes back"


def test_queued_messages_expire() -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=V5, properties=Properties(session_expiry_interval_s=600))
    subscriber.subscribe("a", 1)
    subscriber.drop()
    publisher = bench.connect("p", version=V5)
    publisher.publish("a", b"short", 1, properties=Properties(message_expiry_interval_s=5))
    publisher.publish("a", b"long", 1, packet_id=2, properties=Properties(message_expiry_interval_s=100))
    bench.append_all()
    bench.wait(30)
    again = bench.connect("s", version=V5, clean_start=False)
    (packet,) = again.inbox
    assert isinstance(packet, Publish)
    assert packet.payload == b"long"
    assert packet.properties.message_expiry_interval_s == 70
    assert bench.stats.queue_expired == 1


def test_unacknowledged_messages_come_again_in_order_with_dup_within_the_new_window() -> None:
    bench = Bench()
    subscriber = bench.connect("s", clean_start=False)
    subscriber.subscribe("a", 1)
    flood(bench, 6)
    subscriber.acknowledge(2)
    subscriber.drop()
    properties = Properties(receive_maximum=2, session_expiry_interval_s=60)
    again = bench.connect("s", version=V5, clean_start=False, properties=properties)
    assert [(p.payload, p.dup, p.packet_id) for p in again.inbox if isinstance(p, Publish)] == [
        (b"1", True, 1),
        (b"3", True, 3),
    ]
    again.read()
    again.acknowledge(1, 3)
    assert again.payloads() == [b"4", b"5"]
    again.acknowledge(6)  # sent on the connection before, acknowledged only now
    again.acknowledge(4, 5)
    assert again.payloads() == []


def test_packet_ids_wrap_and_leave_out_those_in_flight() -> None:
    bench = Bench(EndpointLimits(inflight_max=2))
    subscriber = bench.connect("s")
    subscriber.subscribe("a", 1)
    session = bench.server.broker.session("s")
    assert session is not None
    session._last_packet_id = 65_533
    flood(bench, 5)
    seen: list[int] = []
    while packets := [packet for packet in subscriber.read() if isinstance(packet, Publish)]:
        seen += [packet.packet_id for packet in packets]
        subscriber.acknowledge(seen[-1])  # the first one stays in flight
    assert seen == [65_534, 65_535, 1, 2, 3]


def test_a_message_above_the_clients_maximum_packet_size_counts_as_delivered() -> None:
    bench = Bench()
    subscriber = bench.connect("s", version=V5, properties=Properties(maximum_packet_size=50))
    for topic_filter, qos in (("a", 1), ("b", 0)):
        subscriber.subscribe(topic_filter, qos)
    publisher = bench.connect("p")
    for topic in ("a", "b"):
        publisher.publish(topic, bytes(100), 1)
        publisher.publish(topic, b"small", 1, packet_id=2)
    bench.append_all()
    assert subscriber.payloads() == [b"small", b"small"]


def slow_subscriber(bench: Bench, qos: int) -> Client:
    subscriber = bench.connect("s")
    subscriber.subscribe("a", qos)
    subscriber.stuck_at_bytes = 200
    return subscriber


def test_a_subscriber_that_does_not_read_loses_qos_0_counted_and_keeps_qos_1() -> None:
    bench = Bench()
    zero = slow_subscriber(bench, 0)
    for _ in range(5):
        flood(bench, 100, 0)
    assert bench.stats.qos0_dropped > 0
    assert len(zero.payloads()) + bench.stats.qos0_dropped == 500
    zero.drop()
    one = slow_subscriber(bench, 1)
    for _ in range(3):
        flood(bench, 100, 1)
    before = one.payloads()
    assert len(before) < 300
    one.drain()
    one.acknowledge(*range(1, 301))
    while packets := [packet for packet in one.read() if isinstance(packet, Publish)]:
        before += [packet.payload for packet in packets]
        one.acknowledge(*range(1, 301))
    assert before == numbers(1, 100) * 3
    assert bench.stats.queue_dropped == 0


def test_a_subscriber_that_never_reads_is_closed() -> None:
    bench = Bench(EndpointLimits(write_stall_timeout_ms=5000))
    subscriber = slow_subscriber(bench, 0)
    flood(bench, 100, 0)
    assert not subscriber.reading
    bench.wait(6)
    assert subscriber.socket_gone
    assert bench.stats.write_stalls == 1
    assert bench.gone[-1] == ("s", "the client does not read")


def test_asking_for_all_retained_messages_again_and_again_stops_when_nothing_is_read() -> None:
    bench = Bench(EndpointLimits(outbound_bytes_max=20_000))
    publisher = bench.connect("p")
    for number in range(100):
        publisher.publish(f"t/{number}", bytes(100), retain=True)
    bench.append_all()
    subscriber = bench.connect("s")
    subscriber.stuck_at_bytes = 20_000
    ask = Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="#"),))
    subscriber.send(*[ask] * 1000)
    assert len(subscriber.read()) < 500
    assert not subscriber.reading


def test_properties_count_against_the_limit_of_held_bytes() -> None:
    bench = Bench(EndpointLimits(held_bytes_max=100_000))
    client = bench.connect("c", version=V5)
    properties = Properties(user_properties=(("", ""),) * 100)
    for number in range(1, 6):
        client.publish("a", b"", 1, packet_id=number, properties=properties)
    assert bench.stats.held_bytes > 100_000
    client.publish("a", b"", 1, packet_id=6)
    assert not client.reading


def test_the_hosts_messages_are_delivered_and_not_appended() -> None:
    bench = Bench()
    subscriber = bench.connect("s")
    subscriber.subscribe("$SYS/#", 1)
    bench.server.publish(ReceivedMessage("", "$SYS/backlog", b"17", 1, retain=True), bench.now_s)
    bench.server.flush()
    assert subscriber.read() == [Publish(topic="$SYS/backlog", payload=b"17", qos=1, packet_id=1)]
    assert bench.server.intake.is_empty
    assert len(bench.connect("t", version=V311).subscribe("$SYS/+")) == 1
