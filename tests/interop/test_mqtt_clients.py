"""Other projects' MQTT clients against the endpoint: paho-mqtt, mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.peers import require_peer
from tests.support.processes import wait_until
from tidegate_wire.address import Address
from tidegate_wire.mqtt import EndpointLimits, MqttEndpoint, ReceivedMessage

V311, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5
BOTH = pytest.mark.parametrize("version", [V311, V5], ids=["3.1.1", "5"])
QUALITIES = pytest.mark.parametrize("qos", [0, 1, 2])

DEADLINE_S = 10.0


class Served:
    """An endpoint on a loop of its own in a thread, since these clients block."""

    def __init__(self, limits: EndpointLimits | None = None) -> None:
        self.appended: list[ReceivedMessage] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.endpoint = self._run(self._make(limits))
        self.address: Address = self._run(self.endpoint.start(Address("127.0.0.1", 0)))

    async def _make(self, limits: EndpointLimits | None) -> MqttEndpoint:
        return MqttEndpoint(self._append, limits=limits)

    async def _append(self, messages: Sequence[ReceivedMessage]) -> None:
        self.appended += messages

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    def close(self) -> None:
        self._run(self.endpoint.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.appended]


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served(EndpointLimits(linger_timeout_ms=200))
    yield server
    server.close()


def properties_of(packet_type: int) -> Any:
    return Properties(packet_type)  # type: ignore[no-untyped-call] # paho leaves this one untyped


class Paho:
    """A paho client with its network thread; what it receives goes into a queue."""

    def __init__(
        self,
        served: Served,
        client_id: str,
        version: MQTTProtocolVersion,
        *,
        clean: bool = True,
        will: bytes | None = None,
    ) -> None:
        options: dict[str, Any] = {} if version == V5 else {"clean_session": clean}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=version, **options)
        self.version = version
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.disconnects: queue.Queue[ReasonCode] = queue.Queue()
        self._subscribed: queue.Queue[list[ReasonCode]] = queue.Queue()
        self._connected: queue.Queue[tuple[bool, ReasonCode]] = queue.Queue()
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_connect = lambda _client, _data, flags, reason, _properties: self._connected.put(
            (flags.session_present, reason)
        )
        self.client.on_disconnect = lambda _client, _data, _flags, reason, _properties: self.disconnects.put(reason)
        self.client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: self._subscribed.put(reasons)
        if will is not None:
            self.client.will_set("will", will, qos=1)
        connect: dict[str, Any] = {}
        if version == V5:
            connect["clean_start"] = clean
            if not clean:
                connect["properties"] = properties_of(PacketTypes.CONNECT)
                connect["properties"].SessionExpiryInterval = 60
        self.client.connect(served.address.host, served.address.port, keepalive=30, **connect)
        self.client.loop_start()
        self.session_present, reason = self._connected.get(timeout=DEADLINE_S)
        assert not reason.is_failure

    def subscribe(self, topic_filter: str, qos: int) -> None:
        if self.version == V5:
            self.client.subscribe(topic_filter, options=SubscribeOptions(qos=qos))
        else:
            self.client.subscribe(topic_filter, qos)
        (reason,) = self._subscribed.get(timeout=DEADLINE_S)
        assert reason.value == qos

    def publish(self, topic: str, payload: bytes, qos: int, **options: Any) -> None:
        """Returns when it is acknowledged."""
        info = self.client.publish(topic, payload, qos, **options)
        info.wait_for_publish(DEADLINE_S)
        assert info.is_published()

    def next(self) -> paho.MQTTMessage:
        return self.messages.get(timeout=DEADLINE_S)

    def vanish(self) -> None:
        """Lose the network without DISCONNECT."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()
        self.client._sock = None

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


ConnectPaho = Callable[..., Paho]


@pytest.fixture
def connect_paho(served: Served) -> Iterator[ConnectPaho]:
    clients: list[Paho] = []

    def connect(client_id: str, version: MQTTProtocolVersion, **options: Any) -> Paho:
        client = Paho(served, client_id, version, **options)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.stop()


@BOTH
@QUALITIES
def test_paho_publishes_and_subscribes(
    served: Served, connect_paho: ConnectPaho, version: MQTTProtocolVersion, qos: int
) -> None:
    subscriber, publisher = connect_paho("s", version), connect_paho("p", version)
    subscriber.subscribe("site/+/temperature", qos)
    payloads = [b"%d" % number for number in range(200)]
    for payload in payloads[:-1]:
        publisher.client.publish("site/a/temperature", payload, qos)
    publisher.publish("site/a/temperature", payloads[-1], qos)
    received = [subscriber.next() for _ in payloads]
    assert [message.payload for message in received] == payloads
    assert {message.qos for message in received} == {qos}
    assert served.payloads() == payloads


@BOTH
def test_paho_finds_a_retained_message(connect_paho: ConnectPaho, version: MQTTProtocolVersion) -> None:
    connect_paho("p", version).publish("state", b"on", 1, retain=True)
    subscriber = connect_paho("s", version)
    subscriber.subscribe("#", 1)
    message = subscriber.next()
    assert (message.payload, message.retain) == (b"on", True)


@BOTH
def test_pahos_will_is_published_when_it_vanishes(
    served: Served, connect_paho: ConnectPaho, version: MQTTProtocolVersion
) -> None:
    watcher = connect_paho("w", version)
    watcher.subscribe("will", 1)
    connect_paho("c", version, will=b"gone").vanish()
    assert watcher.next().payload == b"gone"
    assert served.payloads() == [b"gone"]


@BOTH
def test_pahos_persistent_session_gets_what_it_missed(connect_paho: ConnectPaho, version: MQTTProtocolVersion) -> None:
    subscriber = connect_paho("s", version, clean=False)
    assert not subscriber.session_present
    subscriber.subscribe("t", 1)
    subscriber.vanish()
    connect_paho("p", version).publish("t", b"missed", 1)
    again = connect_paho("s", version, clean=False)
    assert again.session_present
    assert again.next().payload == b"missed"


def test_paho_is_told_that_its_session_was_taken_over(connect_paho: ConnectPaho) -> None:
    first = connect_paho("c", V5)

    def on_disconnect(client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        client.disconnect()  # or it would take over in its turn
        first.disconnects.put(reason)

    first.client.on_disconnect = on_disconnect
    connect_paho("c", V5)
    assert first.disconnects.get(timeout=DEADLINE_S).getName() == "Session taken over"


@BOTH
def test_paho_shares_a_subscription(connect_paho: ConnectPaho, version: MQTTProtocolVersion) -> None:
    members = [connect_paho(name, version) for name in ("a", "b")]
    for member in members:
        member.subscribe("$share/workers/job/#", 1)
    publisher = connect_paho("p", version)
    for number in range(10):
        publisher.publish("job/x", b"%d" % number, 1)
    received = [member.next().payload for member in members for _ in range(5)]
    assert sorted(received) == [b"%d" % number for number in range(10)]


def test_paho_passes_mqtt_5_properties_through(served: Served, connect_paho: ConnectPaho) -> None:
    subscriber, publisher = connect_paho("s", V5), connect_paho("p", V5)
    subscriber.subscribe("t", 1)
    properties = properties_of(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.ResponseTopic = "answer"
    properties.CorrelationData = b"17"
    properties.UserProperty = [("unit", "°C"), ("unit", "K")]
    publisher.publish("t", b"{}", 1, properties=properties)
    received: Any = subscriber.next().properties
    assert received.ContentType == "application/json"
    assert received.ResponseTopic == "answer"
    assert received.CorrelationData == b"17"
    assert received.UserProperty == [("unit", "°C"), ("unit", "K")]
    (message,) = served.appended
    assert message.user_properties == (("unit", "°C"), ("unit", "K"))
    assert message.content_type == "application/json"


def test_paho_uses_topic_aliases(served: Served, connect_paho: ConnectPaho) -> None:
    publisher = connect_paho("p", V5)
    for topic in ("a/long/topic/name", ""):
        properties = properties_of(PacketTypes.PUBLISH)
        properties.TopicAlias = 1
        publisher.publish(topic, b"x", 1, properties=properties)
    assert [message.topic for message in served.appended] == ["a/long/topic/name"] * 2


@BOTH
def test_paho_publishes_a_large_message(
    served: Served, connect_paho: ConnectPaho, version: MQTTProtocolVersion
) -> None:
    payload = bytes(range(256)) * 3_000
    connect_paho("p", version).publish("large", payload, 1)
    assert served.payloads() == [payload]


# mosquitto's command line clients


@contextlib.asynccontextmanager
async def mosquitto_sub(served: Served, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    program = require_peer("mosquitto_sub")
    process = await asyncio.create_subprocess_exec(
        program, "-h", served.address.host, "-p", str(served.address.port), *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def mosquitto_pub(served: Served, *arguments: str, stdin: bytes = b"") -> None:
    program = require_peer("mosquitto_pub")
    process = await asyncio.create_subprocess_exec(
        program,
        "-h",
        served.address.host,
        "-p",
        str(served.address.port),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(stdin), DEADLINE_S)
    assert process.returncode == 0, output


@pytest.mark.peer("mosquitto_pub")
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@QUALITIES
async def test_mosquitto_pub_reaches_mosquitto_sub(served: Served, version: str, qos: int) -> None:
    lines = [f"line {number}" for number in range(500)]
    arguments = ("-V", version, "-q", str(qos), "-t")
    async with mosquitto_sub(served, *arguments, "a/#", "-C", str(len(lines))) as subscriber:
        broker = served.endpoint._server.broker
        await asyncio.to_thread(wait_until, lambda: broker.has_subscribers, DEADLINE_S, "mosquitto_sub subscribes")
        await mosquitto_pub(served, *arguments, "a/b", "-l", stdin="\n".join(lines).encode())
        assert subscriber.stdout is not None
        output = await asyncio.wait_for(subscriber.stdout.read(), DEADLINE_S)
    assert output.decode().splitlines() == lines
    assert [message.payload.decode() for message in served.appended] == lines
    assert {message.qos for message in served.appended} == {qos}


@pytest.mark.peer("mosquitto_pub")
async def test_mosquitto_sub_prints_a_retained_message(served: Served) -> None:
    await mosquitto_pub(served, "-t", "state", "-m", "on", "-r", "-q", "1")
    async with mosquitto_sub(served, "-t", "#", "-C", "1", "-F", "%t %p %r") as subscriber:
        assert subscriber.stdout is not None
        assert await asyncio.wait_for(subscriber.stdout.read(), DEADLINE_S) == b"state on 1\n"


@pytest.mark.peer("mosquitto_pub")
async def test_mosquitto_pub_with_properties_and_will(served: Served) -> None:
    await mosquitto_pub(
        served,
        *("-V", "mqttv5", "-t", "t", "-m", "x", "-q", "2"),
        *("-D", "publish", "user-property", "k", "v", "-D", "publish", "content-type", "text/plain"),
        *("--will-topic", "w", "--will-payload", "not published after DISCONNECT"),
    )
    (message,) = served.appended
    assert message.user_properties == (("k", "v"),)
    assert message.content_type == "text/plain"
