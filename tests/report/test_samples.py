import json
import re

from cpo_ray.report.samples import MAX_CHARACTERS, embed_json
from cpo_ray.report.write import write_report
from tests.report.fake_run import HOSTILE, make_fake_run


def test_embedded_json_round_trips():
    value = {"a": HOSTILE, "b": [1.5, None, "\u2029 & \\u003c <!--"]}
    assert json.loads(embed_json(value)) == value
    assert not re.search("[<>&\u2028\u2029]", embed_json(value))


def test_a_page_that_is_too_large_states_how_many_prompts_it_shows(tmp_path, monkeypatch):
    assert MAX_CHARACTERS > 10_000_000
    monkeypatch.setattr("cpo_ray.report.samples.MAX_CHARACTERS", 3000)
    make_fake_run(tmp_path / "run", rows=30, steps=20, decodings=("greedy",))
    write_report([tmp_path / "run"], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"Only the first \d+ of 30 prompts", page)
