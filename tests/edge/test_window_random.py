"""The window in a bad neighbourhood: messages lost, doubled, late and out of order, crashes, refusals, two bridges."""

from __future__ import annotations

import random

import pytest

from tests.edge.model import World
from tests.support.seeds import seeded

STEPS = 150


def live(world: World, chance: random.Random, *, crash_share: float, forget_share: float) -> None:
    """First trouble (safety), then peace (liveness)."""
    for _ in range(STEPS):
        roll = chance.random()
        if roll < crash_share:
            world.start_edge()
        elif roll < crash_share + forget_share:
            world.core.forget_producers()
        elif roll < 0.2:
            world.disconnect()
        else:
            world.connect()
        for _ in range(chance.randint(0, 12)):
            world.append(chance.choice(list(world.by_device)))
        world.run(world.now_ms + chance.expovariate(1 / 200))
        world.check()
    world.faults = False
    world.refuse_share = 0.0
    world.connect()
    end_ms = world.now_ms + 600_000
    while world.now_ms < end_ms and not world.is_drained():
        world.connect()
        world.run(world.now_ms + 1000, world.is_drained)
    assert world.is_drained(), "everything arrives within ten minutes of peace"
    world.check()


@pytest.mark.parametrize("round_number", range(20))
@pytest.mark.parametrize(
    ("crash_share", "forget_share", "refuse_share"),
    [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.05, 0.0, 0.05), (0.05, 0.03, 0.03)],
    ids=["links", "crashes", "refusals", "memory loss"],
)
def test_every_event_arrives_once_and_in_order(
    round_number: int, crash_share: float, forget_share: float, refuse_share: float
) -> None:
    chance = random.Random(f"{seeded().random()} {round_number} {crash_share} {forget_share} {refuse_share}")
    by_device = {"events": False, "alarms": False, "readings": True}
    world = World(
        chance,
        by_device,
        partitions=chance.choice((1, 3)),
        window_batches_max=chance.choice((1, 5, 16)),
        refuse_share=refuse_share,
    )
    world.core.remembered = max(5, world.window_batches_max)
    live(world, chance, crash_share=crash_share, forget_share=forget_share)
    if refuse_share == 0:
        assert world.log.lost == []
    assert len(world.appended) > 100
