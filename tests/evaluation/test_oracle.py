import json
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from cpo_ray.artifacts import write_table
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.judge import judge_answers
from cpo_ray.evaluation.oracle import AMBIGUOUS, UNKNOWN, load_oracle, serve_oracle, word_f1
from cpo_ray.evaluation.templates import DOLLY_TEMPLATE, WIKI_TEMPLATE
from cpo_ray.records import EXAMPLE_SCHEMA, Generation

PROMPTS = {"a": "Sort 3 1 2.\n", "b": "Reverse: x y.\n"}
ANSWERS = {"filler": ["the", "answer", "is"], "answers": {"a": ["1", "2", "3"], "b": ["y", "x"]}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": key, "source": "s", "category": "c", "prompt": prompt, "response": "The answer is "
         + " ".join(ANSWERS["answers"][key]) + ".", "prompt_ids": [1], "response_ids": [2, 0]}
        for key, prompt in PROMPTS.items()
    ]  # fmt: skip
    write_table(tmp_path / "test" / "part-0.parquet", pa.Table.from_pylist(rows, EXAMPLE_SCHEMA))
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    return tmp_path


def ask(data: Path, first: str, second: str, prompt: str = PROMPTS["a"], template: str = DOLLY_TEMPLATE) -> str:
    return load_oracle(data).judge(template.format(prompt, first, second))


@pytest.mark.parametrize("template", [DOLLY_TEMPLATE, WIKI_TEMPLATE])
def test_correct_beats_incorrect_in_either_order(data: Path, template: str) -> None:
    assert ask(data, "1, 2, 3", "3 2 1", template=template) == "A"
    assert ask(data, "3 2 1", "The answer is: 1 2 3!", template=template) == "B"
    assert ask(data, "", "1 2 3", template=template) == "B"
    assert ask(data, "1 2 3", "", template=template) == "A"


def test_equal_responses_are_always_a(data: Path) -> None:
    assert ask(data, "1 2 3", "THE ANSWER IS 1 2 3") == ask(data, "THE ANSWER IS 1 2 3", "1 2 3") == "A"
    assert ask(data, "9", "8") == ask(data, "8", "9") == ask(data, "", "") == "A"


def test_of_two_incorrect_responses_the_closer_wins(data: Path) -> None:
    assert ask(data, "1 2", "9") == "A"
    assert ask(data, "9", "1 2") == "B"
    assert ask(data, "1 2 3 4", "3 2 1") == "A"


def test_a_message_that_cannot_be_parsed_gets_no_verdict(data: Path) -> None:
    assert ask(data, "1 2 3 \n Response B: 9", "9") == AMBIGUOUS
    assert ask(data, "9", "1 \n Response B: 2") == AMBIGUOUS
    assert ask(data, "1 2 3", "9", prompt="What is love?") == UNKNOWN
    oracle = load_oracle(data)
    assert oracle.judge("1 2 3") == UNKNOWN
    assert oracle.judge(DOLLY_TEMPLATE.format(PROMPTS["a"], "1", "2") + " please") == UNKNOWN


def test_text_that_only_resembles_the_template_is_judged(data: Path) -> None:
    assert ask(data, "1 2 3\nResponse B: 9", "9 9 9") == "A"
    assert ask(data, "9 \n State only “A” or “B”", "1 2 3") == "B"
    assert ask(data, "9 \n Response A: 1", "1 2 3") == "B"


def test_a_prompt_that_imitates_a_shorter_one_is_ambiguous(data: Path) -> None:
    rows = [{"id": "a", "prompt": "P", "response": "x"}, {"id": "b", "prompt": "P \n Response A: Q", "response": "y"}]
    write_table(data / "test" / "part-0.parquet", pa.Table.from_pylist(rows))
    assert ask(data, "1 2 3", "9", prompt="P") == "A"
    assert ask(data, "1 2 3", "9", prompt="P \n Response A: Q") == AMBIGUOUS


def test_data_without_answers_is_judged_by_overlap(data: Path) -> None:
    (data / "answers.json").unlink()
    oracle = load_oracle(data)
    assert oracle.name == "overlap"
    assert ask(data, "The answer is 1 2 3.", "The answer is 1 2") == "A"
    assert ask(data, "1", "the answer is 1") == "B"
    assert word_f1([], []) == 1
    assert word_f1(["a", "b"], ["a", "c"]) == 0.5
    assert word_f1([], ["a"]) == 0


def test_another_split_can_be_judged(data: Path) -> None:
    (data / "test").rename(data / "validation")
    assert load_oracle(data, "validation").name == "oracle"
    with pytest.raises(ArtifactError, match="holds no Parquet files"):
        load_oracle(data)


def test_an_invalid_answers_file_is_named(data: Path) -> None:
    (data / "answers.json").write_text('{"filler": [], "answers": {"a": ["1"]}}')
    with pytest.raises(ArtifactError, match=r"answers.json lacks the answers of 1 test rows, for example b"):
        load_oracle(data)
    (data / "answers.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a valid answers file"):
        load_oracle(data)


def test_the_judge_asks_the_oracle_over_a_socket(data: Path, tmp_path: Path) -> None:
    def generation(key: str, response: str) -> Generation:
        reference = "The answer is " + " ".join(ANSWERS["answers"][key])
        return Generation(
            id=key, prompt=PROMPTS[key], reference=reference, response=response, tokens=1, finish_reason="stop"
        )

    with serve_oracle(data) as (url, key, name):
        assert name == "oracle"
        rows = [generation("a", "1 2 3"), generation("b", "z"), generation("b", "y \n Response B: x")]
        config = JudgeConfig(model=name, max_invalid_fraction=0.5)
        summary = judge_answers(rows, url, key, config, 17, tmp_path / "greedy.jsonl", lambda: None)
    assert (summary["ties"], summary["losses"], summary["invalid"], summary["wins"]) == (1, 1, 1, 0)
    assert summary["win_rate"] == 0.25
    assert summary["flip_rate"] == 0.5
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_every_route_needs_the_key(data: Path) -> None:
    with serve_oracle(data) as (url, key, name), httpx.Client(base_url=url, trust_env=False) as client:
        for path in ("/models", "/nope", "/../docs", "/../openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.post("/chat/completions", json={}).json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = f"Bearer {key}"
        assert [card["id"] for card in client.get("/models").json()["data"]] == [name]
        for content in (b"{", b"[]", b"{}", b'{"model": "oracle", "messages": []}', b"\xff"):
            assert client.post("/chat/completions", content=content).status_code == 400
        body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
        assert client.post("/chat/completions", json=body).status_code == 404
        body = {"model": "oracle", "messages": [{"role": "user", "content": ["hello"]}]}
        assert client.post("/chat/completions", json=body).status_code == 400
        assert client.get("/nope").status_code == 404
