"""MQTT 3.1.1 and 5: packets, sessions and topic filters (sans-IO), and the asyncio endpoint around them."""

from tidegate_wire.mqtt.endpoint import MqttEndpoint
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import Append, ReceivedMessage
from tidegate_wire.mqtt.stats import EndpointStats

__all__ = ["Append", "EndpointLimits", "EndpointStats", "MqttEndpoint", "ReceivedMessage"]
