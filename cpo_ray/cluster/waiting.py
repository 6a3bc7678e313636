"""Wait, for a bounded time, until a stage's resources are free on the cluster."""

import time
from collections.abc import Callable, Mapping, Sequence

from cpo_ray.errors import ClusterError
from cpo_ray.monitoring.console import say

Bundle = Mapping[str, float]  # resources of one process on one node, by Ray's names

POLL_S = 1  # an integer: `PlacementGroup.wait` takes whole seconds
NOTICE_PERIOD_S = 30.0
GROWING = (
    "`ray status` shows why the autoscaler adds no machines: is max_workers of cluster.yaml too low, is the account's quota "
    "too small, is another job running? Fewer training.workers need less."
)
FIXED = (
    "This machine gets no more of them: has a process of an earlier stage not ended? Fewer training.workers need less; "
    "`cpo-ray validate` prints which process gets what."
)


def wait_for(
    bundles: Sequence[Bundle], timeout_s: float, notify: Callable[[str], None] = say, remedy: str = GROWING
) -> None:
    """Wait until all `bundles` fit on the cluster at once; every 30 s call `notify` with a line that says what is missing.

    The request is a placement group, so the autoscaler starts machines for it and Ray decides what fits. The group is
    removed as soon as it is ready. Raises ClusterError after `timeout_s`, with the remedy.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    started = last_notice = time.monotonic()
    try:
        while not group.wait(POLL_S):
            now = time.monotonic()
            lack = describe_lack(bundles, ray.cluster_resources(), ray.available_resources())
            if now - started >= timeout_s:
                raise ClusterError(f"{lack}; waited {now - started:.0f} s (cluster.wait_s). {remedy}")
            if now - last_notice >= NOTICE_PERIOD_S:
                last_notice = now
                notify(f"  [yellow]waiting[/] {lack}; {now - started:.0f} s so far, {timeout_s:.0f} s at most")
    finally:
        remove_placement_group(group)


def describe_lack(bundles: Sequence[Bundle], total: Bundle, free: Bundle) -> str:
    """One line with what is needed, what the cluster has in `total`, and how much of that is free."""
    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0.0) + amount
    parts = [f"needed: {_count(needed, needed)}", f"total: {_count(total, needed)}", f"free: {_count(free, needed)}"]
    largest = max(bundles, key=lambda bundle: bundle.get("GPU", 0))
    return ", ".join(parts) + f" (in {len(bundles)} bundles, the largest {_count(largest, largest)} on one node)"


def _count(amounts: Bundle, names: Mapping[str, float]) -> str:
    return " + ".join(f"{amounts.get(name, 0):g} {name}" for name in sorted(names, reverse=True) if names[name])
