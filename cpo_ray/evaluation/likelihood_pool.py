"""Likelihoods in Ray actors: on GPUs where the cluster has them."""

from collections.abc import Callable, Sequence
from functools import cached_property

import pyarrow as pa

from cpo_ray.cluster.raydata import configure, plain_errors
from cpo_ray.config import ClusterConfig
from cpo_ray.evaluation.likelihood import Continuations, Likelihood, load_likelihood
from cpo_ray.evaluation.reward_pool import actor_options

BATCH_ROWS = 64  # prompts per actor call


class LikelihoodActor:
    """Ray Data actor that scores batches of prompts with their continuations."""

    def __init__(self, source: str, precision: str, device: str, threads: int) -> None:
        """Store the arguments only: the model is loaded in the first call, where an error reaches the user unchanged."""
        import torch

        torch.set_num_threads(threads)
        self.arguments = source, precision, device

    @cached_property
    def likelihood(self) -> Likelihood:
        """The model, loaded with the first batch."""
        return load_likelihood(*self.arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Map the columns row, prompt, continuations to row, logps."""
        rows = [Continuations(row["prompt"], row["continuations"]) for row in batch.to_pylist()]
        return pa.table({"row": batch["row"], "logps": self.likelihood.score(rows)})


def score_continuations(
    rows: Sequence[Continuations],
    source: str,
    precision: str,
    cluster: ClusterConfig,
    on_rows: Callable[[int], None],
) -> list[list[float]]:
    """`Likelihood.score` of all rows in an actor pool; `source` is a directory or hub id that all nodes see.

    Ray must be initialised. `on_rows(n)` is called when n more prompts are scored.
    """
    import ray

    scores: list[list[float]] = [[] for _ in rows]
    if not rows:
        return scores
    blocks = -(-len(rows) // BATCH_ROWS)
    items = [{"row": number, **row._asdict()} for number, row in enumerate(rows)]
    dataset = ray.data.from_items(items, override_num_blocks=blocks)
    configure(dataset)
    device = cluster.device_of(cluster.worker_gpus)
    scored = dataset.map_batches(
        LikelihoodActor,
        fn_constructor_args=(source, precision, device, cluster.threads_per_worker),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        **actor_options(cluster, blocks, "a text metric's language model"),
    )
    with plain_errors("a text metric's actor"):
        for batch in scored.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow", prefetch_batches=1):
            for row in batch.to_pylist():
                scores[row["row"]] = row["logps"]
            on_rows(len(batch))
    return scores
