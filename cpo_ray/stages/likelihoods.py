"""Log-probs of answers for stage `text_metrics`: under the run's reference, and under a model that took no part in the run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.artifacts import read_table
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.inference.model_facts import read_model_facts
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.records import Example, Generation, Tokens, without_eos
from cpo_ray.stages.record import StageRun

if TYPE_CHECKING:
    from cpo_ray.evaluation.answer_likelihood import PromptedAnswers
    from cpo_ray.evaluation.ngrams import Floats

HELDOUT = "text_metrics.heldout"


def score_likelihoods(stage: StageRun, files: Sequence[Sequence[Generation]]) -> list[dict[str, "Floats"]]:
    """Metric -> nats per token of each answer: first of the truths, then of every file. The files have the same prompts.

    Every answer is scored with EOS if it ended with it, after its prompt as the models were given it.
    """
    from cpo_ray.data.tokenization import load_tokenizer

    config = stage.config.text_metrics
    table = read_table(stage.read("data").path / stage.config.generation.split)
    examples = {example["id"]: example for example in table.to_pylist()}
    chosen: list[Example] = [examples[row["id"]] for row in files[0]]
    tokenizer = load_tokenizer(str(stage.read("data").path / "tokenizer"))
    found: list[dict[str, Floats]] = [{} for _ in range(len(files) + 1)]
    if config.reference_likelihood:
        prompted = _for_reference(chosen, files, tokenizer, stage.config.data.max_response_tokens)
        _score(stage, prompted, str(stage.read("models/reference").path), "reference_logp", found)
    if config.heldout is not None:
        folder = Path(config.heldout)  # absolute, because actors have a working directory of their own
        source = str(folder.resolve()) if folder.is_dir() else config.heldout
        _score(stage, _for_heldout(chosen, files, tokenizer, source), source, "heldout_logp", found)
    return found


def check_heldout(path: str) -> None:
    """Raise ConfigError if there is no such model. Loads no weights."""
    read_model_facts(path, key=HELDOUT)


def _score(
    stage: StageRun, prompted: "PromptedAnswers", source: str, metric: str, found: Sequence[dict[str, "Floats"]]
) -> None:
    """Add the metric to `found`."""
    from cpo_ray.evaluation.answer_likelihood import score_answers
    from cpo_ray.evaluation.likelihood_pool import score_continuations

    stage.ray.ensure()
    config = stage.config
    with measured_bar(metric, len(prompted.prompts), "prompts") as progress:
        score = partial(
            score_continuations,
            source=source,
            precision=config.training.precision,
            cluster=config.cluster,
            on_rows=progress.advance,
        )
        for metrics, values in zip(found, score_answers(prompted, score), strict=True):
            metrics[metric] = values


def _for_reference(
    examples: Sequence[Example], files: Sequence[Sequence[Generation]], tokenizer: Any, max_tokens: int
) -> "PromptedAnswers":
    """In the run's own tokens; the truths are those of the data."""
    from cpo_ray.data.tokenization import encode
    from cpo_ray.evaluation.answer_likelihood import PromptedAnswers, end_answers

    lists: list[Sequence[Tokens]] = [[example["response_ids"] for example in examples]]
    for rows in files:
        ids = [tokens[:max_tokens] for tokens in encode(tokenizer, [row["response"] for row in rows], special=False)]
        lists.append(end_answers(ids, _ended(rows), tokenizer.eos_token_id))
    return PromptedAnswers([example["prompt_ids"] for example in examples], lists)


def _for_heldout(
    examples: Sequence[Example], files: Sequence[Sequence[Generation]], tokenizer: Any, path: str
) -> "PromptedAnswers":
    """In the tokens of the model at `path`. Raises ConfigError if its tokenizer cannot be used."""
    from cpo_ray.data.tokenization import encode, load_tokenizer
    from cpo_ray.evaluation.answer_likelihood import PromptedAnswers, end_answers

    facts = read_model_facts(path, key=HELDOUT)
    try:
        own = load_tokenizer(path)
    except DataError as error:
        raise ConfigError(f"{HELDOUT} {path} has no tokenizer that can be used: {error}") from None
    eos = tokenizer.eos_token_id
    truths = [tokenizer.decode(without_eos(example["response_ids"], eos)) for example in examples]
    ended = [example["response_ids"][-1:] == [eos] for example in examples]
    prompts = [tokenizer.decode(example["prompt_ids"], skip_special_tokens=True) for example in examples]
    lists = [end_answers(encode(own, truths, special=False), ended, own.eos_token_id)]
    for rows in files:
        ids = encode(own, [row["response"] for row in rows], special=False)
        lists.append(end_answers(ids, _ended(rows), own.eos_token_id))
    prompted = PromptedAnswers(encode(own, prompts, special=True), lists)
    return prompted.within(None if facts is None else facts.context, own.all_special_ids)


def _ended(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [row["finish_reason"] == "stop" for row in rows]
