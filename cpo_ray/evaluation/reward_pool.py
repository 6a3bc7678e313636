"""The reward model in Ray actors. Every distinct prompt and response of a run is scored once, even if models share it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from cpo_ray.artifacts import Journal, Summary, content_key, write_json, write_rows
from cpo_ray.cluster.raydata import LOGICAL_CPUS, configure, plain_errors
from cpo_ray.config import ClusterConfig, RewardConfig
from cpo_ray.errors import ArtifactError, ClusterError
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.evaluation.reward import (
    PromptResponse,
    RewardModel,
    RewardScore,
    check_reward_model,
    compare_scores,
    load_reward_model,
    score_responses,
    summarise_rewards,
)

BATCH_ROWS = 64  # rows per actor call; a kill loses at most one batch per actor

PairsByModel = Mapping[str, Mapping[str, Sequence[Pair]]]  # model -> decoding -> rows


def score_generations(
    generations: PairsByModel, config: RewardConfig, cluster: ClusterConfig, out: Path, on_rows: Callable[[int], None]
) -> Summary:
    """Compare each response with its `reference` by the reward model. Ray must be initialised.

    Writes reward.RewardRow rows to out/<model>/<decoding>.jsonl and `summarise_rewards` of each to out/scores.json.
    Finished scores are kept in out/scores.partial and are not computed again after a kill. `on_rows(n)` is called when n
    more distinct texts are scored. Returns {"<model> <decoding>": win rate}.

    Raises ConfigError for a model that cannot be used, ServiceError for a score that is not finite, ArtifactError if there
    is nothing to compare.
    """
    config = _with_absolute_path(config)
    check_reward_model(config)
    items = collect_responses(generations)
    journal_path = out / "scores.partial"
    with Journal(journal_path) as journal:
        missing = {key: item for key, item in items.items() if key not in journal}
        on_rows(len(items) - len(missing))
        for batch in _score_missing(missing, config, cluster):
            for key, reward, cut in batch:
                journal.add(key, [reward, cut])
            on_rows(len(batch))
        scores = {key: RewardScore(*journal[key]) for key in items}
    summaries: dict[str, dict[str, Summary]] = {}
    for model, decodings in generations.items():
        for decoding, pairs in decodings.items():
            candidates = [scores[content_key([pair["prompt"], pair["response"]])] for pair in pairs]
            references = [scores[content_key([pair["prompt"], pair["reference"]])] for pair in pairs]
            rows = compare_scores(pairs, candidates, references)
            write_rows(out / model / f"{decoding}.jsonl", rows)
            summaries.setdefault(model, {})[decoding] = summarise_rewards(pairs, rows)
    write_json(out / "scores.json", summaries)
    journal_path.unlink()
    return {
        f"{model} {decoding}": summary["win_rate"]
        for model, decodings in summaries.items()
        for decoding, summary in decodings.items()
    }


def collect_responses(generations: PairsByModel) -> dict[str, PromptResponse]:
    """Return every distinct (prompt, response), references included, by content key.

    Raises ArtifactError if a model has no generations under a decoding.
    """
    items: dict[str, PromptResponse] = {}
    for decodings in generations.values():
        for decoding, pairs in decodings.items():
            if not pairs:
                raise ArtifactError(f"there are no generations to score ({decoding})")
            for pair in pairs:
                for text in (pair["response"], pair["reference"]):
                    items.setdefault(content_key([pair["prompt"], text]), PromptResponse(pair["prompt"], text))
    return items


class RewardActor:
    """Ray Data actor that scores batches of prompts and responses."""

    def __init__(self, config: RewardConfig, device: str, threads: int) -> None:
        """Store the arguments only: the model is loaded in the first call, where an error reaches the user unchanged."""
        import torch

        torch.set_num_threads(threads)
        self.config, self.device = config, device

    @cached_property
    def model(self) -> RewardModel:
        """The reward model, loaded with the first batch."""
        return load_reward_model(self.config, self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Map the columns key, prompt, response to key, reward, cut."""
        items = [PromptResponse(row["prompt"], row["response"]) for row in batch.to_pylist()]
        scores = score_responses(self.model, items, self.config.batch_tokens)
        return pa.table(
            {"key": batch["key"], "reward": [score.reward for score in scores], "cut": [score.cut for score in scores]}
        )


def _score_missing(
    items: Mapping[str, PromptResponse], config: RewardConfig, cluster: ClusterConfig
) -> Iterator[list[tuple[str, float, bool]]]:
    if not items:
        return
    import ray

    rows = [{"key": key, **item._asdict()} for key, item in items.items()]
    blocks = -(-len(rows) // BATCH_ROWS)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    configure(dataset)
    device = cluster.device_of(cluster.worker_gpus)
    scored = dataset.map_batches(
        RewardActor,
        fn_constructor_args=(config, device, cluster.threads_per_worker),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        **actor_options(cluster, blocks, "a reward model"),
    )
    with plain_errors("a reward model's actor"):
        for batch in scored.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow", prefetch_batches=1):
            yield [(row["key"], row["reward"], row["cut"]) for row in batch.to_pylist()]


def actor_options(cluster: ClusterConfig, batches: int, what: str) -> dict[str, Any]:
    """Return an actor pool's options: one actor without GPUs; with GPUs, as many as the cluster has and the batches need.

    what: the model that needs the GPUs, for the error. Raises ClusterError if there are too few.
    """
    import ray
    from ray.data import ActorPoolStrategy

    gpus = cluster.worker_gpus
    if not gpus:
        return {"compute": ActorPoolStrategy(size=1), "num_cpus": LOGICAL_CPUS}
    possible = int(ray.cluster_resources().get("GPU", 0.0) // gpus)
    if not possible:
        raise ClusterError(f"the cluster has fewer than the {gpus:g} GPUs of {what} (cluster.gpus_per_worker)")
    return {"compute": ActorPoolStrategy(min_size=1, max_size=max(1, min(possible, batches))), "num_gpus": gpus}


def _with_absolute_path(config: RewardConfig) -> RewardConfig:
    """Make a model directory absolute, because actors have their own working directory."""
    folder = Path(str(config.model))
    return config.model_copy(update={"model": str(folder.resolve())}) if folder.is_dir() else config
