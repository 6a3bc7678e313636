"""The stages that evaluate models: what they answer, what a judge, a reward model and MAUVE say of it, and the page."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from cpo_ray.artifacts import Artifact, Summary, find_artifact, hash_directories, read_jsonl, read_table, write_json
from cpo_ray.cluster.resources import serving_needs
from cpo_ray.config import JudgeConfig, stage_inputs
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.prometheus import bar
from cpo_ray.run import Run


def generation(run: Run) -> None:
    """Serve the models and let each answer the same prompts."""
    from cpo_ray.evaluation.generation import generate_answers
    from cpo_ray.serving.app import serve_models

    config, examples = run.config.generation, run.need("data", "data")
    rows = read_table(examples.path / config.split).slice(0, config.rows).to_pylist()
    models = {name: run.need(f"models/{name}", "merging") for name in run.config.evaluated_models}
    inputs = {
        name: {
            "generation": stage_inputs(config),
            "seed": run.config.seed,
            "max_response_tokens": run.config.data.max_response_tokens,
            "data": examples.fingerprint,
            "model": model.fingerprint,
        }
        for name, model in models.items()
    }
    missing = {
        name: model.path for name, model in models.items() if not run.current(f"generations/{name}", inputs[name])
    }

    def answer(name: str, endpoint: Any, out: Path) -> Summary:
        summary: Summary = {}
        with bar(name, len(rows) * len(config.decodings), "rows") as progress:
            for decoding, settings in config.decodings.items():
                counts = generate_answers(
                    url=endpoint.url,
                    key=endpoint.key,
                    model=name,
                    examples=rows,
                    decoding=settings,
                    max_tokens=run.config.data.max_response_tokens,
                    seed=run.config.seed,
                    concurrency=config.concurrency,
                    out=out / f"{decoding}.jsonl",
                    on_row=progress.advance,
                )
                summary |= {f"{decoding} {key}": value for key, value in counts.items()}
        return summary

    with contextlib.ExitStack() as stack:
        endpoint = None
        if missing:
            run.ray.ensure(serving_needs(run.config, len(missing)))
            window = run.config.data.max_prompt_tokens + run.config.data.max_response_tokens
            gpus = run.config.serving.engine.tensor_parallel if run.config.cluster.gpus_per_worker else 0
            with bar("engines", len(missing), "models") as progress:
                up = serve_models(
                    missing, run.config.serving, window, gpus, lambda name: progress.advance(1, f"{name} is up")
                )
                endpoint = stack.enter_context(up)
        for name in models:
            run.make(f"generations/{name}", inputs[name], partial(answer, name, endpoint))


def judging(run: Run) -> None:
    """Ask the judge which of two answers is better: the model's or the ground truth."""
    from cpo_ray.evaluation.judge import estimate_cost, judge_answers
    from cpo_ray.evaluation.templates import read_template

    examples = run.need("data", "data")
    with _judge(run, examples.path) as (url, key, model):
        config = run.config.judge.model_copy(update={"model": model})
        for name in run.config.evaluated_models:
            answers = run.need(f"generations/{name}", "generation")

            def build(out: Path, answers: Artifact = answers) -> Summary:
                files = _answer_files(answers)
                total = sum(answers.manifest.files[file.name]["rows"] for file in files)
                summary: Summary = {}
                for file in files:
                    estimate = estimate_cost(read_jsonl(file), config, run.config.seed, out / file.name)
                    say(f"  {escape(f'{answers.path.name} {file.stem}: {estimate}')}")
                with bar(f"judge {answers.path.name}", total, "pairs") as progress:
                    for file in files:
                        counts = judge_answers(
                            generations=read_jsonl(file),
                            url=url,
                            key=key,
                            config=config,
                            seed=run.config.seed,
                            out=out / file.name,
                            on_row=progress.advance,
                        )
                        summary[file.stem] = counts | {"judge": model}
                return summary

            inputs = {
                "judge": stage_inputs(config),
                "template": read_template(config.template),
                "generations": answers.fingerprint,
                "data": examples.fingerprint,
                "seed": run.config.seed,
            }
            run.make(f"verdicts/{name}", inputs, build)


def reward(run: Run) -> None:
    """Let a reward model say which of two answers is better, where one is configured."""
    if run.config.reward.model is None:
        say("  skipped: reward.model names no reward model")
        return
    answers = {name: run.need(f"generations/{name}", "generation") for name in run.config.evaluated_models}

    def build(out: Path) -> Summary:
        from cpo_ray.evaluation.reward_pool import collect_questions, score_generations

        run.ray.ensure()
        rows = {
            name: {file.stem: read_jsonl(file) for file in _answer_files(artifact)}
            for name, artifact in answers.items()
        }
        with bar("reward", len(collect_questions(rows)), "texts") as progress:
            return score_generations(rows, run.config.reward, run.config.cluster, out, progress.advance)

    inputs = {
        "reward": stage_inputs(run.config.reward),
        "generations": {name: artifact.fingerprint for name, artifact in answers.items()},
        **hash_directories(model=run.config.reward.model),
    }
    run.make("reward", inputs, build)


def mauve(run: Run) -> None:
    """Compare the distributions of generated and real continuations."""
    answers = {name: run.need(f"generations/{name}", "generation") for name in run.config.evaluated_models}

    def build(out: Path) -> Summary:
        from cpo_ray.evaluation.features import load_featurizer
        from cpo_ray.evaluation.mauve import score_mauve

        featurize = load_featurizer(run.config.mauve)
        files = [(name, file) for name, artifact in answers.items() for file in _answer_files(artifact)]
        scores: dict[str, dict[str, Summary]] = {name: {} for name in answers}
        with bar("mauve", len(files), "files") as progress:
            for name, file in files:
                scores[name][file.stem] = score_mauve(read_jsonl(file), featurize, run.config.mauve, run.config.seed)
                progress.advance(1, f"{name} {scores[name][file.stem]['mean']:.3f}")
        write_json(out / "scores.json", scores)
        return {
            f"{name} {decoding}": score["mean"] for name, each in scores.items() for decoding, score in each.items()
        }

    inputs = {
        "mauve": stage_inputs(run.config.mauve),
        "seed": run.config.seed,
        "generations": {name: artifact.fingerprint for name, artifact in answers.items()},
        **hash_directories(embedder=run.config.mauve.embedder),
    }
    run.make("mauve", inputs, build)


def report(run: Run) -> None:
    """Tell it in one page, and lay a model card into every model's directory."""
    from cpo_ray.report.model_card import place_cards
    from cpo_ray.report.write import show_report, write_report

    names = ["data", "groups/train", "reward", "mauve", *(f"models/{name}" for name in run.config.models)]
    names += [f"{kind}/{name}" for kind in ("generations", "verdicts") for name in run.config.evaluated_models]
    inputs: dict[str, Any] = {
        name: artifact.fingerprint for name in names if (artifact := find_artifact(run.root, name)) is not None
    }
    inputs = {"artifacts": inputs, "config": stage_inputs(run.config)}
    page = run.make("report", inputs, lambda out: write_report([run.root], out))
    place_cards(page.path / "cards", run.root / "models")
    show_report(page.manifest.summary, page.path)


def _answer_files(answers: Artifact) -> list[Path]:
    """One per decoding."""
    files = sorted(answers.path.glob("*.jsonl"))
    if not files:
        raise ArtifactError(f"{answers.path} holds no answers. Delete it, and run the stage `generation` again.")
    return files


@contextlib.contextmanager
def _judge(run: Run, examples: Path) -> Iterator[tuple[str, str, str]]:
    """The judge's URL, key and name: the oracle, started here, or the configured API."""
    config = run.config.judge
    key = judge_key(config)
    if key is None:
        from cpo_ray.evaluation.oracle import serve_oracle

        with serve_oracle(examples, run.config.generation.split) as judge:
            yield judge
        return
    yield config.url, key, config.model


def judge_key(config: JudgeConfig) -> str | None:
    """The judge's key from the environment; None for the oracle, which needs none. Raises ConfigError where it is missing."""
    from cpo_ray.inference.client import read_key

    if config.url == "oracle":
        return None
    key = read_key(config.key_variable)
    if not key:
        raise ConfigError(f"the judge at {config.url} needs its key in the environment variable {config.key_variable}")
    return key
