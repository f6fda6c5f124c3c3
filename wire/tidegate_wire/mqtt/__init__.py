"""MQTT 3.1.1 and 5: packets, sessions and topic filters (sans-IO), and the asyncio endpoint around them.

For a server: `MqttEndpoint`. For a client: `encode` what it sends, and a `Decoder` with its protocol version for what
it receives; `packets`, `properties` and `reason_codes` hold the vocabulary.
"""

from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.endpoint import MqttEndpoint
from tidegate_wire.mqtt.errors import MqttError
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import Append, PublishRefused, ReceivedMessage
from tidegate_wire.mqtt.packets import ProtocolVersion
from tidegate_wire.mqtt.stats import EndpointStats

__all__ = [
    "Append",
    "Decoder",
    "EndpointLimits",
    "EndpointStats",
    "MqttEndpoint",
    "MqttError",
    "ProtocolVersion",
    "PublishRefused",
    "ReceivedMessage",
    "encode",
]
