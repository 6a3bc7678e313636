"""The reward model in Ray actors: every distinct prompt and response of a run is scored once, whoever gave it."""

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
    Question,
    RewardModel,
    Score,
    check_reward_model,
    compare_scores,
    load_reward_model,
    score_questions,
    summarise_rewards,
)

BATCH_ROWS = 64  # what an actor is handed, and what a kill may lose

ByModel = Mapping[str, Mapping[str, Sequence[Pair]]]  # model -> decoding -> rows


def score_generations(
    generations: ByModel, config: RewardConfig, cluster: ClusterConfig, out: Path, on_rows: Callable[[int], None]
) -> Summary:
    """Let the reward model compare each response with its `reference`; Ray must be initialised.

    Writes reward.RewardRow rows to out/<model>/<decoding>.jsonl and `summarise_rewards` of each to out/scores.json.
    Scores that have come in wait in out/scores.partial and are not computed again after a kill. `on_rows(n)` is called
    as n distinct questions are done. Returns {"<model> <decoding>": win rate}.

    Raises ConfigError for a model that cannot be used, ServiceError for a score that is not finite, ArtifactError where
    there is nothing to compare.
    """
    config = _with_absolute_path(config)
    check_reward_model(config)
    questions = collect_questions(generations)
    journal_path = out / "scores.partial"
    with Journal(journal_path) as journal:
        missing = {key: question for key, question in questions.items() if key not in journal}
        on_rows(len(questions) - len(missing))
        for batch in _score_missing(missing, config, cluster):
            for key, reward, cut in batch:
                journal.add(key, [reward, cut])
            on_rows(len(batch))
        scores = {key: Score(*journal[key]) for key in questions}
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


def collect_questions(generations: ByModel) -> dict[str, Question]:
    """Every distinct (prompt, response), the references among them, by content. Raises ArtifactError where there is none."""
    questions: dict[str, Question] = {}
    for decodings in generations.values():
        for decoding, pairs in decodings.items():
            if not pairs:
                raise ArtifactError(f"there are no generations to score ({decoding})")
            for pair in pairs:
                for text in (pair["response"], pair["reference"]):
                    questions.setdefault(content_key([pair["prompt"], text]), Question(pair["prompt"], text))
    return questions


class RewardActor:
    """Scores batches of questions."""

    def __init__(self, config: RewardConfig, device: str, threads: int) -> None:
        """Remember what to load: a fault in loading reaches the user as itself from a call, not from here."""
        import torch

        torch.set_num_threads(threads)
        self.config, self.device = config, device

    @cached_property
    def model(self) -> RewardModel:
        """Loaded at the first batch."""
        return load_reward_model(self.config, self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Columns key, prompt, response become key, reward, cut."""
        questions = [Question(row["prompt"], row["response"]) for row in batch.to_pylist()]
        scores = score_questions(self.model, questions, self.config.batch_tokens)
        return pa.table(
            {"key": batch["key"], "reward": [score.reward for score in scores], "cut": [score.cut for score in scores]}
        )


def _score_missing(
    questions: Mapping[str, Question], config: RewardConfig, cluster: ClusterConfig
) -> Iterator[list[tuple[str, float, bool]]]:
    if not questions:
        return
    import ray

    rows = [{"key": key, **question._asdict()} for key, question in questions.items()]
    blocks = -(-len(rows) // BATCH_ROWS)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    configure(dataset)
    device = "cuda" if cluster.gpus_per_worker else "cpu"
    scored = dataset.map_batches(
        RewardActor,
        fn_constructor_args=(config, device, cluster.threads_per_worker),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        **_actor_options(cluster, blocks),
    )
    with plain_errors("a reward model's actor"):
        for batch in scored.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow", prefetch_batches=1):
            yield [(row["key"], row["reward"], row["cut"]) for row in batch.to_pylist()]


def _actor_options(cluster: ClusterConfig, batches: int) -> dict[str, Any]:
    """One actor on a machine without GPUs; with GPUs, as many as there are and the batches can use."""
    import ray
    from ray.data import ActorPoolStrategy

    each = cluster.gpus_per_worker
    if not each:
        return {"compute": ActorPoolStrategy(size=1), "num_cpus": LOGICAL_CPUS}
    there = int(ray.cluster_resources().get("GPU", 0.0) // each)
    if not there:
        raise ClusterError(f"the cluster has no {each:g} GPUs for a reward model (cluster.gpus_per_worker)")
    return {"compute": ActorPoolStrategy(min_size=1, max_size=max(1, min(there, batches))), "num_gpus": each}


def _with_absolute_path(config: RewardConfig) -> RewardConfig:
    """Actors have a working directory of their own."""
    folder = Path(str(config.model))
    return config.model_copy(update={"model": str(folder.resolve())}) if folder.is_dir() else config
