import pytest

from cpo_ray.cluster import waiting
from cpo_ray.cluster.waiting import describe_lack, wait_for
from cpo_ray.errors import ClusterError


def test_missing_resources_are_described_in_one_line():
    bundles = [{"CPU": 1, "GPU": 1}] * 16
    line = describe_lack(bundles, {"CPU": 104, "GPU": 8, "memory": 1}, {"CPU": 104})
    assert line == (
        "needed: 16 GPU + 16 CPU, total: 8 GPU + 104 CPU, free: 0 GPU + 104 CPU "
        "(in 16 bundles, the largest 1 GPU + 1 CPU on one node)"
    )


class FakeGroup:
    """A placement group that becomes ready at the given call, or never."""

    def __init__(self, ready_at):
        self.ready_at, self.calls = ready_at, 0

    def wait(self, timeout):
        self.calls += 1
        return self.calls == self.ready_at


@pytest.fixture
def fake_ray(monkeypatch):
    """Ray as `wait_for` sees it: one node of eight GPUs where two are needed, and a clock that advances 1 s per reading."""
    import ray
    import ray.util

    group, removed, now = FakeGroup(3), [], [0.0]
    monkeypatch.setattr(ray.util, "placement_group", lambda bundles, strategy: group)
    monkeypatch.setattr(ray.util, "remove_placement_group", removed.append)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 8.0, "CPU": 96.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": 8.0, "CPU": 95.0})

    def tick():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(waiting.time, "monotonic", tick)
    return group, removed


def test_waiting_for_a_late_node_is_reported_every_half_minute(fake_ray):
    group, removed = fake_ray
    group.ready_at, notices = 121, []  # after two minutes
    wait_for([{"CPU": 1, "GPU": 1}] * 16, 1800, notices.append)
    assert len(notices) == 4  # not at every poll
    assert "needed: 16 GPU + 16 CPU, total: 8 GPU + 96 CPU, free: 8 GPU + 95 CPU" in notices[0]
    assert "1800 s at most" in notices[0]
    assert removed == [group]


def test_a_node_that_never_comes_is_an_error_with_a_remedy(fake_ray):
    group, removed = fake_ray
    group.ready_at = None
    with pytest.raises(ClusterError, match=r"total: 8 GPU \+ 96 CPU.*cluster\.wait_s.*quota"):
        wait_for([{"CPU": 1, "GPU": 1}] * 16, 100, lambda _: None)
    assert removed == [group]
