"""The uplink: a sans-IO window over the event log, and a shell around paho-mqtt."""

from tidegate_edge.uplink.uplink import Uplink, UplinkOptions

__all__ = ["Uplink", "UplinkOptions"]
