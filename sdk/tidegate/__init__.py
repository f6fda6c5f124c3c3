"""What downstream services import, and the `tidegate` command.

`from tidegate import Consumer, Event`; errors are in `tidegate.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.consumer import Consumer
    from tidegate.event import Event, StreamPartition
    from tidegate.kafka_settings import ConsumerLimits

__all__ = ["Consumer", "ConsumerLimits", "Event", "StreamPartition"]

_MODULES = {
    "Consumer": "tidegate.consumer",
    "ConsumerLimits": "tidegate.kafka_settings",
    "Event": "tidegate.event",
    "StreamPartition": "tidegate.event",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the command must not load a Kafka client to print its help."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tidegate' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 # as above

    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "confluent_kafka":
            raise
        raise ModuleNotFoundError(
            f"tidegate.{name} needs confluent-kafka: pip install 'tidegate[sdk]'", name=error.name
        ) from error
