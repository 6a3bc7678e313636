"""The Python API: what `import cpo_ray` and `import cpo_ray.objective` give, without what is not needed."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import cpo_ray
import cpo_ray.objective
from cpo_ray.errors import ConfigError
from tests.api_page import render
from tests.evaluation.judging import say
from tests.flaky_server import KEY, serve_flaky

ROOT = Path(__file__).parent.parent
API_PAGE = ROOT / "docs" / "api.md"
HEAVY = ("ray", "vllm", "deepspeed", "sentence_transformers", "mauve")


def tiny_model(seed):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **shape)).eval()


@pytest.mark.parametrize("module", ["cpo_ray", "cpo_ray.objective"])
def test_an_import_loads_nothing_heavy(module):
    heavy = HEAVY if module == "cpo_ray.objective" else (*HEAVY, "torch")
    use = "cpo_ray.objective.cpo_loss, cpo_ray.objective.candidate_logps" if module != "cpo_ray" else "cpo_ray.run"
    code = f"import sys, {module}; {use}; print(*[name for name in {heavy!r} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert seen.stdout.split() == []


def test_everything_exported_is_there_and_documented():
    for module in (cpo_ray, cpo_ray.objective):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'cpo_los'"):
        _ = cpo_ray.objective.cpo_los


def test_a_shipped_configuration_is_found_by_its_name(tmp_path, monkeypatch):
    assert cpo_ray.load_config("demo", "training.steps=60").training.steps == 60
    assert cpo_ray.load_config(ROOT / "configs" / "demo.yaml") == cpo_ray.load_config("demo")
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        cpo_ray.load_config("demmo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of this name does not hide it
    assert cpo_ray.load_config("demo").name == "demo"


def test_the_objective_in_a_loop_of_one_s_own():
    """The packed log-probs are those of the model's own forward pass, and the first loss is log K."""
    model = tiny_model(0)
    prompts, candidates = [[1, 2, 3]], [[[4, 5, 6], [4, 5], [7, 8, 9, 2]]]
    groups = cpo_ray.objective.pack(prompts, candidates)
    assert cpo_ray.objective.check_packing(model, prompts, candidates) is None
    logps_BK = cpo_ray.objective.candidate_logps(model, groups)
    for logp, candidate in zip(logps_BK[0].tolist(), candidates[0], strict=True):
        own_NV = model(torch.tensor([prompts[0] + candidate])).logits[0].log_softmax(-1).detach()
        assert logp == pytest.approx(sum(float(own_NV[2 + n, token]) for n, token in enumerate(candidate)), abs=1e-4)
    loss = cpo_ray.objective.cpo_loss(logps_BK, logps_BK.detach(), beta=1.0)
    assert loss.tolist() == pytest.approx([math.log(3)])
    loss.mean().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.grad is not None)


def test_models_are_averaged(tmp_path):
    for seed in (1, 2):
        tiny_model(seed).save_pretrained(tmp_path / str(seed))
    summary = cpo_ray.merge({tmp_path / "1": 0.25, tmp_path / "2": 0.75}, tmp_path / "out")
    assert summary["shards"] == 1
    one, two, out = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2", "out"))
    for key, value in out.items():
        torch.testing.assert_close(value, 0.25 * one[key] + 0.75 * two[key])


def test_answers_are_compared_by_a_judge(tmp_path):
    for name, text in (("ours", "long answer"), ("theirs", "short")):
        rows = [{"id": str(n), "prompt": f"p{n}", "response": f"{text} {n}"} for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve_flaky(lambda _: say("A")) as service:
        judge = {"url": service.url, "model": "judge"}
        files = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
        summary = cpo_ray.compare(*files, judge, tmp_path / "out", key=KEY)
    assert (summary["n"], summary["ties"], summary["flip_rate"]) == (4, 4, 1.0), "always A: every pair flips"


def test_a_mistake_in_the_judge_s_keys_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="modell"):
        cpo_ray.compare("a", "b", {"url": "http://x/v1", "modell": "m"}, tmp_path)


def test_the_stages_are_found_without_an_import_of_their_own():
    code = "import cpo_ray; print(*cpo_ray.stages.STAGES)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert seen.stdout.split()[:2] == ["data", "reference"]


def test_a_win_rate_has_an_interval():
    rate = cpo_ray.win_rate(["win"] * 8 + ["loss"] * 2 + ["invalid"])
    assert rate.rate == 0.8
    assert (rate.low, rate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's without ties


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_page_run(number):
    snippets = re.findall(r"```python\n(.*?)```", API_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 3
    exec(compile(snippets[number], f"docs/api.md, example {number}", "exec"), {})


def test_the_page_is_current():
    page = API_PAGE.read_text(encoding="utf-8")
    assert page == render(page), "docs/api.md is stale: run `make docs`"


def test_the_snippet_of_the_readme_runs():
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 1
    assert len(snippets[0].splitlines()) <= 15
    scope: dict = {}
    exec(compile(snippets[0], "README.md", "exec"), scope)
    assert float(scope["loss"].detach()) == pytest.approx(math.log(3), abs=1e-4)
