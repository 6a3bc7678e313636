"""Stages `judging`, `reward` and `mauve`: measurements of the models' answers."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.markup import escape

from cpo_ray.artifacts import Artifact, Summary, hash_directories, read_jsonl, write_json
from cpo_ray.cluster.resources import scorer_resources
from cpo_ray.config import JudgeConfig, RunConfig
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.stages.generation import GENERATIONS, evaluated_models
from cpo_ray.stages.record import Output, Stage, StageRun

VERDICTS = Output(
    "verdicts/{model}", reads=("data", "generations/{model}"), keys=("judge", "seed"), models=evaluated_models
)
REWARDS = Output("reward", reads=(GENERATIONS,), keys=("reward",), when=lambda config: config.reward.model is not None)
MAUVE_SCORES = Output("mauve", reads=(GENERATIONS,), keys=("mauve", "seed"))


def judge(stage: StageRun) -> None:
    """Ask the judge which of two answers is better: the model's or the ground truth."""
    from cpo_ray.evaluation.templates import read_template

    examples = stage.read("data")
    with _judge_endpoint(stage.config, examples.path) as (url, key, name):
        config = stage.config.judge.model_copy(update={"model": name})
        also = {"judge": name, "template": read_template(config.template)}
        for model in evaluated_models(stage.config):
            answers = stage.read(GENERATIONS.named(model))
            stage.make(
                VERDICTS.named(model), partial(_judge_answers, answers, url, key, config, stage.config.seed), also
            )


def reward(stage: StageRun) -> None:
    """Let a reward model choose between two answers, if one is configured."""
    config = stage.config
    if config.reward.model is None:
        say("  skipped: reward.model names no reward model")
        return
    answers = _answers(stage)

    def build(out: Path) -> Summary:
        from cpo_ray.evaluation.reward_pool import collect_responses, score_generations

        stage.ray.ensure(scorer_resources(config.cluster))
        rows = {
            name: {file.stem: read_jsonl(file) for file in answer_files(artifact)} for name, artifact in answers.items()
        }
        with measured_bar("reward", len(collect_responses(rows)), "texts") as progress:
            return score_generations(rows, config.reward, config.cluster, out, progress.advance)

    stage.make(REWARDS.name, build, hash_directories(model=config.reward.model))


def mauve(stage: StageRun) -> None:
    """Compare the distributions of generated and real continuations."""
    config, answers = stage.config, _answers(stage)

    def build(out: Path) -> Summary:
        from cpo_ray.evaluation.features import load_featurizer
        from cpo_ray.evaluation.mauve import score_mauve

        featurize = load_featurizer(config.mauve)
        files = [(name, file) for name, artifact in answers.items() for file in answer_files(artifact)]
        scores: dict[str, dict[str, Summary]] = {name: {} for name in answers}
        with measured_bar("mauve", len(files), "files") as progress:
            for name, file in files:
                scores[name][file.stem] = score_mauve(read_jsonl(file), featurize, config.mauve, config.seed)
                progress.advance(1, f"{name} {scores[name][file.stem]['mean']:.3f}")
        write_json(out / "scores.json", scores)
        return {
            f"{name} {decoding}": score["mean"] for name, each in scores.items() for decoding, score in each.items()
        }

    stage.make(MAUVE_SCORES.name, build, hash_directories(embedder=config.mauve.embedder))


def judge_key(config: JudgeConfig) -> str | None:
    """The judge's key from the environment; None for the oracle, which needs none. Raises ConfigError if it is missing."""
    from cpo_ray.inference.client import read_key

    if config.url == "oracle":
        return None
    key = read_key(config.key_variable)
    if not key:
        raise ConfigError(f"the judge at {config.url} needs its key in the environment variable {config.key_variable}")
    return key


def check_judge_key(config: RunConfig) -> None:
    """Raise ConfigError for a missing key before the hours of work that precede judging."""
    judge_key(config.judge)


def _judge_answers(answers: Artifact, url: str, key: str, config: JudgeConfig, seed: int, out: Path) -> Summary:
    """Verdicts on one model's answers, a file per decoding."""
    from cpo_ray.evaluation.judge import estimate_cost, judge_answers

    files = answer_files(answers)
    summary: Summary = {}
    for file in files:
        estimate = estimate_cost(read_jsonl(file), config, seed, out / file.name)
        say(f"  {escape(f'{answers.path.name} {file.stem}: {estimate}')}")
    total = sum(answers.manifest.files[file.name]["rows"] for file in files)
    with measured_bar(f"judge {answers.path.name}", total, "pairs") as progress:
        for file in files:
            counts = judge_answers(
                generations=read_jsonl(file),
                url=url,
                key=key,
                config=config,
                seed=seed,
                out=out / file.name,
                on_row=progress.advance,
            )
            summary[file.stem] = counts | {"judge": config.model}
    return summary


@contextlib.contextmanager
def _judge_endpoint(config: RunConfig, examples: Path) -> Iterator[tuple[str, str, str]]:
    """The judge's URL, key and model name: the oracle, started here, or the configured API."""
    key = judge_key(config.judge)
    if key is None:
        from cpo_ray.evaluation.oracle import serve_oracle

        with serve_oracle(examples, config.generation.split) as oracle:
            yield oracle
        return
    yield config.judge.url, key, config.judge.model


def _answers(stage: StageRun) -> dict[str, Artifact]:
    return {name: stage.read(GENERATIONS.named(name)) for name in evaluated_models(stage.config)}


def answer_files(answers: Artifact) -> list[Path]:
    """One per decoding."""
    files = sorted(answers.path.glob("*.jsonl"))
    if not files:
        raise ArtifactError(f"{answers.path} holds no answers. Delete it, and run the stage `generation` again.")
    return files


JUDGING = Stage("judging", "a judge compares each answer with the truth", (VERDICTS,), judge, check_judge_key)
REWARD = Stage("reward", "a reward model compares them too, where one is configured", (REWARDS,), reward)
MAUVE = Stage("mauve", "compare generated with real continuations as distributions", (MAUVE_SCORES,), mauve)
