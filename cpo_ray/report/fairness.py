"""Whether CPO and the baseline were trained alike: the same prompts, steps and tuning budget, as their manifests record."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

from cpo_ray.artifacts import SELECTED
from cpo_ray.report.method import BASELINE
from cpo_ray.report.rounds import RoundsFound, rounds_of
from cpo_ray.report.run_contents import RunContents

SELECTED_PROMPTS = f"groups/train/{SELECTED}"  # what stage `mle` reads since it trains on CPO's prompts


class Trial(TypedDict):
    """One learning rate that was tried."""

    learning_rate: float
    validation_loss: float


class TrainingComparison(TypedDict):
    """How the two trainings compare. `alike` is None if the manifests do not say."""

    alike: bool | None
    sentence: str
    trials: dict[str, list[Trial]]  # model -> its trials; empty if its learning rate was not tuned


def compare_trainings(run: RunContents) -> TrainingComparison | None:
    """Return how the trainings of CPO and the baseline differ, or None for a run without both models."""
    cpo, mle = (run.manifests.get(f"models/{model}") for model in ("cpo", BASELINE))
    if cpo is None or mle is None:
        return None
    baseline = run.method(BASELINE)
    trials = {model: trials_of(manifest) for model, manifest in (("cpo", cpo), (BASELINE, mle))}
    rounds = rounds_of(run.manifests)
    equal = [_equal_prompts(run, cpo, mle), _equal_steps(cpo, mle, rounds), _equal_budget(run, baseline, trials)]
    differences = [*_prompts_differ(run, cpo, mle, baseline), *_steps_differ(cpo, mle, baseline)]
    differences += _rates_differ(run, baseline, trials)
    if differences:
        sentence = (
            f"CPO and {baseline} were not trained alike: {'; '.join(differences)}. So the difference between them is not that "
            "of their losses alone."
        )
        return TrainingComparison(alike=False, sentence=sentence, trials=trials)
    if None in equal:
        sentence = f"The manifests of this run do not say whether CPO and {baseline} had the same prompts and steps."
        return TrainingComparison(alike=None, sentence=sentence, trials=trials)
    sentence = f"CPO and {baseline} were trained alike: {', '.join(filter(None, equal))}.{_stopped(rounds)}"
    return TrainingComparison(alike=True, sentence=sentence, trials=trials)


def trials_of(manifest: Mapping[str, Any]) -> list[Trial]:
    """Return the learning rates that were tried for a model, with their validation losses; none if it was not tuned."""
    return list(manifest.get("summary", {}).get("trials", []))


def learning_rate_of(run: RunContents, model: str) -> float | None:
    """Return the learning rate of the training that a model is from: the chosen one if several were tried."""
    manifest = run.manifests.get(f"models/{model}", {})
    inputs = manifest.get("inputs", {})
    training = inputs.get("config", {}).get("training") or run.config.get("training") or {}
    for section in (manifest.get("summary", {}), inputs.get("also", {}), training):
        if "learning_rate" in section:
            return float(section["learning_rate"])
    return None


def steps_of(manifest: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the steps of a training and the prompts of each; None if its manifest does not say. All rounds count together."""
    training, summary = _config(manifest).get("training", {}), manifest.get("summary", {})
    if not {"steps", "prompts_per_step"} <= training.keys():
        return None
    steps = summary["steps"] if "rounds" in summary else manifest["inputs"].get("also", {}).get("steps")
    return (training["steps"] if steps is None else steps), training["prompts_per_step"]


def _equal_prompts(run: RunContents, cpo: Mapping[str, Any], mle: Mapping[str, Any]) -> str | None:
    """`run.manifests` has no stale artifacts, so what both models read of the groups is what is there."""
    groups = run.manifests.get("groups/train")
    if groups is None or SELECTED_PROMPTS not in _reads(mle):
        return None
    streamed = groups.get("inputs") == cpo.get("inputs")  # made by the same training
    same_order = _config(cpo).get("seed") == _config(mle).get("seed")
    if not same_order or not (streamed or "groups/train" in _reads(cpo)):
        return None
    return f"on the same {_rows(groups, selected=True):,} prompts in the same order"


def _prompts_differ(run: RunContents, cpo: Mapping[str, Any], mle: Mapping[str, Any], baseline: str) -> Iterator[str]:
    """A version before the one that reads `groups/train/selected` trained the baseline on all rows of the data."""
    data, groups = run.manifests.get("data"), run.manifests.get("groups/train")
    if data is None or groups is None or "data" not in _reads(mle) or "groups/train" not in _reads(cpo):
        return
    ours, theirs = _rows(groups), data.get("summary", {}).get("train_rows")
    if theirs is not None:
        yield f"CPO drew its batches from {ours:,} prompts, {baseline} from {theirs:,}, so their batches differ"


def _equal_steps(cpo: Mapping[str, Any], mle: Mapping[str, Any], rounds: RoundsFound | None) -> str | None:
    ours, theirs = steps_of(cpo), steps_of(mle)
    if ours is None or ours != theirs:
        return None
    if rounds is None:
        return f"for {ours[0]:,} steps of {ours[1]:,} prompts"
    count = "1 round" if rounds["kept"] == 1 else f"{rounds['kept']} rounds"
    apart = f" (CPO in {count}, each with its own learning-rate schedule)"
    return f"for {ours[0]:,} steps of {ours[1]:,} prompts{apart}"


def _stopped(rounds: RoundsFound | None) -> str:
    return f" CPO's {rounds['reason']}." if rounds and rounds["reason"] else ""


def _steps_differ(cpo: Mapping[str, Any], mle: Mapping[str, Any], baseline: str) -> Iterator[str]:
    ours, theirs = steps_of(cpo), steps_of(mle)
    if ours is not None and theirs is not None and ours != theirs:
        yield (f"CPO took {ours[0]:,} steps of {ours[1]:,} prompts, {baseline} {theirs[0]:,} of {theirs[1]:,}")


def _equal_budget(run: RunContents, baseline: str, trials: Mapping[str, Sequence[Trial]]) -> str:
    ours, theirs = (learning_rate_of(run, model) for model in ("cpo", BASELINE))
    chosen = f"{_number(ours)} for CPO, {_number(theirs)} for {baseline}"
    tried = [_number(trial["learning_rate"]) for trial in trials["cpo"]]
    if not tried:
        return f"and with one learning rate each, without tuning: {chosen}"
    return f"and with the same tuning budget (learning rates tried by each: {', '.join(tried)}; kept: {chosen})"


def _rates_differ(run: RunContents, baseline: str, trials: Mapping[str, Sequence[Trial]]) -> Iterator[str]:
    ours: list[float | None] = [trial["learning_rate"] for trial in trials["cpo"]]
    theirs: list[float | None] = [trial["learning_rate"] for trial in trials[BASELINE]]
    if set(ours) != set(theirs):
        rates = {"cpo": ours or [learning_rate_of(run, "cpo")], BASELINE: theirs or [learning_rate_of(run, BASELINE)]}
        tried = [", ".join(map(_number, rates[model])) for model in ("cpo", BASELINE)]
        yield f"learning rates tried: {tried[0]} for CPO, {tried[1]} for {baseline}"


def _reads(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    reads: Mapping[str, Any] = manifest.get("inputs", {}).get("reads", {})
    return reads


def _config(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = manifest.get("inputs", {}).get("config", {})
    return config


def _rows(manifest: Mapping[str, Any], *, selected: bool = False) -> int:
    files = manifest.get("files", {}).items()
    return sum(entry.get("rows", 0) for name, entry in files if name.startswith(f"{SELECTED}/") == selected)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
