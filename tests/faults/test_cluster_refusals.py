"""Nodes that are started wrongly beside a cluster that runs: one clear line, an exit code, and no harm done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cluster import Cluster, NodePlan, stable_ports
from tests.support.processes import TidegatePart
from tidegate_core.data_dir import DataDir
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId

USAGE = 2
REFUSED = 4
END_TIMEOUT_S = 20.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that run; the tests leave them as they are."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start()
        cluster.create_topic("events", 3)
        yield cluster
        assert set(cluster.running()) == set(cluster.node_ids)
        cluster.wait_in_step("events", 3)


def start(directory: Path, plan: NodePlan, node_id: int, voters: str) -> TidegatePart:
    arguments = ["core", "--node-id", str(node_id), "--listen", str(plan.address), "--data-dir", str(plan.data_dir)]
    return TidegatePart([*arguments, "--voters", voters], directory, name=f"wrong-{node_id}")


def assert_refused(directory: Path, plan: NodePlan, node_id: int, voters: str, *words: str, code: int) -> None:
    """It ends by itself, with a line that says what is wrong and one that says what to do."""
    with start(directory, plan, node_id, voters) as part:
        assert part.wait(END_TIMEOUT_S) == code, part.output()
        output = part.output()
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, output
    for word in words:
        assert word in errors[0], output
    assert "hint:" in output, output


def copy_data(cluster: Cluster, node_id: int, plan: NodePlan, **meta: str | int) -> None:
    """What a node has, with other words about whose it is."""
    shutil.copytree(cluster.plans[node_id].data_dir, plan.data_dir, ignore=shutil.ignore_patterns("lock"))
    path = plan.data_dir / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | meta), encoding="utf-8")


def new_plan(directory: Path) -> NodePlan:
    (port,) = stable_ports(1)
    return NodePlan(address=Address("127.0.0.1", port), data_dir=directory / "new")


def test_a_voter_with_the_data_of_another_cluster_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    cluster.stop(3)
    try:
        plan = NodePlan(address=cluster.plans[3].address, data_dir=tmp_path / "other")
        data_dir = DataDir.claim(plan.data_dir, node_id=NodeId(3))
        founders = [(NodeId(node_id), uuid4()) for node_id in (1, 2)]
        data_dir.found("another-cluster", (*founders, (NodeId(3), data_dir.directory_id)), is_replacement=False)
        data_dir.release()
        assert_refused(tmp_path, plan, 3, cluster.voters, "cluster", code=REFUSED)
    finally:
        cluster.start(3)


def test_a_node_that_was_a_cluster_of_its_own_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    plan = new_plan(tmp_path)
    with TidegatePart(
        ["core", "--node-id", "4", "--listen", str(plan.address), "--data-dir", str(plan.data_dir)], tmp_path
    ) as alone:
        alone.wait_ready()
    assert_refused(tmp_path, plan, 4, cluster.voters, "voters", code=USAGE)


def test_a_second_node_with_the_same_id_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    plans = [new_plan(tmp_path), new_plan(tmp_path)]
    plans[1].data_dir = tmp_path / "second"
    first = start(tmp_path, plans[0], 7, cluster.voters)
    with first:
        first.wait_ready()
        (tmp_path / "second-log").mkdir()
        assert_refused(tmp_path / "second-log", plans[1], 7, cluster.voters, "id 7", code=USAGE)
        assert first.running(), "the rightful holder of the id goes on"
        assert first.terminate() == 0


def test_a_voters_id_at_another_address_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    assert_refused(tmp_path, new_plan(tmp_path), 3, cluster.voters, "3", code=USAGE)


def test_a_node_that_was_told_other_voters_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    others = ",".join(cluster.voters.split(",")[:2])
    assert_refused(tmp_path, new_plan(tmp_path), 8, others, "voters", code=USAGE)


def test_a_voter_that_the_cluster_does_not_know_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    plan = new_plan(tmp_path)
    assert_refused(tmp_path, plan, 9, f"{cluster.voters},9@{plan.address}", "voters", code=USAGE)


def test_a_data_directory_of_a_newer_version_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    plan = new_plan(tmp_path)
    copy_data(cluster, 1, plan, format_version=99)
    assert_refused(tmp_path, plan, 1, cluster.voters, "version 99", code=REFUSED)


def test_a_data_directory_of_another_node_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    plan = new_plan(tmp_path)
    copy_data(cluster, 1, plan)
    assert_refused(tmp_path, plan, 2, cluster.voters, "node 1", code=REFUSED)
