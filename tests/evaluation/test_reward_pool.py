import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpo_ray.artifacts import content_key
from cpo_ray.config import ClusterConfig, RewardConfig
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.evaluation.reward import PromptResponse, score_responses
from cpo_ray.evaluation.reward_pool import collect_responses, score_generations
from tests.evaluation.tiny_reward_models import WORDS, load, pair, write_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("reward") / "bert")


def test_each_text_is_scored_once() -> None:
    same, other = pair("1", "a", "gold"), pair("1", "b", "gold")
    items = collect_responses({"mle": {"greedy": [same]}, "cpo": {"greedy": [other], "top_p": [same]}})
    assert list(items.values()) == [("p", "a"), ("p", "gold"), ("p", "b")]
    with pytest.raises(ArtifactError, match=r"no generations to score \(greedy\)"):
        collect_responses({"mle": {"greedy": []}})


@pytest.fixture
def local_ray() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, object_store_memory=2**28, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.e2e
def test_actors_score_a_run_and_a_killed_run_keeps_its_scores(local_ray: None, bert: Path, tmp_path: Path) -> None:
    letters = WORDS[4:]
    pairs = [pair(str(n), " ".join(letters[n % 20 : n % 20 + 3]), letters[n % 26]) for n in range(100)]
    generations, cluster = {"mle": {"greedy": pairs[:50]}, "cpo": {"greedy": pairs}}, ClusterConfig()
    done: list[int] = []
    kept = content_key(["p", pairs[0]["response"]])
    (tmp_path / "scores.partial").write_text(json.dumps({"key": kept, "value": [99.0, False]}) + "\n")
    summary = score_generations(generations, RewardConfig(model=str(bert)), cluster, tmp_path, done.append)
    assert sum(done) == len(collect_responses(generations))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpo", "mle", "scores.json"]
    rows = [json.loads(line) for line in (tmp_path / "cpo" / "greedy.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [pair["id"] for pair in pairs]
    assert rows[0]["candidate"] == 99.0  # not computed again
    expected = score_responses(load(bert), [PromptResponse("p", pair["response"]) for pair in pairs[1:20]], 8192)
    assert [row["candidate"] for row in rows[1:20]] == pytest.approx([score.reward for score in expected], abs=1e-5)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert summary == {f"{model} greedy": scores[model]["greedy"]["win_rate"] for model in ("mle", "cpo")}
    assert scores["mle"]["greedy"]["n"] == 50
    chat = RewardConfig(model=str(bert), style="chat")
    with pytest.raises(ConfigError, match="has no chat template"):
        score_generations(generations, chat, cluster, tmp_path / "chat", done.append)
