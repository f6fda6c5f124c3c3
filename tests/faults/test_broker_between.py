"""A broker of another project between the edge and two bridges; bridges and broker are killed under load."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.brokers import amqtt_broker
from tests.support.gateway import DEFAULT_STREAM, Gateway, PartName, Wiring
from tests.support.peers import require_peer
from tests.support.processes import free_port, mosquitto_broker, wait_until
from tests.support.seeds import seeded

BRIDGES: tuple[PartName, ...] = ("bridge", "bridge-2")
QUICK = ["--keepalive-s", "2", "--reconnect-delay-max-s", "0.5"]


@pytest.mark.slow
@pytest.mark.peer("mosquitto")
def test_kills_of_bridges_and_of_mosquitto_between_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    program = require_peer("mosquitto")
    port = free_port()
    gateway = Gateway(tmp_path, Wiring(options={"edge": QUICK}, broker_port=port))
    with ExitStack() as stack, gateway:
        mosquitto = stack.enter_context(ExitStack())
        mosquitto.enter_context(mosquitto_broker(program, tmp_path, port=port))
        gateway.start("core", "bridge", "bridge-2", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=12)
        wait_until(lambda: gateway.read(DEFAULT_STREAM) != [], 20, "events reach the core")
        victims: tuple[PartName | None, ...] = ("bridge", None, "bridge-2", "bridge", None)
        for victim in victims:
            time.sleep(chance.uniform(0.2, 1.0))  # the random instant
            if victim is not None:
                gateway.kill(victim)
                time.sleep(chance.uniform(0.0, 0.5))  # meanwhile the other one has all the work
                gateway.start(victim)
            else:
                mosquitto.close()  # kill -9
                mosquitto.enter_context(mosquitto_broker(program, tmp_path, port=port))
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(30)
        gateway.wait_drained(30)


@pytest.mark.slow
async def test_two_bridges_at_amqtt_lose_and_double_nothing(tmp_path: Path) -> None:
    """amqtt knows no shared subscriptions: every bridge gets every batch."""

    def run(gateway: Gateway) -> None:
        with gateway:
            gateway.start("core")
            bridges = [gateway.launch(name) for name in BRIDGES]  # together: amqtt lets each wait for MQTT 5 in vain
            for bridge in bridges:
                bridge.wait_ready()
            gateway.start("edge")
            fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=5)
            assert fleet.wait(40) == 0, fleet.output()
            gateway.assert_holds(30)
            gateway.wait_drained(30)

    async with amqtt_broker() as port:
        await asyncio.to_thread(run, Gateway(tmp_path, Wiring(options={"edge": QUICK}, broker_port=port)))
