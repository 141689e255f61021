"""How many workers of a study share a machine."""

import pytest
import ray

from cxrdist.study.gang import workers_here
from cxrdist.study.resources import TrialResources
from cxrdist.study.room import places


@pytest.mark.parametrize(
    ("machine", "resources", "count"),
    [
        ({"CPU": 8.0}, {"cpus_per_worker": 2}, 4),
        ({"CPU": 0.3}, {"cpus_per_worker": 0.1}, 3),
        ({"CPU": 64.0, "GPU": 4.0}, {"gpus_per_worker": 0.5}, 8),
        ({"CPU": 64.0}, {"gpus_per_worker": 1}, 0),
    ],
)
def test_a_machine_has_room_for_what_its_scarcest_kind_allows(machine, resources, count):
    assert places(machine, TrialResources(**resources)) == count


def test_a_worker_shares_its_machine_with_all_that_can_run_there_at_once(monkeypatch):
    class Context:
        def get_node_id(self) -> str:
            return "here"

    nodes = [{"NodeID": "there", "Resources": {"CPU": 100.0}}, {"NodeID": "here", "Resources": {"CPU": 16.0}}]
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert workers_here(TrialResources(workers=2, cpus_per_worker=2)) == 8
    assert workers_here(TrialResources(workers=2, cpus_per_worker=2), 3) == 6
    assert workers_here(TrialResources(cpus_per_worker=2), 1) == 1
    assert workers_here(TrialResources(cpus_per_worker=32)) == 1
