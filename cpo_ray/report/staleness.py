"""What of a run directory is of its present configuration.

A run that was changed in place keeps what it no longer asks for and, until it has been run to its end, what was made from
models or answers that are others now. Neither is a result of the run as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cpo_ray.artifacts import Manifest
from cpo_ray.config import MergingConfig
from cpo_ray.errors import ArtifactError

# None: an older version's configuration, or none, does not say, so whatever is there counts.
Names = frozenset[str] | None
Manifests = Mapping[str, Mapping[str, Any]]  # artifact -> manifest

MADE_FROM = {  # stage -> key of its inputs -> artifact with that fingerprint
    "generations": {"data": "data", "model": "models/{model}"},
    "verdicts": {"data": "data", "generations": "generations/{model}"},
}


@dataclass(frozen=True)
class Present:
    """Which models, decodings and artifacts count."""

    made: Names  # models
    evaluated: Names  # models
    decodings: Names
    rewarded: bool  # does the run ask a reward model?
    # <stage>/<model> -> what it was made from, made again since
    outdated: Mapping[str, str] = field(default_factory=dict)

    def asks_for(self, artifact: str) -> bool:
        """Is the artifact one that the configuration leads to?"""
        stage, _, model = artifact.partition("/")
        if stage == "models":
            return self.made is None or not model.startswith("merged-") or model in self.made
        if stage in ("generations", "verdicts"):
            return self.evaluated is None or model in self.evaluated
        return stage != "reward" or self.rewarded

    def counts(self, stage: str, model: str, decoding: str) -> bool:
        """Are the stage's rows or scores of this model and decoding results of the run as it is?"""
        return (
            (self.evaluated is None or model in self.evaluated)
            and (self.decodings is None or decoding in self.decodings)
            and f"{stage}/{model}" not in self.outdated
            and self.asks_for(f"{stage}/{model}")
        )


def find_present(config: Mapping[str, Any], manifests: Manifests) -> Present:
    """Compare a run's manifests with its resolved configuration, which is empty where there is none, and with each other.

    Raises ArtifactError for a manifest that is none.
    """
    generation, merging, reward = (config.get(name) or {} for name in ("generation", "merging", "reward"))
    made: Names = None
    if "alphas" in merging:
        made = frozenset({"reference", "mle", "cpo", *map(MergingConfig.model_name, merging["alphas"])})
    present = Present(
        made=made,
        evaluated=frozenset(generation["models"]) if generation.get("models") else made,
        decodings=frozenset(generation["decodings"]) if "decodings" in generation else None,
        rewarded="model" not in reward or reward["model"] is not None,
    )
    outdated: dict[str, str] = {}
    for name, source, recorded in _sources({name: manifests[name] for name in manifests if present.asks_for(name)}):
        now = _fingerprint(source, manifests[source]) if source in manifests else recorded
        if source in outdated or recorded not in (None, now):
            outdated.setdefault(name, source)
    return replace(present, outdated=outdated)


def _sources(manifests: Manifests) -> Iterator[tuple[str, str, str | None]]:
    """<stage>/<model>, an artifact that it was made from, and the fingerprint that this had then; in the stages' order."""
    for stage, sources in MADE_FROM.items():
        for name, manifest in manifests.items():
            if name.startswith(f"{stage}/"):
                for key, source in sources.items():
                    yield name, source.format(model=name.partition("/")[2]), manifest.get("inputs", {}).get(key)
    for stage in ("reward", "mauve"):  # one artifact for all models
        for model, recorded in manifests.get(stage, {}).get("inputs", {}).get("generations", {}).items():
            yield f"{stage}/{model}", f"generations/{model}", recorded


def _fingerprint(name: str, manifest: Mapping[str, Any]) -> str:
    try:
        return Manifest(**manifest).fingerprint
    except TypeError as error:
        raise ArtifactError(f"{name}/manifest.json is not a manifest ({error}): have {name} made again") from None
