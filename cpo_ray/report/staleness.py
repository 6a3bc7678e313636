"""Which artifacts of a run directory are results of its current configuration.

A run that was changed in place keeps artifacts that its configuration no longer needs and, until all stages have run again,
stale artifacts: those made from artifacts that have changed since. Neither are results of the current run. What an artifact
was made from is in its manifest, where the stage's record put it (`cpo_ray/stages/record.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import starmap
from typing import Any

from cpo_ray.artifacts import Manifest
from cpo_ray.config import MergingConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.report.rounds import count_rounds, round_of

# None: the configuration is missing, or from an older version without this key. Then everything in the directory counts.
NameFilter = frozenset[str] | None
ManifestsByName = Mapping[str, Mapping[str, Any]]  # artifact -> manifest


@dataclass(frozen=True)
class CurrentResults:
    """The models, decodings and artifacts that are results of the current configuration."""

    made: NameFilter  # models
    evaluated: NameFilter  # models
    decodings: NameFilter
    rewarded: bool  # whether the run uses a reward model
    rounds: int | None = None  # of iterated CPO that were taken; 0 if it is not iterated, None if that is not known
    # stale artifact -> what it was made from, which has changed since; <artifact>/<model> for one model of a shared artifact
    outdated: Mapping[str, str] = field(default_factory=dict)

    def is_configured(self, artifact: str) -> bool:
        """Whether the configuration still produces this artifact."""
        stage, _, model = artifact.partition("/")
        number = round_of(artifact)
        if number is not None and self.rounds is not None:
            return number <= self.rounds
        if stage == "models":
            return self.made is None or not model.startswith("merged-") or model in self.made
        if stage in ("generations", "verdicts", "text_metrics"):
            return self.evaluated is None or model in self.evaluated
        return stage != "reward" or self.rewarded

    def includes(self, stage: str, model: str, decoding: str) -> bool:
        """Whether the stage's rows or scores of this model and decoding are results of the current run."""
        return (
            (self.evaluated is None or model in self.evaluated)
            and (self.decodings is None or decoding in self.decodings)
            and f"{stage}/{model}" not in self.outdated
            and self.is_configured(f"{stage}/{model}")
        )


def find_current_results(config: Mapping[str, Any], manifests: ManifestsByName) -> CurrentResults:
    """Compare a run's manifests with its resolved configuration (empty if there is none) and with each other.

    Raises ArtifactError for an invalid manifest.
    """
    generation, merging, reward = (config.get(name) or {} for name in ("generation", "merging", "reward"))
    made: NameFilter = None
    if "alphas" in merging:
        made = frozenset({"reference", "mle", "cpo", *map(MergingConfig.model_name, merging["alphas"])})
    current = CurrentResults(
        made=made,
        evaluated=frozenset(generation["models"]) if generation.get("models") else made,
        decodings=frozenset(generation["decodings"]) if "decodings" in generation else None,
        rewarded="model" not in reward or reward["model"] is not None,
        rounds=count_rounds(config, manifests),
    )
    configured = {name: manifests[name] for name in manifests if current.is_configured(name)}
    return replace(current, outdated=_find_outdated(configured, manifests))


def _find_outdated(configured: ManifestsByName, manifests: ManifestsByName) -> dict[str, str]:
    """Stale artifact -> the first of its reads that has changed or is stale itself."""

    @cache
    def changed(source: str, recorded: str) -> bool:
        """Whether an artifact, or the part of it that was read, is another now; one that is gone is not known to be."""
        name, part = (source, None) if source in manifests else source.rpartition("/")[::2]
        if name not in manifests:
            return False
        now = _read_manifest(name, manifests[name])
        fingerprint = now.fingerprint if part is None else now.part_fingerprint(part)
        return fingerprint != recorded or any(starmap(changed, _reads(manifests, name)))

    outdated: dict[str, str] = {}
    for name in configured:
        for source, recorded in _reads(manifests, name):
            if changed(source, recorded):
                # `mauve` and `reward` hold the scores of all models: only those of the changed answers are stale.
                is_shared = "/" not in name and source.startswith("generations/")
                outdated.setdefault(f"{name}/{source.partition('/')[2]}" if is_shared else name, source)
    return outdated


def _reads(manifests: ManifestsByName, name: str) -> Iterable[tuple[str, str]]:
    """(artifact, its fingerprint at the time) for everything that an artifact was made from; nothing for an old manifest."""
    reads: Mapping[str, str] = manifests.get(name, {}).get("inputs", {}).get("reads", {})
    return reads.items()


def _read_manifest(name: str, manifest: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest(**manifest)
    except TypeError as error:
        raise ArtifactError(
            f"{name}/manifest.json is not a valid manifest ({error}): delete {name} and run its stage again"
        ) from None
