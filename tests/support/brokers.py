"""Brokers of other projects that run inside a test's event loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from amqtt.broker import Broker

from tests.support.processes import free_port


@asynccontextmanager
async def amqtt_broker(port: int | None = None) -> AsyncIterator[int]:
    """An amqtt broker on a port of 127.0.0.1; yields the port."""
    port = port or free_port()
    logging.getLogger("transitions").setLevel(logging.WARNING)
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    try:
        yield port
    finally:
        await broker.shutdown()
