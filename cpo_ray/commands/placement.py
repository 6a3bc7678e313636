"""Print who gets which GPUs and when, for `validate` and at the start of a run."""

from typing import TYPE_CHECKING

from rich.markup import escape

from cpo_ray.cluster.cards import Cards
from cpo_ray.cluster.session import cluster_address, find_cards
from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import say

if TYPE_CHECKING:
    from cpo_ray.planning.placement import Placement

PLACED = frozenset({"reference", "sampling", "cpo", "mle", "generation", "reward", "text_metrics"})
"""The stages that start processes on GPUs where there are some. The others need neither a GPU nor a cluster."""

UNKNOWN = (
    "GPUs: counted when the run joins the cluster at {address}. With a number in cluster.gpus this prints who gets them"
)


def place_run(config: RunConfig) -> RunConfig:
    """Print the placement and return the configuration without `auto`. Joins the cluster, if there is one, to count its GPUs.

    Raises ConfigError for what cannot fit on this machine.
    """
    placement = find_placement(config)
    print_placement(placement)
    refuse_faults(placement)
    return placement.config


def preview_placement(config: RunConfig) -> "Placement | None":
    """The placement, if it is known without joining a cluster; None, with a line that says so, if it is not."""
    address, cluster = cluster_address(config.cluster), config.cluster
    if address is None:
        return find_placement(config)
    if cluster.gpus is None and cluster.gpus_per_worker is None:
        say(escape(UNKNOWN.format(address=address)))
        return None
    return _place(config, _given(config))


def find_placement(config: RunConfig) -> "Placement":
    """The placement on this machine or on the cluster that it joins, if its GPUs must be counted."""
    return _place(config, find_cards(config.cluster) if _must_count(config) else _given(config))


def print_placement(placement: "Placement") -> None:
    """One line per phase."""
    for line in placement.lines:
        say(escape(line))


def refuse_faults(placement: "Placement") -> None:
    """Raise ConfigError for what cannot fit on this machine."""
    if placement.faults:
        raise ConfigError("\n".join(("this machine cannot run this:", *(f"  {fault}" for fault in placement.faults))))


def _given(config: RunConfig) -> Cards:
    return Cards(config.cluster.gpus or 0, local=cluster_address(config.cluster) is None)


def _must_count(config: RunConfig) -> bool:
    cluster = config.cluster
    if cluster.gpus_per_worker == 0 or cluster.device == "cpu":
        return False
    if cluster_address(cluster) is None:
        return cluster.gpus != 0
    workers = config.reference.workers, config.training.workers
    return cluster.gpus is None and (cluster.gpus_per_worker is None or None in workers)


def _place(config: RunConfig, cards: Cards) -> "Placement":
    from cpo_ray.planning.placement import place, read_shape

    return place(config, cards, None if cards.memory_gib is None else read_shape(config))
