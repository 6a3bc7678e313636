import sys

import numpy as np
import pytest

from cpo_ray.config import MauveConfig
from cpo_ray.errors import CpoRayError
from cpo_ray.evaluation.mauve import Features, score_mauve
from cpo_ray.records import Generation


def generations(count: int, response: str | None = None) -> list[Generation]:
    return [
        Generation(
            id=str(n),
            prompt="p",
            reference=f"gold {n}",
            response=f"made {n}" if response is None else response,
            tokens=1,
            finish_reason="stop",
        )
        for n in range(count)
    ]


def embed_far_apart(texts: list[str]) -> Features:
    rng = np.random.default_rng(len("".join(texts)))
    centre = 5.0 if texts[0].startswith("gold") else -5.0
    return rng.normal(centre, 1.0, (len(texts), 8)).astype(np.float32)


def embed_alike(texts: list[str]) -> Features:
    return np.random.default_rng(texts[0] == "gold 0").normal(0, 1, (len(texts), 8)).astype(np.float32)


def test_similar_texts_score_high_and_distant_texts_score_low(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mauve", reason="the extra cpo-ray[mauve] is not installed")
    config = MauveConfig(minimum_rows=100, seeds=2)
    alike = score_mauve(generations(200), embed_alike, config, 17)
    apart = score_mauve(generations(200), embed_far_apart, config, 17)
    assert alike["mean"] > 0.8 > 0.1 > apart["mean"]
    assert len(alike["scores"]) == 2
    assert alike["rows"] == 200
    assert alike["mean"] == pytest.approx(sum(alike["scores"]) / 2)
    assert alike["deviation"] >= 0
    assert score_mauve(generations(200), embed_alike, config, 17) == alike
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_empty_responses_are_scored() -> None:
    pytest.importorskip("mauve", reason="the extra cpo-ray[mauve] is not installed")

    def embed(texts: list[str]) -> Features:
        features = embed_alike(texts)
        features[[not text for text in texts]] = 0
        return features

    result = score_mauve(generations(60, response=""), embed, MauveConfig(minimum_rows=50, seeds=1), 17)
    assert 0 < result["mean"] < 0.2
    assert result["deviation"] is None


def test_few_rows_are_refused() -> None:
    with pytest.raises(CpoRayError, match=r"MAUVE on 199 rows is refused.*mauve.minimum_rows is 200"):
        score_mauve(generations(199), embed_alike, MauveConfig(), 17)


def test_a_missing_extra_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(CpoRayError, match=r"cpo-ray\[mauve\]"):
        score_mauve(generations(200), embed_alike, MauveConfig(), 17)


def test_invalid_features_are_refused() -> None:
    pytest.importorskip("mauve", reason="the extra cpo-ray[mauve] is not installed")
    config = MauveConfig(minimum_rows=10)
    with pytest.raises(CpoRayError, match=r"shape \(3, 8\) for 10 texts"):
        score_mauve(generations(10), lambda _: embed_alike(["x"] * 3), config, 17)
    with pytest.raises(CpoRayError, match="not finite"):
        score_mauve(generations(10), lambda texts: embed_alike(texts) * np.float32("nan"), config, 17)
