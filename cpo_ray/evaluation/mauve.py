"""MAUVE: the gap between generated and real continuations as distributions of embeddings (the paper's figure 2, table 4).

This is the only file that imports the mauve package, an optional extra because it is GPL-3.0.
"""

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpo_ray.artifacts import Summary
from cpo_ray.config import MauveConfig
from cpo_ray.errors import CpoRayError
from cpo_ray.records import Generation

Features = npt.NDArray[np.float32]


def score_mauve(
    generations: Sequence[Generation],
    embed: Callable[[list[str]], Features],
    config: MauveConfig,
    seed: int,
) -> Summary:
    """Compare the real `reference`s with the generated `response`s.

    `embed` maps n texts, which may be empty, to (n, D) features. The clustering is run with seeds `seed` ...
    `seed + config.seeds - 1`. Returns {"mean", "deviation", "scores", "rows"}: scores are in (0, 1], higher is closer;
    `deviation` is the sample standard deviation over the seeds, None for one seed.

    Raises CpoRayError for fewer than `config.minimum_rows` rows, for features that are not finite or not (n, D), and if the
    extra is not installed.
    """
    rows = len(generations)
    if rows < config.minimum_rows:
        raise CpoRayError(
            f"MAUVE on {rows} rows is refused: it is biased on few samples. mauve.minimum_rows is {config.minimum_rows}; "
            "generate more rows, or lower it and accept the bias"
        )
    try:
        import mauve
    except ModuleNotFoundError as error:
        if error.name != "mauve":
            raise
        raise CpoRayError(
            "MAUVE needs the package mauve-text (GPL-3.0), an optional extra: pip install 'cpo-ray[mauve]'"
        ) from None
    real = _check_features(embed([row["reference"] for row in generations]), rows)
    generated = _check_features(embed([row["response"] for row in generations]), rows)
    scores = []
    for run in range(config.seeds):
        with _silence_faiss():
            result = mauve.compute_mauve(
                p_features=real, q_features=generated, seed=seed + run, device_id=-1, verbose=False
            )
        scores.append(float(result.mauve))
    return {
        "mean": statistics.fmean(scores),
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        "scores": scores,
        "rows": rows,
    }


def _check_features(features: Features, rows: int) -> Features:
    if features.ndim != 2 or len(features) != rows:
        raise CpoRayError(
            f"the embedder returned features of shape {features.shape} for {rows} texts; expected ({rows}, D)"
        )
    if not np.isfinite(features).all():
        raise CpoRayError("the embedder returned features that are not finite")
    return features


@contextlib.contextmanager
def _silence_faiss() -> Iterator[None]:
    """Redirect the process's standard error to the null device: faiss warns there, from C++, about the number of clusters."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
