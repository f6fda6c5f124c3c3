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

TAKEN_S: Final = 2 * ALIVE_S
"""How long a node asks again that is told its id is taken: what it replaces may have died just now."""

GREETED_MAX: Final = 1000
"""Nodes whose greeting is remembered; more than there are in a cluster."""

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
        self._greeted: dict[NodeId, tuple[UUID, float]] = {}
        """As `heard`, of nodes that have no cluster yet, so that two under one id don't found one each."""

    @property
    def node_id(self) -> NodeId:
        """This node."""
        return self._identity.node_id

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
        if self._is_taken(message):
            return Refused(
                ErrorCode.duplicate_broker_registration, f"another node with the id {message.node_id} is running"
            )
        self._greeted.pop(message.node_id, None)
        self._greeted[message.node_id] = message.directory_id, self._clock_s()
        if len(self._greeted) > GREETED_MAX:
            del self._greeted[next(iter(self._greeted))]
        return Welcome(
            cluster_id=me.cluster_id,
            node_id=me.node_id,
            directory_id=me.directory_id,
            incarnation=self._incarnation,
            founders=me.founders,
        )

    def _is_taken(self, message: Hello) -> bool:
        for known in (self._heard, self._greeted):
            directory_id, at_s = known.get(message.node_id, (message.directory_id, 0.0))
            if directory_id != message.directory_id and self._clock_s() - at_s < ALIVE_S:
                return True
        return False


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
    """Return when the node belongs to a cluster; if it begins one, when most voters belong to it.

    Raises:
        DataDirError: the data directory belongs to another cluster, or the voters to several.
        ConfigError: the id is taken, or the cluster or the other nodes have other voters.
        OSError: the data directory can't be written.
    """
    _check_voters(identity, voters)
    others = [voter for voter in voters if voter != identity.node_id]
    loop = asyncio.get_running_loop()
    progress_s = loop.time() + PROGRESS_S
    taken_since_s: float | None = None
    begins = is_elsewhere = False
    while True:
        hello = Hello(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            directory_id=identity.directory_id,
            incarnation=incarnation,
            voters=voters,
        )
        # A new node asks at its own address too: if another process is there, that one has its id, and none of the
        # others is to hear of this one, which would keep that one out.
        me = [voter for voter in voters if voter == identity.node_id and others and identity.cluster_id is None]
        asked = me if is_elsewhere else me + others
        answers = await asyncio.gather(*(_ask(network, voter, hello) for voter in asked))
        is_elsewhere = bool(me) and isinstance(answers[0], PeerRefused)
        welcomes = [answer for answer in answers if isinstance(answer, Welcome) and answer.node_id != identity.node_id]
        refusals = [answer for answer in answers if isinstance(answer, PeerRefused)]
        if any(refusal.error is ErrorCode.duplicate_broker_registration for refusal in refusals):
            taken_since_s = taken_since_s or loop.time()
            if loop.time() - taken_since_s > TAKEN_S:
                raise ConfigError(
                    f"node id {identity.node_id} is taken: {refusals[0]}",
                    hint="give each node its own --node-id and --data-dir",
                )
        else:
            taken_since_s = None
            _check_refusals(refusals, is_outvoted=_is_majority_of_one_cluster(identity, voters, welcomes))
            if identity.cluster_id is None:
                begins = _decide(identity, voters, welcomes, new_cluster_id)
            # Who began a cluster goes on asking until others belong to it: they hold its id for taken meanwhile.
            is_agreed = _is_majority_of_one_cluster(identity, voters, welcomes)
            if identity.cluster_id is not None and (is_agreed or not begins):
                return
        if loop.time() >= progress_s:
            progress_s = loop.time() + PROGRESS_S
            heard = {welcome.node_id for welcome in welcomes}
            _log.info(
                "waiting_for_voters",
                node_id=identity.node_id,
                silent=[voter for voter in others if voter not in heard],
                refused_by=[str(refusal) for refusal in refusals],
            )
        await asyncio.sleep(POLL_S)


def _check_voters(identity: Identity, voters: tuple[NodeId, ...]) -> None:
    """A log that has to be made anew would begin with the voters that this node is told of."""
    began_with = sorted(node for node, _ in identity.founders)
    if identity.cluster_id is not None and began_with != sorted(voters):
        raise ConfigError(
            f"cluster {identity.cluster_id} began with the voters {_listed(began_with)}, not {_listed(sorted(voters))}",
            hint="give every node the --voters that the cluster began with",
        )


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


def _is_majority_of_one_cluster(identity: Identity, voters: tuple[NodeId, ...], welcomes: list[Welcome]) -> bool:
    """Whether most of the voters, this node among them, belong together: whoever disagrees is the odd one then."""
    cluster_ids = [welcome.cluster_id for welcome in welcomes]
    if identity.node_id in voters:
        cluster_ids.append(identity.cluster_id)
    return any(cluster_id and cluster_ids.count(cluster_id) > len(voters) // 2 for cluster_id in cluster_ids)


def _check_refusals(refusals: list[PeerRefused], *, is_outvoted: bool) -> None:
    for refusal in refusals:
        if refusal.error is ErrorCode.inconsistent_cluster_id:
            error: DataDirError | ConfigError = DataDirError(str(refusal), hint="check --data-dir and --voters")
        elif refusal.error is ErrorCode.inconsistent_voter_set:
            error = ConfigError(str(refusal), hint="give every node of the cluster the same --voters")
        else:
            continue  # it may answer later
        if not is_outvoted:
            raise error
        _log.warning("voter_disagrees", reason=str(refusal), hint=error.hint)


def _decide(
    identity: Identity, voters: tuple[NodeId, ...], welcomes: list[Welcome], new_cluster_id: Callable[[], str]
) -> bool:
    """Join a cluster that somebody has, or begin one if all are there and nobody has; says whether it begins one."""
    known = {welcome.cluster_id: welcome.node_id for welcome in welcomes if welcome.cluster_id is not None}
    if len(known) > 1:
        belongings = ", ".join(f"node {node} to {cluster_id}" for cluster_id, node in known.items())
        raise DataDirError(f"the voters belong to different clusters: {belongings}", hint="check their --data-dir")
    is_voter = identity.node_id in voters
    if not is_voter and not _is_majority_of_one_cluster(identity, voters, welcomes):
        return False  # the only voter that has begun may lose its disk, and the voters would begin another cluster
    for welcome in welcomes:
        if welcome.cluster_id is not None:
            founders = tuple(welcome.founders)
            is_founder = (identity.node_id, identity.directory_id) in founders
            identity.found(welcome.cluster_id, founders, is_replacement=is_voter and not is_founder)
            _log.info("cluster_joined", cluster_id=welcome.cluster_id, node_id=identity.node_id, is_founder=is_founder)
            return False
    if len(welcomes) == len(voters) - 1 and identity.node_id == min(voters):
        others = ((welcome.node_id, welcome.directory_id) for welcome in welcomes)
        founders = ((identity.node_id, identity.directory_id), *others)
        identity.found(new_cluster_id(), founders, is_replacement=False)
        _log.info("cluster_founded", cluster_id=identity.cluster_id, voters=voters)
        return True
    return False
