import json

import pytest
import yaml

from cpo_ray.errors import CpoRayError
from cpo_ray.submission.sweeps.grid import load_sweep
from cpo_ray.submission.sweeps.outcomes import Outcome, write_outcome
from study.page import BEGIN, END, main, render, render_charts, update
from tests.study.fake_plan import make_plan, make_values
from tests.study.test_measurements import write_scores


def make_results(plan, values, **changes):
    """Recorded results of a study with these values."""
    done = {"status": "done", "fingerprint": "f", "command": "c", "ended": "e", "error": ""}
    revision = {"commit": "0123456789abcdef", "modified": False}
    return {
        "collected": "2026-12-01T00:00:00Z",
        "arms": {
            arm: {
                "about": about, "fingerprint": f"{arm}-print", "recipe": f"{arm}-recipe",
                "command": f"sweep --only {arm}", "settings": {"a.b": 1},
            }
            for arm, about in plan.arms.items()
        },
        "runs": [done | {"arm": arm, "seed": seed, "revision": revision} for arm in plan.arms for seed in plan.seeds],
        "values": {
            metric: {term: {str(seed): value for seed, value in seeds.items()} for term, seeds in terms.items()}
            for metric, terms in values.items()
        },
    } | changes  # fmt: skip


def line(page, start):
    return next(text for text in page.splitlines() if text.startswith(start))


def test_the_page_shows_every_hypothesis_alike():
    plan = make_plan()
    page = render(plan, make_results(plan, make_values(0.2, 0.0, 8)), "Preregistration `h`.", "cpo-ray sweep s.yaml")
    against = line(page, "| H1 | Greedy negatives lower the gap")
    assert "| **does not** | the bound is crossed in the opposite direction; look 1 of 2, 4 seeds |" in against
    assert "| **holds** | the bound is crossed; look 1 of 2, 4 seeds |" in line(page, "| H4 | The paper's recipe")
    assert "| H1 | rep-4 gap: greedy/cpo - greedy/mle | < 0 | +0.200 | [" in page
    assert "Looks at 4 and 8 of 8 seeds. The p-value must reach 0.0052 at 4 seeds for a single hypothesis" in page
    assert "Preregistration `h`." in page


def test_every_number_has_its_configuration_and_command():
    plan = make_plan()
    page = render(plan, make_results(plan, make_values(-0.1, 0.0, 8)), "", "cpo-ray sweep s.yaml")
    greedy = line(page, "| greedy | cpo |")
    # mean .3, SD .01 sqrt(8 / 7), t(.975, 7) = 2.3646: .3 +- .0089; t of the difference: -.1 / (.01069 / sqrt(8))
    assert greedy == (
        "| greedy | cpo | 0.300 | [0.291, 0.309] | 0.011 | 8 | -0.100 | [-0.109, -0.091] | -26.5 | `greedy-print` |"
    )
    assert line(page, "| greedy | mle |").endswith("| 8 | - | - | - | `greedy-print` |")
    assert line(page, "| greedy | one") == (
        "| greedy | one greedy negative | `a.b: 1` | `greedy-print` | 8 of 8 | `sweep --only greedy` |"
    )
    assert "The runs were made at commit `0123456789ab`." in page
    assert "No run has this metric yet." in page  # nll


def test_failures_and_modified_checkouts_are_shown():
    plan = make_plan()
    results = make_results(plan, {})
    results["runs"][0] |= {"status": "failed", "error": "no space left\nmore"}
    results["runs"][1]["revision"] = {"commit": None, "modified": True}
    page = render(plan, results, "", "")
    assert "- greedy, seed 1: no space left\n" in page
    assert "1 runs had uncommitted changes" in page
    assert "Not tested yet: H1, H4." in page


def test_charts_show_differences_to_mle():
    plan = make_plan()
    charts = render_charts(plan, make_values(-0.1, 0.02, 8))
    assert list(charts) == ["rep"]
    assert "greedy: -0.100, 8 seeds; paper: +0.020, 8 seeds. The line is at 0" in charts["rep"]
    assert "var(--" not in charts["rep"]
    assert charts["rep"].count("<circle") == 2 * (8 + 1)


def test_the_results_have_a_place_on_the_page():
    page = f"# Study\n\n{BEGIN}\nold\n\n{END}after\n"
    assert update(page, "new\n") == f"# Study\n\n{BEGIN}\nnew\n\n{END}after\n"
    with pytest.raises(CpoRayError, match="add them where the results belong"):
        update("# Study\n", "new\n")


@pytest.fixture
def study(tmp_path):
    """A folder with a study of two arms and two seeds, of which one run is done."""
    (tmp_path / "base.yaml").write_text("name: base\ngeneration: {models: [mle, cpo]}\n")
    arms = {"greedy": {"objective.beta": 1.0}, "paper": {}}
    sweep = {"name": "s", "base": "base.yaml", "seeds": [1, 2], "arms": arms, "preregistration": "plan.yaml"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    plan = make_plan(seeds=2, looks=(2,), metrics={"rep": make_plan().metrics["rep"].model_dump()})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False))
    (tmp_path / "study.md").write_text(f"# The study\n\n{BEGIN}{END}")
    return tmp_path


def test_the_page_is_written_by_command_from_run_directories_or_recorded_values(study):
    sweep = load_sweep(study / "study.yaml")
    for run in sweep.runs[:2]:
        write_outcome(
            run.root(study / "runs"), Outcome("done", run.fingerprint, None, "cpo-ray run", "now", {"commit": "c"})
        )
    for model, rows in (("mle", [0.5, 0.4]), ("cpo", [0.2, 0.3])):
        write_scores(study / "runs" / "greedy" / "seed-1", model, rows)
    words = [str(study / "study.yaml"), "--run-dir", str(study / "runs"), "--out", str(study / "study.md")]
    main(words)
    page = (study / "study.md").read_text()
    assert "| greedy | cpo | 0.150 | - | 0.000 | 1 | -0.200 | - | - |" in page
    assert "| 1 of 2 |" in page
    assert "![rep-4 gap: CPO minus MLE](study/rep.svg)" in page
    assert (study / "study" / "rep.svg").read_text().startswith("<svg")
    recorded = json.loads((study / "study.json").read_text())
    assert recorded["values"]["rep"] == {
        "greedy/mle": {"1": pytest.approx(0.35)},
        "greedy/cpo": {"1": pytest.approx(0.15)},
    }
    recorded["collected"] = "2027-01-01T00:00:00Z"
    (study / "recorded.json").write_text(json.dumps(recorded))
    main([*words, "--results", str(study / "recorded.json")])
    assert (study / "study.md").read_text() == page.replace(
        page.partition("Collected ")[2][:20], "2027-01-01T00:00:00Z"
    )


def test_a_mistake_ends_the_command_with_its_message(study):
    (study / "plan.yaml").unlink()
    with pytest.raises(SystemExit) as ended:
        main([str(study / "study.yaml"), "--out", str(study / "study.md")])
    assert "there is no preregistration" in str(ended.value)
