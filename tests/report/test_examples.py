from rich.console import Console

from cpo_ray.report.examples import MAX_CHARACTERS, first_examples, format_example, render_examples
from cpo_ray.report.run_contents import read_run
from tests.report.fake_run import HOSTILE, make_fake_run


def test_the_first_prompts_have_the_truth_and_both_models_side_by_side(tmp_path):
    make_fake_run(tmp_path / "run", rows=10, steps=10)
    run = read_run(tmp_path / "run")
    examples = first_examples([run], "greedy")
    answers = {model: run.generations[model]["greedy"] for model in ("mle", "cpo")}
    assert [each["prompt"] for each in examples] == [row["prompt"] for row in answers["mle"][:3]]
    assert examples[1]["answers"] == {model: rows[1]["response"][:MAX_CHARACTERS] for model, rows in answers.items()}
    html = render_examples(examples)
    assert "The first 3 test prompts" in html
    assert html.count("<h4>cpo</h4>") == 3
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html


def test_there_are_none_for_several_runs_or_without_both_models(tmp_path):
    make_fake_run(tmp_path / "run", rows=10, steps=10, models={"reference": 0.4, "cpo": 0.5})
    run = read_run(tmp_path / "run")
    assert first_examples([run], "greedy") == first_examples([run, run], "greedy") == first_examples([run], None) == []
    assert render_examples([]) == ""


def test_long_texts_are_cut_where_they_are_read_last():
    console = Console(width=200, record=True)
    console.print(format_example({"prompt": "[bold]p", "truth": "t", "answers": {"mle": "m", "cpo": "c\n\nd"}}))
    text = console.export_text()
    assert "[bold]p" in text
    assert "c d" in text
