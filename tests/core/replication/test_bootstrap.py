"""How nodes find their cluster, and how one begins: never are there two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.replication.founding import VOTERS, Disk, Net, eventually
from tests.core.replication.virtual_time import in_virtual_time
from tidegate_core.errors import DataDirError
from tidegate_core.replication.bootstrap import ALIVE_S
from tidegate_wire.errors import ConfigError


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test in virtual time."""

    @wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def work() -> None:
            await test(*args, **kwargs)

        in_virtual_time(work())

    return run


async def founded(net: Net) -> None:
    """Three nodes that have just founded their cluster."""
    for node in VOTERS:
        net.start(node)
    await net.all_found(*VOTERS)


@pytest.mark.parametrize("order", list(permutations(VOTERS)))
@virtual
async def test_in_whatever_order_nodes_start_they_found_one_cluster(order: tuple[int, ...]) -> None:
    async with Net() as net:
        for node in order:
            assert not net.cluster_ids(), "a cluster began before all voters were there"
            net.start(node)
            await asyncio.sleep(1)
        await net.all_found(*VOTERS)
        assert len(net.cluster_ids()) == 1
        assert {disk.founders for disk in net.disks.values()} == {net.disks[1].founders}
        assert all(disk.is_founder and not disk.is_replacement for disk in net.disks.values())
        assert sorted(net.disks[1].founders) == [(node, net.disks[node].directory_id) for node in VOTERS]


@settings(deadline=None, max_examples=30)
@given(order=st.permutations((1, 2, 3, 4, 5)), delays_ms=st.lists(st.integers(0, 1000), min_size=5, max_size=5))
def test_five_nodes_found_one_cluster_in_whatever_order_and_time_they_start(
    order: list[int], delays_ms: list[int]
) -> None:
    @virtual
    async def start_all() -> None:
        async with Net() as net:
            for node, delay_ms in zip(order, delays_ms, strict=True):
                net.start(node, voters=(1, 2, 3, 4, 5))
                await asyncio.sleep(delay_ms / 1000)
            await net.all_found(*order)
            assert len(net.cluster_ids()) == 1
            assert all(disk.is_founder and len(disk.founders) == 5 for disk in net.disks.values())

    start_all()


@virtual
async def test_a_node_alone_founds_its_cluster_at_once() -> None:
    async with Net() as net:
        net.start(7, voters=(7,))
        await net.all_found(7, within_s=0.01)
        assert net.disks[7].is_founder


@virtual
async def test_two_of_three_voters_do_not_found_a_cluster() -> None:
    async with Net() as net:
        net.start(1)
        net.start(2)
        await asyncio.sleep(120)
        assert not net.cluster_ids()


@pytest.mark.parametrize("moment", ["before", "after"])
@virtual
async def test_the_lowest_crashes_at_its_founding_and_the_others_wait_for_it(moment: str) -> None:
    async with Net() as net:
        net.disk(1).crash_at_founding = moment
        for node in VOTERS:
            net.start(node)
        await eventually(lambda: net.processes[1].is_dead)
        own = net.disks[1].cluster_id
        assert (own is not None) == (moment == "after")
        await asyncio.sleep(30)
        assert net.disks[2].cluster_id is None
        assert net.disks[3].cluster_id is None
        net.start(1)
        await net.all_found(*VOTERS)
        assert len(net.cluster_ids()) == 1
        assert own in {None, net.disks[1].cluster_id}
        assert all(disk.is_founder for disk in net.disks.values())


@pytest.mark.parametrize("node", VOTERS)
@virtual
async def test_a_node_whose_disk_was_wiped_comes_back_as_a_replacement(node: int) -> None:
    async with Net() as net:
        await founded(net)
        await net.crash(node)
        net.wipe(node)
        net.start(node)
        await net.all_found(node)
        assert len(net.cluster_ids()) == 1
        assert net.disks[node].is_replacement
        assert not net.disks[node].is_founder


@virtual
async def test_a_node_that_was_wiped_between_its_answer_and_the_founding_is_a_replacement() -> None:
    async with Net() as net:
        net.disk(1).crash_at_founding = "after"
        for node in VOTERS:
            net.start(node)
        await eventually(lambda: net.processes[1].is_dead)
        await net.crash(2)
        net.wipe(2)
        net.start(2)
        await asyncio.sleep(ALIVE_S)
        net.start(1)
        await net.all_found(*VOTERS)
        assert [disk.is_replacement for disk in map(net.disk, VOTERS)] == [False, True, False]


@virtual
async def test_a_wiped_lowest_founds_nothing_while_somebody_is_silent() -> None:
    async with Net() as net:
        await founded(net)
        for node in VOTERS:
            await net.crash(node)
        net.wipe(1)
        net.wipe(2)
        net.start(1)
        net.start(2)
        await asyncio.sleep(120)
        assert net.disks[1].cluster_id is None
        net.start(3)
        await net.all_found(*VOTERS)
        assert net.cluster_ids() == {net.disks[3].cluster_id}


@pytest.mark.parametrize("others_run", [True, False])
@virtual
async def test_a_founded_node_starts_again_whether_others_run_or_not(others_run: bool) -> None:
    async with Net() as net:
        await founded(net)
        for node in VOTERS if not others_run else (2,):
            await net.crash(node)
        net.start(2)
        await net.all_found(2)
        assert len(net.cluster_ids()) == 1


@virtual
async def test_a_node_of_another_cluster_is_refused_in_one_clear_line() -> None:
    async with Net() as net:
        await founded(net)
        await net.crash(2)
        other = Disk(2, net.new_id())
        other.found("another", tuple((net.disks[node].node_id, net.new_id()) for node in VOTERS), is_replacement=False)
        net.disks[2] = other
        net.start(2)
        with pytest.raises(DataDirError, match="your data directory belongs to cluster another") as caught:
            await net.all_found(2)
        assert caught.value.hint


@pytest.mark.parametrize("voters", [(1, 2), (1, 2, 3, 4), (1, 2, 4)])
@virtual
async def test_voters_that_differ_are_refused_with_both_lists(voters: tuple[int, ...]) -> None:
    async with Net() as net:
        await founded(net)
        net.start(4, voters=voters)
        with pytest.raises(ConfigError, match=r"the voters are 1, 2, 3, not " + ", ".join(map(str, voters))):
            await net.all_found(4)


@virtual
async def test_a_node_that_is_no_voter_joins_once_a_voter_knows_the_cluster() -> None:
    async with Net() as net:
        net.start(4)
        net.start(2)
        await asyncio.sleep(60)
        assert net.disks[4].cluster_id is None
        net.start(1)
        net.start(3)
        await net.all_found(4, *VOTERS)
        assert len(net.cluster_ids()) == 1
        assert not net.disks[4].is_founder
        assert 4 not in dict(net.disks[4].founders)


@virtual
async def test_a_node_that_is_no_voter_does_not_join_what_a_single_voter_can_lose() -> None:
    async with Net() as net:
        net.disk(1).crash_at_founding = "after"
        for node in (*VOTERS, 4):
            net.start(node)
        await eventually(lambda: net.processes[1].is_dead)
        net.cut = {(node, 1) for node in (2, 3)} | {(1, node) for node in (2, 3)}
        net.start(1)
        await asyncio.sleep(30)
        assert net.disks[4].cluster_id is None
        await net.crash(1)
        net.wipe(1)
        net.cut.clear()
        net.start(1)
        await net.all_found(*VOTERS, 4)
        assert len(net.cluster_ids()) == 1


@virtual
async def test_a_node_id_that_a_running_node_has_is_refused() -> None:
    async with Net() as net:
        await founded(net)
        net.cut.add((3, 3))
        impostor = net.start(3, disk=Disk(3, net.new_id()))
        with pytest.raises(ConfigError, match="node id 3 is taken"):
            await impostor.task
        assert impostor.disk.cluster_id is None


@pytest.mark.parametrize("is_first", [True, False])
@virtual
async def test_of_two_new_nodes_with_one_id_the_one_at_its_address_stays(is_first: bool) -> None:
    async with Net() as net:
        twin = Disk(1, net.new_id())
        if is_first:
            impostor = net.start(1, disk=twin)
        for node in VOTERS:
            net.start(node)
        if not is_first:
            impostor = net.start(1, disk=twin)
        await net.all_found(*VOTERS)
        with pytest.raises(ConfigError, match="node id 1 is taken: node id 1 is taken by the node at this address"):
            await impostor.task
        assert twin.cluster_id is None


@pytest.mark.parametrize("seed", range(20))
@virtual
async def test_two_new_nodes_with_one_id_found_no_two_clusters_although_neither_reaches_its_address(seed: int) -> None:
    async with Net(seed) as net:
        net.cut.add((1, 1))
        twin = Disk(1, net.new_id())
        for node in VOTERS:
            net.start(node)
        impostor = net.start(1, disk=twin)
        await asyncio.sleep(60)
        assert len(net.cluster_ids() | ({twin.cluster_id} - {None})) <= 1
        ended = [task for task in (impostor.task, net.processes[1].task) if task.done() and not task.cancelled()]
        assert any(isinstance(task.exception(), ConfigError) for task in ended)


@virtual
async def test_a_founded_node_that_is_told_of_fewer_voters_is_refused_although_it_asks_nobody() -> None:
    async with Net() as net:
        await founded(net)
        for node in VOTERS:
            await net.crash(node)
        net.start(1, voters=(1,))
        with pytest.raises(ConfigError, match="began with the voters 1, 2, 3, not 1"):
            await net.all_found(1)


@virtual
async def test_one_misled_node_does_not_keep_the_others_from_starting() -> None:
    async with Net() as net:
        await founded(net)
        for node in VOTERS:
            await net.crash(node)
        stranger = Disk(3, net.new_id())
        stranger.found("another", ((net.disks[3].node_id, stranger.directory_id),), is_replacement=False)
        net.disks[3] = stranger
        net.processes.pop(3)
        net.start(3, voters=(3,))
        await net.all_found(3)
        net.start(2)
        net.start(1)
        await net.all_found(1, 2)


@virtual
async def test_voters_of_different_clusters_are_joined_by_nobody() -> None:
    async with Net() as net:
        net.cut = {(1, 2), (2, 1)}
        for node in (1, 2):
            founders = tuple((net.disk(voter).node_id, net.new_id()) for voter in VOTERS)
            net.disk(node).found(f"cluster of {node}", founders, is_replacement=False)
            net.start(node)
        net.start(3)
        with pytest.raises(DataDirError, match="different clusters: node 1 to cluster of 1, node 2 to cluster of 2"):
            await net.all_found(3)
        assert net.disks[3].cluster_id is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(1, 4)),
        st.tuples(st.just("crash"), st.integers(1, 4)),
        st.tuples(st.just("wipe"), st.integers(1, 4)),
        st.tuples(st.just("crash at founding"), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("cut"), st.integers(0, 8)),
        st.tuples(st.just("loss"), st.integers(0, 5)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=300)
@given(is_founded=st.booleans(), steps=STEPS, seed=st.integers(0, 2**32))
def test_whatever_crashes_and_gets_lost_there_is_one_cluster_and_all_find_it(
    is_founded: bool, steps: list[tuple[str, int]], seed: int
) -> None:
    in_virtual_time(_founding_under_faults(is_founded, steps, seed))


async def _founding_under_faults(is_founded: bool, steps: list[tuple[str, int]], seed: int) -> None:
    async with Net(seed) as net:
        if is_founded:
            await founded(net)
        net.delay_s_max = 0.5
        for step, number in steps:
            await _take(net, step, number)
            assert len(net.cluster_ids()) <= 1
        net.cut.clear()
        net.loss = 0.0
        for node in (*VOTERS, 4):
            net.disk(node).crash_at_founding = ""
            if not net.is_up(node):
                net.start(node)
        await net.all_found(*VOTERS, 4)
        assert len(net.cluster_ids()) == 1
        assert len({disk.founders for disk in net.disks.values()}) == 1
        for node in VOTERS:
            disk = net.disks[node]
            assert disk.is_replacement == (not disk.is_founder)


async def _take(net: Net, step: str, number: int) -> None:
    match step:
        case "start" if not net.is_up(number):
            net.start(number)
        case "crash" if net.is_up(number):
            await net.crash(number)
        case "wipe" if not net.is_up(number):
            net.wipe(number)
        case "crash at founding":
            net.disk(number).crash_at_founding = net.random.choice(["before", "after"])
        case "wait":
            await asyncio.sleep(number / 10)
        case "cut":
            link = VOTERS[number // 3], VOTERS[number % 3]
            net.cut ^= {link}
        case "loss":
            net.loss = number / 10
