"""How a node finds its cluster when it starts, and how a cluster begins.

Every node is told the same voters. A node with an empty data directory asks them all. If one belongs to a cluster, the
node joins that: as a founder, if the cluster began with just this data directory, else as a new node, or a replacement
of one whose disk is gone. Only if all voters answer, and none has a cluster, does the one with the lowest id begin one;
it is on its disk, with the directories of all founders, before anybody hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from uuid import UUID

import structlog

from tidegate_core.data_dir import Founders
from tidegate_core.errors import DataDirError
from tidegate_core.replication.messages import Hello, Lane, Refused, Welcome
from tidegate_core.replication.peers import PeerError, PeerNetwork, PeerRefused
from tidegate_wire.errors import ConfigError
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

POLL_S: Final = 0.2
"""Between two rounds of questions while the node has no cluster."""

HELLO_TIMEOUT_S: Final = 2.0
"""For an answer to one."""

PROGRESS_S: Final = 5.0
"""Between two lines that say for whom the node waits."""

ALIVE_S: Final = 3.0
"""A node that asked something this recently is alive, and nobody else may take its id."""

DUPLICATE_TRIES: Final = 2 * round(ALIVE_S / POLL_S)
"""How often a node asks again that is told its id is taken: what it replaces may have died just now."""

_log = structlog.get_logger()


class Identity(Protocol):
    """What is on the disk of who this node is; `DataDir`."""

    @property
    def node_id(self) -> NodeId:
        """Its number."""

    @property
    def directory_id(self) -> UUID:
        """Made with the data directory."""

    @property
    def cluster_id(self) -> str | None:
        """None until it has one."""

    @property
    def founders(self) -> Founders:
        """Of the cluster."""

    def found(self, cluster_id: str, founders: Founders, *, is_replacement: bool) -> None:
        """The node belongs to the cluster from now on; on disk when this returns."""


class Greeter:
    """Answers other nodes that start."""

    def __init__(
        self,
        identity: Identity,
        *,
        voters: tuple[NodeId, ...],
        incarnation: UUID,
        heard: Mapping[NodeId, tuple[UUID, float]],
        clock_s: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._voters = voters
        self._incarnation = incarnation
        self._heard = heard
        self._clock_s = clock_s

    def hello(self, message: Hello) -> Welcome | Refused:
        """Who this node is, or why the other one may not be here."""
        me = self._identity
        if message.node_id == me.node_id and message.incarnation != self._incarnation:
            return Refused(
                ErrorCode.duplicate_broker_registration, f"node id {me.node_id} is taken by the node at this address"
            )
        if message.cluster_id is not None and me.cluster_id is not None and message.cluster_id != me.cluster_id:
            return Refused(
                ErrorCode.inconsistent_cluster_id,
                f"this is cluster {me.cluster_id}, and your data directory belongs to cluster {message.cluster_id}",
            )
        mine = sorted(self._voters)
        if sorted(message.voters) != mine:
            return Refused(
                ErrorCode.inconsistent_voter_set,
                f"the voters are {_listed(mine)}, not {_listed(sorted(message.voters))}",
            )
        directory_id, at_s = self._heard.get(message.node_id, (message.directory_id, 0.0))
        if directory_id != message.directory_id and self._clock_s() - at_s < ALIVE_S:
            return Refused(
                ErrorCode.duplicate_broker_registration, f"another node with the id {message.node_id} is running"
            )
        return Welcome(
            cluster_id=me.cluster_id,
            node_id=me.node_id,
            directory_id=me.directory_id,
            incarnation=self._incarnation,
            founders=me.founders,
        )


def _listed(nodes: list[NodeId]) -> str:
    return ", ".join(map(str, nodes))


async def find_cluster(
    identity: Identity,
    network: PeerNetwork,
    *,
    voters: tuple[NodeId, ...],
    incarnation: UUID,
    new_cluster_id: Callable[[], str],
) -> None:
    """Return when the node belongs to a cluster, and every voter that could be asked agrees that it does.

    Raises:
        DataDirError: the data directory belongs to another cluster.
        ConfigError: the id is taken, or the other nodes were told of other voters.
        OSError: the data directory can't be written.
    """
    others = [voter for voter in voters if voter != identity.node_id]
    loop = asyncio.get_running_loop()
    progress_s, tries = loop.time() + PROGRESS_S, 0
    while True:
        hello = Hello(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            directory_id=identity.directory_id,
            incarnation=incarnation,
            voters=voters,
        )
        answers = await asyncio.gather(*(_ask(network, voter, hello) for voter in others))
        welcomes = [answer for answer in answers if isinstance(answer, Welcome)]
        refusals = [answer for answer in answers if isinstance(answer, PeerRefused)]
        if refusals:
            tries += 1
            _check_refusals(refusals, identity, is_last=tries > DUPLICATE_TRIES)
        elif identity.cluster_id is not None or _decide(identity, voters, welcomes, new_cluster_id):
            return
        if loop.time() >= progress_s:
            progress_s = loop.time() + PROGRESS_S
            silent = [voter for voter, answer in zip(others, answers, strict=True) if not isinstance(answer, Welcome)]
            _log.info("waiting_for_voters", node_id=identity.node_id, silent=silent)
        await asyncio.sleep(POLL_S)


async def _ask(network: PeerNetwork, voter: NodeId, hello: Hello) -> Welcome | PeerRefused | None:
    try:
        answer = await network.request(voter, Lane.CONTROL, hello, HELLO_TIMEOUT_S)
    except PeerRefused as error:
        return error
    except PeerError:
        return None
    if not isinstance(answer, Welcome):
        return None
    if answer.node_id != voter:
        return PeerRefused(ErrorCode.inconsistent_voter_set, f"at its address is node {answer.node_id}")
    return answer


def _check_refusals(refusals: list[PeerRefused], identity: Identity, *, is_last: bool) -> None:
    for refusal in refusals:
        if refusal.error is ErrorCode.inconsistent_cluster_id:
            raise DataDirError(str(refusal), hint="check --data-dir and --voters")
        if refusal.error is ErrorCode.inconsistent_voter_set:
            raise ConfigError(str(refusal), hint="give every node of the cluster the same --voters")
    if is_last:
        raise ConfigError(
            f"node id {identity.node_id} is taken: {refusals[0]}",
            hint="give each node its own --node-id and --data-dir",
        )


def _decide(
    identity: Identity, voters: tuple[NodeId, ...], welcomes: list[Welcome], new_cluster_id: Callable[[], str]
) -> bool:
    """Join a cluster that somebody has, or begin one if nobody does; says whether the node belongs to one now."""
    for welcome in welcomes:
        if welcome.cluster_id is not None:
            founders = tuple(welcome.founders)
            is_voter = identity.node_id in voters
            is_founder = (identity.node_id, identity.directory_id) in founders
            identity.found(welcome.cluster_id, founders, is_replacement=is_voter and not is_founder)
            _log.info("cluster_joined", cluster_id=welcome.cluster_id, node_id=identity.node_id, is_founder=is_founder)
            return True
    if len(welcomes) == len(voters) - 1 and identity.node_id == min(voters):
        others = ((welcome.node_id, welcome.directory_id) for welcome in welcomes)
        founders = ((identity.node_id, identity.directory_id), *others)
        identity.found(new_cluster_id(), founders, is_replacement=False)
        _log.info("cluster_founded", cluster_id=identity.cluster_id, voters=voters)
        return True
    return False
