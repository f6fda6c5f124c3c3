"""The story the demo tells: events flow, a leader dies, the uplink is cut, an edge dies, all is counted.

The core is a cluster of three nodes; what its clients are told is where all three are.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from tidegate.demo.counts import CoreCounts, Counts, FleetCounts, GroupCounts, acknowledged_events
from tidegate.demo.display import Display
from tidegate.demo.options import DemoOptions
from tidegate.demo.processes import ListeningPart, Part, Processes, free_ports
from tidegate.demo.proof import Proof, prove
from tidegate.demo.relay import Relay
from tidegate_wire.address import Address

RATE_HZ: Final = 20.0
"""Of each device: with 50 devices a thousand events a second, which two small cores carry with all parts beside."""

STREAM: Final = "events"
GROUP: Final = "demo"
EDGES: Final = ("plant-north", "plant-south")
MEMBERS: Final = 2
NODES: Final = 3
"""Of the core: the smallest cluster that survives the death of one."""

LEADER_PART: Final = 0.15
"""Of the fleet's time passes before the node that leads most of the stream is killed."""

LEADER_GONE_S: Final = 2.0
"""For how long it stays dead: long enough to see that nothing waits for it."""

QUIET_PART: Final = 0.3
"""Of the fleet's time passes before the uplink is cut."""

KILL_PART: Final = 0.4
"""Of the outage passes before an edge is killed."""

DRAIN_TIMEOUT_S: Final = 30.0
"""For everything to arrive after the devices ended; what is missing then is counted as lost."""

RECONNECT_S_MAX: Final = 1.0
"""An edge tries its uplink this often; the half minute that suits ten thousand edges is long for who watches one."""

_TICK_S: Final = 0.25


class Story:
    """One run of the demo.

    Args:
        options: how long, how many, and for how long the uplink is gone.
        directory: for data, logs and the ledger.
        processes: ends what is started here.
        relay: the uplink's cable.
        display: what people see.
    """

    def __init__(
        self, options: DemoOptions, directory: Path, processes: Processes, relay: Relay, display: Display
    ) -> None:
        self._options = options
        self._directory = directory
        self._processes = processes
        self._relay = relay
        self._display = display
        self._core = ""
        """Where the nodes of the core are, as clients are told."""
        self._nodes: list[ListeningPart] = []
        self._node_addresses: list[Address] = []
        self._edges: list[ListeningPart] = []
        self._edge_addresses: list[Address] = []
        self._others: list[Part] = []
        self._ledger = directory / "ledger.jsonl"
        self._fleet_counts = FleetCounts(directory / "fleet.json")
        self._group_counts = GroupCounts([directory / f"member-{number}.txt" for number in range(MEMBERS)])
        self._core_counts: CoreCounts | None = None
        self._uplink: Address | None = None
        self._asking: asyncio.Task[int] | None = None
        self._last_committed = 0

    async def tell(self) -> Proof:
        """Run it from beginning to end.

        Raises:
            PartFailedError: a part did not come up, or ended.
        """
        try:
            return await self._tell()
        finally:
            if self._asking is not None:
                await asyncio.gather(self._asking, return_exceptions=True)
            if self._core_counts is not None:
                self._core_counts.close()

    async def _tell(self) -> Proof:
        display, options = self._display, self._options
        display.headline("every event once, in order, none lost: watch it break, and count")
        display.phase("starting three core nodes, a bridge, two edges and two consumers, each its own process")
        await self._start_parts()
        fleet = await self._start_fleet()
        start_s = time.monotonic()
        who = "1 device replays" if options.devices == 1 else f"{options.devices} devices replay"
        display.phase(f"{who} recorded temperatures, {RATE_HZ * options.devices:,.0f} events a second")
        await self._watch_until(start_s + LEADER_PART * options.seconds)
        await self._kill_a_leader()
        cut_s = max(start_s + QUIET_PART * options.seconds, time.monotonic())
        await self._watch_until(cut_s)
        if options.outage_s:
            self._relay.cut()
            display.phase("the uplink is cut: the edges go on acknowledging, onto their own disks", uplink_is_cut=True)
            await self._watch_until(cut_s + KILL_PART * options.outage_s)
        await self._kill_an_edge()
        if options.outage_s:
            await self._watch_until(cut_s + options.outage_s)
            self._relay.mend()
            display.phase("the uplink is back: the tide runs out, oldest first")
        while fleet.running:
            await self._tick()
            await asyncio.sleep(_TICK_S)
        if await fleet.wait() != 0:
            raise fleet.failure("failed")
        display.phase("the devices are done; the last events arrive")
        missed = await self._drain()
        display.phase("a fresh consumer reads everything, and the devices' ledger is compared with it")
        return await prove(self._core, STREAM, self._ledger, missed_by_group=missed)

    async def _start_parts(self) -> None:
        await self._start_core()
        self._core_counts = CoreCounts(self._core, STREAM)
        bridge = self._part("bridge", "--listen", "127.0.0.1:0", "--core", self._core)
        self._uplink = await self._relay.start()
        self._edges = [self._edge(name, "127.0.0.1:0") for name in EDGES]
        self._others = [bridge]
        for number, output in enumerate(self._group_counts.paths, start=1):
            arguments = ["-m", "tidegate.demo.group_member", self._core, GROUP, STREAM, str(output)]
            self._others.append(Part(f"consumer-{number}", arguments, self._directory))
        for part in (bridge, *self._edges, *self._others[1:]):
            await self._processes.start(part)
        self._relay.target = await bridge.ready()
        self._edge_addresses = [await edge.ready() for edge in self._edges]

    async def _start_core(self) -> None:
        self._node_addresses = [Address("127.0.0.1", port) for port in free_ports(NODES)]
        self._core = ",".join(map(str, self._node_addresses))
        self._nodes = [self._node(number) for number in range(NODES)]
        for node in self._nodes:
            await self._processes.start(node)
        for node in self._nodes:
            await node.ready()

    def _node(self, number: int) -> ListeningPart:
        voters = ",".join(f"{voter}@{address}" for voter, address in enumerate(self._node_addresses, start=1))
        name = f"core-{number + 1}"
        arguments = ["--node-id", str(number + 1), "--listen", str(self._node_addresses[number]), "--voters", voters]
        return self._part("core", *arguments, name=name, data_dir=name)

    async def _kill_a_leader(self) -> None:
        """kill -9 of the node that leads most of the stream, and a start on the same disk some time later."""
        assert self._core_counts is not None
        number = await asyncio.to_thread(self._core_counts.busiest_node) - 1
        self._display.phase(f"core-{number + 1}, which leads the stream, is killed with kill -9: the other two go on")
        dead, self._nodes[number] = self._nodes[number], self._node(number)
        await dead.kill()
        await self._watch_until(time.monotonic() + LEADER_GONE_S, without=self._nodes[number])
        await self._processes.start(self._nodes[number])
        await self._nodes[number].ready()
        self._display.phase(f"core-{number + 1} is back, and catches up")

    def _part(self, command: str, *arguments: str, name: str = "", data_dir: str = "") -> ListeningPart:
        data = ["--data-dir", str(self._directory / data_dir)] if data_dir else []
        return ListeningPart(name or command, [command, *arguments, *data], self._directory)

    def _edge(self, name: str, listen: str) -> ListeningPart:
        arguments = ["--id", name, "--listen", listen, "--uplink", f"mqtt://{self._uplink}"]
        arguments += ["--reconnect-delay-max-s", str(RECONNECT_S_MAX)]
        return self._part("edge", *arguments, name=name, data_dir=name)

    async def _start_fleet(self) -> Part:
        options = self._options
        targets = ",".join(f"mqtt://{address}" for address in self._edge_addresses)
        arguments = ["-m", "tidegate", "sim", "--target", targets, "--trace", "bundled"]
        arguments += ["--devices", str(options.devices), "--rate", str(RATE_HZ), "--seconds", str(options.seconds)]
        arguments += ["--ledger", str(self._ledger), "--status-file", str(self._fleet_counts.path)]
        fleet = Part("devices", arguments, self._directory)
        await self._processes.start(fleet)
        return fleet

    async def _kill_an_edge(self) -> None:
        """kill -9, and a start on the same port and the same disk."""
        name, address = EDGES[-1], self._edge_addresses[-1]
        self._display.phase(
            f"{name} is killed with kill -9, and started again on the same disk",
            uplink_is_cut=bool(self._options.outage_s),
        )
        await self._edges[-1].kill()
        self._edges[-1] = self._edge(name, str(address))
        await self._processes.start(self._edges[-1])
        await self._edges[-1].ready()

    def _committed(self, counts: CoreCounts) -> int:
        """The last answer of the core; it is asked in the background, since a dead node answers late."""
        if self._asking is None or self._asking.done():
            if self._asking is not None:
                self._last_committed = max(self._last_committed, self._asking.result())
            self._asking = asyncio.create_task(asyncio.to_thread(counts.read), name="ask the core")
        return self._last_committed

    async def _watch_until(self, time_s: float, *, without: Part | None = None) -> None:
        """Show the counts until `time_s`, in seconds of `time.monotonic`; all parts have to run, `without` excepted."""
        while time.monotonic() < time_s:
            await self._tick(without)
            await asyncio.sleep(min(_TICK_S, max(0.0, time_s - time.monotonic())))

    async def _drain(self) -> int:
        """Wait until the group saw everything acknowledged; returns how many it missed."""
        acknowledged = acknowledged_events(self._ledger)
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while True:
            await self._tick()
            missed = len(acknowledged - self._group_counts.seen)
            if not missed or time.monotonic() > deadline_s:
                return missed
            await asyncio.sleep(_TICK_S)

    async def _tick(self, without: Part | None = None) -> None:
        """Show the counts as they are now.

        Raises:
            PartFailedError: a part that has to run ended.
        """
        for part in (*self._nodes, *self._edges, *self._others):
            if part is not without and not part.running:
                raise part.failure("ended before the demo did")
        assert self._core_counts is not None
        published, acknowledged = self._fleet_counts.read()
        committed = self._committed(self._core_counts)
        consumed = self._group_counts.read()
        # The numbers are not of one instant; what is further along is at least as new.
        # Records that nodes write for themselves, one at each election, count as committed too.
        committed = min(max(committed, consumed), published)
        published, acknowledged = max(published, committed), max(acknowledged, committed)
        self._display.counts(
            Counts(published=published, acknowledged=acknowledged, committed=committed, consumed=consumed)
        )
